//! Bases of integers, GGUF files as models, and training for an export, by the binary.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::luthier;
use crate::support::{tiny_model, write_lines};

/// Runs a command that prints JSON.
fn json_of(folder: &Path, args: &[&str]) -> Value {
    let output = luthier(folder).args(args).arg("--json").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a command says that ends with exit code 2.
fn refused(folder: &Path, args: &[&str]) -> String {
    let output = luthier(folder).args(args).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
    told
}

/// A folder with the tiny model and some texts.
fn work() -> tempfile::TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let texts: Vec<Value> = (0..24)
        .map(|i| json!({"text": format!("hello tell the bell {i}, then tell the well {}", i * 7)}))
        .collect();
    write_lines(folder.path().join("texts.jsonl"), &texts);
    folder
}

fn loss(folder: &Path, args: &[&str]) -> f64 {
    let mut all = vec!["eval", "perplexity", "--data", "texts.jsonl", "--set", "precision=f32"];
    all.extend(args);
    json_of(folder, &all)["loss"].as_f64().unwrap()
}

fn train(folder: &Path, model: &str, output: &str, set: &[&str]) {
    let mut args =
        vec!["train", "--model", model, "--data", "texts.jsonl", "--output", output, "--lr", "0.01"];
    for change in set.iter().chain(&["precision=f32", "training.max_steps=6"]) {
        args.extend(["--set", change]);
    }
    json_of(folder, &args);
}

/// Layers of the tiny model have inputs of 32, but for one of 48, which stays as it is.
const TARGETS: &str = "adapter.target_modules=[q_proj, k_proj, o_proj, up_proj]";

#[test]
fn an_adapter_goes_into_integers_and_into_a_file_exactly() {
    let work = work();
    let folder = work.path();
    for kind in ["int4", "int3"] {
        let [base, run, merged, file] =
            ["base", "run", "merged", "file"].map(|name| format!("{kind}-{name}"));
        let told = json_of(
            folder,
            &[
                "quantize",
                "--model",
                "model",
                "--type",
                kind,
                "--calibrate",
                "texts.jsonl",
                "--output",
                &base,
            ],
        );
        assert_eq!((&told["type"], told["layers"].as_array().unwrap().len()), (&json!(kind), 2 * 6));
        train(folder, &base, &run, &["adapter.method=qalora", TARGETS]);
        let told = json_of(folder, &["merge", "--adapter", &run, "--output", &merged]);
        assert_eq!(told["dtype"], kind);
        assert!(told["adapter_relative_difference"].as_f64().unwrap() > 0.01, "{told}");
        assert!(told["relative_difference"].as_f64().unwrap() < 5e-3, "{told}");
        let config: Value =
            serde_json::from_slice(&fs::read(folder.join(&merged).join("config.json")).unwrap()).unwrap();
        assert_eq!(config["quantization_config"]["type"], kind);
        let file = format!("{file}.gguf");
        let told = json_of(folder, &["export", "gguf", "--model", &merged, "--output", &file]);
        assert_eq!((&told["type"], &told["relative_difference"]), (&json!("q4_1"), &json!(0.0)), "{told}");
        // Base and adapter, written at once, are the same file.
        let direct = format!("direct-{file}");
        json_of(folder, &["export", "gguf", "--model", &base, "--adapter", &run, "--output", &direct]);
        let tensors = |name: &str| {
            let bytes = fs::read(folder.join(name)).unwrap();
            bytes[bytes.len() - 16_000..].to_vec()
        };
        assert!(tensors(&file) == tensors(&direct), "{kind}: tensors");
        let [adapted, integers, exported] = [
            loss(folder, &["--adapter", &run]),
            loss(folder, &["--model", &merged]),
            loss(folder, &["--model", &file]),
        ];
        assert!((adapted - integers).abs() < 2e-3 * adapted, "{kind}: {adapted} and {integers}");
        assert!((integers - exported).abs() < 1e-6, "{kind}: {integers} and {exported}");
    }
}

#[test]
fn a_gguf_file_is_a_model_for_every_command() {
    let work = work();
    let folder = work.path();
    json_of(folder, &["export", "gguf", "--model", "model", "--output", "m.gguf", "--type", "q8_0"]);
    train(folder, "m.gguf", "run", &[]);
    let [before, after] = [loss(folder, &["--model", "m.gguf"]), loss(folder, &["--adapter", "run"])];
    assert!(after < before - 0.05, "{before}, then {after}");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        assert!(folder.join("run").join(file).is_file(), "{file} stands in the run folder");
    }
    let answer = json_of(folder, &["generate", "--adapter", "run", "--prompt", "hello", "--max-tokens", "4"]);
    let folders =
        json_of(folder, &["generate", "--model", "model", "--prompt", "hello", "--max-tokens", "4"]);
    assert_eq!(answer["prompt_tokens"], folders["prompt_tokens"]);
    assert!(json_of(folder, &["plan", "--model", "m.gguf"])["total_bytes"].as_u64().unwrap() > 0);
    assert_eq!(json_of(folder, &["inspect", "m.gguf"])["form"], "GGUF");
    // A run that goes on over the file.
    let resumed = luthier(folder).args(["train", "--resume", "run", "--json"]).output().unwrap();
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    json_of(folder, &["merge", "--adapter", "run", "--output", "merged"]);
    assert!((loss(folder, &["--model", "merged"]) - after).abs() < 1e-3);
    let told = refused(
        folder,
        &["train", "--model", "m.gguf", "--data", "texts.jsonl", "--output", "x", "--quantization", "nf4"],
    );
    assert!(told.contains("q8_0 already"), "{told}");
}

#[test]
fn what_was_trained_for_an_export_is_what_it_holds() {
    let work = work();
    let folder = work.path();
    train(folder, "model", "plain", &[]);
    for kind in ["q4_0", "q8_0"] {
        let run = format!("run-{kind}");
        train(folder, "model", &run, &[&format!("training.quantization_aware={kind}")]);
        let difference = |adapter: &str| {
            let file = format!("{adapter}-{kind}.gguf");
            let told = json_of(
                folder,
                &[
                    "export",
                    "gguf",
                    "--model",
                    "model",
                    "--adapter",
                    adapter,
                    "--output",
                    &file,
                    "--type",
                    kind,
                ],
            );
            assert_eq!(told["type"], kind);
            told["relative_difference"].as_f64().unwrap()
        };
        // Embeddings and head were not rounded in training, and make up most of the difference in a model of this
        // size; that the layers are what was trained is a test of `model`.
        let [aware, plain] = [&run, "plain"].map(difference);
        assert!(aware < 0.9 * plain, "{kind}: {aware}, and {plain} without");
    }
    let told =
        |args: &[&str]| String::from_utf8(luthier(folder).args(args).output().unwrap().stderr).unwrap();
    // In another type it is another model, which is said.
    for other in [
        &["export", "gguf", "--adapter", "run-q4_0", "--output", "alone.gguf"][..],
        &["export", "mlx", "--adapter", "run-q4_0", "--output", "mlx"],
        &["merge", "--adapter", "run-q4_0", "--output", "merged"],
        &["export", "gguf", "--model", "model", "--adapter", "run-q4_0", "--output", "o", "--type", "q8_0"],
    ] {
        let told = told(other);
        assert!(
            told.contains("`export gguf --type q4_0` writes what it was trained for"),
            "{other:?}: {told}"
        );
    }
    // As the type that it was trained for, it is what it was; as the same without training, it is not.
    train(folder, "model", "run-nf4", &["training.quantization_aware=nf4"]);
    let told = json_of(folder, &["merge", "--adapter", "run-nf4", "--output", "nf4", "--type", "nf4"]);
    assert!(told["relative_difference"].as_f64().unwrap() < 1e-3, "{told}");
    let told = json_of(folder, &["merge", "--adapter", "plain", "--output", "plain-nf4", "--type", "nf4"]);
    assert!(told["relative_difference"].as_f64().unwrap() > 1e-2, "{told}");
}

/// A module that is trained whole leaves the integers, and keeps its values.
#[test]
fn a_module_that_is_trained_whole_is_merged_beside_integers() {
    let work = work();
    let folder = work.path();
    json_of(folder, &["quantize", "--model", "model", "--type", "int4", "--output", "base"]);
    let targets = "adapter.target_modules=[k_proj, v_proj]";
    train(
        folder,
        "base",
        "run",
        &["adapter.method=qalora", targets, "adapter.modules_to_save=[q_proj, down_proj]"],
    );
    let told = json_of(folder, &["merge", "--adapter", "run", "--output", "merged"]);
    assert_eq!(told["dtype"], "int4");
    let [adapted, merged] = [loss(folder, &["--adapter", "run"]), loss(folder, &["--model", "merged"])];
    assert!((adapted - merged).abs() < 1e-3, "{adapted} and {merged}");
}

/// What a file has in other types than most of it keeps them.
#[test]
fn a_file_that_is_written_again_is_the_same() {
    let work = work();
    let folder = work.path();
    for kind in ["q4_0", "q8_0", "q4_1", "q5_1"] {
        let [first, second] = [format!("{kind}.gguf"), format!("{kind}-again.gguf")];
        json_of(folder, &["export", "gguf", "--model", "model", "--type", kind, "--output", &first]);
        let told = json_of(folder, &["export", "gguf", "--model", &first, "--output", &second]);
        assert_eq!((&told["type"], &told["relative_difference"]), (&json!(kind), &json!(0.0)), "{told}");
        // What stood in half precision may be wider now; blocks are the same.
        let kinds = |name: &str| json_of(folder, &["inspect", name])["weights"][kind.to_uppercase()].clone();
        assert!(kinds(&first).is_string() && kinds(&first) == kinds(&second), "{kind}");
    }
}

#[test]
fn quantizing_a_file_keeps_its_tokenizer_and_what_is_too_large_is_refused() {
    let work = work();
    let folder = work.path();
    json_of(folder, &["export", "gguf", "--model", "model", "--type", "f32", "--output", "m.gguf"]);
    json_of(folder, &["quantize", "--model", "m.gguf", "--type", "int4", "--output", "small"]);
    assert!(loss(folder, &["--model", "small"]).is_finite());
    // Beginning by loftq, over layers of which one is no whole groups.
    train(folder, "model", "loftq", &["adapter.init=loftq", "quantization=int4", "adapter.r=4"]);
    let path = folder.join("model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let at = 8
        + length
        + header["model.layers.0.mlp.up_proj.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&1e7_f32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let told = refused(folder, &["quantize", "--model", "model", "--type", "int4", "--output", "x"]);
    assert!(told.contains("layers.0.mlp.up_proj") && told.contains("half precision"), "{told}");
    assert!(!folder.join("x").exists());
}

#[test]
fn what_cannot_be_is_refused_with_what_would_do() {
    let work = work();
    let folder = work.path();
    let quantize = ["quantize", "--model", "model", "--output", "x"];
    let told = |more: &[&str]| refused(folder, &[&quantize[..], more].concat());
    assert!(told(&["--type", "int4", "--block-size", "64"]).contains("of nf4 and fp4"));
    assert!(told(&["--calibrate", "texts.jsonl"]).contains("--type int4, int3 or int2, not nf4"));
    assert!(told(&["--type", "int5"]).contains("expected nf4, fp4, int4, int3 or int2"));
    assert!(!folder.join("x").exists());
    for (kind, why) in [("q4_k", "minima"), ("q4_0", "no minimum"), ("gptq", "zero points")] {
        let told = refused(folder, &["merge", "--adapter", "run", "--output", "x", "--type", kind]);
        assert!(told.contains(why) && told.contains("int4, which is GGUF's Q4_1"), "{told}");
    }
    let train = |set: &[&str]| {
        let mut args = vec!["train", "--model", "model", "--data", "texts.jsonl", "--output", "x"];
        set.iter().for_each(|change| args.extend(["--set", change]));
        refused(folder, &args)
    };
    assert!(train(&["adapter.group_size=32"]).contains("belongs to adapter.method: qalora"));
    assert!(train(&["adapter.method=qalora"]).contains("whole groups of 32"));
    assert!(train(&["quantization={type: int4, group_size: 64}"]).contains("group_size 64"));
    assert!(train(&["quantization={type: int4, block_size: 64}"]).contains("group_size"));
    let aware = "training.quantization_aware=q4_0";
    assert!(train(&[aware, "adapter.dropout=0.1"]).contains("adapter.dropout"));
    assert!(train(&[aware, "quantization=nf4"]).contains("leave `quantization` out"));
    assert!(train(&[aware, "adapter.method=dora"]).contains("adapter.method: lora only"));
    json_of(folder, &["quantize", "--model", "model", "--type", "int4", "--output", "base"]);
    let told = refused(
        folder,
        &["train", "--model", "base", "--data", "texts.jsonl", "--output", "x", "--set", aware],
    );
    assert!(told.contains("int4 already"), "{told}");
    let told = refused(
        folder,
        &[
            "export",
            "gguf",
            "--model",
            "model",
            "--output",
            "x.gguf",
            "--type",
            "q4_0",
            "--max-divergence",
            "0.01",
        ],
    );
    assert!(told.contains("nothing was kept"), "{told}");
    assert!(!folder.join("x.gguf").exists());
}
