//! Training and merging over a device without elements: nothing but operations and transfers touches a
//! device's memory, whatever the family, the method and where things are kept.

use std::path::{Path, PathBuf};

use compute::quant::Format;
use compute::{Device, Precision};
use model::adapter::init::Init;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::{Adapter, Checkpointing, Decoder, Keeping, Layout, ModelFolder, StoredDType, arena};
use train::{Outcome, Rule, Settings};

use crate::common::{random_examples, run_adapter, settings};

fn fixture(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(case)
}

/// All models among the model crate's fixtures, so that a new one takes part by itself.
fn models() -> Vec<String> {
    let folders = std::fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap().path());
    let models = folders.filter(|folder| folder.join("config.json").exists());
    let mut names: Vec<String> =
        models.map(|folder| folder.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert!(names.len() > 30, "{names:?}");
    names.sort();
    names
}

fn load(case: &str, precision: Precision, quantization: Option<Format>) -> Decoder {
    Decoder::load(&fixture(case), &Device::null(), precision, quantization).unwrap()
}

fn adapter(decoder: &Decoder, peft: &PeftConfig) -> Adapter {
    let resolution = targets::resolve(peft, &decoder.config).unwrap();
    let layout = Layout::of_adapter(&resolution, &decoder.config);
    let mut adapter = Adapter::zeros(layout, peft.lora_dropout as f32, &decoder.device);
    adapter.initialize(Init::Default, 1, decoder);
    adapter
}

fn all_linear() -> PeftConfig {
    let target_modules = Some(Selection::Expression(targets::ALL_LINEAR.to_owned()));
    PeftConfig { target_modules, r: 4, ..PeftConfig::default() }
}

/// Trains, and merges the result.
fn train_and_merge(case: &str, decoder: &Decoder, peft: PeftConfig, settings: &Settings) {
    let folder = tempfile::tempdir().unwrap();
    let trained = adapter(decoder, &peft);
    let examples = random_examples(12);
    let (train, eval) = examples.split_at(9);
    let settings = Settings { max_steps: Some(2), ..settings.clone() };
    let (outcome, told) =
        run_adapter(decoder, (trained, peft.clone()), train, eval, &settings, folder.path(), None);
    assert_eq!((outcome, told.steps.len()), (Outcome::Finished, 2), "{case}");
    assert!(told.steps.iter().all(|step| step.loss == 0.0 && step.grad_norm == 0.0), "{case}");
    let merged = folder.path().join("merged");
    std::fs::create_dir(&merged).unwrap();
    let adapter = adapter(decoder, &peft);
    assert_eq!(decoder.probe(Some(&adapter)).to_vec()[..5], [0.0; 5], "{case}");
    let base = ModelFolder::open(&fixture(case)).unwrap();
    decoder.write_model_files(&adapter, &base, &fixture(case), &merged, StoredDType::Bf16).unwrap();
    assert!(merged.join("config.json").exists(), "{case}");
}

/// Everything that can be kept elsewhere is, as little as possible in memory.
fn paged() -> Settings {
    let keeping = Keeping { attention: true, mlp: 1, bf16: true, memory: Some(arena::SMALLEST) };
    let mut settings = Settings {
        checkpointing: Checkpointing::Block(keeping),
        frozen_activations: Some(arena::SMALLEST),
        epochs: 3,
        ..settings()
    };
    settings.optimizer.memory = Some(arena::SMALLEST);
    settings.optimizer.rule = Rule::AdamW8bit { betas: [0.9, 0.999], eps: 1e-8 };
    settings
}

#[test]
fn every_family_is_trained_and_merged_by_operations_alone() {
    for case in &models() {
        for precision in [Precision::F32, Precision::Bf16] {
            train_and_merge(case, &load(case, precision, None), all_linear(), &settings());
        }
    }
}

#[test]
fn every_method_is_trained_and_merged_by_operations_alone_wherever_things_are_kept() {
    for settings in [settings(), paged()] {
        for quantization in [None, Some(Format::QLORA)] {
            let decoder = load("llama3", Precision::F32, quantization);
            // What lies below the last layer is kept.
            let names = Some(Selection::List(vec!["q_proj".to_owned(), "down_proj".to_owned()]));
            let last = PeftConfig {
                target_modules: names,
                layers_to_transform: Some(vec![1]),
                lora_dropout: 0.1,
                ..all_linear()
            };
            train_and_merge("llama3", &decoder, last, &settings);
            let dora = PeftConfig { use_dora: true, ..all_linear() };
            train_and_merge("llama3", &decoder, dora, &settings);
            let whole = vec!["embed_tokens".to_owned(), "lm_head".to_owned()];
            train_and_merge(
                "llama3",
                &decoder,
                PeftConfig { modules_to_save: whole, ..all_linear() },
                &settings,
            );
        }
        let parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"].map(str::to_owned).to_vec();
        let experts = PeftConfig { target_parameters: parameters, ..all_linear() };
        let settings = Settings { router_aux_loss: 0.1, ..settings.clone() };
        train_and_merge("qwen3-moe", &load("qwen3-moe", Precision::Bf16, None), experts, &settings);
    }
}
