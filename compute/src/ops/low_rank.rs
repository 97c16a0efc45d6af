//! The low-rank product of an adapter (Hu et al., 2021, arXiv:2106.09685).
//!
//! Forward, `x[T, in]`, `a[R, in]`, `b[out, R]`, `y[T, out]`; `s[T, R]` is kept for the backward:
//!
//! ```text
//! s  = x aᵀ
//! y += scale * s bᵀ
//! ```
//!
//! Backward; `ds[T, R]` is scratch:
//!
//! ```text
//! ds  = scale * dy b
//! db += scale * dyᵀ s
//! da += dsᵀ x
//! dx += ds a
//! ```
//!
//! `a`, `b`, `s`, `ds` and the gradients are `f32` in either precision. `in x out` never appears: the work is
//! `2 T R (in + out)` forward and twice that backward.

use super::matmul::Factor::{Plain, Transposed};
use super::matmul::matmul;
use crate::{Device, MatrixMut, MatrixRef, Precision};

/// `s[T, R] = x aᵀ`, `y[T, out] += scale * s bᵀ`.
///
/// # Panics
/// If the shapes do not agree.
pub fn forward(
    device: &Device,
    precision: Precision,
    y: MatrixMut<'_>,
    x: MatrixRef<'_>,
    a: MatrixRef<'_>,
    b: MatrixRef<'_>,
    scale: f32,
    mut s: MatrixMut<'_>,
) {
    check(x, (y.rows(), y.cols()), a, b, (s.rows(), s.cols()));
    matmul(device, precision, 1.0, Plain(x), Transposed(a), false, s.reborrow());
    matmul(device, precision, scale, Plain(s.as_ref()), Transposed(b), true, y);
}

/// Adds to `da[R, in]`, `db[out, R]` (`f32`) and, where the layer below wants it, `dx[T, in]`. `x` and `s` are those of
/// the forward pass; `ds[T, R]` is overwritten.
///
/// # Panics
/// If the shapes do not agree.
pub fn backward(
    device: &Device,
    precision: Precision,
    dx: Option<MatrixMut<'_>>,
    da: MatrixMut<'_>,
    db: MatrixMut<'_>,
    dy: MatrixRef<'_>,
    x: MatrixRef<'_>,
    a: MatrixRef<'_>,
    b: MatrixRef<'_>,
    scale: f32,
    s: MatrixRef<'_>,
    mut ds: MatrixMut<'_>,
) {
    check(x, (dy.rows(), dy.cols()), a, b, (s.rows(), s.cols()));
    assert_eq!((s.rows(), s.cols()), (ds.rows(), ds.cols()), "shape of a low-rank product's scratch");
    matmul(device, precision, scale, Plain(dy), Plain(b), false, ds.reborrow());
    matmul(device, precision, scale, Transposed(dy), Plain(s), true, db);
    matmul(device, precision, 1.0, Transposed(ds.as_ref()), Plain(x), true, da);
    if let Some(dx) = dx {
        matmul(device, precision, 1.0, Plain(ds.as_ref()), Plain(a), true, dx);
    }
}

fn check(x: MatrixRef<'_>, y: (usize, usize), a: MatrixRef<'_>, b: MatrixRef<'_>, s: (usize, usize)) {
    let (tokens, rank) = (x.rows(), a.rows());
    assert_eq!((tokens, b.rows()), y, "shape of a low-rank product");
    assert_eq!(x.cols(), a.cols(), "width of a low-rank product's input and of its first factor");
    assert_eq!(rank, b.cols(), "ranks of a low-rank product's factors");
    assert_eq!((tokens, rank), s, "shape of a low-rank product's intermediate");
}
