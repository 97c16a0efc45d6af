//! Merging: an adapter's update added to the base's weights, written as a model folder of its own, and the
//! proof that the folder computes what base and adapter compute together.

use std::collections::BTreeSet;
use std::path::Path;

use compute::quant::{BlockType, Blocks, Format, Quantized};
use compute::{DType, Matrix, MatrixRef, random};

use super::method::{dora, lora, qalora};
use super::parameters::{Adapter, Lora, Trained};
use crate::activations::{Activations, Extent, Purpose};
use crate::batch::Batch;
use crate::checkpoint::{
    CheckpointWriter, SHARD_BYTES, StoredDType, TensorSpec, copy_companions, copy_tokenizer, quantized,
    transpose, write_whole,
};
use crate::config::Config;
use crate::config::quantization::INTEGERS;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::folder::ModelFolder;
use crate::gguf::TensorType;
use crate::linear::BaseWeight;
use crate::memory::Allocator;
use crate::names::{ModuleId, Parameter};
use crate::quantize::is_quantized;

/// The configuration of the merged model. Where head and embeddings share a weight and an adapter changes
/// only one of them (PEFT trains a copy of the one and leaves the other with the base's), they are no longer
/// tied.
pub(crate) fn merged_config(config: &Config, adapter: &Adapter, Stored { dtype, linear }: Stored) -> Config {
    let mut merged = match linear {
        // What was quantized is merged as values.
        Linear::Values => config.as_values(),
        Linear::Kept(kind) => config.quantized(Format::Blocks(kind), dtype.torch_name()),
        Linear::Rounded(format) => config.quantized(format, dtype.torch_name()),
    };
    let trained = |module| adapter.layout.get(module);
    if config.tie_word_embeddings && trained(ModuleId::Head) != trained(ModuleId::Embedding) {
        merged.untie();
    }
    merged
}

/// How the weights of a merged model are stored.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// The type of values.
    pub dtype: StoredDType,
    /// What becomes of the linear layers.
    pub linear: Linear,
}

/// How linear layers are stored.
#[derive(Clone, Copy, Debug)]
pub enum Linear {
    /// As values.
    Values,
    /// Those that the base holds in blocks of this type as such ([`Decoder::integers_for`]), all others as
    /// values.
    Kept(BlockType),
    /// In this format: blocks of the base that are of it as they are, with an update that their minima take up,
    /// all others as the nearest to their values.
    Rounded(Format),
}

impl From<StoredDType> for Stored {
    fn from(dtype: StoredDType) -> Self {
        Stored { dtype, linear: Linear::Values }
    }
}

/// Whether an adapter has weights of its own in place of a parameter's.
pub(crate) fn is_whole(adapter: Option<&Adapter>, parameter: &Parameter) -> bool {
    matches!(adapter.and_then(|adapter| adapter.layout.get(parameter.module)), Some(Trained::Full(_)))
}

impl Decoder {
    /// The type of integers in which the base, with an adapter in it, can be stored exactly: every update adds
    /// one number to the weights of each group, whose minimum takes that up. Where the base has several it is
    /// the one that holds them all.
    pub fn integers_for(&self, adapter: &Adapter) -> Option<BlockType> {
        let kind = |module| match self.base_weight(module) {
            BaseWeight::Quantized(weight) => weight.blocks().map(Blocks::kind),
            BaseWeight::Dense(_) => None,
        };
        for (module, trained) in adapter.layout.modules() {
            match trained {
                Trained::Lora(_) => {
                    let kind = kind(module).filter(|kind| INTEGERS.contains(kind))?;
                    qalora::for_minima(trained, kind)?;
                }
                Trained::Full(_) => {}
                Trained::Dora(_) => return None,
            }
        }
        let parameters = self.config.parameters();
        let linear = parameters.iter().filter(|parameter| parameter.is_quantizable());
        let mut kinds: BTreeSet<BlockType> = linear.filter_map(|parameter| kind(parameter.module)).collect();
        let first = kinds.pop_first()?;
        if kinds.is_empty() { INTEGERS.contains(&first).then_some(first) } else { Some(BlockType::Int4) }
    }

    /// Passes on one parameter, `[rows, cols]`, as base and adapter have it together: the adapter's own copy,
    /// or `W0 + scale * B A` in `f32`, or the base's.
    pub(crate) fn with_parameter<R>(
        &self,
        adapter: Option<&Adapter>,
        parameter: &Parameter,
        with: impl FnOnce(MatrixRef<'_>) -> R,
    ) -> R {
        let module = parameter.module;
        let trained = adapter.and_then(|adapter| Some((adapter, adapter.layout.get(module)?)));
        match trained {
            Some((adapter, Trained::Full(full))) => {
                let bias = || full.bias.expect("a bias is trained with its weight");
                with(adapter.tensor(if parameter.bias { bias() } else { full.weight }))
            }
            Some((adapter, update @ (Trained::Lora(_) | Trained::Dora(_)))) if !parameter.bias => {
                let mut merged = self.device.zeros(parameter.rows, parameter.cols, DType::F32);
                self.base_weight(module).copy_to(&self.device, merged.as_mut());
                match update {
                    Trained::Dora(update) => dora::merge(adapter, update, &self.device, merged.as_mut()),
                    update => {
                        let update = update.lora().expect("it is one or the other");
                        lora::merge(adapter, update, &self.device, merged.as_mut());
                    }
                }
                with(merged.as_ref())
            }
            _ if parameter.bias => with(self.base_bias(module).expect("the configuration has a bias")),
            _ => match self.base_weight(module) {
                BaseWeight::Dense(weight) => with(weight),
                BaseWeight::Quantized(weight) => with(weight.dequantize(&self.device, DType::F32).as_ref()),
            },
        }
    }

    /// The blocks that a parameter and what is trained on it come to: those of the base as they are, with an
    /// update that their minima take up, or else the nearest to the values. None if those are too large for
    /// scales of half precision.
    pub(crate) fn blocks_of(
        &self,
        adapter: Option<&Adapter>,
        parameter: &Parameter,
        kind: BlockType,
    ) -> Option<Blocks> {
        let is_finite = |blocks: &Blocks| blocks.not_finite().is_none();
        let Some((blocks, update)) = self.kept_blocks(adapter, parameter, kind) else {
            let blocks = self.with_parameter(adapter, parameter, |values| {
                Quantized::quantize(&self.device, values, Format::Blocks(kind)).into_blocks()
            });
            return Some(blocks).filter(is_finite);
        };
        let blocks = match update {
            Some((adapter, lora)) => qalora::merge_into_minima(adapter, lora, &self.device, blocks),
            None => blocks.to_owned(),
        };
        Some(if blocks.kind() == kind { blocks } else { blocks.widened(kind) }).filter(is_finite)
    }

    /// The base's own blocks of a parameter, if they stay in a file of this type, but for an update of their
    /// minima.
    pub(crate) fn kept_blocks<'a>(
        &'a self,
        adapter: Option<&'a Adapter>,
        parameter: &Parameter,
        kind: BlockType,
    ) -> Option<(&'a Blocks, Option<(&'a Adapter, Lora)>)> {
        if parameter.is_vector() {
            return None;
        }
        let BaseWeight::Quantized(weight) = self.base_weight(parameter.module) else { return None };
        let blocks = weight.blocks()?;
        let is_held = blocks.kind() == kind || TensorType::of_blocks(blocks.kind()).blocks() == Some(kind);
        match adapter.and_then(|adapter| Some((adapter, adapter.layout.get(parameter.module)?))) {
            _ if !is_held => None,
            None => Some((blocks, None)),
            Some((adapter, trained)) => {
                Some((blocks, Some((adapter, qalora::for_minima(trained, blocks.kind())?))))
            }
        }
    }

    /// Writes one parameter as base and adapter have it together.
    fn write_parameter(
        &self,
        adapter: &Adapter,
        parameter: &Parameter,
        name: &str,
        to: &mut CheckpointWriter,
    ) -> Result<()> {
        self.with_parameter(Some(adapter), parameter, |values| match parameter.transposed {
            false => to.write(name, values),
            true => {
                let mut turned = Matrix::unset(values.cols(), values.rows(), values.dtype());
                transpose(values.download().as_ref(), turned.as_mut());
                to.write(name, turned.as_ref())
            }
        })
    }

    /// Writes base and adapter as one model into a folder that exists, with weights stored as is said under
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
        stored_as: impl Into<Stored>,
    ) -> Result<()> {
        let stored_as @ Stored { dtype, linear } = stored_as.into();
        let config = merged_config(&self.config, adapter, stored_as);
        let (stored, parameters) = (base.checkpoint.as_ref(), config.parameters());
        let name = |p: &Parameter| stored.map_or_else(|| p.name(), |stored| stored.spelling(p));
        let names: Vec<String> = parameters.iter().map(name).collect();
        let format = |p: &Parameter| match linear {
            Linear::Values => None,
            Linear::Kept(kind) => {
                let is_kept = p.is_quantizable() && self.kept_blocks(Some(adapter), p, kind).is_some();
                is_kept.then_some(Format::Blocks(kind))
            }
            Linear::Rounded(format) => is_quantized(p, format).then_some(format),
        };
        let specs = |(p, name): (&Parameter, &String)| match format(p) {
            Some(format) => quantized::specs(name, p, format, dtype),
            None => vec![TensorSpec { name: name.clone(), shape: p.file_shape(), dtype }],
        };
        let mut specs: Vec<TensorSpec> = parameters.iter().zip(&names).flat_map(specs).collect();
        specs.extend(stored.map(|stored| stored.foreign(&config)).unwrap_or_default());
        let mut writer = CheckpointWriter::model(folder, specs, SHARD_BYTES)?;
        for (parameter, name) in parameters.iter().zip(&names) {
            let Some(format) = format(parameter) else {
                self.write_parameter(adapter, parameter, name, &mut writer)?;
                continue;
            };
            let weight = match format {
                Format::Blocks(kind) => {
                    let blocks = self.blocks_of(Some(adapter), parameter, kind);
                    let blocks =
                        blocks.ok_or_else(|| ModelError::scale_too_large(&base.path, name, format, "nf4"))?;
                    Quantized::of_blocks(parameter.rows, parameter.cols, blocks)
                }
                Format::Codebook(_) => self.with_parameter(Some(adapter), parameter, |values| {
                    Quantized::quantize(&self.device, values, format)
                }),
            };
            quantized::write(&mut writer, name, parameter, format, dtype, &weight)?;
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
        self.is_within(Difference::bound(dtype))
    }

    /// Whether the relative difference is within a bound; never if a logit is not a number.
    pub fn is_within(self, bound: f64) -> bool {
        self.largest.is_finite() && self.relative <= bound
    }
}
