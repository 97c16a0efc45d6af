//! Axolotl's configuration. Its keys and defaults are those of `src/axolotl/utils/schemas` in
//! axolotl-ai-cloud/axolotl.

use serde_json::{Map, Value};

use super::transformers::{self, EIGHT_BITS, SOME_LAYERS, TRAINING_ARGUMENTS};
use super::translation::Meaning::{Is, Lost, Needless, Read, Refused};
use super::translation::{Table, Translation, is_off};

const PREFERENCES: &str =
    "learning from preferences is not there; `luthier train` learns from examples (supervised fine-tuning)";
const IMAGES: &str = "models of images, video or sound are not there; text only";
const TOKENS: &str = "tokens cannot be added to the vocabulary here; add them with transformers, save model and tokenizer, and train that";

pub(super) const KEYS: &Table = &[
    ("sequence_len", Is("data.max_length")),
    ("lora_r", Is("adapter.r")),
    ("lora_alpha", Is("adapter.alpha")),
    ("lora_dropout", Is("adapter.dropout")),
    ("lora_modules_to_save", Is("adapter.modules_to_save")),
    ("lora_rank_pattern", Is("adapter.rank_pattern")),
    ("lora_alpha_pattern", Is("adapter.alpha_pattern")),
    ("lora_model_dir", Is("adapter.init_from")),
    ("peft_use_rslora", Is("adapter.rslora")),
    ("loraplus_lr_ratio", Is("optimizer.lora_plus_ratio")),
    ("base_model revision_of_model", Read),
    ("datasets test_datasets pretraining_dataset val_set_size", Read),
    ("chat_template chat_template_jinja train_on_inputs", Read),
    (
        "adapter load_in_4bit lora_target_modules lora_target_linear peft_init_lora_weights peft_use_dora",
        Read,
    ),
    (
        "micro_batch_size gradient_accumulation_steps num_epochs optimizer lr_scheduler early_stopping_patience",
        Read,
    ),
    (
        "sample_packing excess_length_strategy curriculum_sampling bfloat16 float16 float32 special_tokens plugins",
        Read,
    ),
    ("load_in_8bit", Lost(EIGHT_BITS)),
    ("peft_layers_to_transform peft_layers_pattern", Lost(SOME_LAYERS)),
    ("loftq_config peft", Lost("adapters begin by adapter.init, four bits are set by quantization")),
    (
        "bnb_config_kwargs",
        Lost("set quantization: {type: nf4, double_quant: true, block_size: 64} as you need it"),
    ),
    ("lora_target_parameters", Is("adapter.target_parameters")),
    ("relora* jagged_* lisa_*", Lost("training in turns is not there; leave it out")),
    ("unfrozen_parameters", Lost("name modules to train whole by adapter.modules_to_save")),
    ("batch_size", Lost("training.batch_size takes the whole batch, if that is what you meant")),
    (
        "embedding_lr embedding_lr_scale lr_groups loraplus_lr_embedding",
        Lost("there is one learning rate, and optimizer.lora_plus_ratio"),
    ),
    (
        "cosine_min_lr_ratio cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor",
        Lost("the learning rate falls to 0 here"),
    ),
    ("adam_beta3 adam_epsilon2 dion_* qgalore_*", Lost("of other optimizers than those that are here")),
    ("evals_per_epoch", Lost("in steps here: set training.eval_every")),
    ("saves_per_epoch", Lost("in steps here: set training.save_every")),
    (
        "tokens added_tokens_overrides resize_token_embeddings_to_32x shrink_embeddings peft_trainable_token_indices",
        Lost(TOKENS),
    ),
    (
        "eot_tokens default_system_message chat_template_kwargs role_boundaries",
        Lost("write a chat template with it into a file and name that by data.chat_template"),
    ),
    (
        "tokenizer_config base_model_config",
        Lost("model and tokenizer are read from one folder; put the files together"),
    ),
    (
        "overrides_of_model_config overrides_of_model_kwargs rope_scaling",
        Lost("change config.json in the model folder"),
    ),
    (
        "min_sample_len dataset_exact_deduplication",
        Lost("examples are taken as they are; look at them with `luthier data preview`"),
    ),
    (
        "noisy_embedding_alpha",
        Lost("noise on the embeddings is not there; adapter.dropout works against overfitting too"),
    ),
    (
        "loss_watchdog_threshold loss_watchdog_patience",
        Lost("a run ends where the loss is no number; watch it, or set training.early_stopping_patience"),
    ),
    (
        "use_pose pose_* max_packed_sequence_len eval_sequence_len",
        Lost("the context is not extended here; leave it out"),
    ),
    (
        "eval_table_size eval_max_new_tokens do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_* generate_samples",
        Lost("evaluations measure the loss; see `luthier generate` for answers"),
    ),
    (
        "rl reward_model process_reward_model trl vllm center_rewards_coefficient num_labels precompute_ref_log_probs max_prompt_len ebft dpo_* kto_* orpo_* rpo_* simpo_* cpo_* rl_beta",
        Refused(PREFERENCES),
    ),
    (
        "processor_type processor_kwargs freeze_mm_modules is_multimodal image_size image_resize_algorithm",
        Refused(IMAGES),
    ),
    (
        "qat quantization",
        Refused("training for a quantized result is not there; see `luthier quantize` for one afterwards"),
    ),
    ("gptq", Refused("a base in GPTQ's four bits is not read; take the model itself, and quantization: nf4")),
    (
        "model_type tokenizer_type cls_model_config tokenizer_use_fast tokenizer_legacy tokenizer_save_jinja_files",
        Needless,
    ),
    ("trust_remote_code strict type_of_model is_llama_derived_model is_mistral_derived_model", Needless),
    (
        "is_falcon_derived_model is_qwen_derived_model hf_use_auth_token lora_fan_in_fan_out lora_on_cpu",
        Needless,
    ),
    (
        "qlora_sharded_model_loading peft_autocast_adapter_dtype merge_lora merge_method merge_* peft_ensure_weight_tying",
        Needless,
    ),
    (
        "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory dataset_shard_* push_dataset_to_hub",
        Needless,
    ),
    (
        "skip_prepare_dataset shuffle_merged_datasets sample_packing_* eval_sample_packing pad_to_sequence_len",
        Needless,
    ),
    (
        "multipack_real_batches pretrain_multipack_* batch_flattening eval_batch_size activation_offloading",
        Needless,
    ),
    (
        "wandb_* use_wandb mlflow_* use_mlflow comet_* use_comet gradio_* ray_* use_ray swanlab_* use_swanlab use_tensorboard",
        Needless,
    ),
    (
        "xformers_attention sdp_attention s2_attention flash_attention flex_attention eager_attention",
        Needless,
    ),
    (
        "flash_attn_* flash_optimum attn_implementation unsloth_* lora_embedding_kernel lora_mlp_kernel lora_qkv_kernel lora_o_kernel",
        Needless,
    ),
    (
        "liger_* cut_cross_entropy chunked_cross_entropy* torchdistx_path device device_map world_size gpu_memory_limit max_memory",
        Needless,
    ),
    (
        "low_cpu_mem_usage fsdp_final_state_dict_type sequence_parallel_degree context_parallel_size tensor_parallel_size",
        Needless,
    ),
    (
        "heads_k_stride ring_attn_func dp_shard_size dp_replicate_size gc_steps profiler_steps auto_resume_from_checkpoints",
        Needless,
    ),
    (
        "fp8 use_kernels embeddings_skip_upcast mean_resizing_embeddings fix_untrained_tokens experimental_*",
        Needless,
    ),
    (
        "ddp deepcompile fp8_* fp32_norms fp32_norm_classes gc_collect_steps selective_checkpointing layer_offloading",
        Needless,
    ),
    (
        "pad_to_multiple_of pretraining_sample_concatenation streaming streaming_multipack_buffer_size",
        Needless,
    ),
    (
        "num_dataset_shards_to_save shuffle_before_merging_datasets dynamic_checkpoint save_first_step",
        Needless,
    ),
    (
        "profiler_steps_start include_tkps is_preprocess preprocess_iterable total_* axolotl_config_path",
        Needless,
    ),
    (
        "flex_attn_compile_kwargs sage_attention gemma4_hybrid_attn_impl large_head_attention sdpa_varlen",
        Needless,
    ),
    (
        "fused_attn_kernel experts_implementation ple_cpu_offload tiled_mlp tiled_mlp_* llama4_linearized_experts",
        Needless,
    ),
    (
        "generation_* num_generation_samples tokenizer_use_mistral_common hf_mlflow_log_artifacts use_trackio",
        Needless,
    ),
    ("use_otel_metrics otel_* resources_per_worker eaft_alpha eaft_k trainer_cls", Needless),
    (
        "use_eaft scaling_softmax scaling_softmax_factor scaling_softmax_bias reinit_weights use_onebitllms",
        Lost("the model and its loss are taken as they are; leave it out"),
    ),
    (
        "quantize_moe_experts model_quantization_config model_quantization_config_kwargs peft_layer_replication",
        Lost("of models that are not there; leave it out"),
    ),
];

/// Names of templates there and here.
const TEMPLATES: [(&str, &str); 13] = [
    ("alpaca", "alpaca"),
    ("chatml", "chatml"),
    ("gemma", "gemma"),
    ("gemma3", "gemma"),
    ("llama3", "llama-3"),
    ("mistral_v1", "mistral"),
    ("mistral_v2v3", "mistral-v3"),
    ("phi_3", "phi-3"),
    ("phi_35", "phi-3"),
    ("phi_4", "phi-4"),
    ("qwen_25", "qwen2.5"),
    ("qwen2_vl", "qwen2.5"),
    ("qwen3", "qwen3"),
];

pub(super) fn translate(t: &mut Translation<'_>) -> anyhow::Result<()> {
    t.apply(&[KEYS, TRAINING_ARGUMENTS])?;
    transformers::model(t, "base_model", "revision_of_model");
    data(t);
    adapter(t);
    transformers::batch(t, "micro_batch_size", 1);
    transformers::length(t, "num_epochs", 1);
    transformers::betas(t);
    transformers::optimizer(t, "optimizer");
    transformers::schedule(t, "lr_scheduler", "cosine");
    // Without either it warms up over 3 % of the steps, as here.
    transformers::warmup(t, "lr_scheduler", None);
    transformers::evaluation(t, Some("val_set_size"));
    transformers::precision(t);
    if t.is_on("float32") {
        t.put("precision", "f32", &["float32"]);
    }
    plugins(t);
    special_tokens(t);
    t.default("data.max_length", 512);
    t.default("output", "./model-out");
    Ok(())
}

fn data(t: &mut Translation<'_>) {
    let mut sources = Vec::new();
    let mut forms = Vec::new();
    for (index, item) in items(t.get("datasets")).into_iter().enumerate() {
        let (source, form) = dataset(t, "datasets", index, item);
        sources.extend(source);
        forms.push(form);
    }
    transformers::put_sources(t, "datasets", &sources);
    for (index, item) in items(t.get("pretraining_dataset")).into_iter().enumerate() {
        let path = path(item);
        if let (0, Some(path)) = (index, path) {
            t.put("data.train", path, &["pretraining_dataset"]);
            t.put("data.format", "text", &["pretraining_dataset"]);
            t.change("pretraining_dataset", "the texts are read whole before the run begins, not streamed");
        } else {
            t.lose("pretraining_dataset", "one set of texts is taken over; list the others in data.train");
        }
    }
    let held_out = items(t.get("test_datasets"));
    if let Some(path) = held_out.first().and_then(|item| path(item)) {
        t.put("data.eval", path, &["test_datasets"]);
        if held_out.len() > 1 {
            t.lose("test_datasets", "there is one set of held-out examples; put the files together");
        }
    }
    template(t, &forms);
    if t.is_on("train_on_inputs") {
        t.put("data.train_on", "all", &["train_on_inputs"]);
    }
    match t.get("sample_packing") {
        Some(value) => t.put("data.packing", !is_off(value), &["sample_packing"]),
        None => t.default("data.packing", false),
    }
    transformers::grouping(t);
    match t.text("excess_length_strategy") {
        Some("truncate") => t.put("data.on_overflow", "truncate", &["excess_length_strategy"]),
        Some("raise") => t.put("data.on_overflow", "error", &["excess_length_strategy"]),
        Some(_) => t.put("data.on_overflow", "drop", &["excess_length_strategy"]),
        None => t.default("data.on_overflow", "drop"),
    }
    if t.is_on("curriculum_sampling") {
        t.put("data.shuffle", false, &["curriculum_sampling"]);
    }
}

/// How conversations of a data set become text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In Alpaca's own words.
    Alpaca,
    /// By a chat template.
    Chat,
    Other,
}

/// A data set's source with its format.
fn dataset(
    t: &mut Translation<'_>,
    key: &'static str,
    index: usize,
    item: &Value,
) -> (Option<(String, Option<&'static str>)>, Form) {
    let empty = Map::new();
    let settings = item.as_object().unwrap_or(&empty);
    let text = |key: &str| settings.get(key).and_then(Value::as_str);
    let source = path(item).map(|path| transformers::source(&path, text("split")));
    let mut lose = |name: &str, why: &str| t.lose(&format!("{key}[{index}].{name}"), why);
    let messages = text("field_messages").unwrap_or("messages");
    let (format, form) = match settings.get("type") {
        Some(Value::String(kind)) => match kind.split(['.', ':']).next().unwrap_or_default() {
            "alpaca" if kind.as_str() == "alpaca" => (Some("alpaca"), Form::Alpaca),
            "chat_template" if messages == "conversations" => (Some("sharegpt"), Form::Chat),
            "chat_template" => (Some("messages"), Form::Chat),
            "sharegpt" => (Some("sharegpt"), Form::Chat),
            "completion" | "pretrain" => (Some("text"), Form::Other),
            _ => {
                let why = format!(
                    "the type `{kind}` is not there; make it `messages`, `alpaca`, `completion` or `tokenized`"
                );
                lose("type", &why);
                (None, Form::Other)
            }
        },
        Some(_) => {
            lose(
                "type",
                "prompts of your own form are not there; write them as {\"prompt\", \"completion\"} (format: completion)",
            );
            (None, Form::Other)
        }
        None => (Some("tokenized"), Form::Other),
    };
    for (name, value) in settings.iter().filter(|(_, value)| !is_off(value)) {
        match name.as_str() {
            "path" | "type" | "data_files" | "ds_type" | "chat_template" | "trust_remote_code"
            | "preprocess_shards" | "temperature" | "logprobs_field" => {}
            "split" if value == "train" || source.as_ref().is_some_and(|source| source.contains(':')) => {}
            "split" => {
                lose(name, "a part of a split is not there; make a file of the examples that you want")
            }
            "name" => lose(name, "configurations of a data set are not there; name a file of it"),
            "field_messages" if matches!(messages, "messages" | "conversations") => {}
            "field" if value == "text" => {}
            "message_field_role" | "message_field_content" | "message_property_mappings"
                if known_names(value) => {}
            "roles" if known_roles(value) => {}
            "roles_to_train" if value == &serde_json::json!(["assistant"]) => {}
            "train_on_eos" | "train_on_eot" if value == "turn" => {}
            "roles_to_train" | "train_on_eos" | "train_on_eot" => lose(
                name,
                "the turns of the assistant with their ends are learnt; data.train_on: all learns everything",
            ),
            "chat_template_jinja" if text("chat_template") == Some("jinja") => {}
            "message_field_training" | "message_field_training_detail" => {
                lose(name, "turns are marked by `train` or `weight` in the data; rename the key there");
            }
            "shards" | "shards_idx" => lose(name, "make a file of the examples that you want"),
            "revision" => lose(name, "the newest is taken; download the data set and name the files"),
            _ => lose(name, "the names in the data are fixed (see the guide on data); rename them there"),
        }
    }
    (source.map(|source| (source, format)), form)
}

/// Names of keys that are known in messages: as they are, or mapped.
fn known_names(value: &Value) -> bool {
    let known = |value: &Value| matches!(value.as_str(), Some("role" | "content" | "from" | "value"));
    value.as_object().map_or_else(|| known(value), |map| map.values().all(known))
}

/// Names of roles that are known.
fn known_roles(value: &Value) -> bool {
    const KNOWN: [&str; 7] = ["system", "user", "human", "assistant", "gpt", "tool", "developer"];
    let all = |names: &Value| {
        items(Some(names)).iter().all(|name| name.as_str().is_some_and(|name| KNOWN.contains(&name)))
    };
    value.as_object().is_some_and(|map| map.values().all(all))
}

/// Where a data set is: files that are named win over what says only how to read them.
fn path(item: &Value) -> Option<String> {
    let text = |key: &str| item.get(key).and_then(Value::as_str);
    let file =
        item.get("data_files").and_then(|files| items(Some(files)).first().and_then(|file| file.as_str()));
    match (item.as_str().or_else(|| text("path")), file) {
        (Some("json" | "csv" | "parquet" | "text" | "arrow") | None, Some(file)) => Some(file.to_owned()),
        (Some(folder), Some(file)) if std::path::Path::new(folder).is_dir() => {
            Some(format!("{folder}/{file}"))
        }
        (path, _) => path.map(str::to_owned),
    }
}

/// A list's items, or one thing by itself.
fn items(value: Option<&Value>) -> Vec<&Value> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items.iter().collect(),
        Some(one) => vec![one],
    }
}

fn template(t: &mut Translation<'_>, forms: &[Form]) {
    let nested = || items(t.get("datasets")).into_iter().find_map(|item| item.get("chat_template")?.as_str());
    let named = t.text("chat_template").or_else(nested);
    let from = if t.get("chat_template").is_some() { "chat_template" } else { "datasets" };
    match named {
        None if !forms.is_empty() && forms.iter().all(|form| *form == Form::Alpaca) => {
            t.put("data.chat_template", "alpaca", &["datasets"]);
            t.change(
                "datasets",
                "type alpaca has a form of its own whatever the model: data.chat_template: alpaca",
            );
        }
        None | Some("tokenizer_default") => {}
        Some("jinja") => {
            match t.text("chat_template_jinja").filter(|path| std::path::Path::new(path).is_file()) {
                Some(path) => t.put("data.chat_template", path, &["chat_template_jinja"]),
                None => t.lose(
                    "chat_template_jinja",
                    "write the template into a file and name that by data.chat_template",
                ),
            }
        }
        Some(name) => match TEMPLATES.iter().find(|(theirs, _)| *theirs == name) {
            Some((_, ours)) => t.put("data.chat_template", *ours, &[from]),
            None if name.starts_with("tokenizer_default_fallback_") => {
                t.change(from, "the tokenizer's own template is used; set data.chat_template if it has none");
            }
            None => t.lose(
                from,
                "this template is not built in; the tokenizer's own is used: see `luthier data preview`",
            ),
        },
    }
    if named.is_some() && forms.contains(&Form::Alpaca) {
        t.change(
            "datasets",
            "type alpaca had a form of its own; here the one chat template counts for it too",
        );
    }
}

fn adapter(t: &mut Translation<'_>) {
    match t.text("adapter") {
        None => return t.train_all(None),
        Some("lora" | "qlora") => {}
        Some(_) => {
            t.lose("adapter", "adapters of this kind are not there; the run file trains a LoRA adapter")
        }
    }
    if t.is_on("load_in_4bit") || t.text("adapter") == Some("qlora") {
        t.put("quantization", "nf4", &["load_in_4bit", "adapter"]);
    }
    match t.is_on("lora_target_linear") {
        true => t.put("adapter.target_modules", "all-linear", &["lora_target_linear"]),
        false => transformers::targets(t, "lora_target_modules", &["all-linear"]),
    }
    transformers::dora(t, "peft_use_dora");
    transformers::init(t, "peft_init_lora_weights");
    t.default("adapter.r", 8);
    t.default("adapter.alpha", 8);
    t.adopt_adapter();
}

/// Plugins that only make a GPU faster are not missed.
fn plugins(t: &mut Translation<'_>) {
    let faster = |name: &str| ["liger", "cut_cross_entropy"].iter().any(|word| name.contains(word));
    let others =
        items(t.get("plugins")).into_iter().filter_map(Value::as_str).filter(|name| !faster(name)).count();
    if others > 0 {
        t.lose("plugins", "there are no plugins here");
    }
}

/// There is no padding, so the token for it does not matter; others do.
fn special_tokens(t: &mut Translation<'_>) {
    let Some(Value::Object(tokens)) = t.get("special_tokens") else { return };
    if tokens.iter().any(|(name, value)| name != "pad_token" && !value.is_null()) {
        t.lose(
            "special_tokens",
            "they are the tokenizer's: change tokenizer_config.json in the model folder",
        );
    }
}
