//! `pool export`: a policy and a job for the engine that a lab has already.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jobs::export::Engine;

use super::jobs::{JobClass, parse_devices, parse_span};
use crate::run_file::ByteSize;

#[derive(Args, Debug)]
pub(crate) struct PoolExport {
    /// Whose files to write
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub(crate) to: ExportTo,
    /// The policy
    #[arg(long, value_name = "POLICY.yaml")]
    pub(crate) policy: PathBuf,
    /// A job to write, too: a run file, or a job as `jobs show --json` prints it
    #[arg(long, value_name = "RUN.yaml|JOB.json")]
    pub(crate) job: Option<PathBuf>,
    /// The folder for the files
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// The project of a run file's job
    #[arg(long, value_name = "NAME", env = "LUTHIER_PROJECT")]
    pub(crate) project: Option<String>,
    /// What kind of work a run file's job is
    #[arg(long, value_enum, default_value_t = JobClass::Train)]
    pub(crate) class: JobClass,
    /// Cores of a run file's job
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_span)]
    pub(crate) cpus: (u64, u64),
    /// Devices of a run file's job, or a part of one, such as 0.5
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_devices)]
    pub(crate) devices: (u64, u64),
    /// Memory of a run file's job [default: the run file's `memory`]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub(crate) memory: Option<ByteSize>,
    /// The container image of Kubernetes jobs
    #[arg(long, value_name = "IMAGE", default_value = "luthier:latest")]
    pub(crate) image: String,
    /// The volume claim with the job's files on Kubernetes
    #[arg(long, value_name = "NAME", default_value = "luthier-runs")]
    pub(crate) claim: String,
    /// What SkyPilot calls the devices, such as H100
    #[arg(long, value_name = "NAME")]
    pub(crate) accelerator: Option<String>,
    /// The bucket with the job's files for SkyPilot [default: a new one of the job's name]
    #[arg(long, value_name = "URL")]
    pub(crate) bucket: Option<String>,
    /// Devices, cores and memory of the whole cluster, such as 16,128,512GiB: Kueue lends what no quota gives
    /// away
    #[arg(long, value_name = "DEVICES,CPUS,MEMORY", value_parser = parse_capacity)]
    pub(crate) capacity: Option<(u64, u64, u64)>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// The argument of `--to`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ExportTo {
    /// Accounts and qualities of service, and a batch script
    Slurm,
    /// Queues of KAI-Scheduler, and a Kubernetes job
    Kai,
    /// Queues of Kueue, and a Kubernetes job
    Kueue,
    /// A task file
    Skypilot,
}

impl From<ExportTo> for Engine {
    fn from(to: ExportTo) -> Engine {
        match to {
            ExportTo::Slurm => Engine::Slurm,
            ExportTo::Kai => Engine::Kai,
            ExportTo::Kueue => Engine::Kueue,
            ExportTo::Skypilot => Engine::Skypilot,
        }
    }
}

fn parse_capacity(text: &str) -> Result<(u64, u64, u64), String> {
    let wrong = || "expected devices, cores and memory, such as 16,128,512GiB".to_owned();
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let [devices, cpus, memory] = parts[..] else { return Err(wrong()) };
    let count = |n: &str| n.parse::<u64>().ok().filter(|n| *n <= 1 << 30);
    match (count(devices), count(cpus), memory.parse::<ByteSize>()) {
        (Some(devices), Some(cpus), Ok(memory)) if memory.0 <= jobs::policy::MAX_AMOUNT => {
            Ok((devices, cpus, memory.0))
        }
        _ => Err(wrong()),
    }
}
