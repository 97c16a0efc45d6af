//! Arguments: what is understood, what is refused, and with which exit code.

use std::io::Read;
use std::process::Stdio;

use tempfile::tempdir;

use crate::{failure, luthier, run};

fn help(arguments: &[&str]) -> String {
    let output = run(&std::env::temp_dir(), &[arguments, &["--help"]].concat());
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_help_lists_every_command() {
    insta::assert_snapshot!(help(&[]));
}

#[test]
fn every_command_has_the_flags_that_scripts_rely_on() {
    for (command, flags) in [
        ("train", "--model --data --eval-data --output --set --resume --dry-run"),
        ("eval perplexity", "--model --adapter --data --set --json"),
        (
            "generate",
            "--model --adapter --prompt --messages --data --output --max-tokens --temperature --top-p --top-k --seed --json",
        ),
        ("chat", "--model --adapter"),
        ("download", "--dataset"),
        ("merge", "--model --adapter --output"),
        ("quantize", "--model --output --type --no-double-quant --block-size --json"),
        ("inspect", "--json"),
        ("plan", "--model --shape --memory --set --json"),
        ("bench train", "--model --shape --set --steps --json"),
        ("bench generate", "--model --shape --set --steps --json"),
        ("data preview", "--model --data --count --set --json"),
    ] {
        let help = help(&command.split(' ').collect::<Vec<_>>());
        for flag in flags.split(' ').chain(["--device", "--threads"]) {
            assert!(help.contains(flag), "{command} takes {flag}");
        }
    }
}

#[test]
fn arguments_that_are_not_understood_exit_with_2() {
    let folder = tempdir().unwrap();
    for arguments in [
        &["fly"][..],
        &["train", "--fly"],
        &["train", "--threads", "0"],
        &["train", "--device", "tpu"],
        &["eval", "perplexity", "--data", "d"],
        &["generate", "--model", "m"],
        &["generate", "--model", "m", "--prompt", "p", "--messages", "f"],
        &["generate", "--model", "m", "--prompt", "p", "--temperature", "-1"],
        &["plan", "--memory", "12G"],
        &["plan", "--model", "m", "--shape", "llama-3.1-8b"],
        &["bench", "train"],
        &[],
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn negative_numbers_are_told_what_is_expected() {
    let folder = tempdir().unwrap();
    let generate = ["generate", "--model", "m", "--prompt", "p"];
    for (command, flag, value, words) in [
        (&generate[..], "--temperature", "-0.5", "expected a number of 0 or more"),
        (&generate, "--top-p", "-1", "expected a number above 0, up to 1"),
        (&generate, "--top-k", "-1", "invalid digit"),
        (&generate, "--seed", "-1", "invalid digit"),
        (&generate, "--max-tokens", "-1", "invalid digit"),
        (&["plan", "--shape", "tiny"], "--memory", "-1", "expected"),
        (&["plan", "--shape", "tiny"], "--memory", "-12GB", "expected"),
        (&["inspect", "m"], "--threads", "-1", "-1 is not in 1..=65535"),
    ] {
        let told = failure(folder.path(), &[command, &[flag, value]].concat());
        assert!(told.starts_with("exit code 2\n"), "{told}");
        assert!(
            told.contains(value) && told.contains(flag) && told.contains(words),
            "{flag} {value}: {told}"
        );
    }
}

#[test]
fn a_gpu_is_refused_as_long_as_there_is_no_support() {
    let folder = tempdir().unwrap();
    insta::assert_snapshot!(failure(folder.path(), &["inspect", "m", "--device", "cuda:1"]), @r"
    exit code 2
    error: --device cuda: this build has no GPU support yet; use --device cpu
    ");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = tempdir().unwrap();
    let mut child =
        luthier(folder.path()).arg("--help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}
