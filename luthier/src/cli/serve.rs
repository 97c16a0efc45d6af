//! `serve`.

use std::path::PathBuf;

use clap::Args;

use super::settings::Set;
use super::speak::{Held, parse_held};
use crate::run_file::{ByteSize, Precision};

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// The base model: a folder, a GGUF file or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    /// An adapter to serve under a name: a run folder, an adapter folder or a hub id; may be given several times
    #[arg(long, value_name = "NAME=DIR", value_parser = parse_named)]
    pub(crate) adapter: Vec<Named>,
    /// A folder of adapter folders, served under their names and loaded when they are asked for
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter_root: Option<PathBuf>,
    /// The memory that adapters may take; those that were longest not asked for leave it
    #[arg(long, value_name = "BYTES", default_value = "1GiB", allow_negative_numbers = true)]
    pub(crate) adapter_memory: ByteSize,
    /// What clients call the base [default: its name]
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// The address to listen at; one that others than this machine reach needs keys
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// The port to listen at; 0: any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// A file that says whose keys are accepted, and what they allow; then those in --state are not
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// A folder for what is to outlive the server: keys, the log, files, jobs and what they train
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The part of the time that jobs train in while requests are computed; all of it at other times
    #[arg(long, value_name = "PART", value_parser = parse_share, default_value = "0.1", allow_negative_numbers = true)]
    pub(crate) training_share: f64,
    #[command(flatten)]
    pub(crate) set: Set,
    /// The memory that models in training may take over Tinker's API, which needs --state; 0: nothing is trained
    #[arg(long, value_name = "BYTES", default_value = "1GiB", allow_negative_numbers = true)]
    pub(crate) training_memory: ByteSize,
    /// Tokens of the longest example that is trained on [default: 1024, or --context if that is less]
    #[arg(long, value_name = "N", value_parser = parse_count, allow_negative_numbers = true)]
    pub(crate) training_tokens: Option<usize>,
    /// A chat template in place of the model's and the adapters' own: a file or a built-in name
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) chat_template: Option<String>,
    /// Precision of activations and arithmetic
    #[arg(long, value_name = "PRECISION", default_value = "bf16", value_enum)]
    pub(crate) precision: Precision,
    /// How the base is held: nf4, fp4, int4, int3, int2 or none
    #[arg(long, value_name = "TYPE", value_parser = parse_held, default_value = "none")]
    pub(crate) quantization: Held,
    /// Tokens of the longest prompt with its answer [default: what the model was made for, at most 8192]
    #[arg(long, value_name = "N", value_parser = parse_count, allow_negative_numbers = true)]
    pub(crate) context: Option<usize>,
    /// Tokens that the cache holds, of all requests together [default: 16384, or --context if that is more]
    #[arg(long, value_name = "N", value_parser = parse_count, allow_negative_numbers = true)]
    pub(crate) cached_tokens: Option<usize>,
    /// The most tokens of a step: new ones, and chunks of prompts
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "512", allow_negative_numbers = true)]
    pub(crate) step_tokens: usize,
    /// The most answers that are generated at once; further ones wait
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "16", allow_negative_numbers = true)]
    pub(crate) running: usize,
    /// The most requests that are generated or wait; further ones are refused
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "1024", allow_negative_numbers = true)]
    pub(crate) requests: usize,
    /// The most connections at once; further ones wait
    #[arg(long, value_name = "N", value_parser = parse_count, default_value = "16384", allow_negative_numbers = true)]
    pub(crate) connections: usize,
    /// The largest rank that an adapter may have
    #[arg(long, value_name = "R", value_parser = parse_count, default_value = "64", allow_negative_numbers = true)]
    pub(crate) max_rank: usize,
    /// Sum as training does, so that log-probabilities are those of a pass over the whole text, to the bit
    #[arg(long)]
    pub(crate) exact_logprobs: bool,
    /// Seconds that requests have to end when the server is asked to
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(..=86400),
        allow_negative_numbers = true
    )]
    pub(crate) drain_time: u64,
}

/// The argument of `--adapter`.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    /// A folder or a hub id.
    pub(crate) adapter: String,
}

fn parse_named(text: &str) -> Result<Named, String> {
    match text.split_once('=') {
        Some((name, adapter)) if !name.is_empty() && !adapter.is_empty() => {
            Ok(Named { name: name.to_owned(), adapter: adapter.to_owned() })
        }
        _ => Err("expected NAME=DIR: the name that clients use, and the adapter's folder".into()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|part| *part > 0.0 && *part <= 1.0)
        .ok_or("expected a number above 0, up to 1".into())
}

fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or("expected a whole number of 1 or more".into())
}
