//! `init`, `import`, `schema`, `completions` and `man`: what is written for a person or a shell.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::Shell;

#[derive(Args, Debug)]
pub(crate) struct Init {
    /// The base model: a folder or a hub id; looked at, not loaded
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// The examples to train on; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Vec<String>,
    /// The run file to write; must not exist; `-` for stdout
    #[arg(long, value_name = "RUN.yaml", default_value = "run.yaml")]
    pub(crate) output: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// A configuration of Axolotl, LLaMA-Factory or TRL (YAML), saved training arguments, or PEFT's
    /// adapter_config.json
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The run file to write; must not exist; `-` for stdout
    #[arg(long, value_name = "RUN.yaml", default_value = "run.yaml")]
    pub(crate) output: PathBuf,
    /// Whose configuration it is [default: found by its keys]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) from: Option<Program>,
}

/// A program whose configurations are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Program {
    Axolotl,
    LlamaFactory,
    Trl,
}

#[derive(Args, Debug)]
pub(crate) struct Schema {}

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// The shell to write them for
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// A folder for the pages of all commands [default: the page of `luthier` itself, on stdout]
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
}
