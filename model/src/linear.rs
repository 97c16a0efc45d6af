//! A linear layer `y = x Wᵀ + b`: the one place where how a weight is stored meets what is trained on it.

use compute::ops::bias;
use compute::ops::matmul::{Factor, matmul};
use compute::{DType, Matrix, MatrixMut, MatrixRef, Precision};

use crate::adapter::lora;
use crate::adapter::parameters::{Layout, Parameters, Trained};
use crate::memory::{Allocator, Component};
use crate::names::ModuleId;
use crate::run::Run;

/// A frozen linear layer.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`, as in the checkpoint.
    pub weight: Matrix,
    /// `[1, out]`, for the families that have one.
    pub bias: Option<Matrix>,
}

/// Buffers that every linear layer uses in turn.
#[derive(Debug)]
pub(crate) struct Scratch {
    dropped: Matrix,
    pub(crate) d_low_rank: Vec<f32>,
}

impl Scratch {
    /// Buffers for `tokens` rows and inputs of at most `width` columns.
    pub(crate) fn new(
        layout: &Layout, dropout: f32, tokens: usize, width: usize, precision: Precision, allocator: &mut Allocator,
    ) -> Self {
        let dropped = if dropout > 0.0 { tokens * width } else { 0 };
        Scratch {
            dropped: allocator.matrix(Component::Workspace, 1, dropped, precision.dtype()),
            d_low_rank: allocator.vector(Component::Workspace, tokens * layout.max_rank()),
        }
    }

    pub(crate) fn dropped(&self, rows: usize, cols: usize) -> MatrixRef<'_> {
        self.dropped.as_ref().prefix(rows, cols)
    }

    pub(crate) fn dropped_mut(&mut self, rows: usize, cols: usize) -> MatrixMut<'_> {
        self.dropped.as_mut().prefix(rows, cols)
    }
}

/// `s = A x` of a low-rank update `[T, R]`, kept for the backward pass; empty where no low-rank update is trained.
pub(crate) fn low_rank_buffer(layout: &Layout, module: ModuleId, tokens: usize, allocator: &mut Allocator) -> Matrix {
    allocator.matrix(Component::Activations, tokens, layout.rank(module), DType::F32)
}

impl Linear {
    /// `y [T, out] = x [T, in] Wᵀ + b`, or `y += ...` to add onto the residual stream, with what is trained on
    /// `module`. Keeps `s [T, R]` of a low-rank update.
    pub(crate) fn forward(
        &self, run: &Run<'_>, module: ModuleId, mut y: MatrixMut<'_>, accumulate: bool, x: MatrixRef<'_>,
        s: &mut Matrix, scratch: &mut Scratch,
    ) {
        let trained = run.adapter.and_then(|a| a.layout.get(module));
        let weight = self.weight(run, trained);
        matmul(run.device, run.precision, 1.0, Factor::Plain(x), Factor::Transposed(weight), accumulate, y.reborrow());
        if let Some(b) = self.bias(run, trained) {
            bias::add(run.device, y.reborrow(), b);
        }
        if let Some(Trained::Lora(update)) = trained {
            let rows = x.rows();
            lora::forward(run, update, run.mask_key(module), y, x, s.top_mut(rows), scratch);
        }
    }

    /// Adds the gradients of what is trained on `module` and, if wanted, sets (or adds to) `dx [T, in]`.
    pub(crate) fn backward(
        &self, run: &Run<'_>, module: ModuleId, mut dx: Option<MatrixMut<'_>>, accumulate: bool, dy: MatrixRef<'_>,
        x: MatrixRef<'_>, s: &Matrix, gradients: &mut Parameters, scratch: &mut Scratch,
    ) {
        let trained = run.adapter.and_then(|a| a.layout.get(module));
        if let Some(dx) = &mut dx {
            let weight = self.weight(run, trained);
            matmul(run.device, run.precision, 1.0, Factor::Plain(dy), Factor::Plain(weight), accumulate, dx.reborrow());
        }
        match trained {
            None => {}
            Some(Trained::Lora(update)) => {
                let key = run.mask_key(module);
                lora::backward(run, update, key, dx, dy, x, s.top(x.rows()), gradients, scratch);
            }
            Some(Trained::Full(full)) => {
                let tensors = run.adapter().layout.tensors();
                let dw = gradients.tensor_mut(&tensors[full.weight]);
                matmul(run.device, run.precision, 1.0, Factor::Transposed(dy), Factor::Plain(x), true, dw);
                if let Some(index) = full.bias {
                    bias::backward(run.device, gradients.tensor_mut(&tensors[index]), dy);
                }
            }
        }
    }

    fn weight<'a>(&'a self, run: &Run<'a>, trained: Option<Trained>) -> MatrixRef<'a> {
        match trained {
            Some(Trained::Full(full)) => run.adapter().tensor(full.weight),
            _ => self.weight.as_ref(),
        }
    }

    fn bias<'a>(&'a self, run: &Run<'a>, trained: Option<Trained>) -> Option<MatrixRef<'a>> {
        match trained {
            Some(Trained::Full(full)) => full.bias.map(|index| run.adapter().tensor(index)),
            _ => self.bias.as_ref().map(Matrix::as_ref),
        }
    }
}
