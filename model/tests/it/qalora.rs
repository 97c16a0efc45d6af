//! QA-LoRA and bases of integers: an update of sums of inputs is one whose A repeats its columns, and integers
//! take it up exactly.

use std::path::Path;

use compute::quant::{BlockType, Format};
use compute::{Device, Precision};
use model::adapter::merge::{Difference, Linear, Stored};
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Pooling, QaLora, Selection};
use model::memory::{Allocator, Component};
use model::quantize::quantize_folder;
use model::{
    Activations, Adapter, Batch, Checkpointing, Decoder, Extent, Layout, ModelFolder, Parameters, Purpose,
    Run, StoredDType,
};

use crate::common::{fixture, random_llama};

pub(crate) fn settings(names: &[&str], qalora: Option<QaLora>, dropout: f64) -> PeftConfig {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let target_modules = Some(Selection::List(names));
    PeftConfig {
        target_modules,
        r: 4,
        lora_alpha: 6.0,
        qalora,
        lora_dropout: dropout,
        ..PeftConfig::default()
    }
}

/// An adapter of made up values.
pub(crate) fn adapter(decoder: &Decoder, settings: &PeftConfig) -> Adapter {
    let resolution = targets::resolve(settings, &decoder.config).unwrap();
    let layout = Layout::of_adapter(&resolution, &decoder.config);
    let mut adapter = Adapter::zeros(layout, settings.lora_dropout as f32, &decoder.device);
    for (i, value) in adapter.parameters.values_mut().f32().iter_mut().enumerate() {
        *value = 0.2 * (compute::random::uniform(3, i as u64) as f32 - 0.5);
    }
    adapter
}

/// LoRA whose A has the column of each group once for every input of it.
fn spread(decoder: &Decoder, of: &Adapter, names: &[&str], group: usize) -> Adapter {
    let mut spread = adapter(decoder, &settings(names, None, f64::from(of.dropout)));
    let (tensors, from) = (spread.layout.tensors().to_vec(), of.layout.tensors());
    for (to, from) in tensors.iter().zip(from) {
        let values = of.parameters.tensor(from).f32().to_vec();
        let values: Vec<f32> = match from.cols == to.cols {
            true => values,
            false => values.iter().flat_map(|&value| std::iter::repeat_n(value, group)).collect(),
        };
        spread.parameters.tensor_mut(to).f32().copy_from_slice(&values);
    }
    spread
}

fn batch(vocabulary: usize) -> Batch {
    let mut batch = Batch::new();
    for s in 0..3 {
        let ids: Vec<u32> = (0..9).map(|i| compute::random::below(s, i, vocabulary as u64) as u32).collect();
        batch.push(&ids, &ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
        batch.examples.push(s as usize);
    }
    batch
}

/// Losses and gradients.
fn trained(decoder: &Decoder, adapter: &Adapter) -> (Vec<f32>, Parameters) {
    let batch = batch(decoder.config.vocab_size);
    let purpose = Purpose::Train(Checkpointing::None);
    let extent = Extent { tokens: 40, positions: 40, purpose, precision: decoder.precision };
    let mut allocator = Allocator::real(&decoder.device);
    let mut work =
        Activations::new(&decoder.config, &adapter.layout, adapter.dropout, extent, &mut allocator);
    let mut gradients = Parameters::zeros(&adapter.layout, Component::Gradients, &mut allocator);
    let run = Run { dropout_key: Some(5), ..decoder.run(Some(adapter)) };
    decoder.forward_to_train(&run, &batch, &mut work).unwrap();
    let mut losses = vec![0.0; batch.targets.len()];
    let weights = vec![0.3; losses.len()];
    decoder.backward(&run, &batch, &weights, &mut work, &mut losses, &mut gradients).unwrap();
    (losses, gradients)
}

/// Llama 3 has inputs of 40 and 56, GPT-2 weights that stand the other way round.
#[test]
fn sums_of_inputs_are_an_a_with_its_columns_repeated() {
    for (case, names) in
        [("llama3", &["q_proj", "v_proj", "up_proj", "down_proj"][..]), ("gpt2", &["c_attn", "c_fc"])]
    {
        let decoder = Decoder::load(&fixture(case), &Device::cpu(2), Precision::F32, None).unwrap();
        for (group, dropout) in [(2, 0.0), (4, 0.0), (8, 0.3)] {
            let pooled =
                adapter(&decoder, &settings(names, Some(QaLora { group, pooling: Pooling::Sum }), dropout));
            let wide = spread(&decoder, &pooled, names, group);
            let (got, want) = (trained(&decoder, &pooled), trained(&decoder, &wide));
            let near = |a: f32, b: f32| (a - b).abs() <= 2e-5 * (1.0 + b.abs());
            for (a, b) in got.0.iter().zip(&want.0) {
                assert!(near(*a, *b), "{case}, groups of {group}: a loss of {a}, not {b}");
            }
            for (of, tensor) in pooled.layout.tensors().iter().zip(wide.layout.tensors()) {
                let (a, b) = (got.1.tensor(of).f32().to_vec(), want.1.tensor(tensor).f32().to_vec());
                let b: Vec<f32> = match a.len() == b.len() {
                    true => b,
                    false => b.chunks(group).map(|b| b.iter().sum()).collect(),
                };
                assert!(b.iter().any(|b| b.abs() > 1e-4), "{}: gradients to be seen", of.name);
                for (a, b) in a.iter().zip(&b) {
                    assert!(near(*a, *b), "{case}, groups of {group}, {}: {a}, not {b}", of.name);
                }
            }
        }
    }
}

#[test]
fn each_convention_is_a_factor_that_saving_keeps() {
    let decoder = Decoder::load(&fixture("llama3"), &Device::cpu(2), Precision::F32, None).unwrap();
    let scale_of = |settings: &PeftConfig| {
        let resolution = targets::resolve(settings, &decoder.config).unwrap();
        (resolution.targets.iter().map(|t| t.scale).collect::<Vec<_>>(), resolution)
    };
    for (pooling, factor) in [
        (Pooling::Sum, [1.0, 1.0]),
        (Pooling::Mean, [1.0 / 8.0, 1.0 / 8.0]),
        (Pooling::Peft, [40.0 / 64.0, 56.0 / 64.0]),
    ] {
        let settings = settings(&["q_proj", "down_proj"], Some(QaLora { group: 8, pooling }), 0.0);
        let (scales, resolution) = scale_of(&settings);
        for (i, scale) in scales.iter().enumerate() {
            let want = 1.5 * factor[i % 2];
            assert!((f64::from(*scale) - want).abs() < 1e-6, "{pooling:?}: {scale}, not {want}");
        }
        // Saved in PEFT's convention, and read to the same bits.
        let saved = settings.settled(&resolution, &decoder.config).to_json();
        assert!(
            saved.contains("\"use_qalora\": true") && saved.contains("\"qalora_group_size\": 8"),
            "{saved}"
        );
        let read = PeftConfig::from_json(&saved, Path::new("adapter_config.json")).unwrap();
        assert_eq!(read.qalora, Some(QaLora { group: 8, pooling: Pooling::Peft }));
        assert_eq!(scale_of(&read).0, scales);
    }
}

#[test]
fn what_qalora_cannot_be_is_refused() {
    let decoder = Decoder::load(&fixture("llama3"), &Device::cpu(2), Precision::F32, None).unwrap();
    let qalora = |group| Some(QaLora { group, pooling: Pooling::Sum });
    let error = |settings: PeftConfig| targets::resolve(&settings, &decoder.config).unwrap_err().to_string();
    let uneven = error(settings(&["q_proj"], qalora(32), 0.0));
    assert!(uneven.contains("whole groups of 32") && uneven.contains("has 40"), "{uneven}");
    let both = error(PeftConfig { use_dora: true, ..settings(&["q_proj"], qalora(8), 0.0) });
    assert!(both.contains("use_dora"), "{both}");
    let text = r#"{"peft_type": "LORA", "use_qalora": true, "qalora_pooling": "median"}"#;
    let unknown = PeftConfig::from_json(text, Path::new("adapter_config.json")).unwrap_err().to_string();
    assert!(unknown.contains("median") && unknown.contains("sum, mean and peft"), "{unknown}");
}

pub(crate) fn quantized(from: &ModelFolder, kind: BlockType, to: &Path) -> ModelFolder {
    let report = quantize_folder(from, to, &Device::cpu(2), Format::Blocks(kind), None, &mut |_| {}).unwrap();
    assert!(report.iter().all(|weight| weight.relative_error() < 0.6), "{report:?}");
    ModelFolder::open(to).unwrap()
}

#[test]
fn integers_in_a_folder_are_those_that_loading_makes() {
    let [plain, to] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let base = random_llama(plain.path(), 96);
    for kind in [BlockType::Int4, BlockType::Int3, BlockType::Int2] {
        let folder = to.path().join(kind.name());
        std::fs::create_dir(&folder).unwrap();
        let stored = quantized(&base, kind, &folder);
        let load = |folder: &ModelFolder, format| {
            let format = format as Option<Format>;
            Decoder::load(&folder.path, &Device::cpu(2), Precision::F32, format).unwrap().probe(None).to_vec()
        };
        let (read, made) = (load(&stored, None), load(&base, Some(Format::Blocks(kind))));
        assert_eq!(read, made, "{kind}");
        assert_ne!(made, load(&base, None), "{kind} can be seen");
        let plan = |folder: &ModelFolder, format| {
            Decoder::base_memory(&folder.config, folder.stored().unwrap().as_ref(), Precision::F32, format)
        };
        assert_eq!(plan(&stored, None).total(), plan(&base, Some(Format::Blocks(kind))).total(), "{kind}");
        let error = stored.check_quantization(Some(Format::QLORA)).unwrap_err().to_string();
        assert!(error.contains(kind.name()) && error.contains("nf4"), "{error}");
    }
}

/// Inputs that are not whole groups keep their values.
#[test]
fn layers_of_other_widths_stay_as_they_are() {
    let [plain, to] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let base = random_llama(plain.path(), 100);
    let report = quantize_folder(
        &base,
        to.path(),
        &Device::cpu(2),
        Format::Blocks(BlockType::Int4),
        None,
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(report.len(), 2 * 6);
    assert!(!report.iter().any(|weight| weight.name.contains("down_proj")));
    let read = Decoder::load(to.path(), &Device::cpu(2), Precision::F32, None).unwrap().probe(None).to_vec();
    let format = Some(Format::Blocks(BlockType::Int4));
    let made = Decoder::load(plain.path(), &Device::cpu(2), Precision::F32, format).unwrap();
    assert_eq!(read, made.probe(None).to_vec());
}

#[test]
fn merging_changes_minima_alone_and_gives_the_logits_of_base_and_adapter() {
    let [plain, to] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let base = random_llama(plain.path(), 96);
    for kind in [BlockType::Int4, BlockType::Int3, BlockType::Int2] {
        let [from, merged] = ["base", "merged"].map(|name| to.path().join(format!("{kind}-{name}")));
        for folder in [&from, &merged] {
            std::fs::create_dir(folder).unwrap();
        }
        let stored = quantized(&base, kind, &from);
        let decoder = Decoder::load(&from, &Device::cpu(2), Precision::F32, None).unwrap();
        let names = ["q_proj", "o_proj", "up_proj", "down_proj"];
        let qalora = |group| Some(QaLora { group, pooling: Pooling::Sum });
        let adapter_of = |group| adapter(&decoder, &settings(&names, qalora(group), 0.0));
        // Groups that are parts of the base's do not fit into its minima, nor does plain LoRA.
        assert_eq!(decoder.integers_for(&adapter_of(16)), None);
        assert_eq!(decoder.integers_for(&adapter(&decoder, &settings(&names, None, 0.0))), None);
        let adapter = adapter_of(32);
        assert_eq!(decoder.integers_for(&adapter), Some(kind));
        let as_integers = Stored { dtype: StoredDType::F32, linear: Linear::Kept(kind) };
        decoder.write_model_files(&adapter, &stored, &from, &merged, as_integers).unwrap();
        let after = Decoder::load(&merged, &Device::cpu(2), Precision::F32, None).unwrap();
        let (alone, both, after_) = (decoder.probe(None), decoder.probe(Some(&adapter)), after.probe(None));
        let difference = Difference::between(&both, &after_);
        assert!(difference.relative < 3e-3, "{kind}: {difference:?}");
        assert!(Difference::between(&alone, &both).relative > 0.05, "{kind}: the adapter can be seen");
        // Codes and scales are the base's.
        let merged = ModelFolder::open(&merged).unwrap();
        let (mut changed, mut same) = (0, 0);
        for parameter in base.config.parameters().iter().filter(|p| p.takes(Format::Blocks(kind))) {
            let read = |folder: &ModelFolder| {
                let weight = folder.require_weights().unwrap().read_quantized(parameter, &folder.config);
                weight.unwrap().unwrap().blocks().unwrap().bytes().to_vec()
            };
            let (before, after) = (read(&stored), read(&merged));
            for (a, b) in before.chunks(kind.bytes()).zip(after.chunks(kind.bytes())) {
                assert_eq!((&a[..2], &a[4..]), (&b[..2], &b[4..]), "{kind}: codes and scales");
                if a == b { same += 1 } else { changed += 1 }
            }
        }
        assert!(changed > 100 && same > 100, "{kind}: {changed} groups changed, {same} not");
    }
}

#[test]
fn damaged_integers_are_refused_with_what_is_wrong() {
    let [plain, to] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let base = random_llama(plain.path(), 96);
    quantized(&base, BlockType::Int4, to.path());
    let (weights, config) = (to.path().join("model.safetensors"), to.path().join("config.json"));
    let (bytes, json) = (std::fs::read(&weights).unwrap(), std::fs::read_to_string(&config).unwrap());
    let error = || match ModelFolder::open(to.path()) {
        Err(error) => error.to_string(),
        Ok(_) => Decoder::load(to.path(), &Device::cpu(1), Precision::F32, None).unwrap_err().to_string(),
    };
    for (from, into, expected) in [
        ("\"int4\"", "\"int5\"", "int4, int3 and int2"),
        ("\"group_size\": 32", "\"group_size\": 64", "groups of 32"),
        ("\"int4\"", "\"int3\"", "in int3 are needed"),
        ("\"intermediate_size\": 96", "\"intermediate_size\": 128", "of 64 weights in int4 are needed"),
    ] {
        assert!(json.contains(from), "{json}");
        std::fs::write(&config, json.replace(from, into)).unwrap();
        let error = error();
        assert!(error.contains(expected), "{into}: {error}");
    }
    std::fs::write(&config, &json).unwrap();
    // The last two bytes before the codes of the last block: its minimum.
    let mut damaged = bytes.clone();
    let at = damaged.len() - 18;
    damaged[at..at + 2].copy_from_slice(&0x7c00_u16.to_le_bytes());
    std::fs::write(&weights, &damaged).unwrap();
    let error = error();
    assert!(error.contains("no finite number"), "{error}");
}
