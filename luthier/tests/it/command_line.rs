//! Arguments: what is understood, what is refused, and with which exit code.

use std::io::Read;
use std::process::Stdio;

use tempfile::tempdir;

use crate::support::{names, succeed};
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
        ("sweep", "--learning-rates --count --model --data --eval-data --output --set --json"),
        ("eval perplexity", "--model --adapter --data --set --json"),
        ("eval judge", "--ratings --reference --beside --partial --export --json"),
        (
            "generate",
            "--model --adapter --prompt --messages --data --output --max-tokens --temperature --top-p --top-k --seed --json",
        ),
        ("chat", "--model --adapter"),
        (
            "serve",
            "--model --adapter --adapter-root --host --port --keys --quantization --precision --context --cached-tokens --running --connections --max-rank --exact-logprobs",
        ),
        (
            "keys add",
            "--state --tenant --adapters --weight --requests-per-minute --tokens-per-minute --admin --json",
        ),
        ("keys list", "--state --json"),
        ("keys revoke", "--state"),
        ("keys import", "--state"),
        ("keys audit", "--state --last --json"),
        ("pool serve", "--policy --state --host --port --cpus --memory --devices --any-command"),
        ("pool apply", "--pool --token --json"),
        ("pool status", "--pool --token --json"),
        ("pool simulate", "--trace --policy --nodes --devices-per-node --compare --json"),
        ("pool export", "--to --policy --output --json"),
        ("jobs submit", "--project --cpus --devices --class --priority --sweep --wait --pool --token --json"),
        ("jobs list", "--project --user --all --json"),
        ("jobs show", "--pool --json"),
        ("jobs why", "--pool --json"),
        ("jobs logs", "--follow --json"),
        ("jobs cancel", "--pool --json"),
        ("jobs hold", "--pool --json"),
        ("jobs release", "--pool --json"),
        ("download", "--dataset"),
        ("merge", "--model --adapter --output"),
        ("quantize", "--model --output --type --no-double-quant --block-size --json"),
        ("inspect", "--json"),
        ("plan", "--model --shape --memory --set --json"),
        ("bench train", "--model --shape --set --steps --json"),
        ("bench generate", "--model --shape --set --steps --json"),
        ("data preview", "--model --data --count --set --json"),
        ("data check", "--model --data --eval-data --set --strict --json"),
        ("data convert", "--data --output --to --set"),
        ("init", "--model --data --output"),
        ("import", "--output --from"),
        ("man", "--output"),
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

#[test]
fn what_is_mistyped_is_told_in_a_line_with_what_was_meant() {
    let folder = tempdir().unwrap();
    for (arguments, told) in [
        (
            &["train", "--epoch", "3"][..],
            "`luthier train` has no flag `--epoch`; did you mean `--epochs`? see `luthier train --help`",
        ),
        (&["train", "--fly"], "`luthier train` has no flag `--fly`; see `luthier train --help`"),
        (&["train", "-x"], "`luthier train` has no flag `-x`; see `luthier train --help`"),
        (&["trian"], "`luthier` has no command `trian`; did you mean `train`? see `luthier --help`"),
        (
            &["eval", "perplexty"],
            "`luthier eval` has no command `perplexty`; did you mean `perplexity`? see `luthier eval --help`",
        ),
        (
            &["merge", "--model", "m"],
            "`luthier merge` needs `--adapter <DIR>` and `--output <DIR>`; see `luthier merge --help`",
        ),
        (
            &["bench", "train"],
            "`luthier bench train` needs `--model <M>` or `--shape <NAME>`; see `luthier bench train --help`",
        ),
        (&["inspect"], "`luthier inspect` needs `PATH`; see `luthier inspect --help`"),
        (&["inspect", "a", "b"], "`luthier inspect` does not expect `b`; see `luthier inspect --help`"),
        (
            &["train", "training.max_steps=5"],
            "`[RUN.yaml]` cannot be `training.max_steps=5`: expected a run file; a setting follows its flag, as in --set \
             training.max_steps=5; see `luthier train --help`",
        ),
        (&["train", "--output"], "`--output <DIR>` needs a value; see `luthier train --help`"),
        (
            &["completions", "fsh"],
            "`SHELL` cannot be `fsh`: expected `bash`, `elvish`, `fish`, `powershell` or `zsh`; did you mean `fish`? see `luthier \
             completions --help`",
        ),
        (
            &["generate", "--model", "m", "--prompt", "p", "--temperature", "warm"],
            "`--temperature <T>` cannot be `warm`: expected a number of 0 or more; see `luthier generate --help`",
        ),
        (
            &["plan", "--model", "m", "--shape", "tiny"],
            "`--model <M>` and `--shape <NAME>` exclude each other; see `luthier plan --help`",
        ),
        (
            &["chat", "--model", "a", "--model", "b"],
            "`--model <M>` may be given once only; see `luthier chat --help`",
        ),
        (
            &["--device", "tpu", "inspect", "m"],
            "`--device <DEVICE>` cannot be `tpu`: expected auto, cpu, cuda or cuda:N; see `luthier inspect --help`",
        ),
    ] {
        assert_eq!(
            failure(folder.path(), arguments),
            format!("exit code 2\nerror: {told}\n"),
            "{arguments:?}"
        );
    }
}

#[test]
fn help_and_version_are_results() {
    let folder = tempdir().unwrap();
    for arguments in [&["--help"][..], &["train", "-h"], &["help", "eval", "perplexity"], &["--version"]] {
        let (told, said) = succeed(folder.path(), arguments);
        assert!(told.contains("luthier") && said.is_empty(), "{arguments:?}: {told}{said}");
    }
}

#[test]
fn shells_are_told_the_commands_and_their_flags() {
    let folder = tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (script, _) = succeed(folder.path(), &["completions", shell]);
        assert!(script.contains("perplexity") && script.contains("chat-template"), "{shell}");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempdir().unwrap();
    let (page, _) = succeed(folder.path(), &["man"]);
    assert!(page.contains(".TH luthier 1") && page.contains("luthier\\-train(1)"), "{page}");
    succeed(folder.path(), &["man", "--output", "man/man1"]);
    let pages = names(&folder.path().join("man/man1"));
    for page in [
        "luthier.1",
        "luthier-train.1",
        "luthier-eval-perplexity.1",
        "luthier-bench-train.1",
        "luthier-import.1",
    ] {
        assert!(pages.iter().any(|name| name == page), "{page}: {pages:?}");
    }
    let told = failure(folder.path(), &["man", "--output", "man/man1/luthier.1"]);
    assert!(told.starts_with("exit code 2\nerror: cannot write manual pages"), "{told}");
}

#[test]
fn the_schema_of_the_run_file_is_one_json_object() {
    let folder = tempdir().unwrap();
    let (told, said) = succeed(folder.path(), &["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(schema["properties"]["adapter"]["properties"]["r"]["default"], 16);
    assert_eq!((schema["additionalProperties"].as_bool(), said.as_str()), (Some(false), ""));
}
