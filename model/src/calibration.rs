//! What a layer's inputs are like, on real text: what GPTQ needs to know, layer by layer.
//!
//! Sequences go through the model one layer at a time, in the order of layers, each of which has been quantized
//! before the next one sees what comes out of it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use compute::ops::gptq;
use compute::ops::matmul::{Factor, matmul};
use compute::quant::{BlockType, Format, Quantized};
use compute::{DType, Device, Matrix, MatrixRef, Precision};

use crate::activations::{Activations, Extent, Purpose};
use crate::adapter::parameters::Layout;
use crate::batch::Batch;
use crate::decoder::Decoder;
use crate::decompose;
use crate::error::{ModelError, Result};
use crate::linear::{Rows, Weight};
use crate::memory::Allocator;
use crate::names::{ModuleId, Parameter, Part};

/// The part of the mean of the diagonal that is added to it, as in GPTQ's code; ten times as much at each
/// attempt after it.
const DAMPING: f32 = 0.01;
const ATTEMPTS: usize = 4;

/// Sums of the outer products of layers' inputs, `Xᵀ X [in, in]`.
#[derive(Debug, Default)]
pub struct Observed(RefCell<BTreeMap<ModuleId, Matrix>>);

impl Observed {
    /// Adds the inputs of rows on their way through layers.
    pub(crate) fn add(&self, all: &[Rows<'_>], x: MatrixRef<'_>) {
        for rows in all.iter().filter(|rows| leader(rows.module) == rows.module && !rows.range.is_empty()) {
            let (device, mut sums) = (rows.run.device, self.0.borrow_mut());
            let x = x.rows_range(rows.range.clone());
            let sum = sums.entry(rows.module).or_insert_with(|| device.zeros(x.cols(), x.cols(), DType::F32));
            matmul(device, Precision::F32, 1.0, Factor::Transposed(x), Factor::Plain(x), true, sum.as_mut());
        }
    }
}

/// The module whose inputs are those of this one, too.
fn leader(module: ModuleId) -> ModuleId {
    let first = |part| match part {
        Part::Q | Part::K | Part::V => Part::Q,
        Part::Gate | Part::Up => Part::Gate,
        other => other,
    };
    match module {
        ModuleId::Linear { layer, part } => ModuleId::Linear { layer, part: first(part) },
        ModuleId::Expert { layer, expert, part } => ModuleId::Expert { layer, expert, part: first(part) },
        other => other,
    }
}

/// A model on its way to integers.
#[derive(Debug)]
pub struct Calibration {
    decoder: Decoder,
    kind: BlockType,
    batches: Vec<Batch>,
    /// The residual stream of each batch before the layer that is next.
    streams: Vec<Matrix>,
    /// The layer that is next, and what the one before it has become.
    layer: usize,
    done: BTreeMap<ModuleId, Quantized>,
    buffers: Activations,
}

impl Calibration {
    /// Of a model and sequences of tokens, to become integers of this type.
    ///
    /// # Panics
    /// If the type has no minima of its own, or there are no sequences.
    pub fn new(decoder: Decoder, kind: BlockType, sequences: &[&[u32]]) -> Self {
        assert!(kind.affine_codes().is_some(), "{kind} has no minima of its own");
        let longest = sequences.iter().map(|ids| ids.len()).max().expect("sequences to calibrate with");
        let batches: Vec<Batch> = sequences
            .iter()
            .map(|ids| {
                let mut batch = Batch::new();
                batch.push_unlabelled(ids);
                batch
            })
            .collect();
        let extent = Extent {
            tokens: longest,
            positions: longest,
            purpose: Purpose::Infer,
            precision: decoder.precision,
        };
        let mut allocator = Allocator::real(&decoder.device);
        let mut buffers = Activations::new(&decoder.config, &Layout::default(), 0.0, extent, &mut allocator);
        let run = decoder.run(None);
        let streams = batches.iter().map(|batch| decoder.begin(&run, batch, &mut buffers)).collect();
        Calibration { decoder, kind, batches, streams, layer: 0, done: BTreeMap::new(), buffers }
    }

    /// The integers of a weight, whose layer comes after those that were asked for before.
    ///
    /// # Errors
    /// If the inputs' products cannot be decomposed.
    pub(crate) fn weight(&mut self, parameter: &Parameter) -> Result<Quantized> {
        let layer = parameter.module.layer().expect("a linear layer of a block");
        while self.layer <= layer {
            self.done = self.next_layer()?;
        }
        Ok(self.done.remove(&parameter.module).expect("each weight is asked for once, layer by layer"))
    }

    /// Quantizes the next layer, and brings the sequences through it.
    fn next_layer(&mut self) -> Result<BTreeMap<ModuleId, Quantized>> {
        let (layer, observed) = (self.layer, Observed::default());
        for (batch, stream) in self.batches.iter().zip(&self.streams) {
            let run = crate::run::Run { observed: Some(&observed), ..self.decoder.run(None) };
            self.decoder.through(&run, layer, batch, stream, &mut self.buffers);
        }
        let observed = observed.0.into_inner();
        let mut factors = BTreeMap::new();
        for (module, sum) in observed {
            factors.insert(module, factor(&sum, &self.decoder.device, || self.decoder.config.path(module))?);
        }
        let of_layer = |p: &Parameter| p.module.layer() == Some(layer) && p.takes(Format::Blocks(self.kind));
        let parameters: Vec<Parameter> =
            self.decoder.config.parameters().into_iter().filter(of_layer).collect();
        let mut done = BTreeMap::new();
        for Parameter { module, rows, cols, .. } in parameters {
            let device = self.decoder.device.clone();
            let mut w = device.unset(rows, cols, DType::F32);
            self.decoder.base_weight(module).copy_to(&device, w.as_mut());
            let quantized = match factors.get(&leader(module)) {
                Some(u) => gptq::quantize(&device, w.as_mut(), u.as_ref(), self.kind),
                // An expert that no token came to is rounded.
                None => Quantized::quantize(&device, w.as_ref(), Format::Blocks(self.kind)),
            };
            self.decoder.replace(module, Weight::Quantized(quantized.copy()));
            done.insert(module, quantized);
        }
        for (batch, stream) in self.batches.iter().zip(&mut self.streams) {
            let run = self.decoder.run(None);
            *stream = self.decoder.through(&run, layer, batch, stream, &mut self.buffers);
        }
        self.layer += 1;
        Ok(done)
    }
}

/// The upper factor of the inverse of a damped sum, in the device's memory.
fn factor(sum: &Matrix, device: &Device, name: impl Fn() -> String) -> Result<Matrix> {
    let (n, sum) = (sum.rows(), sum.as_ref().download());
    let sum = sum.as_ref();
    let mean = (0..n).map(|i| sum.f32()[i * n + i]).sum::<f32>() / n as f32;
    let mut damping = DAMPING * mean.max(f32::MIN_POSITIVE);
    for _ in 0..ATTEMPTS {
        let mut damped = Matrix::from_f32(n, n, sum.f32());
        for (i, row) in damped.as_mut().f32().chunks_exact_mut(n).enumerate() {
            row[i] += damping;
        }
        if let Some(u) = decompose::inverse_factor(damped.as_ref()) {
            return Ok(device.take(Matrix::from_f32(n, n, &u)));
        }
        damping *= 10.0;
    }
    let problem =
        "sees inputs in calibration whose products have no inverse: they are not finite, or too large";
    Err(ModelError::setting(name(), problem))
}
