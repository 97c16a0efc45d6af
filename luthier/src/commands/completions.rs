//! `luthier completions` and `luthier man`: the command line, told to shells and to `man`.

use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::{self, Global};
use crate::terminal;

pub(super) fn run(args: cli::Completions, _global: &Global) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli::Cli::command(), "luthier", &mut script);
    terminal::print(&String::from_utf8(script).expect("a script is text"))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: cli::Man, _global: &Global) -> anyhow::Result<ExitCode> {
    let command = cli::Cli::command().disable_help_subcommand(true);
    match args.output {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).expect("writing to memory");
            terminal::print(&String::from_utf8(page).expect("a page is text"))?;
        }
        Some(folder) => {
            let failed = || format!("cannot write manual pages into {}", folder.display());
            std::fs::create_dir_all(&folder).with_context(failed)?;
            clap_mangen::generate_to(command, &folder).with_context(failed)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
