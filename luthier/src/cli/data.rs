//! `data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{RunArgs, Set};
use crate::run_file::{Override, Settings};

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Show rendered examples, the trained tokens marked by colour
    Preview(Preview),
    /// Examine a set of examples: lengths, what is cut off, duplicates, leaks, odd conversations
    Check(Check),
    /// Write data of any supported kind as lines of JSON
    Convert(Convert),
}

#[derive(Args, Debug)]
pub(crate) struct Preview {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// How many examples
    #[arg(long, value_name = "N", default_value_t = 3, allow_negative_numbers = true)]
    pub(crate) count: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Exit with code 2 if there is a serious finding
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Convert {
    /// A run file whose data.train is converted
    #[arg(value_name = "RUN.yaml")]
    run: Option<PathBuf>,
    /// The examples to convert (`data.train`); may be repeated
    #[arg(long, value_name = "FILE")]
    data: Vec<String>,
    /// Where to write, a new file ending in .jsonl; - is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// What records become: auto (conversations become messages, others stay what they are) or messages
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub(crate) to: data::convert::Target,
    #[command(flatten)]
    set: Set,
}

impl Convert {
    /// What is to be read, as settings of a run.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let mut overrides = self.set.overrides()?;
        overrides.extend((!self.data.is_empty()).then(|| Override::list("--data", "data.train", &self.data)));
        Settings::resolve(self.run.as_deref(), overrides)
    }
}
