//! `luthier eval`: is this adapter better? A base and adapters over it, on the same items, with intervals.

mod choice;
mod compare;
mod forgetting;
mod generate;
mod items;
mod judge;
mod perplexity;
mod systems;

use std::process::ExitCode;

use crate::cli::{self, Global};

pub(super) fn run(args: cli::Eval, global: &Global) -> anyhow::Result<ExitCode> {
    match args {
        cli::Eval::Perplexity(args) => perplexity::run(&args, global),
        cli::Eval::Choice(args) => choice::run(&args, global),
        cli::Eval::Forgetting(args) => forgetting::run(&args, global),
        cli::Eval::Generate(args) => generate::run(&args, global),
        cli::Eval::Judge(args) => judge::run(&args),
    }
}
