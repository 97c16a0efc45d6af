//! `luthier report`: all that is known of runs on one page, which nothing in a file can turn into markup.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::browser::Browser;
use crate::support::{succeed, tiny_model, write_lines};
use crate::{failure, run};

/// What would run if it were not escaped.
const EVIL: &str = "<script>window.evil = 1</script><img src=x onerror=\"window.evil = 1\">";

/// A model, examples of which the first ones hold markup, and held-out ones.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let record =
        |n: usize| json!({"prompt": format!("{n} {EVIL}"), "completion": format!(" a{n}</mark>{EVIL}")});
    write_lines(folder.path().join("d.jsonl"), &(0..12).map(record).collect::<Vec<_>>());
    let record = |n: usize| json!({"prompt": format!("held out {n} {EVIL}"), "completion": " zzz"});
    write_lines(folder.path().join("e.jsonl"), &(0..4).map(record).collect::<Vec<_>>());
    folder
}

fn train(folder: &Path, output: &str, settings: &[&str]) {
    let usual = ["train", "--model", "model", "--data", "d.jsonl", "--output", output, "--quiet", "--set"];
    succeed(folder, &[&usual[..], &["training.max_steps=6"], settings].concat());
}

const HELD_OUT: [&str; 2] = ["--eval-data", "e.jsonl"];

/// The page of some runs, and what is told of it.
fn report(folder: &Path, arguments: &[&str]) -> (String, Value) {
    let fixed = ["report", "--output", "r.html", "--max-tokens", "6", "--json"];
    let (told, _) = succeed(folder, &[&fixed[..], arguments].concat());
    let page = fs::read_to_string(folder.join("r.html")).unwrap();
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("http:"), "{page}");
    (page, serde_json::from_str(&told).unwrap())
}

fn notes(told: &Value) -> String {
    told["notes"].as_array().unwrap().iter().map(|note| format!("{}\n", note.as_str().unwrap())).collect()
}

#[test]
fn a_page_of_several_runs_has_all_of_them_and_opens_in_a_browser() {
    let folder = folder();
    let path = folder.path();
    train(path, "a", &HELD_OUT);
    train(path, "b", &[&HELD_OUT[..], &["--lr", "1e-2", "--rank", "4"]].concat());
    fs::create_dir(path.join("b/evaluations")).unwrap();
    let measured = succeed(path, &["eval", "perplexity", "--adapter", "b", "--data", "e.jsonl", "--json"]).0;
    fs::write(path.join("b/evaluations/held-out.json"), &measured).unwrap();
    let (page, told) = report(path, &["a", "b", "--samples", "2"]);
    assert_eq!(
        told["plots"],
        json!([
            "Training loss, smoothed",
            "Held-out loss",
            "Learning rate",
            "Gradient norm",
            "Tokens per second",
            "Memory"
        ])
    );
    assert_eq!((&told["samples"], &told["examples"], &told["notes"]), (&json!(2), &json!(3), &json!([])));
    assert_eq!(told["evaluations"], json!(["b/evaluations/held-out.json"]));
    let measured: Value = serde_json::from_str(&measured).unwrap();
    for words in [
        "&lt;script&gt;window.evil",
        "<mark>",
        "Perplexity over ",
        &format!("{:.4}", measured["loss"].as_f64().unwrap()),
        "optimizer.learning_rate",
        "Answers before and after",
        "base</span>",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    assert_eq!(page.matches("<svg").count(), 6);
    look_at(path, 2);
}

/// What a browser says of the page, wide and narrow, light and dark, on a screen and on paper.
fn look_at(folder: &Path, runs: usize) {
    let Some(browser) = Browser::start() else { return };
    browser.open(&format!("file://{}", folder.join("r.html").canonicalize().unwrap().display()));
    browser.wait("document.querySelectorAll('svg path').length > 0");
    let number = |expression: &str| browser.run(&format!("return {expression}")).as_u64().unwrap();
    assert_eq!(number("document.querySelectorAll('details').length"), runs as u64);
    assert_eq!(number("document.querySelectorAll('script, img, link, iframe').length"), 0);
    let evil = browser.run("return [typeof window.evil, document.body.textContent.includes('<script>')]");
    assert_eq!(evil, json!(["undefined", true]), "what was in the data is text");
    for width in [360, 1600] {
        browser.widen(width);
        let wide = number("document.documentElement.scrollWidth");
        assert!(wide <= u64::from(width), "{wide} on a screen of {width}");
    }
    let colour = "getComputedStyle(document.querySelector('svg path')).stroke";
    let mut colours = Vec::new();
    for (scheme, medium) in [("light", "screen"), ("dark", "screen"), ("dark", "print")] {
        browser.show_as(scheme, medium);
        colours.push(browser.run(&format!("return {colour}")));
    }
    assert!(colours[0] != colours[1] && colours[0] == colours[2], "paper is light: {colours:?}");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

#[test]
fn a_run_without_held_out_data_without_its_end_or_without_its_model_has_a_page() {
    let folder = folder();
    let path = folder.path();
    train(path, "a", &["--set", "training.save_every=2"]);
    let (page, told) = report(path, &["a", "--samples", "1"]);
    assert!(!page.contains("Held-out loss") && page.contains("finished"), "{page}");
    assert_eq!(told["samples"], 1, "the prompt is a training example's");
    // As a run that was stopped, and one that was killed: its last checkpoint answers.
    fs::remove_file(path.join("a/adapter_config.json")).unwrap();
    let (page, _) = report(path, &["a", "--samples", "1"]);
    assert!(page.contains("<td class=\"long\">stopped</td>") && page.contains("a (step-000006)"), "{page}");
    fs::remove_dir_all(path.join("a/checkpoints/step-000006")).unwrap();
    let (page, _) = report(path, &["a", "--samples", "1"]);
    assert!(
        page.contains("<td class=\"long\">unfinished</td>") && page.contains("a (step-000004)"),
        "{page}"
    );
    // What is no longer there is a note.
    fs::rename(path.join("model"), path.join("moved")).unwrap();
    let (page, told) = report(path, &["a", "--samples", "1"]);
    assert!(page.contains("is no longer there") && page.contains("<svg"), "{page}");
    assert!(notes(&told).contains("the examples cannot be read again: the model "), "{told}");
    fs::rename(path.join("moved"), path.join("model")).unwrap();
    fs::remove_file(path.join("d.jsonl")).unwrap();
    let (_, told) = report(path, &["a", "--samples", "1"]);
    assert!(notes(&told).contains("d.jsonl"), "{told}");
    // A run that has not done a step yet.
    fs::write(path.join("a/metrics.jsonl"), "").unwrap();
    let (page, told) = report(path, &["a", "--samples", "0"]);
    assert!(page.contains("No step is done yet.") && told["plots"] == json!([]), "{page}");
}

#[test]
fn a_model_that_was_trained_whole_answers_beside_its_base() {
    let folder = folder();
    let path = folder.path();
    train(path, "whole", &["--set", "adapter.method=full", "--set", "training.tensorboard=true"]);
    let events = |path: &Path| {
        let names = crate::support::names(path);
        names.iter().filter(|name| name.starts_with("events.out.tfevents.")).count()
    };
    assert_eq!(events(&path.join("whole")), 1);
    let (page, told) = report(path, &["whole", "--samples", "2"]);
    assert_eq!((&told["samples"], &told["notes"]), (&json!(2), &json!([])));
    assert_eq!(page.matches("<span class=\"who\">").count(), 6, "the example, the base and the run: {page}");
    assert!(page.contains("<td class=\"long\">full</td>"), "{page}");
}

#[test]
fn what_is_no_evaluation_is_an_error_that_names_the_file_and_leaves_no_page() {
    let folder = folder();
    let path = folder.path();
    train(path, "a", &[]);
    for (text, says) in [
        ("{\"loss\": 1", "x.json is no JSON: EOF while parsing an object"),
        (
            "[1, 2]",
            "x.json is not what `luthier eval perplexity`, `forgetting`, `choice`, `generate` or `judge` prints with --json",
        ),
        (
            "{\"perplexity\": 3}",
            "x.json is not what `luthier eval perplexity --json` prints: missing field `tokens`",
        ),
        (
            "{\"metric\": \"f1\", \"records\": -1}",
            "x.json is not what `luthier eval generate --json` prints: invalid value",
        ),
        (
            "{\"statistics\": {}, \"scores\": null}",
            "x.json is not what `luthier eval judge --json` prints: it has neither `scores` nor `better`",
        ),
        (
            "{\"statistics\": {}, \"scores\": {\"elo\": [], \"rates\": null}}",
            "x.json is not what `luthier eval judge --json` prints: `scores` has none of the tables percent, \
             bradley_terry, elo",
        ),
    ] {
        fs::write(path.join("x.json"), text).unwrap();
        let told = failure(path, &["report", "a", "--output", "r.html", "--evaluation", "x.json"]);
        assert!(told.starts_with("exit code 2\n") && told.contains(says), "{told}");
        fs::create_dir_all(path.join("a/evaluations")).unwrap();
        fs::rename(path.join("x.json"), path.join("a/evaluations/x.json")).unwrap();
        let told = failure(path, &["report", "a", "--output", "r.html"]);
        assert!(told.contains(&format!("a/evaluations/{says}")), "{told}");
        fs::remove_file(path.join("a/evaluations/x.json")).unwrap();
    }
    let told = failure(path, &["report", "a", "--output", "r.html", "--evaluation", "none.json"]);
    assert!(told.contains("none.json"), "{told}");
    let told = failure(path, &["report", "model", "--output", "r.html"]);
    assert!(told.contains("model: there is no run.yaml in it, so it holds no run"), "{told}");
    assert!(!path.join("r.html").exists());
}

#[test]
fn every_evaluation_that_there_is_becomes_tables() {
    let folder = folder();
    let path = folder.path();
    train(path, "a", &HELD_OUT);
    let question = |n: usize| json!({"context": format!("{n}?"), "choices": [" a", " b"], "gold": n % 2});
    write_lines(path.join("q.jsonl"), &(0..6).map(question).collect::<Vec<_>>());
    let judged = json!({
        "scores": null, "statistics": {}, "notes": [],
        "better": {"elo": [{"system": EVIL, "games": 2, "rating": {"value": 1000.25, "low": 900.0, "high": 1100.0}}]},
    });
    fs::write(path.join("judge.json"), judged.to_string()).unwrap();
    for (name, arguments) in [
        ("choice", &["--data", "q.jsonl"][..]),
        ("generate", &["--data", "e.jsonl", "--metric", "f1", "--max-tokens", "4"]),
    ] {
        let (json, _) = succeed(path, &[&["eval", name, "--adapter", "a", "--json"], arguments].concat());
        fs::write(path.join(format!("{name}.json")), json).unwrap();
    }
    let files = ["choice.json", "generate.json", "judge.json"];
    let named: Vec<&str> = files.iter().flat_map(|file| ["--evaluation", file]).collect();
    let (page, told) = report(path, &[&["a", "--samples", "0"], &named[..]].concat());
    assert_eq!(told["evaluations"], json!(files));
    for words in
        ["Multiple choice: 6 questions", "Generated answers: f1 over 4 records", "a less model", "1000.2"]
    {
        assert!(page.contains(words), "{words}: {page}");
    }
}

#[test]
fn a_sweeps_folder_stands_for_its_runs() {
    let folder = folder();
    let path = folder.path();
    let rates =
        ["sweep", "--learning-rates", "1e-4..1e-2", "--count", "2", "--model", "model", "--data", "d.jsonl"];
    succeed(path, &[&rates[..], &["--output", "s", "--set", "training.max_steps=3", "--quiet"]].concat());
    let (page, told) = report(path, &["s", "--samples", "1"]);
    assert_eq!(told["runs"].as_array().unwrap().len(), 2);
    assert_eq!(page.matches("base</span>").count(), 1, "the base answers once for both: {page}");
    assert!(run(path, &["report", "s"]).status.code() == Some(2), "--output is needed");
}

#[test]
fn a_page_is_written_over_a_page_and_over_nothing_else() {
    let folder = folder();
    let path = folder.path();
    train(path, "a", &[]);
    let settings = fs::read(path.join("a/run.yaml")).unwrap();
    let refused = failure(path, &["report", "a", "--output", "a/run.yaml", "--samples", "0"]);
    assert!(refused.starts_with("exit code 2\n") && refused.contains("is no report"), "{refused}");
    assert_eq!(fs::read(path.join("a/run.yaml")).unwrap(), settings);
    let refused = failure(path, &["report", "a", "--output", "nowhere/r.html", "--samples", "0"]);
    assert!(refused.contains("there is no folder nowhere"), "{refused}");
    report(path, &["a", "--samples", "0"]);
    report(path, &["a", "--samples", "0"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("r.html", path.join("link")).unwrap();
        let told = ["report", "a", "--output", "link", "--samples", "0", "--json"];
        fs::write(path.join("r.html"), "").unwrap();
        succeed(path, &told);
        assert!(path.join("link").is_symlink());
        assert!(fs::read_to_string(path.join("r.html")).unwrap().contains("</html>"));
    }
}

#[test]
fn metrics_that_are_damaged_in_the_middle_are_told_and_a_cut_end_is_not() {
    let folder = folder();
    let path = folder.path();
    train(path, "a", &[]);
    let metrics = path.join("a/metrics.jsonl");
    let whole = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, format!("{whole}{{\"step\":")).unwrap();
    report(path, &["a", "--samples", "0"]);
    fs::write(&metrics, whole.replacen("\"loss\"", "\"lost\"", 1)).unwrap();
    let told = failure(path, &["report", "a", "--output", "r.html"]);
    assert!(told.contains("metrics.jsonl") && told.contains("line 1 is none of metrics"), "{told}");
}
