//! A run folder remembers what its adapter was trained with: it is all that other commands need to be told.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::run;
use crate::support::{succeed, text, tiny_adapter, tiny_model, write_lines};

/// A template that no built-in one is, and that the tiny model does not have.
const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}\
    {{ '<|im_end|>' }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

/// A model, some chats, and a run over them with its own template, in four bits, of short examples.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    let chat = |n: usize| {
        json!({"messages": [
            {"role": "user", "content": format!("What is {n}?")},
            {"role": "assistant", "content": format!("It is the number {n}.")},
        ]})
    };
    write_lines(folder.path().join("d.jsonl"), &(0..24).map(chat).collect::<Vec<_>>());
    fs::write(folder.path().join("mine.jinja"), TEMPLATE).unwrap();
    folder
}

const TRAIN: [&str; 17] = [
    "train",
    "--model",
    "model",
    "--data",
    "d.jsonl",
    "--output",
    "run",
    "--chat-template",
    "mine.jinja",
    "--max-length",
    "40",
    "--quantization",
    "nf4",
    "--lr",
    "1e-2",
    "--batch-size",
    "4",
];

fn train(folder: &Path) {
    succeed(folder, &[&TRAIN[..], &["--set", "training.max_steps=4"]].concat());
}

fn json_of(folder: &Path, arguments: &[&str]) -> (Value, String) {
    let (told, said) = succeed(folder, arguments);
    (serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}")), said)
}

#[test]
fn the_adapter_alone_is_a_whole_command_from_any_folder() {
    let folder = folder();
    train(folder.path());
    let elsewhere = tempdir().unwrap();
    let (run_folder, data) = (folder.path().join("run"), folder.path().join("d.jsonl"));
    let short = ["eval", "perplexity", "--json", "--adapter", text(&run_folder), "--data", text(&data)];
    let (remembered, said) = json_of(elsewhere.path(), &short);
    assert!(said.contains("note: as in training: its chat template, "), "{said}");
    assert!(said.contains("data.max_length 40, quantization nf4"), "{said}");
    let whole = [
        "eval",
        "perplexity",
        "--json",
        "--model",
        "model",
        "--adapter",
        "run",
        "--data",
        "d.jsonl",
        "--set",
        "data.chat_template=mine.jinja",
        "--set",
        "data.max_length=40",
        "--set",
        "quantization=nf4",
    ];
    let (told, said) = json_of(folder.path(), &whole);
    assert_eq!((&remembered["loss"], &remembered["tokens"]), (&told["loss"], &told["tokens"]));
    assert!(!said.contains("in training"), "nothing differs: {said}");

    let messages = folder.path().join("m.json");
    fs::write(&messages, r#"[{"role": "user", "content": "What is 3?"}]"#).unwrap();
    let answer = [
        "generate",
        "--json",
        "--max-tokens",
        "8",
        "--adapter",
        text(&run_folder),
        "--messages",
        text(&messages),
    ];
    let (short, _) = json_of(elsewhere.path(), &answer);
    let template = folder.path().join("mine.jinja");
    let model = folder.path().join("model");
    let flags = ["--chat-template", text(&template), "--quantization", "nf4", "--model", text(&model)];
    let (whole, _) = json_of(elsewhere.path(), &[&answer[..], &flags].concat());
    assert_eq!(
        (&short["token_ids"], &short["prompt_tokens"]),
        (&whole["token_ids"], &whole["prompt_tokens"])
    );
    let own = ["--chat-template", "zephyr"];
    let (other, _) = json_of(elsewhere.path(), &[&answer[..], &own].concat());
    assert_ne!(short["prompt_tokens"], other["prompt_tokens"], "a flag wins");
}

#[test]
fn a_flag_that_differs_wins_and_is_told() {
    let folder = folder();
    train(folder.path());
    fs::rename(folder.path().join("model"), folder.path().join("moved")).unwrap();
    let ask = ["generate", "--adapter", "run", "--prompt", "a", "--max-tokens", "1"];
    let output = run(folder.path(), &ask);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("which run says it was trained on: name it by --model"), "{said}");
    let (_, said) =
        succeed(folder.path(), &[&ask[..], &["--model", "moved", "--quantization", "none"]].concat());
    assert!(said.contains("note: run was trained on ") && said.contains("; --model moved is used"), "{said}");
    assert!(said.contains("note: the base is held in none; in training it was nf4"), "{said}");
    let eval = ["eval", "perplexity", "--adapter", "run", "--model", "moved", "--data", "d.jsonl"];
    let (_, said) = succeed(folder.path(), &[&eval[..], &["--set", "data.chat_template=chatml"]].concat());
    assert!(said.contains("note: unlike in training: data.chat_template was "), "{said}");
}

#[test]
fn a_merged_model_has_the_template_of_the_run() {
    let folder = folder();
    train(folder.path());
    succeed(folder.path(), &["merge", "--adapter", "run", "--output", "merged"]);
    for of in ["run", "merged"] {
        let of = folder.path().join(of);
        assert_eq!(fs::read_to_string(of.join("chat_template.jinja")).unwrap(), TEMPLATE);
        let config: Value =
            serde_json::from_slice(&fs::read(of.join("tokenizer_config.json")).unwrap()).unwrap();
        assert_eq!(config["chat_template"], TEMPLATE, "older versions of transformers read it here");
    }
    let card = fs::read_to_string(folder.path().join("run/README.md")).unwrap();
    assert!(card.starts_with("---\nlibrary_name: peft\n") && card.contains("| `d.jsonl` |"), "{card}");
}

#[test]
fn all_weights_are_trained_with_the_template_too() {
    let folder = folder();
    let full = ["--set", "adapter.method=full", "--set", "training.max_steps=2"];
    let flags: Vec<&str> =
        TRAIN.iter().copied().filter(|flag| !["--quantization", "nf4"].contains(flag)).collect();
    succeed(folder.path(), &[&flags[..], &full].concat());
    assert_eq!(fs::read_to_string(folder.path().join("run/chat_template.jinja")).unwrap(), TEMPLATE);
}

#[test]
fn an_unfinished_run_and_a_folder_of_a_trainer_name_their_last_checkpoint() {
    let folder = folder();
    train(folder.path());
    let refused = |adapter: &str, words: &[&str]| {
        let output = run(folder.path(), &["generate", "--adapter", adapter, "--prompt", "a"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    };
    fs::remove_file(folder.path().join("run/adapter_config.json")).unwrap();
    let go_on = "or finish the run by `luthier train --resume run`";
    refused(
        "run",
        &["run: this run has no result yet; its last checkpoint is run/checkpoints/step-000004", go_on],
    );
    // The checkpoint is an adapter of the same run.
    let ask = ["generate", "--adapter", "run/checkpoints/step-000004", "--prompt", "a", "--max-tokens", "1"];
    let (_, said) = succeed(folder.path(), &ask);
    assert!(said.contains("the base is held in nf4, as in training"), "{said}");
    fs::remove_dir_all(folder.path().join("run/checkpoints/step-000004")).unwrap();
    refused(
        "run",
        &["this run has no result and no checkpoint yet; finish it by `luthier train --resume run`"],
    );
    for step in ["checkpoint-9", "checkpoint-10"] {
        let to = folder.path().join("trainer").join(step);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::rename(tiny_adapter(folder.path(), 0.1), to).unwrap();
    }
    refused("trainer", &["its last checkpoint is trainer/checkpoint-10: name that"]);
}

#[test]
fn a_run_goes_on_from_any_folder_with_nothing_but_its_own() {
    let folder = folder();
    train(folder.path());
    let elsewhere = tempdir().unwrap();
    let run_folder = folder.path().join("run");
    let more = ["--set", "training.max_steps=7", "--set", "schedule.name=linear"];
    succeed(elsewhere.path(), &[&["train", "--resume", text(&run_folder)][..], &more].concat());
    assert!(fs::read_dir(elsewhere.path()).unwrap().next().is_none(), "nothing is written elsewhere");
    assert_eq!(fs::read_to_string(run_folder.join("metrics.jsonl")).unwrap().lines().count(), 7);
    // Where there is no run, and where settings differ.
    for (arguments, words) in [
        (&["train", "--resume", "nowhere"][..], "--resume nowhere: there is no such folder"),
        (&["train", "--resume", "model"], "there is no run.yaml in it"),
        (&["train", "--resume", "run", "--rank", "3"], "adapter.r: 16 when the run began, 3 now"),
        (&["train", "--resume", "run", "--rank", "x"], "--rank x"),
    ] {
        let output = run(folder.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_run_whose_files_were_moved_goes_on_with_their_new_names_and_the_same_data() {
    let folder = folder();
    train(folder.path());
    let to = |name: &str| folder.path().join(name);
    fs::rename(to("model"), to("model2")).unwrap();
    fs::rename(to("d.jsonl"), to("d2.jsonl")).unwrap();
    let more = ["train", "--resume", "run", "--set", "training.max_steps=5"];
    let told = |arguments: &[&str]| {
        let output = run(folder.path(), arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = told(&more);
    assert!(code == Some(2) && said.contains("name it by --model"), "{said}");
    write_lines(
        to("other.jsonl"),
        &[json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})],
    );
    let (code, said) = told(&[&more[..], &["--model", "model2", "--data", "other.jsonl"]].concat());
    assert!(code == Some(2) && said.contains("was saved while training on other data"), "{said}");
    let (code, said) = told(&[&more[..], &["--model", "model2", "--data", "d2.jsonl"]].concat());
    assert!(code == Some(0) && said.contains("going on after step 4"), "{said}");
}
