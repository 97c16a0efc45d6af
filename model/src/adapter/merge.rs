//! Merging: an adapter's update added to the base's weights, written as a model folder of its own, and the
//! proof that the folder computes what base and adapter compute together.

use std::path::Path;

use compute::{DType, Matrix, MatrixRef, random};

use super::method::{dora, lora};
use super::parameters::{Adapter, Trained};
use crate::activations::{Activations, Extent, Purpose};
use crate::batch::Batch;
use crate::checkpoint::{
    CheckpointWriter, SHARD_BYTES, StoredDType, TensorSpec, copy_companions, copy_tokenizer, transpose,
    write_whole,
};
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::linear::BaseWeight;
use crate::memory::Allocator;
use crate::names::{ModuleId, Parameter};

/// The configuration of the merged model. Where head and embeddings share a weight and an adapter changes
/// only one of them (PEFT trains a copy of the one and leaves the other with the base's), they are no longer
/// tied.
fn merged_config(config: &Config, adapter: &Adapter) -> Config {
    let mut merged = config.clone();
    // What was quantized is merged as values.
    merged.raw.remove("quantization_config");
    merged.quantization = None;
    let trained = |module| adapter.layout.get(module);
    if config.tie_word_embeddings && trained(ModuleId::Head) != trained(ModuleId::Embedding) {
        merged.untie();
    }
    merged
}

impl Decoder {
    /// Writes one parameter as base and adapter have it together: the adapter's own copy, or `W0 + scale * B
    /// A` in `f32`, or the base's.
    fn write_parameter(
        &self,
        adapter: &Adapter,
        parameter: &Parameter,
        name: &str,
        to: &mut CheckpointWriter,
    ) -> Result<()> {
        let mut write = |values: MatrixRef<'_>| match parameter.transposed {
            false => to.write(name, values),
            true => {
                let mut turned = Matrix::unset(values.cols(), values.rows(), values.dtype());
                transpose(values.download().as_ref(), turned.as_mut());
                to.write(name, turned.as_ref())
            }
        };
        let module = parameter.module;
        match adapter.layout.get(module) {
            Some(Trained::Full(full)) => {
                let bias = || full.bias.expect("a bias is trained with its weight");
                write(adapter.tensor(if parameter.bias { bias() } else { full.weight }))
            }
            Some(update @ (Trained::Lora(_) | Trained::Dora(_))) if !parameter.bias => {
                let mut merged = self.device.zeros(parameter.rows, parameter.cols, DType::F32);
                self.base_weight(module).copy_to(&self.device, merged.as_mut());
                match update {
                    Trained::Dora(update) => dora::merge(adapter, update, &self.device, merged.as_mut()),
                    update => {
                        let update = update.lora().expect("it is one or the other");
                        lora::merge(adapter, update, &self.device, merged.as_mut());
                    }
                }
                write(merged.as_ref())
            }
            _ if parameter.bias => write(self.base_bias(module).expect("the configuration has a bias")),
            _ => match self.base_weight(module) {
                BaseWeight::Dense(weight) => write(weight),
                BaseWeight::Quantized(weight) => write(weight.dequantize(&self.device, DType::F32).as_ref()),
            },
        }
    }

    /// Writes base and adapter as one model into a folder that exists, with weights stored as `dtype` under
    /// the names that they have in `base`, the parts that are not for texts as they are there, and what
    /// stands beside the weights, but the tokenizer's files of the folder `tokenizer`. Each file is written
    /// aside and renamed; config.json comes last.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn write_model_files(
        &self,
        adapter: &Adapter,
        base: &ModelFolder,
        tokenizer: &Path,
        folder: &Path,
        dtype: StoredDType,
    ) -> Result<()> {
        let config = merged_config(&self.config, adapter);
        let (stored, parameters) = (base.checkpoint.as_ref(), config.parameters());
        let name = |p: &Parameter| stored.map_or_else(|| p.name(), |stored| stored.spelling(p));
        let names: Vec<String> = parameters.iter().map(name).collect();
        let spec = |(p, name): (&Parameter, &String)| TensorSpec {
            name: name.clone(),
            shape: p.file_shape(),
            dtype,
        };
        let mut specs: Vec<TensorSpec> = parameters.iter().zip(&names).map(spec).collect();
        specs.extend(stored.map(|stored| stored.foreign(&config)).unwrap_or_default());
        let mut writer = CheckpointWriter::model(folder, specs, SHARD_BYTES)?;
        for (parameter, name) in parameters.iter().zip(&names) {
            self.write_parameter(adapter, parameter, name, &mut writer)?;
        }
        stored.map_or(Ok(()), |stored| stored.copy_foreign(&config, &mut writer))?;
        writer.finish()?;
        copy_tokenizer(tokenizer, folder, true)?;
        copy_companions(&base.path, folder)?;
        write_whole(&folder.join("config.json"), config.to_json(dtype).as_bytes())
    }

    /// Logits in `f32`, `[rows, V]`, of token sequences that are drawn from the vocabulary by a fixed seed:
    /// the same for any two models of one vocabulary.
    pub fn probe(&self, adapter: Option<&Adapter>) -> Matrix {
        const SEQUENCES: u64 = 4;
        const TOKENS: usize = 16;
        let length = TOKENS.min(self.config.max_position_embeddings) as u64;
        let token =
            |sequence, i| random::below(random::key(0, sequence), i, self.config.vocab_size as u64) as u32;
        let sequence = |n| (0..length).map(|i| token(n, i)).collect();
        self.logits_of(adapter, &(0..SEQUENCES).map(sequence).collect::<Vec<Vec<u32>>>())
    }

    /// Logits in `f32`, `[rows, V]`, of all tokens of sequences that are not empty.
    pub fn logits_of(&self, adapter: Option<&Adapter>, sequences: &[Vec<u32>]) -> Matrix {
        let mut batch = Batch::new();
        for sequence in sequences {
            batch.push_unlabelled(sequence);
        }
        let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
        let (tokens, precision) = (batch.tokens(), self.precision);
        let extent = Extent { tokens, positions: longest, purpose: Purpose::Infer, precision };
        let layout = adapter.map(|a| a.layout.clone()).unwrap_or_default();
        let mut buffers =
            Activations::new(&self.config, &layout, 0.0, extent, &mut Allocator::real(&self.device));
        let run = self.run(adapter);
        self.forward(&run, &batch, None, &mut buffers);
        let mut logits = Matrix::zeros(tokens, self.config.vocab_size, DType::F32);
        let rows: Vec<usize> = (0..tokens).collect();
        for rows in rows.chunks(buffers.logits_rows()) {
            let from = self.logits(&run, rows, &mut buffers);
            let to = logits.as_mut().rows_range(rows[0]..rows[0] + rows.len());
            to.f32().copy_from_slice(from.download().f32());
        }
        logits
    }
}

/// How far two sets of logits are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The largest difference of two logits.
    pub largest: f64,
    /// The mean difference of two logits.
    pub mean: f64,
    /// Root of the mean squared difference over that of the first set.
    pub relative: f64,
}

impl Difference {
    /// Compares logits of one shape.
    pub fn between(expected: &Matrix, got: &Matrix) -> Self {
        let (expected, got) = (expected.as_ref().f32(), got.as_ref().f32());
        assert_eq!(expected.len(), got.len(), "logits of one shape");
        let (mut largest, mut sum, mut squares, mut norm) = (0.0_f64, 0.0, 0.0, 0.0);
        for (&e, &g) in expected.iter().zip(got) {
            let d = f64::from(e) - f64::from(g);
            largest = if d.is_nan() { f64::INFINITY } else { largest.max(d.abs()) };
            sum += d.abs();
            squares += d * d;
            norm += f64::from(e) * f64::from(e);
        }
        let mean = sum / expected.len().max(1) as f64;
        Difference { largest, mean, relative: (squares / norm.max(f64::MIN_POSITIVE)).sqrt() }
    }

    /// What rounding the merged weights to `dtype` may cost in relative error; more is a defect, not
    /// rounding.
    pub fn bound(dtype: StoredDType) -> f64 {
        match dtype {
            StoredDType::F32 => 1e-4,
            StoredDType::F16 => 5e-3,
            StoredDType::Bf16 => 3e-2,
            other => panic!("{} are no weights", other.name()),
        }
    }

    /// Whether this is no more than rounding to `dtype` explains; never if a logit is not a number.
    pub fn is_rounding(self, dtype: StoredDType) -> bool {
        self.largest.is_finite() && self.relative <= Difference::bound(dtype)
    }
}
