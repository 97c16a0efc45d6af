//! Low-rank adaptation of a linear layer (Hu et al. 2021): `y += scale * B A dropout(x)`.
//!
//! Forward keeps `s = A dropout(x)`, `[T, R]`; backward, with `ds = scale * Bᵀ dy`:
//! `dB += scale * dyᵀ s`, `dA += dsᵀ dropout(x)`, `dx += dropout(A ds)`. The dropped input is not kept: its mask
//! comes from a counter, so it is made again.

use compute::ops::matmul::{Factor, matmul};
use compute::ops::{dropout, low_rank};
use compute::{MatrixMut, MatrixRef};

use super::parameters::{Lora, Parameters};
use crate::linear::Scratch;
use crate::run::Run;

/// Adds the update to `y [T, out]` for input `x [T, in]`, keeping `s [T, R]`. `key` drops inputs in training.
pub(crate) fn forward(
    run: &Run<'_>, lora: Lora, key: Option<u64>, y: MatrixMut<'_>, x: MatrixRef<'_>, s: MatrixMut<'_>,
    scratch: &mut Scratch,
) {
    let (a, b) = run.adapter().lora(lora);
    let x = dropped(run, key, x, scratch);
    low_rank::forward(run.device, run.precision, y, x, a, b, lora.scale, s);
}

/// Adds to the gradients of A and B, and to `dx [T, in]` if it is wanted.
pub(crate) fn backward(
    run: &Run<'_>, lora: Lora, key: Option<u64>, dx: Option<MatrixMut<'_>>, dy: MatrixRef<'_>, x: MatrixRef<'_>,
    s: MatrixRef<'_>, gradients: &mut Parameters, scratch: &mut Scratch,
) {
    let adapter = run.adapter();
    let (a, b) = adapter.lora(lora);
    let tensors = adapter.layout.tensors();
    let (da, db) = gradients.pair_mut(&tensors[lora.a], &tensors[lora.a + 1]);
    let tokens = x.rows();
    let mut ds = std::mem::take(&mut scratch.d_low_rank);
    let ds_view = || MatrixMut::from_f32(tokens, lora.rank, &mut ds[..tokens * lora.rank]);
    match key {
        None => {
            let mut ds_view = ds_view;
            low_rank::backward(run.device, run.precision, dx, da, db, dy, x, a, b, lora.scale, s, ds_view());
        }
        Some(key) => {
            let mut ds_view = ds_view;
            let dropped = dropped(run, Some(key), x, scratch);
            low_rank::backward(run.device, run.precision, None, da, db, dy, dropped, a, b, lora.scale, s, ds_view());
            if let Some(dx) = dx {
                let ds = MatrixRef::from_f32(tokens, lora.rank, &ds[..tokens * lora.rank]);
                let mut through = scratch.dropped_mut(tokens, x.cols());
                matmul(run.device, run.precision, 1.0, Factor::Plain(ds), Factor::Plain(a), false, through.reborrow());
                dropout::apply(run.device, dx, through.as_ref(), adapter.dropout, key, true);
            }
        }
    }
    scratch.d_low_rank = ds;
}

/// The input as the low-rank path sees it.
fn dropped<'a>(run: &Run<'_>, key: Option<u64>, x: MatrixRef<'a>, scratch: &'a mut Scratch) -> MatrixRef<'a> {
    let Some(key) = key else { return x };
    let mut to = scratch.dropped_mut(x.rows(), x.cols());
    dropout::apply(run.device, to.reborrow(), x, run.adapter().dropout, key, false);
    scratch.dropped(x.rows(), x.cols())
}
