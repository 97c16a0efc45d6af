//! `luthier bench serve`: many requests over many adapters at once, asked over HTTP of a server on this machine.
//!
//! So many clients ask without a pause, each its next request when the last one has ended, with adapters by
//! Zipf's law and prompts and answers of mixed lengths. The same requests are asked several times: of the bare
//! base, with all adapters, of a server that holds one adapter at a time, whose batches end where the adapter
//! changes (`--swapping`), and by one client beside another one that asks without end (`--greedy`). The server is
//! made for it and listens on a loopback address; with `--url` it is another one, ours or somebody else's.

mod client;
mod local;

use std::process::ExitCode;
use std::time::Duration;

use compute::random;
use model::Config;
use serde_json::{Map, Value, json};

use client::Client;
use local::Local;

use super::{Subject, random_tokens};
use crate::cli::{self, Global};
use crate::terminal::{self, Table, count};

const SEED: u64 = 42;
/// Requests of a greedy client at once, beside one of a quiet one: as many times what runs at once.
const GREED: usize = 4;

/// A request to be asked.
#[derive(Clone)]
struct Planned {
    prompt: Vec<u32>,
    new: usize,
    adapter: usize,
}

/// What a run of requests has come to.
struct Outcome {
    seconds: f64,
    prompt_tokens: usize,
    new_tokens: usize,
    /// From asking to the first token.
    first: Vec<Duration>,
    /// Between tokens.
    between: Vec<Duration>,
    requests: usize,
}

impl Outcome {
    /// Before anything was asked.
    fn of(planned: &[Planned]) -> Self {
        Outcome {
            seconds: 0.0,
            prompt_tokens: planned.iter().map(|of| of.prompt.len()).sum(),
            new_tokens: 0,
            first: Vec::new(),
            between: Vec::new(),
            requests: planned.len(),
        }
    }

    /// One after the other.
    fn all(parts: Vec<Outcome>) -> Self {
        let mut all = Outcome::of(&[]);
        for part in parts {
            all.seconds += part.seconds;
            all.prompt_tokens += part.prompt_tokens;
            all.new_tokens += part.new_tokens;
            all.first.extend(part.first);
            all.between.extend(part.between);
            all.requests += part.requests;
        }
        all
    }

    fn tokens_per_second(&self) -> f64 {
        (self.prompt_tokens + self.new_tokens) as f64 / self.seconds
    }

    fn json(&self) -> Value {
        let milliseconds = |times: &[Duration]| {
            let of = |part| 1e3 * percentile(times, part).as_secs_f64();
            json!({"p50": of(0.5), "p95": of(0.95)})
        };
        json!({
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second(),
            "new_tokens_per_second": self.new_tokens as f64 / self.seconds,
            "requests_per_second": self.requests as f64 / self.seconds,
            "time_to_first_token_ms": milliseconds(&self.first),
            "time_between_tokens_ms": milliseconds(&self.between),
        })
    }
}

fn percentile(times: &[Duration], part: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (part * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

pub(super) fn run(args: &cli::BenchServe, global: &Global) -> anyhow::Result<ExitCode> {
    let subject = Subject::open(&args.bench)?;
    let plan = |adapters: usize| -> Vec<Planned> {
        (0..args.requests as u64).map(|n| plan(n, args, adapters, &subject.config)).collect()
    };
    match &args.url {
        Some(url) => {
            let client = Client::open(url, args.key.as_deref())?;
            let planned = plan(client.adapters.len());
            let measured = Measured::of(&client, None, &planned, args)?;
            measured.print(
                args,
                &format!("{} at {url}", client.base),
                json!({"url": url, "model": client.base}),
            )
        }
        None => {
            let planned = plan(args.adapters as usize);
            let local = Local::start(&subject, &planned, args, global)?;
            let measured = Measured::of(&local.client, Some(&local.greedy), &planned, args);
            let (words, facts) = (local.words.clone(), local.facts.clone());
            local.end()?;
            measured?.print(args, &words, facts)
        }
    }
}

/// What the requests came to, asked in several ways.
struct Measured {
    adapters: usize,
    /// The first one is the bare base.
    ways: Vec<(&'static str, Outcome)>,
}

impl Measured {
    fn of(
        client: &Client,
        greedy: Option<&Client>,
        planned: &[Planned],
        args: &cli::BenchServe,
    ) -> anyhow::Result<Self> {
        let (parallel, adapters) = (args.parallel as usize, client.adapters.len());
        let base = |_: &Planned| client.base.as_str();
        let of = |planned: &Planned| client.adapters.get(planned.adapter).map_or(client.base.as_str(), |n| n);
        // The first requests touch memory for the first time.
        client.ask(&planned[..planned.len().min(parallel)], parallel, &base)?;
        let mut ways = vec![("base", client.ask(planned, parallel, &base)?)];
        if adapters > 0 {
            // What is asked for the first time is not in memory yet.
            let is_first = |n: &usize| planned[..*n].iter().all(|of| of.adapter != planned[*n].adapter);
            let first: Vec<_> = (0..planned.len()).filter(is_first).map(|n| planned[n].clone()).collect();
            ways.push(("adapters, first use", client.ask(&first, parallel, &of)?));
            ways.push(("adapters", client.ask(planned, parallel, &of)?));
        }
        if args.swapping {
            // Runs of requests that have the same adapter: what comes between waits.
            let parts = planned.chunk_by(|a, b| a.adapter == b.adapter);
            let parts = parts.map(|part| client.ask(part, parallel, &of)).collect::<anyhow::Result<_>>()?;
            ways.push(("one adapter at a time", Outcome::all(parts)));
        }
        if let (Some(greedy), true) = (greedy, args.greedy) {
            ways.push(("a quiet client alone", client.ask(planned, 1, &of)?));
            let beside = client.ask_beside(greedy, GREED * parallel, planned, &of)?;
            ways.push(("beside a greedy one", beside));
        }
        Ok(Measured { adapters, ways })
    }

    fn print(&self, args: &cli::BenchServe, words: &str, facts: Value) -> anyhow::Result<ExitCode> {
        let cli::BenchServe { parallel, requests, .. } = args;
        if args.bench.json {
            let name = |name: &str| name.replace(", ", "_").replace(' ', "_");
            let ways: Map<String, Value> = self.ways.iter().map(|(way, of)| (name(way), of.json())).collect();
            let own =
                json!({"adapters": self.adapters, "parallel": parallel, "requests": requests, "ways": ways});
            let all: Map<String, Value> = [facts, own]
                .iter()
                .filter_map(Value::as_object)
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            terminal::print_json(&all)?;
            return Ok(ExitCode::SUCCESS);
        }
        terminal::print_line(format!(
            "{words}: {requests} requests of {parallel} clients, {} adapters",
            self.adapters
        ))?;
        print_table(&self.ways)
    }
}

/// A line for each way in which the requests were asked.
fn print_table(ways: &[(&str, Outcome)]) -> anyhow::Result<ExitCode> {
    let bare = &ways[0].1;
    let mut table = Table::new([
        "requests of",
        "tokens/s",
        "of the base",
        "new tokens/s",
        "first token, p50, p95",
        "between, p50, p95",
    ]);
    for (name, of) in ways {
        let times = |times: &[Duration]| {
            let of = |part| terminal::digits(1e3 * percentile(times, part).as_secs_f64());
            format!("{}, {} ms", of(0.5), of(0.95))
        };
        table.row([
            (*name).to_owned(),
            count(of.tokens_per_second()),
            format!("{:.2}", of.tokens_per_second() / bare.tokens_per_second()),
            count(of.new_tokens as f64 / of.seconds),
            times(&of.first),
            times(&of.between),
        ]);
    }
    terminal::print_line(table.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// The request of a number: half to three halves of the usual lengths, an adapter by Zipf's law.
fn plan(number: u64, args: &cli::BenchServe, adapters: usize, config: &Config) -> Planned {
    let draw = |what, bound| random::below(random::key(SEED, number), what, bound);
    let mixed = |what, usual: u32| (usual as u64 / 2 + draw(what, u64::from(usual) + 1)).max(1) as usize;
    let (prompt, new) = (mixed(0, args.prompt), mixed(1, args.new));
    let weight = |n: usize| 1.0 / (n + 1) as f64;
    let all: f64 = (0..adapters).map(weight).sum();
    let mut rest = random::uniform(random::key(SEED, number), 2) * all;
    let adapter = (0..adapters).position(|n| {
        rest -= weight(n);
        rest < 0.0
    });
    Planned { prompt: random_tokens(config, number, prompt), new, adapter: adapter.unwrap_or(0) }
}
