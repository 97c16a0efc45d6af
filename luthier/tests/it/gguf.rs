//! GGUF files: `luthier inspect` of them, and `luthier export gguf`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::support::tiny_model;
use crate::{luthier, tiny};

fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/gguf");
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_model_tells_its_sizes_types_and_tokenizer() {
    let folder = tempdir().unwrap();
    let output = luthier(folder.path()).args(["inspect", &fixture("model.gguf"), "--json"]).output().unwrap();
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["kind"], "model");
    assert_eq!(facts["form"], "GGUF");
    assert_eq!(facts["family"], "llama");
    assert_eq!(facts["parameters"], 256 + 10 * 3 * 256);
    assert_eq!(facts["weights"]["Q4_K"], "1 tensor, 432 B");
    assert_eq!(facts["layers"], 2);
    assert_eq!(facts["key_value_heads"], json!([2, 1]));
    assert_eq!(facts["tokenizer"]["begin_of_text"], "<s>");
    assert_eq!(facts["tokenizer"]["chat_template"], "yes");
    let text = luthier(folder.path()).args(["inspect", &fixture("model.gguf")]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("Q5_1  1 tensor, 576 B") && text.contains("key value heads     2, 1"), "{text}");
}

#[test]
fn an_adapter_tells_its_rank_and_alpha() {
    let folder = tempdir().unwrap();
    let output =
        luthier(folder.path()).args(["inspect", &fixture("adapter.gguf"), "--json"]).output().unwrap();
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&facts["kind"], &facts["r"], &facts["updates"]), (&"adapter".into(), &4.into(), &1.into()));
    assert_eq!(facts["alpha"], 16.0);
}

#[test]
fn a_file_that_is_cut_off_or_none_at_all_is_refused() {
    let folder = tempdir().unwrap();
    let whole = fs::read(fixture("model.gguf")).unwrap();
    fs::write(folder.path().join("cut.gguf"), &whole[..whole.len() - 64]).unwrap();
    fs::write(folder.path().join("text.gguf"), "not one").unwrap();
    fs::write(folder.path().join("text.txt"), "not one").unwrap();
    fs::create_dir(folder.path().join("folder.gguf")).unwrap();
    // A file is known by its first bytes, too, as those of Ollama are.
    for name in ["blob", "UPPER.GGUF"] {
        fs::write(folder.path().join(name), &whole).unwrap();
        let output = luthier(folder.path()).args(["inspect", name]).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for (name, words) in [
        ("cut.gguf", "was the download broken off?"),
        ("text.gguf", "does not begin with `GGUF`"),
        ("text.txt", "name a GGUF file, or the folder of a model"),
        ("gone.gguf", "cannot read"),
        ("folder.gguf", "folder.gguf"),
    ] {
        let output = luthier(folder.path()).args(["inspect", name]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{name}: {said}");
    }
}

#[test]
fn an_adapter_is_exported_once_and_nothing_is_overwritten() {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    tiny::examples(&folder.path().join("d.jsonl"), 8, 1);
    let run = |args: &[&str]| luthier(folder.path()).args(args).output().unwrap();
    let settings = ["--set", "training.max_steps=2", "--set", "data.max_length=32"];
    let trained =
        run(&[&["train", "--model", "m", "--data", "d.jsonl", "--output", "run"][..], &settings].concat());
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let export = ["export", "gguf", "--adapter", "run", "--output", "a.gguf"];
    let output = run(&[&export[..], &["--json"]].concat());
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["architecture"], "llama");
    assert_eq!(facts["rescaled"], 0);
    let inspected = run(&["inspect", "a.gguf", "--json"]);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!((&inspected["updates"], &inspected["alpha"]), (&facts["updates"], &facts["alpha"]));
    let before = fs::read(folder.path().join("a.gguf")).unwrap();
    fs::create_dir(folder.path().join("mlx")).unwrap();
    let settings = json!({
        "fine_tune_type": "lora",
        "model": "gone-base",
        "num_layers": 1,
        "lora_parameters": {"rank": 2, "scale": 1.0},
    });
    fs::write(folder.path().join("mlx/adapter_config.json"), settings.to_string()).unwrap();
    for (args, words) in [
        (&export[..], "a.gguf: exists"),
        (&["export", "gguf", "--adapter", "nowhere", "--output", "b.gguf"], "nowhere"),
        (&["export", "gguf", "--adapter", "run", "--base", "gone", "--output", "b.gguf"], "gone"),
        (&["export", "gguf", "--adapter", "run"], "--output"),
        (
            &["export", "gguf", "--adapter", "a.gguf", "--output", "b.gguf"],
            "a.gguf is a file; name the folder",
        ),
        // As mlx-lm names the base of an adapter.
        (&["export", "gguf", "--adapter", "mlx", "--output", "b.gguf"], "gone-base"),
    ] {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(fs::read(folder.path().join("a.gguf")).unwrap(), before);
    let left =
        fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let left: Vec<String> = left.filter(|name| name.starts_with('.') || name.starts_with("b.")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_whole_model_is_exported_with_its_tokenizer() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let run = |args: &[&str]| luthier(folder.path()).args(args).output().unwrap();
    let export = ["export", "gguf", "--model", "model", "--output", "m.gguf", "--type", "f16"];
    let output = run(&[&export[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&facts["architecture"], &facts["type"]), (&json!("llama"), &json!("f16")));
    let inspected = run(&["inspect", "m.gguf", "--json"]);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["name"], "model");
    assert_eq!(inspected["parameters"], facts["parameters"]);
    assert_eq!(inspected["tokenizer"]["type"], "gpt2");
    let before = fs::read(folder.path().join("m.gguf")).unwrap();
    for (args, words) in [
        (&export[..], "m.gguf: exists"),
        (&["export", "gguf", "--output", "b.gguf"], "needs `--model <M>`"),
        (
            &["export", "gguf", "--model", "model", "--output", "b.gguf", "--type", "q3_k"],
            "f32, f16, bf16, q8_0",
        ),
        (&["export", "gguf", "--model", "model", "--base", "model", "--output", "b.gguf"], "--base"),
        (&["export", "gguf", "--model", "gone", "--output", "b.gguf"], "gone"),
    ] {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(fs::read(folder.path().join("m.gguf")).unwrap(), before);
    assert!(!folder.path().join("b.gguf").exists());
}

#[test]
fn a_folder_for_ollama_has_the_template_in_its_own_language() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let run = |args: &[&str]| luthier(folder.path()).args(args).output().unwrap();
    let export = ["export", "ollama", "--model", "model", "--output", "o", "--system", "Be brief."];
    let output = run(&export);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("its chat template is chatml"), "{said}");
    let modelfile = fs::read_to_string(folder.path().join("o/Modelfile")).unwrap();
    for line in ["FROM ./model.gguf\n", "PARAMETER stop \"<|im_end|>\"\n", "SYSTEM \"\"\"Be brief.\"\"\"\n"] {
        assert!(modelfile.contains(line), "{modelfile}");
    }
    fs::write(
        folder.path().join("model/chat_template.jinja"),
        "{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    .unwrap();
    let output = run(&["export", "ollama", "--model", "model", "--output", "p"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("Ollama reads the chat template of the GGUF file"), "{said}");
    assert_eq!(fs::read_to_string(folder.path().join("p/Modelfile")).unwrap(), "FROM ./model.gguf\n");
    let refused = run(&["export", "ollama", "--model", "model", "--output", "q", "--system", "\"\"\""]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(!folder.path().join("q").exists());
}
