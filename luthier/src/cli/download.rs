//! `download`.

use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct Download {
    /// A hub id: owner/name[@revision] of a model or an adapter, owner/name[@revision][:split] of a data set
    #[arg(value_name = "M")]
    pub(crate) name: String,
    /// It is a data set
    #[arg(long)]
    pub(crate) dataset: bool,
}
