//! `luthier schema`: the JSON schema of the run file.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::run_file;
use crate::terminal;

pub(super) fn run(_args: cli::Schema, _global: &Global) -> anyhow::Result<ExitCode> {
    terminal::print_json(&run_file::schema())?;
    Ok(ExitCode::SUCCESS)
}
