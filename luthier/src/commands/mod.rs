//! The commands, one file each. A command reads its arguments, calls the libraries and tells the result.

mod adapters;
mod bench;
mod chat;
mod compared;
mod completions;
mod data_check;
mod data_convert;
mod data_preview;
mod download;
mod eval;
mod example;
mod export_gguf;
mod export_mlx;
mod export_ollama;
mod generate;
mod import;
mod init;
mod inspect;
mod jobs;
mod keys;
mod merge;
mod page;
mod plan;
mod pool;
mod proof;
mod quantize;
mod questions;
mod report;
mod runs;
mod schema;
mod serve;
mod sweep;
mod train;

use std::process::ExitCode;

use crate::cli::{Adapters, Cli, Command, Data, Export, Runs};

/// Runs what was typed.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    global.check()?;
    match cli.command {
        Command::Train(args) => train::run(args, global),
        Command::Sweep(args) => sweep::run(args, global),
        Command::Report(args) => report::run(args, global),
        Command::Runs(Runs::List(args)) => runs::list(args),
        Command::Runs(Runs::Compare(args)) => runs::compare(args),
        Command::Eval(args) => eval::run(args, global),
        Command::Example(args) => example::run(args, global),
        Command::Generate(args) => generate::run(args, global),
        Command::Chat(args) => chat::run(args, global),
        Command::Serve(args) => serve::run(args, global),
        Command::Keys(args) => keys::run(args),
        Command::Pool(args) => pool::run(args),
        Command::Jobs(args) => jobs::run(args, global),
        Command::Merge(args) => merge::run(args, global),
        Command::Adapters(Adapters::Extract(args)) => adapters::extract(args, global),
        Command::Adapters(Adapters::Resize(args)) => adapters::resize(args),
        Command::Export(Export::Gguf(args)) => export_gguf::run(args, global),
        Command::Export(Export::Mlx(args)) => export_mlx::run(args, global),
        Command::Export(Export::Ollama(args)) => export_ollama::run(args, global),
        Command::Quantize(args) => quantize::run(args, global),
        Command::Inspect(args) => inspect::run(args, global),
        Command::Plan(args) => plan::run(args, global),
        Command::Bench(args) => bench::run(args, global),
        Command::Download(args) => download::run(args),
        Command::Data(Data::Preview(args)) => data_preview::run(args, global),
        Command::Data(Data::Check(args)) => data_check::run(args, global),
        Command::Data(Data::Convert(args)) => data_convert::run(args, global),
        Command::Init(args) => init::run(args, global),
        Command::Import(args) => import::run(args, global),
        Command::Schema(args) => schema::run(args, global),
        Command::Completions(args) => completions::run(args, global),
        Command::Man(args) => completions::man(args, global),
    }
}
