//! Models written as GGUF files, and read from them: names as the package `gguf` has them, configurations and
//! values as they were; files that contradict themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use compute::{Device, Matrix};
use model::config::Mlp;
use model::gguf::export::{ExportedModel, written_type};
use model::gguf::{Entries, Gguf, GgufPlace, GgufSpec, GgufValue, GgufWriter, RowOrder, Said, TensorType};
use model::{Adapter, Config, Decoder, Parameter};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::{fixture, load};
use crate::families;

/// The fixtures whose models llama.cpp computes as they are.
const WHOLE: [&str; 26] = [
    "llama2",
    "llama3",
    "llama-linear",
    "llama-bias",
    "mistral",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3-wrapped",
    "phi3",
    "phi3-longrope",
    "gpt2",
    "granite",
    "olmo2",
    "olmo3",
    "ministral3",
    "glm4",
    "gpt-neox",
    "starcoder2",
    "ernie4-5",
    "mixtral",
    "hunyuan",
    "qwen2-window",
    "mistral3-wrapped",
];

/// Writes a fixture's model, with its adapter if asked.
fn written(case: &str, kind: &str, path: &Path) -> Result<(Decoder, ExportedModel), String> {
    let mut decoder = load(case);
    if case.starts_with("gemma") {
        // Of the fixtures' scale llama.cpp knows nothing.
        decoder.config.attention_scale = (decoder.config.head_dim as f32).powf(-0.5);
    }
    let kind = written_type(kind).unwrap();
    let entries = vec![("general.name".to_owned(), "tiny".into())];
    let told = decoder.write_gguf(None, Path::new(case), entries, kind, path).map_err(|e| e.to_string())?;
    Ok((decoder, told))
}

#[test]
fn parameters_have_the_names_that_the_package_gguf_gives_them() {
    let text = fs::read_to_string(fixture("gguf").join("names.json")).unwrap();
    let names: BTreeMap<String, BTreeMap<String, Option<String>>> = serde_json::from_str(&text).unwrap();
    for case in families::ALL.into_iter().chain(["llama2", "mistral", "qwen2", "qwen3"]) {
        let config = Config::load(&fixture(case)).unwrap();
        let known = &names[config.gguf.unwrap().architecture];
        let mut found = 0;
        for parameter in config.parameters().into_iter().filter(|p| p.module.layer().unwrap_or(1) == 1) {
            if case.starts_with("qwen3-moe") && config.blocks[1].mlp != Mlp::Experts {
                continue; // llama.cpp's architecture has experts on every layer
            }
            let path = config.path(parameter.module).replace("model.language_model.", "model.");
            let path = match path.split_once(".experts.") {
                Some((before, rest)) => format!("{before}.experts.{}", rest.split_once('.').unwrap().1),
                None => path,
            };
            let Some(Some(name)) = known.get(&path) else { panic!("{case}: {path} is in no list") };
            let ending = if parameter.bias { "bias" } else { "weight" };
            assert_eq!(config.gguf_place(&parameter).unwrap().tensor, format!("{name}.{ending}"), "{case}");
            found += 1;
        }
        assert!(found > 7 || case.starts_with("qwen3-moe"), "{case}: {found}");
    }
}

/// By its definition: `w.reshape(heads, 2, D / 2, in).swapaxes(1, 2)` and `w.reshape(heads, 3, D, in)` cut
/// into three.
#[test]
fn rows_stand_where_the_converter_puts_them() {
    let (heads, head) = (3, 8);
    let pairs = RowOrder::PairsTogether { head };
    let parts = RowOrder::PartsTogether { heads, head };
    for h in 0..heads {
        for half in 0..2 {
            for i in 0..head / 2 {
                let folder = (h * 2 + half) * head / 2 + i;
                assert_eq!(pairs.place(folder), (h * head / 2 + i) * 2 + half);
            }
        }
        for part in 0..3 {
            for i in 0..head {
                assert_eq!(parts.place((h * 3 + part) * head + i), (part * heads + h) * head + i);
            }
        }
    }
}

/// A parameter as a file has it, taken back to a folder's order.
fn values(file: &Gguf, bytes: &[u8], place: &GgufPlace, parameter: &Parameter) -> Vec<f32> {
    let tensor = &file.tensors()[&place.tensor];
    assert_eq!(tensor.dimensions, place.dimensions, "{}", place.tensor);
    assert_eq!(tensor.kind, TensorType::F32, "{}", place.tensor);
    let bytes = &bytes[tensor.start as usize..][..tensor.size_bytes as usize];
    let all: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let (rows, cols) =
        if parameter.is_vector() { (parameter.cols, 1) } else { (parameter.rows, parameter.cols) };
    let mut values = Vec::new();
    for row in 0..rows {
        let at = (place.first_row + place.order.place(row)) * cols;
        values.extend(all[at..][..cols].iter().map(|value| value - f32::from(u8::from(place.plus_one))));
    }
    values
}

#[test]
fn a_model_comes_back_as_it_was() {
    let mut wrong = Vec::new();
    for case in WHOLE {
        let folder = tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let (decoder, told) = match written(case, "f32", &path) {
            Ok(both) => both,
            Err(error) => {
                wrong.push(error);
                continue;
            }
        };
        let (file, bytes) = (Gguf::open(&path).unwrap(), fs::read(&path).unwrap());
        assert_eq!(file.text("general.name"), Some("tiny"), "{case}");
        assert_eq!(told.tensors, file.tensors().len(), "{case}");
        let computes_windows = ["gemma2", "gemma3", "olmo2"].contains(&told.architecture);
        let window = decoder.config.blocks.iter().find_map(|block| block.window);
        assert_eq!(told.lost_window, window.filter(|_| !computes_windows), "{case}");
        let read = file.config().unwrap();
        assert_eq!(read.parameter_count(), decoder.config.parameter_count(), "{case}");
        let checkpoint = model::Checkpoint::open(&fixture(case)).unwrap();
        for parameter in decoder.config.parameters() {
            let place = decoder.config.gguf_place(&parameter).unwrap();
            let mut want = Matrix::zeros(parameter.rows, parameter.cols, compute::DType::F32);
            checkpoint.read_parameter(&parameter, &decoder.config, want.as_mut()).unwrap();
            let got = values(&file, &bytes, &place, &parameter);
            let near =
                |(got, want): (&f32, &f32)| got == want || (place.plus_one && (got - want).abs() < 1e-6);
            if !got.iter().zip(want.as_ref().f32()).all(near) {
                wrong.push(format!("{case}: {}", parameter.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_llama_cpp_has_not_is_refused_by_name() {
    let folder = tempdir().unwrap();
    for (case, says) in [
        ("llama-gelu", "no such activation"),
        ("gpt2-scaled", "no such scale of attention by layer"),
        ("smollm3", "no such choice of layers that turn positions"),
        ("qwen3-moe", "no such choice of layers with experts"),
        ("qwen3-moe-step", "no such choice of layers with experts"),
    ] {
        let told = written(case, "f32", &folder.path().join(case)).unwrap_err();
        assert!(told.contains(says) && told.starts_with(case), "{case}: {told}");
    }
}

#[test]
fn sixteen_bits_round_once_and_vectors_stay_whole() {
    let folder = tempdir().unwrap();
    for (kind, number) in [("f16", 1), ("bf16", 32)] {
        let path = folder.path().join(kind);
        written("mixtral", kind, &path).unwrap();
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.integer("general.file_type"), Some(number));
        for (name, tensor) in file.tensors() {
            let whole = tensor.dimensions.len() == 1 || name.contains("ffn_gate_inp");
            let expected = if whole { "F32" } else { &*kind.to_uppercase() };
            assert_eq!(tensor.kind.name(), expected, "{name}");
        }
    }
}

#[test]
fn an_adapter_is_added_as_merging_adds_it() {
    let folder = tempdir().unwrap();
    let (path, merged) = (folder.path().join("a.gguf"), folder.path().join("merged"));
    let base = crate::common::opened("llama3");
    let decoder = load("llama3");
    let (adapter, _) =
        Adapter::load(&fixture("llama3").join("adapter"), &decoder.config, None, &Device::cpu(2)).unwrap();
    let kind = TensorType::F32;
    decoder.write_gguf(Some(&adapter), Path::new("llama3"), Entries::new(), kind, &path).unwrap();
    fs::create_dir(&merged).unwrap();
    let to = model::StoredDType::F32;
    decoder.write_model_files(&adapter, &base, &fixture("llama3"), &merged, to).unwrap();
    let (file, bytes) = (Gguf::open(&path).unwrap(), fs::read(&path).unwrap());
    let (checkpoint, config) = (model::Checkpoint::open(&merged).unwrap(), Config::load(&merged).unwrap());
    for parameter in config.parameters() {
        let mut want = Matrix::zeros(parameter.rows, parameter.cols, compute::DType::F32);
        checkpoint.read_parameter(&parameter, &config, want.as_mut()).unwrap();
        let place = config.gguf_place(&parameter).unwrap();
        assert_eq!(values(&file, &bytes, &place, &parameter), want.as_ref().f32(), "{}", parameter.name());
    }
}

/// The header of a small Llama with some keys changed, and tensors that are enough for its configuration.
fn config(changes: &[(&str, Option<Said>)]) -> Result<Value, String> {
    config_with(changes, &[("token_embd.weight", &[8, 5]), ("output.weight", &[8, 5])])
}

fn config_with(changes: &[(&str, Option<Said>)], tensors: &[(&str, &[u64])]) -> Result<Value, String> {
    let mut entries: Entries = [
        ("general.architecture", "llama".into()),
        ("llama.block_count", Said::Count(2)),
        ("llama.context_length", Said::Count(64)),
        ("llama.embedding_length", Said::Count(8)),
        ("llama.feed_forward_length", Said::Count(12)),
        ("llama.attention.head_count", Said::Count(2)),
        ("llama.attention.layer_norm_rms_epsilon", Said::Float(1e-5)),
    ]
    .map(|(key, value): (&str, Said)| (key.to_owned(), value))
    .into();
    for (key, value) in changes {
        entries.retain(|(known, _)| known != key);
        entries.extend(value.clone().map(|value| ((*key).to_owned(), value)));
    }
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let spec = |(name, dimensions): &(&str, &[u64])| GgufSpec {
        name: (*name).to_owned(),
        dimensions: dimensions.to_vec(),
        kind: TensorType::F32,
    };
    let specs: Vec<GgufSpec> = tensors.iter().map(spec).collect();
    let mut writer = GgufWriter::create(&path, &entries, specs.clone()).unwrap();
    for spec in specs {
        let elements = spec.dimensions.iter().product::<u64>() as usize;
        let ones = 1.0_f32.to_le_bytes().repeat(elements);
        // In pieces, of which one is empty.
        writer.write(&spec.name, &ones[..4]).unwrap();
        writer.write(&spec.name, &ones[4..]).unwrap();
        writer.write(&spec.name, &[]).unwrap();
    }
    let file = writer.finish(&entries).unwrap();
    let config = file.config().map_err(|error| error.to_string())?;
    Ok(Value::Object(config.raw))
}

#[test]
fn a_configuration_says_what_the_metadata_says() {
    let plain = config(&[]).unwrap();
    let expected = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 5, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "attention_bias": false,
        "mlp_bias": false, "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": null,
        "eos_token_id": [], "pad_token_id": null, "dtype": "float32",
    });
    assert_eq!(plain, expected);
    let linear = config(&[("llama.rope.scaling.factor", Some(Said::Float(4.0)))]).unwrap();
    assert_eq!(linear["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    let ends = [("eos", 2), ("eot", 4), ("eom", 2)];
    let keys = ends.map(|(kind, id)| (format!("tokenizer.ggml.{kind}_token_id"), id));
    let keys: Vec<_> = keys.iter().map(|(key, id)| (&**key, Some(Said::Count(*id)))).collect();
    assert_eq!(config(&keys).unwrap()["eos_token_id"], json!([2, 4]));
    let window = [("llama.attention.sliding_window", Some(Said::Count(7)))];
    let mistral = config(&window).unwrap();
    assert_eq!((&mistral["model_type"], &mistral["sliding_window"]), (&json!("mistral"), &json!(7)));
}

#[test]
fn metadata_that_is_wrong_is_refused_by_its_key() {
    let text = |text: &str| Some(Said::from(text));
    let count = |count| Some(Said::Count(count));
    let cases: [(&str, Option<Said>, &str); 24] = [
        ("general.architecture", None, "is missing"),
        (
            "general.architecture",
            text("rwkv6"),
            "`general.architecture` is \"rwkv6\", which is not supported",
        ),
        ("general.architecture", count(1), "is missing, or is no text"),
        ("general.type", text("adapter"), "holds no model"),
        ("split.count", count(3), "llama-gguf-split --merge"),
        ("llama.block_count", None, "`llama.block_count` is missing"),
        ("llama.block_count", text("two"), "is no whole number"),
        ("llama.block_count", count(0), "num_hidden_layers"),
        ("llama.block_count", count(u32::MAX), "num_hidden_layers"),
        ("llama.embedding_length", count(u32::MAX), "`llama.attention.head_count` is 2, which does not"),
        ("llama.embedding_length", Some(Said::Float(8.0)), "is no whole number"),
        ("llama.attention.head_count", count(0), "does not divide"),
        ("llama.attention.head_count", count(3), "does not divide the width 8"),
        ("llama.attention.head_count_kv", Some(Said::Integers(vec![2, 1])), "differs from layer to layer"),
        ("llama.attention.head_count_kv", Some(Said::Integers(vec![])), "is no whole number"),
        ("llama.attention.head_count_kv", Some(Said::Integers(vec![-1, -1])), "is no whole number"),
        ("llama.attention.value_length", count(5), "is not 4, the size of a key's head"),
        ("llama.attention.layer_norm_rms_epsilon", Some(Said::Float(f32::INFINITY)), "is no number"),
        ("llama.rope.scaling.type", text("ntk"), "is \"ntk\", which is not supported"),
        ("llama.rope.scaling.type", text("longrope"), "are missing"),
        ("llama.rope.scaling.type", text("yarn"), "`llama.rope.scaling.factor` is missing"),
        ("llama.rope.dimension_count", count(9), "heads have 4 dimensions"),
        ("llama.attention.causal", Some(Said::Bool(false)), "is not 1: models with this feature"),
        ("llama.logit_scale", Some(Said::Float(2.0)), "`llama.logit_scale` is not known here"),
    ];
    for (key, value, says) in cases {
        let told = config(&[(key, value.clone())]).unwrap_err();
        assert!(told.contains(says), "{key} {value:?}: {told}");
        assert!(told.contains("a.gguf: "), "{told}");
    }
    for (tensors, says) in [
        (&[("output.weight", &[8, 5][..])][..], "`token_embd.weight` is missing"),
        (&[("token_embd.weight", &[40])], "has the dimensions [40]"),
        (&[("token_embd.weight", &[8, 5]), ("rope_freqs.weight", &[3])], "is not 2 numbers in F32"),
    ] {
        let told = config_with(&[], tensors).unwrap_err();
        assert!(told.contains(says), "{told}");
    }
    // Windows of no model that has them, and a pattern of another number of layers.
    let of = |key: &str, value: Said| (format!("granite.{key}"), Some(value));
    let granite = [
        ("general.architecture".to_owned(), text("granite")),
        of("block_count", Said::Count(2)),
        of("context_length", Said::Count(64)),
        of("embedding_length", Said::Count(8)),
        of("feed_forward_length", Said::Count(12)),
        of("attention.head_count", Said::Count(2)),
        of("attention.layer_norm_rms_epsilon", Said::Float(1e-5)),
        of("attention.sliding_window", Said::Count(4)),
    ];
    let granite: Vec<_> = granite.iter().map(|(key, value)| (&**key, value.clone())).collect();
    assert!(config(&granite).unwrap_err().contains("a granite model has no windows"));
    let window = ("llama.attention.sliding_window", count(4));
    let pattern = ("llama.attention.sliding_window_pattern", Some(Said::Bools(vec![true; 3])));
    assert!(config(&[window, pattern]).unwrap_err().contains("has 3 entries for 2 layers"));
}

/// `converted.json`: what llama.cpp's converter says and writes of a fixture.
#[derive(serde::Deserialize)]
struct Converted {
    architecture: String,
    keys: BTreeMap<String, Value>,
    tensors: BTreeMap<String, (Vec<u64>, String, String)>,
}

/// Keys that are written here though the converter leaves them out where llama.cpp has the same value anyway,
/// or has no use for them: it computes no windows for most architectures.
const MORE: [&str; 9] = [
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "vocab_size",
    "rope.freq_base",
    "rope.dimension_count",
    "attention.sliding_window",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Where the converter goes wrong: it leaves out which of Gemma 3's layers have windows if they are not the
/// usual ones, knows LongRoPE by its new name only, and has YaRN's factor on attention under a key that
/// llama.cpp does not read.
const OTHERWISE: [(&str, &str); 4] = [
    ("gemma3", "attention.sliding_window_pattern"),
    ("phi3-longrope", "rope.scaling.type"),
    ("olmo3", "rope.scaling.attn_factor"),
    ("olmo3", "rope.scaling.yarn_attn_factor"),
];

#[test]
fn models_are_what_llama_cpp_s_converter_makes_of_them() {
    let text = fs::read_to_string(fixture("gguf").join("converted.json")).unwrap();
    let converted: BTreeMap<String, Converted> = serde_json::from_str(&text).unwrap();
    assert!(converted.len() >= 20, "{}", converted.len());
    let mut wrong = Vec::new();
    for (case, expected) in &converted {
        let folder = tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        if let Err(error) = written(case, "f32", &path) {
            wrong.push(format!("{case}: {error}"));
            continue;
        }
        let (file, bytes) = (Gguf::open(&path).unwrap(), fs::read(&path).unwrap());
        assert_eq!(file.text("general.architecture"), Some(&*expected.architecture), "{case}");
        let of = |key: &str| file.metadata().get(&format!("{}.{key}", expected.architecture));
        for (key, value) in &expected.keys {
            let same = match of(key) {
                None => false,
                Some(GgufValue::Bools(flags)) => *value == json!(flags),
                Some(GgufValue::Bool(flag)) => *value == json!(flag),
                Some(GgufValue::Text(text)) => *value == json!(text),
                Some(_) => file
                    .number(&format!("{}.{key}", expected.architecture))
                    .zip(value.as_f64())
                    .is_some_and(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()),
            };
            if !same && !OTHERWISE.contains(&(case, key)) {
                wrong.push(format!("{case}: {key} is {:?}, not {value}", of(key)));
            }
        }
        for key in file.metadata().keys().filter_map(|key| key.strip_prefix(&expected.architecture)) {
            let key = &key[1..];
            if !expected.keys.contains_key(key) && !MORE.contains(&key) && !OTHERWISE.contains(&(case, key)) {
                wrong.push(format!("{case}: {key} is said here only"));
            }
        }
        let found: Vec<&String> = file.tensors().keys().collect();
        assert_eq!(found, expected.tensors.keys().collect::<Vec<_>>(), "{case}");
        for (name, (dimensions, kind, sum)) in &expected.tensors {
            let tensor = &file.tensors()[name];
            let words = bytes[tensor.start as usize..][..tensor.size_bytes as usize].chunks_exact(4);
            let total = words.enumerate().fold(0_u64, |total, (n, word)| {
                let word = u64::from(u32::from_le_bytes(word.try_into().unwrap()));
                total.wrapping_add(word.wrapping_mul(n as u64 + 1))
            });
            // Factors are computed, by another formula.
            let same = total.to_string() == *sum || name == "rope_freqs.weight";
            if !same || tensor.dimensions != *dimensions || tensor.kind.name() != kind {
                wrong.push(format!("{case}: {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
