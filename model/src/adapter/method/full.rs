//! A module trained whole: its own copy of the weight, and of the bias where there is one, stands in for the
//! base's.

use compute::MatrixRef;
use compute::ops::matmul::{Factor, matmul};
use compute::ops::{bias, copy};

use crate::adapter::parameters::{Adapter, Layout, Parameters, Role, Trained};
use crate::decoder::Decoder;
use crate::names::{Module, ModuleId};
use crate::run::Run;

/// A module trained whole: its own copy of the weight stands in for the base's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Full {
    /// Index of the weight.
    pub weight: usize,
    /// Index of the bias, if the module has one.
    pub bias: Option<usize>,
}

impl Layout {
    /// Trains the whole weight (and bias) of a module, saved under `prefix`.
    pub fn add_full(&mut self, module: Module, prefix: &str) {
        let (shape, vector) = ([module.rows, module.cols], module.id.is_norm());
        let weight = self.push(Role::Whole, format!("{prefix}.weight"), shape, vector);
        let shape = [1, module.bias_len()];
        let bias = module.bias.then(|| self.push(Role::Bias, format!("{prefix}.bias"), shape, true));
        self.train(module.id, Trained::Full(Full { weight, bias }));
    }
}

/// It begins as the base has it.
pub(in crate::adapter) fn initialize(adapter: &mut Adapter, full: Full, module: ModuleId, decoder: &Decoder) {
    let tensors = adapter.layout.tensors();
    let to = adapter.parameters.tensor_mut(&tensors[full.weight]);
    decoder.base_weight(module).copy_to(&decoder.device, to);
    if let Some(index) = full.bias {
        let bias = decoder.base_bias(module).expect("a module trained with its bias has one");
        copy::copy(&decoder.device, adapter.parameters.tensor_mut(&tensors[index]), bias);
    }
}

/// Adds to the gradients of a linear layer's weight and bias, from `dy [T, out]` and `x [T, in]`.
pub(crate) fn backward(
    run: &Run<'_>,
    full: Full,
    dy: MatrixRef<'_>,
    x: MatrixRef<'_>,
    gradients: &mut Parameters,
) {
    let tensors = run.adapter().layout.tensors();
    let dw = gradients.tensor_mut(&tensors[full.weight]);
    matmul(run.device, run.precision, 1.0, Factor::Transposed(dy), Factor::Plain(x), true, dw);
    if let Some(index) = full.bias {
        bias::backward(run.device, gradients.tensor_mut(&tensors[index]), dy);
    }
}
