//! `adapter.init_from`: training goes on from an adapter, whose own configuration counts.

use std::fs;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::failure;
use crate::support::{succeed, tiny_adapter, tiny_model, write_lines};

#[test]
fn an_adapter_of_other_settings_goes_on_with_its_own() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    tiny_adapter(folder.path(), 0.1);
    write_lines(folder.path().join("d.jsonl"), &[json!({"text": "hello hello hello"})]);
    let command = |settings: &[&'static str]| {
        let usual = ["train", "--model", "model", "--data", "d.jsonl", "--output", "on"];
        let more = ["adapter.init_from=adapter", "training.max_steps=1", "data.max_length=32"];
        let settings = more.iter().chain(settings).flat_map(|&s| ["--set", s]);
        usual.into_iter().chain(settings).collect::<Vec<_>>()
    };
    let other = failure(folder.path(), &command(&["adapter.r=16"]));
    assert!(other.contains("`adapter.r` differs from adapter/adapter_config.json"), "{other}");
    succeed(folder.path(), &command(&["adapter.r=2"]));
    let config = fs::read_to_string(folder.path().join("on/adapter_config.json")).unwrap();
    assert!(config.contains("\"r\": 2"), "{config}");
    fs::remove_dir_all(folder.path().join("on")).unwrap();
    succeed(folder.path(), &command(&[]));
    assert_eq!(fs::read_to_string(folder.path().join("on/adapter_config.json")).unwrap(), config);
}

#[test]
fn a_run_that_goes_on_from_an_adapter_is_planned_by_its_settings() {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    tiny_adapter(folder.path(), 0.1);
    write_lines(folder.path().join("d.jsonl"), &[json!({"text": "hello hello hello"})]);
    let plan = |more: &[&'static str]| -> Value {
        let usual = ["plan", "--model", "model", "--set", "adapter.init_from=adapter", "--json"];
        serde_json::from_str(&succeed(folder.path(), &[&usual, more].concat()).0).unwrap()
    };
    // Rank 2 on the queries and the MLP's last layer of both blocks.
    let trained = 2 * 2 * ((32 + 32) + (48 + 32));
    assert_eq!(plan(&[])["trainable_parameters"], trained);
    let with_data = plan(&["--data", "d.jsonl", "--set", "data.max_length=32"]);
    assert_eq!(with_data["trainable_parameters"], trained);
    assert_eq!(with_data["run"]["trainable_parameters"], trained);
}
