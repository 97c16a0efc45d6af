//! `luthier download`: brings a model, an adapter or a data set into the cache and prints the folder.

use std::process::ExitCode;

use crate::cli;
use crate::hub;
use crate::terminal;

pub(super) fn run(args: cli::Download) -> anyhow::Result<ExitCode> {
    let folder = match args.dataset {
        true => hub::download_dataset(&args.name)?,
        false => hub::download(&args.name)?,
    };
    terminal::print_line(folder.display())?;
    Ok(ExitCode::SUCCESS)
}
