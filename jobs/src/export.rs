//! A policy and a job as files for the engines that a lab already has, and what those engines cannot say of
//! them.
//!
//! Nothing here asks an engine: it is text made of a checked [`Policy`] and a [`Spec`]. What an engine lacks
//! is told as a list of sentences, so that nobody believes that a rule holds which does not.

mod kai;
mod kubernetes;
mod kueue;
mod names;
mod skypilot;
mod slurm;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::amounts::{Amounts, WHOLE};
use crate::job::{Launch, Range, Spec};
use crate::policy::{Policy, PolicyError, Tree};

pub(crate) use names::{Names, label};

/// Whose files they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Slurm: accounts and qualities of service, and a batch script.
    Slurm,
    /// KAI-Scheduler on Kubernetes: queues, and a job.
    Kai,
    /// Kueue on Kubernetes: cluster queues in cohorts, and a job.
    Kueue,
    /// SkyPilot: a task file.
    Skypilot,
}

/// What neither a policy nor a job says, but an engine has to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// The container image of Kubernetes jobs; the job's program is on its `PATH`.
    pub image: String,
    /// The volume claim that holds the job's files on Kubernetes.
    pub claim: String,
    /// What SkyPilot calls the accelerators, such as `H100`.
    pub accelerator: Option<String>,
    /// The bucket that holds the job's files for SkyPilot, such as `s3://ours/run`; `None`: a new one of the
    /// job's name.
    pub bucket: Option<String>,
    /// All that the cluster has; what no quota gives away becomes Kueue's shared pool.
    pub capacity: Option<Amounts>,
}

impl Default for Site {
    fn default() -> Self {
        Site {
            image: "luthier:latest".into(),
            claim: "luthier-runs".into(),
            accelerator: None,
            bucket: None,
            capacity: None,
        }
    }
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Its name in the folder of the export.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// What an engine gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Export {
    /// The files, in the order in which they are to be given to it.
    pub files: Vec<File>,
    /// What the engine cannot say of the policy or the job, and what somebody has to see to.
    pub gaps: Vec<String>,
}

/// Why there is no export.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ExportError {
    /// The policy is wrong.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Two projects would be one.
    #[error("projects `{first}` and `{second}` would both be called `{name}` there; rename one")]
    SameName {
        /// The earlier one.
        first: String,
        /// The later one.
        second: String,
        /// The common name.
        name: String,
    },
    /// The job cannot be written down for this engine.
    #[error("{field}: {message}")]
    Job {
        /// Which part of it.
        field: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// SkyPilot has no policy, so without a job there is nothing to write.
    #[error("SkyPilot knows tasks, but no quotas: there is nothing to write without a job")]
    NoJob,
    /// A mistake of ours.
    #[error("cannot write YAML: {0}")]
    Yaml(String),
}

/// The files by which an engine follows a policy and runs a job.
///
/// # Errors
/// If the policy is wrong, or the job's project is not in it, or the engine cannot run the job at all.
pub fn export(
    engine: Engine,
    policy: &Policy,
    job: Option<&Spec>,
    site: &Site,
) -> Result<Export, ExportError> {
    let tree = policy.tree()?;
    if let Some(spec) = job {
        check(&tree, spec)?;
    }
    match engine {
        Engine::Slurm => slurm::export(policy, &tree, job),
        Engine::Kai => kai::export(policy, &tree, job, site),
        Engine::Kueue => kueue::export(policy, &tree, job, site),
        Engine::Skypilot => skypilot::export(policy, job.ok_or(ExportError::NoJob)?, site),
    }
}

fn check(tree: &Tree, spec: &Spec) -> Result<(), ExportError> {
    let wrong = |field, message: String| Err(ExportError::Job { field, message });
    if tree.project(&spec.project).is_none() {
        return wrong("project", format!("there is no project `{}` in the policy", spec.project));
    }
    check_launch(spec)
}

/// What holds of a job on every engine.
pub(crate) fn check_launch(spec: &Spec) -> Result<(), ExportError> {
    let wrong = |field, message: &str| Err(ExportError::Job { field, message: message.to_owned() });
    if spec.members == 0 || spec.cpus.min == 0 {
        return wrong(if spec.members == 0 { "members" } else { "cpus" }, "must be at least 1");
    }
    if spec.devices.min > WHOLE && !spec.devices.min.is_multiple_of(WHOLE) {
        return wrong("devices", "a part of a device has to be below one; above it, only whole ones");
    }
    if spec.launch.arguments.is_empty() {
        return wrong("launch.arguments", "there is no program to start");
    }
    if !spec.launch.folder.is_absolute() || spec.launch.folder.to_str().is_none() {
        return wrong("launch.folder", "must be an absolute path in UTF-8");
    }
    let texts = spec.launch.arguments.iter().map(String::as_str).chain(spec.launch.folder.to_str());
    if texts.into_iter().any(|text| text.contains(['\0', '\n', '\r'])) {
        return wrong("launch", "a line break or a zero cannot stand in an argument or a path");
    }
    Ok(())
}

/// The name of the program without the folder that it has on this machine.
fn arguments_in_image(launch: &Launch, given: &Amounts) -> Vec<String> {
    let mut arguments = launch.filled(given);
    if let Some(first) = arguments.first_mut()
        && let Some(name) = Path::new(first.as_str()).file_name().and_then(|name| name.to_str())
    {
        *first = name.to_owned();
    }
    arguments
}

/// The folder that a volume is mounted as: where the job starts, where its results are and what its command
/// names all lie in it.
fn mounted(spec: &Spec) -> Result<PathBuf, ExportError> {
    let named = spec.launch.arguments.iter().skip(1).map(Path::new).filter(|path| path.is_absolute());
    let above = |path: &Path| path.parent().unwrap_or(path).to_owned();
    let folders = named.map(above).chain(spec.launch.output.as_deref().map(above));
    let common = |some: PathBuf, other: PathBuf| -> PathBuf {
        some.components().zip(other.components()).take_while(|(a, b)| a == b).map(|(part, _)| part).collect()
    };
    let folder = folders.fold(spec.launch.folder.clone(), common);
    match folder.parent() {
        Some(_) => Ok(folder),
        None => Err(ExportError::Job {
            field: "launch.folder",
            message: format!(
                "{}, where the job starts, and what its command and its results name have no folder in \
                 common that could be a volume; put them into one",
                spec.launch.folder.display()
            ),
        }),
    }
}

/// What no engine but our own pool does with a job.
fn gaps_of_job(spec: &Spec) -> Vec<String> {
    let mut gaps = Vec::new();
    let grows = |range: Range| range.min < range.max;
    if grows(spec.devices) || grows(spec.cpus) {
        gaps.push(format!(
            "the job gets the least that it asks for ({}) and keeps it: it does not grow or shrink there",
            spec.member(0)
        ));
    }
    gaps
}

/// Thousandths of a device as a number: `500` is `0.5`.
fn thousandths(amount: u64) -> String {
    (amount as f64 / WHOLE as f64).to_string()
}

/// Seconds, rounded up.
fn seconds(time: crate::Millis) -> u64 {
    time.div_ceil(1000)
}
