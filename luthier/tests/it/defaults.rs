//! The defaults train, and a run that trains nothing says so.

use std::fs;
use std::path::Path;

use serde_json::json;
use tempfile::{TempDir, tempdir};

use crate::support::{succeed, tiny_model, write_lines};
use crate::{luthier, run};

/// A folder with a model and so many short examples.
fn folder(examples: usize) -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let record = |n: usize| json!({"prompt": format!("Question {n}:"), "completion": format!(" answer {n}")});
    write_lines(folder.path().join("d.jsonl"), &(0..examples).map(record).collect::<Vec<_>>());
    folder
}

/// Trains into `out` and says what it told on stderr.
fn train(folder: &Path, out: &str, settings: &[&str]) -> String {
    let mut arguments = vec!["train", "--model", "model", "--data", "d.jsonl", "--output", out];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    succeed(folder, &arguments).1
}

/// Whether some value of a B, which begins as zero, is not zero.
fn learnt(run: &Path) -> bool {
    let bytes = fs::read(run.join("adapter_model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let of_b = header.as_object().unwrap().iter().filter(|(name, _)| name.contains("lora_B"));
    let mut values = of_b.flat_map(|(_, info)| {
        let [from, to] = [0, 1].map(|i| 8 + length + info["data_offsets"][i].as_u64().unwrap() as usize);
        bytes[from..to].to_vec()
    });
    values.any(|byte| byte != 0)
}

#[test]
fn fifty_short_examples_are_learnt_under_the_defaults() {
    let folder = folder(50);
    let said = train(folder.path(), "out", &[]);
    assert!(learnt(&folder.path().join("out")) && said.contains("the result is in out"), "{said}");
    assert!(!said.contains("warning: nothing"), "{said}");
    assert!(
        said.contains("batch    2 rows a step: 8 would make only 7 steps of an epoch's 50 rows"),
        "{said}"
    );
    assert!(said.contains("epochs   2: one would be only 25 steps"), "{said}");
    let saved = fs::read_to_string(folder.path().join("out/run.yaml")).unwrap();
    for settled in ["batch_size: 2", "epochs: 2", "max_length: 24", "warmup: null", "learning_rate: 0.002"] {
        assert!(saved.contains(&format!("\n  {settled}\n")), "{settled}: {saved}");
    }
}

#[test]
fn batch_and_epochs_make_enough_steps_of_a_small_set_and_that_is_told_before_the_first() {
    for (examples, batch, epochs, steps) in
        [(10, 1, 3, 30), (40, 2, 3, 60), (100, 5, 3, 60), (152, 7, 3, 66), (153, 8, 3, 60), (400, 8, 1, 50)]
    {
        let folder = folder(examples);
        let dry = ["train", "--dry-run", "--model", "model", "--data", "d.jsonl", "--output", "out"];
        let dry = [&dry[..], &["--set", "data.packing=false"]].concat();
        let (_, said) = succeed(folder.path(), &dry);
        let words = format!("steps    {steps} of {batch} example{}, ", if batch == 1 { "" } else { "s" });
        assert!(said.contains(&words), "{examples}: {said}");
        assert_eq!(said.contains("batch    "), batch < 8, "{examples}: {said}");
        assert_eq!(said.contains("epochs   "), epochs > 1, "{examples}: {said}");
        assert_eq!(said.contains("warning: the run has only 30 steps"), steps == 30, "{examples}: {said}");
        let (_, said) = succeed(folder.path(), &[&dry[..], &["--batch-size", "8", "--epochs", "1"]].concat());
        let steps = examples.div_ceil(8);
        assert!(said.contains(&format!("steps    {steps} of 8 examples, ")), "{said}");
        assert!(!said.contains("batch  ") && !said.contains("epochs  "), "{said}");
    }
}

#[test]
fn few_steps_are_told_with_the_settings_that_make_more() {
    let folder = folder(40);
    let dry = ["train", "--dry-run", "--model", "model", "--data", "d.jsonl", "--output", "out"];
    let (_, said) = succeed(folder.path(), &[&dry[..], &["--batch-size", "4", "--epochs", "1"]].concat());
    let words = "warning: the run has only 10 steps, and few models learn much in fewer than 50; more of them: \
                 training.epochs: 5, or a smaller training.batch_size";
    assert!(said.contains(words), "{said}");
}

#[test]
fn the_longest_example_is_the_longest_row_unless_the_model_allows_less() {
    let folder = folder(3);
    let record = json!({"prompt": "x", "completion": "y".repeat(600)});
    write_lines(folder.path().join("long.jsonl"), &[record]);
    let dry = ["train", "--dry-run", "--json", "--model", "model", "--output", "out", "--data"];
    let longest = |file: &str| {
        let (told, _) = succeed(folder.path(), &[&dry[..], &[file]].concat());
        serde_json::from_str::<serde_json::Value>(&told).unwrap()["max_length"].clone()
    };
    assert_eq!(longest("d.jsonl"), 22);
    assert_eq!(longest("long.jsonl"), crate::support::CONTEXT);
}

#[test]
fn what_was_chosen_stays_when_the_run_goes_on() {
    let folder = folder(40);
    let settings = ["data.packing=false", "schedule.name=constant"];
    let first = [&settings[..], &["training.max_steps=4"]].concat();
    train(folder.path(), "out", &first);
    let longer = [&settings[..], &["training.max_steps=8"]].concat();
    let mut arguments = vec!["train", "--resume", "--model", "model", "--data", "d.jsonl", "--output", "out"];
    longer.iter().for_each(|setting| arguments.extend(["--set", setting]));
    let (_, said) = succeed(folder.path(), &arguments);
    assert!(said.contains("going on after step 4") && said.contains("steps    8 of 2 examples"), "{said}");
    train(folder.path(), "whole", &longer);
    let result = |run: &str| fs::read(folder.path().join(run).join("adapter_model.safetensors")).unwrap();
    assert!(result("out") == result("whole"));
}

#[test]
fn a_run_whose_rates_are_all_zero_warns_before_it_starts_and_at_its_end() {
    let folder = folder(50);
    let said =
        train(folder.path(), "out", &["schedule.warmup=0.03", "training.batch_size=64", "training.epochs=1"]);
    let begins = "warning: nothing will be trained: the run has 1 step, and the learning rate is 0 in it";
    let ends = "warning: nothing was trained: every value of the result in out is what it was";
    let at = |words: &str| said.find(words).unwrap_or_else(|| panic!("{words}: {said}"));
    assert!(at(begins) < at("training 1/1") && at("training 1/1") < at(ends), "{said}");
    for help in ["schedule.warmup: 0", "training.epochs", "training.batch_size", "data.max_length"] {
        assert!(said.contains(help), "{help}: {said}");
    }
    assert!(!said.contains("the result is in out\n") && !learnt(&folder.path().join("out")), "{said}");
}

#[test]
fn a_warm_up_longer_than_the_run_is_told_with_both_numbers() {
    let folder = folder(40);
    let settings =
        ["data.packing=false", "training.batch_size=4", "training.epochs=1", "optimizer.learning_rate=1e-3"];
    let with = |warmup: &str, out: &str| train(folder.path(), out, &[&settings[..], &[warmup]].concat());
    let said = with("schedule.warmup=100", "long");
    let words = "warning: the warm-up of 100 steps (schedule.warmup) is not over when the run ends after 10: the learning \
                 rate reaches 9.00e-5, not the 1e-3 of optimizer.learning_rate";
    assert!(said.contains(words), "{said}");
    assert!(!with("schedule.warmup=9", "nine").contains("warm-up"));
    assert!(with("schedule.warmup=10", "ten").contains("the warm-up of 10 steps"));
}

#[test]
fn plan_counts_as_many_rows_as_there_may_be() {
    let folder = folder(1);
    let (told, _) = succeed(folder.path(), &["plan", "--model", "model"]);
    assert!(told.contains("a step of at most 8 x "), "{told}");
    let (told, _) = succeed(folder.path(), &["plan", "--model", "model", "--set", "training.batch_size=3"]);
    assert!(told.contains("a step of 3 x "), "{told}");
    let null =
        run(folder.path(), &["plan", "--model", "model", "--set", "training.batch_size=null", "--json"]);
    let null: serde_json::Value = serde_json::from_slice(&null.stdout).unwrap();
    assert_eq!(null["batch_size"], 8);
}

#[test]
fn more_threads_are_planned_with_more_scratch() {
    let folder = folder(1);
    let total = |threads: &str| {
        let mut command = luthier(folder.path());
        command.args(["plan", "--json", "--model", "model", "--threads", threads]);
        let plan: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        plan["total_bytes"].as_u64().unwrap()
    };
    let [one, two, four] = ["1", "2", "4"].map(total);
    assert!(two > one && four - two == 2 * (two - one), "{one}, {two}, {four}");
}
