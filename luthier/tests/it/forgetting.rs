//! Forgetting, as a user measures it: `eval forgetting`, and `training.forgetting_*` while a run goes.

use std::fs;

use serde_json::Value;

use crate::eval::{folder, json_of};
use crate::support::tiny_adapter;
use crate::{failure, run};

#[test]
fn what_is_forgotten_is_told_of_each_adapter_and_while_a_run_goes() {
    let folder = folder();
    for (name, size) in [("small", 0.2), ("large", 0.8)] {
        fs::rename(tiny_adapter(folder.path(), size), folder.path().join(name)).unwrap();
    }
    let forgetting = ["eval", "forgetting", "--model", "model", "--set", "precision=f32", "--json"];
    let both = ["--adapter", "small", "--adapter", "large", "--items", "items.jsonl"];
    let told = json_of(folder.path(), &[&forgetting[..], &both].concat());
    let number = |n: usize, key: &str| told["systems"][n][key].as_f64().unwrap();
    assert!(0.0 < number(0, "kl") && number(0, "kl") < number(1, "kl"), "{told}");
    assert!(told["systems"][1]["interval"]["low"].as_f64().unwrap() < number(1, "kl"));
    let difference = told["systems"][1]["difference"]["difference"]["value"].as_f64().unwrap();
    assert!((difference - (number(1, "loss") - told["base_loss"].as_f64().unwrap())).abs() < 1e-9);
    let items = fs::read_to_string(folder.path().join("items.jsonl")).unwrap();
    assert_eq!(items.lines().count() as u64, told["texts"].as_u64().unwrap());
    let tokens =
        items.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["tokens"].as_u64().unwrap());
    assert_eq!(tokens.sum::<u64>(), told["tokens"].as_u64().unwrap());

    // By other text, which is then that of perplexity, too.
    let data = ["--adapter", "large", "--data", "data.jsonl"];
    let told = json_of(folder.path(), &[&forgetting[..], &data].concat());
    let perplexity = ["eval", "perplexity", "--model", "model", "--set", "precision=f32", "--json"];
    let losses = json_of(folder.path(), &[&perplexity[..], &data].concat());
    let near = |a: &Value, b: &Value| (a.as_f64().unwrap() / b.as_f64().unwrap() - 1.0).abs() < 1e-6;
    assert!(near(&told["systems"][0]["loss"], &losses["loss"]), "{told} {losses}");
    assert!(near(&told["base_loss"], &losses["beside"][0]["loss"]), "{told} {losses}");

    // A run that measures: the last line is what `eval` finds of its result.
    let train = "train --model model --data data.jsonl --output run --quiet --set precision=f32 --set training.max_steps=5 \
                 --set training.forgetting_every=2 --set optimizer.learning_rate=0.01 --set schedule.warmup=0";
    let output = run(folder.path(), &train.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metrics = fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let measured: Vec<Value> = lines.filter(|line| line.get("forgetting_kl").is_some()).collect();
    let steps: Vec<u64> = measured.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 4, 5]);
    let of_run = json_of(folder.path(), &[&forgetting[..], &["--adapter", "run"]].concat());
    assert!(near(&of_run["systems"][0]["kl"], &measured[2]["forgetting_kl"]), "{of_run} {measured:?}");
}

#[test]
fn forgetting_beyond_a_limit_ends_a_run_and_says_so() {
    let folder = folder();
    let train = "train --model model --data data.jsonl --output run --set precision=f32 --set \
                 training.max_steps=40 --set training.forgetting_every=1 --set training.forgetting_limit=0.3 \
                 --lr 0.01 --set schedule.warmup=0 --eval-data data.jsonl --set training.eval_every=1";
    let arguments: Vec<&str> = train.split_whitespace().chain(["--json"]).collect();
    let output = run(folder.path(), &arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (steps, step) = (summary["steps"].as_u64().unwrap(), summary["result_step"].as_u64().unwrap());
    assert!(0 < step && step < steps, "{summary}");
    assert_eq!(summary["forgetting"]["step"], step);
    let result = format!("is beyond training.forgetting_limit; the result is that of step {step}\n");
    assert!(told.contains(&result), "{told}");
    let card = fs::read_to_string(folder.path().join("run/README.md")).unwrap();
    assert!(card.contains(&format!("of step {step} ")), "{card}");
    // Whoever lists the run is told of its result, too, and not of the step behind it.
    let listed = &json_of(folder.path(), &["runs", "list", "--json"])["runs"][0];
    assert_eq!((&listed["steps"], &listed["result_step"]), (&summary["steps"], &summary["result_step"]));
    let metrics = fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_step =
        |key: &str| lines.iter().find(|of| of["step"] == step && of.get(key).is_some()).unwrap()[key].clone();
    assert_eq!(listed["result_loss"], of_step("loss"));
    assert_eq!(listed["result_held_out_loss"], of_step("eval_loss"));
    let shown = |key: &str| format!("{:.4}", of_step(key).as_f64().unwrap());
    for command in [&["runs", "list"][..], &["runs", "compare", "run"]] {
        let table = String::from_utf8(run(folder.path(), command).stdout).unwrap();
        let row = table.lines().nth(1).unwrap();
        for words in [&format!("{steps}, result of {step}"), &shown("loss"), &shown("eval_loss")] {
            assert!(row.contains(words), "{words}: {table}");
        }
    }
    let report = run(folder.path(), &["report", "run", "--output", "r.html", "--samples", "0"]);
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let page = fs::read_to_string(folder.path().join("r.html")).unwrap();
    for key in ["loss", "eval_loss"] {
        let words = format!("; {} of the result (step {step})", shown(key));
        assert!(page.contains(&words), "{words}");
    }
    // More steps do not follow, which is told with the reason.
    let more = run(folder.path(), &["train", "--resume", "run", "--set", "training.max_steps=80"]);
    let told = String::from_utf8_lossy(&more.stderr);
    assert!(more.status.success(), "{told}");
    let why = "note: training.forgetting_limit ended it, for its divergence from the base was ";
    let instead = "begin another run by --set adapter.init_from=run\n";
    assert!(told.contains("finished already") && told.contains(why) && told.contains(instead), "{told}");
    let json = ["eval", "forgetting", "--adapter", "run", "--set", "precision=f32", "--json"];
    let kl = json_of(folder.path(), &json)["systems"][0]["kl"].as_f64().unwrap();
    assert!(0.0 < kl && kl <= 0.3, "{kl}");
}

#[test]
fn what_forgetting_cannot_be_measured_by_is_refused() {
    let folder = folder();
    let train = "train --model model --data data.jsonl --output run";
    for (settings, expected) in [
        ("training.forgetting_limit=0.1", "set that, too"),
        ("training.forgetting_every=0", "must be 1 or more, or null"),
        ("training.forgetting_every=5 adapter.init=pissa", "which adapter.init changes here"),
        ("training.forgetting_every=5 training.quantization_aware=q4_0", "eval forgetting"),
        ("training.forgetting_every=5 training.forgetting_limit=0", "must be above 0"),
        (
            "training.forgetting_every=5 training.forgetting_limit=1 data.eval_fraction=0.1 training.early_stopping_patience=1",
            "leave one of them out",
        ),
        ("training.forgetting_every=5 training.forgetting_data=nowhere.jsonl", "nowhere.jsonl"),
    ] {
        let set = settings.split(' ').flat_map(|setting| ["--set", setting]);
        let arguments: Vec<&str> = train.split(' ').chain(set).collect();
        let told = failure(folder.path(), &arguments);
        assert!(told.contains(expected), "{settings}: {told}");
        assert!(!folder.path().join("run").exists(), "{settings}");
    }
    let told = failure(folder.path(), &["eval", "forgetting", "--model", "model"]);
    assert!(told.contains("name one by --adapter"), "{told}");
}
