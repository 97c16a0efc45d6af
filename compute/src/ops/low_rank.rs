//! A linear layer with a low-rank update (Hu et al., 2021, arXiv:2106.09685).
//!
//! Forward, `x[T, in]`, `w` the frozen weight `[out, in]`, `a[R, in]`, `b[out, R]`, `y[T, out]`:
//!
//! ```text
//! s = scale * x aᵀ
//! y = x wᵀ + s bᵀ            (+ y)
//! ```
//!
//! Backward; `ds[T, R]` is scratch, `s` made again:
//!
//! ```text
//! ds  = scale * dy b
//! db += dyᵀ s
//! da += dsᵀ x
//! dx  = dy w + ds a          (+ dx)
//! ```
//!
//! `a`, `b`, `s`, `ds` and the gradients are `f32` in either precision. The rank comes first: the update is a longer sum in
//! the frozen weight's own product, no pass of its own over `y` or `dx`. `in x out` never appears: the work is
//! `2 T R (in + out)` forward and twice that backward.

use super::matmul::Factor::{self, Plain, Transposed};
use super::matmul::{matmul, matmul_sum};
use crate::{Device, MatrixMut, MatrixRef, Precision};

/// `s[T, R] = scale * input aᵀ`, then `y[T, out] = x w + s bᵀ`, or `y += ...`. `w` is the right factor that stands for the
/// frozen weight, transposed; `input` is `x`, or what dropout left of it.
///
/// # Panics
/// If the shapes do not agree.
pub fn forward(
    device: &Device,
    precision: Precision,
    y: MatrixMut<'_>,
    accumulate: bool,
    (x, w): (MatrixRef<'_>, Factor<'_>),
    input: MatrixRef<'_>,
    (a, b): (MatrixRef<'_>, MatrixRef<'_>),
    scale: f32,
    mut s: MatrixMut<'_>,
) {
    matmul(device, precision, scale, Plain(input), Transposed(a), false, s.reborrow());
    matmul_sum(device, precision, (Plain(x), w), (Plain(s.as_ref()), Transposed(b)), accumulate, y);
}

/// Adds to `da[R, in]` and `db[out, R]` (`f32`). `input` is that of the forward pass; `s[T, R]` and `ds[T, R]` are overwritten,
/// and `ds` is what [`input_gradient`] goes on with.
///
/// # Panics
/// If the shapes do not agree.
pub fn backward(
    device: &Device,
    precision: Precision,
    da: MatrixMut<'_>,
    db: MatrixMut<'_>,
    dy: MatrixRef<'_>,
    input: MatrixRef<'_>,
    (a, b): (MatrixRef<'_>, MatrixRef<'_>),
    scale: f32,
    mut s: MatrixMut<'_>,
    mut ds: MatrixMut<'_>,
) {
    matmul(device, precision, scale, Plain(input), Transposed(a), false, s.reborrow());
    matmul(device, precision, scale, Plain(dy), Plain(b), false, ds.reborrow());
    matmul(device, precision, 1.0, Transposed(dy), Plain(s.as_ref()), true, db);
    matmul(device, precision, 1.0, Transposed(ds.as_ref()), Plain(input), true, da);
}

/// `dx[T, in] = dy w + ds a`, or `dx += ...`, where nothing was dropped. `w` is the right factor that stands for the frozen
/// weight.
///
/// # Panics
/// If the shapes do not agree.
pub fn input_gradient(
    device: &Device,
    precision: Precision,
    dx: MatrixMut<'_>,
    accumulate: bool,
    (dy, w): (MatrixRef<'_>, Factor<'_>),
    (ds, a): (MatrixRef<'_>, MatrixRef<'_>),
) {
    matmul_sum(device, precision, (Plain(dy), w), (Plain(ds), Plain(a)), accumulate, dx);
}
