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

use super::matmul::Factor::{Plain, Transposed};
use super::matmul::{Product, Update, matmul, multiply};
use crate::{Device, MatrixMut, MatrixRef, Precision};

/// What the product `x w` becomes `y[T, out]` by, with `s[T, R]`: made there, or by [`prepared`] before it.
pub fn forward<'a>(
    (a, b): (MatrixRef<'a>, MatrixRef<'a>),
    scale: f32,
    s: MatrixMut<'a>,
    is_made: bool,
) -> Update<'a> {
    let first = (!is_made).then_some(Transposed(a));
    Update { first, scale, s, second: Transposed(b) }
}

/// `s[T, R] = scale * input aᵀ`, where the update reads something else than `x`: what dropout left of it, or
/// sums of its columns. `by_tiles`: as [`Product::by_tiles`].
///
/// # Panics
/// If the shapes do not agree.
pub fn prepared(
    device: &Device,
    precision: Precision,
    input: MatrixRef<'_>,
    a: MatrixRef<'_>,
    scale: f32,
    s: MatrixMut<'_>,
    by_tiles: bool,
) {
    let product = Product::new((Plain(input), Transposed(a)), false, s);
    multiply(device, precision, vec![Product { alpha: scale, by_tiles, ..product }]);
}

/// What the product `dy w` becomes `dx[T, in]` by, where the update reads `x` itself; it makes `ds[T, R]`.
pub fn input_gradient<'a>(
    (a, b): (MatrixRef<'a>, MatrixRef<'a>),
    scale: f32,
    ds: MatrixMut<'a>,
) -> Update<'a> {
    Update { first: Some(Plain(b)), scale, s: ds, second: Plain(a) }
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
/// `input` is what the update reads; `s[T, R]` is overwritten.
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
