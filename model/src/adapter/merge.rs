//! Merging: an adapter's update added to the base's weights, written as a model folder of its own, and the proof that
//! the folder computes what base and adapter compute together.

use std::fs;
use std::path::{Path, PathBuf};

use compute::ops::matmul::{Factor, matmul};
use compute::{DType, Matrix, Precision, random};
use serde_json::Value;

use super::parameters::{Adapter, Full, Lora, Trained};
use crate::activations::{Activations, Extent, Purpose};
use crate::batch::Batch;
use crate::checkpoint::{CheckpointWriter, SHARD_BYTES, StoredDType, TensorSpec, write_whole};
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::memory::Allocator;
use crate::names::{ModuleId, Parameter};

/// Files of a model folder that stand beside the weights and go with a merged model unchanged.
const COMPANIONS: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
];

/// The configuration of the merged model: a tied head that was adapted by itself is no longer tied.
fn merged_config(config: &Config, adapter: &Adapter) -> Config {
    let mut merged = config.clone();
    let head = adapter.layout.get(ModuleId::Head);
    if config.tie_word_embeddings && head.is_some() && head != adapter.layout.get(ModuleId::Embedding) {
        merged.tie_word_embeddings = false;
        merged.raw.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
    }
    if config.tie_word_embeddings && head.is_none() && adapter.layout.get(ModuleId::Embedding).is_some() {
        // PEFT trains its own copy of the embeddings and leaves the head with the base's.
        merged.tie_word_embeddings = false;
        merged.raw.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
    }
    merged
}

impl Decoder {
    /// A parameter as base and adapter have it together: `W0 + scale * B A`, in `f32`.
    fn merged_parameter(&self, adapter: &Adapter, parameter: &Parameter) -> Matrix {
        let mut merged = Matrix::zeros(parameter.rows, parameter.cols, DType::F32);
        let module = parameter.module;
        let trained = adapter.layout.get(module);
        let whole = match trained {
            Some(Trained::Full(Full { bias, .. })) if parameter.bias => bias,
            Some(Trained::Full(Full { weight, .. })) => Some(weight),
            _ => None,
        };
        let base = || match parameter.bias {
            true => self.base_bias(module).expect("the configuration says that there is a bias"),
            false => self.base_weight(module),
        };
        merged.as_mut().copy_from(whole.map_or_else(base, |index| adapter.tensor(index)));
        if let (Some(Trained::Lora(Lora { scale, .. })), false) = (trained, parameter.bias) {
            let Some(Trained::Lora(lora)) = trained else { unreachable!() };
            let (a, b) = adapter.lora(lora);
            matmul(
                &self.device,
                Precision::F32,
                scale,
                Factor::Plain(b),
                Factor::Plain(a),
                true,
                merged.as_mut(),
            );
        }
        merged
    }

    /// Writes base and adapter as one model into `output`, a folder that does not exist yet or is empty, with weights
    /// stored as `dtype`, and the tokenizer's files of `base_folder`. The folder appears whole or not at all.
    ///
    /// # Errors
    /// If `output` is taken, or a file cannot be written.
    pub fn write_merged(
        &self,
        adapter: &Adapter,
        base_folder: &Path,
        output: &Path,
        dtype: StoredDType,
    ) -> Result<()> {
        if fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()) {
            let problem = "is not empty; name a new folder, so that nothing is overwritten";
            return Err(ModelError::file(output, problem));
        }
        let beside = beside(output);
        let _ = fs::remove_dir_all(&beside);
        fs::create_dir_all(&beside).map_err(|e| ModelError::write(&beside, e))?;
        let written = self.write_model_files(adapter, base_folder, &beside, dtype).and_then(|()| {
            let _ = fs::remove_dir(output);
            fs::rename(&beside, output).map_err(|e| ModelError::write(output, e))
        });
        if written.is_err() {
            let _ = fs::remove_dir_all(&beside);
        }
        written
    }

    /// The files of [`Decoder::write_merged`], each written aside and renamed, into a folder that exists.
    pub fn write_model_files(
        &self,
        adapter: &Adapter,
        base: &Path,
        folder: &Path,
        dtype: StoredDType,
    ) -> Result<()> {
        let config = merged_config(&self.config, adapter);
        let parameters = config.parameters();
        let spec = |p: &Parameter| TensorSpec { name: p.name(), shape: p.file_shape(), dtype };
        let mut writer = CheckpointWriter::model(folder, parameters.iter().map(spec).collect(), SHARD_BYTES)?;
        for parameter in &parameters {
            writer.write(&parameter.name(), self.merged_parameter(adapter, parameter).as_ref())?;
        }
        writer.finish()?;
        for name in COMPANIONS {
            let from = base.join(name);
            if from.is_file() {
                let bytes = fs::read(&from).map_err(|e| ModelError::read(&from, e))?;
                write_whole(&folder.join(name), &bytes)?;
            }
        }
        write_whole(&folder.join("config.json"), config.to_json(dtype).as_bytes())
    }

    /// Logits in `f32`, `[rows, V]`, of token sequences that are drawn from the vocabulary by a fixed seed: the same
    /// for any two models of one vocabulary.
    pub fn probe(&self, adapter: Option<&Adapter>) -> Matrix {
        const SEQUENCES: usize = 4;
        const TOKENS: usize = 16;
        let mut batch = Batch::new();
        for sequence in 0..SEQUENCES as u64 {
            let token = |i| random::below(random::key(0, sequence), i, self.config.vocab_size as u64) as u32;
            batch.push_unlabelled(&(0..TOKENS as u64).map(token).collect::<Vec<_>>());
        }
        let (tokens, precision) = (batch.tokens(), self.precision);
        let extent = Extent { tokens, positions: TOKENS, purpose: Purpose::Infer, precision };
        let layout = adapter.map(|a| a.layout.clone()).unwrap_or_default();
        let mut buffers = Activations::new(&self.config, &layout, 0.0, extent, &mut Allocator::real());
        let run = self.run(adapter);
        self.forward(&run, &batch, None, &mut buffers);
        let mut logits = Matrix::zeros(tokens, self.config.vocab_size, DType::F32);
        let rows: Vec<usize> = (0..tokens).collect();
        for rows in rows.chunks(buffers.logits_rows()) {
            let from = self.logits(&run, rows, &mut buffers);
            logits.as_mut().rows_range(rows[0]..rows[0] + rows.len()).copy_from(from);
        }
        logits
    }
}

/// How far two sets of logits are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The largest difference of two logits.
    pub largest: f64,
    /// Root of the mean squared difference over that of the first set.
    pub relative: f64,
}

impl Difference {
    /// Compares logits of one shape.
    pub fn between(expected: &Matrix, got: &Matrix) -> Self {
        let (expected, got) = (expected.as_ref().f32(), got.as_ref().f32());
        assert_eq!(expected.len(), got.len(), "logits of one shape");
        let (mut largest, mut squares, mut norm) = (0.0_f64, 0.0, 0.0);
        for (&e, &g) in expected.iter().zip(got) {
            let d = f64::from(e) - f64::from(g);
            largest = largest.max(d.abs());
            squares += d * d;
            norm += f64::from(e) * f64::from(e);
        }
        Difference { largest, relative: (squares / norm.max(f64::MIN_POSITIVE)).sqrt() }
    }

    /// What rounding the merged weights to `dtype` may cost in relative error; more is a defect, not rounding.
    pub fn bound(dtype: StoredDType) -> f64 {
        match dtype {
            StoredDType::F32 => 1e-4,
            StoredDType::F16 => 5e-3,
            StoredDType::Bf16 => 3e-2,
        }
    }
}

fn beside(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    output.with_file_name(format!(".{name}.partial"))
}
