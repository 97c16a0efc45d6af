//! What layers below everything that is trained give for an example, kept and taken up again.

use compute::ops::matmul::FEW_ROWS;
use compute::quant::{Code, CodebookFormat, Format};
use compute::{Device, Precision};
use model::memory::{Allocator, Component};
use model::{Batch, Config, Decoder, FrozenActivations, FrozenExtent, Layout};

use crate::common::training_buffers;

/// A random layer whose widths are no multiples of a tile's, wide enough that products are cut in every
/// direction.
fn random(precision: Precision, quantization: Option<Format>) -> Decoder {
    let text = r#"{"model_type": "qwen3", "vocab_size": 67, "hidden_size": 448, "intermediate_size": 1088,
        "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 40,
        "max_position_embeddings": 400, "rms_norm_eps": 1e-5, "initializer_range": 0.1, "tie_word_embeddings": true,
        "rope_theta": 10000.0, "hidden_act": "silu"}"#;
    let config = Config::from_json(text, "config.json".as_ref()).unwrap();
    Decoder::random(&config, &Device::cpu(2), precision, quantization, 7)
}

/// What the layer gives for some sequences in one batch; a number decides what is in a sequence.
fn together(decoder: &Decoder, sequences: &[(u32, usize)]) -> Vec<Vec<f32>> {
    let mut batch = Batch::new();
    for &(number, length) in sequences {
        let ids: Vec<u32> = (0..length as u32).map(|i| (i * 7 + number * (13 + i * i)) % 67).collect();
        batch.push_unlabelled(&ids);
    }
    let mut buffers = training_buffers(decoder, &Layout::default(), 0.0, batch.tokens());
    decoder.forward(&decoder.run(None), &batch, None, &mut buffers);
    let stream = decoder.residual(1, batch.tokens(), &buffers);
    batch.segments.iter().map(|segment| stream.rows_range(segment.queries.clone()).to_vec()).collect()
}

/// What is kept rests on this; smaller batches are left out of it.
#[test]
fn an_example_has_the_same_bytes_in_any_batch_of_more_than_a_few_tokens() {
    let nf4 = Some(Format::Codebook(CodebookFormat { code: Code::Nf4, block_size: 64, double_quant: true }));
    for precision in [Precision::F32, Precision::Bf16] {
        for quantization in [None, nf4] {
            let decoder = random(precision, quantization);
            for length in [1, 6, 130] {
                let batch = |company: &[(u32, usize)], at: usize| {
                    let mut all = company.to_vec();
                    all.insert(at, (1, length));
                    together(&decoder, &all).swap_remove(at)
                };
                let first = batch(&[(2, FEW_ROWS)], 0);
                let check = |company: &[(u32, usize)], at: usize| {
                    let same = first == batch(company, at);
                    assert!(same, "{precision:?}, {quantization:?}: {length} tokens with {company:?}");
                };
                check(&[(2, FEW_ROWS)], 1);
                check(&[(3, 1), (2, 11)], 1);
                match length {
                    // So many rows that products are cut along them too.
                    6 => check(&[(3, 300), (2, 215)], 2),
                    130 => check(&[], 0),
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn the_plan_is_what_is_made_and_no_more_than_the_budget() {
    let decoder = random(Precision::Bf16, None);
    let lengths = [5, 0, 40, 7, 1];
    let row = 448 * 2;
    for memory in [4096, 30_000, 53 * row - 1, 53 * row, u64::MAX] {
        let plan = |lengths: &[usize], mut allocator: Allocator| {
            let extent = FrozenExtent { lengths, memory };
            let layout = Layout::default();
            FrozenActivations::new(&decoder.config, &layout, Precision::Bf16, extent, &mut allocator)
                .unwrap();
            allocator.into_plan().bytes(Component::FrozenActivations)
        };
        let planned = plan(&lengths, Allocator::planning());
        assert_eq!(planned, plan(&lengths, Allocator::real(&Device::cpu(2))));
        assert_eq!(planned, plan(&[53], Allocator::planning()), "only the sum of the lengths counts");
        assert!(planned <= memory && (planned == 53 * row || 2 * planned > memory), "{planned} of {memory}");
        assert_eq!(planned == 53 * row, memory >= 53 * row);
    }
}

#[test]
fn there_is_nothing_to_keep_without_a_frozen_layer_or_an_example() {
    let decoder = random(Precision::F32, None);
    for (layout, lengths) in
        [(Layout::full(&decoder.config), &[3, 4][..]), (Layout::default(), &[0, 0]), (Layout::default(), &[])]
    {
        let extent = FrozenExtent { lengths, memory: u64::MAX };
        let mut allocator = Allocator::real(&Device::cpu(2));
        let frozen = FrozenActivations::new(&decoder.config, &layout, Precision::F32, extent, &mut allocator);
        assert!(frozen.is_none() && allocator.into_plan().total() == 0);
    }
}
