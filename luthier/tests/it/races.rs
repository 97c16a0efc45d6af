//! Two processes that write to one place at the same time, and processes that are killed: what is there in
//! the end is whole and one's alone. `LUTHIER_RACES` is the number of pairs and of kills, for each kind; a
//! few without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::{TempDir, tempdir};

use crate::luthier;
use crate::support::{names, tiny_adapter, tiny_model, write_lines};
use crate::tiny::Random;

fn races() -> usize {
    std::env::var("LUTHIER_RACES").map_or(4, |n| n.parse().expect("a number"))
}

/// A folder with a model, an adapter and data.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    tiny_adapter(folder.path(), 0.5);
    let records: Vec<_> = (0..24).map(|i| json!({"text": format!("hello {i}, so it is")})).collect();
    write_lines(folder.path().join("data.jsonl"), &records);
    folder
}

/// A way to write something to a place, in two variants whose results differ.
struct Writer {
    arguments: fn(usize, &str) -> Vec<String>,
    /// Words of which one is in what the loser of two is told.
    told: &'static [&'static str],
    /// What stands in a folder that is whole.
    files: &'static [&'static str],
    /// Files in which a clock is read.
    clocks: &'static [&'static str],
}

fn arguments(text: &str, more: [&str; 2]) -> Vec<String> {
    text.split_whitespace().chain(more).map(str::to_owned).collect()
}

const TAKEN: &[&str] =
    &["is being written by another process", "was written by another process meanwhile", "is not empty"];
const MODEL: &[&str] = &["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

const MERGE: Writer = Writer {
    arguments: |variant, output| {
        let dtype = ["f32", "bf16"][variant];
        arguments(&format!("merge --model model --adapter adapter --dtype {dtype}"), ["--output", output])
    },
    told: TAKEN,
    files: MODEL,
    clocks: &[],
};

const QUANTIZE: Writer = Writer {
    arguments: |variant, output| {
        let code = ["nf4", "fp4"][variant];
        arguments(&format!("quantize --model model --type {code}"), ["--output", output])
    },
    told: TAKEN,
    files: MODEL,
    clocks: &[],
};

const TRAIN: Writer = Writer {
    arguments: |variant, output| {
        let rate = ["1e-3", "2e-3"][variant];
        let settings = format!(
            "--set precision=f32 --set training.batch_size=2 --set data.max_length=64 --set training.max_steps=6 \
             --set training.save_every=2 --set schedule.warmup=0 --set optimizer.learning_rate={rate}"
        );
        arguments(&format!("train --model model --data data.jsonl {settings}"), ["--output", output])
    },
    told: &[
        "is being trained by another process",
        "was taken by another run",
        "holds a run already",
        "cannot go on with other settings", // the other began it, and is done
    ],
    files: &[
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoints",
        "metrics.jsonl",
        "run.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
    // The card is named after the folder.
    clocks: &["metrics.jsonl", "begun", "README.md"],
};

impl Writer {
    fn start(&self, folder: &Path, variant: usize, output: &str, more: &[&str]) -> Command {
        let mut command = luthier(folder);
        command.args((self.arguments)(variant, output)).args(more).args(["--threads", "1"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    fn succeed(&self, folder: &Path, variant: usize, output: &str, more: &[&str]) {
        let done = self.start(folder, variant, output, more).output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
    }

    /// Every file below a folder, but for what clocks say and where the run was told to write; nothing in it
    /// is hidden.
    fn tree(&self, folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
        while let Some(next) = open.pop() {
            for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                assert!(!name.starts_with('.'), "debris: {}", path.display());
                if path.is_dir() {
                    open.push(path);
                } else if !self.clocks.contains(&name.as_str()) {
                    let text = fs::read(&path).unwrap();
                    let own = format!("output: {}\n", folder.display());
                    let text = match name.as_str() {
                        "run.yaml" => String::from_utf8(text).unwrap().replace(&own, "").into_bytes(),
                        _ => text,
                    };
                    found.push((path.strip_prefix(folder).unwrap().to_owned(), text));
                }
            }
        }
        found.sort();
        found
    }

    /// Of two that write different things to one place exactly one succeeds, and what is there is what that
    /// one says.
    fn race(&self, more: &[&str]) {
        let folder = folder();
        let path = folder.path();
        let lone = [0, 1].map(|variant| {
            self.succeed(path, variant, "lone", more);
            assert_eq!(names(&path.join("lone")), self.files);
            let tree = self.tree(&path.join("lone"));
            fs::remove_dir_all(path.join("lone")).unwrap();
            tree
        });
        assert!(lone[0] != lone[1], "one can tell who has won");
        let before = names(path);
        let mut random = Random(1);
        for round in 0..races() {
            let both = [0, 1].map(|variant| {
                let child = self.start(path, variant, "out", more).spawn().unwrap();
                sleep(Duration::from_micros(random.below(4) * random.below(2000)));
                child
            });
            let [first, second] = both.map(|child| child.wait_with_output().unwrap());
            let told = format!("round {round}: {}\n{}", said(&first), said(&second));
            let (winner, loser) = if first.status.success() { (0, &second) } else { (1, &first) };
            assert!(first.status.success() != second.status.success(), "one of two: {told}");
            assert_eq!(loser.status.code(), Some(2), "{told}");
            assert!(self.told.iter().any(|words| said(loser).contains(words)), "{told}");
            assert!(self.tree(&path.join("out")) == lone[winner], "other bytes: {told}");
            fs::remove_dir_all(path.join("out")).unwrap();
            assert_eq!(names(path), before, "{told}");
        }
    }

    /// What is killed at any moment has published nothing or all, and the next start in that folder, into
    /// `next`, sweeps what it left and succeeds.
    fn killed(&self, next: &str, more: &[&str]) {
        let folder = folder();
        let path = folder.path();
        let begun = Instant::now();
        self.succeed(path, 0, "lone", more);
        let (whole, lone) = (begun.elapsed(), self.tree(&path.join("lone")));
        let before = names(path);
        let mut random = Random(2);
        for _ in 0..races() {
            let mut child = self.start(path, 0, "out", more).spawn().unwrap();
            sleep(whole.mul_f64(random.below(1000) as f64 / 1000.0));
            child.kill().unwrap();
            child.wait().unwrap();
            let (out, next_out) = (path.join("out"), path.join(next));
            if next_out != out && out.exists() {
                assert!(self.tree(&out) == lone, "it is whole if it is there");
                fs::remove_dir_all(&out).unwrap();
            }
            self.succeed(path, 0, next, more);
            let tree = self.tree(&next_out);
            let only = |of: &[(PathBuf, Vec<u8>)], other: &[(PathBuf, Vec<u8>)]| {
                of.iter()
                    .filter(|file| !other.contains(file))
                    .map(|(name, _)| name.clone())
                    .collect::<Vec<_>>()
            };
            assert!(tree == lone, "only here {:?}, only alone {:?}", only(&tree, &lone), only(&lone, &tree));
            fs::remove_dir_all(&next_out).unwrap();
            assert_eq!(names(path), before, "nothing is left beside it");
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn of_two_merges_into_one_folder_one_succeeds() {
    MERGE.race(&[]);
}

#[test]
fn of_two_quantizations_into_one_folder_one_succeeds() {
    QUANTIZE.race(&[]);
}

#[test]
fn of_two_runs_into_one_folder_one_trains() {
    TRAIN.race(&[]);
}

#[test]
fn of_two_runs_that_would_go_on_in_one_folder_one_trains() {
    TRAIN.race(&["--resume"]);
}

#[test]
fn a_merge_that_is_killed_leaves_nothing_that_lasts() {
    MERGE.killed("next", &[]);
}

#[test]
fn a_quantization_that_is_killed_leaves_nothing_that_lasts() {
    QUANTIZE.killed("next", &[]);
}

#[test]
fn a_run_that_is_killed_leaves_nothing_that_lasts() {
    TRAIN.killed("out", &["--resume"]);
}
