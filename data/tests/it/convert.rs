//! `convert`: what is written means what was read.

use data::convert::{Converted, Target, convert};
use data::{DataError, DataSpec, Dataset, Example, Format, Oasst, SourceSpec};
use serde_json::{Value, json};

use crate::support::{Files, fixture, tokenizer};

fn converted(path: std::path::PathBuf, to: Target) -> Result<(Vec<String>, Converted), DataError> {
    let mut lines = Vec::new();
    let told = convert(
        &[SourceSpec::new(path)],
        Format::Auto,
        &Oasst::default(),
        to,
        |line| -> Result<(), DataError> {
            lines.push(line.to_string());
            Ok(())
        },
    )?;
    Ok((lines, told))
}

fn examples(path: std::path::PathBuf) -> Vec<(Vec<u32>, Vec<i32>)> {
    let mut spec = DataSpec::file(path);
    spec.chat_template = Some("qwen2.5".into());
    let content = |example: Example| (example.input_ids, example.labels);
    Dataset::load(&spec, &tokenizer()).unwrap().examples.into_iter().map(content).collect()
}

#[test]
fn what_was_converted_is_trained_on_as_before() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let records = [
        json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "system": "Be brief."}),
        json!({"conversations": [{"from": "human", "value": "Rain?"}, {"from": "function_call",
               "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}, {"from": "observation", "value": "no"},
               {"from": "gpt", "value": "No."}], "tools": "[{\"name\": \"f\"}]"}),
        json!({"messages": [turn("user", "a"), {"role": "assistant", "content": "b", "weight": 0}, turn("user", "c"),
               turn("assistant", "d")]}),
        json!({"messages": [turn("user", "a"), {"role": "assistant", "content": [{"type": "text", "text": "é, "},
               {"type": "text", "text": "no ", "weight": 0}, {"type": "text", "text": "yes"}]}]}),
        json!({"instruction": "Add", "input": "1 and 2", "output": "3", "history": [["Hi", "Hello."]], "system": "Count."}),
        json!({"prompt": "a", "completion": " b"}),
        json!({"prompt": [turn("user", "a"), turn("assistant", "b"), turn("user", "c")], "completion": [turn("assistant", "d")]}),
        json!({"text": "a\r\nb"}),
        json!({"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}),
        json!({"input_ids": [5, 6, 7]}),
    ];
    let files = Files::new(&[]);
    for record in &records {
        std::fs::write(files.path("a.json"), record.to_string()).unwrap();
        let (lines, _) = converted(files.path("a.json"), Target::Auto).unwrap();
        std::fs::write(files.path("b.jsonl"), lines.join("\n")).unwrap();
        assert_eq!(examples(files.path("b.jsonl")), examples(files.path("a.json")), "{record}\n{lines:?}");
    }
    for name in ["chats-zstd", "tokenized"] {
        let path = fixture(&format!("parquet/{name}.parquet"));
        let (lines, told) = converted(path.clone(), Target::Auto).unwrap();
        std::fs::write(files.path("b.jsonl"), lines.join("\n")).unwrap();
        assert_eq!(examples(files.path("b.jsonl")), examples(path));
        assert_eq!((told.records, told.left_out, told.files[0].records), (lines.len(), 0, lines.len()));
    }
}

#[test]
fn conversations_become_messages_and_marks_stay() {
    let files = Files::new(&[(
        "a.jsonl",
        r#"{"id": 7, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "loss": false}], "tools": [{"name": "f", "max": 18446744073709551616}]}
           {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "weight": 0}"#,
    )]);
    let (lines, told) = converted(files.path("a.jsonl"), Target::Auto).unwrap();
    assert_eq!(
        lines,
        [
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0}],"tools":[{"name":"f","max":18446744073709551616}]}"#
        ]
    );
    assert_eq!((told.records, told.left_out), (1, 1));
}

#[test]
fn completions_become_messages_where_that_is_asked_for_and_texts_do_not() {
    let files = Files::new(&[
        ("a.csv", "prompt,completion\na,b\n"),
        (
            "b.json",
            r#"{"prompt": [{"role": "assistant", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
        ),
        ("c.txt", "a"),
    ]);
    let messages = |name: &str| -> Value {
        serde_json::from_str(&converted(files.path(name), Target::Messages).unwrap().0[0]).unwrap()
    };
    assert_eq!(
        messages("a.csv"),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    );
    assert_eq!(
        messages("b.json"),
        json!({"messages": [{"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "b"}]})
    );
    let error = converted(files.path("c.txt"), Target::Messages).unwrap_err().to_string();
    assert!(error.ends_with(
        "c.txt:1: is a text, which has no roles; only conversations and completions become messages"
    ));
}
