//! `eval`.

use clap::{Args, Subcommand};

use super::Set;
use super::settings::resolve;
use crate::error::user;
use crate::run_file::Settings;

#[derive(Debug, Subcommand)]
pub(crate) enum Eval {
    /// The mean loss over a file's trained tokens, and its exponential
    Perplexity(Perplexity),
}

#[derive(Args, Debug)]
pub(crate) struct Perplexity {
    /// The base model: a folder or a hub id [default: the one the adapter was trained on]
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// An adapter: a run folder, an adapter folder or a hub id
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// The examples
    #[arg(long, value_name = "FILE")]
    pub(crate) data: String,
    #[command(flatten)]
    pub(crate) set: Set,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl Perplexity {
    /// The default settings with `--set` laid over them, as far as it is about data and precision; the file
    /// of examples stands in `data.eval`.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        for change in self.set.overrides()? {
            if !["data", "precision", "quantization", "memory"].contains(&change.section()) {
                return Err(user(format!(
                    "--set {}: `eval perplexity` takes data.*, precision, quantization and memory only",
                    change.section()
                )));
            }
        }
        let data = Some(self.data.clone());
        resolve(None, &[("--model", "model", &self.model), ("--data", "data.eval", &data)], &self.set)
    }
}
