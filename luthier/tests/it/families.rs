//! Every family as a user meets it: trained, measured, asked, merged and quantized over the model crate's
//! tiny checkpoints.

use std::fs;
use std::path::{Path, PathBuf};

use model::Config;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::support::{succeed, write_lines};
use crate::{failure, tiny};

/// A checkpoint, its family, and the names of the layers that `all-linear` trains.
struct Case {
    name: &'static str,
    family: &'static str,
    targets: &'static [&'static str],
}

const LLAMA: &[&str] = &["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
const ATTENTION: &[&str] = &["k_proj", "o_proj", "q_proj", "v_proj"];
const GPT2: &[&str] = &["c_attn", "c_fc", "c_proj"];
const NEOX: &[&str] = &["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"];

const fn case(name: &'static str, family: &'static str, targets: &'static [&'static str]) -> Case {
    Case { name, family, targets }
}

const CASES: [Case; 21] = [
    case("gemma3", "gemma3_text", LLAMA),
    case("gemma3-wrapped", "gemma3_text", LLAMA),
    case("gemma2", "gemma2", LLAMA),
    case("phi3", "phi3", &["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]),
    case("phi3-longrope", "phi3", &["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]),
    case("gpt2", "gpt2", GPT2),
    case("gpt2-scaled", "gpt2", GPT2),
    case("smollm3", "smollm3", LLAMA),
    case("granite", "granite", LLAMA),
    case("olmo2", "olmo2", LLAMA),
    case("olmo3", "olmo3", LLAMA),
    case("ministral3", "ministral3", LLAMA),
    case("mistral3-wrapped", "mistral", LLAMA),
    case("glm4", "glm4", &["down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj"]),
    case("gpt-neox", "gpt_neox", NEOX),
    case("gpt-neox-serial", "gpt_neox", NEOX),
    case("starcoder2", "starcoder2", &["c_fc", "c_proj", "k_proj", "o_proj", "q_proj", "v_proj"]),
    case("hunyuan", "hunyuan_v1_dense", LLAMA),
    case("ernie4-5", "ernie4_5", LLAMA),
    case("qwen3-moe", "qwen3_moe", LLAMA),
    case("mixtral", "mixtral", ATTENTION),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name)
}

/// A folder with the checkpoint as `model`, with a tokenizer of letters, and texts `d.jsonl`.
fn folder(name: &str) -> TempDir {
    let folder = tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture(name).join(file), model.join(file)).unwrap();
    }
    tiny::write_tokenizer(&model);
    let record = |i: usize| json!({"text": format!("so it is{}.", " and so on".repeat(i % 3))});
    write_lines(folder.path().join("d.jsonl"), &(0..12).map(record).collect::<Vec<_>>());
    folder
}

#[track_caller]
fn facts(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(folder, &[arguments, &["--json"]].concat()).0).unwrap()
}

fn with<'a>(arguments: &[&'a str], settings: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().copied().chain(settings.iter().flat_map(|&setting| ["--set", setting])).collect()
}

const TRAIN: [&str; 7] = ["train", "--model", "model", "--data", "d.jsonl", "--output", "run"];
/// The longest text has 29 letters, and a few more.
const STEPS: [&str; 5] = [
    "precision=f32",
    "data.max_length=40",
    "training.batch_size=2",
    "training.max_steps=3",
    "optimizer.learning_rate=0.01",
];

fn losses(folder: &Path, run: &str) -> Vec<f64> {
    let lines = fs::read_to_string(folder.join(run).join("metrics.jsonl")).unwrap();
    lines.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64()).collect()
}

fn perplexity(folder: &Path, arguments: &[&str]) -> f64 {
    let usual = ["eval", "perplexity", "--data", "d.jsonl", "--set", "precision=f32", "--model"];
    facts(folder, &[&usual, arguments].concat())["loss"].as_f64().unwrap()
}

#[test]
fn every_family_is_planned_trained_measured_asked_merged_and_quantized() {
    for Case { name, family, targets } in CASES {
        let folder = folder(name);
        let folder = folder.path();
        let config = Config::load(&folder.join("model")).unwrap();
        let known = facts(folder, &["inspect", "model"]);
        assert_eq!(known["family"], family, "{name}");
        assert_eq!(known["parameters"], config.parameter_count(), "{name}");
        let plan = facts(folder, &with(&["plan", "--model", "model"], &STEPS));
        assert_eq!(plan["parameters"], config.parameter_count(), "{name}");
        assert_eq!((&plan["family"], &plan["fits"]), (&json!(family), &json!(true)), "{name}");

        succeed(folder, &with(&TRAIN, &STEPS));
        let of = losses(folder, "run");
        assert!(of.len() == 3 && of.iter().all(|loss| loss.is_finite()), "{name}: {of:?}");
        let adapter = facts(folder, &["inspect", "run"])["adapter"].clone();
        assert_eq!(adapter["parameters"], plan["trainable_parameters"], "{name}");
        let mut names: Vec<&str> = adapter["target_modules"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap().rsplit('.').next().unwrap())
            .collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names, targets, "{name}");

        let before = perplexity(folder, &["model"]);
        let after = perplexity(folder, &["model", "--adapter", "run"]);
        assert!(after < before, "{name}: {before}, trained {after}");
        let say = |arguments: &[&str]| {
            let usual = ["--prompt", "so", "--max-tokens", "8", "--precision", "f32"];
            facts(folder, &[&["generate", "--model"], arguments, &usual].concat())["token_ids"].clone()
        };
        succeed(
            folder,
            &["merge", "--model", "model", "--adapter", "run", "--output", "merged", "--dtype", "f32"],
        );
        let merged = perplexity(folder, &["merged"]);
        assert!((merged - after).abs() < 1e-4 * after, "{name}: {after} apart, {merged} merged");
        assert_eq!(say(&["merged"]), say(&["model", "--adapter", "run"]), "{name}");

        succeed(folder, &["quantize", "--model", "model", "--output", "small"]);
        assert_eq!(facts(folder, &["inspect", "small"])["quantization"]["type"], "nf4", "{name}");
        let small = perplexity(folder, &["small"]);
        let on_loading = perplexity(folder, &["model", "--set", "quantization=nf4"]);
        match config.experts {
            None => assert_eq!(small, on_loading, "{name}"),
            // Only on loading are experts quantized, too.
            Some(_) => assert!((small - on_loading).abs() < 0.2 * small, "{name}: {small}, {on_loading}"),
        }
        let train = ["train", "--model", "model", "--data", "d.jsonl", "--output", "four"];
        succeed(folder, &with(&with(&train, &STEPS), &["quantization=nf4"]));
        assert!(losses(folder, "four").iter().all(|loss| loss.is_finite()), "{name}");
    }
}

#[test]
fn what_sets_a_family_apart_is_told() {
    for (name, told) in [
        ("gemma3", &["rope_theta_with_window", "norms_of_queries_and_keys", "embedding_scale"][..]),
        ("gemma2", &["attention_cap", "logits_cap", "norms", "norm"]),
        ("gpt2", &["positions", "norm"]),
        ("smollm3", &["layers_without_rope"]),
        ("granite", &["embedding_scale", "attention_scale", "residual_scale", "logits_scale"]),
        ("olmo2", &["norms", "norms_of_queries_and_keys"]),
        ("ministral3", &["queries_grow_every"]),
        ("glm4", &["rotated_dimensions", "norms"]),
        ("gpt-neox", &["attention_and_mlp", "rotated_dimensions"]),
        ("starcoder2", &["norm"]),
        ("hunyuan", &["norms_of_queries_and_keys"]),
        ("mixtral", &["experts"]),
    ] {
        let folder = folder(name);
        let known = facts(folder.path(), &["inspect", "model"]);
        for key in told {
            assert!(!known[key].is_null(), "{name}: {key} in {known}");
        }
        let (text, _) = succeed(folder.path(), &["inspect", "model"]);
        assert!(text.contains(&told[0].replace('_', " ")), "{name}: {text}");
    }
    let folder = folder("qwen3-moe");
    let experts = facts(folder.path(), &["inspect", "model"])["experts"].clone();
    assert_eq!(
        (&experts["count"], &experts["for_each_token"], &experts["layers"]),
        (&json!(5), &json!(2), &json!(2))
    );
}

#[test]
fn a_target_that_the_family_does_not_have_is_answered_with_its_own_names() {
    for (name, own) in [
        ("gpt2", "all are `c_attn`, `c_proj`, `c_fc` and `lm_head`"),
        ("gpt-neox", "all are `query_key_value`, `dense`, `dense_h_to_4h`, `dense_4h_to_h` and `embed_out`"),
        ("phi3", "all are `qkv_proj`, `o_proj`, `gate_up_proj`, `down_proj` and `lm_head`"),
    ] {
        let folder = folder(name);
        let told = failure(folder.path(), &with(&TRAIN, &["adapter.target_modules=[q_proj]"]));
        assert!(told.starts_with("exit code 2\n") && told.contains(own), "{name}: {told}");
    }
}

#[test]
fn other_programs_files_take_the_defaults_and_the_names_of_the_family() {
    for (name, own) in [("gpt2", "c_attn"), ("gpt-neox", "query_key_value"), ("llama2", "q_proj, v_proj")] {
        let folder = folder(name);
        let rows = "base_model: model\nadapter: lora\ndatasets: [{path: d.jsonl, type: completion}]\n";
        fs::write(folder.path().join("axolotl.yml"), format!("{rows}lora_r: 4\noutput_dir: run\n")).unwrap();
        let (told, _) = succeed(folder.path(), &["import", "axolotl.yml", "--output", "run.yaml"]);
        let run = fs::read_to_string(folder.path().join("run.yaml")).unwrap();
        assert!(run.contains(&format!("target_modules: [{own}]")), "{name}: {told}{run}");
        succeed(folder.path(), &with(&["train", "run.yaml"], &STEPS));
    }
}

#[test]
fn what_layers_with_experts_give_is_not_kept() {
    let upper = r"adapter.target_modules=.*layers\.1\..*_proj";
    let folder = folder("mixtral");
    let settings = [upper, "training.epochs=3", "training.frozen_activations=true"];
    let told = failure(folder.path(), &with(&with(&TRAIN, &STEPS), &settings));
    assert!(told.starts_with("exit code 2\n") && told.contains("is not for layers with experts"), "{told}");
    let (_, said) = succeed(folder.path(), &with(&with(&TRAIN, &STEPS), &settings[..2]));
    assert!(!said.contains("kept  "), "{said}");
    let saved = fs::read_to_string(folder.path().join("run/run.yaml")).unwrap();
    assert!(saved.contains("frozen_activations: false"), "{saved}");
}

#[test]
fn a_token_is_measured_by_the_experts_that_are_chosen_for_it() {
    let folder = folder("mixtral");
    let config = Config::load(&folder.path().join("model")).unwrap();
    let told = facts(
        folder.path(),
        &with(&["bench", "generate", "--model", "model", "--steps", "2"], &["precision=f32"]),
    );
    // The file has two bytes a weight; norms are in f32 at any rate.
    let table = (config.vocab_size * config.hidden_size) as u64;
    let norms = (config.hidden_size * (2 * config.layers + 1)) as u64;
    assert_eq!(told["weight_bytes_per_token"], 2 * (config.active_parameter_count() - table + norms));
    let train = ["bench", "train", "--model", "model", "--steps", "1"];
    let told = facts(folder.path(), &with(&train, &["data.max_length=40"]));
    assert!(told["flops_per_second"].as_f64().unwrap() > 0.0, "{told}");
}

#[test]
fn shapes_with_experts_and_without_a_gate_are_planned() {
    let folder = tempdir().unwrap();
    let told = facts(folder.path(), &["plan", "--shape", "qwen3-30b-a3b"]);
    assert_eq!(told["parameters"], 30_532_122_624_u64);
    let rows = told["modules"].as_array().unwrap();
    let experts = rows.iter().find(|row| row["name"] == "mlp.experts.*.up_proj").unwrap();
    assert_eq!(experts["count"], 48 * 128);
    let paper = ["adapter.r=1", "adapter.target_modules=[q_proj, v_proj]"];
    let told = facts(folder.path(), &with(&["plan", "--shape", "gpt-3-175b"], &paper));
    assert_eq!(
        (&told["parameters"], &told["trainable_parameters"]),
        (&json!(174_604_259_328_u64), &json!(4_718_592))
    );
}
