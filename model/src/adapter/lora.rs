//! Low-rank adaptation of a linear layer (Hu et al. 2021): `y = W x + scale * B A dropout(x)`.
//!
//! With `s = scale * A dropout(x)`, `[T, R]`, and `ds = scale * Bᵀ dy`, the backward pass is `dB += dyᵀ s`,
//! `dA += dsᵀ dropout(x)`, `dx = dy W + dropout(A ds)`. Neither `s` nor the dropped input is kept: `s` is one thin product,
//! and the mask comes from a counter, so both are made again.

use compute::ops::matmul::{Factor, matmul};
use compute::ops::{dropout, low_rank};
use compute::{Matrix, MatrixMut, MatrixRef};

use super::parameters::{Lora, Parameters};
use crate::linear::Scratch;
use crate::run::Run;

/// `y [T, out] = x [T, in] w + update`, or `y += ...`. `w` stands for the frozen weight, transposed; `key` drops inputs in
/// training.
pub(crate) fn forward(
    run: &Run<'_>,
    lora: Lora,
    key: Option<u64>,
    y: MatrixMut<'_>,
    accumulate: bool,
    (x, w): (MatrixRef<'_>, Factor<'_>),
    scratch: &mut Scratch,
) {
    let Scratch { dropped, low_rank: s, .. } = scratch;
    let s = s.as_mut().prefix(x.rows(), lora.rank);
    let dropped = dropped_input(run, key, x, dropped);
    let factors = run.adapter().lora(lora);
    low_rank::forward(run.device, run.precision, y, accumulate, (x, w), dropped, factors, lora.scale, s);
}

/// Adds to the gradients of A and B; if it is wanted, `dx [T, in] = dy w + update`, or `dx += ...`. `w` stands for the
/// frozen weight.
pub(crate) fn backward(
    run: &Run<'_>,
    lora: Lora,
    key: Option<u64>,
    dx: Option<(MatrixMut<'_>, bool)>,
    (dy, w): (MatrixRef<'_>, Factor<'_>),
    x: MatrixRef<'_>,
    gradients: &mut Parameters,
    scratch: &mut Scratch,
) {
    let (adapter, device, precision) = (run.adapter(), run.device, run.precision);
    let (a, b) = adapter.lora(lora);
    let (da, db) = gradients.lora_mut(&adapter.layout, lora);
    let Scratch { dropped, low_rank: s, d_low_rank: ds } = scratch;
    let (rows, cols, rank) = (x.rows(), x.cols(), lora.rank);
    let (s, mut ds) = (s.as_mut().prefix(rows, rank), ds.as_mut().prefix(rows, rank));
    let dx = match (dx, key) {
        (Some((dx, accumulate)), None) => {
            let (scale, ds) = (lora.scale, ds.reborrow());
            low_rank::input_gradient(device, precision, dx, accumulate, (dy, w), (a, b), scale, ds);
            None
        }
        (dx, _) => {
            low_rank::rank_gradient(device, precision, dy, b, lora.scale, ds.reborrow());
            dx
        }
    };
    let input = dropped_input(run, key, x, dropped).unwrap_or(x);
    let ds = ds.as_ref();
    low_rank::backward(device, precision, da, db, (dy, ds), (input, a), lora.scale, s);
    let (Some((mut dx, accumulate)), Some(key)) = (dx, key) else { return };
    matmul(device, precision, 1.0, Factor::Plain(dy), w, accumulate, dx.reborrow());
    // The dropped input is spent: its buffer takes its gradient, which then passes the same mask.
    let mut through = dropped.as_mut().prefix(rows, cols);
    matmul(device, precision, 1.0, Factor::Plain(ds), Factor::Plain(a), false, through.reborrow());
    dropout::apply(device, dx, through.as_ref(), adapter.dropout, key, true);
}

/// What dropout leaves of the input, if there is dropout.
fn dropped_input<'a>(
    run: &Run<'_>,
    key: Option<u64>,
    x: MatrixRef<'_>,
    buffer: &'a mut Matrix,
) -> Option<MatrixRef<'a>> {
    let key = key?;
    let dropped = buffer.as_mut().prefix(x.rows(), x.cols());
    dropout::apply(run.device, dropped, x, run.adapter().dropout, key, false);
    Some(buffer.as_ref().prefix(x.rows(), x.cols()))
}
