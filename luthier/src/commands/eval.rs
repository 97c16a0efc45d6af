//! `luthier eval perplexity`: the loss of a model on a file of examples.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;
use crate::run_file::Purpose;

pub(super) fn run(args: cli::Eval, _global: &Global) -> anyhow::Result<ExitCode> {
    let cli::Eval::Perplexity(args) = args;
    let settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    Err(fault("`eval perplexity` is not written yet"))
}
