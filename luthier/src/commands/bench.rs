//! `luthier bench`: measures speed and memory, on a model's own weights or on random ones of a known shape.
//!
//! Training steps are the real loop's, one row of `data.max_length` random tokens each (512 unless set),
//! every token with loss. What counts as useful work is what the arithmetic needs, not what is computed
//! again.

mod roofline;
mod serve;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;
use compute::profile::{Key, Total};
use compute::{Device, random};
use data::{Dataset, Example};
use infer::{Generator, Request, Sampling};
use model::adapter::parameters::{Dora, Trained};
use model::memory::Component;
use model::{Adapter, Config, Decoder, Layout, Module, ModuleId, StoredWeights};
use serde_json::{Value, json};
use tempfile::TempDir;
use train::{Demand, Job, Saving, StepMetrics, Trainer};

use crate::cli::{self, BenchArgs, Global};
use crate::error::user;
use crate::run_file::{Offloading, Purpose, RunFile, Settings};
use crate::setup::{self, Base, Inference, Needs};
use crate::terminal::{self, bytes, count};
use roofline::{Peaks, Roofline};

/// Steps that are run first and not counted: the first ones touch their memory for the first time.
const WARM_UP: usize = 2;
const STEPS: u32 = 5;
const NEW_TOKENS: u32 = 32;
/// Tokens of prompts, as far as the model's context has room.
const PROMPT: usize = 128;
const PREFILL: usize = 512;

pub(super) fn run(args: cli::Bench, global: &Global) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    match args {
        cli::Bench::Train(args) => train(&args, global, begun),
        cli::Bench::Generate(args) => generate(&args, global),
        cli::Bench::Serve(args) => serve::run(&args, global),
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

    fn stored(&self) -> Option<&StoredWeights> {
        self.base.as_ref().and_then(|base| base.stored.as_ref())
    }

    fn load(&self, device: &Device, run: &RunFile) -> anyhow::Result<Decoder> {
        let (precision, quantization) = (run.precision.engine(), setup::quantization(run));
        match &self.base {
            Some(base) => base.load(device, precision, quantization),
            None => Ok(Decoder::random(&self.config, device, precision, quantization, run.training.seed)),
        }
    }
}

/// The settings, with one row of 512 tokens a step unless they say otherwise.
fn settings(args: &BenchArgs) -> anyhow::Result<Settings> {
    let mut settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    if !settings.is_set("data.max_length") {
        settings.run.data.max_length = Some(512);
    }
    if !settings.is_set("training.batch_size") {
        settings.run.training.batch_size = Some(1);
    }
    settings.run.data.packing = false;
    settings.run.data.shuffle = false;
    // Every step is measured as one that sees its examples for the first time.
    settings.run.training.frozen_activations = Offloading::Never;
    Ok(settings)
}

fn random_tokens(config: &Config, number: u64, len: usize) -> Vec<u32> {
    let token = |i| random::below(random::key(1, number), i, config.vocab_size as u64) as u32;
    (0..len as u64).map(token).collect()
}

/// Floating-point operations of a training step for each token of a row of `length`: for every linear weight
/// 4 where it is frozen (forward, and the gradient of the input) and 6 where it is trained, of experts those
/// that are chosen; and causal attention forward and backward, which needs half the square of its scores,
/// less with a window.
fn training_flops(config: &Config, trained: &Layout, length: usize) -> f64 {
    let of_module = |m: Module| {
        let weight = m.rows * m.cols;
        let flops = match trained.get(m.id) {
            None => 4 * weight,
            Some(Trained::Full(_)) => 6 * weight,
            Some(Trained::Lora(lora) | Trained::Dora(Dora { lora, .. })) => {
                4 * weight + 6 * lora.rank * (m.rows + m.cols)
            }
        };
        config.part_of_tokens(m.id) * flops as f64
    };
    let is_of_block = |m: &Module| matches!(m.id, ModuleId::Linear { .. } | ModuleId::Expert { .. });
    let blocks = config.modules().into_iter().filter(is_of_block);
    let linear: f64 = blocks.chain([config.module(ModuleId::Head)]).map(of_module).sum();
    let keys = |window: Option<usize>| match window {
        Some(w) if w < length => w as f64 - (w * w) as f64 / (2.0 * length as f64),
        _ => length as f64 / 2.0,
    };
    let of_block = |window| 3.0 * 4.0 * config.q_width() as f64 * keys(window);
    let attention: f64 = config.blocks.iter().map(|block| of_block(block.window)).sum();
    linear + attention
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn train(args: &BenchArgs, global: &Global, begun: Instant) -> anyhow::Result<ExitCode> {
    let settings = settings(args)?;
    let (run, subject) = (&settings.run, Subject::open(args)?);
    setup::check_model(&settings, &subject.config)?;
    let steps = args.steps.unwrap_or(STEPS) as usize;
    let (length, batch) = (setup::max_length(run, None), setup::batch_size(run));
    let trained = setup::trained(run, &subject.config, &subject.name)?;
    let beside = setup::resident_memory();
    let demand = Demand { longest: length, step: length * batch, total: length * batch, compared: 0 };
    let needs = Needs { demand, repeated: Some(0), beside, threads: global.threads() };
    let (sizes, plan) = setup::fit(run, &subject.config, subject.stored(), &trained, needs)?;
    let device = global.device()?;
    let decoder = subject.load(&device, run)?;
    let mut adapter = Adapter::zeros(trained.layout.clone(), trained.dropout, &device);
    adapter.initialize(run.adapter.init.engine(), run.training.seed, &decoder);

    let example = |n: u64| {
        let input_ids = random_tokens(&subject.config, n, length);
        let labels = input_ids.iter().map(|&id| id as i32).collect();
        Example { input_ids, labels, source: data::Source { file: Arc::default(), line: n as usize + 1 } }
    };
    let examples = (0..(WARM_UP + steps) * batch).map(|n| example(n as u64)).collect();
    let data = Dataset::of_examples(examples);
    let folder =
        TempDir::with_prefix("luthier-bench-").context("cannot make a folder for the loop's files")?;
    let stop = AtomicBool::new(false);
    let peft = trained.peft.clone().unwrap_or_default();
    let mut run_settings = settings.run.clone();
    sizes.settle(&mut run_settings);
    let mut trainer = Trainer::open(Job {
        decoder: &decoder,
        adapter,
        saving: Saving::Adapter(&peft),
        train: &data,
        eval: &[],
        settings: super::train::loop_settings(&run_settings, sizes),
        folder: folder.path(),
        stop: &stop,
        forgetting: None,
        pause: None,
    })?;
    let mut measured: Vec<StepMetrics> = Vec::new();
    let mut first_step = 0.0;
    for n in 0..WARM_UP + steps {
        let metrics = trainer.step()?.remove(0);
        if n == 0 {
            first_step = begun.elapsed().as_secs_f64();
        }
        if n >= WARM_UP {
            measured.push(metrics);
        }
        if n + 1 == WARM_UP {
            device.profile().start();
        }
    }
    let (profile, peak_memory) = (device.profile().stop(), train::peak_memory_bytes());
    let seconds = measured.iter().map(|m| m.tokens as f64 / m.tokens_per_second).collect::<Vec<_>>();
    let tokens: u64 = measured.iter().map(|m| m.tokens).sum();
    let all_seconds = seconds.iter().sum::<f64>();
    let tokens_per_second = tokens as f64 / all_seconds;
    let flops = training_flops(&subject.config, &trained.layout, length) * tokens_per_second;
    let peaks = Peaks::measure(&device, run.precision.engine());
    let (peak, roofline) = (peaks.flops, Roofline::new(profile, steps, all_seconds, peaks));
    let facts = json!({
        "shape": subject.name,
        "precision": run.precision,
        "quantization": run.quantization,
        "isa": device.isa(),
        "tokens_per_step": length * batch,
        "steps": steps,
        "tokens_per_second": tokens_per_second,
        "seconds_per_step": median(seconds),
        "peak_memory_bytes": peak_memory,
        "planned_memory_bytes": plan.total(),
        "flops_per_second": flops,
        "peak_flops_per_second": peak,
        "utilization": flops / peak,
        "read_bytes_per_second": peaks.bandwidth,
        "operations": roofline.json(),
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
            ("memory", format!("{} at most, {} planned", bytes(peak_memory), bytes(plan.total()))),
            ("start", format!("{first_step:.2} s to the end of the first step")),
        ],
        &roofline.text("step"),
    )
}

fn generate(args: &BenchArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let settings = settings(args)?;
    let (run, subject) = (&settings.run, Subject::open(args)?);
    let new = args.steps.unwrap_or(NEW_TOKENS) as usize;
    let trained = setup::trained(run, &subject.config, &subject.name)?;
    let inference = Inference {
        config: &subject.config,
        stored: subject.stored(),
        precision: run.precision.engine(),
        quantization: setup::quantization(run),
        threads: global.threads(),
    };
    let need = |inference: Inference<'_>| {
        let context = PREFILL.max(PROMPT + new + 1);
        let mut buffers =
            Generator::memory_plan(&subject.config, &trained.layout, inference.precision, context);
        buffers.add(Component::Adapter, 4 * trained.layout.len() as u64);
        inference.plan(&buffers, context)
    };
    setup::check_memory("generating", &need(inference), run.memory, || {
        let smaller = inference.smaller("--set quantization=nf4", "--set precision=bf16");
        smaller.into_iter().map(|(words, other)| (words, need(other))).collect()
    })?;
    let device = global.device()?;
    let decoder = subject.load(&device, run)?;
    let alone = Generating::measure(&decoder, None, new)?;
    let adapted = match trained.peft {
        None => None,
        Some(_) => {
            let mut adapter = Adapter::zeros(trained.layout, 0.0, &device);
            adapter.initialize(run.adapter.init.engine(), run.training.seed, &decoder);
            Some(Generating::measure(&decoder, Some(&adapter), new)?)
        }
    };
    let peak_memory = train::peak_memory_bytes();
    let (read, multiplied) = weights_of_a_token(&subject.config, &decoder);
    let peaks = Peaks::measure(&device, run.precision.engine());
    let Peaks { flops: peak, bandwidth } = peaks;
    let roofline = |of: &Generating| Roofline::new(of.profile.clone(), new, of.seconds, peaks);
    let flops = 2.0 * multiplied * alone.tokens_per_second;
    let read_per_second = read * alone.tokens_per_second;
    let facts = json!({
        "shape": subject.name,
        "precision": run.precision,
        "quantization": run.quantization,
        "threads": device.threads(),
        "isa": device.isa(),
        "prompt_tokens": alone.prompt,
        "prefill_tokens": alone.prefill,
        "new_tokens": new,
        "tokens_per_second": alone.tokens_per_second,
        "seconds_per_step": alone.seconds_per_token,
        "prefill_tokens_per_second": alone.prefill_tokens_per_second,
        "with_adapter": adapted.as_ref().map(|adapted| json!({
            "tokens_per_second": adapted.tokens_per_second,
            "prefill_tokens_per_second": adapted.prefill_tokens_per_second,
            "operations": roofline(adapted).json(),
        })),
        "weight_bytes_per_token": read as u64,
        "weight_bytes_per_second": read_per_second,
        "read_bytes_per_second": bandwidth,
        "peak_memory_bytes": peak_memory,
        "flops_per_second": flops,
        "peak_flops_per_second": peak,
        "utilization": flops / peak,
        "operations": roofline(&alone).json(),
    });
    let speeds = |of: fn(&Generating) -> f64| match &adapted {
        Some(adapted) => format!("{} tokens/s, {} with an adapter", count(of(&alone)), count(of(adapted))),
        None => format!("{} tokens/s", count(of(&alone))),
    };
    tell(
        args,
        &facts,
        &[
            (
                "decoding",
                format!("{}; one sequence behind {} tokens", speeds(|g| g.tokens_per_second), alone.prompt),
            ),
            ("prefill", format!("{}; {} tokens", speeds(|g| g.prefill_tokens_per_second), alone.prefill)),
            (
                "reading",
                format!(
                    "{:.1} GB/s of weights while decoding; memory gives {:.1} GB/s in this run",
                    read_per_second / 1e9,
                    bandwidth / 1e9
                ),
            ),
            ("memory", format!("{} at most", bytes(peak_memory))),
        ],
        &roofline(&alone).text("token without an adapter"),
    )
}

/// How fast one sequence is continued.
struct Generating {
    tokens_per_second: f64,
    /// The median.
    seconds_per_token: f64,
    prefill_tokens_per_second: f64,
    /// Tokens before the new ones, and of the prompts that were timed alone.
    prompt: usize,
    prefill: usize,
    /// Where the time of the new tokens went, and that time.
    profile: BTreeMap<Key, Total>,
    seconds: f64,
}

impl Generating {
    /// `new` tokens behind a prompt, and prompts alone; each of random tokens, so that none is in the cache.
    fn measure(decoder: &Decoder, adapter: Option<&Adapter>, new: usize) -> anyhow::Result<Self> {
        let context = decoder.config.max_position_embeddings;
        let (prompt, prefill) = (PROMPT.min(context / 4).max(1), PREFILL.min(context));
        if prompt + new + 1 > context {
            let most = context.saturating_sub(prompt + 1);
            return Err(user(format!(
                "--steps {new}: the model's context of {context} tokens has room for {most}"
            )));
        }
        let mut generator = Generator::new(decoder, adapter, prefill.max(prompt + new + 1));
        let mut run = |number: u64, prompt: usize, max_tokens: usize, times: &mut Vec<Instant>| {
            let prompt = random_tokens(&decoder.config, number, prompt);
            let request = Request { prompt: &prompt, max_tokens, stop: &[], sampling: Sampling::default() };
            generator.generate(request, &mut |_| {
                times.push(Instant::now());
                if times.len() == 1 {
                    decoder.device.profile().start();
                }
                true
            })
        };
        run(0, prompt, 2, &mut Vec::new())?;
        let mut times = Vec::new();
        let generation = run(1, prompt, new + 1, &mut times)?;
        let profile = decoder.device.profile().stop();
        let between: Vec<f64> = times.windows(2).map(|t| (t[1] - t[0]).as_secs_f64()).collect();
        let mut speeds = Vec::new();
        for number in 2..5 {
            let seconds = run(number, prefill, 1, &mut Vec::new())?.prompt_time.as_secs_f64();
            speeds.push(prefill as f64 / seconds);
        }
        Ok(Generating {
            tokens_per_second: generation.tokens_per_second(),
            seconds: between.iter().sum(),
            seconds_per_token: median(between),
            prefill_tokens_per_second: median(speeds),
            prompt,
            prefill,
            profile,
        })
    }
}

/// What one token reads and multiplies with, as bytes and as a number: all weights but those of experts that
/// are not chosen, and of tables, of which it reads one row, unless the table is the head too.
fn weights_of_a_token(config: &Config, decoder: &Decoder) -> (f64, f64) {
    let is_read = |m: &Module| match m.id {
        ModuleId::Embedding => config.tie_word_embeddings,
        ModuleId::Positions => false,
        _ => true,
    };
    config.modules().into_iter().filter(is_read).fold((0.0, 0.0), |(bytes, number), m| {
        let (part, size) = (config.part_of_tokens(m.id), decoder.base_weight(m.id).size_bytes());
        (bytes + part * size as f64, number + part * m.parameter_count() as f64)
    })
}

fn tell(args: &BenchArgs, facts: &Value, lines: &[(&str, String)], table: &str) -> anyhow::Result<ExitCode> {
    if args.json {
        terminal::print_json(facts)?;
    } else {
        for (what, line) in lines {
            terminal::print_line(format!("{what:9} {line}"))?;
        }
        terminal::print_line(format!("\n{table}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
