//! `download`.

use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct Download {
    /// A hub id: owner/name of a model or an adapter, owner/name:split of a data set; owner/name@revision for
    /// another revision than main
    #[arg(value_name = "M")]
    pub(crate) name: String,
    /// It is a data set
    #[arg(long)]
    pub(crate) dataset: bool,
}
