//! The table of names, there and back.

use model::{Config, ModuleId, NormPart, Part};

use crate::common::fixture;

#[test]
fn every_module_is_found_again_by_its_path() {
    for case in crate::families::ALL.into_iter().chain(["llama2", "qwen2", "qwen3"]) {
        let config = Config::load(&fixture(case)).unwrap();
        for module in config.modules() {
            assert_eq!(config.names.parse(&config.path(module.id)), Some(module.id), "{case}");
        }
    }
}

#[test]
fn names_are_those_of_transformers() {
    let config = Config::load(&fixture("qwen3")).unwrap();
    let q = ModuleId::Linear { layer: 12, part: Part::Q };
    assert_eq!(config.path(q), "model.layers.12.self_attn.q_proj");
    let down = ModuleId::Linear { layer: 0, part: Part::Down };
    assert_eq!(config.path(down), "model.layers.0.mlp.down_proj");
    let norm = ModuleId::Norm { layer: 3, part: NormPart::Q };
    assert_eq!(config.path(norm), "model.layers.3.self_attn.q_norm");
    assert_eq!(config.path(ModuleId::Head), "lm_head");
    assert_eq!(config.path(ModuleId::Embedding), "model.embed_tokens");
    assert_eq!(config.path(ModuleId::FinalNorm), "model.norm");
    assert_eq!(config.parameters()[0].name(), "model.embed_tokens.weight");
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
    let names = Config::load(&fixture("qwen3")).unwrap().names;
    for path in not {
        assert_eq!(names.parse(path), None, "{path:?}");
    }
}

#[test]
fn modules_come_in_the_order_a_token_meets_them() {
    let config = Config::load(&fixture("qwen3")).unwrap();
    let modules: Vec<ModuleId> = config.modules().iter().map(|m| m.id).collect();
    assert!(modules.is_sorted());
    let block: Vec<String> =
        modules.iter().filter(|m| m.layer() == Some(1)).map(|m| config.path(*m)).collect();
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
