//! What is told of a run before, while and after it runs, to people and to programs.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::{names, succeed, tiny_model, write_lines};

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let record = |n: usize| json!({"prompt": format!("Question {n}:"), "completion": format!(" answer {n}")});
    write_lines(folder.path().join("d.jsonl"), &(0..40).map(record).collect::<Vec<_>>());
    let record = |n: usize| json!({"prompt": format!("Query {n}?"), "completion": " zzz"});
    write_lines(folder.path().join("e.jsonl"), &(0..8).map(record).collect::<Vec<_>>());
    folder
}

const TRAIN: [&str; 9] =
    ["train", "--model", "model", "--data", "d.jsonl", "--eval-data", "e.jsonl", "--output", "out"];

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_dry_run_tells_steps_tokens_and_time_and_writes_nothing() {
    let folder = folder();
    let before = names(folder.path());
    let (told, said) = succeed(folder.path(), &[&TRAIN[..], &["--dry-run", "--json"]].concat());
    assert!(said.contains("steps    60 of 2 rows, ") && said.contains("\ntime     about "), "{said}");
    let told = parse(&told);
    assert_eq!((&told["steps"], &told["evaluations"], &told["epochs"]), (&json!(60), &json!(4), &json!(3)));
    assert_eq!(told["tokens"].as_u64(), told["data"]["tokens"].as_u64().map(|tokens| 3 * tokens));
    assert!(told["expected_seconds"].as_f64().unwrap() > 0.0, "{told}");
    assert_eq!(names(folder.path()), before);
}

#[test]
fn plan_with_examples_tells_the_same() {
    let folder = folder();
    let dry = parse(&succeed(folder.path(), &[&TRAIN[..], &["--dry-run", "--json"]].concat()).0);
    let plan = ["plan", "--model", "model", "--data", "d.jsonl", "--eval-data", "e.jsonl"];
    let planned = parse(&succeed(folder.path(), &[&plan[..], &["--json"]].concat()).0);
    for key in ["steps", "tokens", "evaluations", "epochs", "batch_size", "max_length"] {
        assert_eq!(planned["run"][key], dry[key], "{key}");
    }
    assert!(planned["run"]["expected_seconds"].as_f64().unwrap() > 0.0);
    let (told, _) = succeed(folder.path(), &plan);
    for words in [
        "steps    60 of 2 rows",
        "epochs   3: one would be only 20 steps",
        "time     about ",
        "held out 8 examples",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let output = crate::run(folder.path(), &["plan", "--shape", "tiny", "--data", "d.jsonl"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_end_tells_losses_and_the_next_commands() {
    let folder = folder();
    let (told, _) = succeed(folder.path(), &TRAIN);
    for words in [
        "steps     60 (3.00 epochs), ",
        "\nloss      ",
        " first, ",
        " last, ",
        "best (step ",
        "\nheld out  ",
        "luthier chat --adapter out\n",
        "luthier eval perplexity --adapter out --data e.jsonl\n",
        "luthier merge --adapter out --output out-merged",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let (told, said) = succeed(folder.path(), &["train", "--resume", "out", "--json"]);
    let told = parse(&told);
    assert!(said.contains("finished already"), "{said}");
    assert_eq!((&told["outcome"], &told["steps"]), (&json!("already_finished"), &json!(60)));
}

#[test]
fn quiet_leaves_stderr_to_warnings_and_json_is_one_object() {
    let folder = folder();
    let (told, said) = succeed(folder.path(), &[&TRAIN[..], &["--quiet", "--json"]].concat());
    assert_eq!(said, "");
    let told = parse(&told);
    let steps: Vec<Value> = lines(&folder.path().join("out/metrics.jsonl"));
    let losses: Vec<f64> = steps.iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert_eq!(told["outcome"], "finished");
    assert_eq!((&told["loss"]["first"], &told["loss"]["last"]), (&json!(losses[0]), &json!(losses[59])));
    assert_eq!(told["loss"]["best"], json!(losses.iter().copied().fold(f64::INFINITY, f64::min)));
    let held_out: Vec<f64> = steps.iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
    assert_eq!(held_out.len(), 4, "before the first step and after each epoch");
    assert_eq!(told["held_out_loss"]["last"], json!(held_out[3]));
    assert_eq!(told["effect"], true);
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(parse).collect()
}

#[test]
fn a_held_out_loss_that_rises_is_told_while_it_does_and_in_the_end_and_the_best_is_kept() {
    let folder = folder();
    let settings = ["--lr", "3e-2", "--epochs", "12", "--set", "training.eval_every=5"];
    let (told, said) = succeed(folder.path(), &[&TRAIN[..], &settings].concat());
    let steps = lines(&folder.path().join("out/metrics.jsonl"));
    let held_out = |line: &Value| Some((line["eval_loss"].as_f64()?, line["step"].as_u64()?));
    let held_out: Vec<(f64, u64)> = steps.iter().filter_map(held_out).collect();
    let best = held_out.iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1;
    let last = held_out.last().unwrap().1;
    assert!(best > 0 && best + 10 <= last, "the rate is high enough to overfit: {best} of {last}");
    assert!(said.contains("warning: the held-out loss has risen since step "), "{said}");
    assert!(
        told.contains(&format!("The held-out loss has risen since step {best}: out/checkpoints/best")),
        "{told}"
    );
    let best = ["eval", "perplexity", "--adapter", "out/checkpoints/best", "--data", "e.jsonl", "--json"];
    let loss = |adapter: &str| {
        let mut command = best.to_vec();
        command[3] = adapter;
        parse(&succeed(folder.path(), &command).0)["loss"].as_f64().unwrap()
    };
    assert!(loss("out/checkpoints/best") < loss("out"));
}

#[test]
fn a_loss_that_ends_higher_than_it_began_is_told() {
    let folder = folder();
    succeed(folder.path(), &[&TRAIN[..], &["--quiet", "--lr", "1e-2"]].concat());
    fs::rename(folder.path().join("out"), folder.path().join("good")).unwrap();
    let ruin = ["--quiet", "--lr", "0.5", "--set", "adapter.init_from=good"];
    let (_, said) = succeed(folder.path(), &[&TRAIN[..], &ruin].concat());
    assert!(said.contains("warning: the loss has risen from "), "{said}");
    assert!(said.contains("train again with a lower --lr"), "{said}");
}
