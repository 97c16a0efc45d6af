//! Merging: an adapter's update added to the base's weights, written as a model folder of its own, and the
//! proof that the folder computes what base and adapter compute together.

use std::collections::BTreeSet;
use std::path::Path;

use compute::quant::{BlockType, Blocks, Format};
use compute::{DType, Matrix, MatrixRef, random};

use super::method::{dora, lora, qalora};
use super::parameters::{Adapter, Trained};
use crate::activations::{Activations, Extent, Purpose};
use crate::batch::Batch;
use crate::checkpoint::{
    CheckpointWriter, SHARD_BYTES, StoredDType, TensorSpec, copy_companions, copy_tokenizer, quantized,
    transpose, write_whole,
};
use crate::config::Config;
use crate::config::quantization::INTEGERS;
use crate::decoder::Decoder;
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::linear::BaseWeight;
use crate::memory::Allocator;
use crate::names::{ModuleId, Parameter};

/// The configuration of the merged model. Where head and embeddings share a weight and an adapter changes
/// only one of them (PEFT trains a copy of the one and leaves the other with the base's), they are no longer
/// tied.
pub(crate) fn merged_config(
    config: &Config,
    adapter: &Adapter,
    Stored { dtype, integers }: Stored,
) -> Config {
    let mut merged = match integers {
        Some(kind) => config.quantized(Format::Blocks(kind), dtype.torch_name()),
        // What was quantized is merged as values.
        None => config.as_values(),
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
    /// The type of the blocks that the base holds and that stay integers ([`Decoder::integers_for`]).
    pub integers: Option<BlockType>,
}

impl From<StoredDType> for Stored {
    fn from(dtype: StoredDType) -> Self {
        Stored { dtype, integers: None }
    }
}

impl Decoder {
    /// The type of the blocks in which the base holds its linear layers and takes up an adapter exactly: every
    /// update of it adds one number to the weights of each group, whose minimum takes that up.
    pub fn integers_for(&self, adapter: &Adapter) -> Option<BlockType> {
        let mut kinds = BTreeSet::new();
        for (module, trained) in adapter.layout.modules() {
            match (trained, self.base_weight(module)) {
                (Trained::Lora(lora), BaseWeight::Quantized(weight)) => {
                    let kind = weight.blocks()?.kind();
                    qalora::for_minima(Trained::Lora(lora), kind)?;
                    kinds.insert(kind);
                }
                (Trained::Full(_), _) => {}
                _ => return None,
            }
        }
        let kind = kinds.pop_first()?;
        (kinds.is_empty() && INTEGERS.contains(&kind)).then_some(kind)
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

    /// The blocks of a parameter, if the base holds it in such of this type.
    fn blocks(&self, parameter: &Parameter, kind: Option<BlockType>) -> Option<&Blocks> {
        let is_weight = kind.is_some() && parameter.is_quantizable();
        let BaseWeight::Quantized(weight) = self.base_weight(is_weight.then_some(parameter.module)?) else {
            return None;
        };
        weight.blocks().filter(|blocks| Some(blocks.kind()) == kind)
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
        let stored_as @ Stored { dtype, integers } = stored_as.into();
        let config = merged_config(&self.config, adapter, stored_as);
        let (stored, parameters) = (base.checkpoint.as_ref(), config.parameters());
        let name = |p: &Parameter| stored.map_or_else(|| p.name(), |stored| stored.spelling(p));
        let names: Vec<String> = parameters.iter().map(name).collect();
        // A module that is trained whole is no longer of integers.
        let is_whole = |p: &Parameter| matches!(adapter.layout.get(p.module), Some(Trained::Full(_)));
        let kept = |p: &Parameter| self.blocks(p, integers).filter(|_| !is_whole(p));
        let specs = |(p, name): (&Parameter, &String)| match kept(p) {
            Some(blocks) => quantized::specs(name, p, Format::Blocks(blocks.kind()), dtype),
            None => vec![TensorSpec { name: name.clone(), shape: p.file_shape(), dtype }],
        };
        let mut specs: Vec<TensorSpec> = parameters.iter().zip(&names).flat_map(specs).collect();
        specs.extend(stored.map(|stored| stored.foreign(&config)).unwrap_or_default());
        let mut writer = CheckpointWriter::model(folder, specs, SHARD_BYTES)?;
        for (parameter, name) in parameters.iter().zip(&names) {
            match kept(parameter) {
                Some(blocks) => {
                    let trained = adapter.layout.get(parameter.module);
                    let update = trained.and_then(|trained| qalora::for_minima(trained, blocks.kind()));
                    let merged =
                        update.map(|lora| qalora::merge_into_minima(adapter, lora, &self.device, blocks));
                    writer.write_bytes(name, 0, merged.as_ref().unwrap_or(blocks).bytes())?;
                }
                None => self.write_parameter(adapter, parameter, name, &mut writer)?,
            }
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
