//! `luthier train --tui` on a terminal: what is seen, how it is stopped, and that the terminal is given back.

use std::path::Path;
use std::process::Command;

use rexpect::session::{PtySession, spawn_command};
use tempfile::{TempDir, tempdir};

use crate::support::names;
use crate::{failure, luthier, tiny};

/// The terminal is taken over, and given back.
const TAKEN: &str = "\x1b[?1049h";
const GIVEN_BACK: &str = "\x1b[?1049l";

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    tiny::examples(&folder.path().join("d.jsonl"), 60, 1);
    folder
}

/// Begins a run on a terminal of 40 rows and 110 columns.
fn begin(folder: &Path, arguments: &[&str]) -> PtySession {
    let plain = luthier(folder);
    let mut command = Command::new("sh");
    command
        .args(["-c", "stty rows 40 cols 110; \"$0\" \"$@\"; echo exit code $?"])
        .arg(plain.get_program())
        .current_dir(folder);
    command.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?)))).env("TERM", "xterm");
    command.args(["train", "--tui", "--model", "m", "--data", "d.jsonl", "--output", "out"]).args(arguments);
    let mut session = spawn_command(command, Some(60_000)).unwrap();
    session.exp_string(TAKEN).unwrap();
    session
}

/// What is written until the end, and the exit code.
fn end(mut session: PtySession) -> (String, Option<i32>) {
    let said = session.exp_eof().unwrap();
    let code = said.rsplit_once("exit code ").and_then(|(_, code)| code.trim().parse().ok());
    (said, code)
}

fn press(session: &mut PtySession, key: &str) {
    session.send(key).unwrap();
    session.flush().unwrap();
}

#[test]
fn a_run_is_seen_and_leaves_the_terminal_with_its_notes() {
    let folder = folder();
    let mut session = begin(folder.path(), &["--eval-data", "d.jsonl", "--set", "training.max_steps=300"]);
    // Of what is drawn anew only the cells that differ are written, so words stand alone.
    session.exp_string("example,").unwrap();
    session.exp_string("q or Ctrl-C: stop and save").unwrap();
    let (said, code) = end(session);
    let (_, after) = said.rsplit_once(GIVEN_BACK).expect("the terminal is given back");
    assert_eq!(code, Some(0), "{after}");
    assert!(after.contains("held-out loss") && after.contains("the result is in out"), "{after}");
    assert!(after.contains("Try next:"), "{after}");
}

#[test]
fn answers_to_held_out_prompts_are_seen_and_change_nothing() {
    let folder = folder();
    let settings = [
        ["--eval-data", "d.jsonl"],
        ["--set", "adapter.method=dora"],
        // Long enough that the view is drawn after an evaluation, however fast the machine is.
        ["--set", "training.epochs=1000"],
        ["--set", "training.max_steps=1500"],
        ["--set", "training.eval_every=500"],
    ]
    .concat();
    let mut session = begin(folder.path(), &settings);
    for seen in ["answers", "prompt", "example"] {
        session.exp_string(seen).unwrap();
    }
    let (said, code) = end(session);
    assert_eq!(code, Some(0), "{said}");
    let plain = ["train", "--model", "m", "--data", "d.jsonl", "--output", "plain"];
    let plain = luthier(folder.path()).args(plain).args(&settings).output().unwrap();
    assert!(plain.status.success(), "{}", String::from_utf8_lossy(&plain.stderr));
    let [watched, plain] = ["out", "plain"]
        .map(|run| std::fs::read(folder.path().join(run).join("adapter_model.safetensors")).unwrap());
    assert!(watched == plain, "to watch a run changes its result");
}

#[test]
fn a_run_without_held_out_examples_says_why_there_are_no_answers() {
    let folder = folder();
    let (said, code) = end(begin(folder.path(), &["--set", "training.max_steps=2"]));
    assert_eq!(code, Some(0), "{said}");
    let (_, after) = said.rsplit_once(GIVEN_BACK).expect("the terminal is given back");
    assert!(after.contains("note: no answers are shown, for there are no held-out examples"), "{after}");
}

#[test]
fn a_key_stops_and_saves_as_a_signal_does() {
    for key in ["q", "\x03"] {
        let folder = folder();
        let mut session = begin(folder.path(), &["--set", "training.max_steps=100000", "--epochs", "100000"]);
        session.exp_string("q or Ctrl-C: stop and save").unwrap();
        press(&mut session, key);
        let (said, code) = end(session);
        assert_eq!(code, Some(75), "{said}");
        let (_, after) = said.rsplit_once(GIVEN_BACK).expect("the terminal is given back");
        assert!(after.contains("stopped on request, all is in out/checkpoints/step-"), "{after}");
        let checkpoints = names(&folder.path().join("out/checkpoints"));
        assert!(checkpoints.iter().any(|name| name.starts_with("step-")), "{checkpoints:?}");
    }
}

#[test]
fn a_second_key_ends_at_once_and_the_terminal_is_given_back() {
    let folder = folder();
    // A step that takes long: all examples, again and again.
    tiny::examples(&folder.path().join("d.jsonl"), 40_000, 1);
    tiny::examples(&folder.path().join("h.jsonl"), 10, 2);
    let long = ["--batch-size", "40000", "--set", "data.packing=false", "--set", "training.max_steps=50"];
    let mut session =
        begin(folder.path(), &[&long[..], &["--epochs", "50", "--eval-data", "h.jsonl"]].concat());
    session.exp_string("q or Ctrl-C: stop and save").unwrap();
    // The evaluation before the first step is noted.
    session.exp_string("held-out").unwrap();
    press(&mut session, "q");
    session.exp_string("again").unwrap();
    press(&mut session, "q");
    let (said, code) = end(session);
    assert_eq!(code, Some(130), "{said}");
    let (_, after) = said.rsplit_once(GIVEN_BACK).expect("the terminal is given back");
    assert!(after.contains("step 0: held-out loss"), "the notes are left: {after}");
}

#[test]
fn an_error_gives_the_terminal_back_before_it_is_told() {
    let folder = folder();
    let session = begin(folder.path(), &["--set", "optimizer.learning_rate=1e30"]);
    let (said, code) = end(session);
    let (_, after) = said.rsplit_once(GIVEN_BACK).expect("the terminal is given back");
    assert_eq!((code, after.contains("error: step ")), (Some(2), true), "{after}");
}

#[test]
fn there_is_nothing_to_watch_without_a_terminal() {
    let folder = folder();
    let told =
        failure(folder.path(), &["train", "--tui", "--model", "m", "--data", "d.jsonl", "--output", "out"]);
    assert!(
        told.starts_with("exit code 2\n") && told.contains("--tui draws on stderr, which is no terminal"),
        "{told}"
    );
    assert!(!folder.path().join("out").exists());
    let quiet = failure(folder.path(), &["train", "--tui", "--quiet", "--model", "m"]);
    assert!(quiet.contains("exclude each other"), "{quiet}");
}
