//! `luthier bench serve`: many requests over many adapters at once, through the engine that answers them.
//!
//! So many clients ask without a pause, each its next request when the last one has ended, with adapters by
//! Zipf's law and prompts and answers of mixed lengths. The same requests are asked three times: of the bare
//! base, with all adapters, and of a server that holds one adapter at a time, whose batches end where the adapter
//! changes. With `--url` they go to a server over HTTP instead, ours or another's. `--greedy` measures what a
//! client notices of another one that asks without end.

mod remote;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compute::random;
use infer::{Ask, Engine, Event, Extent, RequestId, Sampling, Sums};
use model::{Adapter, Config};
use serde_json::{Value, json};

use remote::Remote;

use super::{Subject, random_tokens, settings};
use crate::cli::{self, Global};
use crate::setup;
use crate::terminal::{self, Table, count};

/// Tokens of a step.
const STEP: usize = 512;
const SEED: u64 = 42;

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
    if let Some(url) = &args.url {
        return run_remote(url, args);
    }
    let settings = settings(&args.bench)?;
    let (run, subject) = (&settings.run, Subject::open(&args.bench)?);
    let trained = setup::trained(run, &subject.config, &subject.name)?;
    let device = global.device()?;
    let decoder = Arc::new(subject.load(&device, run)?);
    let adapters: Vec<Arc<Adapter>> = (0..args.adapters as u64)
        .map(|seed| {
            let mut adapter = Adapter::zeros(trained.layout.clone(), 0.0, &device);
            adapter.initialize(run.adapter.init.engine(), seed, &decoder);
            Arc::new(adapter)
        })
        .collect();
    let planned: Vec<Planned> = (0..args.requests as u64).map(|n| plan(n, args, &decoder.config)).collect();
    let longest = planned.iter().map(|of| of.prompt.len() + of.new).max().unwrap_or(1);
    let sums = if args.exact_logprobs { Sums::Tiles } else { Sums::Rows };
    let running = args.parallel as usize;
    let extent = Extent {
        context: longest,
        cached_tokens: running * longest.next_multiple_of(model::PAGE),
        step_tokens: STEP,
        running,
        max_rank: trained.layout.max_rank(),
        sums,
    };
    let engine = || Engine::new(Arc::clone(&decoder), extent);
    // The first requests touch memory for the first time.
    ask(&mut engine(), &planned[..planned.len().min(running)], running, &|_| None);
    let bare = ask(&mut engine(), &planned, running, &|_| None);
    let of = |planned: &Planned| adapters.get(planned.adapter).map(Arc::clone);
    let mixed = (!adapters.is_empty()).then(|| ask(&mut engine(), &planned, running, &of));
    let swapping = mixed.as_ref().filter(|_| args.swapping).map(|_| {
        let mut engine = engine();
        // Runs of requests that have the same adapter: what comes between waits.
        let parts = planned.chunk_by(|a, b| a.adapter == b.adapter);
        Outcome::all(parts.map(|part| ask(&mut engine, part, running, &of)).collect())
    });
    let (mut alone, mut beside) = (None, None);
    if args.greedy {
        // Each of its requests waits for the one before; as many as the engine has lanes are the other's.
        alone = Some(ask_beside(&mut engine(), &planned, 0, &of));
        beside = Some(ask_beside(&mut engine(), &planned, 4 * running, &of));
    }
    let ways = [
        ("base", Some(&bare)),
        ("adapters", mixed.as_ref()),
        ("one adapter at a time", swapping.as_ref()),
        ("a quiet client alone", alone.as_ref()),
        ("beside a greedy one", beside.as_ref()),
    ];
    let ways: Vec<_> = ways.into_iter().filter_map(|(name, of)| Some((name, of?))).collect();
    if args.bench.json {
        let facts = json!({
            "shape": subject.name,
            "precision": run.precision,
            "quantization": run.quantization,
            "threads": device.threads(),
            "isa": device.isa(),
            "adapters": args.adapters,
            "rank": trained.layout.max_rank(),
            "parallel": args.parallel,
            "requests": args.requests,
            "base": bare.json(),
            "with_adapters": mixed.as_ref().map(Outcome::json),
            "one_adapter_at_a_time": swapping.as_ref().map(Outcome::json),
            "quiet_client_alone": alone.as_ref().map(Outcome::json),
            "quiet_client_beside_greedy": beside.as_ref().map(Outcome::json),
        });
        terminal::print_json(&facts)?;
        return Ok(ExitCode::SUCCESS);
    }
    terminal::print_line(format!(
        "{}, {} requests of {} clients, {} adapters of rank {}, {} threads, {}",
        subject.name,
        args.requests,
        args.parallel,
        args.adapters,
        trained.layout.max_rank(),
        device.threads(),
        device.isa()
    ))?;
    print_table(&ways, &bare)
}

/// A line for each way in which the requests were asked.
fn print_table(ways: &[(&str, &Outcome)], bare: &Outcome) -> anyhow::Result<ExitCode> {
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

/// Asks a server: of its base, and where it has any, of its adapters.
fn run_remote(url: &str, args: &cli::BenchServe) -> anyhow::Result<ExitCode> {
    let config = Subject::open(&args.bench)?.config;
    let remote = Remote::open(url, args.key.as_deref())?;
    let adapters = remote.adapters.len().min(args.adapters as usize);
    let args = &cli::BenchServe { adapters: adapters as u32, ..args.clone() };
    let planned: Vec<Planned> = (0..args.requests as u64).map(|n| plan(n, args, &config)).collect();
    let parallel = args.parallel as usize;
    let base = |_: &Planned| remote.base.clone();
    let of = |planned: &Planned| remote.adapters[planned.adapter].clone();
    // The first requests touch memory for the first time; those of adapters find them cold.
    remote.ask(&planned[..planned.len().min(parallel)], parallel, &base)?;
    let bare = remote.ask(&planned, parallel, &base)?;
    let cold = (adapters > 0).then(|| remote.ask(&planned, parallel, &of)).transpose()?;
    let warm = (adapters > 0).then(|| remote.ask(&planned, parallel, &of)).transpose()?;
    if args.bench.json {
        let facts = json!({
            "url": url, "model": remote.base, "adapters": adapters, "parallel": parallel, "requests": planned.len(),
            "base": bare.json(),
            "with_adapters_first": cold.as_ref().map(Outcome::json),
            "with_adapters": warm.as_ref().map(Outcome::json),
        });
        terminal::print_json(&facts)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (requests, base) = (planned.len(), &remote.base);
    terminal::print_line(format!(
        "{base} at {url}, {requests} requests of {parallel} clients, {adapters} adapters"
    ))?;
    let ways =
        [("base", Some(&bare)), ("adapters, at first", cold.as_ref()), ("adapters, again", warm.as_ref())];
    let ways: Vec<_> = ways.into_iter().filter_map(|(name, of)| Some((name, of?))).collect();
    print_table(&ways, &bare)
}

/// The request of a number: half to three halves of the usual lengths, an adapter by Zipf's law.
fn plan(number: u64, args: &cli::BenchServe, config: &Config) -> Planned {
    let draw = |what, bound| random::below(random::key(SEED, number), what, bound);
    let mixed = |what, usual: u32| (usual as u64 / 2 + draw(what, u64::from(usual) + 1)).max(1) as usize;
    let (prompt, new) = (mixed(0, args.prompt), mixed(1, args.new));
    let weight = |n: u32| 1.0 / f64::from(n + 1);
    let all: f64 = (0..args.adapters).map(weight).sum();
    let mut rest = random::uniform(random::key(SEED, number), 2) * all;
    let adapter = (0..args.adapters).position(|n| {
        rest -= weight(n);
        rest < 0.0
    });
    Planned { prompt: random_tokens(config, number, prompt), new, adapter: adapter.unwrap_or(0) }
}

/// A request as the engine takes it.
fn request(of: &Planned, adapter: Option<Arc<Adapter>>, owner: u64) -> Ask {
    Ask {
        prompt: of.prompt.clone(),
        adapter,
        max_tokens: of.new,
        stop: Vec::new(),
        sampling: Sampling::default(),
        constraint: None,
        logprobs: None,
        prompt_logprobs: None,
        owner,
    }
}

/// Requests in an engine that somebody looks at.
#[derive(Default)]
struct Watched(BTreeMap<RequestId, (Instant, bool)>);

impl Watched {
    fn submit(&mut self, engine: &mut Engine, ask: Ask) {
        let id = engine.submit(ask).expect("requests fit into the engine that was made for them");
        self.0.insert(id, (Instant::now(), false));
    }

    /// One step of the engine. Returns how many requests ended of those that nobody looks at.
    fn step(&mut self, engine: &mut Engine, outcome: &mut Outcome) -> usize {
        let mut others = 0;
        for (id, event) in engine.step() {
            let is_end = matches!(event, Event::End(_) | Event::Failed(_));
            let Some((since, has_begun)) = self.0.get_mut(&id) else {
                others += usize::from(is_end);
                continue;
            };
            if let Event::Token { .. } = event {
                let waited = if *has_begun { &mut outcome.between } else { &mut outcome.first };
                waited.push(since.elapsed());
                (*since, *has_begun) = (Instant::now(), true);
                outcome.new_tokens += 1;
            }
            if is_end {
                self.0.remove(&id);
            }
        }
        others
    }
}

/// Asks all, so many at once.
fn ask(
    engine: &mut Engine,
    planned: &[Planned],
    parallel: usize,
    adapter: &dyn Fn(&Planned) -> Option<Arc<Adapter>>,
) -> Outcome {
    let (begun, mut outcome) = (Instant::now(), Outcome::of(planned));
    let (mut next, mut asked) = (planned.iter(), Watched::default());
    loop {
        while asked.0.len() < parallel
            && let Some(of) = next.next()
        {
            asked.submit(engine, request(of, adapter(of), 0));
        }
        if asked.0.is_empty() {
            outcome.seconds = begun.elapsed().as_secs_f64();
            return outcome;
        }
        asked.step(engine, &mut outcome);
    }
}

/// Asks all, one after the other, beside somebody who always has so many requests waiting or running.
fn ask_beside(
    engine: &mut Engine,
    planned: &[Planned],
    greedy: usize,
    adapter: &dyn Fn(&Planned) -> Option<Arc<Adapter>>,
) -> Outcome {
    let (begun, mut outcome) = (Instant::now(), Outcome::of(planned));
    let (mut theirs, mut others) = (planned.iter().cycle(), 0);
    let mut fill = |engine: &mut Engine, others: &mut usize| {
        while *others < greedy
            && let Some(of) = theirs.next()
        {
            engine.submit(request(of, adapter(of), 1)).expect("it fits as the others do");
            *others += 1;
        }
    };
    fill(engine, &mut others);
    let mut ignored = Outcome::of(&[]);
    for _ in 0..if greedy > 0 { 50 } else { 0 } {
        others -= Watched::default().step(engine, &mut ignored);
        fill(engine, &mut others);
    }
    for of in planned {
        let mut asked = Watched::default();
        asked.submit(engine, request(of, adapter(of), 2));
        while !asked.0.is_empty() {
            others -= asked.step(engine, &mut outcome);
            fill(engine, &mut others);
        }
    }
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome
}
