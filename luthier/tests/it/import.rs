//! `import`: other programs' configurations as run files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::failure;
use crate::support::{CONTEXT, names, succeed, tiny_model, write, write_lines};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/import").join(name)
}

/// A folder with a configuration in it.
fn folder(name: &str, text: &str) -> TempDir {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join(name), text).unwrap();
    folder
}

/// The lines of settings that a configuration becomes, without comments, and what is said.
fn import(name: &str, text: &str) -> (Vec<String>, String) {
    let folder = folder(name, text);
    let (told, said) = succeed(folder.path(), &["import", name, "--output", "-"]);
    (settings(&told), said)
}

fn settings(text: &str) -> Vec<String> {
    let bare = |line: &str| line.split(" # ").next().unwrap_or_default().trim_end().to_owned();
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')).map(bare) {
        match (line.strip_prefix("  "), line.strip_suffix(':')) {
            (Some(setting), _) => found.push(format!("{section}.{setting}")),
            (None, Some(name)) => section = name.to_owned(),
            (None, None) => found.push(line),
        }
    }
    found
}

#[track_caller]
fn assert_has(settings: &[String], expected: &[&str]) {
    for line in expected {
        assert!(settings.iter().any(|setting| setting == line), "{line} in {settings:#?}");
    }
}

#[test]
fn public_configurations_become_run_files_that_pass_a_dry_run() {
    for (name, data) in [
        ("axolotl-llama-3-lora-1b.yml", "alpaca.jsonl"),
        ("axolotl-llama-3-qlora.yml", "alpaca.jsonl"),
        ("axolotl-llama-3-instruct-lora-8b.yml", "chats.jsonl"),
        ("llama-factory-llama3-lora-sft.yaml", "alpaca.jsonl"),
        ("llama-factory-qwen3-lora-sft-otfq.yaml", "chats.jsonl"),
    ] {
        let folder = tempdir().unwrap();
        tiny_model(folder.path());
        let turn = |role: &str| json!({"role": role, "content": "Yes?"});
        let record = |_| json!({"instruction": "Say yes.", "output": "Yes."});
        write_lines(folder.path().join("alpaca.jsonl"), &(0..40).map(record).collect::<Vec<_>>());
        let chat = |_| json!({"messages": [turn("user"), turn("assistant")]});
        write_lines(folder.path().join("chats.jsonl"), &(0..40).map(chat).collect::<Vec<_>>());
        fs::copy(fixture(name), folder.path().join(name)).unwrap();
        let (_, said) = succeed(folder.path(), &["import", name]);
        assert!(said.contains("wrote run.yaml"), "{said}");
        assert!(!said.contains("is not known here"), "every key of {name} is known: {said}");
        let length = format!("data.max_length={CONTEXT}");
        let arguments =
            ["train", "run.yaml", "--dry-run", "--model", "model", "--data", data, "--set", &length];
        let (_, said) = succeed(folder.path(), &arguments);
        assert!(said.contains("steps "), "{name}: {said}");
    }
}

#[test]
fn a_configuration_of_axolotl_is_told_line_by_line() {
    let folder = tempdir().unwrap();
    fs::copy(fixture("axolotl-llama-3-instruct-lora-8b.yml"), folder.path().join("a.yml")).unwrap();
    let (told, said) = succeed(folder.path(), &["import", "a.yml", "--output", "-"]);
    insta::assert_snapshot!(format!("{told}---\n{said}"));
}

#[test]
fn a_configuration_of_llama_factory_is_told_line_by_line() {
    let folder = tempdir().unwrap();
    fs::copy(fixture("llama-factory-qwen3-lora-sft-otfq.yaml"), folder.path().join("l.yaml")).unwrap();
    let (told, said) = succeed(folder.path(), &["import", "l.yaml", "--output", "-"]);
    insta::assert_snapshot!(format!("{told}---\n{said}"));
}

#[test]
fn what_a_file_leaves_out_is_as_its_program_has_it() {
    let (run, _) = import(
        "a.yml",
        "base_model: m\nadapter: lora\nlearning_rate: 1e-4\ndatasets: [{path: d, type: alpaca}]\n",
    );
    let lora = ["adapter.r: 8", "adapter.alpha: 8", "adapter.target_modules: [q_proj, v_proj]"];
    let of_axolotl = [
        "data.max_length: 512",
        "data.packing: false",
        "data.on_overflow: drop",
        "schedule.name: cosine",
        "training.batch_size: 1",
        "training.epochs: 1",
    ];
    assert_has(&run, &[&lora[..], &of_axolotl].concat());
    let (run, _) = import("l.yaml", "stage: sft\nmodel_name_or_path: m\ndataset: d\n");
    assert_has(
        &run,
        &[
            "optimizer.learning_rate: 5.0e-5",
            "training.epochs: 3",
            "training.batch_size: 8",
            "schedule.warmup: 0.0",
            "adapter.r: 8",
            "adapter.alpha: 16",
            "data.packing: false",
        ],
    );
    let (run, _) = import("t.yaml", "model_name_or_path: m\ndataset_name: d\nuse_peft: true\n");
    assert_has(
        &run,
        &[
            "optimizer.learning_rate: 2.0e-5",
            "training.epochs: 3",
            "adapter.r: 16",
            "adapter.dropout: 0.05",
            "adapter.target_modules: [q_proj, v_proj]",
            "data.max_length: 1024",
            "data.train_on: all",
            "schedule.warmup: 0.0",
        ],
    );
}

#[test]
fn all_weights_are_trained_where_the_file_trains_no_adapter() {
    for (name, text) in [
        ("a.yml", "base_model: m\nlora_r: 8\nlearning_rate: 1e-5\ndatasets: [{path: d, type: alpaca}]\n"),
        ("l.yaml", "model_name_or_path: m\nfinetuning_type: full\nlora_rank: 4\nstage: sft\ndataset: d\n"),
        ("t.yaml", "model_name_or_path: m\ndataset_name: d\nlora_r: 8\n"),
    ] {
        let (run, _) = import(name, text);
        assert_has(&run, &["adapter.method: full"]);
        assert!(!run.iter().any(|setting| setting.starts_with("adapter.r:")), "{run:?}");
    }
}

#[test]
fn an_adapter_that_is_gone_on_from_keeps_its_own_rank_and_targets() {
    for (name, text) in [
        ("a.yml", "base_model: m\nadapter: lora\nlora_r: 64\nlora_model_dir: old\nlearning_rate: 1e-4\n"),
        (
            "l.yaml",
            "model_name_or_path: m\nstage: sft\nlora_rank: 64\nadapter_name_or_path: old\ndataset: d\n",
        ),
    ] {
        let (run, _) = import(name, text);
        assert_has(&run, &["adapter.init_from: old"]);
        let of_adapter: Vec<_> = run.iter().filter(|setting| setting.starts_with("adapter.")).collect();
        assert_eq!(of_adapter.len(), 1, "{run:?}");
    }
}

#[test]
fn settings_that_belong_together_are_read_together() {
    let axolotl =
        "base_model: m\nadapter: qlora\nload_in_4bit: true\nlora_target_linear: true\nlearning_rate: 1e-4\n";
    for (more, expected) in [
        ("micro_batch_size: 4\ngradient_accumulation_steps: 8\n", "training.batch_size: 32"),
        ("load_in_4bit: true\n", "quantization: nf4"),
        ("warmup_ratio: 0.1\n", "schedule.warmup: 0.1"),
        ("lr_scheduler: constant_with_warmup\nwarmup_steps: 7\n", "schedule.warmup: 7"),
        ("lr_scheduler: constant\nwarmup_steps: 7\n", "schedule.warmup: 0"),
        ("optimizer: paged_adamw_8bit\n", "optimizer.name: paged_adamw_8bit"),
        ("optimizer: lion_8bit\n", "optimizer.name: lion"),
        ("adam_beta2: 0.95\n", "optimizer.betas: [0.9, 0.95]"),
        ("val_set_size: 0.2\neval_steps: 50\n", "training.eval_every: 50"),
        ("test_datasets: [{path: t.jsonl}]\n", "data.eval: t.jsonl"),
        ("bf16: false\n", "precision: f32"),
        ("num_epochs: 2.5\n", "training.epochs: 3"),
        ("train_on_inputs: true\n", "data.train_on: all"),
        ("datasets: [{path: d, type: completion}]\n", "data.format: text"),
        ("datasets: [{path: json, data_files: [d.jsonl], type: sharegpt}]\n", "data.train: d.jsonl"),
        (
            "datasets: [{path: a, type: alpaca}, {path: b}]\n",
            "data.train: [{path: a, format: alpaca}, {path: b, format: tokenized}]",
        ),
        ("loraplus_lr_ratio: 16\n", "optimizer.lora_plus_ratio: 16"),
        ("revision_of_model: abc\n", "model: m@abc"),
    ] {
        let base = if more.starts_with("load_in") {
            axolotl.replace("load_in_4bit: true\n", "")
        } else {
            axolotl.to_owned()
        };
        let (run, said) = import("a.yml", &format!("{base}{more}"));
        // Quotes stand where a value has a letter that YAML may take for its own.
        let plain: Vec<String> = run.iter().map(|setting| setting.replace('"', "")).collect();
        assert!(plain.iter().any(|setting| setting == expected), "{more}: {run:#?}\n{said}");
    }
}

#[test]
fn what_cannot_be_carried_over_is_told_with_its_line_and_what_to_do() {
    let text = "base_model: m\nadapter: lora\nlearning_rate: 1e-4\nload_in_8bit: true\nlr_scheduler: rex\nmystery: 3\n\
                optimizer: muon\npeft_use_dora: false\nfsdp: [full_shard]\nval_set_size: 500\n\
                datasets: [{path: d, type: input_output, shards: 4}]\n";
    let (run, said) = import("a.yml", text);
    for line in [
        "not carried over: a.yml:4: load_in_8bit: true: there is no base in eight bits",
        "not carried over: a.yml:5: lr_scheduler: rex: the schedules are linear, cosine and constant; the run file takes cosine",
        "not carried over: a.yml:6: mystery: 3: this key is not known here",
        "not carried over: a.yml:7: optimizer: muon: this optimizer is not there",
        "not carried over: a.yml:10: val_set_size: 500: a number of examples",
        "a.yml:11: datasets[0].type: the type `input_output` is not there",
        "datasets[0].shards: make a file",
        "not needed here: fsdp\n",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains("peft_use_dora"), "what is off asks for nothing: {said}");
    assert_has(&run, &["schedule.name: cosine"]);
}

#[test]
fn other_kinds_of_training_are_refused() {
    for (name, text, words) in [
        ("a.yml", "base_model: m\nrl: dpo\n", "a.yml:2: rl: dpo: learning from preferences is not there"),
        ("a.yml", "base_model: m\nprocessor_type: AutoProcessor\n", "text only"),
        ("l.yaml", "stage: dpo\nfinetuning_type: lora\n", "l.yaml:1: stage: "),
        ("l.yaml", "stage: sft\nfinetuning_type: oft\n", "l.yaml:2: finetuning_type: "),
        ("l.yaml", "stage: sft\nimage_max_pixels: 262144\n", "text only"),
        (
            "t.yaml",
            "model_name_or_path: m\ndataset_name: d\nnum_generations: 4\n",
            "learning from preferences",
        ),
        ("p.json", "{\"peft_type\": \"IA3\"}", "p.json:1: peft_type: "),
        (
            "a.yml",
            "base_model: m\nadapter: lora\nlora_r: 0\n",
            "a.yml:3: lora_r: 0: `adapter.r` must be 1 or more",
        ),
        ("a.yml", "base_model: m\nsequence_len: long\n", "`data.max_length`: expected a whole number"),
        ("a.yml", "base_model: [a\n", "this is not valid YAML"),
        ("x.yml", "compute_environment: LOCAL_MACHINE\n", "none of its keys tells whose configuration it is"),
        ("r.yaml", "model: m\ndata: {train: d}\n", "r.yaml is a run file already"),
        ("e.yaml", "[1, 2]\n", "a file of settings is expected"),
        ("e.yaml", "", "a file of settings is expected"),
    ] {
        let folder = folder(name, text);
        let told = failure(folder.path(), &["import", name]);
        assert!(told.starts_with("exit code 2\n") && told.contains(words), "{text}: {told}");
        assert_eq!(names(folder.path()), [name], "nothing is written");
    }
    let folder = tempdir().unwrap();
    assert!(failure(folder.path(), &["import", "."]).contains("is a folder"));
    assert!(
        failure(folder.path(), &["import", "none.yml"]).contains("cannot read the configuration none.yml")
    );
}

#[test]
fn whose_configuration_it_is_can_be_said() {
    let folder = folder("x.yml", "learning_rate: 1e-4\n");
    let (told, said) =
        succeed(folder.path(), &["import", "x.yml", "--from", "llama-factory", "--output", "-"]);
    assert!(told.contains("a configuration of LLaMA-Factory"), "{told}");
    assert!(!said.contains("by its keys"), "{said}");
}

#[test]
fn data_sets_of_llama_factory_are_looked_up_beside_the_file() {
    let folder = folder("l.yaml", "stage: sft\nmodel_name_or_path: m\ndataset: one, two,three\n");
    fs::create_dir(folder.path().join("data")).unwrap();
    let info = json!({
        "one": {"file_name": "one.json"},
        "two": {"file_name": "two.json", "formatting": "sharegpt",
                "columns": {"messages": "messages"}, "tags": {"role_tag": "role", "content_tag": "content"}},
        "three": {"hf_hub_url": "owner/three", "columns": {"prompt": "ask", "response": "say"}},
    });
    write(&folder.path().join("data/dataset_info.json"), &info);
    let (told, said) = succeed(folder.path(), &["import", "l.yaml", "--output", "-"]);
    let expected = "data.train: [{path: data/one.json, format: alpaca}, {path: data/two.json, format: messages}, owner/three]";
    assert_has(&settings(&told), &[expected]);
    assert!(said.contains("the data set `three` has columns of its own"), "{said}");
}

#[test]
fn saved_training_arguments_and_an_adapters_configuration_are_read() {
    let arguments = json!({
        "output_dir": "out", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 3e-4,
        "num_train_epochs": 3.0, "max_steps": -1, "lr_scheduler_type": "cosine", "warmup_ratio": 0.0, "warmup_steps": 0,
        "optim": "adamw_torch", "adam_beta1": 0.9, "adam_beta2": 0.95, "bf16": true, "hub_token": "<HUB_TOKEN>", "_n_gpu": 1,
    });
    let (run, said) = import("training_args.json", &arguments.to_string());
    assert_has(
        &run,
        &[
            "optimizer.learning_rate: 3.0e-4",
            "optimizer.betas: [0.9, 0.95]",
            "training.batch_size: 8",
            "training.epochs: 3",
            "schedule.warmup: 0",
        ],
    );
    assert!(said.contains("whether an adapter is trained does not stand in this file"), "{said}");
    let adapter = json!({
        "peft_type": "LORA", "base_model_name_or_path": "m", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "use_rslora": true, "init_lora_weights": true, "use_dora": false,
        "modules_to_save": Value::Null, "task_type": "CAUSAL_LM", "inference_mode": true,
    });
    let (run, said) = import("adapter_config.json", &adapter.to_string());
    let expected =
        ["model: m", "adapter.r: 4", "adapter.alpha: 8", "adapter.dropout: 0.1", "adapter.rslora: true"];
    assert_has(&run, &expected);
    assert!(!said.contains("not carried over"), "{said}");
}

#[test]
fn names_in_a_configuration_are_not_obeyed_by_the_terminal_and_stay_within_their_comment() {
    let (run, said) = import(
        "a.yml",
        "base_model: m\n\"a\\u001b[31m\\nrl: dpo\": 1\nlora_model_dir: \"x\\ny\"\nadapter: lora\n",
    );
    assert!(said.contains("a\\u{1b}[31m\\nrl: dpo: 1: this key is not known here"), "{said}");
    assert_has(&run, &["adapter.init_from: \"x\\ny\""]);
    let folder = folder("a.yml", "base_model: m\n\"a\\nrl: dpo\": 1\n");
    let (told, _) = succeed(folder.path(), &["import", "a.yml", "--output", "-"]);
    assert!(told.contains("# Not carried over: a\\nrl: dpo.\n"), "{told}");
}
