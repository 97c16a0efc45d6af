//! Four bits from the command line: `quantize`, training over them, and what both refuse.

use std::fs;
use std::path::Path;

use model::{Checkpoint, Config};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::{names, succeed, tiny_adapter, tiny_model, write_lines};
use crate::{failure, luthier};

const QUANTIZE: [&str; 5] = ["quantize", "--model", "model", "--output", "small"];

/// A folder with a model `model` and examples `data.jsonl`.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let record = |i: usize| json!({"text": format!("hello {i}, {}", "so it is, ".repeat(1 + i % 5))});
    write_lines(folder.path().join("data.jsonl"), &(0..24).map(record).collect::<Vec<_>>());
    folder
}

#[track_caller]
fn json_of(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(folder, &[arguments, &["--json"]].concat()).0).unwrap()
}

/// Exit code 2 with these words, and nothing new in the folder.
#[track_caller]
fn refused(folder: &Path, arguments: &[&str], words: &str) {
    let before = names(folder);
    let told = failure(folder, arguments);
    assert!(
        told.starts_with("exit code 2\n") && told.contains("error: ") && told.contains(words),
        "{told}\nlacks\n{words}"
    );
    assert_eq!(names(folder), before);
}

/// `train` over a model into `output`, in `f32`, with these settings besides.
fn train<'a>(model: &'a str, output: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "--model", model, "--data", "data.jsonl", "--output", output];
    let usual = ["precision=f32", "training.batch_size=2", "data.max_length=64", "training.max_steps=4"];
    for setting in usual.iter().chain(settings) {
        arguments.extend(["--set", setting]);
    }
    arguments
}

fn losses(run: &Path) -> Vec<f64> {
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    lines.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64()).collect()
}

#[test]
fn the_folder_is_a_model_and_the_report_says_what_it_cost() {
    let folder = folder();
    let (told, errors) = succeed(folder.path(), &QUANTIZE);
    assert!(errors.ends_with("quantizing 14/14\n"), "{errors}");
    assert!(told.starts_with("small\nlayers"), "{told}");
    for words in ["q_proj", "down_proj", "parameters are nf4 at 4.", "stay as they were"] {
        assert!(told.contains(words), "{told}\nlacks\n{words}");
    }
    let expected = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&folder.path().join("small")), expected);
    assert_eq!(names(folder.path()), ["data.jsonl", "model", "small"]);
    let config = Config::load(&folder.path().join("small")).unwrap();
    Checkpoint::open(&folder.path().join("small")).unwrap().check(&config).unwrap();
    // It says something; that it is the same as quantizing on loading is `train`'s part below.
    succeed(folder.path(), &["generate", "--model", "small", "--prompt", "hello", "--max-tokens", "4"]);
}

#[test]
fn the_report_as_json_agrees_with_inspect() {
    let folder = folder();
    for (name, flags, kind, block_size, double_quant) in [
        ("a", &[][..], "nf4", 64, true),
        ("b", &["--type", "fp4", "--no-double-quant", "--block-size", "32"], "fp4", 32, false),
        ("c", &["--block-size", "4096"], "nf4", 4096, true),
    ] {
        let told =
            json_of(folder.path(), &[&["quantize", "--model", "model", "--output", name], flags].concat());
        assert_eq!(told["type"], kind);
        assert_eq!(told["block_size"], block_size);
        assert_eq!(told["double_quant"], double_quant);
        assert_eq!(told["layers"].as_array().unwrap().len(), 14);
        assert_eq!(told["quantized_parameters"], 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32));
        let error = told["relative_error"].as_f64().unwrap();
        assert!((0.05..0.3).contains(&error), "{told}");
        let facts = json_of(folder.path(), &["inspect", name]);
        let quantization = &facts["quantization"];
        assert_eq!(facts["weights"], "float32");
        assert_eq!(quantization["type"], kind);
        assert_eq!(quantization["block_size"], block_size);
        assert_eq!(quantization["double_quant"], double_quant);
        assert_eq!(quantization["parameters"], told["quantized_parameters"]);
        assert_eq!(quantization["linear_layers_left_out"], 0);
        let bits = |of: &Value| of["bits_per_parameter"].as_f64().unwrap();
        assert!((bits(quantization) - bits(&told)).abs() < 1e-3 && bits(quantization) > 4.0);
    }
    assert_eq!(json_of(folder.path(), &["inspect", "model"])["quantization"], Value::Null);
    let (text, _) = succeed(folder.path(), &["inspect", "b"]);
    assert!(text.contains("bits per parameter      ") && text.contains("5.0\n"), "{text}");
}

#[test]
fn what_cannot_be_quantized_is_refused_and_leaves_nothing() {
    let folder = folder();
    succeed(folder.path(), &QUANTIZE);
    let with =
        |more: &[&'static str]| [&["quantize", "--model", "model", "--output", "other"], more].concat();
    refused(folder.path(), &QUANTIZE, "small: is not empty; name a new folder");
    refused(folder.path(), &with(&["--type", "int4", "--no-double-quant"]), "are of nf4 and fp4");
    refused(folder.path(), &with(&["--type", "nf5"]), "expected nf4, fp4, int4, int3 or int2");
    for size in ["65", "0", "-64", "16", "8192"] {
        let told = failure(folder.path(), &with(&["--block-size", size]));
        assert!(told.contains("expected one of [32, 64, 128, "), "{told}");
    }
    let again = ["quantize", "--model", "small", "--output", "other"];
    refused(folder.path(), &again, "the weights are nf4 already; quantize the model's 16-bit checkpoint");
    let weights = folder.path().join("model/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 5]).unwrap();
    refused(folder.path(), &with(&[]), "model.safetensors");
}

#[test]
fn a_value_that_is_not_a_number_is_refused_and_leaves_nothing() {
    let folder = folder();
    let weights = folder.path().join("model/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &bytes).unwrap();
    refused(folder.path(), &QUANTIZE, "has the value NaN at");
}

#[cfg(unix)]
#[test]
fn a_disk_that_takes_no_more_leaves_nothing() {
    let folder = folder();
    // Files may not grow beyond 4096 bytes (of 512 times 8), as if the disk were full.
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    let binary = luthier(folder.path()).get_program().to_owned();
    let output = std::process::Command::new("sh")
        .current_dir(folder.path())
        .arg("-c")
        .arg(script)
        .arg(binary)
        .args(QUANTIZE)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("cannot write"), "{told}");
    assert_eq!(names(folder.path()), ["data.jsonl", "model"]);
}

#[test]
fn training_quantizes_on_loading_as_the_folder_was_quantized() {
    let folder = folder();
    succeed(folder.path(), &QUANTIZE);
    succeed(folder.path(), &train("model", "on-loading", &["quantization=nf4"]));
    succeed(folder.path(), &train("small", "over-folder", &[]));
    succeed(folder.path(), &train("small", "both", &["quantization=nf4"]));
    succeed(folder.path(), &train("model", "whole", &[]));
    let weights = |name: &str| fs::read(folder.path().join(name).join("adapter_model.safetensors")).unwrap();
    assert!(weights("on-loading") == weights("over-folder") && weights("over-folder") == weights("both"));
    assert!(weights("whole") != weights("on-loading"));
    let of = |name: &str| losses(&folder.path().join(name));
    assert_eq!(of("on-loading"), of("over-folder"));
    assert_eq!(of("on-loading").len(), 4);
    // In bf16 as well.
    let bf16 = train("small", "bf16", &["precision=bf16"]);
    succeed(folder.path(), &bf16);
    for (a, b) in of("bf16").into_iter().zip(of("over-folder")) {
        assert!((a - b).abs() < 0.05 * b, "{a} in bf16, {b} in f32");
    }
}

#[test]
fn a_run_over_four_bits_goes_on_to_the_same_bytes() {
    let folder = folder();
    let usual = ["quantization={type: nf4, block_size: 32, double_quant: false}", "training.save_every=2"];
    let until = |output: &'static str, steps: &'static str| {
        train("model", output, &[&usual[..], &[steps, "schedule.name=constant"]].concat())
    };
    succeed(folder.path(), &until("alone", "training.max_steps=4"));
    succeed(folder.path(), &until("stopped", "training.max_steps=2"));
    succeed(folder.path(), &[until("stopped", "training.max_steps=4"), vec!["--resume"]].concat());
    let weights = |name: &str| fs::read(folder.path().join(name).join("adapter_model.safetensors")).unwrap();
    assert!(weights("alone") == weights("stopped"));
    // With another base the run is another.
    let other =
        [train("model", "stopped", &["training.save_every=2", "schedule.name=constant"]), vec!["--resume"]];
    let told = failure(folder.path(), &other.concat());
    assert!(told.starts_with("exit code 2\n") && told.contains("quantization"), "{told}");
}

#[test]
fn measuring_and_merging_work_over_a_quantized_folder() {
    let folder = folder();
    succeed(folder.path(), &QUANTIZE);
    tiny_adapter(folder.path(), 0.5);
    let measure = |model: &'static str, more: &[&'static str]| {
        let usual =
            ["eval", "perplexity", "--model", model, "--data", "data.jsonl", "--set", "precision=f32"];
        json_of(folder.path(), &[&usual[..], more].concat())["loss"].as_f64().unwrap()
    };
    let over_folder = measure("small", &[]);
    assert_eq!(over_folder, measure("model", &["--set", "quantization=nf4"]));
    assert_ne!(over_folder, measure("model", &[]));
    let merge = ["merge", "--model", "small", "--adapter", "adapter", "--output", "merged"];
    let told = json_of(folder.path(), &merge);
    assert_eq!(told["dtype"], "f32");
    assert_eq!(json_of(folder.path(), &["inspect", "merged"])["quantization"], Value::Null);
    let (apart, merged) = (measure("small", &["--adapter", "adapter"]), measure("merged", &[]));
    assert!((apart - merged).abs() < 1e-4 * apart, "{apart} apart, {merged} merged");
    let say = |arguments: &[&str]| {
        let usual = ["--prompt", "hello", "--max-tokens", "20", "--precision", "f32"];
        succeed(folder.path(), &[&["generate", "--model"], arguments, &usual].concat()).0
    };
    assert_eq!(say(&["small", "--adapter", "adapter"]), say(&["merged"]));
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let folder = folder();
    succeed(folder.path(), &QUANTIZE);
    let over = |model: &'static str, settings: &[&'static str]| train(model, "run", settings);
    let full = over("model", &["quantization=nf4", "adapter.method=full"]);
    refused(folder.path(), &full, "goes with a frozen base only, and adapter.method: full trains it");
    let sizes = over("model", &["quantization={type: nf4, block_size: 65}"]);
    refused(folder.path(), &sizes, "has the block_size 65; possible are [32, 64, ");
    refused(
        folder.path(),
        &over("model", &["quantization=int5"]),
        "expected nf4, fp4, int4, int3, int2, {type, double_quant, block_size}",
    );
    let words = "says that the weights are nf4 already, but fp4 is asked for";
    refused(folder.path(), &over("small", &["quantization=fp4"]), words);
    let told = failure(folder.path(), &over("small", &["quantization=fp4"]));
    assert!(told.starts_with("exit code 2\nerror: "), "before the data is read: {told}");
    refused(folder.path(), &["plan", "--model", "small", "--set", "quantization=fp4"], words);
}

#[test]
fn a_plan_counts_four_bits_and_refuses_weights_that_the_configuration_contradicts() {
    let folder = folder();
    succeed(folder.path(), &QUANTIZE);
    let base = |arguments: &[&str]| {
        let told = json_of(folder.path(), &[&["plan", "--model"], arguments].concat());
        told["bytes"]["base"].as_u64().unwrap()
    };
    let (whole, small) = (base(&["model"]), base(&["small"]));
    assert_eq!(small, base(&["model", "--set", "quantization=nf4"]));
    assert!(small < whole, "{small} of {whole} bytes");
    for model in ["model", "small"] {
        let path = folder.path().join(model).join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["intermediate_size"] = json!(64);
        fs::write(&path, config.to_string()).unwrap();
        refused(
            folder.path(),
            &["plan", "--model", model],
            "the weights and config.json must be of one model",
        );
        refused(folder.path(), &["inspect", model], "the weights and config.json must be of one model");
        fs::write(&path, text).unwrap();
    }
}
