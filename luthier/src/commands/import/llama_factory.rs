//! LLaMA-Factory's configuration. Its keys and defaults are those of `src/llamafactory/hparams` in
//! hiyouga/LLaMA-Factory.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::transformers::{self, EIGHT_BITS, TRAINING_ARGUMENTS};
use super::translation::Meaning::{Is, Lost, Needless, Read, Refused};
use super::translation::{Table, Translation};
use crate::error::user;
use crate::run_file::Foreign;

const TOKENS: &str = "tokens cannot be added to the vocabulary here; add them with transformers, save model and tokenizer, and train that";
const OTHER_OPTIMIZER: &str =
    "this optimizer is not there; the run file takes adamw: look at the learning rate too";

pub(super) const KEYS: &Table = &[
    ("lora_rank", Is("adapter.r")),
    ("lora_dropout", Is("adapter.dropout")),
    ("use_rslora", Is("adapter.rslora")),
    ("loraplus_lr_ratio", Is("optimizer.lora_plus_ratio")),
    ("adapter_name_or_path", Is("adapter.init_from")),
    ("cutoff_len", Is("data.max_length")),
    ("model_name_or_path model_revision", Read),
    ("stage finetuning_type lora_alpha lora_target additional_target", Read),
    ("quantization_bit quantization_method quantization_type double_quantization", Read),
    (
        "dataset eval_dataset dataset_dir template train_on_prompt val_size packing neat_packing disable_shuffling",
        Read,
    ),
    (
        "task task_dir n_shot lang save_dir batch_size download_mode",
        Lost("of LLaMA-Factory's evaluations; see `luthier eval`"),
    ),
    ("use_dora pissa_init", Read),
    ("mask_history", Lost("set data.train_on: completion, which learns the last turn of the assistant only")),
    ("max_samples", Lost("all examples are taken; make a file of those that you want")),
    ("mix_strategy interleave_probs", Lost("give sources a weight: data.train: [{path, weight}]")),
    ("early_stopping_steps", Lost("set training.early_stopping_patience, in evaluations")),
    ("use_galore use_apollo use_badam use_adam_mini use_muon", Lost(OTHER_OPTIMIZER)),
    ("use_dft_loss use_asft_loss use_eaft_loss", Lost("the loss is cross-entropy; leave it out")),
    ("use_llama_pro mixture_of_depths shift_attn", Lost("the model is taken as it is; leave it out")),
    ("moe_aux_loss_coef", Is("training.router_aux_loss")),
    ("rope_scaling", Lost("change config.json in the model folder")),
    ("resize_vocab add_tokens add_special_tokens new_special_tokens_config", Lost(TOKENS)),
    ("split_special_tokens", Lost("special tokens in the data are special tokens here")),
    ("loraplus_lr_embedding", Lost("there is one learning rate, and optimizer.lora_plus_ratio")),
    ("predict_with_generate do_predict", Lost("see `luthier generate`")),
    (
        "tokenized_path",
        Lost("the examples are read from data.train; those with input_ids and labels have format: tokenized"),
    ),
    (
        "default_system enable_thinking preserve_thinking tool_format",
        Lost("write a chat template with it into a file and name that by data.chat_template"),
    ),
    (
        "train_from_scratch",
        Lost("set adapter.method: full and adapter.init: gaussian, with a model folder without weights"),
    ),
    (
        "image_* video_* audio_* media_dir use_audio_in_video crop_to_patches freeze_vision_tower freeze_multi_modal_projector",
        Refused("models of images, video or sound are not there; text only"),
    ),
    (
        "ref_model* reward_model* pref_* kto_* simpo_* ppo_* dpo_* ld_alpha",
        Refused(
            "learning from preferences is not there; `luthier train` learns from examples (supervised fine-tuning)",
        ),
    ),
    ("freeze_trainable_layers freeze_trainable_modules freeze_extra_modules freeze_language_model", Needless),
    (
        "create_new_adapter adapter_folder module_dropout oft_* pissa_iter pissa_convert galore_* apollo_* badam_*",
        Needless,
    ),
    (
        "trust_remote_code cache_dir use_fast_tokenizer low_cpu_mem_usage flash_attn use_unsloth use_unsloth_gc",
        Needless,
    ),
    (
        "enable_liger_kernel disable_gradient_checkpointing use_reentrant_gc upcast_layernorm upcast_lmhead_output",
        Needless,
    ),
    (
        "infer_* offload_folder use_kv_cache use_v1_kernels use_kt kt_* *_hub_token hf_hub_token ms_hub_token om_hub_token",
        Needless,
    ),
    (
        "print_param_status vllm_* sglang_* export_* quantization_device_map init_special_tokens pure_bf16",
        Needless,
    ),
    (
        "streaming buffer_size overwrite_cache preprocessing_batch_size preprocessing_num_workers data_shared_file_system",
        Needless,
    ),
    (
        "eval_num_beams ignore_pad_token_for_loss eval_on_each_dataset compute_accuracy plot_loss include_effective_tokens_per_second",
        Needless,
    ),
    (
        "compute_dtype device_map model_max_length block_diag_attn use_hyper_parallel hyper_parallel_args master_addr master_port use_swanlab swanlab_* use_ray ray_* max_new_tokens max_length temperature top_p top_k num_beams do_sample repetition_penalty length_penalty skip_special_tokens use_mca fp8* asft_alpha eaft_alpha enable_torch_profiler profiler_* profile_modules",
        Needless,
    ),
];

/// Names of templates there and here.
const TEMPLATES: [(&str, &str); 17] = [
    ("alpaca", "alpaca"),
    ("chatml", "chatml"),
    ("deepseekr1", "deepseek-r1"),
    ("gemma", "gemma"),
    ("gemma2", "gemma"),
    ("gemma3", "gemma"),
    ("glm4", "glm-4"),
    ("granite3", "granite"),
    ("llama2", "llama-2"),
    ("llama3", "llama-3"),
    ("mistral", "mistral-v3"),
    ("phi", "phi-3"),
    ("phi4", "phi-4"),
    ("qwen", "qwen2.5"),
    ("qwen3", "qwen3"),
    ("vicuna", "vicuna"),
    ("zephyr", "zephyr"),
];

pub(super) fn translate(t: &mut Translation<'_>) -> anyhow::Result<()> {
    let refuse = |key: &str, why: &str| {
        let setting = t.file.get(key).expect("it is set");
        Err(user(format!("{}:{}: {key}: {}: {why}", t.file.path, setting.line, setting.value)))
    };
    match t.text("stage").unwrap_or("sft") {
        "sft" | "pt" => {}
        _ => return refuse("stage", "learning from preferences is not there; stages sft and pt are"),
    }
    match t.text("finetuning_type").unwrap_or("lora") {
        "lora" | "full" => {}
        _ => return refuse("finetuning_type", "trained is an adapter (lora) or all weights (full)"),
    }
    t.apply(&[KEYS, TRAINING_ARGUMENTS])?;
    transformers::model(t, "model_name_or_path", "model_revision");
    data(t)?;
    adapter(t);
    transformers::batch(t, "per_device_train_batch_size", 8);
    transformers::length(t, "num_train_epochs", 3);
    transformers::betas(t);
    transformers::optimizer(t, "optim");
    transformers::schedule(t, "lr_scheduler_type", "linear");
    transformers::warmup(t, "lr_scheduler_type", Some(0.0));
    transformers::evaluation(t, Some("val_size"));
    transformers::precision(t);
    t.default("optimizer.learning_rate", 5e-5);
    Ok(())
}

fn data(t: &mut Translation<'_>) -> anyhow::Result<()> {
    let pretraining = t.text("stage") == Some("pt");
    let sources = sources(t, "dataset", pretraining)?;
    transformers::put_sources(t, "dataset", &sources);
    let held_out = self::sources(t, "eval_dataset", pretraining)?;
    if let Some((path, _)) = held_out.first() {
        t.put("data.eval", path.as_str(), &["eval_dataset"]);
        if held_out.len() > 1 {
            t.lose("eval_dataset", "there is one set of held-out examples; put the files together");
        }
    }
    if let Some(name) = t.text("template") {
        match TEMPLATES.iter().find(|(theirs, _)| *theirs == name) {
            Some((_, ours)) => t.put("data.chat_template", *ours, &["template"]),
            None => t.change(
                "template",
                "the tokenizer's own template is used; see `luthier data preview` whether it is this one",
            ),
        }
    }
    if t.is_on("train_on_prompt") {
        t.put("data.train_on", "all", &["train_on_prompt"]);
    }
    if t.is_on("disable_shuffling") {
        t.put("data.shuffle", false, &["disable_shuffling"]);
    }
    match t.first(&["packing", "neat_packing"]) {
        Some(key) => {
            t.put("data.packing", t.is_on("packing") || t.is_on("neat_packing"), &[key]);
            if t.is_on("packing") && !t.is_on("neat_packing") {
                t.change("packing", "there, packed examples see each other; here they never do");
            }
        }
        None => t.default("data.packing", pretraining),
    }
    transformers::grouping(t);
    Ok(())
}

/// The data sets of a key, by their names in `dataset_info.json`.
fn sources(
    t: &mut Translation<'_>,
    key: &'static str,
    pretraining: bool,
) -> anyhow::Result<Vec<(String, Option<&'static str>)>> {
    let names: Vec<String> = match t.get(key) {
        Some(Value::String(text)) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        Some(Value::Array(items)) => {
            items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
        }
        _ => return Ok(Vec::new()),
    };
    let folder = t.text("dataset_dir").unwrap_or("data");
    let info = dataset_info(Path::new(&t.file.path), folder);
    let entries = info.as_ref().map(|(_, file)| Foreign::read(file)).transpose()?;
    let mut sources = Vec::new();
    for name in names {
        let entry = entries.as_ref().and_then(|entries| entries.get(&name));
        match (entry, &info) {
            (Some(entry), Some((folder, _))) => sources.push(source(t, key, &name, &entry.value, folder)),
            _ => {
                let path = format!("{folder}/{name}.json");
                let why = format!(
                    "the data set `{name}` stands in no dataset_info.json beside this file; the run file guesses {path}"
                );
                t.change(key, why);
                sources.push((path, pretraining.then_some("text")));
            }
        }
    }
    Ok(sources)
}

/// The folder of the data and its `dataset_info.json`: as the file says, or beside the file.
fn dataset_info(file: &Path, folder: &str) -> Option<(PathBuf, PathBuf)> {
    let beside = file.parent().unwrap_or(Path::new(""));
    let folders = [PathBuf::from(folder), beside.join(folder), beside.to_owned()];
    folders
        .into_iter()
        .map(|folder| (folder.clone(), folder.join("dataset_info.json")))
        .find(|(_, info)| info.is_file())
}

/// One entry of `dataset_info.json`.
fn source(
    t: &mut Translation<'_>,
    key: &'static str,
    name: &str,
    entry: &Value,
    folder: &Path,
) -> (String, Option<&'static str>) {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let path = match (text("hf_hub_url"), text("file_name")) {
        (Some(hub), _) => transformers::source(hub, text("split")),
        (None, Some(file)) => folder.join(file).display().to_string(),
        (None, None) => {
            t.lose(
                key,
                format!(
                    "the data set `{name}` is neither a file nor on the hub; write its examples into a file"
                ),
            );
            name.to_owned()
        }
    };
    let column = |name: &str, default: &'static str| -> String {
        let columns = entry.get("columns");
        columns.map_or(Some(default), |columns| columns.get(name)?.as_str()).unwrap_or_default().to_owned()
    };
    let tag = |name: &str, default: &str| {
        entry.pointer(&format!("/tags/{name}")).and_then(Value::as_str).unwrap_or(default).to_owned()
    };
    let format = match text("formatting").unwrap_or("alpaca") {
        "alpaca" => {
            let (prompt, response) = (column("prompt", "instruction"), column("response", "output"));
            match (prompt.as_str(), response.as_str()) {
                ("instruction" | "question" | "query", "output" | "response" | "answer") => Some("alpaca"),
                ("text", "") => Some("text"),
                ("prompt", "completion") => Some("completion"),
                _ => None,
            }
        }
        _ => {
            let (messages, role) = (column("messages", "conversations"), tag("role_tag", "from"));
            match (messages.as_str(), role.as_str()) {
                ("messages", "role") => Some("messages"),
                ("conversations", "from") => Some("sharegpt"),
                _ => None,
            }
        }
    };
    if entry.get("ranking") == Some(&Value::Bool(true)) {
        t.lose(key, format!("the data set `{name}` holds preferences, which are not learnt here"));
    } else if format.is_none() {
        t.lose(
            key,
            format!(
                "the data set `{name}` has columns of its own; rename them as the guide on data has them"
            ),
        );
    }
    if entry.get("num_samples").is_some_and(Value::is_number) {
        t.lose(
            key,
            format!("the data set `{name}` is cut to some examples there; here all of them are taken"),
        );
    }
    (path, format)
}

fn adapter(t: &mut Translation<'_>) {
    if t.text("finetuning_type") == Some("full") {
        return t.train_all(Some("finetuning_type"));
    }
    transformers::dora(t, "use_dora");
    if t.is_on("pissa_init") {
        t.put("adapter.init", "pissa", &["pissa_init"]);
    }
    let rank = t.number("lora_rank").unwrap_or(8.0);
    match t.number("lora_alpha") {
        Some(alpha) => t.put("adapter.alpha", alpha, &["lora_alpha"]),
        None => t.default("adapter.alpha", 2.0 * rank),
    }
    t.default("adapter.r", 8);
    if t.get("lora_target").is_some() {
        transformers::targets(t, "lora_target", &["all"]);
    }
    if let Some(names) = t.text("additional_target") {
        let names: Vec<&str> = names.split(',').map(str::trim).collect();
        t.put("adapter.modules_to_save", json!(names), &["additional_target"]);
    }
    t.adopt_adapter();
    match t.number("quantization_bit") {
        None => {}
        Some(4.0) if matches!(t.text("quantization_method").unwrap_or("bnb"), "bnb" | "bitsandbytes") => {
            let kind = t.text("quantization_type").unwrap_or("nf4");
            let value = match t.is_off("double_quantization") {
                true => json!({"type": kind, "double_quant": false}),
                false => json!(kind),
            };
            t.put("quantization", value, &["quantization_bit"]);
        }
        Some(8.0) => t.lose("quantization_bit", EIGHT_BITS),
        Some(_) => t.lose(
            "quantization_bit",
            "a frozen base is held in four bits of bitsandbytes: set quantization: nf4",
        ),
    }
}
