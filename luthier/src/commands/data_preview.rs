//! `luthier data preview`: shows examples as the model will see them.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;

pub(super) fn run(_args: cli::Preview, _global: &Global) -> anyhow::Result<ExitCode> {
    Err(fault("`data preview` is not written yet"))
}
