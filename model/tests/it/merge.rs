//! Merged equals unmerged: what an adapter computes beside its base, the merged folder computes alone.

use std::path::Path;

use compute::{Device, Matrix, Precision};
use model::adapter::merge::Difference;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::checkpoint::Staging;
use model::{Adapter, Batch, Checkpoint, Decoder, Layout, StoredDType};

use crate::common::{Tensors, all_logits, fixture, load, opened, relative_difference, training_buffers};

/// The folder of a base and an adapter merged and published, and what it loads as.
fn merged(base: &Decoder, adapter: &Adapter, case: &str, dtype: StoredDType, to: &Path) -> Decoder {
    let staging = Staging::folder(to).unwrap();
    base.write_model_files(adapter, &opened(case), &fixture(case), staging.path(), dtype).unwrap();
    staging.publish().unwrap();
    Decoder::load(to, &Device::cpu(2), Precision::F32, None).unwrap()
}

fn logits(decoder: &Decoder, adapter: Option<&Adapter>, ids: &[u32]) -> Matrix {
    let mut batch = Batch::new();
    batch.push_unlabelled(ids);
    let layout = adapter.map(|a| a.layout.clone()).unwrap_or_default();
    let mut buffers = training_buffers(decoder, &layout, 0.0, ids.len());
    all_logits(decoder, &decoder.run(adapter), &batch, &mut buffers)
}

/// An adapter with made up values, large enough to be seen.
fn made_up(base: &Decoder, config: PeftConfig) -> Adapter {
    let resolution = targets::resolve(&config, &base.config).unwrap();
    random_values(Layout::of_adapter(&resolution, &base.config))
}

fn random_values(layout: Layout) -> Adapter {
    let mut adapter = Adapter::zeros(layout, 0.0, &Device::cpu(2));
    for (i, value) in adapter.parameters.values_mut().f32().iter_mut().enumerate() {
        *value = compute::random::uniform(1, i as u64) as f32 - 0.5;
    }
    adapter
}

#[test]
fn a_merged_model_computes_what_peft_computes_with_the_adapter() {
    for (case, folder) in [
        ("llama2", "adapter-patterns"),
        ("llama2", "adapter-regex"),
        ("llama2", "adapter-lm_head"),
        ("llama2", "adapter-dora"),
        ("llama3", "adapter"),
        ("mistral", "adapter"),
        ("qwen2", "adapter"),
        ("qwen3", "adapter"),
    ] {
        let base = load(case);
        let (adapter, _) =
            Adapter::load(&fixture(case).join(folder), &base.config, None, &Device::cpu(2)).unwrap();
        let expected = Tensors::read(&fixture(case).join(format!("expected_{folder}.safetensors")));
        let output = tempfile::tempdir().unwrap();
        let merged = merged(&base, &adapter, case, StoredDType::F32, &output.path().join("m"));
        let got = logits(&merged, None, &expected.ids("input_ids.0"));
        let difference = relative_difference(got.as_ref().f32(), expected.get("logits.0"));
        assert!(difference < 1e-5, "{case}/{folder}: merged logits are off by {difference}");
    }
}

#[test]
fn a_tied_head_or_embedding_that_was_adapted_alone_is_untied() {
    let base = load("qwen3");
    assert!(base.config.tie_word_embeddings);
    let adapted = |names: &[&str], saved: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        made_up(
            &base,
            PeftConfig {
                r: 2,
                target_modules: Some(Selection::List(list(names))),
                modules_to_save: list(saved),
                ..PeftConfig::default()
            },
        )
    };
    for (adapter, tied) in [
        (adapted(&["q_proj"], &[]), true),
        (adapted(&["q_proj", "lm_head"], &[]), false),
        (adapted(&["q_proj"], &["lm_head"]), false),
        (adapted(&["q_proj"], &["embed_tokens"]), false),
        (adapted(&["q_proj"], &["embed_tokens", "lm_head", "norm"]), false),
        (random_values(Layout::full(&base.config)), true),
    ] {
        let output = tempfile::tempdir().unwrap();
        let merged = merged(&base, &adapter, "qwen3", StoredDType::F32, output.path());
        assert_eq!(merged.config.tie_word_embeddings, tied);
        let difference = Difference::between(&base.probe(Some(&adapter)), &merged.probe(None));
        assert!(difference.is_rounding(StoredDType::F32), "{difference:?}");
        let effect = Difference::between(&base.probe(None), &merged.probe(None));
        assert!(effect.relative > 1e-2, "the made up adapter can be seen: {effect:?}");
    }
}

#[test]
fn biases_are_merged_with_their_weights() {
    let base = load("llama-bias");
    let config = PeftConfig {
        target_modules: Some(Selection::List(vec!["q_proj".into()])),
        modules_to_save: vec!["o_proj".into(), "down_proj".into()],
        ..PeftConfig::default()
    };
    let adapter = made_up(&base, config);
    let output = tempfile::tempdir().unwrap();
    let merged = merged(&base, &adapter, "llama-bias", StoredDType::F32, output.path());
    let difference = Difference::between(&base.probe(Some(&adapter)), &merged.probe(None));
    assert!(difference.is_rounding(StoredDType::F32), "{difference:?}");
}

#[test]
fn what_is_not_adapted_keeps_its_bytes_and_sixteen_bits_round_within_the_bound() {
    let base = load("llama3");
    let (adapter, _) =
        Adapter::load(&fixture("llama3").join("adapter"), &base.config, None, &Device::cpu(2)).unwrap();
    for dtype in [StoredDType::Bf16, StoredDType::F16] {
        let output = tempfile::tempdir().unwrap();
        let merged = merged(&base, &adapter, "llama3", dtype, output.path());
        assert_eq!(Checkpoint::open(output.path()).unwrap().main_dtype(), Some(dtype));
        let difference = Difference::between(&base.probe(Some(&adapter)), &merged.probe(None));
        assert!(difference.is_rounding(dtype), "{difference:?}");
        let embedding = model::ModuleId::Embedding;
        let same = base.base_weight(embedding).dense().bf16().iter().map(|v| v.to_f32());
        match dtype {
            StoredDType::Bf16 => {
                assert_eq!(
                    merged.base_weight(embedding).dense().bf16(),
                    base.base_weight(embedding).dense().bf16()
                )
            }
            _ => assert!(same.eq(merged.base_weight(embedding).dense().f32().iter().copied())),
        }
    }
}

#[test]
fn a_difference_that_is_not_a_number_is_no_rounding() {
    let (one, nan) = (Matrix::from_f32(1, 2, &[1.0, 2.0]), Matrix::from_f32(1, 2, &[1.0, f32::NAN]));
    assert!(Difference::between(&one, &one).is_rounding(StoredDType::F32));
    assert!(!Difference::between(&one, &nan).is_rounding(StoredDType::Bf16));
}
