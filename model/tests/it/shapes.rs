//! The arithmetic of sizes, checked against numbers that papers and model cards give.

use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::shapes::{self, ModuleKind, ModuleShape, Shape, lora_parameters};
use model::{Config, Layout};

#[test]
fn a_layer_of_200_by_200_trains_800_instead_of_40_000_at_rank_2() {
    let layer = ModuleShape { path: "w".into(), kind: ModuleKind::Linear, rows: 200, cols: 200, bias: 0 };
    assert_eq!((layer.parameters(), layer.lora_parameters(2)), (40_000, 800));
    assert_eq!(lora_parameters(200, 200, 2), 800);
}

#[test]
fn gpt_3_at_rank_1_on_queries_and_values_trains_4_7_million_of_175_billion() {
    let config = Config::named("gpt-3-175b").unwrap();
    assert_eq!(config.parameter_count(), 174_604_259_328);
    let settings = PeftConfig {
        r: 1,
        target_modules: Some(Selection::List(vec!["q_proj".into(), "v_proj".into()])),
        ..PeftConfig::default()
    };
    let resolution = targets::resolve(&settings, &config).unwrap();
    let trained = Layout::of_adapter(&resolution, &config).len();
    assert_eq!((resolution.targets.len(), trained), (2 * 96, 4_718_592));
    // In GPT-2's own form, where queries, keys and values are one layer, an update of it has as many.
    assert_eq!(96 * lora_parameters(3 * 12_288, 12_288, 1), 4_718_592);
}

#[test]
fn every_name_is_known_and_an_unknown_one_names_the_nearest() {
    assert!(shapes::names().all(|name| Shape::named(name).is_ok()));
    let error = Config::named("llama-3.1-8B").unwrap_err().to_string();
    assert!(
        error.starts_with("`shape` \"llama-3.1-8B\" is not known; the nearest is `llama-3.1-8b`"),
        "{error}"
    );
}

#[test]
fn a_token_meets_the_experts_that_are_chosen_for_it() {
    let active = |name: &str| Config::named(name).unwrap().active_parameter_count();
    assert_eq!(active("qwen3-30b-a3b"), 3_353_032_704); // "A3B"
    assert_eq!(active("mixtral-8x7b"), 12_879_925_248); // "12.9 billion"
    assert_eq!(active("gpt2"), 124_439_808);
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
fn experts_are_one_row_whatever_their_number() {
    let shape = Shape::named("qwen3-30b-a3b").unwrap();
    let groups = shape.groups();
    let (_, experts) = groups.iter().find(|(name, _)| name == "mlp.experts.*.up_proj").unwrap();
    assert_eq!((experts.len(), groups.len()), (48 * 128, 15));
}
