//! `eval choice` and `eval generate` beside lm-evaluation-harness: its own tasks' log-likelihoods, texts and
//! scores over the example's model, as `tests/fixtures/harness/make_harness.py` wrote them down.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::eval::json_of;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/harness")
}

/// So many rows of GSM8K are asked here, for their prompts are long.
const LONG: usize = 15;

/// A folder with the rows.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    for entry in fs::read_dir(fixtures()).unwrap() {
        let entry = entry.unwrap();
        if entry.path().extension().is_some_and(|kind| kind == "jsonl" || kind == "parquet") {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    let long = folder.path().join("gsm8k-test.jsonl");
    let rows = fs::read_to_string(&long).unwrap();
    fs::write(&long, rows.lines().take(LONG).map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    folder
}

/// What the harness says of a kind of task: `lls` are there for choices, `text` for answers.
fn expected(key: &str) -> Vec<Value> {
    let text = fs::read_to_string(fixtures().join("expected.json")).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    all.into_iter().filter(|task| task["items"][0].get(key).is_some()).collect()
}

/// What `eval` prints of the example's model, and what it says of each item.
fn told(folder: &Path, task: &Value) -> (Value, Vec<Value>) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../example/model");
    let model = model.to_str().unwrap();
    let own = task["arguments"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
    let always = ["--model", model, "--set", "precision=f32", "--items", "items.jsonl", "--json"].into_iter();
    let arguments: Vec<&str> = ["eval"].into_iter().chain(own).chain(always).collect();
    let told = json_of(folder, &arguments);
    let items = fs::read_to_string(folder.join("items.jsonl")).unwrap();
    let item = |line: &str| {
        let item: Value = serde_json::from_str(line).unwrap();
        let mut of_system = item["systems"]["model"].clone();
        of_system["prompt"] = item["prompt"].clone();
        of_system
    };
    (told["systems"][0].clone(), items.lines().map(item).collect())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn mean(items: &[Value], key: &str) -> f64 {
    items.iter().map(|item| number(&item[key])).sum::<f64>() / items.len() as f64
}

#[test]
fn choices_have_the_log_likelihoods_and_accuracies_of_lm_evaluation_harness() {
    let folder = folder();
    let tasks = expected("lls");
    assert_eq!(tasks.len(), 4);
    for task in &tasks {
        let (name, items) = (&task["task"], task["items"].as_array().unwrap());
        let (system, own) = told(folder.path(), task);
        assert_eq!((own.len(), items.len()), (60, 60), "{name}");
        for (n, (own, item)) in own.iter().zip(items).enumerate() {
            let (own, lls) = (own["logprobs"].as_array().unwrap(), item["lls"].as_array().unwrap());
            assert_eq!(own.len(), lls.len(), "{name}, item {n}");
            for (own, ll) in own.iter().zip(lls) {
                let apart = (number(own) - number(ll)).abs();
                assert!(apart < 1e-4, "{name}, item {n}: {own}, not {ll}");
            }
        }
        for (key, of_harness) in [("accuracy", "acc"), ("accuracy_norm", "acc_norm")] {
            let (own, theirs) = (number(&system[key]["value"]), mean(items, of_harness));
            assert!((own - theirs).abs() < 1e-12, "{name}: {key} is {own}, not {theirs}");
            // A model that knows nothing would not tell one way of counting from another.
            assert!(theirs > 0.0 && theirs < 1.0, "{name}: {of_harness} is {theirs}");
        }
    }
}

#[test]
fn answers_have_the_texts_and_scores_of_lm_evaluation_harness() {
    let folder = folder();
    let tasks = expected("text");
    assert_eq!(tasks.len(), 5);
    let mut scores = Vec::new();
    for task in &tasks {
        let name = format!("{}, {}", task["task"], task["filter"]);
        let asked = if task["task"] == "gsm8k" { LONG } else { 60 };
        let items = &task["items"].as_array().unwrap()[..asked];
        let (system, own) = told(folder.path(), task);
        assert_eq!(own.len(), asked, "{name}");
        for (n, (own, item)) in own.iter().zip(items).enumerate() {
            assert_eq!(own["answers"][0], item["text"], "{name}, item {n}");
            if let Some(prompt) = item.get("prompt") {
                assert_eq!(&own["prompt"], prompt, "{name}, item {n}");
            }
            assert_eq!(
                number(&own["scores"][0]),
                number(&item["score"]),
                "{name}, item {n}: {}",
                item["text"]
            );
        }
        let (own, theirs) = (number(&system["score"]), mean(items, "score"));
        assert!((own - theirs).abs() < 1e-12, "{name}: {own}, not {theirs}");
        scores.push(theirs);
    }
    assert!(scores.iter().filter(|score| **score > 0.0 && **score < 1.0).count() >= 4, "{scores:?}");
}
