//! `adapters`: what is made of adapters and models without training.

use std::path::PathBuf;

use clap::builder::RangedI64ValueParser;
use clap::{ArgGroup, Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Adapters {
    /// Write an adapter with what one model has more than another
    Extract(Extract),
    /// Write an adapter with another rank
    Resize(Resize),
}

#[derive(Args, Debug)]
pub(crate) struct Extract {
    /// The base model: a folder or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) base: String,
    /// The model whose difference from the base is wanted: a folder or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) tuned: String,
    /// The rank of the adapter
    #[arg(long, value_name = "R", value_parser = ranks(), allow_negative_numbers = true)]
    pub(crate) rank: u32,
    /// The layers that get an update: all-linear, names such as q_proj,v_proj, or a regular expression
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all-linear")]
    pub(crate) target_modules: Vec<String>,
    /// Modules that are taken over whole, such as lm_head,embed_tokens
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) modules_to_save: Vec<String>,
    /// The adapter folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("ranks").args(["rank", "keep"]).required(true)))]
pub(crate) struct Resize {
    /// The adapter: a run folder, an adapter folder or a hub id
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: String,
    /// The rank of every update
    #[arg(long, value_name = "R", value_parser = ranks(), allow_negative_numbers = true)]
    pub(crate) rank: Option<u32>,
    /// The part of each update that its rank keeps at least, as a sum of squares, such as 0.99
    #[arg(long, value_name = "PART", value_parser = parse_part, allow_negative_numbers = true)]
    pub(crate) keep: Option<f64>,
    /// The adapter folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn ranks() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=65_536)
}

fn parse_part(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|part| *part > 0.0 && *part <= 1.0)
        .ok_or("expected a number above 0, up to 1".into())
}
