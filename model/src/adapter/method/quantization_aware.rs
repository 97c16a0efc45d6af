//! Quantization-aware training: layers compute with the weights that an export will hold.
//!
//! Forward, `y = Q(W + scale * B A) x`, where `Q` rounds to a quantized type and back. Backward, the gradient
//! passes the rounding as if it were not there (straight-through, Bengio et al. 2013, arXiv:1308.3432): those
//! of A and B are LoRA's own, and `dx = dy Q(W + scale * B A)`. Layers without an update compute with `Q(W)`.
//!
//! `Q` is what [`Quantized::quantize`] does, of the same sum in `f32` as merging: what is exported is what was
//! trained, to the byte. It is made again in each pass; of `T` rows that costs about `R / T` of the product.

use std::collections::BTreeMap;

use compute::ops::copy;
use compute::quant::Quantized;
use compute::{DType, Matrix};

use super::lora;
use crate::adapter::parameters::Layout;
use crate::config::Config;
use crate::linear::{BaseWeight, Rows};
use crate::memory::{Allocator, Component};
use crate::names::{ModuleId, Parameter};

/// The quantized weight of the layer at hand, a place for each size that the model's layers have.
#[derive(Debug)]
pub(crate) struct Effective {
    /// The sum before it is rounded, row by row.
    sum: Matrix,
    weights: BTreeMap<(usize, usize), Quantized>,
}

impl Effective {
    /// Places for the layers of a model, if the layout is for such training; empty else.
    pub(crate) fn new(config: &Config, layout: &Layout, allocator: &mut Allocator) -> Self {
        let mut weights = BTreeMap::new();
        let mut largest = 0;
        if let Some(format) = layout.quantization_aware {
            for Parameter { rows, cols, .. } in config.parameters().into_iter().filter(|p| p.takes(format)) {
                largest = largest.max(rows * cols);
                weights
                    .entry((rows, cols))
                    .or_insert_with(|| allocator.quantized(Component::Workspace, (rows, cols), format));
            }
        }
        Effective { sum: allocator.matrix(Component::Workspace, 1, largest, DType::F32), weights }
    }

    /// The weight that rows pass, if it is to be quantized: a list is of one layer and one adapter then.
    pub(crate) fn of(&mut self, all: &[Rows<'_>]) -> Option<&Quantized> {
        let [rows] = all else { return None };
        let ModuleId::Linear { .. } = rows.module else { return None };
        rows.run.adapter?.layout.quantization_aware?;
        let weight = rows.weight();
        let (out, inner) = weight.size();
        let to = self.weights.get_mut(&(out, inner))?;
        let device = rows.run.device;
        let mut sum = self.sum.as_mut().prefix(1, out * inner).reshape(out, inner);
        match weight {
            BaseWeight::Dense(weight) => copy::copy(device, sum.reborrow(), weight),
            BaseWeight::Quantized(weight) => weight.dequantize_rows(device, 0..out, sum.reborrow()),
        }
        if let Some(update) = rows.lora() {
            lora::merge(rows.run.adapter(), update, device, sum.reborrow());
        }
        to.requantize(device, sum.as_ref());
        Some(to)
    }
}
