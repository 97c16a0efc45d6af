//! The families that depart from Llama: the same numbers as transformers and PEFT, over every border that a
//! family draws.

use compute::quant::Format;
use compute::{Device, Precision};
use model::memory::{Allocator, Component};
use model::quantize::quantize_folder;
use model::{
    Activations, Adapter, BaseWeight, Batch, Cache, Checkpoint, Decoder, Extent, Layout, ModuleId,
    Parameters, Purpose,
};

use crate::common::{
    Tensors, all_logits, check_merged, fixture, largest_difference, load, off_transformers, opened,
    relative_difference, training_buffers,
};

/// The fixtures of `make_families.py`.
pub(crate) const ALL: [&str; 22] = [
    "gemma3",
    "gemma3-wrapped",
    "gemma2",
    "phi3",
    "phi3-longrope",
    "gpt2",
    "gpt2-scaled",
    "smollm3",
    "granite",
    "olmo2",
    "olmo3",
    "ministral3",
    "mistral3-wrapped",
    "glm4",
    "gpt-neox",
    "gpt-neox-serial",
    "starcoder2",
    "hunyuan",
    "ernie4-5",
    "qwen3-moe",
    "qwen3-moe-step",
    "mixtral",
];

#[test]
fn logits_and_residual_streams_are_those_of_transformers() {
    let wrong: Vec<String> = ALL.into_iter().flat_map(|case| off_transformers(case, &load(case))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn losses_and_gradients_of_adapters_are_those_of_peft() {
    let mut wrong = Vec::new();
    for case in ALL.into_iter().filter(|case| fixture(case).join("adapter").exists()) {
        let decoder = load(case);
        let (adapter, _) =
            Adapter::load(&fixture(case).join("adapter"), &decoder.config, None, &Device::cpu(2)).unwrap();
        let expected = Tensors::read(&fixture(case).join("expected_adapter.safetensors"));
        let mut batch = Batch::new();
        for i in 0..2 {
            batch.push(&expected.ids(&format!("input_ids.{i}")), &expected.labels(&format!("labels.{i}")));
        }
        let mut gradients =
            Parameters::zeros(&adapter.layout, Component::Gradients, &mut Allocator::real(&Device::cpu(2)));
        let mut buffers = training_buffers(&decoder, &adapter.layout, 0.0, batch.tokens());
        let mut losses = vec![0.0; batch.targets.len()];
        let scale = 1.0 / losses.len() as f32;
        let run = decoder.run(Some(&adapter));
        let weights = vec![scale; losses.len()];
        decoder.forward_to_train(&run, &batch, &mut buffers).unwrap();
        decoder.backward(&run, &batch, &weights, &mut buffers, &mut losses, &mut gradients).unwrap();
        let loss = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
        let expected_loss = expected.get("loss")[0];
        if (loss - expected_loss).abs() >= 1e-5 * expected_loss {
            wrong.push(format!("{case}: loss {loss}, not {expected_loss}"));
        }
        let known = expected.names().filter(|n| n.starts_with("grad.")).count();
        assert_eq!(known, adapter.layout.tensors().len(), "{case}: number of trained tensors");
        for tensor in adapter.layout.tensors() {
            let got = gradients.tensor(tensor);
            let difference = relative_difference(got.f32(), expected.get(&format!("grad.{}", tensor.name)));
            if difference >= 2e-5 {
                wrong.push(format!("{case}: gradient of {} is off by {difference}", tensor.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn packed_sequences_have_the_logits_of_separate_ones() {
    for case in ALL {
        let decoder = load(case);
        let run = decoder.run(None);
        let ids = |n: u32, from: u32| (0..n).map(|i| (from + 7 * i) % 97 + 3).collect::<Vec<_>>();
        let sequences = [ids(3, 5), ids(40, 11), ids(13, 2), ids(1, 90), ids(33, 50)];
        let mut buffers = training_buffers(&decoder, &Layout::default(), 0.0, 128);
        let mut packed = Batch::new();
        let starts: Vec<usize> = sequences.iter().map(|ids| packed.push_unlabelled(ids)).collect();
        let together = all_logits(&decoder, &run, &packed, &mut buffers);
        for (ids, start) in sequences.iter().zip(starts) {
            let mut alone = Batch::new();
            alone.push_unlabelled(ids);
            let alone = all_logits(&decoder, &run, &alone, &mut buffers);
            let expected: Vec<f64> = alone.to_vec().into_iter().map(f64::from).collect();
            let got = together.as_ref().rows_range(start..start + ids.len());
            let difference = largest_difference(got.f32(), &expected);
            assert!(difference < 5e-5, "{case}: {difference}");
        }
    }
}

#[test]
fn merged_models_compute_what_base_and_adapter_compute_and_keep_the_other_parts() {
    for case in ALL.into_iter().filter(|case| fixture(case).join("adapter").exists()) {
        let base = load(case);
        let (adapter, _) =
            Adapter::load(&fixture(case).join("adapter"), &base.config, None, &Device::cpu(2)).unwrap();
        let folder = check_merged(case, &base, &adapter);
        let (from, to) =
            (Checkpoint::open(&fixture(case)).unwrap(), Checkpoint::open(folder.path()).unwrap());
        for name in from.names().filter(|name| name.contains("vision") || name.contains("projector")) {
            let size = from.tensor(name).unwrap().size_bytes() as usize;
            let [mut before, mut after] = [vec![0; size], vec![1; size]];
            from.read_bytes(name, 0, &mut before).unwrap();
            to.read_bytes(name, 0, &mut after).unwrap();
            assert_eq!(before, after, "{case}: {name}");
        }
        let buffers = |name: &&str| name.ends_with(".attn.bias") || name.ends_with("masked_bias");
        let computed =
            |name: &&str| buffers(name) || name.ends_with("attention.bias") || name.ends_with("inv_freq");
        let kept: Vec<&str> = from.names().filter(|name| !computed(name)).collect();
        assert_eq!(kept, to.names().collect::<Vec<_>>(), "{case}: names");
    }
}

#[test]
fn folders_in_four_bits_load_as_what_is_quantized_on_loading() {
    for case in ALL {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::cpu(2);
        quantize_folder(&opened(case), folder.path(), &device, Format::QLORA, None, &mut |_| {}).unwrap();
        let stored = Decoder::load(folder.path(), &device, Precision::F32, None).unwrap();
        let made = Decoder::load(&fixture(case), &device, Precision::F32, Some(Format::QLORA)).unwrap();
        for module in stored.config.modules() {
            let expert = matches!(module.id, ModuleId::Expert { .. });
            let [a, b] = [&stored, &made].map(|decoder| decoder.base_weight(module.id));
            let in_four_bits = |weight: &BaseWeight<'_>| matches!(weight, BaseWeight::Quantized(_));
            assert_eq!(
                in_four_bits(&a),
                in_four_bits(&b) && !expert,
                "{case}: {}",
                stored.config.path(module.id)
            );
        }
        if stored.config.experts.is_none() {
            assert_eq!(stored.probe(None).to_vec(), made.probe(None).to_vec(), "{case}");
        }
    }
}

/// A sequence in a cache, chunk by chunk and token by token, over windows, the short and long frequencies and
/// every border.
#[test]
fn cached_sequences_have_the_logits_of_whole_ones() {
    for case in ALL {
        let decoder = load(case);
        let run = decoder.run(None);
        let length = 40.min(decoder.config.max_position_embeddings);
        let ids: Vec<u32> = (0..length as u32).map(|i| (5 + 7 * i) % 97 + 3).collect();
        let mut whole = Batch::new();
        whole.push_unlabelled(&ids);
        let mut buffers = training_buffers(&decoder, &Layout::default(), 0.0, length);
        let want = all_logits(&decoder, &run, &whole, &mut buffers);
        let mut allocator = Allocator::real(&Device::cpu(2));
        let extent =
            Extent { tokens: 17, positions: length, purpose: Purpose::Infer, precision: Precision::F32 };
        let mut buffers = Activations::new(&decoder.config, &Layout::default(), 0.0, extent, &mut allocator);
        let mut cache = Cache::new(&decoder.config, Precision::F32, length, &mut allocator);
        let mut done = 0;
        for chunk in [17, 1, 1, 6, 1, 13, 1] {
            let chunk = chunk.min(length - done);
            let mut batch = Batch::new();
            batch.push_cached(&ids[done..done + chunk], done, 0..length);
            decoder.forward(&run, &batch, Some(&mut cache), &mut buffers);
            let last = decoder.logits(&run, &[chunk - 1], &mut buffers);
            done += chunk;
            let expected: Vec<f64> =
                want.as_ref().rows_range(done - 1..done).f32().iter().map(|v| f64::from(*v)).collect();
            let difference = largest_difference(last.f32(), &expected);
            assert!(difference < 5e-5, "{case}: after {done} tokens: {difference}");
        }
    }
}
