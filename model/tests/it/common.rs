//! Reading the fixtures that transformers and PEFT made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compute::{Device, Matrix, Precision};
use model::adapter::merge::Difference;
use model::memory::Allocator;
use model::{
    Activations, Adapter, Batch, Checkpointing, Config, Decoder, Extent, Layout, ModelFolder, Purpose,
    StoredDType,
};

/// A fixture's folder.
pub(crate) fn fixture(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(case)
}

/// The same, opened as a model.
pub(crate) fn opened(case: &str) -> ModelFolder {
    ModelFolder::open(&fixture(case)).unwrap()
}

/// Tensors of a safetensors file: numbers of any type as `f64`, with their shape.
pub(crate) struct Tensors(BTreeMap<String, (Vec<usize>, Vec<f64>)>);

impl Tensors {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let data = &bytes[8 + length..];
        let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
        let numbers = |v: &serde_json::Value| -> Vec<usize> {
            v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
        };
        let read = |info: &serde_json::Value| {
            let span = numbers(&info["data_offsets"]);
            let data = &data[span[0]..span[1]];
            let values = match info["dtype"].as_str().unwrap() {
                "F32" => {
                    data.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
                }
                "I64" => data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
                other => panic!("a fixture of type {other}"),
            };
            (numbers(&info["shape"]), values)
        };
        Tensors(tensors.map(|(name, info)| (name.clone(), read(info))).collect())
    }

    pub(crate) fn get(&self, name: &str) -> &[f64] {
        &self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<u32> {
        self.get(name).iter().map(|&v| v as u32).collect()
    }

    pub(crate) fn labels(&self, name: &str) -> Vec<i32> {
        self.get(name).iter().map(|&v| v as i32).collect()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The model of a fixture in `f32`.
pub(crate) fn load(case: &str) -> Decoder {
    Decoder::load(&fixture(case), &Device::cpu(2), Precision::F32, None).unwrap()
}

/// Buffers for training on batches of up to `tokens` tokens.
pub(crate) fn training_buffers(
    decoder: &Decoder,
    layout: &Layout,
    dropout: f32,
    tokens: usize,
) -> Activations {
    let purpose = Purpose::Train(Checkpointing::None);
    let extent = Extent { tokens, positions: tokens, purpose, precision: decoder.precision };
    Activations::new(&decoder.config, layout, dropout, extent, &mut Allocator::real(&Device::cpu(2)))
}

/// A model folder of random weights, whose inputs are whole groups of 32 but perhaps for those of `down_proj`.
pub(crate) fn random_llama(to: &Path, inner: usize) -> ModelFolder {
    let json = format!(
        r#"{{"model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": {inner},
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.2, "rms_norm_eps": 1e-6, "tie_word_embeddings": false}}"#
    );
    std::fs::write(to.join("config.json"), &json).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let _ = std::fs::copy(fixture("llama3").join(file), to.join(file));
    }
    let config = Config::from_json(&json, Path::new("config.json")).unwrap();
    let decoder = Decoder::random(&config, &Device::cpu(2), Precision::F32, None, 7);
    let nothing = Adapter::zeros(Layout::default(), 0.0, &decoder.device);
    let folder = ModelFolder::open(to).unwrap();
    decoder.write_model_files(&nothing, &folder, to, to, StoredDType::F32).unwrap();
    ModelFolder::open(to).unwrap()
}

/// The logits of every row of a batch.
pub(crate) fn all_logits(
    decoder: &Decoder,
    run: &model::Run<'_>,
    batch: &Batch,
    buffers: &mut Activations,
) -> Matrix {
    decoder.forward(run, batch, None, buffers);
    let rows: Vec<usize> = (0..batch.tokens()).collect();
    let logits = decoder.logits(run, &rows, buffers);
    Matrix::from_f32(logits.rows(), logits.cols(), logits.f32())
}

/// The largest difference.
pub(crate) fn largest_difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(&g, &e)| (f64::from(g) - e).abs()).fold(0.0, f64::max)
}

/// The L2 norm of the difference over that of what is expected.
pub(crate) fn relative_difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let difference: f64 = got.iter().zip(expected).map(|(&g, &e)| (f64::from(g) - e).powi(2)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    (difference / norm.max(1e-30)).sqrt()
}

/// Where the logits, or the residual stream after a layer, of a fixture are 1e-4 or more off transformers'.
pub(crate) fn off_transformers(case: &str, decoder: &Decoder) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected = Tensors::read(&fixture(case).join("expected.safetensors"));
    let mut batch = Batch::new();
    batch.push_unlabelled(&expected.ids("input_ids"));
    let run = decoder.run(None);
    let mut buffers = training_buffers(decoder, &Layout::default(), 0.0, batch.tokens());
    let logits = all_logits(decoder, &run, &batch, &mut buffers);
    let mut compare = |what: &str, got: &[f32], key: &str| {
        let difference = largest_difference(got, expected.get(key));
        if difference.is_nan() || difference >= 1e-4 {
            wrong.push(format!("{case}: {what} off by {difference}"));
        }
    };
    for layer in 0..decoder.config.layers {
        let stream = decoder.residual(layer + 1, batch.tokens(), &buffers);
        compare(&format!("residual stream after layer {layer}"), stream.f32(), &format!("residual.{layer}"));
    }
    compare("logits", logits.as_ref().f32(), "logits");
    wrong
}

/// Merges an adapter into a fixture's model, compares what the merged model computes with what base and
/// adapter do, and returns the folder of the merged model.
#[track_caller]
pub(crate) fn check_merged(case: &str, base: &Decoder, adapter: &Adapter) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    base.write_model_files(adapter, &opened(case), &fixture(case), folder.path(), StoredDType::F32).unwrap();
    let merged = Decoder::load(folder.path(), &Device::cpu(2), Precision::F32, None).unwrap();
    let (alone, both, after) = (base.probe(None), base.probe(Some(adapter)), merged.probe(None));
    let difference = Difference::between(&both, &after);
    assert!(difference.relative < 2e-6, "{case}: {difference:?}");
    assert!(Difference::between(&alone, &both).relative > 1e-3, "{case}: the adapter can be seen");
    folder
}
