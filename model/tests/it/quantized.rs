//! Folders in four bits: what is written loads as what was meant, and what is broken is refused with its
//! reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use compute::quant::{Code, CodebookFormat, Format, Quantized};
use compute::{DType, Device, Matrix, Precision};
use model::adapter::merge::Difference;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::memory::Component;
use model::quantize::quantize_folder;
use model::{
    Adapter, BaseWeight, Batch, Checkpoint, Config, Decoder, Layout, ModelFolder, Parameter, StoredDType,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{all_logits, fixture, load, opened, training_buffers};

const WEIGHT: &str = "model.layers.0.self_attn.q_proj.weight";
const STATE: &str = ".quant_state.bitsandbytes__nf4";

/// A tensor as a file has it: type, shape, bytes.
pub(crate) type Raw = (String, Vec<usize>, Vec<u8>);

pub(crate) fn read(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let number = |v: &Value| v.as_u64().unwrap() as usize;
    let tensor = |info: &Value| {
        let (start, end) = (number(&info["data_offsets"][0]), number(&info["data_offsets"][1]));
        let shape = info["shape"].as_array().unwrap().iter().map(number).collect();
        let data = bytes[8 + length + start..8 + length + end].to_vec();
        (info["dtype"].as_str().unwrap().to_owned(), shape, data)
    };
    tensors.map(|(name, info)| (name.clone(), tensor(info))).collect()
}

pub(crate) fn write(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let (mut header, mut data) = (json!({}), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let end = data.len() + bytes.len();
        header[name] = json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), end]});
        data.extend(bytes);
    }
    let header = header.to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
}

/// A fixture's model with some of its tensors changed.
fn changed(case: &str, change: impl FnOnce(&mut BTreeMap<String, Raw>)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture(case).join("config.json"), folder.path().join("config.json")).unwrap();
    let mut tensors = read(&fixture(case).join("model.safetensors"));
    change(&mut tensors);
    write(&folder.path().join("model.safetensors"), &tensors);
    folder
}

fn change_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn loaded(folder: &Path, quantization: Option<Format>) -> model::Result<Decoder> {
    Decoder::load(folder, &Device::cpu(2), Precision::F32, quantization)
}

/// The folder is refused with these words after its path.
#[track_caller]
fn refused(folder: &Path, words: &str) {
    let got = loaded(folder, None).expect_err("this folder is broken").to_string();
    let file = folder.join("model.safetensors");
    let got =
        got.strip_prefix(&format!("{}: ", file.display())).unwrap_or_else(|| panic!("no path in {got}"));
    assert!(got.contains(words), "{got}\nlacks\n{words}");
}

/// Refused after tensors of `case` were changed; the message names the tensor beside the query's weight.
#[track_caller]
fn broken(case: &str, suffix: &str, words: &str, change: impl FnOnce(&mut BTreeMap<String, Raw>)) {
    let folder = changed(case, change);
    refused(folder.path(), &format!("tensor `{WEIGHT}{suffix}` {words}"));
}

/// Refused after the state was written so.
#[track_caller]
fn state_of(bytes: &[u8], words: &str) {
    broken("nf4", STATE, words, |tensors| {
        tensors.insert(format!("{WEIGHT}{STATE}"), ("U8".into(), vec![bytes.len()], bytes.to_vec()));
    });
}

/// Refused after a field of the state was changed, or removed by `null`.
#[track_caller]
fn field(key: &str, value: Value, words: &str) {
    let tensors = read(&fixture("nf4").join("model.safetensors"));
    let mut state: Value = serde_json::from_slice(&tensors[&format!("{WEIGHT}{STATE}")].2).unwrap();
    match value {
        Value::Null => drop(state.as_object_mut().unwrap().remove(key)),
        value => state[key] = value,
    }
    state_of(state.to_string().as_bytes(), words);
}

#[test]
fn a_state_that_is_not_bitsandbytes_json_is_refused() {
    let words = "is not the JSON object that bitsandbytes writes: ";
    for text in ["", "{", "null", "[]", "{}", "\u{0}\u{0}", "{\"quant_type\": \"nf4\"} and more"] {
        state_of(text.as_bytes(), words);
    }
    state_of(&[0xff, 0xfe], words);
    state_of("[".repeat(60_000).as_bytes(), words);
    for key in ["quant_type", "blocksize", "dtype", "shape"] {
        field(key, Value::Null, words);
        field(key, json!({"a": 1}), words);
    }
    field("blocksize", json!(-64), words);
    field("blocksize", json!(64.5), words);
    field("nested_offset", json!("NaN"), words);
}

#[test]
fn a_state_of_another_type_or_too_long_is_refused() {
    let words = "is not up to 65536 bytes of JSON";
    state_of(&[b' '; 65537], words);
    broken("nf4", STATE, words, |tensors| {
        let state = tensors.get_mut(&format!("{WEIGHT}{STATE}")).unwrap();
        state.2.resize(168, b' ');
        (state.0, state.1) = ("F32".into(), vec![42]);
    });
}

#[test]
fn a_state_that_contradicts_the_weight_is_refused() {
    field("quant_type", json!("fp4"), "says quant_type \"fp4\" under the name of nf4");
    field("blocksize", json!(65), "says blocksize 65; supported are [32, 64, ");
    field("blocksize", json!(0), "says blocksize 0; supported are ");
    field("shape", json!([64, 32]), "says shape [64, 32] but config.json makes the weight [64, 64]");
    field("shape", json!([4096]), "says shape [4096] but config.json");
    field("shape", json!([]), "says shape [] but config.json");
    field("dtype", json!("int8"), "says dtype \"int8\"; supported are float32, bfloat16, float16");
    let words = "has a nested_blocksize that is no power of two, or it or nested_offset without the other";
    field("nested_blocksize", Value::Null, words);
    field("nested_offset", Value::Null, words);
    field("nested_blocksize", json!(0), words);
    field("nested_blocksize", json!(100), words);
    field("nested_offset", json!(1e300), words);
    // With another block size the scales are too many or too few.
    let folder = changed("nf4", |tensors| {
        let state = tensors.get_mut(&format!("{WEIGHT}{STATE}")).unwrap();
        let text =
            String::from_utf8(state.2.clone()).unwrap().replace("\"blocksize\": 64", "\"blocksize\": 32");
        state.2 = text.into_bytes();
        state.1 = vec![state.2.len()];
    });
    refused(
        folder.path(),
        &format!("tensor `{WEIGHT}.absmax` has 64 values of U8 where 128 of U8 are needed"),
    );
}

#[test]
fn a_tensor_beside_the_codes_that_is_missing_or_misshapen_is_refused() {
    for suffix in [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"] {
        broken("nf4", suffix, "is missing; the nearest names in the file are", |tensors| {
            tensors.remove(&format!("{WEIGHT}{suffix}"));
        });
        broken("nf4", suffix, "has 3 values of U8 where ", |tensors| {
            tensors.insert(format!("{WEIGHT}{suffix}"), ("U8".into(), vec![3], vec![0; 3]));
        });
    }
    broken("nf4", ".absmax", "has 64 values of F32 where 64 of U8 are needed", |tensors| {
        tensors.insert(format!("{WEIGHT}.absmax"), ("F32".into(), vec![64], vec![0; 256]));
    });
    broken("nf4-plain", ".absmax", "has 64 values of U8 where 64 of F32 are needed", |tensors| {
        tensors.insert(format!("{WEIGHT}.absmax"), ("U8".into(), vec![64], vec![0; 64]));
    });
    for length in [0, 2047, 2049] {
        let words = format!("has {length} bytes of codes where 2048 are needed");
        broken("nf4", "", &words, |tensors| {
            tensors.insert(WEIGHT.into(), ("U8".into(), vec![length, 1], vec![0; length]));
        });
    }
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for (case, suffix) in [
        ("nf4-plain", ".absmax"),
        ("nf4", ".quant_map"),
        ("nf4", ".nested_absmax"),
        ("nf4", ".nested_quant_map"),
    ] {
        for (value, name) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
            broken(case, suffix, &format!("has the value {name}; scales must be finite"), |tensors| {
                let bytes = &mut tensors.get_mut(&format!("{WEIGHT}{suffix}")).unwrap().2;
                let last = bytes.len() - 4;
                bytes[last..].copy_from_slice(&value.to_le_bytes());
            });
        }
    }
    // Each factor is finite, the products are not.
    broken("nf4", ".absmax", "has the scale inf for block 0; weights must be finite", |tensors| {
        tensors.get_mut(&format!("{WEIGHT}.nested_absmax")).unwrap().2 = f32::MAX.to_le_bytes().to_vec();
        let map = &mut tensors.get_mut(&format!("{WEIGHT}.nested_quant_map")).unwrap().2;
        map.copy_from_slice(&2f32.to_le_bytes().repeat(256));
    });
    broken("nf4-plain", ".absmax", "has the scale 1e38 for block 63; weights must be finite", |tensors| {
        tensors.get_mut(&format!("{WEIGHT}.absmax")).unwrap().2[252..]
            .copy_from_slice(&1e38f32.to_le_bytes());
        tensors.get_mut(&format!("{WEIGHT}.quant_map")).unwrap().2[60..]
            .copy_from_slice(&10f32.to_le_bytes());
    });
}

#[test]
fn weights_in_four_bits_where_none_are_expected_are_refused() {
    let only = "is stored in four bits; only the blocks' linear layers can be";
    for name in ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"] {
        let folder = changed("nf4", |tensors| {
            for suffix in ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE] {
                tensors.insert(format!("{name}{suffix}"), tensors[&format!("{WEIGHT}{suffix}")].clone());
            }
        });
        refused(folder.path(), &format!("tensor `{name}` {only}"));
    }
    let folder = changed("nf4", |_| {});
    change_config(folder.path(), |config| {
        drop(config.as_object_mut().unwrap().remove("quantization_config"))
    });
    refused(
        folder.path(),
        "q_proj.weight` is stored in four bits, but config.json has no `quantization_config`",
    );
    let folder = changed("nf4", |_| {});
    change_config(folder.path(), |config| {
        config["quantization_config"]["bnb_4bit_quant_type"] = json!("fp4")
    });
    refused(folder.path(), "is stored as nf4, but config.json says that weights are fp4");
}

#[test]
fn a_state_without_its_weight_or_beside_another_is_refused() {
    let folder = changed("nf4", |tensors| {
        let state = tensors[&format!("{WEIGHT}{STATE}")].clone();
        tensors.insert(format!("model.stray.weight{STATE}"), state);
    });
    refused(folder.path(), &format!("tensor `model.stray.weight{STATE}` is not a part of a llama model"));
    broken("nf4", STATE, "is not the weight's only state", |tensors| {
        let state = tensors[&format!("{WEIGHT}{STATE}")].clone();
        tensors.insert(format!("{WEIGHT}.quant_state.bitsandbytes__fp4"), state);
    });
    broken("nf4", "", "has shape [2048, 1] but config.json makes it [64, 64]", |tensors| {
        tensors.remove(&format!("{WEIGHT}{STATE}"));
    });
}

#[test]
fn a_configuration_that_says_four_bits_of_whole_weights_is_refused() {
    let folder = changed("llama2", |_| {});
    let said = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
    change_config(folder.path(), |config| config["quantization_config"] = said);
    refused(folder.path(), "has no quantized weight, though config.json has a `quantization_config`");
}

#[test]
fn bytes_in_place_of_weights_are_refused_by_all_who_read_them() {
    let folder = changed("llama2", |tensors| {
        let weight = tensors.get_mut("model.norm.weight").unwrap();
        let count = weight.1[0];
        (weight.0, weight.2) = ("U8".into(), vec![1; count]);
    });
    let words = "tensor `model.norm.weight` is stored as U8 where weights are needed";
    refused(folder.path(), words);
    let output = tempfile::tempdir().unwrap();
    let from = ModelFolder::open(folder.path()).unwrap();
    let got = quantize_folder(&from, output.path(), &Device::cpu(1), Format::QLORA, None, &mut |_| {});
    let got = got.expect_err("bytes are no weights").to_string();
    assert!(got.contains(words), "{got}");
}

#[test]
fn a_quantization_that_the_folder_contradicts_is_refused_and_the_same_one_is_not() {
    let fp4 = Format::Codebook(CodebookFormat { code: Code::Fp4, ..CodebookFormat::QLORA });
    let got = loaded(&fixture("nf4"), Some(fp4)).unwrap_err().to_string();
    assert!(got.contains("says that the weights are nf4 already, but fp4 is asked for"), "{got}");
    let (plain, asked) = (load("nf4").probe(None), loaded(&fixture("nf4"), Some(Format::QLORA)).unwrap());
    assert_eq!(plain.to_vec(), asked.probe(None).to_vec());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_damage_to_what_stands_beside_the_codes_makes_the_reader_panic(
        damage in prop::collection::vec((0usize..6, any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let folder = changed("nf4", |tensors| {
            for (which, place, value) in damage {
                let suffix =
                    ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE][which];
                let bytes = &mut tensors.get_mut(&format!("{WEIGHT}{suffix}")).unwrap().2;
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
        });
        if let Ok(decoder) = loaded(folder.path(), None) {
            decoder.probe(None);
        }
    }
}

// What is written comes back.

const FORMATS: [Format; 3] = [
    Format::QLORA,
    Format::Codebook(CodebookFormat { code: Code::Fp4, block_size: 128, double_quant: false }),
    Format::Codebook(CodebookFormat { code: Code::Nf4, block_size: 32, double_quant: false }),
];

/// The folder of a fixture, quantized.
fn quantized(case: &str, format: Format, output: &Path) -> Vec<model::quantize::QuantizedWeight> {
    let mut seen = Vec::new();
    fs::create_dir_all(output).unwrap();
    let report =
        quantize_folder(&opened(case), output, &Device::cpu(2), format, None, &mut |w| seen.push(w.clone()))
            .unwrap();
    assert_eq!(seen, report);
    report
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let mut batch = Batch::new();
    batch.push_unlabelled(&[1, 17, 5, 40, 3, 3, 28, 9, 31, 2, 11]);
    let mut buffers = training_buffers(decoder, &Layout::default(), 0.0, batch.tokens());
    all_logits(decoder, &decoder.run(None), &batch, &mut buffers).to_vec()
}

fn whole(parameter: &Parameter, config: &Config, folder: &Path) -> Matrix {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut matrix = Matrix::zeros(parameter.rows, parameter.cols, DType::F32);
    checkpoint.read_parameter(parameter, config, matrix.as_mut()).unwrap();
    matrix
}

#[test]
fn a_quantized_folder_loads_as_the_model_quantized_on_loading() {
    let device = Device::cpu(2);
    // Types BF16, F16 and F32; biases; a tied head; shards; rows that are no whole blocks.
    for case in ["llama2", "llama3", "llama-linear", "llama-sharded", "llama-tied-head", "qwen2", "qwen3"] {
        for format in FORMATS {
            let output = tempfile::tempdir().unwrap();
            let report = quantized(case, format, output.path());
            let (from, to) =
                (Checkpoint::open(&fixture(case)).unwrap(), Checkpoint::open(output.path()).unwrap());
            assert_eq!(from.main_dtype(), to.main_dtype(), "{case}");
            let config = Config::load(output.path()).unwrap();
            to.check(&config).unwrap();
            let mut weights = report.iter();
            for parameter in config.parameters() {
                let dense = whole(&parameter, &config, &fixture(case));
                let Some(read) = to.read_quantized(&parameter, &config).unwrap() else {
                    assert!(!parameter.is_quantizable());
                    assert_eq!(whole(&parameter, &config, output.path()).to_vec(), dense.to_vec());
                    continue;
                };
                let expected = Quantized::quantize(&device, dense.as_ref(), format);
                let (got, expected) =
                    (read.dequantize(&device, DType::F32), expected.dequantize(&device, DType::F32));
                assert_eq!(got.to_vec(), expected.to_vec(), "{case}: {}", parameter.name());
                let told = weights.next().unwrap();
                assert_eq!(told.name, parameter.name());
                let size = format.size_bytes(parameter.rows * parameter.cols) as u64;
                assert_eq!(told.bytes, size);
                assert_eq!(to.quantized(&parameter, &config).unwrap(), Some((format, size)));
                assert!((0.01..0.2).contains(&told.relative_error()), "{told:?}");
            }
            assert!(weights.next().is_none());
            let on_loading = loaded(&fixture(case), Some(format)).unwrap();
            let written = loaded(output.path(), None).unwrap();
            assert_eq!(logits(&written), logits(&on_loading), "{case}, {format:?}");
        }
    }
}

#[test]
fn the_memory_that_is_planned_is_what_the_weights_take() {
    #[track_caller]
    fn check(folder: &Path, format: Option<Format>) {
        let files = ModelFolder::open(folder).unwrap();
        let (config, stored) = (&files.config, files.stored().unwrap());
        for precision in [Precision::F32, Precision::Bf16] {
            let decoder = Decoder::load(folder, &Device::cpu(2), precision, format).unwrap();
            let planned = Decoder::base_memory(config, stored.as_ref(), precision, format);
            assert_eq!(planned.bytes(Component::Base), taken(&decoder), "{}, {format:?}", folder.display());
        }
    }
    fn taken(decoder: &Decoder) -> u64 {
        let of = |p: &Parameter| match p.bias {
            true => 4 * p.cols,
            false => decoder.base_weight(p.module).size_bytes(),
        };
        decoder.config.parameters().iter().map(|p| of(p) as u64).sum()
    }
    // Of the last one, biases and a layer were left out of quantization.
    for case in ["nf4", "nf4-plain", "nf4-bf16-storage", "fp4"] {
        check(&fixture(case), None);
    }
    // What is asked for does not change what the folder has.
    check(
        &fixture("nf4-plain"),
        Some(Format::Codebook(CodebookFormat { block_size: 4096, ..CodebookFormat::QLORA })),
    );
    for format in FORMATS {
        check(&fixture("llama-bias"), Some(format));
        let output = tempfile::tempdir().unwrap();
        quantized("llama-bias", format, output.path());
        check(output.path(), None);
    }
}

#[test]
fn codes_that_are_missing_beside_their_state_are_told_before_memory_is_counted() {
    let folder = changed("nf4", |tensors| drop(tensors.remove(WEIGHT)));
    let error = ModelFolder::open(folder.path()).unwrap().stored().unwrap_err().to_string();
    assert!(error.contains(&format!("tensor `{WEIGHT}` is missing")), "{error}");
}

#[test]
fn a_merged_model_computes_what_a_quantized_base_and_its_adapter_compute() {
    for case in ["nf4", "nf4-plain", "nf4-bf16-storage", "fp4"] {
        let base = load(case);
        let names = ["q_proj", "v_proj", "down_proj"].map(String::from).to_vec();
        let config =
            PeftConfig { r: 4, target_modules: Some(Selection::List(names)), ..PeftConfig::default() };
        let resolution = targets::resolve(&config, &base.config).unwrap();
        let mut adapter = Adapter::zeros(Layout::of_adapter(&resolution, &base.config), 0.0, &Device::cpu(2));
        for (i, value) in adapter.parameters.values_mut().f32().iter_mut().enumerate() {
            *value = compute::random::uniform(1, i as u64) as f32 - 0.5;
        }
        let output = tempfile::tempdir().unwrap();
        base.write_model_files(&adapter, &opened(case), &fixture(case), output.path(), StoredDType::F32)
            .unwrap();
        let merged = loaded(output.path(), None).unwrap();
        assert_eq!(merged.config.quantization, None);
        assert!(
            !fs::read_to_string(output.path().join("config.json")).unwrap().contains("quantization_config")
        );
        let dense = |p: &Parameter| matches!(merged.base_weight(p.module), BaseWeight::Dense(_));
        assert!(merged.config.parameters().iter().all(dense));
        let (before, both, after) = (base.probe(None), base.probe(Some(&adapter)), merged.probe(None));
        let difference = Difference::between(&both, &after);
        assert!(difference.is_rounding(StoredDType::F32), "{case}: {difference:?}");
        assert!(Difference::between(&before, &both).relative > 1e-2, "{case}: the adapter can be seen");
    }
}

#[test]
fn a_folder_that_is_quantized_already_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let got =
        quantize_folder(&opened("nf4"), folder.path(), &Device::cpu(1), Format::QLORA, None, &mut |_| {});
    let got = got.unwrap_err().to_string();
    assert!(
        got.contains("says that the weights are nf4 already; quantize the model's 16-bit checkpoint"),
        "{got}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
