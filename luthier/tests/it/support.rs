//! What the tests of commands share: a tiny model with a tokenizer and a chat template, made here, since they
//! may not download one, and what a command told and left.

#[path = "../../../data/tests/fixtures/tokenizer.rs"]
mod byte_tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use compute::{Device, Precision};
use model::adapter::peft::files::save_adapter;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::{Adapter, Config, Decoder, Layout, ModelFolder, StoredDType};
use serde_json::{Value, json};

use crate::run;

/// Begins every text; the tokenizer adds it.
pub(crate) const BEGIN: u32 = 260;
/// Ends a turn, and ends generation.
pub(crate) const END: u32 = 262;
/// Tokens that the model was made for.
pub(crate) const CONTEXT: usize = 256;

/// Renders each message as `<|im_start|>role\ncontent<|im_end|>\n`.
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + \
    '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Makes a model folder: two layers with random weights, a byte-level tokenizer, a chat template.
pub(crate) fn tiny_model(folder: &Path) -> PathBuf {
    tiny_model_stored(folder, StoredDType::F32)
}

/// The same with weights stored as `dtype`.
pub(crate) fn tiny_model_stored(folder: &Path, dtype: StoredDType) -> PathBuf {
    let model = folder.join("model");
    fs::create_dir_all(&model).unwrap();
    fs::write(model.join("config.json"), config().to_json(dtype)).unwrap();
    let (files, nothing) =
        (ModelFolder::open(&model).unwrap(), Adapter::zeros(Layout::default(), 0.0, &Device::cpu(2)));
    let base = Decoder::random(&files.config, &Device::cpu(1), Precision::F32, None, 5);
    base.write_model_files(&nothing, &files, &model, &model, dtype).unwrap();
    write(&model.join("tokenizer.json"), &byte_tokenizer::tokenizer());
    write(
        &model.join("tokenizer_config.json"),
        &json!({"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}),
    );
    model
}

/// An adapter folder for the tiny model: rank 2 on two kinds of layers, values between `-size` and `size`.
pub(crate) fn tiny_adapter(folder: &Path, size: f32) -> PathBuf {
    let path = folder.join("adapter");
    let settings = PeftConfig {
        r: 2,
        target_modules: Some(Selection::List(vec!["q_proj".into(), "down_proj".into()])),
        base_model_name_or_path: Some("model".into()),
        ..PeftConfig::default()
    };
    let resolution = targets::resolve(&settings, &config()).unwrap();
    let mut adapter = Adapter::zeros(Layout::of_adapter(&resolution, &config()), 0.0, &Device::cpu(2));
    for (i, value) in adapter.parameters.values_mut().f32().iter_mut().enumerate() {
        *value = size * (2.0 * compute::random::uniform(9, i as u64) as f32 - 1.0);
    }
    save_adapter(&path, &settings.settled(&resolution, &config()), &adapter.layout, &adapter.parameters)
        .unwrap();
    path
}

/// Writes a JSON file.
pub(crate) fn write(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

/// Writes records as JSON lines and returns the path.
pub(crate) fn write_lines(path: PathBuf, records: &[Value]) -> PathBuf {
    fs::write(&path, records.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    path
}

/// The path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn config() -> Config {
    let text = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "vocab_size": 263, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5, "initializer_range": 0.3, "tie_word_embeddings": false,
        "bos_token_id": BEGIN, "eos_token_id": END, "torch_dtype": "float32",
    });
    Config::from_json(&text.to_string(), "config.json".as_ref()).unwrap()
}

/// What a command that works tells, on stdout and stderr.
#[track_caller]
pub(crate) fn succeed(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = run(folder, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    (String::from_utf8(output.stdout).unwrap(), errors)
}

/// What stands in a folder, but for the hub's cache.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "hf")
        .collect();
    names.sort();
    names
}
