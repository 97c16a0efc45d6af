//! Filling a decoder: from a checkpoint tensor by tensor, or with random numbers of a shape's statistics.

use std::collections::BTreeSet;
use std::path::Path;

use compute::ops::{copy, noise};
use compute::quant::{Format, Quantized};
use compute::{DType, Device, Matrix, Precision, random};

use crate::adapter::parameters::Layout;
use crate::adapter::peft::folder::AdapterFolder;
use crate::attention::{Attention, Qkv};
use crate::block::Block;
use crate::checkpoint::{StoredDType, StoredWeights};
use crate::config::{self, Config, NormKind, Positions};
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::experts::Experts;
use crate::folder::ModelFolder;
use crate::linear::{Linear, Weight};
use crate::memory::{Component, MemoryPlan};
use crate::mlp::{Layers, Mlp};
use crate::names::{ModuleId, NormPart, Parameter, Part};
use crate::norm::Norm;

/// How the blocks' linear layers are quantized as they come.
#[derive(Clone, Copy, Debug)]
pub struct OnLoading {
    /// To what.
    pub format: Format,
    /// For which precision they are held before: what is rounded first has other scales and codes.
    pub held: Precision,
}

impl Decoder {
    /// Loads the model of a Hugging Face folder. Weights keep 16 bits where the file has bf16 (products widen
    /// them exactly) and otherwise take the run's precision. With a quantization the blocks' linear layers
    /// are quantized as they come; layers that the folder has in four bits stay as they are.
    ///
    /// # Errors
    /// If config.json or the weights are not those of a model that is supported, in every detail, or if the
    /// folder is quantized in another way than is asked for.
    pub fn load(
        folder: &Path,
        device: &Device,
        precision: Precision,
        quantization: Option<Format>,
    ) -> Result<Self> {
        let on_loading = quantization.map(|format| OnLoading { format, held: precision });
        Decoder::load_for(&ModelFolder::open(folder)?, None, device, precision, on_loading)
    }

    /// As [`Decoder::load`], of a folder that is open, the base of an adapter: with as many tokens as the
    /// adapter has rows for, and with the weights that the adapter's file has in place of the base's own.
    ///
    /// # Errors
    /// As [`Decoder::load`]; also if such a weight is one that is to be quantized.
    pub fn load_for(
        base: &ModelFolder,
        adapter: Option<&AdapterFolder>,
        device: &Device,
        precision: Precision,
        quantization: Option<OnLoading>,
    ) -> Result<Self> {
        Decoder::load_changed(base, adapter, device, precision, quantization, &|_, values| Ok(values))
    }

    /// As [`Decoder::load_for`], where each parameter that is not stored in four bits becomes what `change`
    /// makes of its values, before it is quantized.
    pub(crate) fn load_changed(
        base: &ModelFolder,
        adapter: Option<&AdapterFolder>,
        device: &Device,
        precision: Precision,
        quantization: Option<OnLoading>,
        change: Change<'_>,
    ) -> Result<Self> {
        base.check_quantization(quantization.map(|on_loading| on_loading.format))?;
        let (config, checkpoint) = (&base.config, base.require_weights()?);
        checkpoint.check(config)?;
        let dtype = held_dtype(checkpoint.main_dtype(), precision);
        let read = |p: &Parameter, dtype: DType| {
            let mut values = Matrix::zeros(p.rows, p.cols, dtype);
            let replaced =
                adapter.map_or(Ok(false), |adapter| adapter.read_replacement(p, values.as_mut()))?;
            if !replaced {
                checkpoint.read_parameter(p, config, values.as_mut())?;
            }
            change(p, device.take(values))
        };
        let quantization = quantization.filter(|_| config.quantization.is_none());
        let stored = |p: &Parameter| {
            if quantization.is_some() {
                return Ok(None); // what half precision the file has is quantized, as all else is
            }
            let weight = checkpoint.read_quantized(p, config)?;
            Ok(weight.map(|weight| weight.to_device(device)))
        };
        if quantization.is_some() {
            adapter.map_or(Ok(()), AdapterFolder::check_quantizable)?;
        }
        let config = adapter.map_or(config, |adapter| &adapter.model);
        let quantization = quantization
            .map(|OnLoading { format, held }| (format, held_dtype(checkpoint.main_dtype(), held)));
        build(config, device, precision, dtype, quantization, &stored, &read)
    }

    /// A model with random weights: matrices normal with the configuration's `initializer_range`, norms one,
    /// biases zero.
    pub fn random(
        config: &Config,
        device: &Device,
        precision: Precision,
        quantization: Option<Format>,
        seed: u64,
    ) -> Self {
        let make = |p: &Parameter, dtype: DType| Ok(random_parameter(p, config, device, seed, dtype));
        let stored = |_: &Parameter| Ok(None);
        let dtype = precision.dtype();
        let quantization = quantization.map(|format| (format, dtype));
        build(config, device, precision, dtype, quantization, &stored, &make)
            .expect("random numbers cannot fail")
    }

    /// The memory that a base takes: stored as `stored` in its files, if it has any, held for `precision`,
    /// its linear layers quantized if so asked and config.json does not say that they are.
    pub fn base_memory(
        config: &Config,
        stored: Option<&StoredWeights>,
        precision: Precision,
        quantization: Option<Format>,
    ) -> MemoryPlan {
        let mut plan = MemoryPlan::default();
        let dtype = held_dtype(stored.map(|stored| stored.dtype), precision);
        let quantization = match config.quantization {
            None => quantization,
            // Without the files it is not known which layers are quantized, and in which blocks: as usual,
            // then.
            Some(usual) => stored.is_none().then_some(usual),
        };
        for parameter in config.parameters() {
            let elements = parameter.rows * parameter.cols;
            let kept = stored.and_then(|stored| stored.quantized.get(&parameter.name()).copied());
            let bytes = match (kept, quantization.filter(|&format| parameter.takes(format))) {
                (Some(bytes), _) => bytes,
                (None, Some(format)) => format.size_bytes(elements) as u64,
                (None, None) => (elements * element_dtype(&parameter, dtype).size()) as u64,
            };
            plan.add(Component::Base, bytes);
        }
        plan
    }

    /// Bytes that a base takes beyond [`Decoder::base_memory`] where parts of its weights are
    /// [taken out](Layout::take_out_of_base): what is left is held as the precision says, however narrow the
    /// files are.
    pub fn changed_memory(
        config: &Config,
        layout: &Layout,
        stored: Option<&StoredWeights>,
        precision: Precision,
        quantization: Option<Format>,
    ) -> u64 {
        let held = held_dtype(stored.map(|stored| stored.dtype), precision);
        if layout.taken_out() == 0 || held == precision.dtype() {
            return 0;
        }
        let wider = (precision.dtype().size() - held.size()) as u64;
        let changed = layout.modules().filter(|(_, trained)| trained.lora().is_some());
        let parameters = changed.map(|(module, _)| config.parameter(module, false));
        let dense = parameters.filter(|parameter| quantization.is_none() || !parameter.is_quantizable());
        dense.map(|parameter| wider * (parameter.rows * parameter.cols) as u64).sum()
    }
}

/// How matrices are held: never wider than the file needs, never narrower than the precision asks.
fn held_dtype(stored: Option<StoredDType>, precision: Precision) -> DType {
    match stored {
        Some(StoredDType::Bf16) => DType::Bf16,
        _ => precision.dtype(),
    }
}

/// Vectors are small and stay `f32`.
fn element_dtype(parameter: &Parameter, matrices: DType) -> DType {
    if parameter.is_vector() { DType::F32 } else { matrices }
}

/// The values of a parameter, in the memory of the device.
type Values<'a> = &'a dyn Fn(&Parameter, DType) -> Result<Matrix>;
/// What becomes of the values of a parameter.
type Change<'a> = &'a dyn Fn(&Parameter, Matrix) -> Result<Matrix>;
/// The weight that a checkpoint has in codes, if it does.
type Stored<'a> = &'a dyn Fn(&Parameter) -> Result<Option<Quantized>>;

fn build(
    config: &Config,
    device: &Device,
    precision: Precision,
    dtype: DType,
    quantization: Option<(Format, DType)>,
    stored: Stored<'_>,
    values: Values<'_>,
) -> Result<Decoder> {
    let matrix = |id: ModuleId, bias: bool| {
        let parameter = config.parameter(id, bias);
        values(&parameter, element_dtype(&parameter, dtype))
    };
    let weight = |id: ModuleId| {
        let parameter = config.parameter(id, false);
        if let Some(weight) = stored(&parameter)? {
            return Ok(Weight::Quantized(weight));
        }
        Ok(match quantization.filter(|&(format, _)| parameter.takes(format)) {
            Some((format, dtype)) => {
                let dense = values(&parameter, element_dtype(&parameter, dtype))?;
                let weight = Quantized::quantize(device, dense.as_ref(), format);
                if weight.blocks().is_some_and(|blocks| blocks.not_finite().is_some()) {
                    let problem = format!(
                        "cannot be {format}: `{}` has values so large that their scale does not fit into half \
                         precision; use nf4 or none",
                        parameter.name()
                    );
                    return Err(ModelError::setting("quantization", problem));
                }
                Weight::Quantized(weight)
            }
            None => Weight::Dense(matrix(id, false)?),
        })
    };
    let linear = |id: ModuleId| {
        let bias = config.module(id).bias.then(|| matrix(id, true)).transpose()?;
        Ok(Linear { weight: weight(id)?, bias })
    };
    let modules: BTreeSet<ModuleId> = config.modules().iter().map(|module| module.id).collect();
    let norm = |id: ModuleId| {
        if !modules.contains(&id) {
            return Ok(None);
        }
        let bias = config.module(id).bias.then(|| matrix(id, true)).transpose()?;
        Ok(Some(Norm { weight: matrix(id, false)?, bias }))
    };
    let block = |layer: usize| {
        let part = |part| linear(ModuleId::Linear { layer, part });
        let norm = |part| norm(ModuleId::Norm { layer, part });
        let [q_norm, k_norm] = [norm(NormPart::Q)?, norm(NormPart::K)?];
        let attention = Attention {
            norm: norm(NormPart::Attention)?,
            qkv: match config.fused_qkv {
                None => Qkv::Apart(Box::new([part(Part::Q)?, part(Part::K)?, part(Part::V)?])),
                Some(_) => Qkv::Fused(Box::new(part(Part::Qkv)?)),
            },
            o: part(Part::O)?,
            qk_norms: q_norm.zip(k_norm).map(|(q, k)| [q, k]),
            norm_behind: norm(NormPart::AfterAttention)?,
        };
        let layers = match config.blocks[layer].mlp {
            config::Mlp::Gated if config.fused_gate_up => {
                Layers::Fused(Box::new([part(Part::GateUp)?, part(Part::Down)?]))
            }
            config::Mlp::Gated => {
                Layers::Gated(Box::new([part(Part::Gate)?, part(Part::Up)?, part(Part::Down)?]))
            }
            config::Mlp::Plain => Layers::Plain(Box::new([part(Part::Up)?, part(Part::Down)?])),
            config::Mlp::Experts => {
                let count = config.experts.map_or(0, |experts| experts.count);
                let of = |expert| {
                    let part = |part| linear(ModuleId::Expert { layer, expert, part });
                    Ok([part(Part::Gate)?, part(Part::Up)?, part(Part::Down)?])
                };
                let experts = (0..count).map(of).collect::<Result<_>>()?;
                Layers::Experts(Box::new(Experts { router: part(Part::Router)?, experts }))
            }
        };
        let mlp = Mlp { norm: norm(NormPart::Mlp)?, layers, norm_behind: norm(NormPart::AfterMlp)? };
        Ok(Block { attention, mlp })
    };
    let learned = config.positions == Positions::Learned;
    Ok(Decoder {
        config: config.clone(),
        device: device.clone(),
        precision,
        embedding: linear(ModuleId::Embedding)?,
        position_embedding: learned.then(|| matrix(ModuleId::Positions, false)).transpose()?,
        blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
        final_norm: norm(ModuleId::FinalNorm)?.expect("every family has a norm before its head"),
        head: (!config.tie_word_embeddings).then(|| linear(ModuleId::Head)).transpose()?,
    })
}

/// One parameter of a model that begins from nothing.
fn random_parameter(
    parameter: &Parameter,
    config: &Config,
    device: &Device,
    seed: u64,
    dtype: DType,
) -> Matrix {
    let mut to = device.zeros(parameter.rows, parameter.cols, dtype);
    if parameter.bias {
        return to;
    }
    if parameter.is_vector() {
        // A norm whose weight is added to one begins at zero.
        if config.norm != NormKind::RmsPlusOne {
            copy::fill(device, to.as_mut(), 1.0);
        }
        return to;
    }
    let key = parameter.name().bytes().fold(seed, |key, byte| random::key(key, u64::from(byte)));
    noise::nearly_normal(device, to.as_mut(), config.initializer_range, key);
    to
}
