//! `report` and `runs`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Args, Debug)]
pub(crate) struct Report {
    /// Run folders, or folders of runs such as a sweep's
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// The page
    #[arg(long, value_name = "FILE.html")]
    pub(crate) output: PathBuf,
    /// Prompts that the base and each run answer, taken from the held-out examples; 0: none
    #[arg(long, value_name = "N", default_value_t = 3, allow_negative_numbers = true)]
    pub(crate) samples: usize,
    /// Stop an answer after this many tokens
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    pub(crate) max_tokens: u32,
    /// What a command of `eval` printed with --json, beside those in RUN/evaluations; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) evaluation: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Runs {
    /// The runs in and below some folders, the newest first
    List(ListRuns),
    /// What differs between runs: settings, losses, speed, memory, and their curves
    Compare(CompareRuns),
}

#[derive(Args, Debug)]
pub(crate) struct ListRuns {
    /// Where to look
    #[arg(value_name = "FOLDER", default_value = ".")]
    pub(crate) folders: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CompareRuns {
    /// Run folders, or folders of runs such as a sweep's
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
