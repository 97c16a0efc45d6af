//! Runs that are stopped, killed and gone on with end in the bytes of one that was left alone.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::luthier;
use crate::tiny::{self, Random};

/// A folder with a model `m`, examples `d.jsonl` and held-out ones `e.jsonl`.
fn sound() -> TempDir {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    tiny::examples(&folder.path().join("d.jsonl"), 60, 1);
    tiny::examples(&folder.path().join("e.jsonl"), 8, 2);
    folder
}

/// `train` into `out` with these settings: two epochs of packed and shuffled rows, a checkpoint every third
/// step.
fn train(folder: &Path, out: &str, settings: &[&str]) -> Command {
    let mut command = luthier(folder);
    command.args(["train", "--model", "m", "--data", "d.jsonl", "--output", out]);
    let usual = ["training.epochs=2", "training.batch_size=1", "data.max_length=32", "training.save_every=3"];
    for setting in
        usual.iter().chain(["training.micro_batch_tokens=32", "adapter.r=4"].iter()).chain(settings)
    {
        command.args(["--set", setting]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

#[track_caller]
fn finish(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[track_caller]
fn refused(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(words.iter().all(|word| said.contains(word)) && !said.contains("panicked"), "{words:?}: {said}");
}

/// The result's tensors, and the metrics without what a clock says.
fn result(run: &Path) -> (Vec<u8>, Vec<Value>) {
    let adapter = run.join("adapter_model.safetensors");
    let file = if adapter.exists() { adapter } else { run.join("model.safetensors") };
    let mut lines: Vec<Value> = fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for line in lines.iter_mut().map(|line| line.as_object_mut().unwrap()) {
        line.remove("tokens_per_second");
        line.remove("memory_bytes");
    }
    (fs::read(file).unwrap(), lines)
}

/// Names of hidden files anywhere below a folder: what an interrupted write leaves.
fn debris(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            found.push(name);
        } else if entry.path().is_dir() {
            found.extend(debris(&entry.path()));
        }
    }
    found
}

fn lines(run: &Path) -> usize {
    fs::read(run.join("metrics.jsonl")).map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count())
}

/// Waits until something holds; a child that ends before is a failure.
fn until(child: &mut Child, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            child.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(60),
            "it never was"
        );
        sleep(Duration::from_millis(1));
    }
}

/// Kills a run at a dozen random moments, with another number of threads each time, and lets it end.
fn killed_again_and_again(settings: &[&str], seed: u64) {
    let folder = sound();
    let begun = Instant::now();
    finish(&mut train(folder.path(), "whole", settings));
    let (whole, out) = (begun.elapsed(), folder.path().join("out"));
    let mut random = Random(seed);
    for _ in 0..12 {
        let threads = (1 + random.below(3)).to_string();
        let mut command = train(folder.path(), "out", settings);
        let mut child =
            command.args(["--resume", "--threads", &threads]).stderr(Stdio::null()).spawn().unwrap();
        sleep(whole.mul_f64(random.below(900) as f64 / 1000.0));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    finish(train(folder.path(), "out", settings).arg("--resume"));
    let (expected, got) = (result(&folder.path().join("whole")), result(&out));
    assert_eq!(expected.1, got.1, "each step stands once");
    assert!(expected.0 == got.0, "other bytes");
    assert_eq!(debris(&out), [""; 0]);
}

#[test]
fn a_run_killed_at_random_moments_ends_in_the_same_bytes() {
    let dropout = ["adapter.dropout=0.1", "data.eval=e.jsonl", "training.eval_every=4"];
    killed_again_and_again(&dropout, 1);
}

#[test]
fn so_does_one_that_trains_all_weights() {
    killed_again_and_again(&["adapter.method=full", "precision=f32"], 2);
}

#[test]
fn so_does_one_that_stops_early() {
    let settings = [
        "data.eval=e.jsonl",
        "training.eval_every=3",
        "training.early_stopping_patience=4",
        "optimizer.learning_rate=0.02",
        "data.packing=false",
        "training.batch_size=4",
    ];
    killed_again_and_again(&settings, 3);
}

#[test]
fn so_does_one_whose_examples_are_grouped_by_length() {
    let settings = ["data.packing=false", "data.group_by_length=true", "training.batch_size=4"];
    killed_again_and_again(&settings, 4);
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_request_to_stop_ends_the_step_saves_and_exits_with_75() {
    for name in ["-INT", "-TERM", "-HUP"] {
        let folder = sound();
        let settings = ["training.epochs=3000", "training.save_every=null"];
        let mut command = train(folder.path(), "out", &settings);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let out = folder.path().join("out");
        until(&mut child, || lines(&out) > 2);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{name}: {said}");
        assert!(said.contains("go on with --resume: luthier train --resume out\n"), "{said}");
        let step = format!("step-{:06}", lines(&out));
        assert!(out.join("checkpoints").join(&step).join("state.json").exists(), "{step}: {said}");
        assert!(!out.join("adapter_model.safetensors").exists(), "there is no result yet");
    }
}

#[cfg(unix)]
#[test]
fn a_second_request_ends_at_once() {
    let folder = sound();
    let run = "model: m\noutput: out\ndata: {train: [{path: d.jsonl, weight: 30000}], packing: false}\n\
               training: {batch_size: 100000000, micro_batch_tokens: 64}\n";
    fs::write(folder.path().join("RUN.yaml"), run).unwrap();
    let mut command = luthier(folder.path());
    let mut child = command.args(["train", "RUN.yaml"]).stderr(Stdio::null()).spawn().unwrap();
    let metrics = folder.path().join("out/metrics.jsonl");
    until(&mut child, || metrics.exists());
    sleep(Duration::from_millis(500)); // until the first step has begun
    signal(&child, "-TERM");
    sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "the step takes longer than this");
    signal(&child, "-TERM");
    let begun = Instant::now();
    let code = child.wait().unwrap().code();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(code, Some(143));
}

/// Every file below a folder with its bytes and the time of its last change.
fn stamps(folder: &Path) -> Vec<(std::path::PathBuf, std::time::SystemTime, Vec<u8>)> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(stamps(&path));
        } else {
            let changed = fs::metadata(&path).unwrap().modified().unwrap();
            found.push((path.clone(), changed, fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let folder = sound();
    finish(train(folder.path(), "out", &[]).arg("--resume"));
    let before = stamps(&folder.path().join("out"));
    let output = finish(train(folder.path(), "out", &[]).arg("--resume"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("finished already"));
    assert!(before == stamps(&folder.path().join("out")));
}

#[test]
fn a_run_may_be_made_longer_but_not_shorter_or_another() {
    let folder = sound();
    let steps = |n: u32| format!("training.max_steps={n}");
    let constant = "schedule.name=constant";
    finish(&mut train(folder.path(), "out", &[constant, &steps(6)]));
    let shorter = ["training.max_steps: 6 when the run began, 4 now"];
    refused(train(folder.path(), "out", &[constant, &steps(4)]).arg("--resume"), &shorter);
    let another = [constant, &steps(6), "adapter.r=8"];
    refused(
        train(folder.path(), "out", &another).arg("--resume"),
        &["adapter.r: 4 when the run began, 8 now"],
    );
    // A refusal to go on leaves the saved settings as they are.
    let data = folder.path().join("d.jsonl");
    let examples = fs::read_to_string(&data).unwrap();
    fs::write(&data, format!("{examples}{{\"input_ids\":[3,4],\"labels\":[3,4]}}\n")).unwrap();
    let before = stamps(&folder.path().join("out"));
    refused(
        train(folder.path(), "out", &[constant, &steps(9)]).arg("--resume"),
        &["on other data; put the data back"],
    );
    assert!(before == stamps(&folder.path().join("out")));
    fs::write(&data, examples).unwrap();
    finish(train(folder.path(), "out", &[constant, &steps(9)]).arg("--resume"));
    finish(&mut train(folder.path(), "whole", &[constant, &steps(9)]));
    // The warm-up is a fraction of the steps, so only the number of lines is the same.
    assert_eq!(lines(&folder.path().join("out")), lines(&folder.path().join("whole")));
}

#[test]
fn without_a_checkpoint_a_run_starts_anew() {
    let folder = sound();
    finish(train(folder.path(), "whole", &[]).arg("--resume"));
    // As a run that was killed before its first checkpoint, at each of the moments at which it can be.
    for left in [
        &[][..],
        &[".run.yaml.AbCdEf.tmp"],
        &["checkpoints/lock"],
        &["run.yaml"],
        &["run.yaml", "checkpoints"],
        &["run.yaml", "metrics.jsonl"],
    ] {
        let out = folder.path().join("out");
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        for name in left {
            match *name {
                "checkpoints" => fs::create_dir(out.join(name)).unwrap(),
                "checkpoints/lock" => {
                    fs::create_dir(out.join("checkpoints")).unwrap();
                    drop(fs::File::create(out.join(name)).unwrap());
                }
                "run.yaml" => drop(fs::copy(folder.path().join("whole/run.yaml"), out.join(name)).unwrap()),
                _ => fs::write(out.join(name), "{\"step\": 1, \"lo").unwrap(),
            }
        }
        finish(train(folder.path(), "out", &[]).arg("--resume"));
        assert!(result(&folder.path().join("whole")) == result(&out), "{left:?}");
        assert_eq!(debris(&out), [""; 0]);
    }
}

/// An adapter that a run began from may be gone once a step is saved, and not before.
#[test]
fn what_a_run_began_from_may_be_gone() {
    let folder = sound();
    finish(&mut train(folder.path(), "first", &["training.max_steps=2"]));
    let settings = ["adapter.init_from=first", "training.epochs=20"];
    finish(&mut train(folder.path(), "whole", &settings));
    let out = folder.path().join("out");
    let mut child = train(folder.path(), "out", &settings).stderr(Stdio::null()).spawn().unwrap();
    until(&mut child, || lines(&out) >= 7);
    child.kill().unwrap();
    child.wait().unwrap();
    fs::rename(folder.path().join("first"), folder.path().join("gone")).unwrap();
    let resume = |out: &str| {
        let mut command = luthier(folder.path());
        command.args(["train", "--resume", out]);
        command
    };
    // With what was typed there is nothing to compare it with; a setting that differs is told as such.
    refused(train(folder.path(), "out", &settings).arg("--resume"), &["first", "train --resume out"]);
    refused(resume("out").args(["--lr", "1"]), &["optimizer.learning_rate"]);
    refused(&mut train(folder.path(), "out", &settings), &["holds a run already"]);
    finish(&mut resume("out"));
    assert!(result(&folder.path().join("whole")) == result(&out));
    fs::create_dir(folder.path().join("anew")).unwrap();
    fs::copy(out.join("run.yaml"), folder.path().join("anew/run.yaml")).unwrap();
    refused(&mut resume("anew"), &["no step of this run was saved", "first"]);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_gone_on_from() {
    let folder = sound();
    finish(&mut train(folder.path(), "whole", &[]));
    let checkpoints =
        fs::read_dir(folder.path().join("whole/checkpoints")).unwrap().map(|e| e.unwrap().file_name());
    let newest = checkpoints.filter(|n| n.to_string_lossy().starts_with("step-")).max().unwrap();
    let out = folder.path().join("out");
    for (file, bytes) in [
        ("state.json", Some(&b"{"[..])),
        (
            "state.json",
            Some(b"{\"version\": 1, \"step\": 1, \"evaluated\": true, \"best\": null, \"data\": 1}"),
        ),
        ("state.json", None),
        ("optimizer.safetensors", Some(b"\x08\0\0\0\0\0\0\0{}")),
        ("optimizer.safetensors", None),
        ("adapter_model.safetensors", Some(b"")),
    ] {
        let _ = fs::remove_dir_all(&out);
        copy(&folder.path().join("whole"), &out);
        let damaged = out.join("checkpoints").join(&newest);
        match bytes {
            Some(bytes) => fs::write(damaged.join(file), bytes).unwrap(),
            None => fs::remove_file(damaged.join(file)).unwrap(),
        }
        let output = finish(train(folder.path(), "out", &[]).arg("--resume"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let warning = format!("warning: out/checkpoints/{} is damaged (", newest.to_string_lossy());
        assert!(said.contains(&warning) && said.contains(file) && said.contains("going on after"), "{said}");
        assert!(result(&folder.path().join("whole")) == result(&out), "{file}");
    }
    // Where none is whole, nothing begins anew by itself.
    for entry in fs::read_dir(out.join("checkpoints")).unwrap().map(Result::unwrap) {
        let _ = fs::remove_file(entry.path().join("optimizer.safetensors"));
    }
    let before = stamps(&out);
    let words =
        ["no checkpoint is whole", &newest.to_string_lossy(), "remove them all and --resume begins anew"];
    refused(train(folder.path(), "out", &[]).arg("--resume"), &words);
    assert!(before == stamps(&out), "nothing was written");
    for entry in fs::read_dir(out.join("checkpoints")).unwrap().map(Result::unwrap) {
        let _ = fs::remove_dir_all(entry.path());
    }
    finish(train(folder.path(), "out", &[]).arg("--resume"));
    assert!(result(&folder.path().join("whole")) == result(&out));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn two_processes_do_not_train_into_one_folder() {
    let folder = sound();
    let long = ["training.epochs=100000"];
    let mut first = train(folder.path(), "out", &long).stderr(Stdio::null()).spawn().unwrap();
    let out = folder.path().join("out");
    until(&mut first, || lines(&out) > 0);
    refused(train(folder.path(), "out", &long).arg("--resume"), &["out is being trained by another process"]);
    assert!(first.try_wait().unwrap().is_none(), "the first goes on");
    first.kill().unwrap();
    first.wait().unwrap();
}

#[cfg(unix)]
#[test]
fn a_run_whose_folder_is_taken_away_stops_and_touches_no_other() {
    for replaced in [false, true] {
        let folder = sound();
        let long = ["training.epochs=100000"];
        let mut child = train(folder.path(), "out", &long).stderr(Stdio::piped()).spawn().unwrap();
        let (out, away) = (folder.path().join("out"), folder.path().join("away"));
        until(&mut child, || lines(&out) > 0);
        fs::rename(&out, &away).unwrap();
        if replaced {
            fs::create_dir_all(out.join("checkpoints")).unwrap();
        }
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > Duration::from_secs(30) {
                child.kill().unwrap();
            }
            sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let words = "was removed or replaced while this run was writing there";
        assert!(said.contains(words) || said.contains("cannot write out/"), "{said}");
        assert_eq!(out.exists(), replaced, "{said}");
        assert!(!replaced || fs::read_dir(out.join("checkpoints")).unwrap().next().is_none(), "{said}");
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let folder = sound();
    for precision in ["precision=bf16", "precision=f32"] {
        let runs = ["1", "2", "3"].map(|threads| {
            let out = format!("{precision}-{threads}");
            finish(
                train(folder.path(), &out, &[precision, "adapter.dropout=0.1"]).args(["--threads", threads]),
            );
            result(&folder.path().join(out))
        });
        assert!(runs[0] == runs[1] && runs[0] == runs[2], "{precision}");
    }
}

#[test]
fn every_instruction_set_learns_the_same() {
    let folder = sound();
    let losses = |isa: &str, precision: &str| {
        let out = format!("{isa}-{precision}");
        let settings =
            [&format!("precision={precision}")[..], "training.batch_size=4", "optimizer.learning_rate=1e-3"];
        finish(train(folder.path(), &out, &settings).env("LUTHIER_ISA", isa));
        let (_, lines) = result(&folder.path().join(out));
        lines.iter().map(|line| line["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    // Those that this processor lacks are replaced by its best one.
    for (precision, tolerance) in [("f32", 1e-5), ("bf16", 1e-3)] {
        let expected = losses("portable", precision);
        for isa in ["avx2", "avx512", "avx512bf16"] {
            for (step, (a, b)) in expected.iter().zip(losses(isa, precision)).enumerate() {
                assert!((a - b).abs() <= tolerance * a, "{isa}, {precision}, step {}: {a} and {b}", step + 1);
            }
        }
    }
}
