//! `jobs`: what is submitted to a pool.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use jobs::Class;

use super::pool::WhichPool;
use super::{RunArgs, Sweep};
use crate::error::user;
use crate::run_file::Span;

#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
    /// Submit a run, a sweep as many jobs, or another command
    Submit(Box<SubmitJob>),
    /// List jobs
    List(ListJobs),
    /// Tell all about a job
    Show(OneJob),
    /// Tell why a job is where it is, and what would change that
    Why(OneJob),
    /// Print what a job's processes said
    Logs(JobLogs),
    /// End a job; what it has saved stays
    Cancel(OneJob),
    /// Keep a job from running; one that runs saves first
    Hold(OneJob),
    /// Let a job that is held run
    Release(OneJob),
    /// Put a job before or behind others of its project
    Prioritize(PrioritizeJob),
}

#[derive(Args, Debug)]
pub(crate) struct SubmitJob {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// The run folder (`output`)
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<String>,
    /// A sweep file in place of a run file: each of its runs becomes a job
    #[arg(long, value_name = "SWEEP.yaml", conflicts_with_all = ["run", "command"])]
    pub(crate) sweep: Option<PathBuf>,
    /// The project that it belongs to
    #[arg(long, value_name = "NAME", env = "LUTHIER_PROJECT")]
    pub(crate) project: String,
    /// What to call it [default: the run folder's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// What kind of work it is; says its priority, and whether it may be stopped for others
    #[arg(long, value_enum, default_value_t = JobClass::Train)]
    pub(crate) class: JobClass,
    /// Priority beside other jobs of the project [default: the class's]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
    /// Cores, or as few and as many as it can use, such as 1-8
    #[arg(long, value_name = "N|MIN-MAX", default_value = "1", value_parser = parse_span)]
    pub(crate) cpus: (u64, u64),
    /// Devices, a part of one, such as 0.5, or as few and as many as it can use
    #[arg(long, value_name = "N|MIN-MAX", default_value = "0", value_parser = parse_devices)]
    pub(crate) devices: (u64, u64),
    /// How many processes start together, or none of them; of another command than a run
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=4096),
        requires = "command"
    )]
    pub(crate) members: u32,
    /// How long it takes, such as 20m, if it is known better than this program would measure it
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) takes: Option<u64>,
    /// Wait until it has ended; its exit code is this command's
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) which: WhichPool,
    /// Another command in place of a run, where the pool allows it; {cpus}, {memory} and {devices} stand for
    /// what it gets
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "run")]
    pub(crate) command: Vec<String>,
}

impl SubmitJob {
    /// The runs of the sweep file that was named.
    pub(crate) fn sweep_args(&self) -> Option<Sweep> {
        let output = self.output.clone();
        self.sweep.clone().map(|file| Sweep::of_file(file, output, &self.run))
    }

    /// Refuses what says nothing.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.command.is_empty()
            && self.sweep.is_none()
            && self.run.run.is_none()
            && self.run.model.is_none()
        {
            return Err(user(
                "nothing to submit: name a run file, --sweep SWEEP.yaml, or a command after `--`",
            ));
        }
        Ok(())
    }
}

/// The argument of `--class`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum JobClass {
    /// Trains; may be stopped, goes on later, may borrow (priority 50)
    Train,
    /// Interactive work that may be stopped (75)
    BuildPreemptible,
    /// Interactive work that is never stopped, within the quota (100)
    Build,
    /// Answers requests, is never stopped, within the quota (125)
    Inference,
}

impl JobClass {
    /// What it is in a job.
    pub(crate) fn class(self) -> Class {
        match self {
            JobClass::Train => Class::Train,
            JobClass::BuildPreemptible => Class::BuildPreemptible,
            JobClass::Build => Class::Build,
            JobClass::Inference => Class::Inference,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct ListJobs {
    /// Of this project alone
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// Of this user alone
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Those that were submitted together under this name alone
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<String>,
    /// Those that have ended, too
    #[arg(long)]
    pub(crate) all: bool,
    /// At most so many, the newest first
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) which: WhichPool,
}

#[derive(Args, Debug)]
pub(crate) struct OneJob {
    /// The job's number
    #[arg(value_name = "JOB")]
    pub(crate) job: u64,
    #[command(flatten)]
    pub(crate) which: WhichPool,
}

#[derive(Args, Debug)]
pub(crate) struct JobLogs {
    /// The job's number
    #[arg(value_name = "JOB")]
    pub(crate) job: u64,
    /// Go on until the job has ended
    #[arg(long, short)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) which: WhichPool,
}

#[derive(Args, Debug)]
pub(crate) struct PrioritizeJob {
    /// The job's number
    #[arg(value_name = "JOB")]
    pub(crate) job: u64,
    /// Its priority from now on
    #[arg(value_name = "PRIORITY", allow_negative_numbers = true)]
    pub(crate) priority: i32,
    #[command(flatten)]
    pub(crate) which: WhichPool,
}

/// Reads `N` or `MIN-MAX`, each by `one`.
fn parse_range(text: &str, one: impl Fn(&str) -> Option<u64>) -> Option<(u64, u64)> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    let (min, max) = (one(min.trim())?, one(max.trim())?);
    (min <= max).then_some((min, max))
}

pub(super) fn parse_span(text: &str) -> Result<(u64, u64), String> {
    let range = parse_range(text, |n| n.parse().ok().filter(|n| (1..=65536).contains(n)));
    range.ok_or("expected a number of cores, such as 4, or a range, such as 1-8".into())
}

pub(super) fn parse_devices(text: &str) -> Result<(u64, u64), String> {
    let range = parse_range(text, |n| {
        let devices: f64 = n.parse().ok().filter(|d| (0.0..=65536.0).contains(d))?;
        let thousandths = (devices * 1000.0).round();
        ((thousandths / 1000.0 - devices).abs() < 1e-9).then_some(thousandths as u64)
    });
    range.ok_or("expected a number of devices, such as 1 or 0.5, or a range, such as 1-8".into())
}

fn parse_time(text: &str) -> Result<u64, String> {
    text.parse::<Span>().map(|span| span.0)
}
