//! Which modules are trained: PEFT's own answers, and what is said where PEFT is silent.

use std::path::Path;

use model::adapter::peft::PeftConfig;
use model::adapter::peft::targets::{resolve, resolve_as_peft};
use model::{Config, ModelError, ModuleId, Part};
use serde_json::{Value, json};

use crate::common::fixture;

/// The model whose modules PEFT was asked about.
fn small(family: &str) -> Config {
    let json = json!({
        "model_type": family, "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32,
    });
    Config::from_json(&json.to_string(), Path::new("config.json")).unwrap()
}

fn settings(changes: &Value) -> PeftConfig {
    PeftConfig::from_json(&changes.to_string(), Path::new("adapter_config.json")).unwrap()
}

fn error(changes: Value) -> String {
    let mut all = json!({"peft_type": "LORA"});
    all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    resolve(&settings(&all), &small("llama")).expect_err("these settings do not fit").to_string()
}

#[test]
fn targets_ranks_and_scales_are_those_of_peft() {
    let cases = std::fs::read_to_string(fixture("targets.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() > 80);
    for case in cases {
        let what = format!("{}: {}", case["model"], case["title"]);
        let model = small(case["model"].as_str().unwrap());
        let settings = settings(&case["settings"]);
        let got = resolve_as_peft(&settings, &model);
        let Some(expected) = case["targets"].as_object() else {
            assert!(
                matches!(got, Err(ModelError::Setting { .. })),
                "{what}: PEFT refuses it: {}",
                case["error"]
            );
            continue;
        };
        let got = got.unwrap_or_else(|e| panic!("{what}: {e}"));
        let paths: Vec<String> = got.targets.iter().map(|t| t.path.clone()).collect();
        let mut expected_paths: Vec<ModuleId> =
            expected.keys().map(|p| model.names.parse(p).unwrap()).collect();
        expected_paths.sort();
        assert_eq!(paths, expected_paths.iter().map(|m| model.path(*m)).collect::<Vec<_>>(), "{what}");
        for target in &got.targets {
            let path = &target.path;
            let (rank, scale) = (expected[path][0].as_u64().unwrap(), expected[path][1].as_f64().unwrap());
            assert_eq!((target.rank as u64, target.scale), (rank, scale as f32), "{what}: {path}");
        }
        let mut saved: Vec<String> = got.saved.iter().map(|m| model.path(*m)).collect();
        saved.sort();
        assert_eq!(json!(saved), case["saved"], "{what}");
        assert_eq!(!got.unused.is_empty(), case["unused"].as_bool().unwrap(), "{what}: {:?}", got.unused);
        assert_eq!(resolve(&settings, &model).is_err(), !got.unused.is_empty(), "{what}");
    }
}

macro_rules! refused {
    ($($name:ident: $settings:tt => $message:expr;)*) => {
        $(#[test]
        fn $name() {
            let got = error(json!($settings));
            assert!(got.contains($message), "{got}\nlacks\n{}", $message);
        })*
    };
}

refused! {
    a_name_that_is_not_there_names_the_nearest: {"target_modules": ["q_proj", "v_porj"]} => "`target_modules` names \"v_porj\", which the model does not have; the nearest is `v_proj`, all are `q_proj`, ";
    a_container_names_its_layers: {"target_modules": ["mlp"]} => "`target_modules` names model.layers.0.mlp, which is not a linear layer; the linear layers in it are `gate_proj`, `up_proj` and `down_proj`";
    an_empty_list_is_refused: {"target_modules": []} => "`target_modules` is empty";
    an_expression_that_fits_nothing_is_refused: {"target_modules": "q_proj"} => "`target_modules` \"q_proj\" fits no module's whole path, such as \"model.layers.0.self_attn.q_proj\"";
    a_broken_expression_is_refused: {"target_modules": "(q_proj"} => "`target_modules` \"(q_proj\" is not a valid expression";
    a_pattern_without_end_is_refused: {"target_modules": r"(?=(.*.*.*.*.*.*.*)x)((.*)*)*\1"} => "`target_modules`";
    embeddings_take_no_low_rank_update: {"target_modules": ["q_proj", "embed_tokens"]} => "`target_modules` matches model.embed_tokens: low-rank updates of embeddings are not supported";
    an_exclusion_of_nothing_is_refused: {"target_modules": "all-linear", "exclude_modules": ["mlp"]} => "`exclude_modules` names model.layers.0.mlp, which is not a linear layer; the linear layers in it are";
    an_exclusion_of_all_is_refused: {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]} => "`target_modules` selects nothing that exclude_modules and modules_to_save leave";
    layers_beyond_the_model_are_refused: {"target_modules": ["q_proj"], "layers_to_transform": [3]} => "`target_modules` selects nothing together with layers_to_transform; layers count from 0";
    layers_with_an_expression_are_refused: {"target_modules": "all-linear", "layers_to_transform": [1]} => "`layers_to_transform` cannot be combined with target_modules as an expression";
    a_layer_pattern_without_layers_is_refused: {"layers_pattern": "layers"} => "`layers_pattern` is given without layers_to_transform";
    a_rank_pattern_that_decides_nothing_is_refused: {"rank_pattern": {"q_proj": 4, "layers.1.self_attn.q_proj": 2}} => "`rank_pattern` \"layers.1.self_attn.q_proj\" decides nothing";
    an_alpha_pattern_that_is_broken_is_refused: {"alpha_pattern": {"[": 4}} => "`alpha_pattern` \"[\" is not a valid expression";
    a_saved_module_that_is_not_there_names_the_nearest: {"modules_to_save": ["lm_haed"]} => "`modules_to_save` names \"lm_haed\", which the model does not have; the nearest are `lm_head`";
    a_saved_container_names_its_layers: {"modules_to_save": ["mlp"]} => "`modules_to_save` names model.layers.0.mlp, which holds other modules; name those to be trained whole: `gate_proj`, `up_proj` and `down_proj`";
    a_module_is_trained_in_one_way: {"modules_to_save": ["proj"]} => "`modules_to_save` and target_modules both name model.layers.0.self_attn.q_proj";
}

#[test]
fn the_default_is_queries_and_values() {
    let got = resolve(&PeftConfig::default(), &small("qwen3")).unwrap();
    let parts: Vec<ModuleId> = got.targets.iter().map(|t| t.module).take(2).collect();
    let expected = [Part::Q, Part::V].map(|part| ModuleId::Linear { layer: 0, part });
    assert_eq!(parts, expected);
    assert_eq!(got.targets.len(), 6);
}
