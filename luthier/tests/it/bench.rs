//! `luthier bench` with the real binary: what is measured is what was asked for, and told under the names
//! scripts rely on.

use serde_json::Value;
use tempfile::tempdir;

use crate::failure;
use crate::support::{succeed, tiny_model};

/// What either measurement tells.
const NUMBERS: [&str; 7] = [
    "tokens_per_second",
    "seconds_per_step",
    "peak_memory_bytes",
    "flops_per_second",
    "peak_flops_per_second",
    "utilization",
    "read_bytes_per_second",
];

/// The facts of a measurement on the tiny model.
fn bench(arguments: &[&str]) -> Value {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let command = [&["bench"], arguments, &["--model", "model", "--json"]].concat();
    let facts = serde_json::from_str(&succeed(folder.path(), &command).0).unwrap();
    assert_numbers(&facts, &NUMBERS);
    facts
}

fn assert_numbers(facts: &Value, keys: &[&str]) {
    for key in keys {
        assert!(facts[key].as_f64().is_some_and(|n| n > 0.0), "{key} in {facts}");
    }
}

/// These operations are told, and all of them together take no more than all of the time.
fn assert_roofline(facts: &Value, operations: &[&str]) {
    let rows = facts["operations"].as_array().unwrap();
    for operation in operations {
        let of = rows.iter().filter(|row| row["operation"] == *operation).collect::<Vec<_>>();
        assert!(!of.is_empty(), "{operation} in {rows:?}");
        of.iter().for_each(|row| assert_numbers(row, &["calls_per_step", "seconds_per_step", "of_roof"]));
    }
    let shares: f64 = rows.iter().map(|row| row["share"].as_f64().unwrap()).sum();
    assert!(shares > 0.0 && shares <= 1.0, "{shares} of the time");
}

#[test]
fn training_is_one_row_a_step_unless_the_settings_say_otherwise() {
    let step = |settings: &[&str]| {
        let settings: Vec<&str> = settings.iter().flat_map(|&s| ["--set", s]).collect();
        bench(&[&["train", "--steps", "1"], &settings[..]].concat())
    };
    let facts = step(&["data.max_length=32"]);
    assert_eq!(facts["tokens_per_step"], 32);
    assert_roofline(
        &facts,
        &["product", "attention", "attention backward", "norm", "cross entropy and gradient", "adamw"],
    );
    // Other keys of the same sections leave the row and its number as they are.
    assert_eq!(step(&["data.max_length=32", "training.checkpointing=block"])["tokens_per_step"], 32);
    assert_eq!(step(&["data.shuffle=false", "training.batch_size=2"])["tokens_per_step"], 1024);
}

#[test]
fn generation_keeps_to_the_context_of_the_model() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let told = failure(folder.path(), &["bench", "generate", "--model", "model", "--steps", "300"]);
    assert!(
        told.starts_with("exit code 2\n") && told.contains("--steps 300: the model's context of 256"),
        "{told}"
    );
}

#[test]
fn generation_tells_what_it_read() {
    let facts = bench(&["generate", "--steps", "4", "--set", "quantization=nf4"]);
    assert_eq!(facts["quantization"]["type"], "nf4");
    assert_roofline(&facts, &["product", "product in four bits", "attention", "norm"]);
    assert_eq!(facts["prefill_tokens"], 256, "the context of the tiny model");
}
