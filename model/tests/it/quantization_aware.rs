//! Quantization-aware training: what is computed is what a quantized export computes, and gradients are those of
//! the weights before they are rounded.

use compute::quant::{BlockType, Format};
use compute::{Device, Precision};
use model::adapter::merge::Difference;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::memory::{Allocator, Component};
use model::{
    Activations, Adapter, Batch, Checkpointing, Decoder, Extent, Keeping, Layout, Parameters, Purpose,
    StoredDType,
};

use crate::common::random_llama;

const FORMATS: [Format; 4] = [
    Format::Blocks(BlockType::Q4_0),
    Format::Blocks(BlockType::Int4),
    Format::Blocks(BlockType::Q8_0),
    Format::QLORA,
];

/// An adapter of made up values on some of the linear layers.
fn adapter(decoder: &Decoder, format: Option<Format>) -> Adapter {
    let names = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"].map(str::to_owned);
    let target_modules = Some(Selection::List(names.to_vec()));
    let settings = PeftConfig { target_modules, r: 4, lora_alpha: 6.0, ..PeftConfig::default() };
    let resolution = targets::resolve(&settings, &decoder.config).unwrap();
    let mut layout = Layout::of_adapter(&resolution, &decoder.config);
    layout.quantization_aware = format;
    let mut adapter = Adapter::zeros(layout, 0.0, &decoder.device);
    for (i, value) in adapter.parameters.values_mut().f32().iter_mut().enumerate() {
        *value = 0.4 * (compute::random::uniform(3, i as u64) as f32 - 0.5);
    }
    adapter
}

/// Losses and gradients of a batch.
fn trained(decoder: &Decoder, adapter: &Adapter, checkpointing: Checkpointing) -> (Vec<f32>, Vec<f32>) {
    let mut batch = Batch::new();
    for s in 0..3 {
        let ids: Vec<u32> = (0..11).map(|i| compute::random::below(s, i, 96) as u32).collect();
        batch.push(&ids, &ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
        batch.examples.push(s as usize);
    }
    let purpose = Purpose::Train(checkpointing);
    let extent = Extent { tokens: 40, positions: 40, purpose, precision: decoder.precision };
    let mut allocator = Allocator::real(&decoder.device);
    let mut work = Activations::new(&decoder.config, &adapter.layout, 0.0, extent, &mut allocator);
    let mut gradients = Parameters::zeros(&adapter.layout, Component::Gradients, &mut allocator);
    let run = decoder.run(Some(adapter));
    decoder.forward_to_train(&run, &batch, &mut work).unwrap();
    let mut losses = vec![0.0; batch.targets.len()];
    let weights = vec![0.3; losses.len()];
    decoder.backward(&run, &batch, &weights, &mut work, &mut losses, &mut gradients).unwrap();
    (losses, gradients.values().f32().to_vec())
}

#[test]
fn the_logits_are_those_of_the_merged_model_quantized() {
    for (format, inner) in FORMATS.into_iter().flat_map(|format| [(format, 96), (format, 100)]) {
        let [plain, merged] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        let base = random_llama(plain.path(), inner);
        let decoder = Decoder::load(plain.path(), &Device::cpu(2), Precision::F32, None).unwrap();
        let adapter = adapter(&decoder, Some(format));
        decoder.write_model_files(&adapter, &base, plain.path(), merged.path(), StoredDType::F32).unwrap();
        let load = |format| {
            Decoder::load(merged.path(), &Device::cpu(2), Precision::F32, format).unwrap().probe(None)
        };
        let want = load(Some(format));
        let got = decoder.probe(Some(&adapter));
        let difference = Difference::between(&want, &got);
        assert!(difference.relative < 1e-6, "{format}, {inner}: {difference:?}");
        let unrounded = load(None);
        assert!(Difference::between(&unrounded, &got).relative > 1e-3, "{format}: rounding can be seen");
    }
}

/// With eight bits the weights differ by so little that gradients do, too; and they are all there.
#[test]
fn gradients_pass_the_rounding() {
    let plain = tempfile::tempdir().unwrap();
    random_llama(plain.path(), 96);
    let decoder = Decoder::load(plain.path(), &Device::cpu(2), Precision::F32, None).unwrap();
    let (_, want) = trained(&decoder, &adapter(&decoder, None), Checkpointing::None);
    let eight_bits = Some(Format::Blocks(BlockType::Q8_0));
    let (_, got) = trained(&decoder, &adapter(&decoder, eight_bits), Checkpointing::None);
    let (mut error, mut size) = (0.0, 0.0);
    for (got, want) in got.iter().zip(&want) {
        error += f64::from(got - want).powi(2);
        size += f64::from(*want).powi(2);
    }
    assert!(error > 0.0 && error < 0.06 * 0.06 * size, "{}", (error / size).sqrt());
}

#[test]
fn recomputed_layers_come_to_the_same_bytes() {
    let plain = tempfile::tempdir().unwrap();
    random_llama(plain.path(), 96);
    for precision in [Precision::F32, Precision::Bf16] {
        let decoder = Decoder::load(plain.path(), &Device::cpu(2), precision, None).unwrap();
        for format in FORMATS {
            let adapter = adapter(&decoder, Some(format));
            let kept = trained(&decoder, &adapter, Checkpointing::None);
            let again = trained(&decoder, &adapter, Checkpointing::Block(Keeping::default()));
            assert_eq!(kept, again, "{format}, {precision:?}");
        }
    }
}
