//! TRL's configuration for `trl sft` (`SFTConfig`, `ModelConfig`, `ScriptArguments`), training arguments that
//! transformers saved, and PEFT's `adapter_config.json`. Keys and defaults are those of `trl/trainer` and
//! `trl/scripts` in huggingface/trl.

use serde_json::{Value, json};

use super::transformers::{self, EIGHT_BITS, PEFT, TRAINING_ARGUMENTS};
use super::translation::Meaning::{Is, Lost, Needless, Read, Refused};
use super::translation::{Table, Translation};
use crate::error::user;

const PREFERENCES: &str =
    "learning from preferences or rewards is not there; `luthier train` learns from examples (`trl sft`)";

pub(super) const KEYS: &Table = &[
    ("lora_r", Is("adapter.r")),
    ("lora_alpha", Is("adapter.alpha")),
    ("lora_dropout", Is("adapter.dropout")),
    ("lora_modules_to_save", Is("adapter.modules_to_save")),
    ("use_rslora", Is("adapter.rslora")),
    ("model_name_or_path model_revision dtype torch_dtype", Read),
    ("use_peft lora_target_modules load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant", Read),
    ("dataset_name datasets dataset_train_split dataset_test_split", Read),
    (
        "chat_template_path max_length max_seq_length packing packing_strategy assistant_only_loss completion_only_loss",
        Read,
    ),
    ("load_in_8bit", Lost(EIGHT_BITS)),
    ("use_dora", Read),
    ("lora_target_parameters", Is("adapter.target_parameters")),
    ("dataset_config", Lost("configurations of a data set are not there; name a file of it")),
    ("test_split_size", Lost("set data.eval_fraction to the part that is held out")),
    ("model_init_kwargs dataset_kwargs", Lost("settings of Python's loaders are not there")),
    ("loss_type", Lost("the loss is cross-entropy; leave it out")),
    (
        "eos_token",
        Lost(
            "the end of a turn is the chat template's, the end of a text the tokenizer's: change tokenizer_config.json",
        ),
    ),
    ("router_aux_loss_coef", Is("training.router_aux_loss")),
    (
        "beta reward_model_path num_generations max_prompt_length max_completion_length ref_model_* reward_* vllm_mode",
        Refused(PREFERENCES),
    ),
    (
        "dataset_text_field dataset_num_proc dataset_batch_size dataset_streaming streaming truncation_mode",
        Needless,
    ),
    (
        "padding_free pad_to_multiple_of pad_token eval_packing activation_offloading shuffle_dataset columns",
        Needless,
    ),
    (
        "num_of_sequences chars_per_token config env skip_memory_metrics use_flash_attention_2 attn_implementation",
        Needless,
    ),
    (
        "trust_remote_code lora_task_type bnb_4bit_quant_storage bnb_4bit_compute_dtype ignore_bias_buffers",
        Needless,
    ),
];

pub(super) fn translate(t: &mut Translation<'_>) -> anyhow::Result<()> {
    if t.get("peft_type").is_some() {
        return adapter_config(t);
    }
    t.apply(&[KEYS, TRAINING_ARGUMENTS])?;
    transformers::model(t, "model_name_or_path", "model_revision");
    data(t);
    adapter(t);
    transformers::batch(t, "per_device_train_batch_size", 8);
    transformers::length(t, "num_train_epochs", 3);
    transformers::betas(t);
    transformers::optimizer(t, "optim");
    transformers::schedule(t, "lr_scheduler_type", "linear");
    transformers::warmup(t, "lr_scheduler_type", Some(0.0));
    transformers::evaluation(t, None);
    transformers::precision(t);
    t.default("optimizer.learning_rate", 2e-5);
    Ok(())
}

fn data(t: &mut Translation<'_>) {
    let split = t.text("dataset_train_split");
    if let Some(name) = t.text("dataset_name") {
        t.put("data.train", transformers::source(name, split), &["dataset_name"]);
        // The test split is evaluated on only where that is asked for.
        let evaluates = t.first(&["eval_strategy", "evaluation_strategy"]).and_then(|key| t.text(key));
        if evaluates.is_some_and(|strategy| strategy != "no") {
            let held_out = transformers::source(name, Some(t.text("dataset_test_split").unwrap_or("test")));
            match std::path::Path::new(name).exists() {
                false => t.put("data.eval", held_out, &["dataset_name"]),
                true => t.lose(
                    "dataset_name",
                    "name the file of held-out examples by data.eval, or set data.eval_fraction",
                ),
            }
        }
    }
    if let Some(Value::Array(sets)) = t.get("datasets") {
        let text = |set: &Value, key: &str| set.get(key).and_then(Value::as_str).map(str::to_owned);
        let path = |set: &Value| {
            let path = text(set, "path").or_else(|| text(set, "name"))?;
            Some((transformers::source(&path, text(set, "split").as_deref()), None))
        };
        let sources: Vec<_> = sets.iter().filter_map(path).collect();
        transformers::put_sources(t, "datasets", &sources);
    }
    if let Some(path) = t.text("chat_template_path") {
        match path.ends_with(".jinja") || std::path::Path::new(path).is_file() {
            true => t.put("data.chat_template", path, &["chat_template_path"]),
            false => t.lose(
                "chat_template_path",
                "a file is read here: the chat_template.jinja of that folder, by data.chat_template",
            ),
        }
    }
    match t.first(&["max_length", "max_seq_length"]) {
        Some(key) => t.put("data.max_length", t.get(key).cloned(), &[key]),
        // It is there and null: examples are as long as they are.
        None if t.file.settings.iter().any(|setting| setting.key == "max_length") => {
            t.lose(
                "max_length",
                "examples have a longest length here: set data.max_length to the model's context",
            );
        }
        None => t.default("data.max_length", 1024),
    }
    match t.get("packing") {
        Some(packing) => t.put("data.packing", packing.clone(), &["packing"]),
        None => t.default("data.packing", false),
    }
    transformers::grouping(t);
    if t.text("packing_strategy") == Some("wrapped") {
        t.change("packing_strategy", "examples are never cut to fill a row here, and never see each other");
    }
    if t.is_on("assistant_only_loss") {
        t.put("data.train_on", "assistant", &["assistant_only_loss"]);
    } else if t.is_on("completion_only_loss") {
        t.put("data.train_on", "completion", &["completion_only_loss"]);
    } else if t.is_off("completion_only_loss") {
        t.put("data.train_on", "all", &["completion_only_loss"]);
    } else {
        t.default("data.train_on", "all");
        t.change(
            "assistant_only_loss",
            "TRL learns every token of conversations and texts unless it is set: data.train_on: all; for pairs of prompt and \
             completion, of which it learns the completion, set data.train_on: completion",
        );
    }
}

fn adapter(t: &mut Translation<'_>) {
    let of_adapter = ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora"];
    let named = t.get("model_name_or_path").is_some();
    if !t.is_on("use_peft") && (named || t.get("use_peft").is_some()) {
        t.train_all(t.first(&["use_peft"]));
        if let Some(key) = t.first(&of_adapter) {
            t.change(key, "without use_peft: true it counts for nothing there: adapter.method: full, as TRL would train");
        }
        return;
    }
    if !named && t.first(&of_adapter).is_none() {
        return t.change("use_peft", "whether an adapter is trained does not stand in this file; the run file trains LoRA at its defaults");
    }
    t.default("adapter.r", 16);
    t.default("adapter.alpha", 32);
    // Before parameters of experts PEFT has no dropout.
    t.default("adapter.dropout", if t.has("adapter.target_parameters") { 0.0 } else { 0.05 });
    transformers::targets(t, "lora_target_modules", &["all-linear"]);
    transformers::dora(t, "use_dora");
    if t.is_on("load_in_4bit") {
        let kind = t.text("bnb_4bit_quant_type").unwrap_or("nf4");
        let double = t.is_on("use_bnb_nested_quant");
        t.put("quantization", json!({"type": kind, "double_quant": double}), &["load_in_4bit"]);
    }
}

/// PEFT's own file: what an adapter is, and nothing of how it was trained.
fn adapter_config(t: &mut Translation<'_>) -> anyhow::Result<()> {
    if t.text("peft_type") != Some("LORA") {
        let line = t.file.get("peft_type").map_or(1, |setting| setting.line);
        return Err(user(format!(
            "{}:{line}: peft_type: adapters of this kind are not there; LORA is",
            t.file.path
        )));
    }
    t.apply(&[PEFT])?;
    transformers::dora(t, "use_dora");
    transformers::init(t, "init_lora_weights");
    if t.text("bias").is_some_and(|bias| bias != "none") {
        t.lose("bias", "biases of the base stay frozen here");
    }
    t.default("adapter.r", 8);
    t.default("adapter.alpha", 8);
    if !t.has("adapter.target_modules") {
        transformers::targets(t, "target_modules", &["all-linear"]);
    }
    t.change("peft_type", "this file says what the adapter is, not how it was trained: learning rate, epochs and data are yours to set");
    Ok(())
}
