//! KAI-Scheduler: a queue for each department and project, and a job in its project's queue.
//!
//! Fields, units and defaults: the definition of `queues.scheduling.run.ai` (v2) and the pod-grouper's
//! annotations in KAI-Scheduler's repository, as of September 2026.

use serde::Serialize;

use super::kubernetes::{self, Manner, Map, Metadata, object};
use super::{Export, ExportError, File, Names, Site, label, seconds, thousandths};
use crate::amounts::{Resource, WHOLE};
use crate::job::{Class, Spec};
use crate::policy::{Node, Policy, Tree};

/// Above all others: KAI-Scheduler places no job of a queue that has no parent.
const ROOT: &str = "pool";
/// KAI-Scheduler's word for "as much as there is"; a bound that is left out is 0 there.
const UNLIMITED: f64 = -1.0;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_queue: Option<String>,
    priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    preempt_min_runtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reclaim_min_runtime: Option<String>,
    resources: QueueResources,
}

#[derive(Serialize)]
struct QueueResources {
    gpu: QueueResource,
    cpu: QueueResource,
    memory: QueueResource,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueResource {
    quota: f64,
    limit: f64,
    over_quota_weight: f64,
}

pub(super) fn export(
    policy: &Policy,
    tree: &Tree,
    job: Option<&Spec>,
    site: &Site,
) -> Result<Export, ExportError> {
    let names = Names::new(tree, &[ROOT, "default-queue", "default-parent-queue"])?;
    let mut objects = vec![queue(ROOT, root())?];
    for (number, node) in tree.nodes.iter().enumerate() {
        let parent = node.parent.map_or(ROOT, |above| names.of(above));
        objects.push(queue(names.of(number), spec_of(node, parent))?);
    }
    for (number, _) in tree.nodes.iter().enumerate().filter(|(_, node)| node.is_project) {
        objects.push(kubernetes::namespace(names.of(number))?);
    }
    let mut files = vec![File { name: "queues.yaml".into(), text: kubernetes::yaml(&objects)? }];
    let mut gaps = names.changed();
    gaps.extend(kubernetes::gaps(policy, job.map(|spec| (spec, site))));
    gaps.extend(gaps_of_policy(policy));
    if let Some(spec) = job {
        let objects = kubernetes::job(policy, spec, site, manner(spec))?;
        files.push(File { name: "job.yaml".into(), text: kubernetes::yaml(&objects)? });
        gaps.extend(gaps_of_job(spec));
    }
    Ok(Export { files, gaps })
}

fn queue(name: &str, spec: QueueSpec) -> Result<serde_json::Value, ExportError> {
    let metadata = Metadata { name: name.to_owned(), ..Metadata::default() };
    object("scheduling.run.ai/v2", "Queue", metadata, spec)
}

fn root() -> QueueSpec {
    let all = || QueueResource { quota: UNLIMITED, limit: UNLIMITED, over_quota_weight: 1.0 };
    QueueSpec {
        display_name: None,
        parent_queue: None,
        priority: 0,
        preempt_min_runtime: None,
        reclaim_min_runtime: None,
        resources: QueueResources { gpu: all(), cpu: all(), memory: all() },
    }
}

fn spec_of(node: &Node, parent: &str) -> QueueSpec {
    let resource = |resource: Resource| {
        let said = |bound: Option<u64>| bound.map_or(UNLIMITED, |amount| in_units(resource, amount));
        QueueResource {
            quota: said(node.quota.of(resource)),
            limit: said(node.limit.of(resource)),
            over_quota_weight: node.weight,
        }
    };
    let runtime = |time: crate::Millis| format!("{}s", seconds(time));
    QueueSpec {
        display_name: Some(node.name.clone()),
        parent_queue: Some(parent.to_owned()),
        priority: node.priority,
        preempt_min_runtime: Some(runtime(node.preempt_min_runtime)),
        reclaim_min_runtime: Some(runtime(node.reclaim_min_runtime)),
        resources: QueueResources {
            gpu: resource(Resource::Devices),
            cpu: resource(Resource::Cpus),
            memory: resource(Resource::Memory),
        },
    }
}

/// Devices, thousandths of a core, and millions of bytes.
fn in_units(resource: Resource, amount: u64) -> f64 {
    match resource {
        Resource::Devices => amount as f64 / WHOLE as f64,
        Resource::Cpus => amount as f64 * 1000.0,
        Resource::Memory => amount as f64 / 1e6,
    }
}

fn manner(spec: &Spec) -> Manner {
    let labels = Map::from([("kai.scheduler/queue".into(), label(&spec.project))]);
    let mut manner = Manner {
        scheduler: Some("kai-scheduler"),
        priority_class: Some(class(spec.class).into()),
        labels,
        ..Manner::default()
    };
    if spec.members > 1 {
        // Without it the pods of a plain job are placed one by one.
        let members = spec.members.to_string();
        manner.annotations.insert("kai.scheduler/batch-min-member".into(), members);
    }
    match spec.devices.min {
        0 => {}
        part if part < WHOLE => {
            manner.pod_annotations.insert("gpu-fraction".into(), thousandths(part));
        }
        _ => manner.devices = kubernetes::whole_devices(spec),
    }
    manner
}

/// The priority classes that KAI-Scheduler installs.
pub(super) fn class(class: Class) -> &'static str {
    match class {
        Class::Train => "train",
        Class::BuildPreemptible => "build-preemptible",
        Class::Build => "build",
        Class::Inference => "inference",
    }
}

fn gaps_of_policy(policy: &Policy) -> Vec<String> {
    let mut gaps = Vec::new();
    if policy.usage.weight > 0.0 {
        gaps.push(format!(
            "past use counts only where KAI-Scheduler's time-aware fairness is switched on (SchedulingShard: \
             kValue {}, half-life {} min)",
            policy.usage.weight,
            policy.usage.half_life / 60_000
        ));
    }
    let deep = policy.departments.iter().any(|queue| queue.department.is_some());
    if deep || !policy.departments.is_empty() {
        gaps.push(
            "a project's reclaim_min_runtime holds against its siblings; against others its department's \
             does (KAI-Scheduler's `lca`; `queue` is our rule)"
                .into(),
        );
    }
    gaps
}

fn gaps_of_job(spec: &Spec) -> Vec<String> {
    let mut gaps = Vec::new();
    if spec.members > 1 {
        gaps.push(
            "starting all members together needs a KAI-Scheduler that knows the annotation \
             kai.scheduler/batch-min-member (2026)"
                .into(),
        );
    }
    if spec.devices.min > 0 && spec.devices.min < WHOLE {
        gaps.push(
            "a part of a device needs `global.gpuSharing=true` in KAI-Scheduler, which keeps no process \
             within its part"
                .into(),
        );
    }
    gaps
}
