//! The same numbers as transformers and PEFT.

use model::memory::{Allocator, Component};
use model::{Adapter, BaseWeight, Batch, Layout, ModuleId, Parameters, Part};

use crate::common::{
    Tensors, all_logits, fixture, largest_difference, load, off_transformers, relative_difference,
    training_buffers,
};

const CASES: [&str; 15] = [
    "llama2",
    "llama3",
    "llama-bias",
    "llama-gelu",
    "llama-linear",
    "llama-sharded",
    "llama-tied-head",
    "llama-yarn-mscale",
    "llama-yarn-factor",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen2-yarn",
    "qwen3",
    "qwen3-layer-types",
];

/// The folders that transformers wrote with bitsandbytes: NF4 with and without double quantization, codes
/// stored as another type, and FP4 with biases and a layer that was left out.
const QUANTIZED: [&str; 4] = ["nf4", "nf4-plain", "nf4-bf16-storage", "fp4"];
/// A linear layer that all of these have in four bits.
const QUERIES: ModuleId = ModuleId::Linear { layer: 0, part: Part::Q };

#[test]
fn logits_and_residual_streams_are_those_of_transformers() {
    for case in CASES.into_iter().chain(QUANTIZED) {
        let decoder = load(case);
        let in_four_bits = matches!(decoder.base_weight(QUERIES), BaseWeight::Quantized(_));
        assert_eq!(in_four_bits, QUANTIZED.contains(&case), "{case}: whether the weights are in four bits");
        let wrong = off_transformers(case, &decoder);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn gradients_of_all_weights_are_those_of_transformers() {
    for case in ["llama-bias", "qwen3"] {
        let decoder = load(case);
        let expected = Tensors::read(&fixture(case).join("expected_full.safetensors"));
        let mut adapter = Adapter::zeros(Layout::full(&decoder.config), 0.0, &decoder.device);
        adapter.initialize(model::adapter::init::Init::Default, 0, &decoder);
        check_gradients(case, &decoder, &adapter, &expected);
    }
}

/// Loss and every gradient of the two labelled sequences of a fixture.
fn check_gradients(case: &str, decoder: &model::Decoder, adapter: &Adapter, expected: &Tensors) {
    let mut batch = Batch::new();
    for i in 0..2 {
        batch.push(&expected.ids(&format!("input_ids.{i}")), &expected.labels(&format!("labels.{i}")));
    }
    let mut gradients =
        Parameters::zeros(&adapter.layout, Component::Gradients, &mut Allocator::real(&decoder.device));
    let mut buffers = training_buffers(decoder, &adapter.layout, 0.0, batch.tokens());
    let mut losses = vec![0.0; batch.targets.len()];
    let scale = 1.0 / losses.len() as f32;
    let run = decoder.run(Some(adapter));
    let weights = vec![scale; losses.len()];
    decoder.forward_to_train(&run, &batch, &mut buffers).unwrap();
    decoder.backward(&run, &batch, &weights, &mut buffers, &mut losses, &mut gradients).unwrap();
    let loss = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
    let expected_loss = expected.get("loss")[0];
    assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{case}: loss {loss}, not {expected_loss}");
    let known = expected.names().filter(|n| n.starts_with("grad.")).count();
    assert_eq!(known, adapter.layout.tensors().len(), "{case}: number of trained tensors");
    for tensor in adapter.layout.tensors() {
        let got = gradients.tensor(tensor);
        let difference = relative_difference(got.f32(), expected.get(&format!("grad.{}", tensor.name)));
        assert!(difference < 1e-5, "{case}: gradient of {} is off by {difference}", tensor.name);
    }
}

#[test]
fn logits_and_gradients_of_adapters_are_those_of_peft() {
    let cases = [
        ("llama3", ""),
        ("mistral", ""),
        ("qwen2", ""),
        ("qwen3", ""),
        ("llama2", "-patterns"),
        ("llama2", "-regex"),
        ("llama2", "-lm_head"),
        ("llama2", "-dora"),
    ];
    for (case, name) in cases {
        let decoder = load(case);
        let what = format!("{case}/adapter{name}");
        let (adapter, _) = Adapter::load(&fixture(&what), &decoder.config, None, &decoder.device).unwrap();
        let expected = Tensors::read(&fixture(case).join(format!("expected_adapter{name}.safetensors")));
        let run = decoder.run(Some(&adapter));
        for i in 0..2 {
            let mut batch = Batch::new();
            batch.push_unlabelled(&expected.ids(&format!("input_ids.{i}")));
            let mut buffers = training_buffers(&decoder, &adapter.layout, 0.0, batch.tokens());
            let logits = all_logits(&decoder, &run, &batch, &mut buffers);
            let difference = largest_difference(logits.as_ref().f32(), expected.get(&format!("logits.{i}")));
            assert!(difference < 1e-4, "{what}: logits are off by {difference}");
        }
        check_gradients(&what, &decoder, &adapter, &expected);
    }
}

#[test]
fn packed_sequences_have_the_logits_of_separate_ones() {
    for case in ["mistral", "qwen3", "llama3"] {
        let decoder = load(case);
        let run = decoder.run(None);
        let sequences: [&[u32]; 4] =
            [&[5, 9, 33], &[7; 20], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], &[90]];
        let mut buffers = training_buffers(&decoder, &Layout::default(), 0.0, 64);
        let mut packed = Batch::new();
        let starts = sequences.map(|ids| packed.push_unlabelled(ids));
        let together = all_logits(&decoder, &run, &packed, &mut buffers);
        for (ids, start) in sequences.into_iter().zip(starts) {
            let mut alone = Batch::new();
            alone.push_unlabelled(ids);
            let alone = all_logits(&decoder, &run, &alone, &mut buffers);
            let expected: Vec<f64> = alone.to_vec().into_iter().map(f64::from).collect();
            let got = together.as_ref().rows_range(start..start + ids.len());
            let difference = largest_difference(got.f32(), &expected);
            assert!(difference < 2e-5, "{case}: {difference}");
        }
    }
}
