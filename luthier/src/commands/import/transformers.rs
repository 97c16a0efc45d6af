//! What the programs share: settings that end in transformers' `TrainingArguments` or PEFT's `LoraConfig`.

use std::path::Path;

use model::Config;
use model::adapter::peft::targets::{self, DEFAULT_TARGETS};
use serde_json::{Value, json};

use super::translation::Meaning::{Is, Lost, Needless, Read, Refused};
use super::translation::{Table, Translation};

/// `TrainingArguments` of transformers 4 and 5.
pub(super) const TRAINING_ARGUMENTS: &Table = &[
    ("output_dir", Is("output")),
    ("learning_rate", Is("optimizer.learning_rate")),
    ("weight_decay", Is("optimizer.weight_decay")),
    ("adam_epsilon", Is("optimizer.eps")),
    ("max_grad_norm", Is("optimizer.max_grad_norm")),
    ("seed", Is("training.seed")),
    ("save_total_limit", Is("training.keep_checkpoints")),
    ("adam_beta1 adam_beta2 optim adafactor", Read),
    ("lr_scheduler_type warmup_ratio warmup_steps", Read),
    ("num_train_epochs max_steps", Read),
    ("per_device_train_batch_size per_gpu_train_batch_size gradient_accumulation_steps", Read),
    ("eval_strategy evaluation_strategy eval_steps do_eval save_strategy save_steps", Read),
    ("bf16 fp16", Read),
    ("group_by_length train_sampling_strategy", Read),
    (
        "neftune_noise_alpha",
        Lost("noise on the embeddings is not there; adapter.dropout works against overfitting too"),
    ),
    ("label_smoothing_factor", Lost("label smoothing is not there; leave it out")),
    (
        "lr_scheduler_kwargs",
        Lost("schedules have no settings of their own; schedule.name and schedule.warmup are all"),
    ),
    ("optim_args optim_target_modules", Lost("the optimizer has the settings of the section optimizer only")),
    (
        "resume_from_checkpoint",
        Lost("another program's checkpoint cannot be gone on from; adapter.init_from takes an adapter"),
    ),
    (
        "dataloader_drop_last",
        Lost("the last batch of an epoch may be short here; its loss is weighted right"),
    ),
    (
        "auto_find_batch_size",
        Lost("training.micro_batch_tokens: auto does that, and the result does not depend on it"),
    ),
    (
        "load_best_model_at_end",
        Lost("set training.early_stopping_patience: the result is then the best evaluation's"),
    ),
    ("full_determinism data_seed", Needless),
    ("do_train do_predict overwrite_output_dir prediction_loss_only run_name project trackio_*", Needless),
    (
        "per_device_eval_batch_size per_gpu_eval_batch_size eval_accumulation_steps eval_delay eval_on_start",
        Needless,
    ),
    ("eval_do_concat_batches eval_use_gather_object batch_eval_metrics include_for_metrics", Needless),
    ("include_inputs_for_metrics metric_for_best_model greater_is_better label_names past_index", Needless),
    (
        "log_* logging_* report_to disable_tqdm include_tokens_per_second include_num_input_tokens_seen",
        Needless,
    ),
    ("save_safetensors save_on_each_node save_only_model restore_callback_states_from_checkpoint", Needless),
    ("no_cuda use_cpu use_mps_device jit_mode_eval use_ipex enable_jit_checkpoint tf32 _n_gpu", Needless),
    ("bf16_full_eval fp16_full_eval fp16_opt_level half_precision_backend fp16_backend", Needless),
    (
        "local_rank ddp_* tpu_* mp_parameters fsdp fsdp_* tp_size deepspeed accelerator_config parallelism_config",
        Needless,
    ),
    ("dataloader_* remove_unused_columns length_column_name ignore_data_skip skip_memory_metrics", Needless),
    (
        "debug torch_* torchdynamo ray_scope dispatch_batches split_batches use_legacy_prediction_loop",
        Needless,
    ),
    (
        "push_to_hub* hub_* average_tokens_across_devices use_liger_kernel liger_kernel_config use_cache",
        Needless,
    ),
    ("gradient_checkpointing* activation_checkpointing activation_checkpointing_kwargs", Needless),
];

/// PEFT's `adapter_config.json`.
pub(super) const PEFT: &Table = &[
    ("base_model_name_or_path", Is("model")),
    ("r", Is("adapter.r")),
    ("lora_alpha", Is("adapter.alpha")),
    ("lora_dropout", Is("adapter.dropout")),
    ("target_modules", Is("adapter.target_modules")),
    ("use_rslora", Is("adapter.rslora")),
    ("rank_pattern", Is("adapter.rank_pattern")),
    ("alpha_pattern", Is("adapter.alpha_pattern")),
    ("modules_to_save", Is("adapter.modules_to_save")),
    ("init_lora_weights use_dora peft_type task_type bias", Read),
    ("layers_to_transform layers_pattern exclude_modules", Lost(SOME_LAYERS)),
    (
        "trainable_token_indices",
        Lost("single tokens cannot be trained; adapter.modules_to_save: [embed_tokens] trains all"),
    ),
    ("target_parameters", Is("adapter.target_parameters")),
    (
        "loftq_config corda_config eva_config lora_ga_config",
        Lost("adapters begin by adapter.init: default or gaussian only"),
    ),
    ("layer_replication", Refused("layers cannot be repeated here")),
    (
        "alora_invocation_tokens arrow_config use_bdlora velora_config monteclora_config kasa_config",
        Refused("adapters of this kind are not there"),
    ),
    (
        "use_qalora",
        Refused("set adapter.method: qalora, adapter.group_size and adapter.pooling: peft in the new file"),
    ),
    ("lora_bias", Refused("a bias of the adapter cannot be trained here")),
    (
        "fan_in_fan_out inference_mode auto_mapping revision megatron_config megatron_core peft_version",
        Needless,
    ),
    ("ensure_weight_tying qalora_group_size runtime_config num_virtual_tokens token_dim num_*", Needless),
];

/// DoRA is a method of its own here.
pub(super) fn dora(t: &mut Translation<'_>, key: &'static str) {
    if t.is_on(key) {
        t.put("adapter.method", "dora", &[key]);
    }
}

/// How the adapter begins, in PEFT's words.
pub(super) fn init(t: &mut Translation<'_>, key: &'static str) {
    let Some(Value::String(name)) = t.get(key) else { return };
    match name.as_str() {
        "gaussian" | "olora" | "orthogonal" => t.put("adapter.init", name.as_str(), &[key]),
        "pissa" => t.put("adapter.init", "pissa", &[key]),
        // The singular values themselves, not an approximation of them.
        name if name.starts_with("pissa_niter_") => t.put("adapter.init", "pissa", &[key]),
        "loftq" => {
            t.put("adapter.init", "loftq", &[key]);
            t.put("quantization", "nf4", &[key]);
        }
        _ => t.lose(
            key,
            "adapters begin by adapter.init: default, gaussian, pissa, olora, loftq or orthogonal",
        ),
    }
}

pub(super) const SOME_LAYERS: &str =
    "name the modules by a regular expression: adapter.target_modules: '.*layers\\.(2[4-9]|3[01])\\..*_proj'";
pub(super) const EIGHT_BITS: &str = "there is no base in eight bits; it stays as it is stored, or set quantization: nf4, which takes half of that";

/// The rows of an optimizer step: those of a pass, of one device, times the passes.
pub(super) fn batch(t: &mut Translation<'_>, of_pass: &'static str, rows_default: u64) {
    let passes = "gradient_accumulation_steps";
    let count = |key: &str, default: u64| t.number(key).map_or(default, |n| n.max(1.0) as u64);
    let (rows, times) = (count(of_pass, rows_default), count(passes, 1));
    let batch = rows.saturating_mul(times);
    let given: Vec<&str> = [of_pass, passes].into_iter().filter(|key| t.get(key).is_some()).collect();
    match given.first() {
        None => t.default("training.batch_size", batch),
        Some(first) => {
            t.put("training.batch_size", batch, &given);
            let what = format!(
                "with {passes} {times} it is training.batch_size: {batch}, for one device; with more of them multiply it by their \
                 number"
            );
            t.change(first, what);
        }
    }
}

/// Passes over the examples, a whole number here, or the number of steps, which overrides it: epochs that are
/// left open follow it.
pub(super) fn length(t: &mut Translation<'_>, epochs: &'static str, default: u64) {
    if let Some(steps) = t.number("max_steps").filter(|steps| *steps > 0.0) {
        t.put("training.max_steps", steps as u64, &["max_steps"]);
        return;
    }
    match t.number(epochs) {
        None => t.default("training.epochs", default),
        Some(number) => {
            let whole = number.ceil().max(1.0);
            t.put("training.epochs", whole as u64, &[epochs]);
            if whole != number {
                t.change(
                    epochs,
                    format!("epochs are whole here: {whole}; training.max_steps ends the run earlier"),
                );
            }
        }
    }
}

/// Moments of AdamW.
pub(super) fn betas(t: &mut Translation<'_>) {
    if let Some(first) = t.first(&["adam_beta1", "adam_beta2"]) {
        let betas = [t.number("adam_beta1").unwrap_or(0.9), t.number("adam_beta2").unwrap_or(0.999)];
        t.put("optimizer.betas", betas.to_vec(), &[first]);
    }
}

/// Names of optimizers there and here; the rest is not there.
const OPTIMIZERS: [(&str, &str); 5] = [
    (
        "adamw adamw_torch adamw_torch_fused adamw_hf adamw_apex_fused adamw_torch_npu_fused adamw_torch_xla adam",
        "adamw",
    ),
    ("adamw_8bit adamw_bnb_8bit adamw_torch_8bit ao_adamw_8bit", "adamw_8bit"),
    ("paged_adamw paged_adamw_32bit", "paged_adamw"),
    ("paged_adamw_8bit", "paged_adamw_8bit"),
    ("sgd", "sgd"),
];

pub(super) fn optimizer(t: &mut Translation<'_>, key: &'static str) {
    if t.is_on("adafactor") {
        t.lose("adafactor", "Adafactor is not there; the run file takes adamw, which needs more memory");
    }
    let Some(name) = t.text(key) else { return };
    let ours = OPTIMIZERS.iter().find(|(names, _)| names.split(' ').any(|known| known == name));
    match ours {
        Some((_, ours)) => t.put("optimizer.name", *ours, &[key]),
        None if name.contains("lion") => {
            t.put("optimizer.name", "lion", &[key]);
            if name != "lion_32bit" {
                t.change(key, "the moments of lion are in f32 here; optimizer.memory pages them");
            }
        }
        None => t.lose(
            key,
            "this optimizer is not there; the run file takes adamw: look at the learning rate too",
        ),
    }
}

/// The course of the learning rate with its warm-up. `default` is the schedule's name if the file has none.
pub(super) fn schedule(t: &mut Translation<'_>, key: &'static str, default: &'static str) {
    let name = t.text(key).unwrap_or(default);
    let near = match name {
        "linear" | "cosine" => name,
        "constant" | "constant_with_warmup" => "constant",
        "cosine_with_restarts" | "cosine_with_min_lr" | "cosine_warmup_with_min_lr" | "one_cycle" | "rex" => {
            "cosine"
        }
        _ => "linear",
    };
    match t.get(key) {
        None if default == "linear" => {} // ours
        None => t.default("schedule.name", near),
        Some(_) => t.put("schedule.name", near, &[key]),
    }
    if near != name && name != "constant_with_warmup" {
        t.lose(key, format!("the schedules are linear, cosine and constant; the run file takes {near}"));
    }
}

/// The warm-up: steps win over a ratio. `none` is what the program does without either.
pub(super) fn warmup(t: &mut Translation<'_>, schedule: &str, none: Option<f64>) {
    if t.text(schedule) == Some("constant") {
        // transformers' schedule of this name has no warm-up, whatever is set.
        return t.put("schedule.warmup", 0, &[schedule]);
    }
    let set = ["warmup_steps", "warmup_ratio"].into_iter().find(|key| t.number(key).is_some_and(|n| n > 0.0));
    let zero = t.first(&["warmup_steps", "warmup_ratio"]);
    match (set, zero) {
        (Some(key), _) => t.put("schedule.warmup", t.get(key).cloned(), &[key]),
        (None, Some(key)) => t.put("schedule.warmup", 0, &[key]),
        (None, None) => {
            if let Some(none) = none {
                t.default("schedule.warmup", none);
            }
        }
    }
}

/// Steps of examples of similar length, once it is known whether examples are packed.
pub(super) fn grouping(t: &mut Translation<'_>) {
    let key = match t.text("train_sampling_strategy") {
        Some("group_by_length") => "train_sampling_strategy",
        Some("sequential") => return t.put("data.shuffle", false, &["train_sampling_strategy"]),
        _ if t.is_on("group_by_length") => "group_by_length",
        _ => return,
    };
    match t.carried("data.packing") {
        Some(Value::Bool(false)) => t.put("data.group_by_length", true, &[key]),
        _ => t.lose(
            key,
            "packed rows are all of one length; with data.packing: false there is data.group_by_length",
        ),
    }
}

/// What is held out, and when it is looked at. `size` holds out a part, or a number, of the examples; what is
/// in `data.eval` stays.
pub(super) fn evaluation(t: &mut Translation<'_>, size: Option<&'static str>) {
    if let Some(key) = size
        && let Some(part) = t.number(key).filter(|part| *part > 0.0)
    {
        match part < 1.0 {
            true => t.put("data.eval_fraction", part, &[key]),
            false => {
                t.lose(key, "a number of examples; here it is a part of them: set data.eval_fraction to that")
            }
        }
    }
    let evaluates = t.has("data.eval") || t.has("data.eval_fraction");
    let strategy = t.first(&["eval_strategy", "evaluation_strategy"]);
    let named = strategy.and_then(|key| t.text(key));
    match t.number("eval_steps").filter(|steps| *steps > 0.0) {
        Some(_) if !evaluates || named == Some("no") => {}
        Some(steps) if steps >= 1.0 => t.put("training.eval_every", steps as u64, &["eval_steps"]),
        Some(_) => t.lose("eval_steps", "a part of the run; here it is in steps: set training.eval_every"),
        None => {}
    }
    if let Some(key) = strategy.filter(|_| evaluates && named == Some("epoch")) {
        t.lose(key, "evaluations are so many steps apart: set training.eval_every to the steps of an epoch");
    }
    if let Some(patience) = t.get("early_stopping_patience").filter(|_| evaluates) {
        t.put("training.early_stopping_patience", patience.clone(), &["early_stopping_patience"]);
    }
    match t.number("save_steps").filter(|steps| *steps > 0.0) {
        Some(steps) if steps >= 1.0 => t.put("training.save_every", steps as u64, &["save_steps"]),
        Some(_) => t.lose("save_steps", "a part of the run; here it is in steps: set training.save_every"),
        None => {}
    }
}

/// Activations in bf16, unless the file says otherwise.
pub(super) fn precision(t: &mut Translation<'_>) {
    match (t.is_on("fp16"), t.is_off("bf16")) {
        (true, _) => t.change(
            "fp16",
            "there is no fp16 here; precision: bf16 takes as much memory and needs no loss scaling",
        ),
        (false, true) => t.put("precision", "f32", &["bf16"]),
        (false, false) => {}
    }
}

/// Modules by their names, a list or a text with commas; `all` words mean every linear layer.
pub(super) fn targets(t: &mut Translation<'_>, key: &'static str, all: &[&str]) {
    let names: Vec<String> = match t.get(key) {
        Some(Value::String(text)) if all.contains(&text.as_str()) => {
            return t.put("adapter.target_modules", "all-linear", &[key]);
        }
        Some(Value::String(text)) if text.contains(['*', '\\', '(', '|', '^', '$']) => {
            return t.put("adapter.target_modules", text.as_str(), &[key]);
        }
        Some(Value::String(text)) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        Some(Value::Array(items)) => {
            items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    };
    match names.iter().any(|name| all.contains(&name.as_str())) {
        true => t.put("adapter.target_modules", "all-linear", &[key]),
        // As PEFT where experts' parameters are named: then modules are only those that are named, too.
        false if names.is_empty() && t.has("adapter.target_parameters") => {
            t.default("adapter.target_modules", Vec::<String>::new());
        }
        false if names.is_empty() => t.default("adapter.target_modules", default_targets(t)),
        false => t.put("adapter.target_modules", names, &[key]),
    }
}

/// What PEFT trains where nothing is named: by the model's family, where its folder is at hand; else as most
/// have it.
fn default_targets(t: &Translation<'_>) -> Vec<String> {
    let folder = t.carried("model").and_then(Value::as_str).map(Path::new);
    let config = folder.filter(|folder| folder.is_dir()).and_then(|folder| Config::load(folder).ok());
    config.map_or(DEFAULT_TARGETS.map(str::to_owned).to_vec(), |config| targets::default_targets(&config))
}

/// A hub id or a folder, with the revision of the hub.
pub(super) fn model(t: &mut Translation<'_>, key: &'static str, revision: &'static str) {
    let Some(name) = t.text(key) else { return };
    match t.text(revision).filter(|revision| *revision != "main") {
        Some(at) if !Path::new(name).exists() => t.put("model", format!("{name}@{at}"), &[key, revision]),
        _ => t.put("model", name, &[key]),
    }
}

/// A data set as `data.train` names it: a path, or a hub id with its split.
pub(super) fn source(path: &str, split: Option<&str>) -> String {
    let is_name = |split: &&str| split.chars().all(|c| c.is_alphanumeric() || c == '_');
    match split.filter(|split| *split != "train" && is_name(split)) {
        Some(split) if !std::path::Path::new(path).exists() => format!("{path}:{split}"),
        _ => path.to_owned(),
    }
}

/// Writes sources of examples, each with its format if that is known.
pub(super) fn put_sources(t: &mut Translation<'_>, key: &'static str, sources: &[(String, Option<&str>)]) {
    match sources {
        [] => {}
        [(path, format)] => {
            t.put("data.train", path.as_str(), &[key]);
            if let Some(format) = format {
                t.put("data.format", *format, &[key]);
            }
        }
        _ => {
            let source = |(path, format): &(String, Option<&str>)| match format {
                Some(format) => json!({"path": path, "format": format}),
                None => json!(path),
            };
            t.put("data.train", sources.iter().map(source).collect::<Vec<_>>(), &[key]);
        }
    }
}
