//! `luthier export mlx`, and folders of MLX where a model is named.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::luthier;
use crate::support::{tiny_adapter, tiny_model};

#[test]
fn a_model_is_exported_for_mlx_lm_and_is_a_model_here() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    tiny_adapter(folder.path(), 0.1);
    let run = |args: &[&str]| luthier(folder.path()).args(args).output().unwrap();
    let export =
        ["export", "mlx", "--model", "model", "--adapter", "adapter", "--output", "mlx", "--type", "q4"];
    let output = run(&[&export[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["type"], "q4");
    assert!(facts["relative_difference"].as_f64().is_some_and(|difference| difference < 0.6), "{facts}");
    let config: Value =
        serde_json::from_slice(&fs::read(folder.path().join("mlx/config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization"], json!({"group_size": 32, "bits": 4, "mode": "affine"}));
    let inspected = run(&["inspect", "mlx", "--json"]);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!((&inspected["quantization"]["type"], &inspected["kind"]), (&json!("int4"), &json!("model")));
    // What it has already stays as it is.
    let again = run(&["export", "mlx", "--model", "mlx", "--output", "again", "--json"]);
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&again["type"], &again["largest_difference"]), (&json!("q4"), &json!(0.0)));
    let bytes = |name: &str| fs::read(folder.path().join(name).join("model.safetensors")).unwrap();
    assert!(bytes("again") == bytes("mlx"));
    let plain = run(&["export", "mlx", "--model", "model", "--output", "plain"]);
    let said = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(
        said.contains(
            "all weights are f32\nweights  stored as f32\nwriting  changes the logits of a text by 0 %"
        ) && said.contains("mlx_lm.generate"),
        "{said}"
    );
}

#[test]
fn nothing_is_left_of_an_export_that_fails() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    fs::create_dir(folder.path().join("full")).unwrap();
    fs::write(folder.path().join("full/file"), "mine").unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let gpt2 = fixtures.join("gpt2");
    let of = |model: &str, more: &[&str]| {
        let args = ["export", "mlx", "--model", model].into_iter().chain(more.iter().copied());
        let output = luthier(folder.path()).args(args).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (model, more, words) in [
        ("model", &["--output", "full"][..], "full"),
        ("model", &["--output", "o", "--type", "q8"], "expected f32, f16, bf16, q4, q3 or q2"),
        (
            "model",
            &["--output", "o", "--type", "q2", "--max-divergence", "0"],
            "the logits of the folder differ",
        ),
        ("gone", &["--output", "o"], "gone"),
        (gpt2.to_str().unwrap(), &["--output", "o"], ""),
    ] {
        let (code, said) = of(model, more);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    }
    let left =
        fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut left: Vec<String> = left.collect();
    left.sort();
    assert_eq!(left, ["full", "model"]);
}
