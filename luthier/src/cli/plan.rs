//! `plan` and `bench`.

use clap::{ArgGroup, Args, Subcommand};

use super::settings::resolve;
use super::{RunArgs, Set};
use crate::run_file::Settings;

#[derive(Args, Debug)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// A known shape in place of a model, such as llama-3.1-8b
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub(crate) shape: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Training steps on random tokens
    Train(BenchArgs),
    /// Token by token generation
    Generate(BenchArgs),
    /// Many requests over many adapters at once
    Serve(BenchServe),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct BenchServe {
    #[command(flatten)]
    pub(crate) bench: BenchArgs,
    /// Adapters, of `adapter.r` and `adapter.target_modules`; requests have them by Zipf's law
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) adapters: u32,
    /// Clients that ask at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) parallel: u32,
    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) requests: u32,
    /// Tokens of a prompt, half to three halves of it
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prompt: u32,
    /// Tokens of an answer, half to three halves of it
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) new: u32,
    /// Measure a server, too, that holds one adapter at a time
    #[arg(long)]
    pub(crate) swapping: bool,
    /// Measure, too, what a client notices of another that always has four times --parallel requests waiting
    #[arg(long)]
    pub(crate) greedy: bool,
    /// Sum new tokens as training does
    #[arg(long)]
    pub(crate) exact_logprobs: bool,
    /// Ask a server with OpenAI's interface, ours or another's, that serves this model; all its adapters are used
    #[arg(long, value_name = "URL", conflicts_with_all = ["adapters", "greedy", "exact_logprobs"])]
    pub(crate) url: Option<String>,
    /// The key for --url
    #[arg(long, value_name = "KEY", requires = "url")]
    pub(crate) key: Option<String>,
}

#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("what").required(true).args(["model", "shape"]))]
pub(crate) struct BenchArgs {
    /// The base model: a folder or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// A known shape with random weights made in memory, such as llama-3.2-1b
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: Option<String>,
    #[command(flatten)]
    pub(crate) set: Set,
    /// Measured steps (bench train) or tokens (bench generate)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    pub(crate) steps: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl BenchArgs {
    /// The default settings with the flags and `--set` laid over them.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        resolve(None, &[("--model", "model", &self.model)], &self.set)
    }
}
