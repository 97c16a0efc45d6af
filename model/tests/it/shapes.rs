//! The arithmetic of sizes, checked against numbers that papers and model cards give.

use model::Config;
use model::adapter::peft::{PeftConfig, Selection};
use model::adapter::targets;
use model::shapes::{self, GPT3, ModuleKind, ModuleShape, Shape, lora_parameters};

#[test]
fn a_layer_of_200_by_200_trains_800_instead_of_40_000_at_rank_2() {
    let layer = ModuleShape { path: "w".into(), kind: ModuleKind::Linear, rows: 200, cols: 200, bias: 0 };
    assert_eq!((layer.parameters(), layer.lora_parameters(2)), (40_000, 800));
    assert_eq!(lora_parameters(200, 200, 2), 800);
}

#[test]
fn gpt_3_at_rank_1_on_queries_and_values_trains_4_7_million_of_175_billion() {
    let shape = Shape::named(GPT3).unwrap();
    assert_eq!(shape.parameters(), 174_604_259_328);
    let settings = PeftConfig {
        r: 1,
        target_modules: Some(Selection::List(vec!["q_proj".into(), "v_proj".into()])),
        ..PeftConfig::default()
    };
    let targets = targets::resolve_shape(&settings, &shape).unwrap();
    let trained: u64 = targets.iter().map(|&(module, r)| shape.modules[module].lora_parameters(r)).sum();
    assert_eq!((targets.len(), trained), (2 * 96, 4_718_592));
}

#[test]
fn shapes_known_by_name_have_the_sizes_that_their_makers_publish() {
    for (name, parameters) in [
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-65b", 65_285_660_672),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen3-0.6b", 596_049_920),
        ("mistral-7b", 7_248_023_552),
    ] {
        assert_eq!(Config::named(name).unwrap().parameter_count(), parameters, "{name}");
        assert_eq!(Shape::named(name).unwrap().parameters(), parameters, "{name}");
    }
}

#[test]
fn every_name_is_known_and_an_unknown_one_names_the_nearest() {
    for name in shapes::names() {
        assert!(Shape::named(name).is_ok(), "{name}");
        assert_eq!(Config::named(name).is_ok(), name != GPT3, "{name}");
    }
    let error = Config::named("llama-3.1-8B").unwrap_err().to_string();
    assert!(error.contains("the nearest is `llama-3.1-8b`"), "{error}");
    let error = Config::named(GPT3).unwrap_err().to_string();
    assert!(error.contains("`plan` only"), "{error}");
}

#[test]
fn groups_hold_every_module_once_and_equal_sizes_together() {
    let shape = Shape::named("qwen3-0.6b").unwrap();
    let groups = shape.groups();
    let mut indices: Vec<usize> = groups.iter().flat_map(|(_, indices)| indices.clone()).collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..shape.modules.len()).collect::<Vec<_>>());
    for (name, indices) in &groups {
        let sizes = indices.iter().map(|&i| (shape.modules[i].rows, shape.modules[i].cols));
        assert!(sizes.clone().all(|size| Some(size) == sizes.clone().next()), "{name}");
    }
    let (_, queries) = groups.iter().find(|(name, _)| name == "self_attn.q_proj").unwrap();
    assert_eq!(queries.len(), 28);
}

#[test]
fn the_stand_in_of_gpt_3_has_its_widths() {
    let (config, shape) = (Shape::gpt3_stand_in(), Shape::named(GPT3).unwrap());
    let linear = |name: &str| shape.modules.iter().find(|m| m.name_in_block() == name).unwrap();
    assert_eq!(
        (config.hidden_size, config.q_width()),
        (linear("self_attn.q_proj").cols, linear("self_attn.q_proj").rows)
    );
    assert_eq!(config.intermediate_size, linear("mlp.up_proj").rows);
    assert_eq!(config.vocab_size, shape.modules[0].rows);
}
