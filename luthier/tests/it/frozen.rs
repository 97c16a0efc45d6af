//! What frozen layers give, kept for examples that come again: when that is chosen, what is told, and that
//! the result is the same.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::{luthier, run, tiny};

/// The last layer of the tiny model is trained.
const UPPER: &str = r"adapter.target_modules=.*layers\.1\..*_proj";

/// A folder with the model and so many examples; of 6000, the frozen layer gives 4.2 MiB in f32.
fn sound(examples: usize) -> TempDir {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    tiny::examples(&folder.path().join("d.jsonl"), examples, 1);
    folder
}

fn train(folder: &Path, out: &str, settings: &[&str]) -> Output {
    let mut command = luthier(folder);
    command.args(["train", "--resume", "--model", "m", "--data", "d.jsonl", "--output", out]);
    let usual =
        ["data.max_length=32", "precision=f32", "training.batch_size=600", "training.max_steps=5", UPPER];
    for setting in usual.iter().chain(settings) {
        command.args(["--set", setting]);
    }
    command.output().unwrap()
}

#[track_caller]
fn told(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// The setting as a run's folder has it.
fn settled(folder: &Path, out: &str, key: &str) -> String {
    let saved = fs::read_to_string(folder.join(out).join("run.yaml")).unwrap();
    let line = saved.lines().find_map(|line| line.trim().strip_prefix(&format!("{key}: "))).unwrap();
    line.to_owned()
}

/// Steps and evaluations without the times, and the adapter.
fn result(folder: &Path, out: &str) -> (Vec<[Value; 4]>, Vec<u8>) {
    let metrics = fs::read_to_string(folder.join(out).join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        ["step", "loss", "grad_norm", "eval_loss"].map(|key| line[key].clone())
    };
    (
        metrics.lines().map(line).collect(),
        fs::read(folder.join(out).join("adapter_model.safetensors")).unwrap(),
    )
}

#[test]
fn however_it_is_kept_the_result_is_the_same_and_a_run_may_go_on_with_it_kept_otherwise() {
    let folder = sound(400);
    let (folder, data) = (
        folder.path(),
        ["training.epochs=3", "training.batch_size=40", "data.eval_fraction=0.1", "training.eval_every=2"],
    );
    let go = |out: &str, settings: &[&str]| told(&train(folder, out, &[&data, settings].concat()));
    let never = "training.frozen_activations=false";
    assert!(!go("again", &[never]).contains("kept  "));
    let again = result(folder, "again");
    for (out, setting) in [("auto", "auto"), ("file", "4KiB"), ("true", "true")] {
        let setting = format!("training.frozen_activations={setting}");
        assert!(go(out, &[&setting]).contains("kept     what frozen layers give"), "{setting}");
        assert!(again == result(folder, out), "{setting}");
    }
    for (first, then) in [("false", "4KiB"), ("4KiB", "auto"), ("auto", "false")] {
        let _ = fs::remove_dir_all(folder.join("out"));
        for (setting, steps) in [(first, 2), (then, 5)] {
            let setting = format!("training.frozen_activations={setting}");
            go("out", &[&setting, &format!("training.max_steps={steps}"), "schedule.name=constant"]);
        }
        go("whole", &[never, "schedule.name=constant"]);
        assert!(result(folder, "whole").1 == result(folder, "out").1, "{first}, then {then}");
    }
    // The saved settings are those of a run.
    let finished = told(&run(folder, &["train", "auto/run.yaml", "--resume"]));
    assert!(finished.contains("finished already"), "{finished}");
}

#[test]
fn auto_keeps_it_where_it_is_of_use_and_has_room_and_changes_no_other_size() {
    let folder = sound(6000);
    let folder = folder.path();
    let key = "frozen_activations";
    let two = ["training.epochs=2", "training.max_steps=8"];
    let plain = told(&train(folder, "plain", &[&two[..], &["training.frozen_activations=false"]].concat()));
    let planned = plain.lines().find_map(|line| line.strip_prefix("memory   ")).unwrap();
    let mib: f64 = planned.split(' ').next().unwrap().parse().unwrap();
    for (room, keeps) in [(2.0, false), (8.0, true)] {
        // What the process holds by itself is never the same to the byte.
        let (memory, out) =
            (format!("memory={}", ((mib + room) * f64::from(1 << 20)) as u64), format!("{room}"));
        let said = told(&train(folder, &out, &[&two[..], &[&memory]].concat()));
        assert_eq!(said.contains("kept  "), keeps, "{said}");
        assert_eq!(said.contains("frozen_activations 4.2 MiB"), keeps, "{said}");
        assert_eq!(settled(folder, &out, key) != "false", keeps, "{said}");
        for other in ["micro_batch_tokens", "checkpointing", "activation_offloading"] {
            assert_eq!(settled(folder, &out, other), settled(folder, "plain", other));
        }
        assert!(result(folder, &out) == result(folder, "plain"));
    }
    // In one epoch nothing comes again but the held-out examples, and below the lowest layer there is nothing
    // to keep.
    told(&train(folder, "once", &["training.epochs=1"]));
    told(&train(folder, "held-out", &["data.eval_fraction=0.5"]));
    told(&train(folder, "all", &[&two[..], &["adapter.target_modules=all-linear"]].concat()));
    assert_eq!(["once", "all"].map(|out| settled(folder, out, key)), ["false", "false"]);
    assert_ne!(settled(folder, "held-out", key), "false");
}

#[test]
fn the_plan_counts_what_may_be_in_memory_and_what_cannot_be_of_use_is_refused() {
    let folder = sound(1);
    let plan = |settings: &[&str]| {
        let mut arguments = vec!["plan", "--json", "--model", "m", "--set", UPPER];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        run(folder.path(), &arguments)
    };
    let json = |settings: &[&str]| -> Value { serde_json::from_slice(&plan(settings).stdout).unwrap() };
    let two = "training.epochs=2";
    let kept = json(&[two, "training.frozen_activations=8MiB"]);
    let without = json(&[two]);
    assert_eq!(kept["bytes"]["frozen_activations"], 8 << 20);
    assert_eq!(kept["frozen_activation_memory_bytes"], 8 << 20);
    let total = |plan: &Value| plan["total_bytes"].as_u64().unwrap();
    assert_eq!(total(&kept), total(&without) + (8 << 20));
    assert_eq!(without["bytes"]["frozen_activations"], 0, "nobody knows how much data there is");
    assert!(without["frozen_activation_memory_bytes"].is_null());

    let small = format!("memory={}", total(&without) + (1 << 20));
    let said = String::from_utf8(plan(&[two, &small, "training.frozen_activations=8MiB"]).stderr).unwrap();
    assert!(said.contains("training.frozen_activations: auto to "), "{said}");
    assert_eq!(json(&[two, &small])["fits"], true);

    for (settings, words) in [
        (&[two, "adapter.target_modules=all-linear"][..], "the lowest layer or the embeddings are trained"),
        (&[two, "adapter.method=full"], "the lowest layer or the embeddings are trained"),
        (&["training.epochs=1"], "this run passes each of them once"),
    ] {
        let settings = [settings, &["training.frozen_activations=true"]].concat();
        for output in [plan(&settings), train(folder.path(), "none", &settings)] {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{said}");
            let begin = "--set training.frozen_activations=true: `training.frozen_activations` is about ";
            assert!(said.contains(begin) && said.contains(words), "{said}");
        }
    }
}
