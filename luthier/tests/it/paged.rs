//! Moments of the optimizer in a file: the same result, and what happens when the disk is full.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::tempdir;

use crate::{luthier, tiny};

/// Trains into `out`, up to step `steps`; if `limited`, files cannot become larger than 32 KiB.
fn train(folder: &Path, out: &str, steps: u32, settings: &[&str], limited: bool) -> Output {
    let plain = luthier(folder);
    let mut command = if limited {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$0\" \"$@\""]).arg(plain.get_program());
        shell.current_dir(folder).envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
        shell
    } else {
        plain
    };
    command.args(["train", "--resume", "--model", "m", "--data", "d.jsonl", "--output", out]);
    let usual =
        ["data.max_length=32", "training.batch_size=1", "training.micro_batch_tokens=32", "adapter.r=256"];
    let steps = format!("training.max_steps={steps}");
    for setting in usual.iter().chain(["schedule.name=constant", &steps].iter()).chain(settings) {
        command.args(["--set", setting]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).output().unwrap()
}

#[track_caller]
fn done(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_under_the_moments_is_told_and_the_last_checkpoint_goes_on_to_the_same_bytes() {
    let folder = tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    tiny::model(folder.path());
    tiny::examples(&at("d.jsonl"), 60, 1);
    for (name, out) in [("adamw", "a"), ("adamw_8bit", "b")] {
        let plain = [&format!("optimizer.name={name}")[..]];
        done(&train(folder.path(), out, 2, &plain, false));
        done(&train(folder.path(), out, 4, &plain, false));
        let name = format!("optimizer.name=paged_{name}");
        let paged = [&name[..], "optimizer.memory=8KiB"];
        let run = format!("paged-{out}");

        let tell = |output: &Output| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && !said.contains("panicked"), "{said}");
            // A limit is the user's; a disk that is full is the machine's, with exit code 1.
            assert_eq!(output.status.code(), Some(2), "{said}");
            for words in [".optimizer.pages", "File too large", "the last checkpoint is intact", "--resume"] {
                assert!(said.contains(words), "{words}: {said}");
            }
        };
        // At the first step, and when a checkpoint is read.
        tell(&train(folder.path(), &run, 2, &paged, true));
        done(&train(folder.path(), &run, 2, &paged, false));
        let checkpoint = at(&run).join("checkpoints/step-000002");
        let before = files(&checkpoint);
        tell(&train(folder.path(), &run, 4, &paged, true));
        assert!(before == files(&checkpoint), "the checkpoint is as it was");
        done(&train(folder.path(), &run, 4, &paged, false));
        let result = |run: &str| fs::read(at(run).join("adapter_model.safetensors")).unwrap();
        assert!(result(out) == result(&run), "{name}");
    }
}
