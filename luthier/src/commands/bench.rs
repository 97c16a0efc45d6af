//! `luthier bench`: measures speed and memory, on a model's own weights or on random ones of a known shape.
//!
//! Training steps are the real loop's, one row of `data.max_length` random tokens each (512 unless set), every token
//! with loss. What counts as useful work is what the arithmetic needs, not what is computed again.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;
use compute::{Device, random};
use data::{Dataset, Example};
use infer::{Generator, Request, Sampling};
use model::names::ModuleId;
use model::{Adapter, Config, Decoder, StoredDType};
use serde_json::{Value, json};
use train::{Job, Saving, StepMetrics, Trainer};

use crate::cli::{self, BenchArgs, Global};
use crate::run_file::{MicroBatch, Purpose, RunFile, Settings};
use crate::setup::{self, Base, Lengths};
use crate::terminal::{self, bytes, count};

/// Steps that are run first and not counted: the first ones touch their memory for the first time.
const WARM_UP: usize = 2;
const STEPS: u32 = 5;
const NEW_TOKENS: u32 = 32;
const PROMPT: usize = 128;
const PREFILL: usize = 512;

pub(super) fn run(args: cli::Bench, global: &Global) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    match args {
        cli::Bench::Train(args) => train(&args, global, begun),
        cli::Bench::Generate(args) => generate(&args, global),
    }
}

/// The model that is measured.
struct Subject {
    name: String,
    config: Config,
    base: Option<Base>,
}

impl Subject {
    fn open(args: &BenchArgs) -> anyhow::Result<Self> {
        if let Some(name) = &args.shape {
            return Ok(Subject { name: name.clone(), config: Config::named(name)?, base: None });
        }
        let base = Base::open(args.model.as_deref().expect("a model or a shape is required"))?;
        Ok(Subject { name: base.name.clone(), config: base.config.clone(), base: Some(base) })
    }

    fn stored(&self) -> Option<StoredDType> {
        self.base.as_ref().and_then(|base| base.stored)
    }

    fn load(&self, device: &Device, run: &RunFile) -> anyhow::Result<Decoder> {
        let precision = run.precision.engine();
        match &self.base {
            Some(base) => base.load(device, precision),
            None => Ok(Decoder::random(&self.config, device, precision, run.training.seed)),
        }
    }
}

/// The settings, with one row of 512 tokens a step unless they say otherwise.
fn settings(args: &BenchArgs) -> anyhow::Result<Settings> {
    let mut settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    if !settings.is_set("data.max_length") {
        settings.run.data.max_length = 512;
    }
    if !settings.is_set("training.batch_size") {
        settings.run.training.batch_size = 1;
    }
    settings.run.data.packing = false;
    settings.run.data.shuffle = false;
    Ok(settings)
}

fn random_tokens(config: &Config, number: u64, len: usize) -> Vec<u32> {
    let token = |i| random::below(random::key(1, number), i, config.vocab_size as u64) as u32;
    (0..len as u64).map(token).collect()
}

/// Floating-point operations of a training step for each token of a row of `length`: 4 for a frozen weight (forward, and
/// gradient of the input), 6 for a trained one, and causal attention, of which half the square is needed.
fn training_flops(config: &Config, trained: usize, length: usize) -> f64 {
    let linear = |m: &model::Module| m.id.is_linear() && m.id != ModuleId::Head;
    let weights: u64 = config.modules().iter().filter(|m| linear(m)).map(|m| (m.rows * m.cols) as u64).sum();
    let head = (config.vocab_size * config.hidden_size) as u64;
    let attention = 3 * 2 * config.q_width() * length * config.layers;
    4.0 * (weights + head) as f64 + 6.0 * trained as f64 + attention as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn train(args: &BenchArgs, global: &Global, begun: Instant) -> anyhow::Result<ExitCode> {
    let settings = settings(args)?;
    let (run, subject) = (&settings.run, Subject::open(args)?);
    let steps = args.steps.unwrap_or(STEPS) as usize;
    let (length, batch) = (run.data.max_length, run.training.batch_size);
    let trained = setup::trained(run, &subject.config, &subject.name)?;
    let lengths = Lengths { longest: length, total: length * batch };
    let (sizes, plan) = setup::fit(run, &subject.config, subject.stored(), &trained, lengths)?;
    let device = global.device()?;
    let decoder = subject.load(&device, run)?;
    let mut adapter = Adapter::zeros(trained.layout.clone(), trained.dropout);
    adapter.initialize(setup::init(run), run.training.seed, &decoder);

    let example = |n: u64| {
        let input_ids = random_tokens(&subject.config, n, length);
        let labels = input_ids.iter().map(|&id| id as i32).collect();
        Example { input_ids, labels, source: data::Source { file: Arc::default(), line: n as usize + 1 } }
    };
    let examples = (0..(WARM_UP + steps) * batch).map(|n| example(n as u64)).collect();
    let (data, folder) = (Dataset::of_examples(examples), Scratch::new()?);
    let stop = AtomicBool::new(false);
    let peft = trained.peft.clone().unwrap_or_default();
    let mut run_settings = settings.run.clone();
    run_settings.training.micro_batch_tokens = MicroBatch::Tokens(sizes.micro_batch_tokens);
    let mut trainer = Trainer::open(Job {
        decoder: &decoder,
        adapter,
        saving: Saving::Adapter(&peft),
        train: &data,
        eval: &[],
        settings: super::train::loop_settings(&run_settings, sizes),
        folder: &folder.0,
        stop: &stop,
    })?;
    let mut measured: Vec<StepMetrics> = Vec::new();
    let mut first_step = 0.0;
    for n in 0..WARM_UP + steps {
        let metrics = trainer.step()?;
        if n == 0 {
            first_step = begun.elapsed().as_secs_f64();
        }
        if n >= WARM_UP {
            measured.push(metrics);
        }
    }
    let seconds = measured.iter().map(|m| m.tokens as f64 / m.tokens_per_second).collect::<Vec<_>>();
    let tokens: u64 = measured.iter().map(|m| m.tokens).sum();
    let tokens_per_second = tokens as f64 / seconds.iter().sum::<f64>();
    let flops = training_flops(&subject.config, trained.layout.len(), length) * tokens_per_second;
    let peak = peak_flops(&device, run);
    let facts = json!({
        "shape": subject.name,
        "precision": run.precision,
        "tokens_per_step": length * batch,
        "steps": steps,
        "tokens_per_second": tokens_per_second,
        "seconds_per_step": median(seconds),
        "peak_memory_bytes": train::peak_memory_bytes(),
        "planned_memory_bytes": plan.total(),
        "flops_per_second": flops,
        "peak_flops_per_second": peak,
        "utilization": flops / peak,
        "start_to_first_step_seconds": first_step,
    });
    tell(
        args,
        &facts,
        &[
            (
                "speed",
                format!(
                    "{} tokens/s, {:.3} s a step of {} tokens",
                    count(tokens_per_second),
                    facts["seconds_per_step"].as_f64().unwrap_or(0.0),
                    length * batch
                ),
            ),
            (
                "work",
                format!(
                    "{:.0} of {:.0} GFLOP/s, {:.0} % of the peak measured in this run",
                    flops / 1e9,
                    peak / 1e9,
                    100.0 * flops / peak
                ),
            ),
            (
                "memory",
                format!("{} at most, {} planned", bytes(train::peak_memory_bytes()), bytes(plan.total())),
            ),
            ("start", format!("{first_step:.2} s to the end of the first step")),
        ],
    )
}

fn generate(args: &BenchArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let settings = settings(args)?;
    let (run, subject) = (&settings.run, Subject::open(args)?);
    let new = args.steps.unwrap_or(NEW_TOKENS) as usize;
    let device = global.device()?;
    let decoder = subject.load(&device, run)?;
    let mut generator = Generator::new(&decoder, None, PREFILL.max(PROMPT + new + 1));
    let mut measure = |number: u64, prompt: usize, max_tokens: usize| {
        let prompt = random_tokens(&subject.config, number, prompt);
        let request = Request { prompt: &prompt, max_tokens, stop: &[], sampling: Sampling::default() };
        generator.generate(request, &mut |_| true)
    };
    measure(0, PROMPT, 4)?;
    let generation = measure(1, PROMPT, new + 1)?;
    let prefill: Result<Vec<f64>, _> = (2..5)
        .map(|n| measure(n, PREFILL, 1).map(|g| PREFILL as f64 / g.prompt_time.as_secs_f64()))
        .collect();
    let (tokens_per_second, prefill) = (generation.tokens_per_second(), median(prefill?));
    let weights = Decoder::base_memory(&subject.config, subject.stored(), run.precision.engine()).total();
    // Of the embedding one row is read, unless the head is tied to it.
    let embedding = (subject.config.vocab_size
        * subject.config.hidden_size
        * run.precision.engine().dtype().size()) as u64;
    let read = if subject.config.tie_word_embeddings { weights } else { weights - embedding };
    let flops = 2.0 * read as f64 / run.precision.engine().dtype().size() as f64 * tokens_per_second;
    let peak = peak_flops(&device, run);
    let facts = json!({
        "shape": subject.name,
        "precision": run.precision,
        "prompt_tokens": PROMPT,
        "new_tokens": generation.tokens.len(),
        "tokens_per_second": tokens_per_second,
        "seconds_per_step": 1.0 / tokens_per_second,
        "prefill_tokens_per_second": prefill,
        "weight_bytes_per_second": read as f64 * tokens_per_second,
        "peak_memory_bytes": train::peak_memory_bytes(),
        "flops_per_second": flops,
        "peak_flops_per_second": peak,
        "utilization": flops / peak,
    });
    tell(
        args,
        &facts,
        &[
            ("decoding", format!("{tokens_per_second:.1} tokens/s at one sequence behind {PROMPT} tokens")),
            ("reading", format!("{}/s of weights", bytes((read as f64 * tokens_per_second) as u64))),
            ("prefill", format!("{} tokens/s for {PREFILL} tokens", count(prefill))),
            ("memory", format!("{} at most", bytes(train::peak_memory_bytes()))),
        ],
    )
}

fn peak_flops(device: &Device, run: &RunFile) -> f64 {
    let Device::Cpu(cpu) = device;
    cpu.peak_flops(run.precision.engine())
}

fn tell(args: &BenchArgs, facts: &Value, lines: &[(&str, String)]) -> anyhow::Result<ExitCode> {
    if args.json {
        terminal::print_json(facts)?;
    } else {
        for (what, line) in lines {
            terminal::print_line(format!("{what:9} {line}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A folder for the loop's files, gone when the measurement is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("luthier-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
