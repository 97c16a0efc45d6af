//! `init`: a run file with comments for the model and the data at hand.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::failure;
use crate::support::{CONTEXT, names, succeed, tiny_model, write, write_lines};

fn chat(n: usize) -> Value {
    json!({"messages": [{"role": "user", "content": format!("Number {n}?")}, {"role": "assistant", "content": "Yes."}]})
}

/// A folder with the tiny model and so many chats.
fn folder(chats: usize) -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    write_lines(folder.path().join("chats.jsonl"), &(0..chats).map(chat).collect::<Vec<_>>());
    folder
}

fn read(folder: &Path) -> String {
    fs::read_to_string(folder.join("run.yaml")).unwrap()
}

const INIT: [&str; 5] = ["init", "--model", "model", "--data", "chats.jsonl"];

#[test]
fn what_is_written_for_a_model_and_data_trains() {
    let folder = folder(60);
    let (told, said) = succeed(folder.path(), &INIT);
    assert_eq!(told, "");
    for words in
        ["model: llama", "chats.jsonl: 60 records, format messages", "examples: 60", "fits", "wrote run.yaml"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    let text = read(folder.path());
    for words in [
        "\nmodel: model ",
        "\n  train: chats.jsonl ",
        "\n  chat_template: null ",
        "the tokenizer has one.",
        "\n  # rslora: false ",
        "\n  epochs: 3 ",
        "\n  learning_rate: 0.002 ",
        "\noutput: run ",
        "# chats.jsonl: 60 records, format messages\n",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let length = text.lines().find_map(|line| line.strip_prefix("  max_length: ")).unwrap();
    let length: usize = length.split_whitespace().next().unwrap().parse().unwrap();
    assert!(length < CONTEXT && said.contains(&format!("the longest {length} of them")), "{length}: {said}");
    let (_, said) = succeed(folder.path(), &["train", "run.yaml", "--dry-run"]);
    assert!(said.contains("60 examples"), "{said}");
}

#[test]
fn many_examples_are_partly_held_out_and_several_files_are_a_list() {
    let folder = folder(300);
    write_lines(folder.path().join("more.jsonl"), &[json!({"instruction": "Say yes.", "output": "Yes."})]);
    succeed(folder.path(), &[&INIT[..], &["--data", "more.jsonl"]].concat());
    let text = read(folder.path());
    assert!(text.contains("\n  train: [chats.jsonl, more.jsonl] "), "{text}");
    assert!(text.contains("\n  eval_fraction: 0.05 "), "{text}");
    let (_, said) = succeed(folder.path(), &["train", "run.yaml", "--dry-run"]);
    assert!(said.contains("held out 15 examples"), "{said}");
}

#[test]
fn a_tokenizer_without_a_template_gets_one_of_its_special_tokens() {
    let folder = folder(60);
    write(
        &folder.path().join("model/tokenizer_config.json"),
        &json!({"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}),
    );
    succeed(folder.path(), &INIT);
    let text = read(folder.path());
    assert!(text.contains("\n  chat_template: chatml "), "{text}");
    succeed(folder.path(), &["train", "run.yaml", "--dry-run"]);
}

#[test]
fn a_run_folder_that_is_taken_is_not_proposed() {
    let folder = folder(60);
    fs::create_dir(folder.path().join("run")).unwrap();
    succeed(folder.path(), &INIT);
    assert!(read(folder.path()).contains("\noutput: run-2 "));
}

#[test]
fn without_a_model_the_file_has_the_defaults_and_asks_for_one() {
    let folder = tempdir().unwrap();
    let (told, said) = succeed(folder.path(), &["init", "--output", "-"]);
    assert_eq!((said.as_str(), names(folder.path())), ("", vec![]));
    succeed(folder.path(), &["init"]);
    assert_eq!(read(folder.path()), told);
    let told = failure(folder.path(), &["train", "run.yaml"]);
    assert!(told.starts_with("exit code 2\nerror: `model` is required"), "{told}");
}

#[test]
fn a_file_that_exists_is_left_as_it_is() {
    let folder = folder(1);
    fs::write(folder.path().join("run.yaml"), "mine").unwrap();
    let told = failure(folder.path(), &INIT);
    assert_eq!(
        told,
        "exit code 2\nerror: run.yaml exists already; remove it, or name another file by --output\n"
    );
    assert_eq!(read(folder.path()), "mine");
}

#[test]
fn nothing_is_written_where_the_model_or_the_data_are_wrong() {
    let folder = folder(1);
    fs::write(folder.path().join("bad.jsonl"), "{\"text\": \"a\"}\n{\"text\"\n").unwrap();
    let before = names(folder.path());
    for (arguments, words) in [
        (["--model", "none", "--data", "chats.jsonl"], "no such folder: none"),
        (["--model", "model", "--data", "none.jsonl"], "none.jsonl: No such file"),
        (["--model", "model", "--data", "bad.jsonl"], "bad.jsonl:2"),
    ] {
        let told = failure(folder.path(), &[&["init"], &arguments[..]].concat());
        assert!(told.starts_with("exit code 2\n") && told.contains(words), "{arguments:?}: {told}");
    }
    let told = failure(folder.path(), &["init", "--output", "none/run.yaml"]);
    assert!(told.starts_with("exit code 2\nerror: cannot write none/run.yaml"), "{told}");
    assert_eq!(names(folder.path()), before);
}
