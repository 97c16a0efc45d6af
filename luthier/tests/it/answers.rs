//! `generate --data`: an answer to every record of a file, the same as one by one.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::failure;
use crate::support::{CONTEXT, names, succeed, tiny_model, write, write_lines};

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    folder
}

const COMMAND: [&str; 7] = ["generate", "--model", "model", "--precision", "f32", "--max-tokens", "8"];

/// What one `generate` says.
fn one(folder: &Path, arguments: &[&str]) -> Value {
    let (told, _) = succeed(folder, &[&COMMAND[..], &["--json"], arguments].concat());
    serde_json::from_str(&told).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn records() -> Vec<Value> {
    let user = |text: &str| json!({"role": "user", "content": text});
    vec![
        json!({"messages": [user("hello"), {"role": "assistant", "content": "well"}]}),
        json!({"messages": [user("and then?")]}),
        json!({"prompt": "hell"}),
        json!({"prompt": "hell", "completion": "o"}),
        json!({"prompt": "a".repeat(CONTEXT + 1)}),
        json!({"instruction": "Say", "input": "that", "output": "this"}),
        json!({"conversations": [{"from": "human", "value": "hello"}], "weight": 0}),
    ]
}

#[test]
fn every_record_gets_the_answer_that_it_gets_alone() {
    let folder = folder();
    let path = folder.path();
    write_lines(path.join("asked.jsonl"), &records());
    let (said, told) =
        succeed(path, &[&COMMAND[..], &["--data", "asked.jsonl", "--output", "answers.jsonl"]].concat());
    assert_eq!(said, "", "the answers are in the file");
    assert!(told.contains("6 of 7 records answered into answers.jsonl"), "{told}");
    assert!(
        told.contains("prompts longer than the model's context of 256 tokens, which have no answer: 1 (")
            && told.contains("asked.jsonl:5"),
        "{told}"
    );
    let answers = lines(&fs::read_to_string(path.join("answers.jsonl")).unwrap());
    assert_eq!(answers.len(), 7);
    let alone = |messages: Value| {
        write(&path.join("m.json"), &messages);
        one(path, &["--messages", "m.json"])
    };
    let user = |text: &str| json!([{"role": "user", "content": text}]);
    let expected = [
        Some(alone(user("hello"))),
        Some(alone(user("and then?"))),
        Some(one(path, &["--prompt", "hell"])),
        Some(one(path, &["--prompt", "hell"])),
        None,
        Some(alone(user("Say\nthat"))),
        Some(alone(user("hello"))),
    ];
    let references =
        [json!("well"), Value::Null, Value::Null, json!("o"), Value::Null, json!("this"), Value::Null];
    for (n, (answer, expected)) in answers.iter().zip(expected).enumerate() {
        assert_eq!(answer["source"], format!("asked.jsonl:{}", n + 1));
        assert_eq!(answer["reference"], references[n], "{answer}");
        let Some(expected) = expected else {
            assert_eq!(
                (&answer["text"], &answer["finish_reason"]),
                (&Value::Null, &json!("prompt_too_long"))
            );
            continue;
        };
        for key in ["text", "finish_reason", "prompt_tokens"] {
            assert_eq!(answer[key], expected[key], "{n}: {key}");
        }
        assert_eq!(answer["completion_tokens"], expected["token_ids"].as_array().unwrap().len());
        if let Some(messages) = answer["messages"].as_array() {
            assert_eq!(messages.last().unwrap()["content"], expected["text"]);
        }
    }
}

#[test]
fn answers_go_to_stdout_as_they_come_and_a_summary_only_beside_a_file() {
    let folder = folder();
    write_lines(folder.path().join("asked.jsonl"), &records()[..3]);
    let asked = [&COMMAND[..], &["--data", "asked.jsonl"]].concat();
    let (said, _) = succeed(folder.path(), &asked);
    assert_eq!(lines(&said).len(), 3);
    let (summary, _) = succeed(folder.path(), &[&asked[..], &["--json", "--output", "a.jsonl"]].concat());
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((&summary["records"], &summary["answered"]), (&json!(3), &json!(3)));
    assert_eq!(fs::read_to_string(folder.path().join("a.jsonl")).unwrap(), said);
    assert!(failure(folder.path(), &[&asked[..], &["--json"]].concat()).contains("name a file"));
}

#[test]
fn what_cannot_be_asked_or_written_is_refused_before_anything_is_answered() {
    let folder = folder();
    let path = folder.path();
    let before = names(path);
    let asked = |data: &str, output: &str| {
        failure(path, &[&COMMAND[..], &["--data", data, "--output", output]].concat())
    };
    for (record, words) in [
        (json!({"messages": [{"role": "assistant", "content": "x"}]}), "there is nothing to answer"),
        (json!({"input_ids": [1, 2]}), "ask nothing in words"),
        (json!({"promt": "x"}), "d.jsonl:1"),
    ] {
        write_lines(path.join("d.jsonl"), &[record]);
        let told = asked("d.jsonl", "out.jsonl");
        assert!(told.starts_with("exit code 2\n") && told.contains(words), "{told}");
    }
    write_lines(path.join("d.jsonl"), &records()[..1]);
    for (output, words) in [
        ("d.jsonl", "d.jsonl is there already; name a new file"),
        ("model", "model is there already"),
        ("none/out.jsonl", "cannot write none/out.jsonl"),
    ] {
        let told = asked("d.jsonl", output);
        assert!(told.starts_with("exit code 2\n") && told.contains(words), "{told}");
    }
    fs::write(path.join("empty.jsonl"), "").unwrap();
    assert!(asked("empty.jsonl", "out.jsonl").contains("has no records"));
    let left: Vec<_> = names(path).into_iter().filter(|name| !before.contains(name)).collect();
    assert_eq!(left, ["d.jsonl", "empty.jsonl"]);
}

#[test]
fn trees_of_messages_are_read_as_a_run_reads_them() {
    let folder = folder();
    let path = folder.path();
    let row = |id: &str, parent: Option<&str>, role: &str, rank: Option<u64>| {
        json!({
            "message_id": id, "parent_id": parent, "message_tree_id": "q", "text": id, "role": role, "lang": "en",
            "rank": rank,
        })
    };
    let rows = [
        row("q", None, "prompter", None),
        row("best", Some("q"), "assistant", Some(0)),
        row("other", Some("q"), "assistant", Some(1)),
    ];
    write_lines(path.join("trees.jsonl"), &rows);
    let references = |set: &[&str]| {
        let set = set.iter().flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = COMMAND.into_iter().chain(["--data", "trees.jsonl"]).chain(set).collect();
        lines(&succeed(path, &arguments).0).iter().map(|line| line["reference"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(references(&[]), ["best"]);
    assert_eq!(references(&["data.oasst_paths=all"]), ["best", "other"]);
    let told = |rest: &[&str]| failure(path, &[&COMMAND[..], rest].concat());
    let data = ["--data", "trees.jsonl", "--set"];
    let none = told(&[&data[..], &["data.oasst_languages=[de]"]].concat());
    assert!(none.starts_with("exit code 2\n") && none.contains("trees.jsonl has no records"), "{none}");
    let other = told(&[&data[..], &["data.max_length=4"]].concat());
    let takes =
        "--set data.max_length: `generate` takes data.format, data.oasst_paths and data.oasst_languages only";
    assert!(other.contains(takes), "{other}");
    let alone = told(&["--prompt", "q", "--set", "data.format=oasst"]);
    assert!(alone.contains("--data"), "{alone}");
    let metric = [
        "eval",
        "generate",
        "--model",
        "model",
        "--data",
        "trees.jsonl",
        "--metric",
        "f1",
        "--max-tokens",
        "4",
    ];
    let scored = |set: &[&str]| {
        let (told, _) = succeed(path, &[&metric[..], &["--json"], set].concat());
        serde_json::from_str::<Value>(&told).unwrap()["records"].clone()
    };
    assert_eq!((scored(&[]), scored(&["--set", "data.oasst_paths=all"])), (json!(1), json!(2)));
}
