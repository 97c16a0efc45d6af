//! Every family as a user meets it: trained, measured, asked, merged and quantized over the model crate's
//! tiny checkpoints.

use std::fs;
use std::path::{Path, PathBuf};

use compute::quant::{Code, CodebookFormat, Format};
use compute::{DType, Device, Precision};
use model::{BaseWeight, Config, Decoder, ModelFolder, ModuleId, Part};
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
    case("qwen3-moe", "qwen3_moe", ATTENTION),
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
        let config = ModelFolder::open(&folder.join("model")).unwrap().config;
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
    let told = facts(folder.path(), &with(&train, &["data.max_length=40", "adapter.r=1"]));
    let of_all: f64 =
        config.modules().iter().filter(|m| !m.id.is_norm()).map(|m| (4 * m.rows * m.cols) as f64).sum();
    let [flops, tokens] = ["flops_per_second", "tokens_per_second"].map(|name| told[name].as_f64().unwrap());
    // Two experts of five, and attention over 40 tokens.
    assert!((0.3..0.8).contains(&(flops / tokens / of_all)), "{told}, all layers {of_all}");
}

/// What `eval` says of a base with an adapter, and of what merging them gave.
fn apart_and_merged(folder: &Path, run: &str) -> (f64, f64) {
    let merged = format!("{run}-merged");
    succeed(folder, &["merge", "--adapter", run, "--output", &merged, "--dtype", "f32"]);
    (perplexity(folder, &["model", "--adapter", run]), perplexity(folder, &[&merged]))
}

#[test]
fn dora_is_trained_inspected_asked_and_merged() {
    for name in ["llama2", "phi3", "gpt2"] {
        let folder = folder(name);
        let folder = folder.path();
        for (run, more) in
            [("plain", &[][..]), ("four", &["quantization=nf4"]), ("dropped", &["adapter.dropout=0.1"])]
        {
            let train = ["train", "--model", "model", "--data", "d.jsonl", "--output", run];
            succeed(folder, &with(&with(&with(&train, &STEPS), &["adapter.method=dora"]), more));
            let adapter = facts(folder, &["inspect", run])["adapter"].clone();
            assert_eq!(adapter["dora"], json!(true), "{name}: {adapter}");
            assert_eq!(
                facts(folder, &["inspect", &format!("{run}/checkpoints/step-000003")])["dora"],
                json!(true)
            );
            let (apart, merged) = apart_and_merged(folder, run);
            assert!((merged - apart).abs() < 1e-4 * apart, "{name}, {run}: {apart} apart, {merged} merged");
            let usual =
                ["generate", "--adapter", run, "--prompt", "so", "--max-tokens", "8", "--precision", "f32"];
            assert_eq!(facts(folder, &usual)["token_ids"].as_array().unwrap().len(), 8, "{name}");
        }
    }
}

#[test]
fn an_adapter_is_merged_into_the_base_that_it_was_trained_over() {
    let folder = folder("olmo3");
    succeed(folder.path(), &with(&with(&TRAIN, &STEPS), &["quantization=nf4"]));
    let (apart, merged) = apart_and_merged(folder.path(), "run");
    assert!((merged - apart).abs() < 1e-4 * apart, "{apart} apart, {merged} merged");
    let plain =
        ["merge", "--adapter", "run", "--output", "plain", "--dtype", "f32", "--quantization", "none"];
    succeed(folder.path(), &plain);
    let plain = perplexity(folder.path(), &["plain"]);
    assert!((plain - apart).abs() > 1e-3 * apart, "another base: {apart} apart, {plain} merged");
}

/// Quantized on loading by a run in bf16, a base of f32 is rounded first, in blocks of the run's own size.
/// What is not quantized is merged as the base has it.
#[test]
fn a_base_is_merged_as_its_run_quantized_it() {
    let folder = folder("llama2");
    let settings = [
        "precision=bf16",
        "quantization={type: nf4, block_size: 128, double_quant: false}",
        "adapter.target_modules=[v_proj]",
    ];
    succeed(folder.path(), &with(&with(&TRAIN, &STEPS), &settings));
    let format = Format::Codebook(CodebookFormat { code: Code::Nf4, block_size: 128, double_quant: false });
    let load = |of: &str, precision, format| {
        Decoder::load(&folder.path().join(of), &Device::cpu(1), precision, format).unwrap()
    };
    let values = |decoder: &Decoder, module| match decoder.base_weight(module) {
        BaseWeight::Dense(weight) => weight.to_vec(),
        BaseWeight::Quantized(weight) => weight.dequantize(&decoder.device, DType::F32).to_vec(),
    };
    // It is not trained.
    let up = ModuleId::Linear { layer: 0, part: Part::Up };
    let [rounded, unrounded] =
        [Precision::Bf16, Precision::F32].map(|held| values(&load("model", held, Some(format)), up));
    assert_ne!(rounded, unrounded, "whether it is rounded first can be seen");
    let plain = load("model", Precision::F32, None);
    for (output, more) in [("merged", &[][..]), ("named", &["--quantization", "nf4"])] {
        let merge = ["merge", "--adapter", "run", "--output", output, "--dtype", "f32"];
        succeed(folder.path(), &[&merge, more].concat());
        let merged = load(output, Precision::F32, None);
        assert_eq!(values(&merged, up), rounded);
        assert_eq!(values(&merged, ModuleId::Embedding), values(&plain, ModuleId::Embedding));
    }
}

#[test]
fn experts_alone_are_trained_inspected_gone_on_from_and_merged() {
    const EXPERTS: [&str; 2] = [
        "adapter.target_modules=[]",
        "adapter.target_parameters=[mlp.experts.gate_up_proj, mlp.experts.down_proj]",
    ];
    let folder = folder("qwen3-moe");
    let folder = folder.path();
    let load = ["training.router_aux_loss=0.1"];
    succeed(folder, &with(&with(&with(&TRAIN, &STEPS), &EXPERTS), &load));
    let adapter = facts(folder, &["inspect", "run"])["adapter"].clone();
    assert_eq!(adapter["target_modules"], json!([]), "{adapter}");
    assert_eq!(adapter["target_parameters"].as_array().unwrap().len(), 2, "{adapter}");
    let metrics = fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    let step: Value =
        serde_json::from_str(metrics.lines().find(|l| l.contains("grad_norm")).unwrap()).unwrap();
    assert!(step["router_aux_loss"].as_f64().unwrap() >= 1.9, "{step}");
    let (apart, merged) = apart_and_merged(folder, "run");
    assert!((merged - apart).abs() < 1e-4 * apart, "{apart} apart, {merged} merged");
    let again = ["train", "--model", "model", "--data", "d.jsonl", "--output", "again"];
    succeed(folder, &with(&with(&again, &STEPS), &["adapter.init_from=run"]));
    let saved = fs::read_to_string(folder.join("again/run.yaml")).unwrap();
    assert!(saved.contains("target_modules: []"), "{saved}");
    fs::remove_file(folder.join("again/adapter_config.json")).unwrap();
    succeed(folder, &["train", "--resume", "again"]);
    for (setting, told) in [
        ("adapter.dropout=0.1", "adapter.dropout must be 0 with adapter.target_parameters"),
        ("adapter.method=dora", "adapter.method must be lora with adapter.target_parameters"),
    ] {
        let said = failure(folder, &with(&with(&again, &EXPERTS), &[setting]));
        assert!(said.starts_with("exit code 2\n") && said.replace('`', "").contains(told), "{said}");
    }
}

#[test]
fn what_a_model_has_nothing_for_is_refused_before_the_first_step() {
    let gpt2 = folder("gpt2");
    for command in [&TRAIN[..], &["plan", "--model", "model"], &["bench", "train", "--model", "model"]] {
        let told = failure(gpt2.path(), &with(command, &["data.max_length=41"]));
        assert!(told.starts_with("exit code 2\n") && told.contains("has learned 40 positions"), "{told}");
    }
    let dense = folder("llama2");
    let told = failure(dense.path(), &with(&with(&TRAIN, &STEPS), &["training.router_aux_loss=0.1"]));
    assert!(told.starts_with("exit code 2\n") && told.contains("this one has none"), "{told}");
    // PEFT would take these layers for experts.
    let mixed = folder("qwen3-moe");
    let told =
        failure(mixed.path(), &with(&with(&TRAIN, &STEPS), &["adapter.target_modules=[q_proj, up_proj]"]));
    assert!(told.starts_with("exit code 2\n") && told.contains("PEFT takes for the experts"), "{told}");
}

#[test]
fn what_only_experts_train_is_imported_as_it_is() {
    let folder = folder("qwen3-moe");
    let parameters = r#"["mlp.experts.down_proj"]"#;
    for (file, text) in [
        (
            "adapter_config.json",
            format!(
                r#"{{"peft_type": "LORA", "r": 2, "target_modules": [], "target_parameters": {parameters},
                     "base_model_name_or_path": "model"}}"#
            ),
        ),
        (
            "trl.yaml",
            format!(
                "model_name_or_path: model\nuse_peft: true\nlora_target_parameters: {parameters}\n\
                 dataset_name: d.jsonl\noutput_dir: run\n"
            ),
        ),
    ] {
        fs::write(folder.path().join(file), text).unwrap();
        succeed(folder.path(), &["import", file, "--output", "run.yaml"]);
        let run = fs::read_to_string(folder.path().join("run.yaml")).unwrap();
        assert!(run.contains("target_modules: []") && !run.contains("dropout: 0.05"), "{file}: {run}");
        fs::remove_file(folder.path().join("run.yaml")).unwrap();
    }
    let text =
        "model_name_or_path: model\nuse_peft: true\nuse_dora: true\ndataset_name: d.jsonl\noutput_dir: run\n";
    fs::write(folder.path().join("trl.yaml"), text).unwrap();
    succeed(folder.path(), &["import", "trl.yaml", "--output", "run.yaml"]);
    let run = fs::read_to_string(folder.path().join("run.yaml")).unwrap();
    assert!(run.contains("method: dora"), "{run}");
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
