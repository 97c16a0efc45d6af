//! `sweep`: many runs together, each as `train` alone would have it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::succeed;
use crate::{failure, luthier, run, tiny};

/// The tiny model, examples and held-out ones, and the settings of short runs in `run.yaml`.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    tiny::examples(&folder.path().join("d.jsonl"), 40, 1);
    tiny::examples(&folder.path().join("e.jsonl"), 6, 2);
    let settings = "model: m\ndata: {train: d.jsonl, eval: e.jsonl, max_length: 32}\n\
                    training: {batch_size: 2, max_steps: 12}\nschedule: {warmup: 0}\n";
    fs::write(folder.path().join("run.yaml"), settings).unwrap();
    folder
}

fn sweep_file(folder: &Path, text: &str) {
    fs::write(folder.join("sweep.yaml"), text).unwrap();
}

/// What `sweep --json` says.
#[track_caller]
fn sweep(folder: &Path) -> (Value, String) {
    let (out, errors) = succeed(folder, &["sweep", "sweep.yaml", "--json"]);
    (serde_json::from_str(&out).unwrap(), errors)
}

fn names(results: &Value) -> Vec<String> {
    let runs = results["runs"].as_array().unwrap().iter();
    let mut names: Vec<String> = runs.map(|run| run["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// The lines of metrics without what depends on the machine.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        for key in ["tokens_per_second", "memory_bytes"] {
            value.as_object_mut().unwrap().remove(key);
        }
        value
    };
    text.lines().map(line).collect()
}

#[test]
fn a_grid_trains_every_combination_to_the_bytes_of_each_alone() {
    let folder = folder();
    let path = folder.path();
    sweep_file(
        path,
        "run: run.yaml\ngrid:\n  optimizer.learning_rate: [1e-3, 1e-2]\n  adapter.method: [lora, dora]\n  \
         precision: [f32, bf16]\noutput: sweep\n",
    );
    let (results, said) = sweep(path);
    assert_eq!(names(&results).len(), 8);
    // Two precisions are two bases.
    assert_eq!(said.matches("memory   4 runs train together, ").count(), 2, "{said}");
    let runs = results["runs"].as_array().unwrap();
    let losses: Vec<f64> = runs.iter().map(|run| run["eval_loss"].as_f64().unwrap()).collect();
    assert!(losses.is_sorted(), "{losses:?}");
    assert_eq!(results["best"], runs[0]["name"]);
    assert!(runs.iter().all(|run| run["state"] == "finished" && run["steps"] == 12));
    for (rate, method, precision) in [("1e-3", "lora", "bf16"), ("1e-2", "dora", "f32")] {
        let set = |key: &str, value: &str| format!("{key}={value}");
        let (method_set, precision_set) = (set("adapter.method", method), set("precision", precision));
        let alone = format!("alone-{method}");
        let arguments =
            ["train", "run.yaml", "--lr", rate, "--output", &alone, "--set", &method_set, "--set"];
        succeed(path, &[&arguments[..], &[&precision_set]].concat());
        let name = format!("learning_rate-{rate}_method-{method}_precision-{precision}");
        let [alone, together] = [path.join(alone), path.join("sweep").join(name)];
        let bytes = |run: &Path| fs::read(run.join("adapter_model.safetensors")).unwrap();
        assert!(bytes(&alone) == bytes(&together), "{method}");
        assert_eq!(metrics(&alone), metrics(&together));
        let files = |run: &Path| crate::support::names(run);
        assert_eq!(files(&alone), files(&together));
        let arguments = ["generate", "--adapter", together.to_str().unwrap(), "--prompt", "a"];
        succeed(path, &[&arguments[..], &["--max-tokens", "2"]].concat());
    }
    let saved: Value = serde_json::from_slice(&fs::read(path.join("sweep/sweep.json")).unwrap()).unwrap();
    assert_eq!(saved, results);
    let page = fs::read_to_string(path.join("sweep/sweep.html")).unwrap();
    assert_eq!(page.matches("<path").count(), 16, "two curves a run");
    assert!(!page.contains("http") && page.contains("learning_rate-1e-2_method-dora_precision-f32"));
}

#[test]
fn learning_rates_need_no_file() {
    let folder = folder();
    let common =
        ["--model", "m", "--data", "d.jsonl", "--eval-data", "e.jsonl", "--output", "s", "--epochs", "1"];
    let rates = ["sweep", "--learning-rates", "1e-5..1e-3", "--count", "3", "--set", "training.max_steps=3"];
    let (out, said) = succeed(folder.path(), &[&rates[..], &common].concat());
    assert!(said.contains("3 runs train together"), "{said}");
    for rate in ["1e-5", "1e-4", "1e-3"] {
        assert!(out.contains(&format!("learning_rate-{rate}")), "{out}");
        assert!(folder.path().join(format!("s/learning_rate-{rate}/adapter_config.json")).exists());
    }
    assert!(
        out.contains("held-out loss") && out.contains("Try next:\n  luthier generate --adapter s/"),
        "{out}"
    );
}

#[test]
fn draws_are_those_of_their_seed() {
    let folder = folder();
    let text = |seed: u64, output: &str| {
        format!(
            "run: {{model: m, data: {{train: d.jsonl, max_length: 32}}, training: {{max_steps: 1}}}}\n\
             random: {{count: 5, seed: {seed}, optimizer.learning_rate: {{low: 1e-5, high: 1e-3, log: true}}, \
             adapter.r: {{low: 2, high: 9}}, adapter.alpha: [8, 16]}}\noutput: {output}\n"
        )
    };
    let drawn = |seed, output: &str| {
        sweep_file(folder.path(), &text(seed, output));
        let (results, _) = sweep(folder.path());
        for run in results["runs"].as_array().unwrap() {
            let number = |key: &str| run["settings"][key].as_f64().unwrap();
            assert!((1e-5..=1e-3).contains(&number("optimizer.learning_rate")), "{run}");
            assert!(
                (2.0..=9.0).contains(&number("adapter.r")) && number("adapter.r").fract() == 0.0,
                "{run}"
            );
        }
        names(&results)
    };
    let first = drawn(1, "a");
    assert_eq!(first.len(), 5);
    assert_eq!(first, drawn(1, "b"));
    assert_ne!(first, drawn(2, "c"));
}

/// However large the part that goes on, one leaves at each comparison until one is left.
#[test]
fn halving_ends_with_one_run_whatever_it_keeps() {
    let folder = folder();
    sweep_file(
        folder.path(),
        "run: run.yaml\ngrid: {optimizer.learning_rate: [1e-5, 1e-4, 1e-3]}\n\
         halving: {keep: 0.99, every: 2}\noutput: sweep\n",
    );
    let (results, _) = sweep(folder.path());
    let runs = results["runs"].as_array().unwrap();
    let mut steps: Vec<_> = runs
        .iter()
        .filter(|run| run["state"] == "stopped")
        .map(|run| run["steps"].as_u64().unwrap())
        .collect();
    steps.sort_unstable();
    assert_eq!(steps, [2, 4]);
}

#[test]
fn halving_stops_the_worse_runs_and_decides_the_same_again() {
    let folder = folder();
    sweep_file(
        folder.path(),
        "run: run.yaml\ngrid: {optimizer.learning_rate: [1e-5, 1e-4, 1e-3, 1e-2]}\n\
         halving: {keep: 0.5, every: 4}\noutput: sweep\n",
    );
    let (results, _) = sweep(folder.path());
    let state = |results: &Value, name: &str| {
        let run = results["runs"].as_array().unwrap().iter().find(|run| run["name"] == name).unwrap().clone();
        (run["state"].as_str().unwrap().to_owned(), run["steps"].as_u64().unwrap(), run["why"].to_string())
    };
    let of = |rate: &str| state(&results, &format!("learning_rate-{rate}"));
    let (word, steps, why) = of("1e-5");
    assert_eq!((&*word, steps), ("stopped", 4));
    assert!(why.contains("after step 4, ") && why.contains(" of 4 by a held-out loss of "), "{why}");
    let mut steps: Vec<u64> =
        results["runs"].as_array().unwrap().iter().map(|r| r["steps"].as_u64().unwrap()).collect();
    steps.sort_unstable();
    assert_eq!(steps, [4, 4, 8, 12]);
    let finished: Vec<_> =
        results["runs"].as_array().unwrap().iter().filter(|r| r["state"] == "finished").collect();
    assert_eq!(finished.len(), 1);
    let best = finished[0]["name"].as_str().unwrap();
    let rate = best.trim_start_matches("learning_rate-");
    succeed(folder.path(), &["train", "run.yaml", "--lr", rate, "--output", "alone"]);
    let bytes = |run: &str| fs::read(folder.path().join(run).join("adapter_model.safetensors")).unwrap();
    assert!(bytes("alone") == bytes(&format!("sweep/{best}")), "pauses change no byte");
    // Started again, it does nothing and says the same.
    let before = bytes(&format!("sweep/{best}"));
    let (again, _) = sweep(folder.path());
    assert_eq!(again, results);
    assert!(bytes(&format!("sweep/{best}")) == before);
    // Without halving the others go on from where they were stopped.
    sweep_file(
        folder.path(),
        "run: run.yaml\ngrid: {optimizer.learning_rate: [1e-5, 1e-4, 1e-3, 1e-2]}\noutput: sweep\n",
    );
    let (all, _) = sweep(folder.path());
    assert!(
        all["runs"].as_array().unwrap().iter().all(|run| run["state"] == "finished" && run["steps"] == 12)
    );
}

#[test]
fn what_does_not_fit_together_trains_in_smaller_groups() {
    let folder = folder();
    let text = |memory: &str| {
        format!(
            "run: {{model: m, memory: {memory}, data: {{train: d.jsonl, max_length: 32}}, \
             training: {{max_steps: 2}}, adapter: {{r: 512}}}}\n\
             grid: {{optimizer.learning_rate: [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]}}\noutput: s-{memory}\n"
        )
    };
    sweep_file(folder.path(), &text("1GiB"));
    let (_, said) = sweep(folder.path());
    let line = said.lines().find(|line| line.contains("memory   5 runs train together, ")).unwrap();
    let planned: f64 = line.split("together, ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(line.contains(" MiB planned"), "{line}");
    // Less than all of them need; how much the process itself holds differs a little from one to the next.
    let memory = format!("{}MiB", (planned * 0.85) as u64);
    sweep_file(folder.path(), &text(&memory));
    let (results, said) = sweep(folder.path());
    assert!(said.contains("note: 5 runs do not fit into the memory together; "), "{said}");
    assert!(results["runs"].as_array().unwrap().iter().all(|run| run["state"] == "finished"));
    let rate = "learning_rate-1e-3/adapter_model.safetensors";
    let [one, other] =
        ["s-1GiB", &format!("s-{memory}")].map(|s| fs::read(folder.path().join(s).join(rate)).unwrap());
    assert!(one == other);
}

#[test]
fn a_run_that_diverges_is_told_and_the_others_go_on() {
    let folder = folder();
    sweep_file(folder.path(), "run: run.yaml\ngrid: {optimizer.learning_rate: [1e-3, 1e30]}\noutput: s\n");
    let (results, said) = sweep(folder.path());
    let runs = results["runs"].as_array().unwrap();
    assert_eq!((&runs[0]["state"], &runs[1]["state"]), (&"finished".into(), &"failed".into()));
    assert!(runs[1]["why"].as_str().unwrap().contains("step "), "{results}");
    assert!(said.contains("warning: learning_rate-1e30: step "), "{said}");
    sweep_file(folder.path(), "run: run.yaml\ngrid: {optimizer.learning_rate: [1e30, 1e31]}\noutput: t\n");
    let output = run(folder.path(), &["sweep", "sweep.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("error: no run came to an end; the first: "));
}

#[test]
fn bad_files_are_told_with_their_place() {
    let folder = folder();
    let said = |text: &str| {
        sweep_file(folder.path(), text);
        let said = failure(folder.path(), &["sweep", "sweep.yaml"]);
        assert!(said.starts_with("exit code 2\nerror: "), "{text}: {said}");
        said
    };
    let grid = "grid: {adapter.r: [2, 4]}\noutput: s\n";
    for (text, expected) in [
        ("run: run.yaml\ngird: {adapter.r: [2]}\noutput: s\n", "unknown key `gird`; did you mean `grid`?"),
        (
            &format!("model: m\n{grid}"),
            "unknown key `model`; a sweep file has run, grid, random, halving, output",
        ),
        ("run: run.yaml\ngrid: {adapter.rnk: [2]}\noutput: s\n", "unknown key `adapter.rnk`"),
        (
            "run: run.yaml\ngrid: {adapter.r: 2}\noutput: s\n",
            "`grid.adapter.r` must be a list of values, not `2`",
        ),
        ("run: run.yaml\ngrid: {adapter.r: [2, x]}\noutput: s\n", "`adapter.r`: expected a whole number"),
        ("run: run.yaml\ngrid: {adapter.r: [2, 0]}\noutput: s\n", "adapter.r"),
        ("run: run.yaml\ngrid: {adapter: {r: [2]}}\noutput: s\n", "keys are named in full"),
        ("run: run.yaml\ngrid: {training.seed: [1, 2, 1]}\noutput: s\n", "names `1` twice"),
        ("run: run.yaml\noutput: s\n", "a sweep needs `grid` or `random`"),
        ("run: run.yaml\nrandom: {adapter.r: [2]}\noutput: s\n", "`random` needs a `count` of runs"),
        (
            "run: run.yaml\nrandom: {count: 2, adapter.r: {low: 4, hgih: 8}}\noutput: s\n",
            "unknown key `random.adapter.r.hgih`; did you mean `random.adapter.r.high`?",
        ),
        ("run: run.yaml\nrandom: {count: 2, adapter.r: {low: 8, high: 4}}\noutput: s\n", "below its `high`"),
        ("run: run.yaml\ngrid: {adapter.r: [2]}\nrandom: {count: 1}\noutput: s\n", "exclude each other"),
        (&format!("run: run.yaml\nhalving: {{every: 0}}\n{grid}"), "`halving` compares every 1 step or more"),
        (
            &format!("run: run.yaml\nhalving: {{every: 2, keep: 1.5}}\n{grid}"),
            "keep must lie between 0 and 1",
        ),
        (
            &format!(
                "run: {{model: m, data: {{train: d.jsonl, eval: e.jsonl}}, training: {{eval_every: 2, \
                 early_stopping_patience: 1}}}}\nhalving: {{every: 2}}\n{grid}"
            ),
            "`halving` each end runs by their held-out losses",
        ),
        (&format!("run: run.yaml\nhalving: {{evry: 2}}\n{grid}"), "did you mean `halving.every`?"),
        (
            &format!("run: {{model: m, data: {{train: d.jsonl}}}}\nhalving: {{every: 2}}\n{grid}"),
            "`halving` compares held-out losses",
        ),
        (&format!("run: gone.yaml\n{grid}"), "cannot read the run file gone.yaml"),
        ("run: run.yaml\ngrid: {adapter.r: [2]}\n", "`output` is missing"),
        ("run: run.yaml\ngrid: {output: [a, b]}\noutput: s\n", "cannot differ between runs"),
        ("[1, 2]\n", "a sweep file has the sections"),
        (&format!("run: {{modell: m}}\n{grid}"), "unknown key `modell`; did you mean `model`?"),
    ] {
        let said = said(text);
        assert!(said.contains(expected), "{text}: {said}");
        assert!(!folder.path().join("s").exists(), "{text}: nothing is written");
    }
    let said = said(&format!("run: {{model: m,\n  adapter: {{rnk: 2}}}}\n{grid}"));
    assert!(said.contains("sweep.yaml:2:"), "{said}");
    for (arguments, expected) in [
        (&["sweep"][..], "needs a sweep file, or --learning-rates"),
        (&["sweep", "--learning-rates", "1e-3..1e-5"], "the first rate must be the lower one"),
        (&["sweep", "--learning-rates", "1e-5..1e-3", "--count", "1", "--output", "s"], "expected 2 to 1000"),
        (&["sweep", "--learning-rates", "1e-5..1e-3", "--model", "m", "--output", "s"], "`data.train`"),
    ] {
        let said = failure(folder.path(), arguments);
        assert!(said.starts_with("exit code 2\nerror: ") && said.contains(expected), "{arguments:?}: {said}");
    }
}

#[test]
fn a_sweep_that_is_killed_goes_on_to_the_same_bytes() {
    let folder = folder();
    let text = |output: &str| {
        format!(
            "run: {{model: m, data: {{train: d.jsonl, eval: e.jsonl, max_length: 32}}, adapter: {{dropout: 0.1}}, \
             training: {{max_steps: 300, save_every: 10, eval_every: 100}}}}\n\
             grid: {{training.seed: [1, 2], adapter.r: [2, 4]}}\noutput: {output}\n"
        )
    };
    sweep_file(folder.path(), &text("s"));
    let mut child = luthier(folder.path()).args(["sweep", "sweep.yaml", "--quiet"]).spawn().unwrap();
    let checkpoint = folder.path().join("s/seed-2_r-4/checkpoints/step-000020");
    while !checkpoint.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!folder.path().join("s/seed-2_r-4/adapter_config.json").exists(), "killed before its end");
    // Another value in front of the others makes a run that is new.
    sweep_file(folder.path(), &text("s").replace("[1, 2]", "[3, 1, 2]"));
    let (results, _) = sweep(folder.path());
    assert!(results["runs"].as_array().unwrap().iter().all(|run| run["state"] == "finished"), "{results}");
    sweep_file(folder.path(), &text("whole"));
    sweep(folder.path());
    for name in ["seed-1_r-2", "seed-1_r-4", "seed-2_r-2", "seed-2_r-4"] {
        let [one, other] = ["s", "whole"].map(|s| folder.path().join(s).join(name));
        let bytes = |run: &Path| fs::read(run.join("adapter_model.safetensors")).unwrap();
        assert!(bytes(&one) == bytes(&other), "{name}");
        assert_eq!(metrics(&one), metrics(&other));
    }
    // Other settings than a run began with are refused.
    sweep_file(folder.path(), &text("s").replace("dropout: 0.1", "dropout: 0.2"));
    let said = failure(folder.path(), &["sweep", "sweep.yaml"]);
    assert!(said.contains("adapter.dropout: 0.1 when the run began, 0.2 now"), "{said}");
}

#[test]
fn runs_that_change_the_base_or_train_all_of_it_have_their_own() {
    let folder = folder();
    sweep_file(
        folder.path(),
        "run: run.yaml\ngrid:\n  adapter.init: [default, pissa, orthogonal]\n  adapter.r: [4]\noutput: s\n",
    );
    let (results, said) = sweep(folder.path());
    assert_eq!(names(&results).len(), 3);
    assert!(said.contains("memory   2 runs train together, "), "{said}");
    for init in ["default", "pissa", "orthogonal"] {
        let set = format!("adapter.init={init}");
        succeed(folder.path(), &["train", "run.yaml", "--output", init, "--set", &set, "--rank", "4"]);
        let together = folder.path().join(format!("s/init-{init}_r-4"));
        let bytes = |run: &Path| fs::read(run.join("adapter_model.safetensors")).unwrap();
        assert!(bytes(&folder.path().join(init)) == bytes(&together), "{init}");
    }
    sweep_file(
        folder.path(),
        "run: run.yaml\ngrid:\n  adapter.method: [full, lora]\n  training.quantization_aware: [null]\noutput: f\n",
    );
    let (results, _) = sweep(folder.path());
    assert!(results["runs"].as_array().unwrap().iter().all(|run| run["state"] == "finished"), "{results}");
    assert!(folder.path().join("f/method-full_quantization_aware-null/model.safetensors").exists());
}

#[cfg(unix)]
#[test]
fn a_sweep_that_is_stopped_keeps_what_is_done_and_goes_on() {
    use signal_hook::consts::SIGINT;
    let folder = folder();
    sweep_file(
        folder.path(),
        "run: {model: m, data: {train: d.jsonl, eval: e.jsonl, max_length: 32}, training: {max_steps: 800}}\n\
         grid: {optimizer.learning_rate: [1e-4, 1e-3]}\noutput: s\n",
    );
    let child = luthier(folder.path())
        .args(["sweep", "sweep.yaml"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = folder.path().join("s/learning_rate-1e-4/metrics.jsonl");
    let lines = || fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    while lines() < 5 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let killed =
        std::process::Command::new("kill").args([format!("-{SIGINT}"), child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("stopped on request, all is saved; the same command goes on"), "{said}");
    let saved: Value =
        serde_json::from_slice(&fs::read(folder.path().join("s/sweep.json")).unwrap()).unwrap();
    assert!(saved["runs"].as_array().unwrap().iter().all(|run| run["state"] == "interrupted"), "{saved}");
    let (results, _) = sweep(folder.path());
    let runs = results["runs"].as_array().unwrap();
    assert!(runs.iter().all(|run| run["state"] == "finished" && run["steps"] == 800), "{results}");
    let steps: Vec<u64> = self::metrics(&folder.path().join("s/learning_rate-1e-3"))
        .iter()
        .filter(|line| line["loss"].is_number())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=800).collect::<Vec<_>>(), "each step stands once");
}

#[test]
fn runs_that_differ_in_the_seed_are_taken_together_and_compared_on_the_same_examples() {
    let folder = folder();
    let path = folder.path();
    sweep_file(
        path,
        "run: run.yaml\ngrid:\n  quantization: [null, nf4]\n  training.seed: [1, 2, 3]\noutput: sweep\n",
    );
    let (results, _) = sweep(path);
    let groups = results["over_seeds"].as_array().unwrap();
    assert_eq!(groups.len(), 2);
    assert_eq!(
        [&groups[0]["settings"], &groups[1]["settings"]],
        [&json!({"quantization": null}), &json!({"quantization": "nf4"})]
    );
    for group in groups {
        assert_eq!(group["seeds"], json!([1, 2, 3]));
        // What was trained has the losses that training found in the end, to rounding.
        for (seed, loss) in (1..).zip(group["by_seed"].as_array().unwrap()) {
            let is_it = |run: &&Value| {
                run["settings"]["training.seed"] == seed
                    && run["settings"]["quantization"] == group["settings"]["quantization"]
            };
            let run = results["runs"].as_array().unwrap().iter().find(is_it).unwrap();
            let (ours, theirs) = (loss.as_f64().unwrap(), run["eval_loss"].as_f64().unwrap());
            assert!((ours - theirs).abs() < 1e-5, "{ours} {theirs}");
        }
        let losses: Vec<f64> =
            group["by_seed"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
        let mean = group["eval_loss"]["value"].as_f64().unwrap();
        assert!((losses.iter().sum::<f64>() / 3.0 - mean).abs() < 1e-9);
    }
    let value = |group: &Value| group["eval_loss"]["value"].as_f64().unwrap();
    let difference = &groups[1]["less_first"]["difference"];
    assert!((difference["value"].as_f64().unwrap() - (value(&groups[1]) - value(&groups[0]))).abs() < 1e-9);
    assert!(groups[0].get("less_first").is_none());
    // The same command again trains nothing, and says the same.
    let (told, _) = succeed(path, &["sweep", "sweep.yaml"]);
    assert!(told.contains("over seeds") && told.contains("Less the first: than quantization=null"), "{told}");
    assert!(!told.contains("a better one may lie beyond"), "a seed has no edge: {told}");
    assert_eq!(sweep(path).0["over_seeds"], results["over_seeds"]);
}

#[test]
fn runs_whose_held_out_examples_differ_by_the_seed_are_not_compared() {
    let folder = folder();
    let path = folder.path();
    sweep_file(
        path,
        "run: {model: m, data: {train: d.jsonl, eval_fraction: 0.2, max_length: 32}, training: {max_steps: 2}}\n\
         grid: {training.seed: [1, 2]}\noutput: sweep\n",
    );
    let (results, said) = sweep(path);
    assert!(results.get("over_seeds").is_none());
    let note =
        "note: runs that differ in the seed are not compared, since their held-out examples differ too";
    assert!(said.contains(&format!("{note}; name a file of them by data.eval")), "{said}");
    // Where it is not the seed that decides them, the setting is named that does.
    sweep_file(
        path,
        "run: {model: m, data: {train: d.jsonl, max_length: 32}, training: {max_steps: 2}}\n\
         grid: {training.seed: [1, 2], data.eval: [d.jsonl, e.jsonl]}\noutput: other\n",
    );
    let (_, said) = sweep(path);
    assert!(said.contains(&format!("{note} by data.eval; make a sweep for each of its values\n")), "{said}");
}

#[test]
fn a_run_that_forgot_too_much_stands_behind_and_is_not_recommended() {
    let folder = folder();
    sweep_file(
        folder.path(),
        "run: run.yaml\ngrid: {training.forgetting_limit: [1e-12, 1e6], training.forgetting_every: [2], \
         schedule.warmup: [0]}\noutput: sweep\n",
    );
    let (results, _) = sweep(folder.path());
    let runs = results["runs"].as_array().unwrap();
    assert_eq!(runs[0]["settings"]["training.forgetting_limit"], 1e6, "{results}");
    assert_eq!(results["best"], runs[0]["name"]);
    assert_eq!(runs[1]["why"], "forgot more than training.forgetting_limit", "{results}");
    assert_eq!(runs[1]["steps"], 2);
}

/// One learns next to nothing and forgets nothing, the other learns and forgets.
#[test]
fn halving_puts_a_run_that_forgot_too_much_behind_as_the_last_table_does() {
    let folder = folder();
    sweep_file(
        folder.path(),
        "run: run.yaml\ngrid: {optimizer.learning_rate: [1e-9, 1e-2], training.forgetting_limit: [1e-3], \
         training.forgetting_every: [2], training.eval_every: [2]}\nhalving: {keep: 0.5, every: 4}\noutput: sweep\n",
    );
    let (results, _) = sweep(folder.path());
    let runs = results["runs"].as_array().unwrap();
    assert_eq!(runs[0]["settings"]["optimizer.learning_rate"], 1e-9, "{results}");
    assert_eq!((&runs[0]["state"], &runs[0]["steps"]), (&json!("finished"), &json!(12)), "{results}");
    assert_eq!(results["best"], runs[0]["name"]);
    assert_eq!(runs[1]["why"], "forgot more than training.forgetting_limit", "{results}");
    assert!(runs[1]["eval_loss"].as_f64() < runs[0]["eval_loss"].as_f64(), "{results}");
    assert_eq!(sweep(folder.path()).0, results, "the same again");
}
