//! `luthier eval perplexity`: the loss of a model on a file of examples.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;

pub(super) fn run(_args: cli::Eval, _global: &Global) -> anyhow::Result<ExitCode> {
    Err(fault("`eval perplexity` is not written yet"))
}
