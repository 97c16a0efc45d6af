//! `data preview`: examples as the model will see them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::{BEGIN, END, tiny_model, write_lines};
use crate::{failure, run};

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let records = [
        json!({"prompt": "2 + 2 =", "completion": " 4\u{7}"}),
        json!({"prompt": "hell", "completion": "o"}),
        json!({"prompt": "héllo", "completion": " 世界"}),
    ];
    write_lines(folder.path().join("data.jsonl"), &records);
    folder
}

fn preview(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = run(folder, &[&["data", "preview"], arguments].concat());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    (String::from_utf8(output.stdout).unwrap(), errors)
}

#[test]
fn trained_parts_are_marked_and_control_characters_are_not_obeyed() {
    let folder = folder();
    let (told, errors) = preview(folder.path(), &["--model", "model", "--data", "data.jsonl"]);
    insta::assert_snapshot!(format!("{told}{errors}"));
}

#[test]
fn json_holds_ids_and_labels_as_transformers_has_them() {
    let folder = folder();
    fs::write(folder.path().join("run.yaml"), "model: model\ndata: {train: data.jsonl}\n").unwrap();
    let (told, _) = preview(folder.path(), &["run.yaml", "--count", "2", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    let examples = told["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 2);
    // The last letter merges with nothing before it: begin, "hell", "o", end.
    assert_eq!(
        examples[1],
        json!({
            "text": "<|begin|>hello<|im_end|>",
            "token_ids": [BEGIN, 258, 111, END],
            "labels": [-100, -100, 111, END],
            "source": "data.jsonl:2",
        })
    );
}

#[test]
fn what_the_data_mark_as_not_to_be_learnt_is_not() {
    let folder = folder();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let bad = json!({"role": "assistant", "content": "no", "weight": 0});
    let chat =
        json!({"messages": [turn("user", "hello"), bad, turn("user", "hello"), turn("assistant", "yes")]});
    fs::write(folder.path().join("chat.jsonl"), format!("[{chat},\n{chat}]")).unwrap();
    let (told, _) = preview(folder.path(), &["--model", "model", "--data", "chat.jsonl"]);
    assert_eq!((told.matches('⟦').count(), told.matches("⟦yes<|im_end|>").count()), (2, 2), "{told}");

    let half = chat.to_string().replace("\"weight\":0", "\"weight\":0.5");
    fs::write(folder.path().join("chat.jsonl"), half).unwrap();
    let told = failure(folder.path(), &["data", "preview", "--model", "model", "--data", "chat.jsonl"]);
    assert!(told.starts_with("exit code 2\nerror: chat.jsonl:1: messages[1].weight is 0.5"), "{told}");
}

#[test]
fn a_folder_with_a_tokenizer_alone_is_enough() {
    let folder = folder();
    fs::remove_file(folder.path().join("model/model.safetensors")).unwrap();
    let arguments = ["--model", "model", "--data", "data.jsonl", "--count", "1"];
    let (with_config, _) = preview(folder.path(), &arguments);
    fs::remove_file(folder.path().join("model/config.json")).unwrap();
    assert_eq!(preview(folder.path(), &arguments).0, with_config);
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let folder = folder();
    fs::write(folder.path().join("bad.jsonl"), "{\"text\": \"a\"}\n{\"text\"\n").unwrap();
    for (arguments, words) in [
        (&["--data", "data.jsonl"][..], "`model` is required"),
        (&["--model", "model"], "`data.train` is required"),
        (&["--model", "none", "--data", "data.jsonl"], "no such folder: none"),
        (&["--model", "model", "--data", "none.jsonl"], "none.jsonl: No such file"),
        (&["--model", "model", "--data", "bad.jsonl"], "bad.jsonl:2"),
    ] {
        let told = failure(folder.path(), &[&["data", "preview"], arguments].concat());
        assert!(told.starts_with("exit code 2\n") && told.contains(words), "{arguments:?}: {told}");
    }
}
