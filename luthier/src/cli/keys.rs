//! `keys`: who may ask a server.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make a key for a tenant, and print it once
    Add(AddKey),
    /// List the keys, without telling them
    List(ListKeys),
    /// Take a key's rights away
    Revoke(RevokeKey),
    /// Take over the tenants and the hashes of keys of a file as `serve --keys` has it
    Import(ImportKeys),
    /// Show who changed what, and who was refused
    Audit(AuditKeys),
}

#[derive(Args, Debug)]
pub(crate) struct AddKey {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Whose key it is; a tenant that is there keeps what is not given here
    #[arg(long, value_name = "NAME")]
    pub(crate) tenant: String,
    /// The shared adapters that the tenant may use, or `*` for all of them
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) adapters: Option<Vec<String>>,
    /// The tenant's turns beside a tenant with 1, where requests wait: 0.001 to 1000
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    pub(crate) weight: Option<f64>,
    /// Answers that the tenant may ask for in a minute, or none
    #[arg(long, value_name = "N", value_parser = parse_quota, allow_negative_numbers = true)]
    pub(crate) requests_per_minute: Option<Quota>,
    /// Tokens of prompts and answers that the tenant has in a minute, or none
    #[arg(long, value_name = "N", value_parser = parse_quota, allow_negative_numbers = true)]
    pub(crate) tokens_per_minute: Option<Quota>,
    /// Whether the tenant sees everything and may load, unload and read the log
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) admin: Option<bool>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ListKeys {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RevokeKey {
    /// What `keys list` calls it
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ImportKeys {
    /// The file of keys
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Args, Debug)]
pub(crate) struct AuditKeys {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// How many entries, the newest ones
    #[arg(long, value_name = "N", default_value_t = 50, allow_negative_numbers = true)]
    pub(crate) last: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StateArgs {
    /// The folder that `serve --state` has; the server may be running
    #[arg(long = "state", value_name = "DIR")]
    pub(crate) folder: PathBuf,
}

/// So much a minute; none: no end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota(pub(crate) Option<u32>);

fn parse_quota(text: &str) -> Result<Quota, String> {
    match text {
        "none" => Ok(Quota(None)),
        text => match text.parse() {
            Ok(number @ 1..) => Ok(Quota(Some(number))),
            _ => Err("expected a whole number of 1 or more, or none".into()),
        },
    }
}
