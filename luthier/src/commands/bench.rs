//! `luthier bench`: measures speed and memory.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;

pub(super) fn run(_args: cli::Bench, _global: &Global) -> anyhow::Result<ExitCode> {
    Err(fault("`bench` is not written yet"))
}
