//! `luthier merge`: writes a model with an adapter added into its weights.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;

pub(super) fn run(_args: cli::Merge, _global: &Global) -> anyhow::Result<ExitCode> {
    Err(fault("`merge` is not written yet"))
}
