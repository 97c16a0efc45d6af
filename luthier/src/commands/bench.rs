//! `luthier bench`: measures speed and memory.

use std::process::ExitCode;

use crate::cli::{self, Global};
use crate::error::fault;
use crate::run_file::Purpose;

pub(super) fn run(args: cli::Bench, _global: &Global) -> anyhow::Result<ExitCode> {
    let (cli::Bench::Train(args) | cli::Bench::Generate(args)) = args;
    let settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    Err(fault("`bench` is not written yet"))
}
