//! A checkpoint whose files are not those that were written is noticed, and the one before it is gone on
//! from.

use std::fs;
use std::path::Path;

use compute::Precision;
use serde_json::Value;
use train::{Outcome, Saves, Settings, TrainError};

use crate::common::{
    Told, adapter_bytes, json, lora, random_examples, settings, tiny, try_run, without_hashes,
};

/// Five steps and two checkpoints, the last of step 5.
fn two_checkpoints() -> Settings {
    Settings { saves: Saves::EverySteps(3), ..settings() }
}

fn go(settings: &Settings, folder: &Path) -> (train::Result<Outcome>, Told) {
    let (decoder, train, eval) = (tiny(1, Precision::F32), random_examples(20), random_examples(3));
    try_run(&decoder, lora(&decoder, 0.1), &train, &eval, settings, folder, None)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

const FILES: [&str; 5] =
    ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"];

#[test]
fn whatever_happened_to_a_file_the_checkpoint_before_is_gone_on_from_to_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    assert_eq!(go(&two_checkpoints(), whole.path()).0.unwrap(), Outcome::Finished);
    let newest = "checkpoints/step-000005";
    let mut names: Vec<_> =
        fs::read_dir(whole.path().join(newest)).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let mut known = FILES;
    known.sort();
    assert_eq!(names, known, "every file of a checkpoint is tried here");
    let older = |name: &str| fs::read(whole.path().join("checkpoints/step-000003").join(name)).unwrap();
    for name in FILES {
        let bytes = fs::read(whole.path().join(newest).join(name)).unwrap();
        let turned = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            Some(bytes)
        };
        let last = bytes.len() - 1;
        let mut changes = vec![
            None,
            Some(Vec::new()),
            Some(bytes[..last].to_vec()),
            Some(bytes[..bytes.len() / 2].to_vec()),
            Some([&bytes[..], b"\n"].concat()),
            turned(0),
            turned(last / 3),
            turned(last),
        ];
        // PEFT's settings are those of every checkpoint of the run.
        if name != "adapter_config.json" {
            changes.push(Some(older(name)));
        }
        // Without the end of their last line the hashes still say all that they said.
        changes.retain(|change| name != "SHA256SUMS" || *change != Some(bytes[..last].to_vec()));
        for (number, change) in changes.into_iter().enumerate() {
            let out = tempfile::tempdir().unwrap();
            copy(whole.path(), out.path());
            let file = out.path().join(newest).join(name);
            match change {
                None => fs::remove_file(&file).unwrap(),
                Some(bytes) => fs::write(&file, bytes).unwrap(),
            }
            let (outcome, told) = go(&two_checkpoints(), out.path());
            assert_eq!(outcome.unwrap(), Outcome::Finished, "{name}, change {number}");
            assert_eq!(told.damaged, [out.path().join(newest)], "{name}, change {number}");
            assert_eq!(told.steps.iter().map(|s| s.step).collect::<Vec<_>>(), [4, 5], "{name}");
            assert!(adapter_bytes(out.path()) == adapter_bytes(whole.path()), "{name}, change {number}");
            assert!(go(&two_checkpoints(), out.path()).1.damaged.is_empty(), "it was written again");
        }
    }
}

#[test]
fn a_checkpoint_under_the_name_of_another_step_is_not_gone_on_from() {
    let out = tempfile::tempdir().unwrap();
    go(&two_checkpoints(), out.path()).0.unwrap();
    let result = adapter_bytes(out.path());
    let checkpoints = out.path().join("checkpoints");
    fs::remove_dir_all(checkpoints.join("step-000005")).unwrap();
    copy(&checkpoints.join("step-000003"), &checkpoints.join("step-000005"));
    let (outcome, told) = go(&two_checkpoints(), out.path());
    assert_eq!((outcome.unwrap(), told.damaged.len()), (Outcome::Finished, 1));
    assert_eq!(adapter_bytes(out.path()), result);
}

#[test]
fn where_no_checkpoint_is_whole_nothing_begins_anew() {
    let out = tempfile::tempdir().unwrap();
    go(&two_checkpoints(), out.path()).0.unwrap();
    let (result, metrics) = (adapter_bytes(out.path()), out.path().join("metrics.jsonl"));
    let lines = fs::read(&metrics).unwrap();
    for step in ["step-000003", "step-000005"] {
        fs::write(out.path().join("checkpoints").join(step).join("optimizer.safetensors"), "x").unwrap();
    }
    let (outcome, told) = go(&two_checkpoints(), out.path());
    let error = outcome.unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint { .. }), "{error}");
    let said = error.to_string();
    for words in ["no checkpoint is whole", "step-000003 (optimizer.safetensors", "step-000005 (optimizer"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(told.steps.is_empty() && adapter_bytes(out.path()) == result, "the result is as it was");
    assert_eq!(fs::read(&metrics).unwrap(), lines);
}

#[test]
fn checkpoints_of_the_version_before_which_had_no_hashes_are_read() {
    let out = tempfile::tempdir().unwrap();
    go(&two_checkpoints(), out.path()).0.unwrap();
    let result = adapter_bytes(out.path());
    let newest = out.path().join("checkpoints/step-000005");
    fs::remove_dir_all(&newest).unwrap();
    without_hashes(&out.path().join("checkpoints/step-000003"));
    let (outcome, told) = go(&two_checkpoints(), out.path());
    assert_eq!((outcome.unwrap(), told.damaged.len(), told.steps.len()), (Outcome::Finished, 0, 2));
    assert_eq!(adapter_bytes(out.path()), result);
    assert!(newest.join("SHA256SUMS").exists());
}

#[test]
fn checkpoints_of_a_later_version_are_left_alone() {
    let out = tempfile::tempdir().unwrap();
    go(&two_checkpoints(), out.path()).0.unwrap();
    let newest = out.path().join("checkpoints/step-000005");
    let mut state: Value = json(&newest.join("state.json"));
    state["version"] = 3.into();
    fs::write(newest.join("state.json"), state.to_string()).unwrap();
    let hash = |name: &str| {
        use sha2::Digest;
        let hash = sha2::Sha256::digest(fs::read(newest.join(name)).unwrap());
        format!("{}  {name}\n", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    fs::write(newest.join("SHA256SUMS"), FILES[..4].iter().map(|name| hash(name)).collect::<String>())
        .unwrap();
    let error = go(&two_checkpoints(), out.path()).0.unwrap_err().to_string();
    assert!(
        error.contains("is of version 3") && error.contains("go on with the luthier that wrote it"),
        "{error}"
    );
}

#[test]
fn the_best_tensors_are_not_handed_out_damaged() {
    let out = tempfile::tempdir().unwrap();
    let settings = Settings { eval_every: Some(1), early_stopping_patience: Some(9), ..two_checkpoints() };
    assert_eq!(go(&settings, out.path()).0.unwrap(), Outcome::Finished);
    fs::remove_file(out.path().join("adapter_config.json")).unwrap();
    let best = out.path().join("checkpoints/best/adapter_model.safetensors");
    let mut bytes = fs::read(&best).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&best, bytes).unwrap();
    let error = go(&settings, out.path()).0.unwrap_err().to_string();
    assert!(error.contains("checkpoints/best") && error.contains("damaged"), "{error}");
    assert!(!out.path().join("adapter_config.json").exists(), "there is no result");
}
