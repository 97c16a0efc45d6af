//! Low-rank adaptation of a linear layer (Hu et al. 2021): `y += scale * B A dropout(x)`.
//!
//! With `s = A dropout(x)`, `[T, R]`, and `ds = scale * Bᵀ dy`, the backward pass is `dB += scale * dyᵀ s`,
//! `dA += dsᵀ dropout(x)`, `dx += dropout(A ds)`. Neither `s` nor the dropped input is kept: `s` is one thin product,
//! and the mask comes from a counter, so both are made again.

use compute::ops::matmul::{Factor, matmul};
use compute::ops::{dropout, low_rank};
use compute::{Matrix, MatrixMut, MatrixRef};

use super::parameters::{Lora, Parameters};
use crate::linear::Scratch;
use crate::run::Run;

/// Adds the update to `y [T, out]` for input `x [T, in]`. `key` drops inputs in training.
pub(crate) fn forward(
    run: &Run<'_>,
    lora: Lora,
    key: Option<u64>,
    y: MatrixMut<'_>,
    x: MatrixRef<'_>,
    scratch: &mut Scratch,
) {
    let (a, b) = run.adapter().lora(lora);
    let Scratch { dropped, low_rank: s, .. } = scratch;
    let s = s.as_mut().prefix(x.rows(), lora.rank);
    let x = dropped_input(run, key, x, dropped);
    low_rank::forward(run.device, run.precision, y, x, a, b, lora.scale, s);
}

/// Adds to the gradients of A and B, and to `dx [T, in]` if it is wanted.
pub(crate) fn backward(
    run: &Run<'_>,
    lora: Lora,
    key: Option<u64>,
    dx: Option<MatrixMut<'_>>,
    dy: MatrixRef<'_>,
    x: MatrixRef<'_>,
    gradients: &mut Parameters,
    scratch: &mut Scratch,
) {
    let (adapter, device, precision) = (run.adapter(), run.device, run.precision);
    let (a, b) = adapter.lora(lora);
    let tensors = adapter.layout.tensors();
    let (da, db) = gradients.pair_mut(&tensors[lora.a], &tensors[lora.a + 1]);
    let Scratch { dropped, low_rank: s, d_low_rank: ds } = scratch;
    let (rows, cols, rank) = (x.rows(), x.cols(), lora.rank);
    let input = dropped_input(run, key, x, dropped);
    let (mut s, mut ds) = (s.as_mut().prefix(rows, rank), ds.as_mut().prefix(rows, rank));
    matmul(device, precision, 1.0, Factor::Plain(input), Factor::Transposed(a), false, s.reborrow());
    let Some(key) = key else {
        return low_rank::backward(
            device,
            precision,
            dx,
            da,
            db,
            dy,
            input,
            a,
            b,
            lora.scale,
            s.as_ref(),
            ds,
        );
    };
    low_rank::backward(
        device,
        precision,
        None,
        da,
        db,
        dy,
        input,
        a,
        b,
        lora.scale,
        s.as_ref(),
        ds.reborrow(),
    );
    if let Some(dx) = dx {
        // The dropped input is spent: its buffer takes its gradient, which then passes the same mask.
        let mut through = dropped.as_mut().prefix(rows, cols);
        matmul(
            device,
            precision,
            1.0,
            Factor::Plain(ds.as_ref()),
            Factor::Plain(a),
            false,
            through.reborrow(),
        );
        dropout::apply(device, dx, through.as_ref(), adapter.dropout, key, true);
    }
}

/// The input as the low-rank path sees it.
fn dropped_input<'a>(
    run: &Run<'_>,
    key: Option<u64>,
    x: MatrixRef<'a>,
    buffer: &'a mut Matrix,
) -> MatrixRef<'a> {
    let Some(key) = key else { return x };
    dropout::apply(
        run.device,
        buffer.as_mut().prefix(x.rows(), x.cols()),
        x,
        run.adapter().dropout,
        key,
        false,
    );
    buffer.as_ref().prefix(x.rows(), x.cols())
}
