//! A linear layer with a low-rank update (Hu et al., 2021, arXiv:2106.09685).
//!
//! Forward, `x[T, in]`, `w` the frozen weight `[out, in]`, `a[R, in]`, `b[out, R]`, `y[T, out]`:
//!
//! ```text
//! s = scale * x aᵀ
//! y = x wᵀ + s bᵀ            (+ y)
//! ```
//!
//! Backward; `s` is made again:
//!
//! ```text
//! ds  = scale * dy b
//! dx  = dy w + ds a          (+ dx)
//! db += dyᵀ s
//! da += dsᵀ x
//! ```
//!
//! `a`, `b`, `s[T, R]`, `ds[T, R]` and the gradients are `f32` in either precision. The rank comes first: `s`
//! and `ds` are made of the rows of `x` and `dy` as they are packed for the frozen weight's own product, and
//! the update is a longer sum in it, so there is no further pass over `x`, `dy`, `y` or `dx`. `in x out`
//! never appears: the work is `2 T R (in + out)` forward and twice that backward.

use super::matmul::Factor::{self, Plain, Transposed};
use super::matmul::{Epilogue, Update, matmul, matmul_update};
use crate::{Device, MatrixMut, MatrixRef, Precision};

/// `s[T, R] = scale * x aᵀ`, then `y[T, out] = x w + s bᵀ`, or `y += ...`. `w` is the right factor that
/// stands for the frozen weight, transposed; `dropped` is what dropout left of `x`, if there is dropout, and
/// takes its place in `s`. The epilogue is of `y`, or of what is added to it.
///
/// # Panics
/// If the shapes do not agree.
pub fn forward(
    device: &Device,
    precision: Precision,
    y: MatrixMut<'_>,
    accumulate: bool,
    (x, w): (MatrixRef<'_>, Factor<'_>),
    dropped: Option<MatrixRef<'_>>,
    (a, b): (MatrixRef<'_>, MatrixRef<'_>),
    scale: f32,
    mut s: MatrixMut<'_>,
    epilogue: Epilogue<'_>,
) {
    let a = Transposed(a);
    if let Some(input) = dropped {
        matmul(device, precision, scale, Plain(input), a, false, s.reborrow());
    }
    let first = dropped.is_none().then_some(a);
    let update = Update { first, scale, s, second: Transposed(b) };
    matmul_update(device, precision, (Plain(x), w), Some(update), epilogue, accumulate, y);
}

/// `ds[T, R] = scale * dy b`, then `dx[T, in] = dy w + ds a`, or `dx += ...`, where nothing was dropped. `w`
/// is the right factor that stands for the frozen weight.
///
/// # Panics
/// If the shapes do not agree.
pub fn input_gradient(
    device: &Device,
    precision: Precision,
    dx: MatrixMut<'_>,
    accumulate: bool,
    (dy, w): (MatrixRef<'_>, Factor<'_>),
    (a, b): (MatrixRef<'_>, MatrixRef<'_>),
    scale: f32,
    ds: MatrixMut<'_>,
) {
    let update = Update { first: Some(Plain(b)), scale, s: ds, second: Plain(a) };
    matmul_update(device, precision, (Plain(dy), w), Some(update), Epilogue::default(), accumulate, dx);
}

/// `ds[T, R] = scale * dy b`, where [`input_gradient`] does not make it.
///
/// # Panics
/// If the shapes do not agree.
pub fn rank_gradient(
    device: &Device,
    precision: Precision,
    dy: MatrixRef<'_>,
    b: MatrixRef<'_>,
    scale: f32,
    ds: MatrixMut<'_>,
) {
    matmul(device, precision, scale, Plain(dy), Plain(b), false, ds);
}

/// Adds to `da[R, in]` and `db[out, R]` (`f32`), with the `ds` of [`input_gradient`] or [`rank_gradient`].
/// `input` is `x`, or what dropout left of it; `s[T, R]` is overwritten.
///
/// # Panics
/// If the shapes do not agree.
pub fn backward(
    device: &Device,
    precision: Precision,
    da: MatrixMut<'_>,
    db: MatrixMut<'_>,
    (dy, ds): (MatrixRef<'_>, MatrixRef<'_>),
    (input, a): (MatrixRef<'_>, MatrixRef<'_>),
    scale: f32,
    mut s: MatrixMut<'_>,
) {
    matmul(device, precision, scale, Plain(input), Transposed(a), false, s.reborrow());
    matmul(device, precision, 1.0, Transposed(dy), Plain(s.as_ref()), true, db);
    matmul(device, precision, 1.0, Transposed(ds), Plain(input), true, da);
}
