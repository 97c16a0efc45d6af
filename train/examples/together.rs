//! Adapters trained together beside one after the other: throughput in tokens per second, by turns in one
//! run.
//!
//! ```text
//! cargo run --release -p luthier-train --example together -- [--shape small] [--adapters 8] [--steps 10]
//!     [--tokens 64,512] [--precision bf16] [--room 1024] [--threads N]
//! ```
//!
//! `--tokens`: of each adapter a step. `--room`: tokens that pass at once, of all adapters.

use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use compute::{Device, Precision};
use data::{Dataset, Example, OrderSpec, Source};
use model::adapter::init::Init;
use model::adapter::peft::{PeftConfig, Selection, targets};
use model::{Adapter, Checkpointing, Config, Decoder, Layout};
use train::{
    Decay, Job, OptimizerSettings, Rule, Saves, Saving, Schedule, Settings, Together, Trainer,
    peak_memory_bytes,
};

/// Steps that are not measured.
const WARM_UP: usize = 2;
/// The rank of all adapters.
const RANK: usize = 16;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let get = |name: &str, usual: &str| {
        let place = args.iter().position(|arg| arg == name);
        place.and_then(|place| args.get(place + 1)).cloned().unwrap_or_else(|| usual.to_owned())
    };
    let number = |name: &str, text: &str| -> usize {
        text.parse().unwrap_or_else(|_| {
            eprintln!("{name} {text}: expected a number");
            exit(2)
        })
    };
    let count = |name: &str, usual: usize| number(name, &get(name, &usual.to_string()));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let (adapters, steps, room) = (count("--adapters", 8), count("--steps", 10), count("--room", 1024));
    let precision = if get("--precision", "bf16") == "f32" { Precision::F32 } else { Precision::Bf16 };
    let config = Config::named(&get("--shape", "small")).unwrap_or_else(|error| {
        eprintln!("{error}");
        exit(2)
    });
    let device = Device::cpu(count("--threads", cores));
    let decoder = Decoder::random(&config, &device, precision, None, 1);
    for tokens in get("--tokens", "64,512").split(',') {
        let tokens = number("--tokens", tokens);
        let bench = Bench { decoder: &decoder, adapters, steps, tokens, room };
        let (together, alone) = bench.measure();
        println!(
            "{tokens:5} tokens: {together:8.1} tokens/s together, {alone:8.1} one after the other, {:.2} times",
            together / alone
        );
    }
    println!("{:.1} MiB held at most", peak_memory_bytes() as f64 / f64::from(1 << 20));
}

/// What is measured.
struct Bench<'a> {
    decoder: &'a Decoder,
    adapters: usize,
    steps: usize,
    /// Of each adapter a step.
    tokens: usize,
    room: usize,
}

impl Bench<'_> {
    /// Median throughputs, together and one after the other.
    fn measure(&self) -> (f64, f64) {
        let peft = PeftConfig {
            target_modules: Some(Selection::Expression(targets::ALL_LINEAR.to_owned())),
            r: RANK,
            ..PeftConfig::default()
        };
        let data: Vec<Dataset> = (0..self.adapters as u64).map(|n| self.examples(n)).collect();
        let (folders, stop) = (tempfile::tempdir().expect("a folder for files"), AtomicBool::new(false));
        let path = |kind: &str, n: usize| folders.path().join(format!("{kind}-{n}"));
        let paths = |kind: &str| (0..self.adapters).map(|n| path(kind, n)).collect::<Vec<PathBuf>>();
        let [with, without] = ["together", "alone"].map(paths);
        let places = (0..self.adapters).cycle();
        let job = |(n, folder): (usize, _)| self.job(n, &peft, &data[n], folder, &stop);
        let mut jobs: Vec<Job<'_>> =
            places.zip(with.iter().chain(&without).map(|p| p.as_path())).map(job).collect();
        let one_by_one = jobs.split_off(self.adapters);
        let buffers = Together { tokens: self.room, checkpointing: Checkpointing::None };
        let mut together = Trainer::open_all(jobs, buffers).expect("the runs begin");
        let open = |job| Trainer::open(job).expect("the run begins");
        let mut alone: Vec<Trainer<'_>> = one_by_one.into_iter().map(open).collect();
        let (mut times, mut others) = (Vec::new(), Vec::new());
        for step in 0..WARM_UP + self.steps {
            let begun = Instant::now();
            together.step().expect("a step");
            let first = begun.elapsed();
            alone.iter_mut().for_each(|trainer| drop(trainer.step().expect("a step")));
            if step >= WARM_UP {
                times.push(first);
                others.push(begun.elapsed() - first);
            }
        }
        (self.throughput(times), self.throughput(others))
    }

    fn throughput(&self, mut times: Vec<Duration>) -> f64 {
        times.sort_unstable();
        (self.adapters * self.tokens) as f64 / times[times.len() / 2].as_secs_f64()
    }

    /// An example a step, of random tokens.
    fn examples(&self, run: u64) -> Dataset {
        let vocabulary = self.decoder.config.vocab_size as u64;
        let example = |n: u64| {
            let key = compute::random::key(run, n);
            let token = |i: usize| compute::random::below(key, i as u64, vocabulary) as u32;
            let input_ids: Vec<u32> = (0..self.tokens).map(token).collect();
            let labels = input_ids.iter().map(|&id| id as i32).collect();
            Example { input_ids, labels, source: Source { file: Arc::default(), line: n as usize + 1 } }
        };
        Dataset::of_examples((0..(WARM_UP + self.steps) as u64).map(example).collect())
    }

    fn job<'j>(
        &'j self,
        n: usize,
        peft: &'j PeftConfig,
        train: &'j Dataset,
        folder: &'j Path,
        stop: &'j AtomicBool,
    ) -> Job<'j> {
        let resolution = targets::resolve(peft, &self.decoder.config).expect("layers to train");
        let layout = Layout::of_adapter(&resolution, &self.decoder.config);
        let mut adapter = Adapter::zeros(layout, 0.0, &self.decoder.device);
        adapter.initialize(Init::Default, n as u64, self.decoder);
        let settings = Settings {
            optimizer: OptimizerSettings {
                rule: Rule::AdamW { betas: [0.9, 0.999], eps: 1e-8 },
                learning_rate: 1e-4,
                weight_decay: 0.0,
                max_grad_norm: 1.0,
                lora_plus_ratio: 1.0,
                memory: None,
            },
            schedule: Schedule { decay: Decay::Constant, warmup: Some(0.0) },
            order: OrderSpec {
                seed: 1,
                epoch: 0,
                shuffle: false,
                packing: false,
                group: None,
                max_length: self.tokens,
            },
            epochs: 1,
            max_steps: None,
            batch_size: 1,
            micro_batch_tokens: self.tokens,
            checkpointing: Checkpointing::None,
            frozen_activations: None,
            tensorboard: false,
            eval_every: None,
            saves: Saves::Every(Duration::MAX),
            keep_checkpoints: 1,
            early_stopping_patience: None,
            router_aux_loss: 0.0,
            seed: 1,
        };
        let saving = Saving::Adapter(peft);
        Job {
            decoder: self.decoder,
            adapter,
            saving,
            train,
            eval: &[],
            settings,
            folder,
            stop,
            forgetting: None,
            pause: None,
        }
    }
}
