//! Adapters as other programs write them, and what is told of a run: what the binary makes of both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use compute::MatrixRef;
use model::checkpoint::{CheckpointWriter, TensorSpec};
use model::{Checkpoint, StoredDType};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::failure;
use crate::support::{succeed, tiny_adapter, tiny_model, write, write_lines};

const EMBEDDING: &str = "base_model.model.model.embed_tokens.weight";
const HEAD: &str = "base_model.model.lm_head.weight";

/// A tiny model, an adapter whose file has these tensors too, all of one value but the rows that the model
/// has of the embedding, and text to evaluate on.
fn folder(extras: &[(&str, usize, f32)]) -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let path = tiny_adapter(folder.path(), 0.5).join("adapter_model.safetensors");
    let (file, base) =
        (Checkpoint::open_file(&path).unwrap(), Checkpoint::open(&folder.path().join("model")).unwrap());
    let read = |from: &Checkpoint, name: &str| {
        let shape = from.tensor(name).unwrap().shape.clone();
        let mut values = vec![0.0; shape.iter().product()];
        from.read_part(name, 0, &mut values).unwrap();
        (shape, values)
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for name in file.names() {
        let (shape, values) = read(&file, name);
        tensors.push((name.to_owned(), shape, values));
    }
    for &(key, rows, more) in extras {
        let (shape, mut values) = read(&base, key.trim_start_matches("base_model.model."));
        values.iter_mut().for_each(|v| *v += more);
        values.resize(rows * shape[1], 0.1);
        tensors.push((key.to_owned(), vec![rows, shape[1]], values));
    }
    drop((file, base));
    let spec = |(name, shape, _): &(String, Vec<usize>, Vec<f32>)| TensorSpec {
        name: name.clone(),
        shape: shape.clone(),
        dtype: StoredDType::F32,
    };
    let mut writer =
        CheckpointWriter::file(&path, &BTreeMap::new(), tensors.iter().map(spec).collect()).unwrap();
    for (name, _, values) in &tensors {
        writer.write(name, MatrixRef::from_f32(1, values.len(), values)).unwrap();
    }
    writer.finish().unwrap();
    write_lines(folder.path().join("d.jsonl"), &[json!({"text": "hello hello tell hello"})]);
    folder
}

fn loss(folder: &Path, model: &str, adapter: &[&str]) -> f64 {
    let eval =
        ["eval", "perplexity", "--model", model, "--data", "d.jsonl", "--json", "--set", "precision=f32"];
    let told = succeed(folder, &[&eval[..], adapter].concat()).0;
    serde_json::from_str::<Value>(&told).unwrap()["loss"].as_f64().unwrap()
}

const WITH: [&str; 2] = ["--adapter", "adapter"];
const MERGE: [&str; 7] = ["merge", "--model", "model", "--adapter", "adapter", "--output", "merged"];
const GO_ON: [&str; 11] = [
    "train",
    "--model",
    "model",
    "--data",
    "d.jsonl",
    "--output",
    "on",
    "--set",
    "adapter.init_from=adapter",
    "--set",
    "training.max_steps=1",
];

#[test]
fn an_embedding_in_an_adapters_file_is_used_and_merged_and_not_lost_by_training() {
    let plain = folder(&[]);
    let without = loss(plain.path(), "model", &WITH);
    // PEFT writes the base's own where it is asked to.
    let equal = folder(&[(EMBEDDING, 263, 0.0)]);
    assert_eq!(loss(equal.path(), "model", &WITH), without);
    succeed(equal.path(), &GO_ON);

    let changed = folder(&[(EMBEDDING, 263, 0.25)]);
    let apart = loss(changed.path(), "model", &WITH);
    assert!((apart - without).abs() > 0.01, "{apart} {without}");
    let (_, notes) = succeed(changed.path(), &MERGE);
    assert!(notes.contains("note: the adapter's file has model.embed_tokens.weight whole"), "{notes}");
    assert!((loss(changed.path(), "merged", &[]) - apart).abs() < 1e-4);
    let generate = ["generate", "--model", "model", "--prompt", "hello", "--max-tokens", "2"];
    let (_, notes) = succeed(changed.path(), &[&generate[..], &WITH].concat());
    assert!(notes.contains("is used in its place"), "{notes}");
    let told = failure(changed.path(), &GO_ON);
    assert!(
        told.starts_with("exit code 2\n")
            && told.contains("so a run that goes on from this adapter would lose it"),
        "{told}"
    );
    assert!(!changed.path().join("on").exists());
    let (told, _) = succeed(changed.path(), &["inspect", "adapter"]);
    assert!(told.contains("in place of the base  model.embed_tokens (263 x 32)\n"), "{told}");
}

#[test]
fn an_adapter_of_a_larger_vocabulary_resizes_the_base_and_brings_its_tokenizer() {
    let folder = folder(&[(EMBEDDING, 266, 0.0), (HEAD, 266, 0.0)]);
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let (_, notes) = succeed(folder.path(), &MERGE);
    assert!(notes.contains("the base is resized from 263 tokens to 266"), "{notes}");
    assert!(notes.contains("adapter has no tokenizer.json, so the added tokens have no text"), "{notes}");
    fs::remove_dir_all(path("merged")).unwrap();

    let mut tokenizer: Value =
        serde_json::from_str(&fs::read_to_string(path("model/tokenizer.json")).unwrap()).unwrap();
    let mut added = tokenizer["added_tokens"][0].clone();
    added["id"] = json!(263);
    added["content"] = json!("<|tool|>");
    tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
    write(&path("adapter/tokenizer.json"), &tokenizer);
    write(&path("adapter/tokenizer_config.json"), &json!({"eos_token": "<|im_end|>"}));
    write_lines(path("d.jsonl"), &[json!({"text": "hello <|tool|> hello"})]);
    let apart = loss(folder.path(), "model", &WITH);
    let (_, notes) = succeed(folder.path(), &MERGE);
    assert!(!notes.contains("no text"), "{notes}");
    assert!((loss(folder.path(), "merged", &[]) - apart).abs() < 1e-4);
    let config: Value =
        serde_json::from_str(&fs::read_to_string(path("merged/config.json")).unwrap()).unwrap();
    assert_eq!(config["vocab_size"], 266);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(
            fs::read(path("merged").join(name)).unwrap(),
            fs::read(path("adapter").join(name)).unwrap()
        );
    }
    let generate = ["generate", "--model", "model", "--prompt", "<|tool|>", "--max-tokens", "3", "--json"];
    let (told, _) = succeed(folder.path(), &[&generate[..], &WITH].concat());
    assert!(told.contains("\"prompt_tokens\": 2"), "{told}"); // the text's beginning and one token
    let told = failure(folder.path(), &GO_ON);
    let words = "the adapter has 3 rows more than the base's vocabulary of 263: tokens were added before it was trained, so the \
                 base must be resized first, and its tokenizer used";
    assert!(told.contains(words), "{told}");
}

#[test]
fn an_adapter_narrowed_down_by_layers_goes_on_over_the_same_layers() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    write_lines(folder.path().join("d.jsonl"), &[json!({"text": "hello hello tell hello"})]);
    let train = [
        "train",
        "--model",
        "model",
        "--data",
        "d.jsonl",
        "--output",
        "adapter",
        "--set",
        "training.max_steps=1",
    ];
    let one = r"adapter.target_modules=model\.layers\.1\..*(q|v)_proj";
    succeed(folder.path(), &[&train[..], &["--set", one]].concat());
    let path = folder.path().join("adapter/adapter_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let names = json!(["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]);
    assert_eq!(config["target_modules"], names);
    config["target_modules"] = json!(["q_proj", "v_proj"]);
    config["layers_to_transform"] = json!([1]);
    write(&path, &config);
    succeed(folder.path(), &GO_ON);
    let on = fs::read_to_string(folder.path().join("on/adapter_config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&on).unwrap()["target_modules"], names);
}

#[test]
fn a_run_of_all_weights_is_told_as_a_run_whose_result_is_a_model() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    write_lines(folder.path().join("d.jsonl"), &[json!({"text": "hello hello tell hello"})]);
    let train = [
        "train",
        "--model",
        "model",
        "--data",
        "d.jsonl",
        "--output",
        "run",
        "--set",
        "training.max_steps=2",
    ];
    let more =
        ["--set", "adapter.method=full", "--set", "training.epochs=4", "--set", "training.save_every=1"];
    succeed(folder.path(), &[&train[..], &more].concat());
    let inspect = || -> Value {
        serde_json::from_str(&succeed(folder.path(), &["inspect", "run", "--json"]).0).unwrap()
    };
    let told = inspect();
    assert_eq!((&told["kind"], &told["finished"], &told["steps"]), (&json!("run"), &json!(true), &json!(2)));
    assert_eq!(told["trains"], "all weights: the result is a model");
    assert_eq!((&told["result"]["kind"], &told["result"]["vocabulary"]), (&json!("model"), &json!(263)));
    assert_eq!(told["settings"]["max_steps"], 2);
    assert!(
        told["last_loss"].is_number() && told["checkpoints"].as_array().is_some_and(|c| !c.is_empty()),
        "{told}"
    );
    assert_eq!(told.get("to_go_on"), None);
    // What a run that was stopped leaves.
    fs::remove_file(folder.path().join("run/config.json")).unwrap();
    let told = inspect();
    assert_eq!((&told["finished"], &told["to_go_on"]), (&json!(false), &json!("luthier train --resume run")));
    assert_eq!(told.get("result"), None);
}
