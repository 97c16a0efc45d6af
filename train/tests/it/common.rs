//! Runs over the fixtures that PEFT made, and over a tiny random model.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use compute::{Device, Precision};
use data::{Dataset, Example, OrderSpec, Source};
use model::adapter::init::Init;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::{Adapter, Checkpointing, Config, Decoder, Layout};
use serde_json::Value;
use train::{
    Decay, Event, Forgetting, ForgettingMetrics, Job, OptimizerSettings, Outcome, Rule, Saves, Saving,
    Schedule, Settings, StepMetrics,
};

/// A fixture's folder.
pub(crate) fn fixture(run: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(run)
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Examples of a `tokenized` file.
pub(crate) fn examples(path: &Path) -> Vec<Example> {
    let file = Arc::new(path.to_owned());
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect::<Vec<_>>();
    let example = |(i, line): (usize, &str)| {
        let value: Value = serde_json::from_str(line).unwrap();
        Example {
            input_ids: numbers(&value["input_ids"]).into_iter().map(|n| n as u32).collect(),
            labels: numbers(&value["labels"]).into_iter().map(|n| n as i32).collect(),
            source: Source { file: file.clone(), line: i + 1 },
        }
    };
    std::fs::read_to_string(path).unwrap().lines().enumerate().map(example).collect()
}

/// Plain settings: everything once, in the order of the file.
pub(crate) fn settings() -> Settings {
    Settings {
        optimizer: OptimizerSettings {
            rule: Rule::AdamW { betas: [0.9, 0.999], eps: 1e-8 },
            learning_rate: 0.01,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            lora_plus_ratio: 1.0,
            memory: None,
        },
        schedule: Schedule { decay: Decay::Linear, warmup: Some(0.1) },
        order: OrderSpec { seed: 42, epoch: 0, shuffle: false, packing: false, group: None, max_length: 64 },
        epochs: 1,
        max_steps: None,
        batch_size: 4,
        micro_batch_tokens: 4096,
        checkpointing: Checkpointing::None,
        frozen_activations: None,
        tensorboard: false,
        eval_every: None,
        saves: Saves::Every(Duration::MAX),
        keep_checkpoints: 2,
        early_stopping_patience: None,
        router_aux_loss: 0.0,
        seed: 42,
    }
}

/// The settings that a fixture's `run.json` names.
pub(crate) fn settings_of(run: &Value) -> Settings {
    let number = |section: &str, key: &str| run[section][key].as_f64();
    let optimizer = OptimizerSettings {
        rule: Rule::AdamW {
            betas: [0, 1].map(|i| run["optimizer"]["betas"][i].as_f64().unwrap()),
            eps: number("optimizer", "eps").unwrap(),
        },
        learning_rate: number("optimizer", "learning_rate").unwrap(),
        weight_decay: number("optimizer", "weight_decay").unwrap(),
        max_grad_norm: number("optimizer", "max_grad_norm").unwrap(),
        lora_plus_ratio: number("optimizer", "lora_plus_ratio").unwrap(),
        memory: None,
    };
    let decay = match run["schedule"]["name"].as_str().unwrap() {
        "linear" => Decay::Linear,
        "cosine" => Decay::Cosine,
        _ => Decay::Constant,
    };
    let count = |key: &str| number("training", key).unwrap() as u64;
    Settings {
        optimizer,
        schedule: Schedule { decay, warmup: number("schedule", "warmup") },
        epochs: count("epochs"),
        max_steps: Some(count("max_steps")),
        batch_size: count("batch_size") as usize,
        ..settings()
    }
}

/// A tiny random model.
pub(crate) fn tiny(threads: usize, precision: Precision) -> Decoder {
    let text = r#"{"model_type": "llama", "vocab_size": 67, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "initializer_range": 0.2, "tie_word_embeddings": true, "hidden_act": "silu"}"#;
    let config = Config::from_json(text, "config.json".as_ref()).unwrap();
    Decoder::random(&config, &Device::cpu(threads), precision, None, 7)
}

/// Random examples of unequal lengths and unequal numbers of trained tokens.
pub(crate) fn random_examples(count: u64) -> Vec<Example> {
    use compute::random::{below, key};
    let example = |i: u64| {
        let draw = |n: u64, bound: u64| below(key(3, i), n, bound);
        let length = 3 + draw(0, 30);
        let ids: Vec<u32> = (0..length).map(|n| draw(100 + n, 67) as u32).collect();
        let masked = draw(1, length - 1) as usize;
        let labels =
            ids.iter().enumerate().map(|(n, &id)| if n < masked { -100 } else { id as i32 }).collect();
        Example { input_ids: ids, labels, source: Source { file: Arc::default(), line: i as usize + 1 } }
    };
    (0..count).map(example).collect()
}

/// LoRA on all linear layers of a model.
pub(crate) fn lora(decoder: &Decoder, dropout: f32) -> (Adapter, PeftConfig) {
    lora_of_rank(decoder, dropout, 4)
}

/// LoRA of this rank on all linear layers of a model.
pub(crate) fn lora_of_rank(decoder: &Decoder, dropout: f32, r: usize) -> (Adapter, PeftConfig) {
    let peft = PeftConfig {
        target_modules: Some(Selection::Expression(targets::ALL_LINEAR.to_owned())),
        lora_dropout: f64::from(dropout),
        r,
        ..PeftConfig::default()
    };
    let resolution = targets::resolve(&peft, &decoder.config).unwrap();
    let mut adapter =
        Adapter::zeros(Layout::of_adapter(&resolution, &decoder.config), dropout, &decoder.device);
    adapter.initialize(Init::Default, 1, decoder);
    (adapter, peft)
}

/// What a run told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) steps: Vec<StepMetrics>,
    pub(crate) evaluations: Vec<(u64, f64)>,
    pub(crate) stopped_early: Option<u64>,
    pub(crate) damaged: Vec<PathBuf>,
    pub(crate) unchanged: bool,
    pub(crate) measured: Vec<ForgettingMetrics>,
    pub(crate) forgot: Option<Option<u64>>,
    /// Checkpoints.
    pub(crate) saved: usize,
}

/// Runs LoRA on a model, asking it to stop after `stop_after` steps.
pub(crate) fn run(
    decoder: &Decoder,
    dropout: f32,
    train: &[Example],
    eval: &[Example],
    settings: &Settings,
    folder: &Path,
    stop_after: Option<u64>,
) -> (Outcome, Told) {
    run_adapter(decoder, lora(decoder, dropout), train, eval, settings, folder, stop_after)
}

/// The same with an adapter.
pub(crate) fn run_adapter(
    decoder: &Decoder,
    adapter: (Adapter, PeftConfig),
    train: &[Example],
    eval: &[Example],
    settings: &Settings,
    folder: &Path,
    stop_after: Option<u64>,
) -> (Outcome, Told) {
    let (outcome, told) = try_run(decoder, adapter, train, eval, settings, folder, stop_after);
    (outcome.unwrap(), told)
}

/// The same of a run that may end in an error.
pub(crate) fn try_run(
    decoder: &Decoder,
    adapter: (Adapter, PeftConfig),
    train: &[Example],
    eval: &[Example],
    settings: &Settings,
    folder: &Path,
    stop_after: Option<u64>,
) -> (train::Result<Outcome>, Told) {
    try_run_measured(decoder, adapter, train, (eval, None), settings, folder, stop_after)
}

/// The same of a run of which it is measured what it forgets.
pub(crate) fn try_run_measured(
    decoder: &Decoder,
    (adapter, peft): (Adapter, PeftConfig),
    train: &[Example],
    (eval, forgetting): (&[Example], Option<Forgetting<'_>>),
    settings: &Settings,
    folder: &Path,
    stop_after: Option<u64>,
) -> (train::Result<Outcome>, Told) {
    let (stop, mut told) = (AtomicBool::new(false), Told::default());
    let train = Dataset::of_examples(train.to_vec());
    let saving = Saving::Adapter(&peft);
    let job = Job {
        decoder,
        adapter,
        saving,
        train: &train,
        eval,
        settings: settings.clone(),
        folder,
        stop: &stop,
        forgetting,
        pause: None,
    };
    let outcome = train::train(job, &mut |event| match event {
        Event::Step(step) => {
            told.steps.push(step.clone());
            stop.store(stop_after.is_some_and(|n| step.step >= n), Ordering::Relaxed);
        }
        Event::Evaluated { metrics, .. } => told.evaluations.push((metrics.step, metrics.eval_loss)),
        Event::StoppedEarly { step, .. } => told.stopped_early = Some(step),
        Event::Damaged { path, .. } => told.damaged.push(path.to_owned()),
        Event::Unchanged => told.unchanged = true,
        Event::Measured { metrics, .. } => told.measured.push(metrics.clone()),
        Event::Forgot { step, .. } => told.forgot = Some(step),
        Event::Saved(_) => told.saved += 1,
        Event::Started { .. } | Event::Stopped(_) | Event::NoEffect | Event::Ended(_) => {}
    });
    (outcome, told)
}

/// The bytes of the adapter in a run folder.
pub(crate) fn adapter_bytes(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

/// Makes a checkpoint one of the version before, which had no hashes.
pub(crate) fn without_hashes(checkpoint: &Path) {
    let path = checkpoint.join("state.json");
    let mut state = json(&path);
    state["version"] = 1.into();
    std::fs::write(path, state.to_string()).unwrap();
    std::fs::remove_file(checkpoint.join("SHA256SUMS")).unwrap();
}
