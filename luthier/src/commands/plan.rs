//! `luthier plan`: counts parameters and memory.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;
use crate::run_file::Purpose;

pub(super) fn run(args: cli::Plan, _global: &Global) -> anyhow::Result<ExitCode> {
    let settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    Err(fault("`plan` is not written yet"))
}
