//! The optimizer's state, layers' inputs and what frozen layers give in a file: when that is chosen, that the
//! result is the same, and what happens when the disk is full.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::tempdir;

use crate::{luthier, run, tiny};

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
fn a_full_disk_under_what_is_paged_is_told_and_the_last_checkpoint_goes_on_to_the_same_bytes() {
    let folder = tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    tiny::model(folder.path());
    tiny::examples(&at("d.jsonl"), 60, 1);
    let inputs =
        ["training.epochs=9", "training.batch_size=64", "training.micro_batch_tokens=1024", "precision=f32"];
    let inputs = [&inputs[..], &["adapter.r=4", "training.checkpointing=block"]].concat();
    let upper = [&inputs[..], &[r"adapter.target_modules=.*layers\.1\..*_proj"]].concat();
    for (out, plain, paged, file) in [
        (
            "a",
            &["optimizer.name=adamw"][..],
            &["optimizer.name=adamw", "optimizer.memory=8KiB"][..],
            "optimizer",
        ),
        (
            "b",
            &["optimizer.name=adamw_8bit"],
            &["optimizer.name=adamw_8bit", "optimizer.memory=8KiB"],
            "optimizer",
        ),
        ("c", &inputs, &[&inputs[..], &["training.activation_offloading=4KiB"]].concat(), "activations"),
        ("d", &upper, &[&upper[..], &["training.frozen_activations=4KiB"]].concat(), "frozen"),
    ] {
        done(&train(folder.path(), out, 2, plain, false));
        done(&train(folder.path(), out, 4, plain, false));
        let run = format!("paged-{out}");

        let tell = |output: &Output, promise: &str| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && !said.contains("panicked"), "{said}");
            // A limit is the user's; a disk that is full is the machine's, with exit code 1.
            assert_eq!(output.status.code(), Some(2), "{said}");
            for words in [&format!(".{file}.pages"), "File too large", "free some space", promise, "--resume"]
            {
                assert!(said.contains(words), "{words}: {said}");
            }
        };
        // At the first step, and when a checkpoint is read.
        tell(&train(folder.path(), &run, 2, paged, true), "no checkpoint had been saved yet");
        done(&train(folder.path(), &run, 2, paged, false));
        let checkpoint = at(&run).join("checkpoints/step-000002");
        let before = files(&checkpoint);
        let intact = format!("the last checkpoint, {run}/checkpoints/step-000002, is intact");
        tell(&train(folder.path(), &run, 4, paged, true), &intact);
        assert!(before == files(&checkpoint), "the checkpoint is as it was");
        done(&train(folder.path(), &run, 4, paged, false));
        let result = |run: &str| fs::read(at(run).join("adapter_model.safetensors")).unwrap();
        assert!(result(out) == result(&run), "{paged:?}");
    }
}

/// What `plan` counts for the model under these settings, and what it says of what does not fit.
fn plan(folder: &Path, memory: u64, settings: &[&str]) -> (Value, String) {
    let mut command = luthier(folder);
    command.args(["plan", "--json", "--model", "m", "--memory", &memory.to_string()]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    let output = command.output().unwrap();
    (serde_json::from_slice(&output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

const LARGE: [&str; 5] = [
    "adapter.r=16384",
    "training.checkpointing=block",
    "data.max_length=32",
    "training.batch_size=1",
    "training.micro_batch_tokens=32",
];

#[test]
fn between_what_fits_and_what_does_not_the_moments_are_paged_with_all_the_room_there_is() {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    let (all, _) = plan(folder.path(), 1 << 40, &LARGE);
    let number = |plan: &Value, pointer: &str| plan.pointer(pointer).unwrap().as_u64().unwrap();
    let (total, state) = (number(&all, "/total_bytes"), number(&all, "/bytes/optimizer"));
    assert!(all["fits"] == true && all["optimizer_memory_bytes"].is_null(), "{all}");
    for (optimizer, budget) in [("adamw", total - state / 2), ("lion", total - state / 4 * 3)] {
        let name = format!("optimizer.name={optimizer}");
        let (paged, _) = plan(folder.path(), budget, &[&LARGE[..], &[&name]].concat());
        let (total_paged, held) = (number(&paged, "/total_bytes"), number(&paged, "/bytes/optimizer"));
        assert!(paged["fits"] == true && total_paged <= budget, "{paged}");
        assert!(total_paged + (2 << 20) > budget, "but for two pages: {paged}");
        // Before anything is paged, less is kept of what is computed again.
        assert!(total_paged - held <= total - state && paged["activation_memory_bytes"].is_null(), "{paged}");
        assert!(held <= number(&paged, "/optimizer_memory_bytes"), "{paged}");
    }
    let set = [&LARGE[..], &["optimizer.memory=1GiB"]].concat();
    let (refused, said) = plan(folder.path(), total - state / 2, &set);
    assert_eq!(refused["fits"], false, "what is set stays as it is");
    let narrow = plan(folder.path(), 1 << 40, &[&set[..], &["optimizer.name=adamw_8bit"]].concat()).0;
    let mib = format!("{:.1} MiB", number(&narrow, "/total_bytes") as f64 / f64::from(1 << 20));
    for words in [&format!("optimizer.name: adamw_8bit to {mib}")[..], "optimizer.memory: null to"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (refused, said) = plan(folder.path(), total - state, &LARGE);
    assert_eq!(number(&refused, "/bytes/optimizer"), 4 << 20, "the least there is");
    assert!(said.contains("the run needs") && said.contains("adapter.r: 8192 to"), "{said}");
    assert!(!said.contains("nf4") && !said.contains("max_length"), "only what lowers it: {said}");
}

#[test]
fn what_does_not_fit_is_told_with_what_other_settings_would_need() {
    let folder = tempdir().unwrap();
    let shape = ["plan", "--shape", "llama-3.1-8b", "--memory", "17GiB", "--set", "adapter.r=256"];
    let output = run(folder.path(), &shape);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for (words, settings) in [
        ("quantization: nf4 to ", &["quantization=nf4"][..]),
        ("data.max_length: 1024 to ", &["data.max_length=1024"]),
        ("adapter.r: 128 to ", &["adapter.r=128"]),
        ("all of these to ", &["quantization=nf4", "data.max_length=1024", "adapter.r=128"]),
    ] {
        let mut arguments = shape.to_vec();
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        let plan = String::from_utf8(run(folder.path(), &arguments).stdout).unwrap();
        let total = plan.lines().find_map(|line| line.strip_prefix("total ")).unwrap();
        let total: Vec<&str> = total.split_whitespace().take(2).collect();
        assert!(said.contains(&format!("{words}{}", total.join(" "))), "{words}{total:?}: {said}");
    }
}

#[test]
fn as_many_layers_as_the_memory_asks_for_are_computed_again() {
    let folder = tempdir().unwrap();
    let plan = |memory: u64, settings: &[&str]| -> Value {
        let mut command = luthier(folder.path());
        command.args(["plan", "--json", "--shape", "llama-3.2-1b", "--memory", &memory.to_string()]);
        command.args(["--set", "training.micro_batch_tokens=2048"]);
        settings.iter().for_each(|setting| _ = command.args(["--set", setting]));
        serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
    };
    let number = |plan: &Value, key: &str| plan[key].as_u64().unwrap();
    let none = plan(1 << 40, &[]);
    let block = plan(1 << 40, &["training.checkpointing=block"]);
    let [most, least] = [&none, &block].map(|plan| number(plan, "total_bytes"));
    assert_eq!((number(&none, "layers_computed_again"), number(&block, "layers_computed_again")), (0, 15));
    // Below the lowest trained layer nothing is, and where only the head is trained nothing at all.
    for (target, again) in
        [(r"adapter.target_modules=.*layers\.1[2-5]\..*_proj", 3), ("adapter.target_modules=lm_head", 0)]
    {
        let upper = plan(1 << 40, &["training.checkpointing=block", target]);
        assert_eq!(number(&upper, "layers_computed_again"), again, "{upper}");
    }
    let of_layer = (most - least) / 15;
    for kept in 0..15 {
        let budget = least + kept * of_layer + of_layer / 2;
        let chosen = plan(budget, &[]);
        let (again, total) = (number(&chosen, "layers_computed_again"), number(&chosen, "total_bytes"));
        assert!(
            chosen["checkpointing"] == "block" && total <= budget && total + of_layer > budget,
            "{chosen}"
        );
        assert_eq!(again, 15 - kept, "{chosen}");
    }
}

#[test]
fn layers_inputs_are_paged_last_with_all_the_room_there_is() {
    let folder = tempdir().unwrap();
    let plan = |settings: &[&str]| {
        let mut arguments = vec!["plan", "--json", "--shape", "llama-3.2-1b", "--set", "optimizer.name=sgd"];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        let output = run(folder.path(), &arguments);
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        (plan, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let total = |plan: &Value| plan["total_bytes"].as_u64().unwrap();
    // Under a budget that all inputs fit into, nothing else is kept.
    let all_inputs = "training.activation_offloading=1GiB";
    let (block, _) = plan(&["training.checkpointing=block", "training.micro_batch_tokens=2048", all_inputs]);
    // Of 128 MiB, half.
    let budget = total(&block) - (64 << 20);
    let memory = format!("memory={budget}");
    let (paged, said) = plan(&[&memory]);
    assert!(paged["fits"] == true && paged["checkpointing"] == "block", "{paged} {said}");
    assert!(total(&paged) <= budget && total(&paged) + (2 << 20) > budget, "{paged}");
    assert!(paged["activation_memory_bytes"].as_u64().unwrap() > 60 << 20, "{paged}");
    for setting in ["training.activation_offloading=false", "training.checkpointing=none"] {
        let (refused, said) = plan(&[&memory, setting]);
        assert_eq!(refused["fits"], false);
        let (key, _) = setting.split_once('=').unwrap();
        assert!(said.contains(&format!("{key}: ")), "{said}");
    }
    let (least, _) = plan(&["training.activation_offloading=true"]);
    assert_eq!(least["checkpointing"], "block");
    assert_eq!(total(&block) - total(&least), (128 - 4) << 20);
}

#[test]
fn a_run_under_a_budget_that_pages_its_moments_gives_the_bytes_of_one_without_and_goes_on_under_another() {
    let folder = tempdir().unwrap();
    tiny::model(folder.path());
    tiny::examples(&folder.path().join("d.jsonl"), 60, 1);
    let total = plan(folder.path(), 1 << 40, &LARGE).0["total_bytes"].as_u64().unwrap();
    let budget = format!("memory={}", total - (8 << 20));
    let paged =
        |output: &Output| String::from_utf8_lossy(&output.stderr).contains("of the optimizer's state");
    let whole = train(folder.path(), "whole", 3, &[&LARGE[..], &["memory=1GiB"]].concat(), false);
    done(&whole);
    assert!(!paged(&whole));
    for (first, then) in [(&budget[..], &budget[..]), (&budget, "memory=1GiB"), ("memory=1GiB", &budget)] {
        let _ = fs::remove_dir_all(folder.path().join("out"));
        for (memory, steps) in [(first, 1), (then, 3)] {
            let output = train(folder.path(), "out", steps, &[&LARGE[..], &[memory]].concat(), false);
            done(&output);
            assert_eq!(paged(&output), memory == budget, "{}", String::from_utf8_lossy(&output.stderr));
            let saved = fs::read_to_string(folder.path().join("out/run.yaml")).unwrap();
            assert_eq!(saved.contains("\n  memory: null"), memory != budget, "{saved}");
        }
        let result = |run: &str| fs::read(folder.path().join(run).join("adapter_model.safetensors")).unwrap();
        assert!(result("whole") == result("out"), "{first}, then {then}");
    }
    // The saved settings are those of a run.
    let again = run(folder.path(), &["train", "out/run.yaml", "--resume"]);
    done(&again);
    assert!(String::from_utf8_lossy(&again.stderr).contains("finished already"));
}
