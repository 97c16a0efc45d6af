//! Objects of Kubernetes itself: a job that is stopped and goes on, and what its members need to find each
//! other.
//!
//! Fields and their meaning: `batch/v1` Job and `v1` Pod of Kubernetes 1.31, where `podFailurePolicy` is
//! stable.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{ExportError, Site, arguments_in_image, label, mounted, seconds};
use crate::amounts::WHOLE;
use crate::job::Spec;
use crate::policy::Policy;

/// Where the members of a gang meet; torchrun's default.
const PORT: u16 = 29500;
/// The resource of NVIDIA's device plugin.
pub(super) const GPU: &str = "nvidia.com/gpu";

pub(super) type Map = BTreeMap<String, String>;

/// Any object.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Object<S: Serialize> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) metadata: Metadata,
    #[serde(flatten)]
    pub(super) rest: S,
}

/// The part that most kinds have.
#[derive(Serialize)]
pub(super) struct HasSpec<S: Serialize> {
    pub(super) spec: S,
}

#[derive(Serialize, Default)]
pub(super) struct Metadata {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(super) labels: Map,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(super) annotations: Map,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JobSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    suspend: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_mode: Option<&'static str>,
    completions: u32,
    parallelism: u32,
    backoff_limit: u32,
    /// A new pod starts once the old one has ended: two must not write to one folder.
    pod_replacement_policy: &'static str,
    pod_failure_policy: PodFailurePolicy,
    template: Template,
}

#[derive(Serialize)]
struct PodFailurePolicy {
    rules: Vec<Rule>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Rule {
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_exit_codes: Option<OnExitCodes>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    on_pod_conditions: Vec<OnPodCondition>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OnExitCodes {
    container_name: &'static str,
    operator: &'static str,
    values: Vec<i32>,
}

#[derive(Serialize)]
struct OnPodCondition {
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
}

#[derive(Serialize)]
struct Template {
    metadata: PodMetadata,
    spec: PodSpec,
}

#[derive(Serialize)]
struct PodMetadata {
    labels: Map,
    #[serde(skip_serializing_if = "Map::is_empty")]
    annotations: Map,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority_class_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subdomain: Option<String>,
    restart_policy: &'static str,
    termination_grace_period_seconds: u64,
    containers: Vec<Container>,
    volumes: Vec<Volume>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: &'static str,
    image: String,
    command: Vec<String>,
    working_dir: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<Variable>,
    resources: Resources,
    volume_mounts: Vec<VolumeMount>,
}

#[derive(Serialize)]
struct Variable {
    name: &'static str,
    value: String,
}

#[derive(Serialize)]
struct Resources {
    requests: Map,
    limits: Map,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeMount {
    name: &'static str,
    mount_path: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    name: &'static str,
    persistent_volume_claim: Claim,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    claim_name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    /// `None`: no address of its own, but a name for each pod.
    #[serde(rename = "clusterIP")]
    cluster_ip: &'static str,
    publish_not_ready_addresses: bool,
    selector: Map,
}

/// What an engine adds to a job.
#[derive(Default)]
pub(super) struct Manner {
    pub(super) scheduler: Option<&'static str>,
    pub(super) priority_class: Option<String>,
    pub(super) suspend: Option<bool>,
    /// On the job and its pods.
    pub(super) labels: Map,
    pub(super) annotations: Map,
    pub(super) pod_annotations: Map,
    /// Whole devices of each pod.
    pub(super) devices: u64,
}

/// The objects of a job: itself, and for a gang the service by which its members find each other.
pub(super) fn job(
    policy: &Policy,
    spec: &Spec,
    site: &Site,
    manner: Manner,
) -> Result<Vec<Value>, ExportError> {
    let name = job_name(spec);
    let namespace = Some(label(&spec.project));
    let gang = spec.members > 1;
    let mut objects = Vec::new();
    if gang {
        let selector = Map::from([("batch.kubernetes.io/job-name".into(), name.clone())]);
        objects.push(object(
            "v1",
            "Service",
            Metadata { name: name.clone(), namespace: namespace.clone(), ..Metadata::default() },
            ServiceSpec { cluster_ip: "None", publish_not_ready_addresses: true, selector },
        )?);
    }
    let mut metadata = Metadata { name: name.clone(), namespace, ..Metadata::default() };
    metadata.labels.clone_from(&manner.labels);
    metadata.annotations.clone_from(&manner.annotations);
    let job = JobSpec {
        suspend: manner.suspend,
        completion_mode: gang.then_some("Indexed"),
        completions: spec.members,
        parallelism: spec.members,
        backoff_limit: policy.retries,
        pod_replacement_policy: "Failed",
        pod_failure_policy: failure_policy(),
        template: template(policy, spec, site, manner, &name)?,
    };
    objects.push(object("batch/v1", "Job", metadata, job)?);
    Ok(objects)
}

/// The first rule that fits decides. A saved job (exit 75) is replaced by a new pod and not counted:
/// `Ignore`; `Count` would use up the limit of failures after a few evictions, and without a rule the code
/// would count as a failure. What a person has to mend (exit 2) ends the job: trying again would not help.
/// What the cluster took away without waiting is not the job's failure.
fn failure_policy() -> PodFailurePolicy {
    let codes = |action, values: &[i32]| Rule {
        action,
        on_exit_codes: Some(OnExitCodes {
            container_name: "luthier",
            operator: "In",
            values: values.to_vec(),
        }),
        on_pod_conditions: Vec::new(),
    };
    let disrupted = Rule {
        action: "Ignore",
        on_exit_codes: None,
        on_pod_conditions: vec![OnPodCondition { kind: "DisruptionTarget", status: "True" }],
    };
    PodFailurePolicy { rules: vec![codes("Ignore", &[75]), codes("FailJob", &[2]), disrupted] }
}

fn template(
    policy: &Policy,
    spec: &Spec,
    site: &Site,
    manner: Manner,
    name: &str,
) -> Result<Template, ExportError> {
    let given = spec.member(0);
    let folder = mounted(spec)?.display().to_string();
    let mut amounts = Map::from([("cpu".into(), given.cpus.to_string())]);
    if given.memory > 0 {
        amounts.insert("memory".into(), given.memory.to_string());
    }
    if manner.devices > 0 {
        amounts.insert(GPU.into(), manner.devices.to_string());
    }
    let gang = spec.members > 1;
    let variable = |name, value: String| Variable { name, value };
    let env = match gang {
        false => Vec::new(),
        // A member's number is JOB_COMPLETION_INDEX, which Kubernetes sets.
        true => vec![
            variable("WORLD_SIZE", spec.members.to_string()),
            variable("MASTER_ADDR", format!("{name}-0.{name}")),
            variable("MASTER_PORT", PORT.to_string()),
        ],
    };
    let container = Container {
        name: "luthier",
        image: site.image.clone(),
        command: arguments_in_image(&spec.launch, &given),
        working_dir: spec.launch.folder.display().to_string(),
        env,
        resources: Resources { requests: amounts.clone(), limits: amounts },
        volume_mounts: vec![VolumeMount { name: "runs", mount_path: folder }],
    };
    Ok(Template {
        metadata: PodMetadata { labels: manner.labels, annotations: manner.pod_annotations },
        spec: PodSpec {
            scheduler_name: manner.scheduler,
            priority_class_name: manner.priority_class,
            subdomain: gang.then(|| name.to_owned()),
            // A failure policy looks at pods that have failed, and those of other restart policies never do.
            restart_policy: "Never",
            termination_grace_period_seconds: seconds(policy.grace),
            containers: vec![container],
            volumes: vec![Volume {
                name: "runs",
                persistent_volume_claim: Claim { claim_name: site.claim.clone() },
            }],
        },
    })
}

/// A job's name. It is a service's name, too, which begins with a letter, and with a member's number behind
/// it a host's name, which has at most 63 characters.
pub(super) fn job_name(spec: &Spec) -> String {
    let name = label(&spec.name);
    let name = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("job-{name}") } else { name };
    name[..name.len().min(52)].trim_end_matches('-').to_owned()
}

/// A namespace, in which a project's jobs live.
pub(super) fn namespace(name: &str) -> Result<Value, ExportError> {
    #[derive(Serialize)]
    struct Nothing {}
    let metadata = Metadata { name: name.to_owned(), ..Metadata::default() };
    value(&Object { api_version: "v1", kind: "Namespace", metadata, rest: Nothing {} })
}

pub(super) fn object<S: Serialize>(
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: S,
) -> Result<Value, ExportError> {
    value(&Object { api_version, kind, metadata, rest: HasSpec { spec } })
}

pub(super) fn value(object: &impl Serialize) -> Result<Value, ExportError> {
    serde_json::to_value(object).map_err(|error| ExportError::Yaml(error.to_string()))
}

/// Objects as one file.
pub(super) fn yaml(objects: &[Value]) -> Result<String, ExportError> {
    serde_saphyr::to_string_multiple(objects).map_err(|error| ExportError::Yaml(error.to_string()))
}

/// What Kubernetes leaves to others, whoever schedules.
pub(super) fn gaps(policy: &Policy, job: Option<(&Spec, &Site)>) -> Vec<String> {
    let mut gaps = Vec::new();
    let people = |queue: &crate::policy::Queue| !queue.members.is_empty() || !queue.owners.is_empty();
    if policy.projects.iter().chain(&policy.departments).any(people) || !policy.admins.is_empty() {
        let roles = "who may submit to a project is decided by the cluster's roles (RBAC) in its namespace";
        gaps.push(roles.to_owned());
    }
    let Some((spec, site)) = job else { return gaps };
    gaps.extend(super::gaps_of_job(spec));
    gaps.push(format!(
        "the job's pods run image `{}` and find {} on volume claim `{}` of namespace `{}`, with all that the \
         run reads: both have to be there",
        site.image,
        mounted(spec).unwrap_or_default().display(),
        site.claim,
        label(&spec.project)
    ));
    if spec.priority != spec.class.priority() {
        gaps.push(format!(
            "the job's own priority {} is not told: it has that of its class, {}",
            spec.priority,
            spec.class.priority()
        ));
    }
    gaps
}

/// Whole devices that a pod needs, a part counting as one.
pub(super) fn whole_devices(spec: &Spec) -> u64 {
    spec.devices.min.div_ceil(WHOLE)
}
