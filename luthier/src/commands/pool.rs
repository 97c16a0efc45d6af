//! `luthier pool`: a pool of machines for many projects, and what it tells.

pub(super) mod client;
mod export;
mod serve;
mod simulate;
mod status;

use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli;
use crate::run_file::read_policy;
use crate::terminal::{self, Table, date, printable};
use client::Client;

/// Runs one of the commands.
pub(super) fn run(args: cli::Pool) -> anyhow::Result<ExitCode> {
    match args {
        cli::Pool::Serve(args) => return serve::run(args),
        cli::Pool::Attempt(args) => {
            jobs::executor::run_attempt(&args.folder).with_context(|| args.folder.display().to_string())?;
        }
        cli::Pool::Apply(args) => {
            // What is wrong with it is told with its line, before anybody is asked.
            let policy = read_policy(&args.policy)?;
            if args.which.pool == "slurm" {
                let gaps = super::jobs::slurm()?.apply(&policy)?;
                return apply_told(&args.which, &gaps);
            }
            let answer = Client::open(&args.which)?.put("/pool/v1/policy", &serde_json::to_value(policy)?)?;
            match args.which.json {
                true => terminal::print_json(&answer)?,
                false => eprintln!("the policy holds from now on"),
            }
        }
        cli::Pool::Export(args) => export::run(&args)?,
        cli::Pool::Status(args) => status::run(&args.which)?,
        cli::Pool::Simulate(args) => simulate::run(&args)?,
        cli::Pool::Users(args) => users(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a cluster does not do of a policy.
fn apply_told(which: &cli::WhichPool, gaps: &[String]) -> anyhow::Result<ExitCode> {
    gaps.iter().for_each(|gap| eprintln!("note: {}", printable(gap)));
    match which.json {
        true => terminal::print_json(&json!({"gaps": gaps}))?,
        false => eprintln!("the policy holds from now on"),
    }
    Ok(ExitCode::SUCCESS)
}

fn users(args: cli::PoolUsers) -> anyhow::Result<()> {
    match args {
        cli::PoolUsers::Add(args) => {
            let made = Client::open(&args.which)?.post("/pool/v1/users", &json!({"name": args.name}))?;
            if args.which.json {
                return terminal::print_json(&made);
            }
            eprintln!("the token of {}; it is told this once:", printable(&args.name));
            terminal::print_line(made["token"].as_str().unwrap_or_default())
        }
        cli::PoolUsers::List(args) => {
            let users = Client::open(&args.which)?.get("/pool/v1/users")?;
            if args.which.json {
                return terminal::print_json(&users);
            }
            let mut table = Table::new(["user", "added", "token taken back"]);
            let day = |value: &Value| value.as_i64().map_or("-".to_owned(), |ms| date(ms / 1000));
            for user in users["users"].as_array().into_iter().flatten() {
                let name = printable(user["name"].as_str().unwrap_or_default());
                table.row([name, day(&user["created"]), day(&user["revoked"])]);
            }
            terminal::print_line(table)
        }
        cli::PoolUsers::Remove(args) => {
            let answer = Client::open(&args.which)?.delete(&format!("/pool/v1/users/{}", args.name))?;
            match args.which.json {
                true => terminal::print_json(&answer),
                false => {
                    eprintln!("the token of {} is good for nothing from now on", printable(&args.name));
                    Ok(())
                }
            }
        }
    }
}
