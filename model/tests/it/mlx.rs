//! Folders of MLX: what mlx-lm quantized is read to the bit, what is written is what was meant, and what
//! mlx-lm would not compute is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use compute::quant::{BlockType, Format};
use compute::{DType, Device, Matrix, Precision};
use model::adapter::merge::{Difference, Linear, Stored};
use model::adapter::peft::{Pooling, QaLora};
use model::mlx::MlxType;
use model::{Adapter, Decoder, ModelFolder, StoredDType};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::common::{
    Tensors, all_logits, fixture, largest_difference, load, opened, random_llama, training_buffers,
};
use crate::qalora::{adapter, quantized, settings};
use crate::quantized::{Raw, read, write};

const CASES: [&str; 4] = ["mlx-q4", "mlx-q4-group64", "mlx-q3-mixed", "mlx-q2"];
const INTEGERS: [BlockType; 3] = [BlockType::Int4, BlockType::Int3, BlockType::Int2];

fn logits(folder: &Path) -> Vec<f32> {
    Decoder::load(folder, &Device::cpu(2), Precision::F32, None).unwrap().probe(None).to_vec()
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn folders_of_mlx_lm_have_its_values_and_its_logits() {
    for case in CASES {
        let (folder, expected) = (opened(case), Tensors::read(&fixture(case).join("expected.safetensors")));
        let mut compared = 0;
        for parameter in folder.config.parameters() {
            let name = parameter.name();
            if !expected.names().any(|known| known == name) {
                continue;
            }
            let mut values = Matrix::zeros(parameter.rows, parameter.cols, DType::F32);
            let checkpoint = folder.require_weights().unwrap();
            checkpoint.read_parameter(&parameter, &folder.config, values.as_mut()).unwrap();
            let values: Vec<f64> = values.as_ref().f32().iter().map(|&value| value.into()).collect();
            assert_eq!(values, expected.get(&name), "{case}: {name}");
            compared += 1;
        }
        assert_eq!(compared, 2, "{case}");
        let decoder = load(case);
        let mut batch = model::Batch::new();
        batch.push_unlabelled(&expected.ids("input_ids"));
        let mut buffers = training_buffers(&decoder, &model::Layout::default(), 0.0, batch.tokens());
        let got = all_logits(&decoder, &decoder.run(None), &batch, &mut buffers);
        let difference = largest_difference(got.as_ref().f32(), expected.get("logits"));
        let size = expected.get("logits").iter().fold(0.0_f64, |size, value| size.max(value.abs()));
        assert!(difference < 1e-5 * size, "{case}: logits off by {difference} of {size}");
        // What is planned is what is held: blocks, the embedding's too.
        let stored = folder.stored().unwrap();
        let plan = Decoder::base_memory(&folder.config, stored.as_ref(), Precision::F32, None);
        assert!(
            plan.total() < 2 * folder.require_weights().unwrap().size_bytes(),
            "{case}: {}",
            plan.total()
        );
    }
}

#[test]
fn what_mlx_quantized_is_written_as_it_was() {
    let (case, to) = (fixture("mlx-q4"), tempdir().unwrap());
    let kind = MlxType::Integers(BlockType::Int4);
    let told =
        load("mlx-q4").write_mlx(None, &opened("mlx-q4"), &case, to.path(), Some(kind), StoredDType::F16);
    let told = told.unwrap();
    assert_eq!((told.integers, told.weights, told.rounded), ([(BlockType::Int4, 9)].into(), 12, 0));
    let [ours, theirs] = [to.path(), &case].map(|folder| read(&folder.join("model.safetensors")));
    assert!(ours == theirs, "names, types, shapes and bytes");
    assert_eq!(config(to.path())["quantization"], config(&case)["quantization"]);
    assert_eq!(config(to.path())["quantization_config"], config(&case)["quantization"]);
}

#[test]
fn integers_go_to_mlx_and_back_without_a_change() {
    // Inputs of 100 are no whole groups, and stay values.
    for (inner, left) in [(96, 0), (100, 2)] {
        let [plain, to] = [(), ()].map(|()| tempdir().unwrap());
        let base = random_llama(plain.path(), inner);
        for kind in INTEGERS {
            let [from, mlx, back] =
                ["base", "mlx", "back"].map(|name| to.path().join(format!("{kind}-{name}")));
            [&from, &mlx, &back].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
            let folder = quantized(&base, kind, &from);
            let decoder = Decoder::load(&from, &Device::cpu(2), Precision::F32, None).unwrap();
            let as_mlx = Some(MlxType::Integers(kind));
            let told = decoder.write_mlx(None, &folder, &from, &mlx, as_mlx, StoredDType::F32).unwrap();
            let integers = [(kind, 14 - left)].into();
            assert_eq!((told.integers, told.weights, told.rounded), (integers, 14 + 7, 0), "{kind}");
            assert_eq!(logits(&mlx), logits(&from), "{kind}, {inner}");
            // And ours again, by an adapter that changes nothing.
            let folder = ModelFolder::open(&mlx).unwrap();
            let mut nothing = adapter(&decoder, &settings(&["q_proj"], Some(GROUPS), 0.0));
            nothing.parameters.values_mut().f32().fill(0.0);
            let stored = Stored { dtype: StoredDType::F32, linear: Linear::Kept(kind) };
            decoder.write_model_files(&nothing, &folder, &mlx, &back, stored).unwrap();
            assert_eq!(config(&back).get("quantization"), None);
            assert!(read(&back.join("model.safetensors")) == read(&from.join("model.safetensors")), "{kind}");
        }
    }
}

const GROUPS: QaLora = QaLora { group: 32, pooling: Pooling::Sum };

#[test]
fn fewer_bits_are_written_as_more_without_a_change() {
    let [plain, from, to] = [(), (), ()].map(|()| tempdir().unwrap());
    let base = random_llama(plain.path(), 96);
    let folder = quantized(&base, BlockType::Int3, from.path());
    let decoder = Decoder::load(from.path(), &Device::cpu(2), Precision::F32, None).unwrap();
    let kind = MlxType::Integers(BlockType::Int4);
    decoder.write_mlx(None, &folder, from.path(), to.path(), Some(kind), StoredDType::F32).unwrap();
    assert_eq!(config(to.path())["quantization"]["bits"], 4);
    assert_eq!(logits(to.path()), logits(from.path()));
}

/// A base that has layers of three bits and of four.
#[test]
fn each_weight_keeps_its_own_bits() {
    let case = "mlx-q3-mixed";
    let (decoder, base, from) = (load(case), opened(case), fixture(case));
    let written = |adapter: Option<&Adapter>| {
        let to = tempdir().unwrap();
        let told = decoder.write_mlx(adapter, &base, &from, to.path(), None, StoredDType::F32).unwrap();
        (to, told)
    };
    let (to, told) = written(None);
    assert_eq!(told.rounded, 0);
    assert_eq!(logits(to.path()), logits(&from));
    let layer = json!({"group_size": 32, "bits": 4, "mode": "affine"});
    let said = json!({"group_size": 32, "bits": 3, "mode": "affine", "model.layers.0.mlp.down_proj": layer});
    assert_eq!(config(to.path())["quantization"], said);
    // What is trained whole leaves the integers with its values, all else stays.
    let mut of_one = settings(&["up_proj"], Some(GROUPS), 0.0);
    of_one.modules_to_save = vec!["q_proj".to_owned()];
    let whole = adapter(&decoder, &of_one);
    let (to, of_whole) = written(Some(&whole));
    assert_eq!(of_whole.rounded, 0);
    assert_eq!(of_whole.integers[&BlockType::Int3] + decoder.config.layers, told.integers[&BlockType::Int3]);
    let after = Decoder::load(to.path(), &Device::cpu(2), Precision::F32, None).unwrap().probe(None);
    let difference = Difference::between(&decoder.probe(Some(&whole)), &after);
    assert!(difference.relative < 3e-3, "{difference:?}");
    // One folder of ours holds them all in four bits.
    let trained = adapter(&decoder, &settings(&["q_proj", "down_proj"], Some(GROUPS), 0.0));
    assert_eq!(decoder.integers_for(&trained), Some(BlockType::Int4));
    let to = tempdir().unwrap();
    let stored = Stored { dtype: StoredDType::F32, linear: Linear::Kept(BlockType::Int4) };
    decoder.write_model_files(&trained, &base, &from, to.path(), stored).unwrap();
    let after = Decoder::load(to.path(), &Device::cpu(2), Precision::F32, None).unwrap().probe(None);
    let difference = Difference::between(&decoder.probe(Some(&trained)), &after);
    assert!(difference.relative < 3e-3, "{difference:?}");
}

#[test]
fn the_field_that_others_use_is_enough() {
    let folder = changed("mlx-q4", |_, config| {
        config.as_object_mut().unwrap().remove("quantization");
        config["quantization_config"] = json!({"group_size": 32, "bits": 4});
    });
    assert_eq!(logits(folder.path()), logits(&fixture("mlx-q4")));
}

#[test]
fn an_adapter_of_qa_lora_changes_biases_alone() {
    let [plain, to] = [(), ()].map(|()| tempdir().unwrap());
    let base = random_llama(plain.path(), 96);
    let [from, alone, mlx, merged] = ["base", "alone", "mlx", "merged"].map(|name| to.path().join(name));
    [&from, &alone, &mlx, &merged].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let folder = quantized(&base, BlockType::Int4, &from);
    let decoder = Decoder::load(&from, &Device::cpu(2), Precision::F32, None).unwrap();
    let names = ["q_proj", "o_proj", "up_proj", "down_proj"];
    let trained = adapter(&decoder, &settings(&names, Some(GROUPS), 0.0));
    let kind = MlxType::Integers(BlockType::Int4);
    for (adapter, to) in [(None, &alone), (Some(&trained), &mlx)] {
        decoder.write_mlx(adapter, &folder, &from, to, Some(kind), StoredDType::F32).unwrap();
    }
    let both = decoder.probe(Some(&trained));
    let after = Decoder::load(&mlx, &Device::cpu(2), Precision::F32, None).unwrap().probe(None);
    let difference = Difference::between(&both, &after);
    assert!(difference.relative < 3e-3, "{difference:?}");
    assert!(Difference::between(&decoder.probe(None), &both).relative > 0.05, "the adapter can be seen");
    // As merging has it.
    let stored = Stored { dtype: StoredDType::F32, linear: Linear::Kept(BlockType::Int4) };
    decoder.write_model_files(&trained, &folder, &from, &merged, stored).unwrap();
    assert_eq!(logits(&mlx), logits(&merged));
    let [before, after] = [&alone, &mlx].map(|folder| read(&folder.join("model.safetensors")));
    let changed: Vec<&String> = before.keys().filter(|name| before[*name] != after[*name]).collect();
    assert_eq!(changed.len(), 2 * names.len());
    for name in changed {
        assert!(name.ends_with("_proj.biases") && names.iter().any(|of| name.contains(of)), "{name}");
    }
}

#[test]
fn values_are_merged_and_rounded_once() {
    let [plain, merged, to] = [(), (), ()].map(|()| tempdir().unwrap());
    let base = random_llama(plain.path(), 96);
    let decoder = Decoder::load(plain.path(), &Device::cpu(2), Precision::F32, None).unwrap();
    let trained = adapter(&decoder, &settings(&["q_proj", "down_proj"], None, 0.0));
    decoder.write_model_files(&trained, &base, plain.path(), merged.path(), StoredDType::F32).unwrap();
    let kind = MlxType::Integers(BlockType::Int4);
    decoder.write_mlx(Some(&trained), &base, plain.path(), to.path(), Some(kind), StoredDType::F32).unwrap();
    let format = Some(Format::Blocks(BlockType::Int4));
    let rounded = Decoder::load(merged.path(), &Device::cpu(2), Precision::F32, format).unwrap();
    assert_eq!(logits(to.path()), rounded.probe(None).to_vec());
    // Values stay under the names that they have, and nothing says that they were quantized.
    let whole = tempdir().unwrap();
    let told = decoder.write_mlx(Some(&trained), &base, plain.path(), whole.path(), None, StoredDType::F32);
    assert_eq!(told.unwrap().integers, [].into());
    assert_eq!(config(whole.path()).get("quantization"), None);
    assert_eq!(logits(whole.path()), logits(merged.path()));
}

/// Which fixtures mlx-lm 0.32.2 computes as transformers does, within its window; see `docs/notes`.
#[test]
fn families_that_mlx_lm_holds_otherwise_are_refused_by_name() {
    let written = |case: &str| {
        let to = tempdir().unwrap();
        let kind = MlxType::Values(StoredDType::F32);
        let result = load(case).write_mlx(
            None,
            &opened(case),
            &fixture(case),
            to.path(),
            Some(kind),
            StoredDType::F32,
        );
        if result.is_ok() {
            let (ours, of_base) = (logits(to.path()), logits(&fixture(case)));
            assert_eq!(ours, of_base, "{case}: config.json says the same");
        } else {
            assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0, "{case}");
        }
        result
    };
    let computed = [
        ("llama2", None),
        ("llama3", None),
        ("llama-bias", None),
        ("llama-linear", None),
        ("llama-sharded", None),
        ("mistral", Some(9)),
        ("ministral3", None),
        ("qwen2", None),
        ("qwen2-window", Some(7)),
        ("qwen2-yarn", None),
        ("qwen3", None),
        ("gemma2", Some(7)),
        ("phi3", Some(9)),
        ("smollm3", None),
        ("granite", None),
        ("olmo2", None),
        ("glm4", None),
        ("hunyuan", None),
        ("ernie4-5", None),
        ("starcoder2", Some(9)),
    ];
    for (case, window) in computed {
        assert_eq!(written(case).unwrap().lost_window, window, "{case}");
    }
    for (case, words) in [
        ("gpt2", "gpt2"),
        ("gpt-neox", "gpt_neox"),
        ("mixtral", "mixtral"),
        ("qwen3-moe", "qwen3_moe"),
        ("gemma3", "gemma3_text"),
        ("gemma3-wrapped", "gemma3_text"),
        ("mistral3-wrapped", "mlx-lm holds"),
        ("olmo3", "olmo3"),
        ("llama-gelu", "computes otherwise"),
        ("llama-yarn-factor", "rotary embedding"),
        ("llama-yarn-mscale", "rotary embedding"),
        ("phi3-longrope", "rotary embedding"),
    ] {
        let error = written(case).unwrap_err().to_string();
        assert!(error.contains(words), "{case}: {error}");
    }
}

/// A fixture's folder with some of its tensors and its configuration changed.
fn changed(case: &str, change: impl FnOnce(&mut BTreeMap<String, Raw>, &mut Value)) -> TempDir {
    let to = tempdir().unwrap();
    let mut tensors = read(&fixture(case).join("model.safetensors"));
    let mut config = config(&fixture(case));
    change(&mut tensors, &mut config);
    write(&to.path().join("model.safetensors"), &tensors);
    fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    to
}

#[test]
fn fields_that_a_file_leaves_out_are_spelled_out_for_mlx_lm() {
    let to = tempdir().unwrap();
    let kind = MlxType::Values(StoredDType::F32);
    load("llama3")
        .write_mlx(None, &opened("llama3"), &fixture("llama3"), to.path(), Some(kind), StoredDType::F32)
        .unwrap();
    let written = config(to.path());
    assert_eq!(
        (&written["rope_theta"], &written["rope_scaling"]["rope_type"]),
        (&json!(100.0), &json!("llama3"))
    );
    assert_eq!(written["tie_word_embeddings"], opened("llama3").config.tie_word_embeddings);
}

type Change = fn(&mut BTreeMap<String, Raw>, &mut Value);

#[test]
fn damaged_folders_are_refused_with_what_is_wrong() {
    const LAYER: &str = "model.layers.0.self_attn.q_proj";
    fn tensor<'a>(tensors: &'a mut BTreeMap<String, Raw>, suffix: &str) -> &'a mut Raw {
        tensors.get_mut(&format!("{LAYER}{suffix}")).unwrap()
    }
    let cases: [(&str, Change); 19] = [
        ("is not an object", |_, config| config["quantization"] = json!("q4")),
        ("the mode \"mxfp4\"", |_, config| config["quantization"]["mode"] = json!("mxfp4")),
        ("the bits 8; supported are 2, 3 and 4", |_, config| config["quantization"]["bits"] = json!(8)),
        ("the bits null", |_, config| config["quantization"] = json!({"group_size": 32})),
        ("the group_size 16", |_, config| config["quantization"]["group_size"] = json!(16)),
        ("the group_size null", |_, config| config["quantization"] = json!({"bits": 4})),
        ("has `lm_head`, which has the bits 6", |_, config| {
            config["quantization"]["lm_head"] = json!({"group_size": 32, "bits": 6});
        }),
        ("the field `shift` with 3", |_, config| config["quantization"]["shift"] = json!(3)),
        ("q_proj.scales` is missing", |tensors, _| drop(tensors.remove(&format!("{LAYER}.scales")))),
        ("q_proj.biases` is missing", |tensors, _| drop(tensors.remove(&format!("{LAYER}.biases")))),
        ("q_proj.weight` is missing", |tensors, _| drop(tensors.remove(&format!("{LAYER}.weight")))),
        ("of words (U32) are needed", |tensors, _| tensor(tensors, ".weight").0 = "I32".into()),
        ("of words (U32) are needed", |tensors, _| tensor(tensors, ".weight").1 = vec![64, 32]),
        ("of words (U32) are needed", |tensors, _| tensor(tensors, ".weight").1 = vec![128 * 16]),
        ("supported are weights of 2, 3 and 4 bits", |tensors, _| {
            let (_, shape, bytes) = tensor(tensors, ".weight");
            (shape[1], *bytes) = (32, [&bytes[..], &bytes[..]].concat());
        }),
        ("supported are scales of [32, 64, 128]", |tensors, _| tensor(tensors, ".scales").1 = vec![64, 8]),
        ("supported are F16 and BF16", |tensors, _| {
            let (dtype, _, bytes) = tensor(tensors, ".scales");
            (*dtype, *bytes) = ("F32".into(), [&bytes[..], &bytes[..]].concat());
        }),
        ("as of the scales", |tensors, _| tensor(tensors, ".biases").0 = "BF16".into()),
        ("no finite number", |tensors, _| {
            tensor(tensors, ".biases").2[..2].copy_from_slice(&0x7c00_u16.to_le_bytes());
        }),
    ];
    for (words, change) in cases {
        let folder = changed("mlx-q4", change);
        let error = match ModelFolder::open(folder.path()) {
            Err(error) => error.to_string(),
            Ok(_) => {
                Decoder::load(folder.path(), &Device::cpu(1), Precision::F32, None).unwrap_err().to_string()
            }
        };
        assert!(error.contains(words), "{words}: {error}");
    }
    // Scales that half precision cannot hold.
    let folder = changed("mlx-q4-group64", |tensors, _| {
        tensor(tensors, ".scales").2[..2].copy_from_slice(&0x4780_u16.to_le_bytes());
    });
    let error = Decoder::load(folder.path(), &Device::cpu(1), Precision::F32, None).unwrap_err().to_string();
    assert!(error.contains("no finite number"), "{error}");
    // What stands beside no weight is not a part of the model.
    let folder = changed("mlx-q4", |tensors, _| {
        let scales = tensors[&format!("{LAYER}.scales")].clone();
        tensors.insert("model.norm.scales".into(), scales);
    });
    let error = Decoder::load(folder.path(), &Device::cpu(1), Precision::F32, None).unwrap_err().to_string();
    assert!(error.contains("model.norm.scales"), "{error}");
}
