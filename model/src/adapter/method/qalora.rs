//! QA-LoRA (Xu et al. 2023): a low-rank update whose A reads the sums of groups of inputs, so that what it adds to
//! a weight is one number for each row and group.
//!
//! `y = W x + scale * B A p`, `p[g]` the sum of the inputs of group `g`. The update of a weight is
//! `dW[o, i] = scale * (B A)[o, g(i)]`: a base that is stored as `W = d q + m` with a minimum `m` for each row and
//! group takes it up as `m' = m + scale * (B A)[o, g]`, its codes and scales unchanged. The passes are those of
//! [`super::lora`], of inputs that were pooled before.

use compute::ops::matmul::{Factor, matmul};
use compute::ops::pool;
use compute::quant::{BlockType, Blocks};
use compute::{DType, Device, Matrix, MatrixMut, Precision};

use super::lora::Lora;
use crate::adapter::parameters::{Adapter, Layout, Trained};
use crate::names::Module;

/// By what a convention multiplies the sum of a group of inputs: of so many inputs in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The sum itself.
    #[default]
    Sum,
    /// The mean of the group, as the paper's code has it.
    Mean,
    /// The mean times the number of groups: what PEFT's `use_qalora` computes
    /// (`tuners/lora/variants.py`, `QALoraLinearVariant`).
    Peft,
}

impl Pooling {
    /// The names in settings.
    pub const ALL: [(&'static str, Pooling); 3] =
        [("sum", Pooling::Sum), ("mean", Pooling::Mean), ("peft", Pooling::Peft)];

    /// The factor on the sum of `group` of `inputs` inputs.
    pub fn factor(self, inputs: usize, group: usize) -> f64 {
        let (inputs, group) = (inputs as f64, group as f64);
        match self {
            Pooling::Sum => 1.0,
            Pooling::Mean => 1.0 / group,
            Pooling::Peft => inputs / (group * group),
        }
    }
}

impl Layout {
    /// Trains low-rank matrices on a linear layer, of which A reads the sums of `group` inputs, saved under
    /// `prefix`.
    ///
    /// # Panics
    /// If the layer's inputs are not so many groups.
    pub fn add_qalora(&mut self, module: Module, prefix: &str, rank: usize, scale: f32, group: usize) {
        assert!(module.cols.is_multiple_of(group), "{} inputs in groups of {group}", module.cols);
        self.add_pooled_lora(module, prefix, rank, scale, group);
    }

    /// The fewest inputs that an update reads together, if any does.
    pub fn smallest_group(&self) -> Option<usize> {
        let groups = self.modules().filter_map(|(_, trained)| trained.lora()).map(|lora| lora.group);
        groups.filter(|&group| group > 1).min()
    }
}

/// `scale * B A`, what a row's weights of each group change by: `[out, in / group]`.
fn delta(adapter: &Adapter, lora: Lora, device: &Device) -> Matrix {
    let (a, b) = adapter.lora(lora);
    let mut delta = device.zeros(lora.out, a.cols(), DType::F32);
    let (a, b) = (Factor::Plain(a), Factor::Plain(b));
    matmul(device, Precision::F32, lora.scale, b, a, false, delta.as_mut());
    delta
}

/// Adds the update to the frozen weight's values `w [out, in]`.
pub(super) fn merge(adapter: &Adapter, lora: Lora, device: &Device, w: MatrixMut<'_>) {
    pool::backward(device, w, delta(adapter, lora, device).as_ref(), lora.group, true);
}

/// The update that the minima of blocks of this type take up, if it is one: its groups are whole blocks.
pub(crate) fn for_minima(trained: Trained, kind: BlockType) -> Option<Lora> {
    let Trained::Lora(lora) = trained else { return None };
    (kind.affine_codes().is_some() && lora.group.is_multiple_of(kind.elements())).then_some(lora)
}

/// Adds an update that is [for minima](for_minima) to those of its weight's blocks, in memory of their own.
pub(crate) fn merge_into_minima(adapter: &Adapter, lora: Lora, device: &Device, weight: &Blocks) -> Blocks {
    let mut merged = weight.to_owned();
    merged.add_to_minima(delta(adapter, lora, device).as_ref().download().as_ref());
    merged
}
