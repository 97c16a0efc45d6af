//! Filling a decoder: from a checkpoint tensor by tensor, or with random numbers of a shape's statistics.

use std::path::Path;

use compute::ops::noise;
use compute::{DType, Device, Matrix, MatrixMut, Precision, random};

use crate::attention::Attention;
use crate::block::Block;
use crate::checkpoint::{Checkpoint, StoredDType};
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::Result;
use crate::linear::Linear;
use crate::memory::{Component, MemoryPlan};
use crate::mlp::Mlp;
use crate::names::{ModuleId, NormPart, Parameter, Part};

impl Decoder {
    /// Loads the model of a Hugging Face folder. Weights keep 16 bits where the file has bf16 (products widen them
    /// exactly) and otherwise take the run's precision.
    ///
    /// # Errors
    /// If config.json or the weights are not those of a model that is supported, in every detail.
    pub fn load(folder: &Path, device: &Device, precision: Precision) -> Result<Self> {
        let config = Config::load(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        checkpoint.check(&config)?;
        let dtype = held_dtype(checkpoint.main_dtype(), precision);
        let read = |p: &Parameter, to: MatrixMut<'_>| checkpoint.read_parameter(p, &config, to);
        build(&config, device, precision, dtype, &read)
    }

    /// A model with random weights: matrices normal with the configuration's `initializer_range`, norms one, biases
    /// zero.
    pub fn random(config: &Config, device: &Device, precision: Precision, seed: u64) -> Self {
        let fill = |p: &Parameter, to: MatrixMut<'_>| {
            random_parameter(p, config.initializer_range, device, seed, to);
            Ok(())
        };
        build(config, device, precision, precision.dtype(), &fill).expect("random numbers cannot fail")
    }

    /// The memory that a base takes: stored as `stored` in its files, held for `precision`.
    pub fn base_memory(config: &Config, stored: Option<StoredDType>, precision: Precision) -> MemoryPlan {
        let mut plan = MemoryPlan::default();
        let dtype = held_dtype(stored, precision);
        for parameter in config.parameters() {
            let bytes = parameter.rows * parameter.cols * element_dtype(&parameter, dtype).size();
            plan.add(Component::Base, bytes as u64);
        }
        plan
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
    if parameter.file_shape().len() == 1 { DType::F32 } else { matrices }
}

type Fill<'a> = &'a dyn Fn(&Parameter, MatrixMut<'_>) -> Result<()>;

fn build(
    config: &Config,
    device: &Device,
    precision: Precision,
    dtype: DType,
    fill: Fill<'_>,
) -> Result<Decoder> {
    let matrix = |id: ModuleId, bias: bool| {
        let module = config.module(id);
        let (rows, cols) = if bias { (1, module.rows) } else { (module.rows, module.cols) };
        let parameter = Parameter { module: id, bias, rows, cols };
        let mut to = Matrix::zeros(rows, cols, element_dtype(&parameter, dtype));
        fill(&parameter, to.as_mut()).map(|()| to)
    };
    let linear = |id: ModuleId| {
        let bias = config.module(id).bias.then(|| matrix(id, true)).transpose()?;
        Ok(Linear { weight: matrix(id, false)?, bias })
    };
    let block = |layer| {
        let part = |part| linear(ModuleId::Linear { layer, part });
        let norm = |part| matrix(ModuleId::Norm { layer, part }, false);
        let head_norm = |part| config.qk_norm.then(|| norm(part)).transpose();
        let attention = Attention {
            norm: norm(NormPart::Attention)?,
            q: part(Part::Q)?,
            k: part(Part::K)?,
            v: part(Part::V)?,
            o: part(Part::O)?,
            q_norm: head_norm(NormPart::Q)?,
            k_norm: head_norm(NormPart::K)?,
        };
        let mlp = Mlp {
            norm: norm(NormPart::Mlp)?,
            gate: part(Part::Gate)?,
            up: part(Part::Up)?,
            down: part(Part::Down)?,
        };
        Ok(Block { attention, mlp })
    };
    Ok(Decoder {
        config: config.clone(),
        device: device.clone(),
        precision,
        embedding: linear(ModuleId::Embedding)?,
        blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
        final_norm: matrix(ModuleId::FinalNorm, false)?,
        head: (!config.tie_word_embeddings).then(|| linear(ModuleId::Head)).transpose()?,
    })
}

/// One parameter of a model that begins from nothing.
fn random_parameter(parameter: &Parameter, deviation: f32, device: &Device, seed: u64, to: MatrixMut<'_>) {
    if parameter.bias {
        return;
    }
    if parameter.file_shape().len() == 1 {
        return to.f32().fill(1.0);
    }
    let key = parameter.name().bytes().fold(seed, |key, byte| random::key(key, u64::from(byte)));
    noise::nearly_normal(device, to, deviation, key);
}
