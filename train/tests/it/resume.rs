//! A run that is stopped anywhere and goes on ends in the bytes of one that was left alone.

use std::fs;
use std::path::Path;

use compute::Precision;
use train::{Outcome, Saves, Settings};

use crate::common::{adapter_bytes, random_examples, run, settings, tiny};

fn with_evaluation() -> Settings {
    Settings { epochs: 2, batch_size: 5, eval_every: Some(3), saves: Saves::EverySteps(2), ..settings() }
}

/// The steps and evaluations in a run's metrics, without the times.
fn metrics(folder: &Path) -> Vec<(u64, Option<f64>, Option<f64>)> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let v: serde_json::Value = serde_json::from_str(line).unwrap();
        (v["step"].as_u64().unwrap(), v["loss"].as_f64(), v["eval_loss"].as_f64())
    };
    text.lines().map(line).collect()
}

fn go(settings: &Settings, folder: &Path, stop_after: Option<u64>) -> Outcome {
    let (train, eval) = (random_examples(23), random_examples(4));
    run(&tiny(2, Precision::F32), 0.1, &train, &eval, settings, folder, stop_after).0
}

#[test]
fn stopped_after_any_step_and_resumed_gives_the_same_bytes_and_each_step_once() {
    let settings = with_evaluation();
    let whole = tempfile::tempdir().unwrap();
    assert_eq!(go(&settings, whole.path(), None), Outcome::Finished);
    let steps = metrics(whole.path());
    assert_eq!(steps.iter().filter(|m| m.1.is_some()).count(), 10);
    for stop_after in 1..10 {
        let out = tempfile::tempdir().unwrap();
        assert_eq!(go(&settings, out.path(), Some(stop_after)), Outcome::Interrupted);
        assert!(!out.path().join("adapter_model.safetensors").exists(), "there is no result yet");
        assert_eq!(go(&settings, out.path(), None), Outcome::Finished);
        assert_eq!(adapter_bytes(whole.path()), adapter_bytes(out.path()), "stopped after step {stop_after}");
        assert_eq!(steps, metrics(out.path()), "stopped after step {stop_after}");
    }
}

#[test]
fn what_a_crash_leaves_does_not_disturb_the_next_start() {
    let settings = with_evaluation();
    let whole = tempfile::tempdir().unwrap();
    go(&settings, whole.path(), None);
    let out = tempfile::tempdir().unwrap();
    go(&settings, out.path(), Some(5));
    // As a crash in the middle of a checkpoint, of a deletion and of a line of metrics leaves it.
    let checkpoints = out.path().join("checkpoints");
    fs::remove_dir_all(checkpoints.join("step-000005")).unwrap();
    let hidden = |name: &str| checkpoints.join(format!(".{name}.AbCdEf.luthier-partial"));
    for name in ["step-000006", "step-000002", "step-000004"] {
        fs::create_dir_all(hidden(name).join("new")).unwrap();
    }
    fs::rename(checkpoints.join("step-000004"), hidden("step-000004").join("old")).unwrap();
    let mut lines = fs::read_to_string(out.path().join("metrics.jsonl")).unwrap();
    lines.push_str("{\"step\": 6, \"lo");
    fs::write(out.path().join("metrics.jsonl"), lines).unwrap();
    assert_eq!(go(&settings, out.path(), None), Outcome::Finished);
    assert_eq!(adapter_bytes(whole.path()), adapter_bytes(out.path()));
    assert_eq!(metrics(whole.path()), metrics(out.path()));
    let mut left: Vec<_> = fs::read_dir(&checkpoints).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(
        left,
        ["best", "step-000008", "step-000010"],
        "the best and the last two are kept, and no debris"
    );
}

/// A kill between the last checkpoint and the end of the one before the last two leaves three, and no other
/// checkpoint follows.
#[test]
fn an_old_checkpoint_that_a_kill_left_goes_though_no_other_follows() {
    let (settings, out) = (with_evaluation(), tempfile::tempdir().unwrap());
    let three = Settings { keep_checkpoints: 3, ..settings.clone() };
    assert_eq!(go(&three, out.path(), None), Outcome::Finished);
    let bytes = adapter_bytes(out.path());
    fs::remove_file(out.path().join("adapter_config.json")).unwrap();
    assert_eq!(go(&settings, out.path(), None), Outcome::Finished);
    assert_eq!(adapter_bytes(out.path()), bytes);
    let left = fs::read_dir(out.path().join("checkpoints")).unwrap().map(|e| e.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["best", "step-000008", "step-000010"]);
}

#[test]
fn a_finished_run_is_left_as_it_is_and_may_be_made_longer() {
    let short = Settings { max_steps: Some(4), schedule: constant(), ..with_evaluation() };
    let long = Settings { max_steps: Some(8), ..short.clone() };
    let [grown, whole] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    assert_eq!(go(&short, grown.path(), None), Outcome::Finished);
    let before = fs::read(grown.path().join("metrics.jsonl")).unwrap();
    assert_eq!(go(&short, grown.path(), None), Outcome::AlreadyFinished);
    assert_eq!(fs::read(grown.path().join("metrics.jsonl")).unwrap(), before);
    assert_eq!(go(&long, grown.path(), None), Outcome::Finished);
    assert_eq!(go(&long, whole.path(), None), Outcome::Finished);
    assert_eq!(adapter_bytes(grown.path()), adapter_bytes(whole.path()));
}

fn constant() -> train::Schedule {
    train::Schedule { decay: train::Decay::Constant, warmup: Some(0.0) }
}

#[test]
fn early_stopping_ends_the_run_with_the_best_tensors() {
    // Random tokens can be learnt by heart only: the held-out loss must rise before long.
    let settings = Settings {
        epochs: 40,
        eval_every: Some(1),
        early_stopping_patience: Some(2),
        schedule: constant(),
        ..with_evaluation()
    };
    let out = tempfile::tempdir().unwrap();
    let (train, eval) = (random_examples(23), random_examples(4));
    let decoder = tiny(2, Precision::F32);
    let (outcome, told) = run(&decoder, 0.0, &train, &eval, &settings, out.path(), None);
    assert_eq!(outcome, Outcome::Finished);
    let best = told.evaluations.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert_eq!(told.stopped_early, Some(best));
    assert_eq!(told.steps.len() as u64, best + 2, "two evaluations without improvement");
    let saved = fs::read(out.path().join("checkpoints/best/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter_bytes(out.path()), saved);
    let (outcome, _) = run(&decoder, 0.0, &train, &eval, &settings, out.path(), None);
    assert_eq!(outcome, Outcome::AlreadyFinished);
}

#[test]
fn other_data_is_refused() {
    let out = tempfile::tempdir().unwrap();
    go(&with_evaluation(), out.path(), Some(3));
    let decoder = tiny(2, Precision::F32);
    let (adapter, peft) = crate::common::lora(&decoder, 0.1);
    let (train, stop) = (data::Dataset::of_examples(random_examples(22)), false.into());
    let job = train::Job {
        decoder: &decoder,
        adapter,
        saving: train::Saving::Adapter(&peft),
        train: &train,
        eval: &[],
        settings: with_evaluation(),
        folder: out.path(),
        stop: &stop,
        forgetting: None,
        pause: None,
    };
    let error = train::train(job, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("other data"), "{error}");
}
