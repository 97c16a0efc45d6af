//! `luthier bench` with the real binary: what is measured is what was asked for, and told under the names
//! scripts rely on.

use serde_json::Value;
use tempfile::tempdir;

use crate::failure;
use crate::serve::Served;
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

/// The whole way: a server on loopback, adapters of its own, clients.
#[test]
fn requests_are_asked_over_http_in_every_way() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let few = ["--requests", "6", "--parallel", "2", "--prompt", "8", "--new", "4", "--json"];
    let ways = ["base", "adapters_first_use", "adapters", "one_adapter_at_a_time", "a_quiet_client_alone"];
    for subject in [["--model", "model"], ["--shape", "tiny"]] {
        let more = ["--adapters", "3", "--set", "adapter.r=2", "--swapping", "--greedy"];
        let command = [&["bench", "serve"], &subject[..], &more, &few].concat();
        let facts: Value = serde_json::from_str(&succeed(folder.path(), &command).0).unwrap();
        for way in ways.iter().chain(&["beside_a_greedy_one"]) {
            assert_numbers(&facts["ways"][way], &["seconds", "tokens_per_second", "new_tokens_per_second"]);
            assert_numbers(&facts["ways"][way]["time_to_first_token_ms"], &["p50", "p95"]);
        }
        assert_eq!((&facts["adapters"], &facts["rank"]), (&3.into(), &2.into()));
    }
    // Another server, by its address: this one has no adapters.
    let served = Served::start(folder.path(), &[]);
    let url = format!("http://{}", served.address);
    let command = [&["bench", "serve", "--model", "model", "--url", &url], &few[..]].concat();
    let facts: Value = serde_json::from_str(&succeed(folder.path(), &command).0).unwrap();
    assert_numbers(&facts["ways"]["base"], &["tokens_per_second"]);
    assert_eq!((&facts["adapters"], &facts["model"]), (&0.into(), &"model".into()));
    let told = failure(folder.path(), &["bench", "serve", "--model", "model", "--url", "http://127.0.0.1:9"]);
    assert!(told.starts_with("exit code 2\nerror: --url http://127.0.0.1:9: "), "{told}");
}
