//! `luthier data preview`: shows examples as the model will see them.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;
use crate::run_file::Purpose;

pub(super) fn run(args: cli::Preview, _global: &Global) -> anyhow::Result<ExitCode> {
    let settings = args.settings()?;
    settings.validate(Purpose::Preview)?;
    Err(fault("`data preview` is not written yet"))
}
