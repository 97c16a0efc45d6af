//! `luthier plan`: counts parameters and memory.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;

pub(super) fn run(_args: cli::Plan, _global: &Global) -> anyhow::Result<ExitCode> {
    Err(fault("`plan` is not written yet"))
}
