//! `luthier jobs`: work for a pool, and what becomes of it.

mod slurm;
mod submit;
mod tell;

use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

pub(super) use slurm::slurm;

use super::pool::client::Client;
use crate::cli::{self, Global, OneJob};
use crate::terminal::{self, printable};

/// How often a job that is waited for is looked at.
const PULSE: Duration = Duration::from_millis(400);

/// Runs one of the commands.
pub(super) fn run(args: cli::Jobs, global: &Global) -> anyhow::Result<ExitCode> {
    if let Some(code) = slurm::run(&args, global)? {
        return Ok(code);
    }
    match args {
        cli::Jobs::Submit(args) => return submit::run(*args, global),
        cli::Jobs::List(args) => tell::list(&args)?,
        cli::Jobs::Show(args) => tell::show(&args)?,
        cli::Jobs::Why(args) => tell::why(&args)?,
        cli::Jobs::Logs(args) => logs(&args)?,
        cli::Jobs::Cancel(args) => act(&args, "cancel", "ends; what it has saved stays")?,
        cli::Jobs::Hold(args) => act(&args, "hold", "does not run until it is released")?,
        cli::Jobs::Release(args) => act(&args, "release", "may run")?,
        cli::Jobs::Prioritize(args) => {
            let path = format!("/pool/v1/jobs/{}/priority", args.job);
            let answer = Client::open(&args.which)?.post(&path, &json!({"priority": args.priority}))?;
            match args.which.json {
                true => terminal::print_json(&answer)?,
                false => eprintln!("job {} has priority {} from now on", args.job, args.priority),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn act(args: &OneJob, deed: &str, done: &str) -> anyhow::Result<()> {
    let path = format!("/pool/v1/jobs/{}/{deed}", args.job);
    let answer = Client::open(&args.which)?.post(&path, &json!({}))?;
    match args.which.json {
        true => terminal::print_json(&answer),
        false => {
            eprintln!("job {} {done}", args.job);
            Ok(())
        }
    }
}

fn logs(args: &cli::JobLogs) -> anyhow::Result<()> {
    let client = Client::open(&args.which)?;
    if args.which.json {
        let (mut text, mut offset) = (String::new(), 0);
        while let Some((piece, next)) = chunk(&client, args.job, offset)? {
            (text, offset) = (text + &piece, next);
        }
        return terminal::print_json(&json!({"job": args.job, "text": text}));
    }
    let mut offset = 0;
    loop {
        let ended = match chunk(&client, args.job, offset)? {
            Some((text, next)) => {
                offset = next;
                // Messages come from whatever runs there.
                let lines = text.split_inclusive('\n').map(|line| {
                    let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
                    printable(line) + end
                });
                terminal::print(&lines.collect::<String>())?;
                std::io::stdout().flush()?;
                continue;
            }
            None => is_ended(&client, args.job)?,
        };
        if !args.follow || ended {
            return Ok(());
        }
        thread::sleep(PULSE);
    }
}

/// A piece of a job's messages from an offset on, and where the next begins; nothing if there is no more.
fn chunk(client: &Client, job: u64, offset: u64) -> anyhow::Result<Option<(String, u64)>> {
    let piece = client.get(&format!("/pool/v1/jobs/{job}/log?offset={offset}"))?;
    let text = piece["text"].as_str().unwrap_or_default().to_owned();
    let next = piece["offset"].as_u64().unwrap_or(offset);
    Ok((next > offset).then_some((text, next)))
}

fn is_ended(client: &Client, job: u64) -> anyhow::Result<bool> {
    Ok(!client.get(&format!("/pool/v1/jobs/{job}"))?["ended"].is_null())
}

/// Waits until a job has ended, and gives what the API tells of it then.
fn wait(client: &Client, job: u64) -> anyhow::Result<Value> {
    loop {
        let told = client.get(&format!("/pool/v1/jobs/{job}"))?;
        if !told["ended"].is_null() {
            return Ok(told);
        }
        thread::sleep(PULSE);
    }
}
