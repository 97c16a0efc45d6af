//! `luthier inspect` of GGUF files.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::luthier;

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
    assert_eq!(facts["key_value_heads"], serde_json::json!([2, 1]));
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
    for (name, words) in [
        ("cut.gguf", "was the download broken off?"),
        ("text.gguf", "does not begin with `GGUF`"),
        ("text.txt", "name a GGUF file, or the folder of a model"),
        ("gone.gguf", "cannot read"),
    ] {
        let output = luthier(folder.path()).args(["inspect", name]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{name}: {said}");
    }
}
