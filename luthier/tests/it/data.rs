//! `data check` and `data convert`, and data of every kind where a run takes it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::{names, succeed, tiny_model, write_lines};
use crate::{failure, luthier, run};

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    folder
}

fn chat(question: &str, answer: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

/// Runs the binary with a text on standard input: stdout, and stderr after it.
fn with_input(folder: &Path, arguments: &[&str], input: &str) -> (String, String) {
    let mut child = luthier(folder)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

#[test]
fn tables_packed_files_patterns_and_standard_input_are_previewed_alike() {
    let folder = folder();
    let lines = "{\"prompt\": \"hell\", \"completion\": \"o\"}\n";
    fs::write(folder.path().join("a.jsonl"), lines).unwrap();
    fs::write(folder.path().join("a.csv"), "prompt,completion\nhell,o\n").unwrap();
    let preview = ["data", "preview", "--model", "model", "--json", "--data"];
    let ids = |told: &str| {
        let told: Value = serde_json::from_str(told).unwrap();
        (told["examples"][0]["token_ids"].clone(), told["examples"][0]["source"].clone())
    };
    let (expected, _) = ids(&succeed(folder.path(), &[&preview[..], &["a.jsonl"]].concat()).0);
    for (data, source) in [("a.csv", "a.csv:2"), ("*.csv", "a.csv:2")] {
        let found = ids(&succeed(folder.path(), &[&preview[..], &[data]].concat()).0);
        assert_eq!(found, (expected.clone(), source.into()), "{data}");
    }
    let (told, errors) = with_input(folder.path(), &[&preview[..], &["-"]].concat(), lines);
    assert_eq!(ids(&told), (expected, "<stdin>:1".into()), "{errors}");
    let (_, errors) = with_input(folder.path(), &[&preview[..], &["-", "--data", "-"]].concat(), lines);
    assert!(errors.contains("-: standard input can be read only once"), "{errors}");
    let told = failure(folder.path(), &[&preview[..], &["*.zst"]].concat());
    assert_eq!(told, "exit code 2\nerror: *.zst: no file has a name that fits this pattern\n");
}

#[test]
fn a_table_is_converted_and_a_file_that_is_there_is_kept() {
    let folder = folder();
    fs::write(folder.path().join("a.csv"), "instruction,output,weight\nAdd,3,\nNo,4,0\n").unwrap();
    let convert = ["data", "convert", "--data", "a.csv", "--output"];
    let (told, errors) = succeed(folder.path(), &[&convert[..], &["b.jsonl"]].concat());
    assert_eq!(told, "");
    assert_eq!(
        errors,
        "a.csv: 2 records, format alpaca (found by looking)\n1 records written; 1 left out, being marked as not to be learnt\n"
    );
    let line = format!("{}\n", chat("Add", "3"));
    assert_eq!(fs::read_to_string(folder.path().join("b.jsonl")).unwrap(), line);
    assert_eq!(succeed(folder.path(), &[&convert[..], &["-"]].concat()).0, line);
    assert_eq!(names(folder.path()), ["a.csv", "b.jsonl", "model"], "nothing is left beside it");

    let told = failure(folder.path(), &[&convert[..], &["b.jsonl"]].concat());
    assert!(told.starts_with("exit code 2\nerror: b.jsonl: is there already; name a new file"), "{told}");
    let told = failure(folder.path(), &[&convert[..], &["b.csv"]].concat());
    assert!(
        told.contains("b.csv: what is written are lines of JSON; name a file ending in .jsonl"),
        "{told}"
    );
    let told = failure(folder.path(), &["data", "convert", "--output", "c.jsonl"]);
    assert!(told.contains("`data.train` is required"), "{told}");
}

#[test]
fn a_conversion_that_fails_leaves_nothing() {
    let folder = folder();
    fs::write(folder.path().join("a.csv"), "prompt,completion\na,b\nc\n").unwrap();
    let told = failure(folder.path(), &["data", "convert", "--data", "a.csv", "--output", "b.jsonl"]);
    assert!(told.starts_with("exit code 2\nerror: a.csv:3: the row has 1 field"), "{told}");
    assert_eq!(names(folder.path()), ["a.csv", "model"]);
}

#[test]
fn the_check_tells_numbers_and_findings_with_their_places() {
    let folder = folder();
    let train = [chat("hello", "yes"), chat("hello", "no"), chat("the hell", "o"), chat("the hell", "o")];
    write_lines(folder.path().join("train.jsonl"), &train);
    write_lines(folder.path().join("eval.jsonl"), &[chat("hello", "yes")]);
    let check = ["data", "check", "--model", "model", "--data", "train.jsonl"];
    let told = succeed(folder.path(), &[&check[..], &["--max-length", "30"]].concat()).0;
    for words in [
        "4 training examples, ",
        "\nat 30: 0 beyond, ",
        "\nTo look at:\n- the prompt comes again with another answer: 1 example\n    train.jsonl:2 = train.jsonl:1\n  -> keep the",
        "\n- the same example comes again: 1 example\n    train.jsonl:4 = train.jsonl:3\n  -> keep one",
    ] {
        assert!(told.contains(words), "{words:?}: {told}");
    }
    assert!(!told.contains("Serious"), "{told}");

    let with_eval = [&check[..], &["--eval-data", "eval.jsonl"]].concat();
    let told = succeed(folder.path(), &[&with_eval[..], &["--json"]].concat()).0;
    let told: Value = serde_json::from_str(&told).unwrap();
    let finding = &told["findings"][0];
    assert_eq!((&finding["kind"], &finding["serious"]), (&json!("leaked_example"), &json!(true)));
    assert_eq!(finding["places"], json!(["eval.jsonl:1 = train.jsonl:1"]));
    assert_eq!((&told["train"]["examples"], &told["eval"]["examples"]), (&json!(4), &json!(1)));

    let code = |arguments: &[&str]| run(folder.path(), arguments).status.code();
    assert_eq!(code(&[&check[..], &["--strict"]].concat()), Some(0), "what was found is not serious");
    assert_eq!(code(&with_eval), Some(0));
    assert_eq!(code(&[&with_eval[..], &["--strict"]].concat()), Some(2));
}

#[test]
fn a_parquet_file_that_is_damaged_is_an_error_without_a_panic() {
    let folder = folder();
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/fixtures/parquet/chats-none.parquet");
    let sound = fs::read(fixture).unwrap();
    let path = folder.path().join("a.parquet");
    let convert = ["data", "convert", "--data", "a.parquet", "--output", "-"];
    fs::write(&path, &sound).unwrap();
    assert_eq!(succeed(folder.path(), &convert).0.lines().count(), 3);
    // Every byte of the first pages in turn would take long; some of them make the reader assert.
    for place in (4..sound.len() - 8).step_by(41) {
        let mut damaged = sound.clone();
        damaged[place] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        let output = run(folder.path(), &convert);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(0 | 2)), "{place}: {errors}");
        assert!(!errors.contains("panicked"), "{place}: {errors}");
    }
}
