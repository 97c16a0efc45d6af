//! `luthier example`: nothing but the binary is needed, and what it carries is what the repository shows.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::tempdir;

use crate::run;

/// The model that the repository carries may take this much.
const MAX_BYTES: u64 = 3_000_000;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("example")
}

/// Every file below a folder, by its path in it, with its contents.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let contents = fs::read(&path).unwrap();
                found.push((path.strip_prefix(folder).unwrap().to_owned(), contents));
            }
        }
    }
    found.sort();
    found
}

/// The conversations of a file: question and answer.
fn conversations(name: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(example().join(name)).unwrap();
    let content = |message: &serde_json::Value| message["content"].as_str().unwrap().to_owned();
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["messages"].clone())
        .map(|messages| (content(&messages[0]), content(&messages[1])))
        .collect()
}

#[test]
fn the_example_runs_in_an_empty_folder_and_again_and_leaves_a_whole_run() {
    let folder = tempdir().unwrap();
    let first = run(folder.path(), &["example", "--steps", "2"]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let shown = String::from_utf8(first.stdout).unwrap();
    assert!(shown.contains("before") && shown.contains("after") && shown.contains("held-out"), "{shown}");

    let made = folder.path().join("luthier-example");
    for (name, contents) in files(&made).iter().filter(|(name, _)| !name.starts_with("run")) {
        assert_eq!(fs::read(example().join(name)).unwrap(), *contents, "{}", name.display());
    }
    for name in ["adapter_config.json", "adapter_model.safetensors", "run.yaml", "metrics.jsonl"] {
        assert!(made.join("run").join(name).is_file(), "{name}");
    }

    let again = run(folder.path(), &["example", "--steps", "2"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(String::from_utf8_lossy(&again.stderr).contains("finished already"));
    assert!(String::from_utf8_lossy(&again.stdout).contains("trained by an earlier call"));
}

#[test]
fn the_example_fails_its_own_check_if_the_model_has_not_learnt() {
    let folder = tempdir().unwrap();
    let output = run(folder.path(), &["example", "elsewhere", "--steps", "1", "--check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("of the held-out answers are right"));
}

#[test]
fn files_of_somebody_else_are_not_touched() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("train.jsonl"), "mine").unwrap();
    let output = run(folder.path(), &["example", "."]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("train.jsonl exists and is not the example's"));
    assert_eq!(files(folder.path()), [(PathBuf::from("train.jsonl"), b"mine".to_vec())]);
}

#[test]
fn the_model_that_the_repository_carries_is_small() {
    let total: u64 = files(&example()).iter().map(|(_, contents)| contents.len() as u64).sum();
    assert!(total <= MAX_BYTES, "{total} bytes");
}

#[test]
fn held_out_examples_are_not_trained_on() {
    let train = conversations("train.jsonl");
    let questions: BTreeSet<&str> = train.iter().map(|(question, _)| question.as_str()).collect();
    let answers: BTreeSet<&str> = train.iter().map(|(_, answer)| answer.as_str()).collect();
    let held_out = conversations("eval.jsonl");
    assert!(!held_out.is_empty());
    for (question, answer) in &held_out {
        assert!(!questions.contains(question.as_str()) && !answers.contains(answer.as_str()), "{question}");
    }
}
