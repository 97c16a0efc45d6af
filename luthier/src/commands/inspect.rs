//! `luthier inspect`: tells what a folder holds.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;

pub(super) fn run(_args: cli::Inspect, _global: &Global) -> anyhow::Result<ExitCode> {
    Err(fault("`inspect` is not written yet"))
}
