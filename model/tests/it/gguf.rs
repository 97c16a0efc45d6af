//! Headers of GGUF files: what the package `gguf` reads in them, and files that lie.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use compute::{Device, random};
use model::adapter::peft::{PeftConfig, Selection, targets};
use model::gguf::adapter::{Exported, export};
use model::gguf::{Gguf, GgufValue, TensorType};
use model::{Adapter, Config, Layout};
use tempfile::{NamedTempFile, tempdir};

use crate::common::fixture;
use crate::families;

thread_local! {
    static FILE: NamedTempFile = NamedTempFile::new().unwrap();
}

fn open(bytes: &[u8]) -> Result<Gguf, String> {
    FILE.with(|file| {
        fs::write(file.path(), bytes).unwrap();
        Gguf::open(file.path()).map_err(|error| error.to_string())
    })
}

/// Dimensions, type, first byte and number of bytes of a tensor.
type Place = (Vec<u64>, String, u64, u64);

#[test]
fn tensors_lie_where_the_package_gguf_finds_them() {
    let text = fs::read_to_string(fixture("gguf").join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Place>> = serde_json::from_str(&text).unwrap();
    for (name, expected) in expected {
        let file = Gguf::open(&fixture("gguf").join(&name)).unwrap();
        let found = file.tensors().iter().map(|(name, tensor)| {
            let kind = tensor.kind.name().to_owned();
            (name.clone(), (tensor.dimensions.clone(), kind, tensor.start, tensor.size_bytes))
        });
        assert_eq!(found.collect::<BTreeMap<_, _>>(), expected, "{name}");
        assert!(!expected.is_empty(), "{name}");
    }
}

#[test]
fn metadata_has_every_kind_of_value() {
    let file = Gguf::open(&fixture("gguf").join("model.gguf")).unwrap();
    let values: [(&str, GgufValue); 14] = [
        ("general.name", GgufValue::Text("tiny".into())),
        ("general.alignment", GgufValue::Integer(64)),
        ("llama.attention.head_count_kv", GgufValue::Integers(vec![2, 1])),
        ("llama.rope.freq_base", GgufValue::Float(10000.0)),
        ("tokenizer.ggml.scores", GgufValue::Floats(vec![0.0, 0.0, -1.5, -2.0, -3.0])),
        ("tiny.yes", GgufValue::Bool(true)),
        ("tiny.flags", GgufValue::Bools(vec![true, false])),
        ("tiny.i8", GgufValue::Integer(-8)),
        ("tiny.u8", GgufValue::Integer(200)),
        ("tiny.i16", GgufValue::Integer(-300)),
        ("tiny.u16", GgufValue::Integer(60000)),
        ("tiny.i64", GgufValue::Integer(-(1 << 60))),
        ("tiny.u64", GgufValue::Integer((1 << 63) + 1)),
        ("tiny.f64", GgufValue::Float(0.1)),
    ];
    for (key, value) in values {
        assert_eq!(file.metadata().get(key), Some(&value), "{key}");
    }
    let Some(GgufValue::Texts(tokens)) = file.metadata().get("tokenizer.ggml.tokens") else {
        panic!("texts")
    };
    assert_eq!(tokens[4], "Ġab");
    let adapter = Gguf::open(&fixture("gguf").join("adapter.gguf")).unwrap();
    assert_eq!(adapter.number("adapter.lora.alpha"), Some(16.0));
    assert_eq!(adapter.text("general.type"), Some("adapter"));
}

/// A header, put together by hand.
#[derive(Clone)]
struct Header {
    version: u32,
    tensors: Option<u64>,
    pairs: Vec<Vec<u8>>,
    described: Vec<Vec<u8>>,
    data: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

fn described(name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let sizes: Vec<u8> = dimensions.iter().flat_map(|size| size.to_le_bytes()).collect();
    let count = (dimensions.len() as u32).to_le_bytes();
    [&text(name)[..], &count, &sizes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

impl Header {
    fn new(pairs: Vec<Vec<u8>>, described: Vec<Vec<u8>>) -> Self {
        Header { version: 3, tensors: None, pairs, described, data: 64 }
    }

    fn bytes(&self) -> Vec<u8> {
        let tensors = self.tensors.unwrap_or(self.described.len() as u64);
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend((self.pairs.len() as u64).to_le_bytes());
        self.pairs.iter().chain(&self.described).for_each(|part| bytes.extend(part));
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }
}

#[test]
fn each_malformed_file_is_told_what_is_wrong() {
    let plain = Header::new(vec![pair("a", 4, &[1, 0, 0, 0])], vec![described("t", &[4, 2], 0, 0)]);
    assert_eq!(open(&plain.bytes()).unwrap().tensors()["t"].elements(), 8);
    let of = |kind: u32, value: &[u8]| Header::new(vec![pair("a", kind, value)], vec![]);
    let with = |parts: Vec<Vec<u8>>| Header::new(vec![], parts);
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let cases: Vec<(Header, &str)> = vec![
        (Header { version: 1, ..plain.clone() }, "of version 1"),
        (Header { version: 7, ..plain.clone() }, "of version 7; 2 and 3 are known"),
        (Header { version: 0, ..plain.clone() }, "of version 0; 2 and 3 are known"),
        (Header { version: 0x0300_0000, ..plain.clone() }, "big-endian"),
        (Header { tensors: Some(u64::MAX), ..plain.clone() }, "claims 18446744073709551615 tensors"),
        (Header { tensors: Some(99), ..plain.clone() }, "claims 99 tensors"),
        (of(13, &[0; 8]), "`a` has a value of the unknown type 13"),
        (of(7, &[2]), "`a` is 2 where true is 1 and false 0"),
        (of(8, &u64::MAX.to_le_bytes()), "claims 18446744073709551615 bytes in the value of `a`"),
        (of(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "that is no UTF-8"),
        (of(9, &array(9, 1)), "array of arrays"),
        (of(9, &array(99, 1)), "array of the unknown type 99"),
        (
            of(9, &[&array(10, 1)[..], &[0xff; 8]].concat()),
            "`a` has 18446744073709551615, more than 63 bits hold",
        ),
        (of(9, &array(8, 1 << 60)), "claims 1152921504606846976 elements in the value of `a`"),
        (of(9, &array(0, 1 << 20)), "claims 1048576 elements in the value of `a`"),
        (Header::new(vec![pair("a", 0, &[1]), pair("a", 0, &[1])], vec![]), "`a` stands twice"),
        (of_alignment(3), "`general.alignment` is not a power of two"),
        (of_alignment(0), "`general.alignment` is not a power of two"),
        (with(vec![described("t", &[1; 5], 0, 0)]), "tensor `t` has 5 dimensions"),
        (with(vec![described("t", &[4], 999, 0)]), "tensor `t` is of type 999"),
        (with(vec![described("t", &[33, 2], 2, 0)]), "has rows of 33 values, and Q4_0 stores 32"),
        (with(vec![described("t", &[1 << 40, 1 << 40], 0, 0)]), "too many"),
        (with(vec![described("t", &[1 << 62], 0, 0)]), "too many"),
        (with(vec![described("t", &[4], 0, 8)]), "begins at byte 8, no multiple of the alignment 32"),
        (with(vec![described("t", &[17], 0, 0)]), "claims 68 bytes from 0 on"),
        (with(vec![described("t", &[4], 0, u64::MAX - 31)]), "claims 16 bytes from 18446744073709551584 on"),
        (with(vec![described("t", &[9], 0, 0), described("u", &[4], 0, 32)]), "tensor `u` lies over `t`"),
        (with(vec![described("t", &[4], 0, 0), described("t", &[4], 0, 32)]), "tensor `t` stands twice"),
    ];
    for (header, words) in cases {
        let told = open(&header.bytes()).unwrap_err();
        assert!(told.contains(words), "{words}: {told}");
    }
    // A header is no place for a model's weights: what it could hold is bounded, whatever the file's length.
    let long = NamedTempFile::new().unwrap();
    fs::write(long.path(), of(9, &array(0, 150_000_000)).bytes()).unwrap();
    long.as_file().set_len(200_000_000).unwrap();
    let told = Gguf::open(long.path()).unwrap_err().to_string();
    assert!(told.contains("with which its header is longer than 100000000 bytes"), "{told}");
    assert!(open(b"GGML....").unwrap_err().contains("does not begin with `GGUF`"));
    assert!(open(b"GG").unwrap_err().contains("ends within the mark"));
}

fn of_alignment(alignment: u32) -> Header {
    Header::new(vec![pair("general.alignment", 4, &alignment.to_le_bytes())], vec![])
}

/// Wherever a file ends and whatever stands in it: read, or refused.
#[test]
fn no_spoilt_file_ends_in_a_panic() {
    let whole = fs::read(fixture("gguf").join("model.gguf")).unwrap();
    let header = 1856;
    for length in 0..header {
        assert!(open(&whole[..length]).is_err(), "{length} bytes");
    }
    for seed in 0..3000 {
        let mut spoilt = whole.clone();
        for change in 0..1 + random::below(seed, 0, 4) {
            let place = random::below(seed, 1 + 2 * change, header as u64) as usize;
            spoilt[place] = [0, 1, 0x7f, 0x80, 0xff][random::below(seed, 2 + 2 * change, 5) as usize];
        }
        // Either way it must come back.
        let _ = open(&spoilt);
    }
}

#[test]
fn types_have_the_sizes_that_the_package_gguf_gives_them() {
    let known: Vec<(u32, u64, u64)> =
        TensorType::all().map(|of| (of.number(), of.block_elements(), of.block_bytes())).collect();
    let bits = |number: u32| {
        let (_, elements, bytes) = known.iter().find(|of| of.0 == number).unwrap();
        8.0 * *bytes as f64 / *elements as f64
    };
    // F32, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K, IQ4_XS, MXFP4: bits a weight, as llama.cpp names them.
    let expected = [(0, 32.0), (2, 4.5), (3, 5.0), (8, 8.5), (12, 4.5), (14, 6.5625), (23, 4.25), (39, 4.25)];
    expected.into_iter().for_each(|(number, expected)| assert_eq!(bits(number), expected, "{number}"));
    assert!(TensorType::of(4).is_none(), "a type that ggml has given up");
}

/// An adapter of these settings whose values are all of some size.
fn adapter(config: &Config, settings: &PeftConfig) -> Adapter {
    let resolution = targets::resolve(settings, config).unwrap();
    let mut adapter = Adapter::zeros(Layout::of_adapter(&resolution, config), 0.0, &Device::cpu(1));
    for (i, value) in adapter.parameters.values_mut().f32().iter_mut().enumerate() {
        *value = random::uniform(7, i as u64) as f32 - 0.5;
    }
    adapter
}

fn all_linear(r: usize) -> PeftConfig {
    let target_modules = Some(Selection::Expression("all-linear".to_owned()));
    PeftConfig { target_modules, r, lora_alpha: 6.0, ..PeftConfig::default() }
}

/// The adapter in a file, and what is told of it.
fn exported(config: &Config, settings: &PeftConfig) -> Result<(Exported, Gguf, Vec<u8>), String> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let told = export(&adapter(config, settings), Path::new("mine"), config, &path)
        .map_err(|error| error.to_string())?;
    Ok((told, Gguf::open(&path).unwrap(), fs::read(path).unwrap()))
}

#[test]
fn adapters_have_the_names_that_the_package_gguf_gives_their_weights() {
    let text = fs::read_to_string(fixture("gguf").join("names.json")).unwrap();
    let names: BTreeMap<String, BTreeMap<String, Option<String>>> = serde_json::from_str(&text).unwrap();
    for case in families::ALL.into_iter().chain(["llama2", "mistral", "qwen2", "qwen3"]) {
        let config = Config::load(&fixture(case)).unwrap();
        let form = config.gguf.unwrap();
        let (told, file, _) = exported(&config, &all_linear(2)).unwrap();
        assert_eq!(told.architecture, form.architecture, "{case}");
        assert_eq!(file.text("general.architecture"), Some(form.architecture), "{case}");
        let of_layer_1 = file.tensors().keys().filter_map(|name| name.strip_suffix(".weight.lora_a"));
        let found: Vec<&str> = of_layer_1.filter(|name| name.starts_with("blk.1.")).collect();
        let mut expected: Vec<&str> = Vec::new();
        for (module, _) in adapter(&config, &all_linear(2)).layout.modules() {
            let path = config.path(module).replace("model.language_model.", "model.");
            let name = names[form.architecture].get(&path);
            expected.extend(
                name.into_iter().flatten().map(String::as_str).filter(|name| name.starts_with("blk.")),
            );
        }
        expected.sort_unstable();
        assert_eq!(found, expected, "{case}");
        assert!(!found.is_empty(), "{case}");
    }
}

/// `alpha / R * B A` of the file is the adapter's update, its rows as llama.cpp permutes those of the base:
/// `w.reshape(heads, 2, D / 2, in).swapaxes(1, 2)`.
#[test]
fn the_updates_in_a_file_are_the_adapters_own_whatever_their_scales() {
    let config = Config::load(&fixture("llama3")).unwrap();
    let patterns = PeftConfig {
        use_rslora: true,
        rank_pattern: vec![("k_proj".into(), 3)],
        alpha_pattern: vec![("v_proj".into(), 1.5)],
        ..all_linear(4)
    };
    // One alpha over two ranks is one alpha; an update that is scaled by zero is one of zeros.
    let ranks = PeftConfig { rank_pattern: vec![("k_proj".into(), 3)], lora_alpha: 5.0, ..all_linear(7) };
    let zero = PeftConfig { alpha_pattern: vec![("q_proj".into(), 0.0)], ..all_linear(4) };
    for (settings, rescales) in [(all_linear(4), false), (patterns, true), (ranks, false), (zero, true)] {
        let adapter = adapter(&config, &settings);
        let (told, file, bytes) = exported(&config, &settings).unwrap();
        assert_eq!((told.updates, told.rescaled > 0), (adapter.layout.modules().count(), rescales));
        let values = |name: &str| -> Vec<f32> {
            let tensor = &file.tensors()[name];
            let bytes = &bytes[tensor.start as usize..][..tensor.size_bytes as usize];
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let parts = [
            ("q_proj", "attn_q", config.heads),
            ("k_proj", "attn_k", config.kv_heads),
            ("v_proj", "attn_v", 0),
            ("down_proj", "ffn_down", 0),
        ];
        for (part, name, heads) in parts {
            let (module, trained) =
                adapter.layout.modules().find(|(module, _)| config.path(*module).ends_with(part)).unwrap();
            let lora = trained.lora().unwrap();
            let (a, b) = adapter.lora(lora);
            assert!(config.path(module).starts_with("model.layers.0."));
            let (file_a, file_b) = (
                values(&format!("blk.0.{name}.weight.lora_a")),
                values(&format!("blk.0.{name}.weight.lora_b")),
            );
            assert_eq!(file_a, a.f32(), "{part}");
            let (scale, half) = (told.alpha / lora.rank as f32, b.rows() / heads.max(1) / 2);
            for row in 0..b.rows() {
                let to = match heads {
                    0 => row,
                    _ => row / (2 * half) * 2 * half + row % half * 2 + row / half % 2,
                };
                for (got, want) in
                    file_b[to * lora.rank..].iter().zip(&b.f32()[row * lora.rank..][..lora.rank])
                {
                    let (got, want) = (got * scale, want * lora.scale);
                    assert!((got - want).abs() <= 1e-6 * want.abs(), "{part}, row {row}: {got}, not {want}");
                }
            }
        }
    }
}

/// Whatever the alphas are, no value grows beyond `f32`, and one alpha over several ranks is one.
#[test]
fn factors_on_b_are_at_most_one() {
    let config = Config::load(&fixture("llama3")).unwrap();
    let patterns = vec![("q_proj".into(), 1e-38), ("v_proj".into(), 1e9)];
    let settings = PeftConfig { alpha_pattern: patterns, ..all_linear(4) };
    let (told, file, bytes) = exported(&config, &settings).unwrap();
    assert_eq!(told.alpha, 1e9);
    for tensor in file.tensors().values() {
        let values = bytes[tensor.start as usize..][..tensor.size_bytes as usize].chunks_exact(4);
        assert!(values.map(|b| f32::from_le_bytes(b.try_into().unwrap())).all(|value| value.abs() <= 0.5));
    }
    for (alpha, ranks) in [(6.0, (21, 8)), (48.0, (37, 41)), (0.1, (3, 7)), (16.0, (47, 5))] {
        let rank_pattern = vec![("k_proj".into(), ranks.1)];
        let settings = PeftConfig { lora_alpha: alpha, rank_pattern, ..all_linear(ranks.0) };
        let (told, ..) = exported(&config, &settings).unwrap();
        assert_eq!((told.alpha, told.rescaled), (alpha as f32, 0), "{alpha} over {ranks:?}");
    }
}

#[test]
fn what_llama_cpp_has_no_adapter_for_is_refused() {
    let config = Config::load(&fixture("llama3")).unwrap();
    let moe = Config::load(&fixture("mixtral")).unwrap();
    let of = |names: &[&str]| PeftConfig {
        target_modules: Some(Selection::List(names.iter().map(|name| (*name).to_owned()).collect())),
        ..all_linear(2)
    };
    let whole = PeftConfig { modules_to_save: vec!["norm".into()], ..of(&["q_proj"]) };
    let experts = PeftConfig { target_parameters: vec!["mlp.experts.down_proj".into()], ..of(&["q_proj"]) };
    for (config, settings, words) in [
        (&config, PeftConfig { use_dora: true, ..of(&["q_proj"]) }, "llama.cpp has no DoRA"),
        (&config, whole, "trained whole, and llama.cpp has no adapters of that"),
        (&config, of(&["lm_head"]), "the head is the embedding"),
        (&moe, experts, "which is not written as GGUF yet"),
    ] {
        let told = exported(config, &settings).unwrap_err();
        assert!(told.contains(words) && told.contains("merge the adapter"), "{words}: {told}");
    }
}
