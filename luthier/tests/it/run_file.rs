//! What a user reads when a run file or `--set` is wrong.

use std::fs;

use insta::assert_snapshot;
use tempfile::tempdir;

use crate::failure;

/// What `train` says of a run file with this text.
fn train(text: &str, arguments: &[&str]) -> String {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("RUN.yaml"), text).unwrap();
    failure(folder.path(), &[&["train", "RUN.yaml"], arguments].concat())
}

const WHOLE: &str = "model: m\ndata:\n  train: d.jsonl\noutput: out\n";

#[test]
fn an_unknown_key_is_shown_with_its_line_and_the_nearest_known_one() {
    assert_snapshot!(train(&format!("{WHOLE}optimizer:\n  # too high?\n  learning_rat: 1e-3\n"), &[]));
}

#[test]
fn a_key_in_the_wrong_section_is_told_where_it_belongs() {
    assert_snapshot!(train(&format!("{WHOLE}learning_rate: 1e-3\n"), &[]));
}

#[test]
fn a_value_outside_its_set_is_shown_with_the_allowed_ones() {
    assert_snapshot!(train("adapter:\n  method: lroa\n", &[]));
}

#[test]
fn a_value_of_the_wrong_type_is_shown_with_its_line() {
    assert_snapshot!(train("adapter:\n  r: [8]\n", &[]));
}

#[test]
fn a_value_out_of_range_is_shown_with_its_line() {
    assert_snapshot!(train(&format!("{WHOLE}adapter: {{r: 0}}\n"), &[]));
}

#[test]
fn what_is_not_supported_yet_is_shown_with_its_line() {
    assert_snapshot!(train(&WHOLE.replace("d.jsonl\n", "d.jsonl\n  format: preference\n"), &[]));
}

#[test]
fn a_key_that_stands_twice_is_shown() {
    assert_snapshot!(train("model: a\noutput: o\nmodel: b\n", &[]));
}

#[test]
fn text_that_is_no_yaml_is_shown() {
    assert_snapshot!(train("model: [a, b\noutput: o\n", &[]));
}

#[test]
fn a_missing_key_says_how_to_give_it() {
    assert_snapshot!(train("model: m\n", &["--output", "o"]));
}

#[test]
fn a_wrong_setting_on_the_command_line_is_named_as_it_was_typed() {
    assert_snapshot!(train(WHOLE, &["--set", "trainin.max_steps=5"]));
    assert_snapshot!(train(WHOLE, &["--set", "training.max_steps"]));
    assert_snapshot!(train(WHOLE, &["--set", "training.max_steps=ten"]));
    assert_snapshot!(train(WHOLE, &["--set", "model.name=x", "--set", "output.x.y=z"]));
}

#[test]
fn a_run_file_that_cannot_be_read_is_named() {
    let folder = tempdir().unwrap();
    assert_snapshot!(failure(folder.path(), &["train", "nowhere.yaml"]));
    assert_snapshot!(failure(folder.path(), &["train", "."]));
    fs::write(folder.path().join("latin.yaml"), b"model: \xe9\n").unwrap();
    assert_snapshot!(failure(folder.path(), &["train", "latin.yaml"]));
}

#[test]
fn settings_that_a_command_does_not_take_are_refused() {
    let folder = tempdir().unwrap();
    let arguments = ["eval", "perplexity", "--model", "m", "--data", "d", "--set", "adapter.r=4"];
    assert_snapshot!(failure(folder.path(), &arguments));
}
