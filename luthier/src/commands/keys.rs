//! `luthier keys`: who may ask a server, in the folder that it keeps its state in.

use std::process::ExitCode;

use serde_json::json;
use server::{Change, Keys};

use crate::cli;
use crate::error::user;
use crate::terminal::{self, Table, printable};

/// The database of a state folder.
const FILE: &str = "luthier.db";

/// Runs one of the commands.
pub(super) fn run(args: cli::Keys) -> anyhow::Result<ExitCode> {
    match args {
        cli::Keys::Add(args) => add(&args)?,
        cli::Keys::List(args) => list(&args)?,
        cli::Keys::Revoke(args) => revoke(&args)?,
        cli::Keys::Import(args) => {
            let added = Keys::open(&args.state.folder)?.import(&args.file)?;
            eprintln!("{added} new {}", if added == 1 { "key" } else { "keys" });
        }
        cli::Keys::Audit(args) => audit(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The keys of a folder that has some.
fn open(state: &cli::StateArgs) -> anyhow::Result<Keys> {
    let folder = &state.folder;
    if !folder.join(FILE).is_file() {
        let folder = folder.display();
        return Err(user(format!(
            "{folder}: it has no {FILE}; `luthier keys add --state {folder}` makes the first key"
        )));
    }
    Ok(Keys::open(folder)?)
}

fn add(args: &cli::AddKey) -> anyhow::Result<()> {
    let change = Change {
        adapters: args.adapters.clone(),
        weight: args.weight,
        requests_per_minute: args.requests_per_minute.map(|quota| quota.0),
        tokens_per_minute: args.tokens_per_minute.map(|quota| quota.0),
        admin: args.admin,
    };
    let made = Keys::open(&args.state.folder)?.add(&args.tenant, &change)?;
    if args.json {
        return terminal::print_json(&made);
    }
    eprintln!("{} of tenant {}; the key itself is told this once:", made.id, printable(&made.tenant));
    terminal::print_line(made.key)
}

fn list(args: &cli::ListKeys) -> anyhow::Result<()> {
    let keys = open(&args.state)?.list()?;
    if args.json {
        return terminal::print_json(&json!({"keys": keys}));
    }
    let mut table = Table::new([
        "id", "tenant", "adapters", "weight", "requests", "tokens", "admin", "created", "used", "revoked",
    ]);
    let quota = |quota: Option<u32>| quota.map_or("-".to_owned(), |number| format!("{number}/min"));
    for key in keys {
        table.row([
            key.id,
            printable(&key.tenant),
            printable(&key.adapters.join(",")),
            key.weight.to_string(),
            quota(key.requests_per_minute),
            quota(key.tokens_per_minute),
            if key.admin { "yes" } else { "no" }.to_owned(),
            date(Some(key.created)),
            date(key.used),
            date(key.revoked),
        ]);
    }
    terminal::print_line(table)
}

fn revoke(args: &cli::RevokeKey) -> anyhow::Result<()> {
    let words = if open(&args.state)?.revoke(&args.id)? { "is revoked" } else { "was revoked before" };
    eprintln!("{} {words}", args.id);
    Ok(())
}

fn audit(args: &cli::AuditKeys) -> anyhow::Result<()> {
    let mut records = open(&args.state)?.audit(args.last)?;
    if args.json {
        return terminal::print_json(&json!({"entries": records}));
    }
    // As a log is read: the newest last.
    records.reverse();
    let mut table = Table::new(["time", "tenant", "key", "action", "what", "outcome", "from"]);
    let told = |text: Option<String>| text.map_or("-".to_owned(), |text| printable(&text));
    for record in records {
        table.row([
            date(Some(record.time)),
            told(record.tenant),
            told(record.key),
            record.action,
            printable(&record.what),
            record.outcome,
            told(record.peer),
        ]);
    }
    terminal::print_line(table)
}

fn date(seconds: Option<i64>) -> String {
    seconds.map_or("-".to_owned(), terminal::date)
}
