//! Models in GGUF files that llama.cpp quantized: their weights as they are, and what is trained over them.

use std::path::PathBuf;

use compute::quant::{BlockType, Format};
use compute::{DType, Device, Matrix, Precision};
use model::adapter::merge::Difference;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Pooling, QaLora, Selection};
use model::gguf::{Gguf, TensorType};
use model::memory::{Allocator, Component};
use model::{
    Activations, Adapter, BaseWeight, Batch, Checkpointing, Decoder, Extent, Layout, ModelFolder, Parameters,
    Purpose, StoredDType,
};

use crate::common::fixture;

/// The files, and the types that their linear layers and embeddings have.
const FILES: [(&str, &[BlockType]); 4] = [
    ("llama-q4_k_m", &[BlockType::Q4K, BlockType::Q6K]),
    ("qwen2-q5_k_m", &[BlockType::Q5K, BlockType::Q6K]),
    ("gemma3-q4_0", &[BlockType::Q4_0, BlockType::Q6K]),
    ("qwen3-moe-q8_0", &[BlockType::Q8_0]),
];

fn file(name: &str) -> PathBuf {
    fixture("gguf").join(format!("quantized-{name}.gguf"))
}

fn load(name: &str, precision: Precision) -> Decoder {
    Decoder::load(&file(name), &Device::cpu(2), precision, None).unwrap()
}

/// The same model with its weights' values in place of codes, as a folder.
fn dequantized(name: &str) -> (tempfile::TempDir, Decoder) {
    let (folder, decoder) = (tempfile::tempdir().unwrap(), load(name, Precision::F32));
    let nothing = Adapter::zeros(Layout::default(), 0.0, &decoder.device);
    let base = ModelFolder::open(&file(name)).unwrap();
    decoder.write_model_files(&nothing, &base, folder.path(), folder.path(), StoredDType::F32).unwrap();
    let dense = Decoder::load(folder.path(), &Device::cpu(2), Precision::F32, None).unwrap();
    (folder, dense)
}

#[test]
fn weights_keep_the_types_that_the_file_has() {
    for (name, expected) in FILES {
        let decoder = load(name, Precision::Bf16);
        let (mut kinds, mut dense) = (Vec::new(), 0);
        for parameter in decoder.config.parameters().iter().filter(|p| !p.bias && !p.is_vector()) {
            match decoder.base_weight(parameter.module) {
                BaseWeight::Quantized(weight) => kinds.push(weight.blocks().unwrap().kind()),
                BaseWeight::Dense(_) => dense += 1,
            }
        }
        kinds.sort_unstable();
        kinds.dedup();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(kinds, expected, "{name}");
        // The choice of experts is never quantized.
        assert_eq!(dense, usize::from(name.contains("moe")), "{name}");
        let plan = ModelFolder::open(&file(name)).unwrap();
        let stored = plan.stored().unwrap();
        let planned = Decoder::base_memory(&plan.config, stored.as_ref(), Precision::Bf16, None).total();
        let bytes = |p: &model::Parameter| match p.bias || p.is_vector() {
            true => 4 * p.cols as u64,
            false => decoder.base_weight(p.module).size_bytes() as u64,
        };
        assert_eq!(planned, decoder.config.parameters().iter().map(bytes).sum::<u64>(), "{name}");
    }
}

/// Rows of queries and keys stand in another order in the file, gate and up of experts in one tensor.
#[test]
fn values_are_those_of_the_file_in_a_folders_order() {
    for (name, _) in FILES {
        let (gguf, decoder) = (Gguf::open(&file(name)).unwrap(), load(name, Precision::F32));
        let bytes = std::fs::read(file(name)).unwrap();
        let mut compared = 0;
        for parameter in decoder.config.parameters().iter().filter(|p| !p.bias && !p.is_vector()) {
            let place = decoder.config.gguf_place(parameter).unwrap();
            let tensor = &gguf.tensors()[&place.tensor];
            let Some(kind) = tensor.kind.blocks() else { continue };
            let mut values = Matrix::zeros(parameter.rows, parameter.cols, DType::F32);
            decoder.base_weight(parameter.module).copy_to(&decoder.device, values.as_mut());
            let row_bytes = kind.size_bytes(parameter.cols);
            for row in 0..parameter.rows {
                let at = tensor.start as usize + (place.first_row + place.order.place(row)) * row_bytes;
                let mut blocks = compute::quant::Blocks::zeros(kind, parameter.cols);
                blocks.bytes_mut().copy_from_slice(&bytes[at..at + row_bytes]);
                let mut expected = vec![0.0; parameter.cols];
                blocks.values(0, &mut expected);
                assert_eq!(
                    values.as_ref().rows_range(row..row + 1).f32(),
                    expected,
                    "{name}, {}",
                    place.tensor
                );
            }
            compared += 1;
        }
        assert!(compared >= 7, "{name}: {compared}");
    }
}

#[test]
fn logits_are_those_of_the_values() {
    for (name, _) in FILES {
        let (_folder, dense) = dequantized(name);
        let difference = Difference::between(&dense.probe(None), &load(name, Precision::F32).probe(None));
        assert!(difference.largest < 1e-4, "{name}: {difference:?}");
        let (exact, rounded) = (dense.probe(None), load(name, Precision::Bf16).probe(None));
        let differences = (0..exact.rows()).map(|row| {
            let of = |logits: &Matrix| {
                let mut one = Matrix::zeros(1, logits.cols(), DType::F32);
                one.as_mut().f32().copy_from_slice(logits.as_ref().rows_range(row..row + 1).f32());
                one
            };
            Difference::between(&of(&exact), &of(&rounded)).relative
        });
        let mut differences: Vec<f64> = differences.collect();
        differences.sort_by(f64::total_cmp);
        // Rounding may send a token to other experts where two of them are about as good: that is another answer
        // for it and for those after it that look at it, on some instruction sets and not on others.
        let compared = if name.contains("moe") { differences.len() * 3 / 4 } else { differences.len() };
        assert!(differences[..compared].iter().all(|&row| row < 3e-2), "{name}: {differences:?}");
    }
}

fn adapter(decoder: &Decoder, settings: &PeftConfig) -> Adapter {
    let resolution = targets::resolve(settings, &decoder.config).unwrap();
    let layout = Layout::of_adapter(&resolution, &decoder.config);
    let mut adapter = Adapter::zeros(layout, 0.0, &decoder.device);
    adapter.initialize(model::adapter::init::Init::Default, 1, decoder);
    let tensors = adapter.layout.tensors().to_vec();
    for tensor in tensors.iter().filter(|tensor| tensor.name.contains("lora_B")) {
        for (i, value) in adapter.parameters.tensor_mut(tensor).f32().iter_mut().enumerate() {
            *value = 0.1 * (compute::random::uniform(3, i as u64) as f32 - 0.5);
        }
    }
    adapter
}

/// Ten steps of plain gradient descent: the losses.
fn losses(decoder: &Decoder, settings: &PeftConfig) -> Vec<f64> {
    let mut adapter = adapter(decoder, settings);
    let mut batch = Batch::new();
    for s in 0..3 {
        let ids: Vec<u32> = (0..12).map(|i| compute::random::below(s, i, 64) as u32).collect();
        batch.push(&ids, &ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
        batch.examples.push(s as usize);
    }
    let purpose = Purpose::Train(Checkpointing::None);
    let extent = Extent { tokens: 40, positions: 40, purpose, precision: decoder.precision };
    let mut work = Activations::new(
        &decoder.config,
        &adapter.layout,
        0.0,
        extent,
        &mut Allocator::real(&decoder.device),
    );
    let step = |adapter: &mut Adapter| {
        let mut allocator = Allocator::real(&decoder.device);
        let mut gradients = Parameters::zeros(&adapter.layout, Component::Gradients, &mut allocator);
        let run = decoder.run(Some(adapter));
        decoder.forward_to_train(&run, &batch, &mut work).unwrap();
        let mut losses = vec![0.0; batch.targets.len()];
        let weights = vec![1.0 / losses.len() as f32; losses.len()];
        decoder.backward(&run, &batch, &weights, &mut work, &mut losses, &mut gradients).unwrap();
        let values = adapter.parameters.values_mut().f32();
        values.iter_mut().zip(gradients.values().f32()).for_each(|(value, g)| *value -= 0.05 * g);
        losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64
    };
    (0..10)
        .map({
            let mut step = step;
            move |_| step(&mut adapter)
        })
        .collect()
}

#[test]
fn ten_steps_are_those_over_the_values() {
    let qalora = Some(QaLora { group: 32, pooling: Pooling::Sum });
    let names = ["q_proj", "k_proj", "o_proj"].map(str::to_owned).to_vec();
    let lora = PeftConfig { target_modules: Some(Selection::List(names)), r: 4, ..PeftConfig::default() };
    for settings in [
        lora.clone(),
        PeftConfig { use_dora: true, ..lora.clone() },
        PeftConfig { qalora, lora_alpha: 1.0, ..lora },
    ] {
        for (name, _) in FILES {
            let (_folder, dense) = dequantized(name);
            let (got, want) = (losses(&load(name, Precision::F32), &settings), losses(&dense, &settings));
            assert!(want[9] < want[0] - 0.01, "{name} learns: {want:?}");
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 2e-5, "{name}: {got}, not {want}");
            }
        }
    }
}

/// Written again in the type that it has, a file's blocks are its own; in others they are rounded.
#[test]
fn an_export_in_the_same_type_has_the_same_bytes() {
    let to = tempfile::tempdir().unwrap();
    for (name, kind) in [("qwen3-moe-q8_0", TensorType::Q8_0), ("gemma3-q4_0", TensorType::Q4_0)] {
        let (from, path) = (file(name), to.path().join(name));
        let decoder = load(name, Precision::F32);
        decoder.write_gguf(None, &from, Vec::new(), kind, &path).unwrap();
        let (before, after) = (Gguf::open(&from).unwrap(), Gguf::open(&path).unwrap());
        let (from, to) = (std::fs::read(&from).unwrap(), std::fs::read(&path).unwrap());
        let mut same = 0;
        for (tensor, info) in after.tensors().iter().filter(|(_, info)| info.kind == kind) {
            let other = &before.tensors()[tensor];
            if other.kind != kind {
                continue;
            }
            let bytes =
                |file: &[u8], start: u64| file[start as usize..(start + info.size_bytes) as usize].to_vec();
            assert!(bytes(&from, other.start) == bytes(&to, info.start), "{name}: {tensor}");
            same += 1;
        }
        assert!(same >= 7, "{name}: {same}");
    }
}

#[test]
fn what_a_file_lacks_or_has_too_much_of_is_told() {
    let bytes = std::fs::read(file("gemma3-q4_0")).unwrap();
    let to = tempfile::tempdir().unwrap();
    let path = to.path().join("model.gguf");
    let changed = |from: &str, into: &str| {
        assert_eq!(from.len(), into.len());
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("it is there");
        let mut changed = bytes.clone();
        changed[at..at + from.len()].copy_from_slice(into.as_bytes());
        std::fs::write(&path, changed).unwrap();
        ModelFolder::open(&path).unwrap_err().to_string()
    };
    let missing = changed("blk.0.ffn_up.weight", "blk.0.ffn_xx.weight");
    assert!(missing.contains("ffn_up.weight") && missing.contains("missing"), "{missing}");
    let sizes = changed("gemma3.feed_forward_length", "gemma3.feed_forward_lenght");
    assert!(sizes.contains("feed_forward"), "{sizes}");
    // The last block's scale is no number.
    let gguf = Gguf::open(&file("gemma3-q4_0")).unwrap();
    let tensor = &gguf.tensors()["blk.0.ffn_down.weight"];
    assert_eq!(tensor.kind.blocks(), Some(BlockType::Q4_0));
    let (mut damaged, at) = (bytes.clone(), (tensor.start + tensor.size_bytes) as usize - 18);
    damaged[at..at + 2].copy_from_slice(&0x7c00_u16.to_le_bytes());
    std::fs::write(&path, damaged).unwrap();
    let error = Decoder::load(&path, &Device::cpu(1), Precision::F32, None).unwrap_err().to_string();
    assert!(error.contains("no finite number in row 255, from column 224 on"), "{error}");
    // Nothing is quantized twice.
    let error = ModelFolder::open(&file("llama-q4_k_m")).unwrap().check_quantization(Some(Format::QLORA));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("q4_k") && error.contains("nf4"), "{error}");
}
