//! What can be typed: the commands, with the flags of each in a file below. What the settings mean is said in
//! `run_file`.
//!
//! The names in this file are an interface that scripts rely on.

mod adapters;
mod data;
mod download;
mod eval;
mod init;
mod jobs;
mod keys;
mod plan;
mod pool;
mod pool_export;
mod problem;
mod report;
mod serve;
mod settings;
mod speak;
mod sweep;
mod train;
mod write;

use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

pub(crate) use adapters::{Adapters, Extract, Resize};
pub(crate) use data::*;
pub(crate) use download::Download;
pub(crate) use eval::*;
pub(crate) use init::*;
pub(crate) use jobs::{JobLogs, Jobs, ListJobs, OneJob, SubmitJob};
pub(crate) use keys::*;
pub(crate) use plan::*;
pub(crate) use pool::{Pool, PoolServe, PoolSimulate, PoolUsers, TraceFormat, WhichPool};
pub(crate) use pool_export::PoolExport;
pub(crate) use problem::parse;
pub(crate) use report::{CompareRuns, ListRuns, Report, Runs};
pub(crate) use serve::Serve;
pub(crate) use settings::{RunArgs, Set};
pub(crate) use speak::{Chat, Generate, Sampling};
pub(crate) use sweep::Sweep;
pub(crate) use train::*;
pub(crate) use write::{Export, ExportGguf, ExportMlx, ExportOllama, Inspect, Merge, Quantize};

use crate::error::user;

const AFTER_HELP: &str = "\
M is a folder in the Hugging Face layout or a hub id, owner/name[@revision], which is downloaded once into the cache
that huggingface_hub uses (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured).

Results go to stdout, progress and logs to stderr. Exit codes: 0 done, 1 a fault of this program, 2 wrong input,
75 stopped on request after saving (go on with --resume).";

/// Fine-tunes large language models by low-rank adaptation.
#[derive(Debug, Parser)]
#[command(name = "luthier", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Processor threads to use; the results are the same whatever the number [default: all]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), allow_negative_numbers = true)]
    threads: Option<u16>,
}

impl Global {
    /// Refuses a device that this build cannot drive. Called before any command starts its work.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.device {
            DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
            DeviceChoice::Cuda(_) => {
                Err(user("--device cuda: this build has no GPU support yet; use --device cpu"))
            }
        }
    }

    /// The device that was asked for, its threads started.
    pub(crate) fn device(&self) -> anyhow::Result<compute::Device> {
        self.check()?;
        Ok(compute::Device::cpu(self.threads()))
    }

    /// The same with another number of threads.
    pub(crate) fn with_threads(&self, threads: u64) -> Self {
        Global { threads: u16::try_from(threads).ok(), ..self.clone() }
    }

    /// The threads that this device has.
    pub(crate) fn threads(&self) -> usize {
        let available = || std::thread::available_parallelism().map_or(1, |n| n.get());
        self.threads.map_or_else(available, usize::from)
    }
}

/// The argument of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceChoice {
    /// The best device that this build can drive.
    Auto,
    Cpu,
    /// A GPU by its number.
    Cuda(u32),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Ok(Self::Cuda(index)),
                _ => Err("expected auto, cpu, cuda or cuda:N".into()),
            },
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fine-tune a model as a run file says
    Train(Train),
    /// Train many runs that differ in some settings, together over one base, and compare them
    Sweep(Sweep),
    /// Tell of runs on one page: curves, settings, examples, answers before and after, evaluations
    Report(Report),
    /// See which runs there are, and what differs between them
    #[command(subcommand)]
    Runs(Runs),
    /// Measure a model, with or without an adapter
    #[command(subcommand)]
    Eval(Eval),
    /// Continue a prompt or answer a conversation
    Generate(Generate),
    /// Talk with a model in the terminal
    Chat(Chat),
    /// Answer many clients, with many adapters over one model
    Serve(Serve),
    /// Say who may ask a server, and see who did what
    #[command(subcommand)]
    Keys(Keys),
    /// Share machines among projects: quotas, fair shares, preemption without loss
    #[command(subcommand)]
    Pool(Pool),
    /// Submit work to a pool, and see what becomes of it and why
    #[command(subcommand)]
    Jobs(Jobs),
    /// Write a model with an adapter added into its weights
    Merge(Merge),
    /// Make an adapter out of two models, or give one another rank
    #[command(subcommand)]
    Adapters(Adapters),
    /// Write what other programs load
    #[command(subcommand)]
    Export(Export),
    /// Write a model in four bits, as bitsandbytes and transformers read it
    Quantize(Quantize),
    /// Tell what a model, adapter or run folder holds, in one screen
    Inspect(Inspect),
    /// Count the parameters and the memory of a run before it starts
    Plan(Plan),
    /// Measure speed and memory
    #[command(subcommand)]
    Bench(Bench),
    /// Look at training data as the model will see it
    #[command(subcommand)]
    Data(Data),
    /// Bring a model, an adapter or a data set from the hub and print its folder
    Download(Download),
    /// See a small model learn: everything needed is part of this program
    Example(Example),
    /// Write a run file with comments, for the model and the data at hand
    Init(Init),
    /// Turn a configuration of Axolotl, LLaMA-Factory, TRL or PEFT into a run file
    Import(Import),
    /// Print the JSON schema of the run file, for editors
    Schema(Schema),
    /// Print the completions of a shell
    Completions(Completions),
    /// Print the manual page, or write those of all commands
    Man(Man),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
