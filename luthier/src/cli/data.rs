//! `data`.

use clap::{Args, Subcommand};

use super::RunArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Show rendered examples, the trained tokens marked by colour
    Preview(Preview),
}

#[derive(Args, Debug)]
pub(crate) struct Preview {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// How many examples
    #[arg(long, value_name = "N", default_value_t = 3, allow_negative_numbers = true)]
    pub(crate) count: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
