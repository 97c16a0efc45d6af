//! `luthier inspect`: tells what a folder holds, in one screen: a model, an adapter, or a run; or a GGUF
//! file.

mod gguf;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use compute::ops::rope::RopeScaling;
use compute::quant::Format;
use compute::quant::blocks::GROUP;
use data::{ChatTemplate, Tokenizer};
use model::adapter::peft::folder::AdapterFiles;
use model::adapter::peft::{self, CONFIG_FILE, Selection, Update};
use model::config::{Mlp, NormKind, Norms, Positions, Span};
use model::gguf::Gguf;
use model::{Checkpoint, Config, ModelFolder};
use serde_json::{Map, Value, json};
use train::History;

use crate::cli::{self, Global};
use crate::error::user;
use crate::hub;
use crate::run_file::{AdapterSection, Method, RunFile, Settings};
use crate::run_folder;
use crate::terminal;

pub(super) fn run(args: cli::Inspect, _global: &Global) -> anyhow::Result<ExitCode> {
    let path = Path::new(&args.path);
    let facts = if Gguf::is_named_so(path) {
        gguf::of_file(path)?
    } else if path.is_file() {
        let message = "is a file; name a GGUF file, or the folder of a model, an adapter or a run";
        return Err(user(format!("{} {message}", args.path)));
    } else if path.join(run_folder::SETTINGS).is_file() {
        of_run(path)?
    } else if path.join(CONFIG_FILE).is_file() {
        of_adapter(path)?
    } else {
        of_model(&hub::resolve_model(&args.path)?)?
    };
    match args.json {
        true => terminal::print_json(&facts)?,
        false => terminal::print(&text(&facts))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One line a fact; a fact of facts is indented below its name.
fn text(facts: &Map<String, Value>) -> String {
    /// Names of modules, patterns and types below a fact stand as they are in the model.
    const AS_IS: [&str; 4] = ["rank_pattern", "alpha_pattern", "arithmetic", "weights"];
    fn lines(facts: &Map<String, Value>, indent: usize, as_is: bool, to: &mut String) {
        let width = facts.keys().map(String::len).max().unwrap_or(0);
        for (name, value) in facts {
            let shown = match value {
                Value::Null => "none".to_owned(),
                Value::String(text) => terminal::one_line(text),
                Value::Object(_) => String::new(),
                Value::Array(items) => {
                    let item = |v: &Value| v.as_str().map_or_else(|| v.to_string(), terminal::one_line);
                    items.iter().map(item).collect::<Vec<_>>().join(", ")
                }
                other => other.to_string(),
            };
            let told = if as_is { terminal::one_line(name) } else { name.replace('_', " ") };
            to.push_str(format!("{:indent$}{told:width$}  {shown}", "").trim_end());
            to.push('\n');
            if let Value::Object(inner) = value {
                lines(inner, indent + 2, AS_IS.contains(&name.as_str()), to);
            }
        }
    }
    let mut to = String::new();
    lines(facts, 0, false, &mut to);
    to
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("facts are an object, not {other}"),
    }
}

fn of_model(folder: &Path) -> anyhow::Result<Map<String, Value>> {
    let ModelFolder { config, checkpoint, .. } = ModelFolder::open(folder)?;
    let (stored, quantization) = match checkpoint {
        Some(checkpoint) => {
            checkpoint.check(&config)?;
            (checkpoint.main_dtype().map(|d| d.torch_name()), quantization(&checkpoint, &config)?)
        }
        // A configuration alone is told, too.
        None => (None, json!(config.quantization.map(Format::name))),
    };
    let windows: Vec<usize> = config.blocks.iter().filter_map(|block| block.window).collect();
    let rope = config.ropes.first();
    let mut facts = object(json!({
        "kind": "model",
        "family": config.family.model_type(),
        "parameters": config.parameter_count(),
        "weights": stored,
        "quantization": quantization,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attention_heads": config.heads,
        "key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocab_size,
        "tied_head": config.tie_word_embeddings,
        "context": config.max_position_embeddings,
        "sliding_window": windows.first(),
        "layers_with_window": windows.len(),
        "rope_theta": rope.map(|rope| rope.theta),
        "rope_scaling": rope.and_then(|rope| scaling_words(&rope.scaling)),
    }));
    facts.extend(departures(&config));
    facts.insert("tokenizer".into(), tokenizer(folder));
    Ok(facts)
}

/// How frequencies are scaled, in words. LongRoPE's lists of factors fill a screen.
fn scaling_words(scaling: &RopeScaling) -> Option<String> {
    match scaling {
        RopeScaling::None => None,
        RopeScaling::LongRope { factor, original_max_position_embeddings: original, .. } => {
            Some(format!("LongRope {{ factor: {factor:?}, original_max_position_embeddings: {original} }}"))
        }
        scaling => Some(format!("{scaling:?}")),
    }
}

/// Where the model departs from a Llama; nothing is said of what does not.
fn departures(config: &Config) -> Map<String, Value> {
    let experts = config.experts.map(|experts| {
        json!({
            "count": experts.count,
            "for_each_token": experts.per_token,
            "intermediate_size": experts.inner,
            "layers": config.blocks.iter().filter(|block| block.mlp == Mlp::Experts).count(),
            "active_parameters": config.active_parameter_count(),
        })
    });
    let local = config.ropes.get(1);
    let turned = config.ropes.first().map(|rope| rope.dims).filter(|&dims| dims < config.head_dim);
    let unturned = config.blocks.iter().filter(|block| block.rope.is_none()).count();
    let learned = config.positions == Positions::Learned;
    let norm = match config.norm {
        NormKind::Rms => None,
        NormKind::RmsPlusOne => Some("RMS, times one plus the weight"),
        NormKind::Layer => Some("layer norm"),
    };
    let norms = match config.norms {
        Norms { behind: false, .. } => None,
        Norms { before: true, .. } => Some("before and behind attention and MLP"),
        Norms { before: false, .. } => Some("behind attention and MLP"),
    };
    let qk_norm = config.qk_norm.map(|norm| {
        let span = if norm.span == Span::Head { "each head" } else { "all heads together" };
        format!("{span}{}", if norm.behind_rope { ", behind the rotary embedding" } else { "" })
    });
    // As the file has it, not as the nearest f32 is in f64.
    let rounded = |number: f32| json!((f64::from(number) * 1e6).round() / 1e6);
    let scale = |scale: f32, usual: f32| (scale != usual).then(|| rounded(scale));
    let facts = [
        ("experts", experts),
        ("rope_theta_with_window", local.map(|rope| json!(rope.theta))),
        ("rope_scaling_with_window", local.map(|rope| json!(scaling_words(&rope.scaling)))),
        ("rotated_dimensions", turned.map(|dims| json!(dims))),
        ("layers_without_rope", (unturned > 0 && !learned).then(|| json!(unturned))),
        ("positions", learned.then(|| json!("learned"))),
        ("queries_grow_every", config.query_growth.map(|growth| json!(growth.original))),
        ("norm", norm.map(|words| json!(words))),
        ("norms", norms.map(|words| json!(words))),
        ("norms_of_queries_and_keys", qk_norm.map(|words| json!(words))),
        ("attention_and_mlp", config.parallel_residual.then(|| json!("side by side"))),
        ("attention_scale", scale(config.attention_scale, (config.head_dim as f32).powf(-0.5))),
        ("attention_cap", config.attention_cap.map(rounded)),
        ("embedding_scale", scale(config.embedding_scale, 1.0)),
        ("residual_scale", scale(config.residual_scale, 1.0)),
        ("logits_scale", scale(config.logits_scale, 1.0)),
        ("logits_cap", config.logits_cap.map(rounded)),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Which weights are in four bits, and how many bits a parameter then takes, scales included.
fn quantization(checkpoint: &Checkpoint, config: &Config) -> anyhow::Result<Value> {
    let (mut parameters, mut bytes, mut left_out) = (0, 0, 0);
    let mut formats: Vec<Format> = Vec::new();
    for parameter in config.parameters().iter().filter(|parameter| parameter.is_quantizable()) {
        let Some((format, size)) = checkpoint.quantized(parameter, config)? else {
            left_out += 1;
            continue;
        };
        parameters += (parameter.rows * parameter.cols) as u64;
        bytes += size;
        if !formats.contains(&format) {
            formats.push(format);
        }
    }
    if formats.is_empty() {
        return Ok(Value::Null);
    }
    let block_size = |format: &Format| match format {
        Format::Codebook(format) => format.block_size,
        Format::Blocks(_) => GROUP,
    };
    let is_double = |format: &Format| matches!(format, Format::Codebook(format) if format.double_quant);
    let mut names: Vec<&str> = formats.iter().map(|format| format.name()).collect();
    names.dedup();
    let mut block_sizes: Vec<usize> = formats.iter().map(block_size).collect();
    block_sizes.sort_unstable();
    block_sizes.dedup();
    Ok(json!({
        "type": names.join(", "),
        "block_size": if let [size] = block_sizes[..] { json!(size) } else { json!(block_sizes) },
        "double_quant": formats.iter().all(is_double),
        "parameters": parameters,
        "bits_per_parameter": (8e3 * bytes as f64 / parameters as f64).round() / 1e3,
        "linear_layers_left_out": left_out,
    }))
}

fn tokenizer(folder: &Path) -> Value {
    let tokenizer = match Tokenizer::load(folder) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return json!(error.to_string()),
    };
    let name = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
    let template = match ChatTemplate::resolve(None, &tokenizer) {
        Ok(None) => "none: give one by data.chat_template to train on conversations".to_owned(),
        Ok(Some(template)) if template.has_generation() => {
            "yes, and it marks what the assistant says".to_owned()
        }
        Ok(Some(_)) => "yes; what the assistant says is found by comparing renderings".to_owned(),
        Err(error) => error.to_string(),
    };
    json!({
        "vocabulary": tokenizer.vocab_size(),
        "begin_of_text": name(tokenizer.bos()),
        "end_of_text": name(tokenizer.eos()),
        "padding": name(tokenizer.pad()),
        "stops_at": tokenizer.ends().iter().filter_map(|&id| tokenizer.id_to_token(id)).collect::<Vec<_>>(),
        "chat_template": template,
    })
}

fn of_adapter(folder: &Path) -> anyhow::Result<Map<String, Value>> {
    let files = AdapterFiles::open(folder)?;
    let (form, AdapterFiles { config, tensors, .. }) = (files.written_by(), files);
    let updates = peft::updates(&config, &tensors)?;
    let mut parameters = 0;
    let (mut squares_a, mut squares_b, mut idle) = (0.0, 0.0, 0);
    let (mut whole, mut unnamed) = (Vec::new(), Vec::new());
    for name in tensors.keys() {
        let shape = tensors.shape(name).expect("a key of this file");
        parameters += shape.iter().product::<usize>();
        if let Some(path) = peft::whole_module(name) {
            let named = config.modules_to_save.iter().any(|module| path.ends_with(module.as_str()));
            let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
            if named { &mut whole } else { &mut unnamed }.push(format!("{path} ({})", sizes.join(" x ")));
        }
        let (rows, cols) = match shape[..] {
            [rows, cols] => (rows, cols),
            [cols] => (1, cols),
            _ => continue,
        };
        let mut values = compute::Matrix::zeros(rows, cols, compute::DType::F32);
        tensors.read_into(name, values.as_mut())?;
        let squares: f64 = values.as_ref().f32().iter().map(|&v| f64::from(v).powi(2)).sum();
        if name.ends_with(".lora_A.weight") {
            squares_a += squares;
        } else if name.ends_with(".lora_B.weight") {
            squares_b += squares;
            idle += usize::from(squares == 0.0);
        }
    }
    let targets = match &config.target_modules {
        None => json!("PEFT's default for the family"),
        Some(Selection::Expression(expression)) => json!(expression),
        Some(Selection::List(names)) => json!(names),
    };
    let effect = match (updates.len(), idle) {
        (0, _) => "no low-rank update".to_owned(),
        (all, idle) if all == idle && whole.is_empty() && unnamed.is_empty() => {
            "none: every B is zero, so the adapter changes nothing".to_owned()
        }
        (all, idle) if all == idle => {
            "every B is zero: only what is held whole can change the model".to_owned()
        }
        (all, 0) => format!("all {all} updates change the model"),
        (all, idle) => format!("{idle} of {all} updates have a B of zeros and change nothing"),
    };
    let patterns = |p: Vec<(String, Value)>| Value::Object(p.into_iter().collect());
    let mut facts = object(json!({
        "kind": "adapter",
        "form": form,
        "base": config.base_model_name_or_path,
        "parameters": parameters,
        "r": config.r,
        "alpha": config.lora_alpha,
        "scale": model::adapter::peft::scaling(config.r, config.lora_alpha, config.use_rslora),
        "rslora": config.use_rslora,
        "dora": config.use_dora,
        "dropout": config.lora_dropout,
        "target_modules": targets,
        "target_parameters": config.target_parameters,
        "rank_pattern": patterns(config.rank_pattern.into_iter().map(|(k, v)| (k, json!(v))).collect()),
        "alpha_pattern": patterns(config.alpha_pattern.into_iter().map(|(k, v)| (k, json!(v))).collect()),
        "modules_to_save": config.modules_to_save,
        "updates": updates.len(),
        "arithmetic": arithmetic(&updates),
        "norm_of_a": squares_a.sqrt(),
        "norm_of_b": squares_b.sqrt(),
        "effect": effect,
    }));
    if !whole.is_empty() {
        facts.insert("trained_whole".into(), json!(whole));
    }
    if !unnamed.is_empty() {
        // Only a comparison with the base tells whether they differ.
        facts.insert("in_place_of_the_base".into(), json!(unnamed));
    }
    Ok(facts)
}

/// For each kind of module how many values are trained in place of how many.
fn arithmetic(updates: &[Update]) -> Map<String, Value> {
    let mut kinds: BTreeMap<(String, usize, usize, usize, usize), usize> = BTreeMap::new();
    for Update { module, rank, experts, outer, inner } in updates {
        let is_number = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
        let path: Vec<&str> = module.split('.').collect();
        let after_layer = path.iter().rposition(is_number).map_or(0, |at| at + 1);
        *kinds.entry((path[after_layer..].join("."), *experts, *outer, *inner, *rank)).or_default() += 1;
    }
    let line = |((name, experts, outer, inner, rank), number): ((String, _, usize, usize, usize), usize)| {
        let number = number * experts;
        let (all, trained) = (outer as f64 * inner as f64, rank as f64 * (outer as f64 + inner as f64));
        let times = terminal::times_fewer(all, trained);
        let text = format!(
            "{number} of {outer} x {inner} at r = {rank}: {trained} values each instead of {all}, {times}"
        );
        (name, Value::from(text))
    };
    let mut facts = Map::new();
    for (name, text) in kinds.into_iter().map(line) {
        // Modules of one name may differ in rank.
        let name = if facts.contains_key(&name) { format!("{name} ({})", facts.len()) } else { name };
        facts.insert(name, text);
    }
    facts
}

fn of_run(folder: &Path) -> anyhow::Result<Map<String, Value>> {
    let run = Settings::resolve(Some(&folder.join(run_folder::SETTINGS)), Vec::new())?.run;
    let history = History::read(folder)?;
    let (first, last) = (history.steps.first(), history.steps.last());
    let held_out: Vec<f64> = history.evaluations.iter().map(|evaluation| evaluation.eval_loss).collect();
    let checkpoints = fs::read_dir(folder.join("checkpoints")).into_iter().flatten().flatten();
    let mut checkpoints: Vec<String> = checkpoints
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("step-") || name == "best")
        .collect();
    checkpoints.sort();
    let full = run.adapter.method == Method::Full;
    let finished = folder.join(if full { "config.json" } else { CONFIG_FILE }).is_file();
    let mut facts = object(json!({
        "kind": "run",
        "model": run.model,
        "trains": trains(&run.adapter),
        "finished": finished,
        "steps": history.steps.len(),
        "epochs": last.map(|step| step.epoch),
        "tokens": history.steps.iter().map(|step| step.tokens).sum::<u64>(),
        "first_loss": first.map(|step| step.loss),
        "last_loss": last.map(|step| step.loss),
        "held_out_losses": held_out,
        "tokens_per_second": last.map(|step| step.tokens_per_second),
        "checkpoints": checkpoints,
        "settings": settings(&run),
    }));
    match (finished, full) {
        (true, true) => {
            facts.insert("result".into(), Value::Object(of_model(folder)?));
        }
        (true, false) => {
            facts.insert("adapter".into(), Value::Object(of_adapter(folder)?));
        }
        (false, _) => {
            facts.insert("to_go_on".into(), json!(run_folder::resume_command(folder)));
        }
    }
    Ok(facts)
}

/// What a run trains, in words.
fn trains(adapter: &AdapterSection) -> String {
    match adapter.method {
        Method::Full => "all weights: the result is a model".to_owned(),
        _ => format!("an adapter of rank {} with alpha {}", adapter.r, adapter.alpha),
    }
}

/// The settings that say how a run went.
fn settings(run: &RunFile) -> Value {
    json!({
        "precision": run.precision,
        "quantization": run.quantization,
        "max_length": run.data.max_length,
        "optimizer": run.optimizer.name,
        "learning_rate": run.optimizer.learning_rate,
        "schedule": run.schedule.name,
        "epochs": run.training.epochs,
        "max_steps": run.training.max_steps,
        "batch_size": run.training.batch_size,
        "seed": run.training.seed,
    })
}
