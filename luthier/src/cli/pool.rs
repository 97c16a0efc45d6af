//! `pool`: who may run what on the machines that there are.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::pool_export::PoolExport;
use crate::run_file::ByteSize;

#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// Run the jobs of many projects on this machine, as a policy says
    Serve(PoolServe),
    /// Change the policy of a pool that runs
    Apply(PoolApply),
    /// Tell what each project may have, has and waits for
    Status(PoolStatus),
    /// Write a policy, and a job, for Slurm, KAI-Scheduler, Kueue or SkyPilot
    Export(Box<PoolExport>),
    /// Tell what a policy would have made of a trace of jobs, in simulated time
    Simulate(PoolSimulate),
    /// Add users, list them, take their tokens back
    #[command(subcommand)]
    Users(PoolUsers),
    /// Runs one process of a job, and writes down how it ended
    #[command(hide = true)]
    Attempt(PoolAttempt),
}

/// Which pool is meant.
#[derive(Args, Clone, Debug)]
pub(crate) struct WhichPool {
    /// The pool: the folder that `pool serve --state` has, or its address; or `slurm`, the cluster of this
    /// machine
    #[arg(long, value_name = "DIR|URL", env = "LUTHIER_POOL", default_value = "luthier-pool")]
    pub(crate) pool: String,
    /// A user's token [default: of a folder on this machine, that of who started the pool]
    #[arg(long, value_name = "TOKEN", env = "LUTHIER_POOL_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct PoolServe {
    /// The policy; without one, that which the pool had before
    #[arg(long, value_name = "POLICY.yaml")]
    pub(crate) policy: Option<PathBuf>,
    /// The folder for what is to outlive the pool: its state, the log of who did what, the jobs' messages
    #[arg(long, value_name = "DIR", default_value = "luthier-pool")]
    pub(crate) state: PathBuf,
    /// The address to listen at
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// The port to listen at; 0: any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    pub(crate) port: u16,
    /// Cores that jobs may have [default: all of this machine]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=65536),
        allow_negative_numbers = true
    )]
    pub(crate) cpus: Option<u32>,
    /// Memory that jobs may have [default: what is free when the pool starts]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub(crate) memory: Option<ByteSize>,
    /// Devices that jobs may have, numbered from 0
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(..=1024),
        allow_negative_numbers = true
    )]
    pub(crate) devices: u32,
    /// Memory of each device
    #[arg(
        long,
        value_name = "BYTES",
        requires = "devices",
        default_value = "0B",
        allow_negative_numbers = true
    )]
    pub(crate) device_memory: ByteSize,
    /// Whether members may run other programs than this one, under the account that the pool has
    #[arg(long)]
    pub(crate) any_command: bool,
}

#[derive(Args, Debug)]
pub(crate) struct PoolApply {
    /// The policy that is to hold
    #[arg(value_name = "POLICY.yaml")]
    pub(crate) policy: PathBuf,
    #[command(flatten)]
    pub(crate) which: WhichPool,
}

#[derive(Args, Debug)]
pub(crate) struct PoolStatus {
    #[command(flatten)]
    pub(crate) which: WhichPool,
}

/// How a trace is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TraceFormat {
    /// As the file begins
    Auto,
    /// Microsoft's Philly: cluster_job_log
    Philly,
    /// SenseTime's Helios: cluster_log.csv
    Helios,
    /// Alibaba's PAI of 2020: pai_task_table.csv, beside it pai_job_table.csv
    Pai,
}

#[derive(Args, Debug)]
pub(crate) struct PoolSimulate {
    /// The jobs: a published trace
    #[arg(long, value_name = "FILE", required_unless_present = "generate", conflicts_with = "generate")]
    pub(crate) trace: Option<PathBuf>,
    /// So many jobs from random numbers instead, a few big ones among many small ones
    #[arg(
        long,
        value_name = "JOBS",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        allow_negative_numbers = true
    )]
    pub(crate) generate: Option<u32>,
    /// How the trace is written
    #[arg(long, value_enum, default_value_t = TraceFormat::Auto, conflicts_with = "generate")]
    pub(crate) format: TraceFormat,
    /// Skip lines that cannot be read, a thousand at most, instead of refusing the trace
    #[arg(long, conflicts_with = "generate")]
    pub(crate) skip_bad_lines: bool,
    /// Only as many jobs as were submitted first
    #[arg(
        long,
        value_name = "JOBS",
        value_parser = clap::value_parser!(u32).range(1..),
        allow_negative_numbers = true
    )]
    pub(crate) limit: Option<u32>,
    /// The seed of random numbers
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "trace")]
    pub(crate) seed: u64,
    /// The part of all devices that generated jobs ask for on average
    #[arg(
        long,
        value_name = "PART",
        default_value_t = 1.0,
        value_parser = load,
        conflicts_with = "trace",
        allow_negative_numbers = true
    )]
    pub(crate) load: f64,
    /// Projects that generated jobs belong to
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        conflicts_with = "trace",
        allow_negative_numbers = true
    )]
    pub(crate) projects: u32,
    /// The policy; without one, every project of the trace has the same quota
    #[arg(long, value_name = "POLICY.yaml")]
    pub(crate) policy: Option<PathBuf>,
    /// Machines
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=65_536),
        allow_negative_numbers = true
    )]
    pub(crate) nodes: u32,
    /// Devices of each machine
    #[arg(
        long,
        value_name = "D",
        value_parser = clap::value_parser!(u32).range(1..=64),
        allow_negative_numbers = true
    )]
    pub(crate) devices_per_node: u32,
    /// Seconds from a job's start until it computes
    #[arg(long, value_name = "SECONDS", default_value_t = 30, allow_negative_numbers = true)]
    pub(crate) start_seconds: u32,
    /// Seconds from when a job is told to stop until it has saved
    #[arg(long, value_name = "SECONDS", default_value_t = 30, allow_negative_numbers = true)]
    pub(crate) save_seconds: u32,
    /// Beside it: first come first served, that with backfilling, and a fair share like Slurm's
    #[arg(long)]
    pub(crate) compare: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn load(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(load) if (0.01..=100.0).contains(&load) => Ok(load),
        _ => Err("must be a number from 0.01 to 100".into()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolUsers {
    /// Make a token for a user, and print it once; one that is there gets another
    Add(PoolUser),
    /// List the users
    List(PoolStatus),
    /// Take a user's token back
    Remove(PoolUser),
}

#[derive(Args, Debug)]
pub(crate) struct PoolUser {
    /// The user, as the policy names members, owners and admins
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) which: WhichPool,
}

#[derive(Args, Debug)]
pub(crate) struct PoolAttempt {
    /// The folder of the process
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
}
