//! Reading and writing safetensors: what is whole comes back bit for bit, what is not is refused with its
//! reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use compute::{DType, Matrix, MatrixRef, bf16};
use model::checkpoint::{CheckpointWriter, TensorSpec};
use model::{Checkpoint, Config, ModelFolder, StoredDType};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::fixture;

/// The bytes of a safetensors file with this header, true or not, and this data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Why a file is refused, without its path.
fn refusal(bytes: &[u8]) -> String {
    let (_folder, path) = written(bytes);
    let error = Checkpoint::open_file(&path).expect_err("this file is broken").to_string();
    error.strip_prefix(&format!("{}: ", path.display())).expect("the file is named").to_owned()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn a_file_shorter_than_a_length_is_refused() {
    assert_eq!(refusal(b"abc"), "is not a safetensors file: it has 3 bytes, a header begins with 8");
    assert_eq!(refusal(b""), "is not a safetensors file: it has 0 bytes, a header begins with 8");
}

#[test]
fn a_header_longer_than_the_file_is_refused() {
    let mut bytes = safetensors("{}", &[]);
    bytes[0] = 3;
    let expected = "is not a whole safetensors file: its header claims 3 bytes, the file has 10; was the download broken \
                    off?";
    assert_eq!(refusal(&bytes), expected);
    bytes[..8].fill(0xff);
    assert!(refusal(&bytes).contains("its header claims 18446744073709551615 bytes"));
}

#[test]
fn a_header_beyond_the_formats_limit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.safetensors");
    let file = fs::File::create(&path).unwrap();
    file.set_len(200_000_000).unwrap(); // sparse
    fs::write(&path, 100_000_001u64.to_le_bytes()).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(200_000_000).unwrap();
    let error = Checkpoint::open_file(&path).unwrap_err().to_string();
    assert!(
        error.contains("has a header of 100000001 bytes, more than the format's limit 100000000"),
        "{error}"
    );
}

macro_rules! refused {
    ($($name:ident: $header:tt, $bytes:expr => $message:expr;)*) => {
        $(#[test]
        fn $name() {
            let got = refusal(&safetensors(&json!($header).to_string(), &[0; $bytes]));
            assert!(got.contains($message), "{got}\nlacks\n{}", $message);
        })*
    };
}

refused! {
    a_header_that_is_a_list_is_refused: [], 0 => "its header is not valid";
    a_truncated_file_is_refused: {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, 15 => "tensor `a` claims the bytes 0 to 16 of 15; the file is broken off or its header is wrong";
    bytes_at_the_end_are_refused: {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, 17 => "has 1 bytes after its last tensor that belong to none";
    offsets_that_run_backwards_are_refused: {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, 16 => "tensor `a` claims the bytes 16 to 0";
    overlapping_tensors_are_refused: {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, 12 => "tensor `b` overlaps with `a` in the file";
    two_tensors_on_the_same_bytes_are_refused: {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 8 => "tensor `b` overlaps with `a` in the file";
    a_hole_is_refused: {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, 12 => "tensor `b` begins at byte 8 of the data; the bytes from 4 belong to no tensor";
    a_hole_at_the_front_is_refused: {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8 => "tensor `a` begins at byte 4 of the data; the bytes from 0 belong to no tensor";
    a_shape_that_lies_is_refused: {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}, 16 => "tensor `a` has shape [3] of F32 but 16 bytes; the header contradicts itself";
    a_shape_that_overflows_is_refused: {"a": {"dtype": "F32", "shape": [4294967296u64, 4294967296u64], "data_offsets": [0, 0]}}, 0 => "tensor `a` has shape [4294967296, 4294967296] of F32 but 0 bytes";
    an_unknown_type_is_refused: {"a": {"dtype": "F13", "shape": [1], "data_offsets": [0, 4]}}, 4 => "tensor `a` is stored as \"F13\"; weights are stored as F32, BF16 or F16";
    a_missing_field_is_refused: {"a": {"dtype": "F32", "shape": [1]}}, 4 => "missing field `data_offsets`";
    an_unknown_field_is_refused: {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}, 4 => "unknown field `x`";
    a_negative_size_is_refused: {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, 4 => "tensor `a` has the header entry";
    metadata_must_be_text: {"__metadata__": {"a": 1}}, 0 => "has a header whose __metadata__ is not text pairs";
    a_hostile_name_is_printed_safely: {"a\u{1b}[31m": 1}, 0 => "tensor `a\\u{1b}[31m` has the header entry 1, which is not valid";
}

#[test]
fn a_header_that_is_not_json_is_refused() {
    assert!(refusal(&safetensors("{\"a\"", &[])).contains("its header is not valid"));
    assert!(refusal(&safetensors("\u{0}\u{0}", &[])).contains("its header is not valid"));
    assert!(refusal(&safetensors("{} trailing", &[])).contains("its header is not valid"));
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let entry = r#"{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}"#;
    let got = refusal(&safetensors(&format!("{{\"a\": {entry}, \"a\": {entry}}}"), &[]));
    assert_eq!(got, "tensor `a` stands twice in the header");
}

#[test]
fn not_a_number_and_infinity_are_refused_with_their_place() {
    for (value, dtype, bytes) in [
        ("NaN", "F32", f32s(&[1.0, 2.0, 3.0, 4.0, f32::NAN, 6.0])),
        (
            "inf",
            "BF16",
            [1.0, 2.0, 3.0, 4.0, f32::INFINITY, 6.0].map(|v| bf16::from_f32(v).to_le_bytes()).concat(),
        ),
        ("-inf", "F16", [0u16, 1, 2, 3, 0xfc00, 5].map(u16::to_le_bytes).concat()),
    ] {
        let header = json!({"w": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, bytes.len()]}});
        let (_folder, path) = written(&safetensors(&header.to_string(), &bytes));
        let checkpoint = Checkpoint::open_file(&path).unwrap();
        for to in [DType::F32, DType::Bf16] {
            let got = checkpoint.read_into("w", Matrix::zeros(2, 3, to).as_mut()).unwrap_err().to_string();
            assert!(
                got.ends_with(&format!("tensor `w` has the value {value} at [1, 1]; weights must be finite")),
                "{got}"
            );
        }
    }
}

#[test]
fn a_value_beyond_the_matrixs_type_is_refused() {
    let header = json!({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}});
    let (_folder, path) = written(&safetensors(&header.to_string(), &f32s(&[1.0, f32::MAX])));
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    checkpoint.read_into("w", Matrix::zeros(1, 2, DType::F32).as_mut()).unwrap();
    let got = checkpoint.read_into("w", Matrix::zeros(1, 2, DType::Bf16).as_mut()).unwrap_err().to_string();
    assert!(got.contains("has the value inf at [1]"), "{got}");
}

#[test]
fn a_matrix_of_another_size_is_refused() {
    let header = json!({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}});
    let (_folder, path) = written(&safetensors(&header.to_string(), &[0; 24]));
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    let got = checkpoint.read_into("w", Matrix::zeros(3, 2, DType::F32).as_mut()).unwrap_err().to_string();
    assert!(got.contains("has shape [2, 3] where [3, 2] is needed"), "{got}");
    let got = checkpoint.read_into("v", Matrix::zeros(3, 2, DType::F32).as_mut()).unwrap_err().to_string();
    assert!(got.contains("tensor `v` is missing; the nearest names in the file are `w`"), "{got}");
}

#[test]
fn half_precision_is_widened_exactly() {
    let values = [0.0f32, -0.0, 1.0, 65504.0, 5.960_464_5e-8, -0.333_251_95];
    let bytes = values.map(|v| half::f16::from_f32(v).to_le_bytes()).concat();
    let header = json!({"w": {"dtype": "F16", "shape": [6], "data_offsets": [0, 12]}});
    let (_folder, path) = written(&safetensors(&header.to_string(), &bytes));
    let mut got = Matrix::zeros(1, 6, DType::F32);
    Checkpoint::open_file(&path).unwrap().read_into("w", got.as_mut()).unwrap();
    assert_eq!(got.to_vec().map_bits(), values.to_vec().map_bits());
}

trait Bits {
    fn map_bits(self) -> Vec<u32>;
}

impl Bits for Vec<f32> {
    fn map_bits(self) -> Vec<u32> {
        self.into_iter().map(f32::to_bits).collect()
    }
}

// What is written comes back.

fn spec(name: &str, shape: &[usize], dtype: StoredDType) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: shape.to_vec(), dtype }
}

#[test]
fn a_tensor_larger_than_the_buffer_comes_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let (rows, cols) = (611, 523); // ragged against every buffer
    let values: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
    let specs = vec![
        spec("half", &[rows, cols], StoredDType::Bf16),
        spec("vector", &[cols], StoredDType::F32),
        spec("whole", &[rows, cols], StoredDType::F32),
    ];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = CheckpointWriter::file(&path, &metadata, specs).unwrap();
    writer.write("whole", MatrixRef::from_f32(rows, cols, &values)).unwrap();
    writer.write("half", MatrixRef::from_f32(rows, cols, &values)).unwrap();
    writer.write("vector", MatrixRef::from_f32(1, cols, &values[..cols])).unwrap();
    assert!(!path.exists(), "the file appears only when it is whole");
    writer.finish().unwrap();

    let checkpoint = Checkpoint::open_file(&path).unwrap();
    assert_eq!(checkpoint.metadata()["format"], "pt");
    let read = |name, rows, cols, dtype| {
        let mut matrix = Matrix::zeros(rows, cols, dtype);
        checkpoint.read_into(name, matrix.as_mut()).unwrap();
        matrix.to_vec()
    };
    assert_eq!(read("whole", rows, cols, DType::F32), values);
    assert_eq!(read("vector", 1, cols, DType::F32), values[..cols]);
    let rounded: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    assert_eq!(read("half", rows, cols, DType::Bf16), rounded);
    assert_eq!(read("half", rows, cols, DType::F32), rounded);
    assert_eq!(read("whole", rows, cols, DType::Bf16), rounded);
}

#[test]
fn a_tensor_in_parts_is_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..21).map(|i| i as f32 - 3.5).collect();
    let files = ["whole", "parts"].map(|name| {
        let path = folder.path().join(name);
        let specs = vec![spec("a", &[3, 7], StoredDType::F32), spec("b", &[21], StoredDType::Bf16)];
        let mut writer = CheckpointWriter::file(&path, &BTreeMap::new(), specs).unwrap();
        if name == "whole" {
            writer.write("a", MatrixRef::from_f32(3, 7, &values)).unwrap();
            writer.write("b", MatrixRef::from_f32(1, 21, &values)).unwrap();
        } else {
            for range in [0..5, 5..6, 6..21] {
                let part = MatrixRef::from_f32(1, range.len(), &values[range.clone()]);
                writer.write_part("b", range.start, part).unwrap();
                writer.write_part("a", range.start, part).unwrap();
            }
        }
        writer.finish().unwrap();
        path
    });
    assert_eq!(fs::read(&files[0]).unwrap(), fs::read(&files[1]).unwrap());
    let checkpoint = Checkpoint::open_file(&files[1]).unwrap();
    for name in ["a", "b"] {
        let mut read = [0.0; 9];
        checkpoint.read_part(name, 6, &mut read).unwrap();
        assert_eq!(read, values[6..15]);
        for start in [13, usize::MAX] {
            let error = checkpoint.read_part(name, start, &mut read).unwrap_err().to_string();
            assert!(error.contains("has 21 elements"), "{error}");
        }
    }
    assert!(checkpoint.read_part("c", 0, &mut []).is_err());
}

#[test]
fn wider_elements_come_first_so_that_all_are_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let specs = vec![spec("odd", &[3], StoredDType::Bf16), spec("wide", &[1], StoredDType::F32)];
    let mut writer = CheckpointWriter::file(&path, &BTreeMap::new(), specs).unwrap();
    writer.write("odd", MatrixRef::from_f32(1, 3, &[1.0, 2.0, 3.0])).unwrap();
    writer.write("wide", MatrixRef::from_f32(1, 1, &[4.0])).unwrap();
    writer.finish().unwrap();
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(length % 8, 0);
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["wide"]["data_offsets"], json!([0, 4]));
    assert_eq!(header["odd"]["data_offsets"], json!([4, 10]));
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let specs = vec![spec("a", &[2], StoredDType::F32), spec("b", &[2], StoredDType::F32)];
    let mut writer = CheckpointWriter::model(folder.path(), specs, 8).unwrap();
    writer.write("a", MatrixRef::from_f32(1, 2, &[1.0, 2.0])).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_that_is_not_there_is_named_when_writing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing/a.safetensors");
    let error = CheckpointWriter::file(&path, &BTreeMap::new(), vec![]).err().unwrap().to_string();
    assert!(error.starts_with(&format!("cannot write {}: ", path.display())), "{error}");
}

#[test]
fn a_full_disk_says_what_to_do() {
    let error = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = model::ModelError::Write { path: "out/model.safetensors".into(), source: error }.to_string();
    assert!(error.starts_with("cannot write out/model.safetensors: "), "{error}");
    assert!(
        error.ends_with("free some space or choose another folder (nothing was left half-written)"),
        "{error}"
    );
}

#[test]
fn a_model_is_cut_into_shards_with_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let specs = ["a", "b", "c", "d"].map(|name| spec(name, &[1, 4], StoredDType::F32));
    let mut writer = CheckpointWriter::model(folder.path(), specs.to_vec(), 40).unwrap();
    for (i, name) in ["d", "a", "c", "b"].into_iter().enumerate() {
        writer.write(name, MatrixRef::from_f32(1, 4, &[i as f32; 4])).unwrap();
    }
    writer.finish().unwrap();
    let index = fs::read_to_string(folder.path().join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], 64);
    assert_eq!(index["weight_map"]["b"], "model-00001-of-00002.safetensors");
    assert_eq!(index["weight_map"]["c"], "model-00002-of-00002.safetensors");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    let mut c = Matrix::zeros(1, 4, DType::F32);
    checkpoint.read_into("c", c.as_mut()).unwrap();
    assert_eq!(c.to_vec(), [2.0; 4]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_damage_to_a_file_makes_the_reader_panic(damage in prop::collection::vec((0usize..400, any::<u8>()), 1..6), cut in 0usize..400) {
        let header = json!({
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        });
        let mut bytes = safetensors(&header.to_string(), &[1; 32]);
        for (position, value) in damage {
            let position = position % bytes.len();
            bytes[position] = value;
        }
        bytes.truncate(bytes.len().max(cut) - cut / 3);
        let (_folder, path) = written(&bytes);
        if let Ok(checkpoint) = Checkpoint::open_file(&path) {
            let sizes: u64 = checkpoint.size_bytes();
            prop_assert!(sizes <= bytes.len() as u64);
            let _ = checkpoint.read_into("a", Matrix::zeros(2, 3, DType::F32).as_mut());
        }
    }
}

// A model's folder.

/// A copy of a fixture that may be damaged.
fn copied(case: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(case)).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") || name == "config.json" {
            fs::copy(entry.path(), folder.path().join(name)).unwrap();
        }
    }
    folder
}

fn index_error(change: impl Fn(&mut Value)) -> String {
    let folder = copied("llama-sharded");
    let path = folder.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut index);
    fs::write(&path, index.to_string()).unwrap();
    Checkpoint::open(folder.path()).expect_err("the index is broken").to_string()
}

#[test]
fn an_index_that_reaches_out_of_its_folder_is_refused() {
    for outside in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "./x"] {
        let got = index_error(|index| index["weight_map"]["model.norm.weight"] = json!(outside));
        let expected =
            format!("`weight_map` names the file {outside:?}; only files of the same folder are read");
        assert!(got.contains(&expected), "{got}");
    }
}

#[test]
fn a_missing_shard_is_named() {
    let got = index_error(|index| {
        index["weight_map"]["model.norm.weight"] = json!("model-00009-of-00003.safetensors")
    });
    assert!(
        got.contains("`weight_map` names \"model-00009-of-00003.safetensors\", which is not in the folder"),
        "{got}"
    );
}

#[test]
fn a_tensor_in_another_shard_than_the_index_says_is_refused() {
    let got = index_error(|index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        let shards: Vec<Value> = map.values().cloned().collect();
        let here = map["model.norm.weight"].clone();
        map["model.norm.weight"] = shards.into_iter().find(|s| *s != here).unwrap();
    });
    assert!(got.contains("tensor `model.norm.weight` is placed in"), "{got}");
}

#[test]
fn a_tensor_that_no_shard_has_is_named() {
    let got = index_error(|index| {
        index["weight_map"]["model.extra"] = index["weight_map"]["model.norm.weight"].clone();
    });
    assert!(
        got.contains("tensor `model.extra` is placed in") && got.contains("which does not have it"),
        "{got}"
    );
}

#[test]
fn a_tensor_that_the_index_leaves_out_is_named() {
    let got = index_error(|index| {
        index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    });
    assert!(got.contains("tensor `model.norm.weight` is not in model.safetensors.index.json"), "{got}");
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = copied("llama-sharded");
    fs::copy(
        folder.path().join("model-00001-of-00003.safetensors"),
        folder.path().join("model-00002-of-00003.safetensors"),
    )
    .unwrap();
    let got = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(got.contains("is also in") && got.contains("a tensor has one place"), "{got}");
}

#[test]
fn an_index_without_a_map_is_refused() {
    let got = index_error(|index| *index = json!({"metadata": {}}));
    assert!(got.contains("missing field `weight_map`"), "{got}");
}

#[test]
fn a_folder_without_safetensors_says_what_it_has() {
    let refused = |file: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(file), "").unwrap();
        Checkpoint::open(folder.path()).unwrap_err().to_string()
    };
    assert!(refused("pytorch_model.bin").contains("has weights only as pytorch_model.bin, a Python pickle"));
    assert!(refused("pytorch_model-00001-of-00002.bin").contains("a Python pickle"));
    assert!(refused("adapter_model.safetensors").contains("is an adapter, not a model"));
    assert!(refused("model.gguf").contains("has weights only as model.gguf"));
    assert!(refused("readme").contains("has neither model.safetensors nor model.safetensors.index.json"));
    let got = Checkpoint::open(Path::new("/nonexistent/model")).unwrap_err().to_string();
    assert_eq!(got, "cannot read /nonexistent/model: there is no such folder");
}

/// Opens a model folder and checks its weights against a changed config.json.
fn mismatch(case: &str, changes: Value) -> String {
    let text = fs::read_to_string(fixture(case).join("config.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    for (field, value) in changes.as_object().unwrap() {
        json[field] = value.clone();
    }
    let config = Config::from_json(&json.to_string(), Path::new("config.json")).unwrap();
    Checkpoint::open(&fixture(case)).unwrap().check(&config).expect_err("they do not fit").to_string()
}

#[test]
fn every_fixture_fits_its_configuration() {
    for entry in
        fs::read_dir(fixture("")).unwrap().flatten().filter(|e| e.path().join("config.json").exists())
    {
        let ModelFolder { config, checkpoint, .. } = ModelFolder::open(&entry.path()).unwrap();
        let checkpoint = checkpoint.unwrap();
        checkpoint.check(&config).unwrap();
        for parameter in config.parameters() {
            if checkpoint.read_quantized(&parameter, &config).unwrap().is_some() {
                continue;
            }
            let mut matrix = Matrix::zeros(parameter.rows, parameter.cols, DType::F32);
            checkpoint.read_parameter(&parameter, &config, matrix.as_mut()).unwrap();
        }
    }
}

#[test]
fn a_misshapen_tensor_names_both_shapes_and_the_fields() {
    let got = mismatch("llama2", json!({"intermediate_size": 57}));
    let expected = "tensor `model.layers.0.mlp.gate_proj.weight` has shape [56, 40] but config.json makes it [57, 40] \
                    (hidden_size 40, intermediate_size 57); the weights and config.json must be of one model";
    assert!(got.ends_with(expected), "{got}");
    assert!(mismatch("llama2", json!({"vocab_size": 99})).contains("(vocab_size 99, hidden_size 40)"));
}

#[test]
fn a_missing_tensor_is_named() {
    let got = mismatch("llama2", json!({"num_hidden_layers": 3}));
    assert!(
        got.contains("tensor `model.layers.2.input_layernorm.weight` is missing; the nearest names"),
        "{got}"
    );
}

#[test]
fn a_layer_too_many_is_told_as_such() {
    let got = mismatch("llama2", json!({"num_hidden_layers": 1}));
    assert!(got.contains("belongs to layer 1, but config.json says num_hidden_layers 1"), "{got}");
}

#[test]
fn a_tensor_the_model_does_not_have_is_named() {
    let got = mismatch("llama-bias", json!({"attention_bias": false}));
    assert!(got.contains("_proj.bias` is not a part of a llama model as config.json describes it"), "{got}");
}

#[test]
fn a_head_that_should_be_there_points_to_the_field() {
    let got = mismatch("llama3", json!({"tie_word_embeddings": false}));
    assert!(
        got.contains("tensor `lm_head.weight` is missing; if the model's head shares the embedding's weight"),
        "{got}"
    );
}

#[test]
fn a_tied_weight_may_stand_twice_only_if_it_is_the_same() {
    let got = mismatch("llama2", json!({"tie_word_embeddings": true}));
    assert!(got.contains("tensor `lm_head.weight` differs from `model.embed_tokens.weight`"), "{got}");

    let folder = tempfile::tempdir().unwrap();
    let config = Config::load(&fixture("llama3")).unwrap();
    let source = Checkpoint::open(&fixture("llama3")).unwrap();
    let mut specs: Vec<TensorSpec> = source
        .names()
        .map(|n| {
            let info = source.tensor(n).unwrap();
            spec(n, &info.shape, info.dtype)
        })
        .collect();
    let embedding = source.tensor("model.embed_tokens.weight").unwrap();
    specs.push(spec("lm_head.weight", &embedding.shape, embedding.dtype));
    specs.push(spec("model.layers.0.self_attn.rotary_emb.inv_freq", &[3], StoredDType::F32));
    let mut writer = CheckpointWriter::model(folder.path(), specs, u64::MAX).unwrap();
    for parameter in config.parameters() {
        let mut matrix = Matrix::zeros(parameter.rows, parameter.cols, DType::F32);
        source.read_parameter(&parameter, &config, matrix.as_mut()).unwrap();
        writer.write(&parameter.name(), matrix.as_ref()).unwrap();
        if parameter.name() == "model.embed_tokens.weight" {
            writer.write("lm_head.weight", matrix.as_ref()).unwrap();
        }
    }
    writer
        .write("model.layers.0.self_attn.rotary_emb.inv_freq", MatrixRef::from_f32(1, 3, &[0.0; 3]))
        .unwrap();
    writer.finish().unwrap();
    Checkpoint::open(folder.path()).unwrap().check(&config).unwrap();
}

#[test]
fn a_tied_weight_under_the_heads_name_is_the_embeddings() {
    let config = Config::load(&fixture("llama-tied-head")).unwrap();
    let checkpoint = Checkpoint::open(&fixture("llama-tied-head")).unwrap();
    assert!(checkpoint.tensor("model.embed_tokens.weight").is_none());
    let embedding = config.parameters()[0];
    let mut matrix = Matrix::zeros(embedding.rows, embedding.cols, DType::F32);
    checkpoint.read_parameter(&embedding, &config, matrix.as_mut()).unwrap();
    assert!(matrix.to_vec().iter().any(|&v| v != 0.0));
}
