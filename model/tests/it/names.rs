//! The table of names, there and back.

use model::{Config, ModuleId, NormPart, Part};

use crate::common::fixture;

#[test]
fn every_module_is_found_again_by_its_path() {
    for case in ["llama2", "qwen2", "qwen3"] {
        let config = Config::load(&fixture(case)).unwrap();
        for module in config.modules() {
            assert_eq!(ModuleId::parse(&module.id.module_path()), Some(module.id));
        }
    }
}

#[test]
fn names_are_those_of_transformers() {
    let q = ModuleId::Linear { layer: 12, part: Part::Q };
    assert_eq!(q.module_path(), "model.layers.12.self_attn.q_proj");
    assert_eq!(q.bias_name(), "model.layers.12.self_attn.q_proj.bias");
    let down = ModuleId::Linear { layer: 0, part: Part::Down };
    assert_eq!(down.weight_name(), "model.layers.0.mlp.down_proj.weight");
    let norm = ModuleId::Norm { layer: 3, part: NormPart::Q };
    assert_eq!(norm.weight_name(), "model.layers.3.self_attn.q_norm.weight");
    assert_eq!(ModuleId::Head.weight_name(), "lm_head.weight");
    assert_eq!(ModuleId::Embedding.weight_name(), "model.embed_tokens.weight");
    assert_eq!(ModuleId::FinalNorm.weight_name(), "model.norm.weight");
}

#[test]
fn only_canonical_paths_are_modules() {
    let not = [
        "",
        "model",
        "model.layers.0",
        "model.layers.0.mlp",
        "model.layers.00.mlp.up_proj",
        "lm_head.weight",
        "model.layers.+1.mlp.up_proj",
        "model.layers.0.mlp.q_proj",
        "model.layers.99999999999999999999.mlp.up_proj",
    ];
    for path in not {
        assert_eq!(ModuleId::parse(path), None, "{path:?}");
    }
}

#[test]
fn modules_come_in_the_order_a_token_meets_them() {
    let config = Config::load(&fixture("qwen3")).unwrap();
    let modules: Vec<ModuleId> = config.modules().iter().map(|m| m.id).collect();
    assert!(modules.is_sorted());
    let block: Vec<String> =
        modules.iter().filter(|m| m.layer() == Some(1)).map(|m| m.module_path()).collect();
    let expected = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.q_norm",
        "self_attn.k_norm",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    assert_eq!(block, expected.map(|name| format!("model.layers.1.{name}")));
    assert_eq!(modules.first(), Some(&ModuleId::Embedding));
    assert_eq!(modules.last(), Some(&ModuleId::FinalNorm)); // tied: the head has no weight of its own
}
