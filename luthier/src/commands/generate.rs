//! `luthier generate`: continues a prompt or answers a conversation.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;

pub(super) fn run(_args: cli::Generate, _global: &Global) -> anyhow::Result<ExitCode> {
    Err(fault("`generate` is not written yet"))
}
