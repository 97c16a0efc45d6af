//! `pool`: who may run what on the machines that there are.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
    /// The pool: the folder that `pool serve --state` has, or its address; or `slurm`, the cluster of this machine
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), allow_negative_numbers = true)]
    pub(crate) cpus: Option<u32>,
    /// Memory that jobs may have [default: what is free when the pool starts]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub(crate) memory: Option<ByteSize>,
    /// Devices that jobs may have, numbered from 0
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1024), allow_negative_numbers = true)]
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
