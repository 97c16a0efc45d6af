//! Reading config.json: every family, both ways of writing the rotary embedding, and what is refused.

use std::path::Path;

use compute::ops::gated::Activation;
use compute::ops::rope::{RopeScaling, Rotation};
use model::config::{Biases, BlockConfig, Mlp, NormKind, QkNorm, Span};
use model::shapes::{self, Shape};
use model::{Config, Family, ModelError, StoredDType};
use serde_json::{Value, json};

use crate::common::fixture;

/// A small Llama's config.json with fields replaced, added, or (by null under `remove`) taken out.
fn llama(changes: Value) -> Result<Config, ModelError> {
    let mut json = json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    });
    for (field, value) in changes.as_object().unwrap() {
        if value == "<absent>" {
            json.as_object_mut().unwrap().remove(field);
        } else {
            json[field] = value.clone();
        }
    }
    Config::from_json(&json.to_string(), Path::new("m/config.json"))
}

fn error(changes: Value) -> String {
    llama(changes).expect_err("this configuration is broken").to_string()
}

#[test]
fn absent_fields_take_transformers_defaults() {
    let config = llama(json!({})).unwrap();
    assert_eq!(config.head_dim, 4);
    assert_eq!((config.norm, config.norm_eps), (NormKind::Rms, 1e-6));
    let rotation = Rotation { dims: 4, theta: 10_000.0, scaling: RopeScaling::None, interleaved: false };
    assert_eq!(config.ropes, [rotation]);
    assert_eq!(config.max_position_embeddings, 2048);
    assert_eq!((config.bos, config.eos.as_slice(), config.pad), (Some(1), &[2][..], None));
    assert_eq!(config.activation, Activation::Silu);
    assert!(!config.tie_word_embeddings && config.biases == Biases::default());
    assert_eq!(config.blocks, [BlockConfig { window: None, rope: Some(0), mlp: Mlp::Gated }; 3]);
    assert_eq!(config.dtype, None);
    assert_eq!(llama(json!({"num_key_value_heads": "<absent>"})).unwrap().kv_heads, 4);
}

#[test]
fn a_family_is_a_row_of_fields() {
    let of = |family: &str, changes: Value| {
        let mut all = json!({"model_type": family});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        llama(all).unwrap()
    };
    let biases = |qkv, output, mlp| Biases { qkv, output, mlp };
    let qwen2 = of("qwen2", json!({}));
    assert_eq!(
        (qwen2.family, qwen2.biases, qwen2.qk_norm),
        (Family::Qwen2, biases(true, false, false), None)
    );
    let qwen3 = of("qwen3", json!({"attention_bias": true}));
    let each_head = QkNorm { span: Span::Head, behind_rope: false };
    assert_eq!((qwen3.biases, qwen3.qk_norm), (biases(true, true, false), Some(each_head)));
    assert_eq!(qwen3.head_dim, 128);
    let llama = of("llama", json!({"attention_bias": true, "mlp_bias": true}));
    assert_eq!(llama.biases, biases(true, true, true));
    let mistral = of("mistral", json!({}));
    assert_eq!((windows(&mistral), mistral.max_position_embeddings), (vec![Some(4096); 3], 131_072));
}

/// `Ministral3Config` makes up a whole object where the file has none; where it has one, only the base.
#[test]
fn ministrals_rotary_embedding_is_the_classs_own_where_the_file_has_none() {
    let silent = llama(json!({"model_type": "ministral3"})).unwrap();
    let RopeScaling::Yarn { factor, original_max_position_embeddings, mscale_all_dim, .. } =
        silent.ropes[0].scaling
    else {
        panic!("{:?}", silent.ropes);
    };
    assert_eq!((factor, original_max_position_embeddings, mscale_all_dim), (16.0, 16_384, Some(1.0)));
    assert_eq!((silent.ropes[0].theta, silent.query_growth.unwrap().beta), (1e6, 0.1));
    let plain =
        llama(json!({"model_type": "ministral3", "rope_parameters": {"rope_type": "default"}})).unwrap();
    assert_eq!((plain.ropes[0].theta, &plain.ropes[0].scaling), (1e4, &RopeScaling::None));
    assert!(plain.query_growth.is_none());
}

/// Mixtral's class passes over the fields by which Qwen3's leaves some layers without experts.
#[test]
fn all_layers_of_mixtral_have_experts() {
    let fields = json!({"model_type": "mixtral", "decoder_sparse_step": 2, "mlp_only_layers": [0]});
    assert!(llama(fields).unwrap().blocks.iter().all(|block| block.mlp == Mlp::Experts));
}

fn windows(config: &Config) -> Vec<Option<usize>> {
    config.blocks.iter().map(|block| block.window).collect()
}

#[test]
fn windows_are_those_of_each_family() {
    let windows = |changes| windows(&llama(changes).unwrap());
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": 9})), vec![Some(9); 3]);
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": null})), vec![None; 3]);
    let qwen = json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2});
    assert_eq!(windows(qwen), [None, None, Some(8)]);
    let off = json!({"model_type": "qwen2", "use_sliding_window": false, "sliding_window": 8, "max_window_layers": 0});
    assert_eq!(windows(off), vec![None; 3]);
    let typed = json!({"model_type": "qwen3", "use_sliding_window": true, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]});
    assert_eq!(windows(typed), [Some(8), None, Some(8)]);
}

#[test]
fn the_rotary_embedding_is_read_as_transformers_4_and_5_write_it() {
    let both = |kind: &str, parameters: Value| {
        let mut new = parameters.clone();
        new["rope_theta"] = json!(5e5);
        new["rope_type"] = json!(kind);
        let mut old = parameters;
        old["type"] = json!(kind);
        let new = llama(json!({"rope_parameters": new})).unwrap();
        let old = llama(json!({"rope_scaling": old, "rope_theta": 500_000})).unwrap();
        assert_eq!(new.ropes, old.ropes);
        let [rotation] = <[Rotation; 1]>::try_from(old.ropes).unwrap();
        assert_eq!(rotation.theta, 5e5);
        rotation.scaling
    };
    assert_eq!(both("default", json!({})), RopeScaling::None);
    assert_eq!(both("linear", json!({"factor": 4})), RopeScaling::Linear { factor: 4.0 });
    let llama3 = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(both("llama3", llama3), expected);
    let yarn = |attention_factor, original| RopeScaling::Yarn {
        factor: 2.0,
        original_max_position_embeddings: original,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    };
    let given = json!({"factor": 2.0, "original_max_position_embeddings": 512, "attention_factor": 0.5});
    assert_eq!(both("yarn", given), yarn(Some(0.5), 512));
    assert_eq!(both("yarn", json!({"factor": 2.0})), yarn(None, 2048));
    // Null is the ratio of the contexts.
    assert_eq!(
        both("yarn", json!({"factor": null, "original_max_position_embeddings": 1024})),
        yarn(None, 1024)
    );
}

#[test]
fn several_ends_of_text_are_read() {
    assert_eq!(llama(json!({"eos_token_id": [2, 7]})).unwrap().eos, [2, 7]);
    assert!(llama(json!({"eos_token_id": null})).unwrap().eos.is_empty());
}

#[test]
fn every_fixture_is_read_and_its_parameters_are_those_of_its_file() {
    let cases =
        ["llama2", "llama3", "llama-bias", "llama-gelu", "mistral", "qwen2", "qwen3", "llama-tied-head"];
    for case in cases {
        let config = Config::load(&fixture(case)).unwrap();
        let checkpoint = model::Checkpoint::open(&fixture(case)).unwrap();
        checkpoint.check(&config).unwrap();
        let elements: usize = checkpoint.names().map(|n| checkpoint.tensor(n).unwrap().element_count()).sum();
        assert_eq!(config.parameter_count(), elements as u64, "{case}");
    }
}

#[test]
fn the_file_is_saved_as_it_was_but_for_the_type_of_the_weights() {
    let config = llama(json!({"torch_dtype": "float16", "something_else": {"kept": [1, 2.5]}})).unwrap();
    let saved: Value = serde_json::from_str(&config.to_json(StoredDType::Bf16)).unwrap();
    assert_eq!(saved["torch_dtype"], "bfloat16");
    assert_eq!(saved["something_else"]["kept"], json!([1, 2.5]));
    assert_eq!(saved["vocab_size"], 64);
}

macro_rules! refused {
    ($($name:ident: $changes:tt => $message:expr;)*) => {
        $(#[test]
        fn $name() {
            let got = error(json!($changes));
            assert!(got.starts_with("m/config.json: `"), "{got}");
            assert!(got.contains($message), "{got}\nlacks\n{}", $message);
        })*
    };
}

refused! {
    a_missing_family_names_those_supported: {"model_type": "<absent>"} => "`model_type` is missing; it names the model's family: `llama`, `mistral`, `qwen2`, `qwen3`, `gemma3_text`,";
    an_unknown_family_names_those_supported: {"model_type": "opt"} => "`model_type` is \"opt\", which is not supported; supported are `llama`, `mistral`, `qwen2`, `qwen3`,";
    a_missing_size_is_named: {"hidden_size": "<absent>"} => "`hidden_size` is missing";
    a_size_of_zero_is_refused: {"vocab_size": 0} => "`vocab_size` is 0; expected a whole number from 1 to 16777216";
    a_negative_size_is_refused: {"num_hidden_layers": -1} => "`num_hidden_layers` is -1";
    a_size_that_could_overflow_is_refused: {"intermediate_size": 18446744073709551615u64} => "`intermediate_size` is 18446744073709551615";
    a_size_as_text_is_refused: {"hidden_size": "16"} => "`hidden_size` is \"16\"; expected a whole number";
    a_fractional_size_is_refused: {"hidden_size": 16.5} => "`hidden_size` is 16.5";
    key_heads_must_divide_heads: {"num_key_value_heads": 3} => "`num_key_value_heads` is 3, which does not divide num_attention_heads 4";
    heads_must_divide_the_width_if_nothing_else_is_said: {"num_attention_heads": 5, "num_key_value_heads": 5} => "`num_attention_heads` is 5, which does not divide hidden_size 16";
    an_odd_head_is_refused: {"head_dim": 5} => "`head_dim` is 5; rotary embedding turns pairs";
    an_unknown_activation_is_refused: {"hidden_act": "relu"} => "`hidden_act` is \"relu\"; supported are";
    an_unknown_rope_type_is_refused: {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}} => "`rope_scaling.rope_type` is \"dynamic\"; supported are `default`, `linear`, `llama3`, `longrope` and `yarn`";
    a_rope_factor_must_be_there: {"rope_scaling": {"rope_type": "linear"}} => "`rope_scaling.factor` is missing";
    a_rope_factor_must_be_positive: {"rope_parameters": {"rope_type": "linear", "factor": 0.0}} => "`rope_parameters.factor` is 0.0; expected a number from 0.000000001 to 1000000000";
    llama3_bands_must_not_cross: {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}} => "`rope_scaling.high_freq_factor` is 4, which must be above low_freq_factor 4";
    rope_by_layer_type_is_refused: {"rope_parameters": {"full_attention": {"rope_type": "default"}}} => "`rope_parameters` has parameters of its own for \"full_attention\", which a llama model has not";
    rope_must_be_an_object: {"rope_scaling": 2.0} => "`rope_scaling` is 2.0; expected an object";
    partial_rotation_is_refused: {"partial_rotary_factor": 0.5} => "`partial_rotary_factor` is 0.5";
    partial_rotation_is_refused_within_rope: {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}} => "`rope_parameters.partial_rotary_factor` is 0.25: llama models rotate each head as a whole";
    quantized_with_other_than_four_bits_is_refused: {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}} => "`quantization_config` is of \"bitsandbytes in other than 4 bits\"";
    other_kinds_of_quantization_are_named: {"quantization_config": {"quant_method": "gptq", "bits": 4}} => "`quantization_config` is of \"gptq\"; of quantized checkpoints only those of bitsandbytes in 4 bits are supported";
    an_unknown_code_is_refused: {"quantization_config": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf3"}} => "has the bnb_4bit_quant_type \"nf3\"";
    foreign_features_are_named: {"final_logit_softcapping": 30.0} => "`final_logit_softcapping` is 30.0: models with this feature are not supported";
    numbers_that_vanish_in_f32_are_refused: {"model_type": "granite", "attention_multiplier": 1e-50} => "expected a number from 0.000000001 to 1000000000";
    experts_of_all_layers_are_bounded: {"model_type": "qwen3_moe", "num_hidden_layers": 4096, "num_experts": 4096} => "`num_experts` is 4096, on 4096 layers: more than 131072 in all";
    layers_without_experts_are_numbers: {"model_type": "qwen3_moe", "mlp_only_layers": ["0"]} => "`mlp_only_layers` is \"0\"; expected numbers of layers";
    queries_of_other_families_do_not_grow: {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}} => "`rope_parameters.llama_4_scaling_beta` is 0.1: queries of llama models do not grow";
    a_base_that_grows_is_one_familys: {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}} => "`rope_scaling.type` is \"dynamic\"";
    norms_of_queries_are_not_left_out: {"model_type": "hunyuan_v1_dense", "use_qk_norm": false} => "`use_qk_norm` is false";
    whether_norms_are_left_out_is_a_flag: {"model_type": "hunyuan_v1_dense", "use_qk_norm": "no"} => "`use_qk_norm` is \"no\"; expected true or false";
    a_longrope_needs_a_context_to_stretch: {"model_type": "phi3", "original_max_position_embeddings": 1, "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, 1.0]}} => "`original_max_position_embeddings` is 1: no text is shorter";
    parameters_of_a_kind_of_layer_are_named_with_it: {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 0.0}, "sliding_attention": {"rope_type": "default"}}} => "`rope_parameters.full_attention.factor` is 0.0";
    attention_sinks_are_not_supported: {"attention_sinks": true} => "`attention_sinks` is true";
    layer_types_must_have_one_entry_per_layer: {"model_type": "qwen3", "layer_types": ["full_attention"]} => "`layer_types` has 1 entries for num_hidden_layers 3";
    an_unknown_layer_type_is_refused: {"model_type": "qwen3", "layer_types": ["full_attention", "linear_attention", "full_attention"]} => "`layer_types[1]` is \"linear_attention\"";
    a_sliding_layer_needs_a_window: {"model_type": "qwen3", "layer_types": ["sliding_attention", "full_attention", "full_attention"]} => "`layer_types[0]` is \"sliding_attention\" but use_sliding_window or sliding_window is off";
    a_flag_must_be_true_or_false: {"tie_word_embeddings": 1} => "`tie_word_embeddings` is 1; expected true or false";
    an_unknown_type_is_refused: {"torch_dtype": "float8_e4m3fn"} => "`torch_dtype` is \"float8_e4m3fn\"; supported are";
    a_negative_token_is_refused: {"bos_token_id": -5} => "`bos_token_id` is -5; expected a token id or null";
}

#[test]
fn broken_json_is_placed() {
    let got =
        Config::from_json("{\n  \"a\": 1,\n  b\n}", Path::new("m/config.json")).unwrap_err().to_string();
    assert_eq!(got, "m/config.json:3:3: key must be a string");
    let got = Config::from_json("[]", Path::new("m/config.json")).unwrap_err().to_string();
    assert_eq!(got, "m/config.json: is not a JSON object; a model's config.json is one");
}

#[test]
fn a_folder_without_config_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let got = Config::load(folder.path()).unwrap_err().to_string();
    assert!(got.contains("cannot read") && got.contains("config.json"), "{got}");
}

#[test]
fn shapes_have_the_parameters_their_makers_publish() {
    let published = [
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-33b", 32_528_943_616),
        ("llama-65b", 65_285_660_672),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("mistral-7b", 7_248_023_552),
        ("mixtral-8x7b", 46_702_792_704),
        ("gemma-2-2b", 2_614_341_888),
        ("gemma-3-1b", 999_885_952),
        ("phi-4-mini", 3_836_021_760),
        ("smollm3-3b", 3_075_098_624),
        ("granite-3-2b", 2_533_531_648),
        ("olmo-2-1b", 1_484_916_736),
        ("pythia-1b", 1_011_781_632),
        ("gpt2", 124_439_808),
        ("gpt-3-175b", 174_604_259_328),
    ];
    for (name, parameters) in published {
        assert_eq!(Config::named(name).unwrap().parameter_count(), parameters, "{name}");
        assert_eq!(Shape::named(name).unwrap().parameters(), parameters, "{name}");
    }
    assert!(shapes::names().all(|name| Shape::named(name).is_ok()));
}
