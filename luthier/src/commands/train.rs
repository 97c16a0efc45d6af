//! `luthier train`: fine-tunes a model as a run file says.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;
use crate::run_file::Purpose;

pub(super) fn run(args: cli::Train, _global: &Global) -> anyhow::Result<ExitCode> {
    let settings = args.settings()?;
    settings.validate(Purpose::Train)?;
    Err(fault("`train` is not written yet"))
}
