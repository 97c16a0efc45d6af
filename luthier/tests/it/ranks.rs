//! `adapters extract` and `adapters resize`, and runs that begin as a part of the base.

use std::fs;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::failure;
use crate::support::{names, succeed, tiny_adapter, tiny_model, write_lines};

/// A tiny model, an adapter of rank 2 for it, the two merged, and text.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    tiny_adapter(folder.path(), 0.5);
    succeed(
        folder.path(),
        &["merge", "--model", "model", "--adapter", "adapter", "--output", "merged", "--dtype", "f32"],
    );
    let lines: Vec<Value> = (0..8).map(|n| json!({"text": format!("hello tell {n} hello")})).collect();
    write_lines(folder.path().join("d.jsonl"), &lines);
    folder
}

fn told(folder: &TempDir, arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(folder.path(), &[arguments, &["--json"]].concat()).0).unwrap()
}

fn loss(folder: &TempDir, more: &[&str]) -> f64 {
    let eval = ["eval", "perplexity", "--data", "d.jsonl", "--set", "precision=f32"];
    told(folder, &[&eval[..], more].concat())["loss"].as_f64().unwrap()
}

#[test]
fn an_adapter_comes_out_of_two_models_with_proof() {
    let folder = folder();
    let extract = ["adapters", "extract", "--base", "model", "--tuned", "merged", "--rank", "2", "--output"];
    let facts = told(&folder, &[&extract[..], &["found"]].concat());
    assert!(facts["kept"].as_f64().unwrap() > 0.999_999, "{facts}");
    let proof = |of: &str, what: &str| facts["proof"][of][what].as_f64().unwrap();
    assert!(proof("base", "largest") > 0.05 && proof("base", "mean") > 0.0);
    assert!(proof("base_and_adapter", "largest") < 1e-3, "{facts}");
    assert_eq!(facts["left_out"], json!([]));
    let [found, merged] =
        [&["--model", "model", "--adapter", "found"][..], &["--model", "merged"]].map(|m| loss(&folder, m));
    assert!((found - merged).abs() < 1e-4, "{found} {merged}");
    // As a table, and with what is left out.
    let one = ["--target-modules", "q_proj"];
    let (table, errors) = succeed(folder.path(), &[&extract[..], &["one"], &one].concat());
    assert!(
        table.starts_with("one\nlayer") && table.contains("of all differences of these layers"),
        "{table}"
    );
    assert!(errors.contains("down_proj.weight differs by"), "{errors}");
    let refused = failure(
        folder.path(),
        &["adapters", "extract", "--base", "model", "--tuned", "model", "--rank", "2", "--output", "none"],
    );
    assert!(
        refused.starts_with("exit code 2") && refused.contains("there is nothing to extract"),
        "{refused}"
    );
    assert!(!folder.path().join("none").exists());
}

#[test]
fn an_adapter_gets_another_rank() {
    let folder = folder();
    let resize = ["adapters", "resize", "--adapter", "adapter", "--output"];
    let wider = told(&folder, &[&resize[..], &["wider", "--rank", "4"]].concat());
    assert_eq!(wider["kept"].as_f64(), Some(1.0));
    let of = |adapter: &str| loss(&folder, &["--model", "model", "--adapter", adapter]);
    assert!((of("wider") - of("adapter")).abs() < 1e-5);
    let less = told(&folder, &[&resize[..], &["less", "--rank", "1"]].concat());
    assert!((0.3..0.99).contains(&less["kept"].as_f64().unwrap()), "{less}");
    assert_ne!(of("less"), of("adapter"));
    let kept = told(&folder, &[&resize[..], &["kept", "--keep", "0.99"]].concat());
    assert!(kept["updates"].as_array().unwrap().iter().all(|u| u["kept"].as_f64().unwrap() >= 0.99));
    assert_eq!(names(&folder.path().join("less")), ["adapter_config.json", "adapter_model.safetensors"]);
    for (flags, expected) in [
        (&["--keep", "0"][..], "expected a number above 0, up to 1"),
        (&["--rank", "0"], "0 is not in 1..=65536"),
        (&["--rank", "1", "--keep", "0.5"], "exclude each other"),
    ] {
        let refused = failure(folder.path(), &[&resize[..], &["no"], flags].concat());
        assert!(refused.starts_with("exit code 2") && refused.contains(expected), "{refused}");
    }
}

const TRAIN: [&str; 12] = [
    "train",
    "--model",
    "model",
    "--data",
    "d.jsonl",
    "--set",
    "adapter.r=4",
    "--set",
    "training.max_steps=6",
    "--set",
    "training.save_every=2",
    "--quiet",
];

#[test]
fn a_run_that_takes_its_beginning_out_of_the_base_writes_an_adapter_for_the_base_as_it_was() {
    let folder = folder();
    for init in ["pissa", "olora"] {
        let set = format!("adapter.init={init}");
        let more = ["--set", &set, "--set", "precision=f32", "--eval-data", "d.jsonl"];
        let run = |output: &str| [&TRAIN[..], &more, &["--output", output]].concat().join(" ");
        let words = run(init);
        succeed(folder.path(), &words.split(' ').collect::<Vec<_>>());
        let metrics = fs::read_to_string(folder.path().join(init).join("metrics.jsonl")).unwrap();
        let losses =
            metrics.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["eval_loss"].as_f64());
        let losses: Vec<f64> = losses.collect();
        let before = loss(&folder, &["--model", "model"]);
        assert!((losses[0] - before).abs() < 1e-4, "{init}: it begins at {} and not {before}", losses[0]);
        let after = loss(&folder, &["--adapter", init]);
        let last = losses.last().unwrap();
        assert!((after - last).abs() < 1e-4, "{init}: {after} and not {last}");
        assert!(after < before - 1e-3, "{init}: {before} to {after}");
        let config = fs::read_to_string(folder.path().join(init).join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(8), Some(64.0)));
        assert_eq!(config["init_lora_weights"], json!(true));
        // A checkpoint is such an adapter, too.
        let checkpoint = format!("{init}/checkpoints/step-000004");
        assert!(loss(&folder, &["--adapter", &checkpoint]) < before);
    }
}

#[test]
fn four_bits_of_what_is_left_are_for_the_run_alone_and_said_so() {
    let folder = folder();
    let set = ["--set", "adapter.init=pissa", "--quantization", "nf4", "--output", "run"];
    succeed(folder.path(), &[&TRAIN[..], &set].concat());
    let eval = ["eval", "perplexity", "--adapter", "run", "--data", "d.jsonl"];
    let (_, errors) = succeed(folder.path(), &eval);
    assert!(
        errors.contains("the adapter is for the base as it is stored; its run began by pissa"),
        "{errors}"
    );
    let set = ["--set", "adapter.init=loftq", "--quantization", "nf4", "--output", "lost"];
    succeed(folder.path(), &[&TRAIN[..], &set].concat());
    let (_, errors) =
        succeed(folder.path(), &["eval", "perplexity", "--adapter", "lost", "--data", "d.jsonl"]);
    assert!(errors.contains("quantization"), "{errors}");
}

#[test]
fn beginnings_that_do_not_fit_are_refused_with_the_reason() {
    let folder = folder();
    for (settings, expected) in [
        (&["--set", "adapter.init=loftq"][..], "set `quantization`, to nf4 or int4"),
        (&["--set", "adapter.init=pissa", "--set", "adapter.method=dora"], "is for method lora"),
        (&["--set", "adapter.init=pissa", "--set", "adapter.r=1000"], "directions at most in"),
        (&["--set", "adapter.init=orthogonal", "--set", "adapter.r=3"], "needs even ranks"),
        (&["--set", "adapter.init=olora", "--set", "adapter.init_from=adapter"], "give one of them"),
    ] {
        let refused = failure(folder.path(), &[&TRAIN[..], settings, &["--output", "no"]].concat());
        assert!(refused.starts_with("exit code 2") && refused.contains(expected), "{refused}");
        assert!(!folder.path().join("no").exists());
    }
}
