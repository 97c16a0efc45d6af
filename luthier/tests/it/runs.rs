//! `luthier runs`: which runs there are, how they stand, and what differs between them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::succeed;
use crate::{failure, run, tiny};

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    tiny::examples(&folder.path().join("d.jsonl"), 60, 1);
    folder
}

fn train(folder: &Path, output: &str, settings: &[&str]) {
    let usual = ["train", "--model", "m", "--data", "d.jsonl", "--output", output, "--quiet"];
    succeed(folder, &[&usual[..], settings].concat());
}

fn list(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let (told, _) = succeed(folder, &[&["runs", "list", "--json"], arguments].concat());
    let told: Value = serde_json::from_str(&told).unwrap();
    told["runs"].as_array().unwrap().clone()
}

#[test]
fn runs_are_found_wherever_they_are_and_told_as_they_stand() {
    let folder = folder();
    let path = folder.path();
    assert_eq!(list(path, &[]), Vec::<Value>::new());
    train(path, "one", &["--set", "training.max_steps=5"]);
    train(
        path,
        "deep/er/two",
        &["--set", "adapter.method=full", "--set", "training.max_steps=4", "--eval-data", "d.jsonl"],
    );
    // The order of the table is that of time.
    fs::write(path.join("one/checkpoints/begun"), "1000\n").unwrap();
    let runs = list(path, &[]);
    let told = |run: &Value, key: &str| run[key].clone();
    assert_eq!(runs.iter().map(|run| told(run, "name")).collect::<Vec<_>>(), ["deep/er/two", "one"]);
    assert_eq!(runs.iter().map(|run| told(run, "method")).collect::<Vec<_>>(), ["full", "lora, rank 16"]);
    for (run, steps) in runs.iter().zip([4, 5]) {
        assert_eq!(
            (&run["state"], &run["steps"], &run["all_steps"]),
            (&json!("finished"), &json!(steps), &json!(steps))
        );
        assert_eq!((&run["model"], &run["data"]), (&json!("m"), &json!("d.jsonl")));
    }
    assert!(runs[0]["held_out_loss"]["last"].is_number() && runs[1]["held_out_loss"].is_null(), "{runs:?}");
    // A result that is gone, and with it the last checkpoint; all steps are those of the settings.
    fs::remove_file(path.join("one/adapter_config.json")).unwrap();
    assert_eq!(list(path, &["one"])[0]["state"], "stopped");
    fs::remove_dir_all(path.join("one/checkpoints/step-000005")).unwrap();
    assert_eq!(list(path, &["one"])[0]["state"], "unfinished");
    // As a process that trains it holds it.
    let lock = fs::File::options().append(true).open(path.join("one/checkpoints/lock")).unwrap();
    lock.lock().unwrap();
    let twice = list(path, &["one", "."]);
    assert_eq!((twice.len(), &twice[1]["state"]), (2, &json!("running")));
    let (table, _) = succeed(path, &["runs", "list", "one", "deep"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("run ") && lines[1].starts_with("deep/er/two") && lines[2].starts_with("one"),
        "{table}"
    );
    assert!(lines[2].contains("running") && lines[2].contains("1970-01-01 00:16"), "{table}");
    // One that cannot be read is told, and hides no other.
    fs::write(path.join("one/run.yaml"), "modle: m\n").unwrap();
    let output = run(path, &["runs", "list", "--json"]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("note: ./one is left out: ") && said.contains("modle"), "{said}");
    let told = failure(path, &["runs", "list", "nowhere"]);
    assert!(told.contains("exit code 2") && told.contains("nowhere: there is no such folder"), "{told}");
}

#[test]
fn what_differs_between_runs_is_told_and_their_curves_are_drawn() {
    let folder = folder();
    let path = folder.path();
    train(path, "slow", &["--lr", "1e-4", "--eval-data", "d.jsonl"]);
    train(path, "fast", &["--lr", "1e-2", "--rank", "4", "--eval-data", "d.jsonl"]);
    let (told, _) = succeed(path, &["runs", "compare", "slow", "fast"]);
    for words in [
        "settings that differ\nrun   adapter.r  optimizer.learning_rate\nslow         16",
        "Training loss, smoothed\n",
        "Held-out loss\n",
        "  a slow\n  b fast\n",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(!told.contains('\x1b') && told.lines().all(|line| line.chars().count() <= 120), "{told}");
    let (told, _) = succeed(path, &["runs", "compare", "slow", "fast", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["settings"], json!({"adapter.r": [16, 4], "optimizer.learning_rate": [1e-4, 1e-2]}));
    let loss = |n: usize| told["runs"][n]["held_out_loss"]["last"].as_f64().unwrap();
    assert!(loss(1) < loss(0), "{told}");
    let (alone, _) = succeed(path, &["runs", "compare", "slow"]);
    assert!(
        !alone.contains("settings") && alone.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)),
        "{alone}"
    );
}

#[test]
fn a_loss_of_hundreds_of_digits_does_not_break_the_table() {
    let folder = folder();
    let path = folder.path();
    train(path, "one", &["--set", "training.max_steps=2"]);
    let metrics = path.join("one/metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line["loss"] = json!(1e308);
        format!("{line}\n")
    });
    fs::write(&metrics, lines.collect::<String>()).unwrap();
    for command in [&["runs", "list"][..], &["runs", "compare", "one"]] {
        let (table, _) = succeed(path, command);
        assert!(table.contains(" 1.0000e308 "), "{table}");
        assert!(table.lines().all(|line| line.chars().count() < 180), "{table}");
    }
}
