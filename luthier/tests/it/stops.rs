//! What a run says when it ends before its end is true: which checkpoint there is, or that there is none.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::{TempDir, tempdir};

use crate::{luthier, tiny};

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    tiny::examples(&folder.path().join("d.jsonl"), 60, 1);
    folder
}

/// Trains into `out` a row of 32 tokens a step; if `limited`, with files of at most so many KiB.
fn train(folder: &Path, limited: Option<u32>, settings: &[&str]) -> (Output, String) {
    let plain = luthier(folder);
    let mut command = match limited {
        None => plain,
        Some(blocks) => {
            let mut shell = Command::new("sh");
            let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", 2 * blocks);
            shell.args(["-c", &script]).arg(plain.get_program()).current_dir(folder);
            shell.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
            shell
        }
    };
    command.args(["train", "--resume", "--model", "m", "--data", "d.jsonl", "--output", "out"]);
    let usual = ["data.max_length=32", "training.batch_size=1", "schedule.warmup=0"];
    usual.iter().chain(settings).for_each(|setting| _ = command.args(["--set", setting]));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (output, said)
}

#[test]
fn a_run_that_diverges_exits_with_2_and_leaves_no_result() {
    let folder = folder();
    for settings in [
        &["optimizer.learning_rate=1e30"][..],
        &["optimizer.learning_rate=1e38", "training.max_steps=1"],
        &["optimizer.learning_rate=1e38", "training.save_every=1"],
        &["optimizer.learning_rate=1e38", "training.max_steps=1", "data.eval=d.jsonl", "adapter.method=full"],
        &[
            "optimizer.learning_rate=1e38",
            "training.early_stopping_patience=1",
            "data.eval=d.jsonl",
            "training.eval_every=1",
        ],
    ] {
        let _ = fs::remove_dir_all(folder.path().join("out"));
        let (output, said) = train(folder.path(), None, settings);
        assert_eq!(output.status.code(), Some(2), "{settings:?}: {said}");
        assert!(said.contains("error: step ") && said.contains("no checkpoint had been saved yet"), "{said}");
        assert!(!said.contains("the result is in") && !said.contains("intact"), "{said}");
        for name in ["adapter_model.safetensors", "adapter_config.json", "model.safetensors", "config.json"] {
            assert!(!folder.path().join("out").join(name).exists(), "{settings:?}: {name}: {said}");
        }
    }
}

#[test]
fn a_run_that_diverges_later_names_the_checkpoint_there_is() {
    let folder = folder();
    // The rate of the first step is 0.
    let settings = ["optimizer.learning_rate=1e30", "schedule.warmup=2", "training.save_every=1"];
    let (output, said) = train(folder.path(), None, &settings);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("error: step 2: "), "{said}");
    assert!(said.contains("the last checkpoint, out/checkpoints/step-000001, is from before that"), "{said}");
    assert!(folder.path().join("out/checkpoints/step-000001/state.json").exists());
    assert!(!folder.path().join("out/checkpoints/step-000002").exists());
    let (output, again) = train(folder.path(), None, &settings);
    assert_eq!((output.status.code(), again.contains("going on after step 1")), (Some(2), true), "{again}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_before_the_first_checkpoint_promises_none_and_later_names_it() {
    let folder = folder();
    let large = ["adapter.r=256", "training.save_every=2"];
    let steps = |n: &'static str| [&large[..], &[n]].concat();
    let (output, said) = train(folder.path(), Some(64), &steps("training.max_steps=2"));
    assert!(!output.status.success() && said.contains("error: cannot write out/checkpoints/"), "{said}");
    assert!(
        said.contains("no checkpoint had been saved yet; --resume begins anew: luthier train --resume out"),
        "{said}"
    );
    assert!(!said.contains("intact"), "{said}");
    assert!(train(folder.path(), None, &steps("training.max_steps=2")).0.status.success());
    let (output, said) = train(folder.path(), Some(64), &steps("training.max_steps=4"));
    assert!(!output.status.success(), "{said}");
    let promise = "the last checkpoint, out/checkpoints/step-000002, is intact; go on from it with --resume: luthier train \
                   --resume out";
    assert!(said.contains(promise), "{said}");
    let (output, said) = train(folder.path(), None, &steps("training.max_steps=4"));
    assert!(output.status.success() && said.contains("going on after step 2"), "{said}");
}

#[test]
fn a_byte_turned_in_a_checkpoint_is_told_and_the_one_before_is_used() {
    let folder = folder();
    let settings = ["training.save_every=2", "training.max_steps=5"];
    assert!(train(folder.path(), None, &settings).0.status.success());
    let result = fs::read(folder.path().join("out/adapter_model.safetensors")).unwrap();
    for file in ["adapter_model.safetensors", "optimizer.safetensors", "state.json"] {
        let path = folder.path().join("out/checkpoints/step-000005").join(file);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (output, said) = train(folder.path(), None, &settings);
        assert!(output.status.success(), "{said}");
        let warning = format!("warning: out/checkpoints/step-000005 is damaged ({file}: ");
        assert!(said.contains(&warning) && said.contains("going on after step 4"), "{said}");
        assert!(fs::read(folder.path().join("out/adapter_model.safetensors")).unwrap() == result, "{file}");
    }
}

#[test]
fn what_was_killed_before_its_first_checkpoint_says_that_it_begins_anew() {
    let folder = folder();
    assert!(train(folder.path(), None, &["training.max_steps=2"]).0.status.success());
    let out = folder.path().join("out");
    fs::remove_dir_all(out.join("checkpoints/step-000002")).unwrap();
    let (output, said) = train(folder.path(), None, &["training.max_steps=2"]);
    assert!(
        output.status.success() && said.contains("no step of this run was saved: it begins anew"),
        "{said}"
    );
}

#[cfg(unix)]
#[test]
fn a_run_goes_on_when_nobody_reads_what_it_tells() {
    let folder = folder();
    let mut child = luthier(folder.path())
        .args(["train", "--model", "m", "--data", "d.jsonl", "--output", "out", "--max-length", "32"])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(folder.path().join("out/adapter_config.json").exists());
}
