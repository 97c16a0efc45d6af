//! `luthier bench serve`: many requests over many adapters at once, through the engine that answers them.
//!
//! So many clients ask without a pause, each its next request when the last one has ended, with adapters by
//! Zipf's law and prompts and answers of mixed lengths. The same requests are asked three times: of the bare
//! base, with all adapters, and of a server that holds one adapter at a time, whose batches end where the adapter
//! changes.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compute::random;
use infer::{Ask, Engine, Event, Extent, RequestId, Sampling, Sums};
use model::{Adapter, Decoder};
use serde_json::{Value, json};

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
    /// What all requests have said.
    answers: Vec<Vec<u32>>,
}

impl Outcome {
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
            "requests_per_second": self.answers.len() as f64 / self.seconds,
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
    let planned: Vec<Planned> = (0..args.requests as u64).map(|n| plan(n, args, &decoder)).collect();
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
        let parts: Vec<_> = parts.map(|part| ask(&mut engine, part, running, &of)).collect();
        Outcome {
            seconds: parts.iter().map(|part| part.seconds).sum(),
            prompt_tokens: parts.iter().map(|part| part.prompt_tokens).sum(),
            new_tokens: parts.iter().map(|part| part.new_tokens).sum(),
            first: parts.iter().flat_map(|part| part.first.clone()).collect(),
            between: parts.iter().flat_map(|part| part.between.clone()).collect(),
            answers: parts.iter().flat_map(|part| part.answers.clone()).collect(),
        }
    });
    let ways =
        [("base", Some(&bare)), ("adapters", mixed.as_ref()), ("one adapter at a time", swapping.as_ref())];
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
            name.to_owned(),
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
fn plan(number: u64, args: &cli::BenchServe, decoder: &Decoder) -> Planned {
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
    Planned { prompt: random_tokens(&decoder.config, number, prompt), new, adapter: adapter.unwrap_or(0) }
}

/// Asks all, so many at once.
fn ask(
    engine: &mut Engine,
    planned: &[Planned],
    parallel: usize,
    adapter: &dyn Fn(&Planned) -> Option<Arc<Adapter>>,
) -> Outcome {
    let begun = Instant::now();
    let mut next = 0;
    let mut asked: BTreeMap<RequestId, (usize, Instant, bool)> = BTreeMap::new();
    let mut outcome = Outcome {
        seconds: 0.0,
        prompt_tokens: planned.iter().map(|of| of.prompt.len()).sum(),
        new_tokens: 0,
        first: Vec::new(),
        between: Vec::new(),
        answers: vec![Vec::new(); planned.len()],
    };
    while next < planned.len() || !asked.is_empty() {
        while next < planned.len() && asked.len() < parallel {
            let of = &planned[next];
            let ask = Ask {
                prompt: of.prompt.clone(),
                adapter: adapter(of),
                max_tokens: of.new,
                stop: Vec::new(),
                sampling: Sampling::default(),
                constraint: None,
                logprobs: None,
                prompt_logprobs: None,
                owner: 0,
            };
            let id = engine.submit(ask).expect("requests fit into the engine that was made for them");
            asked.insert(id, (next, Instant::now(), false));
            next += 1;
        }
        for (id, event) in engine.step() {
            match event {
                Event::Token { token, .. } => {
                    let (number, since, has_begun) = asked.get_mut(&id).expect("it was asked");
                    let waited = if *has_begun { &mut outcome.between } else { &mut outcome.first };
                    waited.push(since.elapsed());
                    (*since, *has_begun) = (Instant::now(), true);
                    outcome.answers[*number].push(token);
                    outcome.new_tokens += 1;
                }
                Event::End(_) | Event::Failed(_) => drop(asked.remove(&id)),
                Event::Prompt { .. } => {}
            }
        }
    }
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome
}
