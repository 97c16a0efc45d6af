//! `luthier chat`: a conversation in the terminal.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;

pub(super) fn run(_args: cli::Chat, _global: &Global) -> anyhow::Result<ExitCode> {
    Err(fault("`chat` is not written yet"))
}
