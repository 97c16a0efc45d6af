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

/// A time as `2026-11-30T14:05:09Z`, from seconds since 1970; the days by Hinnant's `civil_from_days`
/// (howardhinnant.github.io/date_algorithms.html).
fn date(seconds: Option<i64>) -> String {
    let Some(seconds) = seconds else { return "-".to_owned() };
    let (days, second) = (seconds.div_euclid(86400) + 719_468, seconds.rem_euclid(86400));
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn times_are_told_in_utc() {
        for (seconds, told) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_796_050_240, "2026-11-30T14:50:40Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(Some(seconds)), told);
        }
        assert_eq!(date(None), "-");
    }
}
