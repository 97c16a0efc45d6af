//! Kueue: a cluster queue for each project in a tree of cohorts, and a job that waits to be admitted.
//!
//! Fields and their meaning: the definitions of `kueue.x-k8s.io/v1beta2` (Kueue 0.15 and later) in Kueue's
//! repository.

use serde::Serialize;
use serde_json::Value;

use super::kubernetes::{self, GPU, Manner, Map, Metadata, Object, object};
use super::{Export, ExportError, File, Names, Site, kai, label};
use crate::amounts::{RESOURCES, Resource, WHOLE};
use crate::job::{Class, Spec};
use crate::policy::{Node, Policy, Tree};

const API: &str = "kueue.x-k8s.io/v1beta2";
/// The cohort above all others, in which departments borrow from each other.
const ROOT: &str = "pool";
const FLAVOR: &str = "luthier";
/// Kueue has no word for "no bound", and does not admit what a queue does not name: this is more than any
/// cluster has.
const PLENTY: [(Resource, &str); 3] =
    [(Resource::Devices, "1000000"), (Resource::Cpus, "100000000"), (Resource::Memory, "1Pi")];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterQueueSpec {
    cohort_name: String,
    namespace_selector: Selector,
    queueing_strategy: &'static str,
    preemption: Preemption,
    fair_sharing: FairSharing,
    resource_groups: Vec<ResourceGroup>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CohortSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fair_sharing: Option<FairSharing>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resource_groups: Vec<ResourceGroup>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LocalQueueSpec {
    cluster_queue: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_labels: Map,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Preemption {
    reclaim_within_cohort: &'static str,
    within_cluster_queue: &'static str,
}

#[derive(Serialize)]
struct FairSharing {
    weight: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceGroup {
    covered_resources: Vec<&'static str>,
    flavors: Vec<Flavor>,
}

#[derive(Serialize)]
struct Flavor {
    name: &'static str,
    resources: Vec<Quota>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Quota {
    name: &'static str,
    nominal_quota: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    borrowing_limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lending_limit: Option<String>,
}

#[derive(Serialize)]
struct FlavorSpec {}

#[derive(Serialize)]
struct PriorityClass {
    value: i32,
    description: &'static str,
}

pub(super) fn export(
    policy: &Policy,
    tree: &Tree,
    job: Option<&Spec>,
    site: &Site,
) -> Result<Export, ExportError> {
    let names = Names::new(tree, &[ROOT])?;
    let flavor = Metadata { name: FLAVOR.into(), ..Metadata::default() };
    let mut objects = vec![object(API, "ResourceFlavor", flavor, FlavorSpec {})?];
    for class in [Class::Train, Class::BuildPreemptible, Class::Build, Class::Inference] {
        objects.push(priority_class(class)?);
    }
    objects.push(cohort(ROOT, root(tree, site))?);
    for (number, node) in tree.nodes.iter().enumerate() {
        let parent = node.parent.map_or(ROOT, |above| names.of(above)).to_owned();
        match node.is_project {
            true => objects.extend(project(tree, node, names.of(number), parent)?),
            false => objects.push(cohort(names.of(number), department(tree, number, parent))?),
        }
    }
    let mut files = vec![File { name: "queues.yaml".into(), text: kubernetes::yaml(&objects)? }];
    let mut gaps = names.changed();
    gaps.extend(kubernetes::gaps(policy, job.map(|spec| (spec, site))));
    gaps.extend(gaps_of_policy(policy, tree, site));
    if let Some(spec) = job {
        let objects = kubernetes::job(policy, spec, site, manner(spec))?;
        files.push(File { name: "job.yaml".into(), text: kubernetes::yaml(&objects)? });
        gaps.extend(gaps_of_job(spec));
    }
    Ok(Export { files, gaps })
}

fn priority_class(class: Class) -> Result<Value, ExportError> {
    let rest = PriorityClass {
        value: class.priority(),
        description: match class {
            Class::Train => "trains, may be stopped and goes on later",
            Class::BuildPreemptible => "somebody works with it, and can go without it for a while",
            Class::Build => "somebody works with it",
            Class::Inference => "answers requests",
        },
    };
    let metadata = Metadata { name: kai::class(class).into(), ..Metadata::default() };
    kubernetes::value(&Object { api_version: API, kind: "WorkloadPriorityClass", metadata, rest })
}

fn cohort(name: &str, spec: CohortSpec) -> Result<Value, ExportError> {
    object(API, "Cohort", Metadata { name: name.to_owned(), ..Metadata::default() }, spec)
}

/// What no quota gives away belongs to all.
fn root(tree: &Tree, site: &Site) -> CohortSpec {
    let resource_groups = match &site.capacity {
        None => Vec::new(),
        Some(capacity) => {
            let rest = |resource: Resource| {
                let given = sum_of_quotas(tree, &tree.tops, resource);
                capacity[resource].saturating_sub(given.unwrap_or(u64::MAX))
            };
            groups(&tree.divided, |resource| (Some(rest(resource)), None, None))
        }
    };
    CohortSpec { parent_name: None, fair_sharing: None, resource_groups }
}

/// A department's own is what it is guaranteed beyond what its projects are.
fn department(tree: &Tree, number: usize, parent: String) -> CohortSpec {
    let node = &tree.nodes[number];
    let resource_groups = groups(&tree.divided, |resource| {
        let Some(quota) = node.quota.of(resource) else { return (None, None, Some(0)) };
        let given = sum_of_quotas(tree, &tree.children[number], resource).unwrap_or(quota);
        let borrow = node.limit.of(resource).map(|limit| limit - quota);
        (Some(quota.saturating_sub(given)), borrow, None)
    });
    CohortSpec { parent_name: Some(parent), fair_sharing: Some(weight(node)), resource_groups }
}

/// A project's queue, its namespace, and the queue in it that jobs name.
fn project(tree: &Tree, node: &Node, name: &str, cohort_name: String) -> Result<[Value; 3], ExportError> {
    let resource_groups = groups(&RESOURCES, |resource| {
        let quota = node.quota.of(resource);
        let borrow = quota.and_then(|quota| Some(node.limit.of(resource)? - quota));
        // What it can never have back, it does not lend: others would borrow what is not there.
        let lend = (quota.is_none() && tree.divided.contains(&resource)).then_some(0);
        (quota, borrow, lend)
    });
    let selector = Map::from([("kubernetes.io/metadata.name".into(), name.to_owned())]);
    let spec = ClusterQueueSpec {
        cohort_name,
        namespace_selector: Selector { match_labels: selector },
        queueing_strategy: "BestEffortFIFO",
        preemption: Preemption { reclaim_within_cohort: "Any", within_cluster_queue: "LowerPriority" },
        fair_sharing: weight(node),
        resource_groups,
    };
    let metadata = || Metadata { name: name.to_owned(), ..Metadata::default() };
    let local = Metadata { namespace: Some(name.to_owned()), ..metadata() };
    Ok([
        object(API, "ClusterQueue", metadata(), spec)?,
        kubernetes::namespace(name)?,
        object(API, "LocalQueue", local, LocalQueueSpec { cluster_queue: name.to_owned() })?,
    ])
}

/// Kueue refuses weights between 0 and a billionth.
fn weight(node: &Node) -> FairSharing {
    let weight = if node.weight > 0.0 { node.weight.max(1e-6) } else { 0.0 };
    FairSharing { weight: weight.to_string() }
}

/// What a list of siblings is guaranteed together; `None` if one of them is guaranteed everything.
fn sum_of_quotas(tree: &Tree, nodes: &[usize], resource: Resource) -> Option<u64> {
    nodes.iter().map(|&node| tree.nodes[node].quota.of(resource)).sum()
}

/// One group of all `resources`: quota (`None`: plenty), what may be borrowed, and what is lent.
fn groups(
    resources: &[Resource],
    bounds: impl Fn(Resource) -> (Option<u64>, Option<u64>, Option<u64>),
) -> Vec<ResourceGroup> {
    let quota = |&resource: &Resource| {
        let (quota, borrow, lend) = bounds(resource);
        let plenty = PLENTY.iter().find(|(of, _)| *of == resource).map(|(_, plenty)| (*plenty).to_owned());
        Quota {
            name: name(resource),
            nominal_quota: quota.map_or(plenty.unwrap_or_default(), |amount| quantity(resource, amount)),
            borrowing_limit: borrow.map(|amount| quantity(resource, amount)),
            lending_limit: lend.map(|amount| quantity(resource, amount)),
        }
    };
    if resources.is_empty() {
        return Vec::new();
    }
    vec![ResourceGroup {
        covered_resources: resources.iter().map(|&resource| name(resource)).collect(),
        flavors: vec![Flavor { name: FLAVOR, resources: resources.iter().map(quota).collect() }],
    }]
}

fn name(resource: Resource) -> &'static str {
    match resource {
        Resource::Devices => GPU,
        Resource::Cpus => "cpu",
        Resource::Memory => "memory",
    }
}

/// Whole devices, cores, bytes.
fn quantity(resource: Resource, amount: u64) -> String {
    match resource {
        Resource::Devices => amount / WHOLE,
        Resource::Cpus | Resource::Memory => amount,
    }
    .to_string()
}

fn manner(spec: &Spec) -> Manner {
    let labels = Map::from([
        ("kueue.x-k8s.io/queue-name".into(), label(&spec.project)),
        ("kueue.x-k8s.io/priority-class".into(), kai::class(spec.class).into()),
    ]);
    let devices = kubernetes::whole_devices(spec);
    Manner { suspend: Some(true), labels, devices, ..Manner::default() }
}

fn gaps_of_policy(policy: &Policy, tree: &Tree, site: &Site) -> Vec<String> {
    let mut gaps = vec![
        "nobody is moved so that a bigger job fits".to_owned(),
        "shares by weight need `fairSharing` in the configuration of Kueue itself".into(),
        "Kueue knows no work that is never stopped: build and inference jobs are safe only while their \
         project is within its quota"
            .into(),
        "all members of a job are admitted together, but placed together only with `waitForPodsReady` in \
         Kueue's configuration"
            .into(),
    ];
    let nodes = || tree.nodes.iter();
    if site.capacity.is_none() && !tree.divided.is_empty() {
        gaps.push(format!(
            "what no quota gives away cannot be borrowed until it is the quota of cohort `{ROOT}`: say what \
             the cluster has"
        ));
    }
    if nodes().any(|node| node.priority != 0) {
        gaps.push(
            "a project's priority over its siblings is not told: the surplus is divided by weight alone"
                .into(),
        );
    }
    if nodes().any(|node| node.preempt_min_runtime > 0 || node.reclaim_min_runtime > 0) {
        gaps.push(
            "no job is safe for its first minutes: preempt_min_runtime and reclaim_min_runtime are not told"
                .into(),
        );
    }
    if policy.usage.weight > 0.0 {
        gaps.push("past use does not count between projects".into());
    }
    let everything = |node: &&Node| tree.divided.iter().any(|&resource| node.quota.of(resource).is_none());
    for node in nodes().filter(everything) {
        gaps.push(format!(
            "`{}` is guaranteed everything: Kueue admits its jobs even where no machine is free, and they \
             wait as pods",
            node.name
        ));
    }
    let broken = |bounds: &crate::Bounds| bounds.devices.is_some_and(|amount| !amount.is_multiple_of(WHOLE));
    for node in nodes().filter(|node| broken(&node.quota) || broken(&node.limit)) {
        gaps.push(format!(
            "`{}` has parts of devices in its quota or limit: they are rounded down",
            node.name
        ));
    }
    gaps
}

fn gaps_of_job(spec: &Spec) -> Vec<String> {
    let part = spec.devices.min > 0 && spec.devices.min < WHOLE;
    let gap = || "the job gets a whole device: Kueue counts no parts".to_owned();
    part.then(gap).into_iter().collect()
}
