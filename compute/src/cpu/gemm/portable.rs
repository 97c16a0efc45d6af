//! The kernel in plain Rust, right everywhere; also the bodies that the AVX2 kernel compiles with its own features.

use super::kernel::{Target, TargetStart};
use super::pack::Source;
use super::{Operand, few_rows};
use crate::bf16;
use crate::matrix::Slice;

/// Rows of a tile.
pub(super) const ROWS: usize = 4;
/// Columns of a narrow tile: sixteen 128-bit registers hold a wide tile's sums and its factors.
pub(super) const LANES: usize = 4;

/// [`super::kernel::Tile`] of `VECTORS * LANES` columns.
///
/// # Safety
/// See [`super::kernel::Tile`]; all pointers are aligned for `f32`.
pub(super) unsafe fn tile<const VECTORS: usize>(
    groups: usize,
    a: *const u8,
    a_stride: usize,
    b: *const u8,
    sums: *mut f32,
    add: bool,
) {
    let width = VECTORS * LANES;
    // SAFETY: the caller promises a full tile of sums, `groups` of width in `b`, and rows of `groups` in `a`.
    let (sums, b) = unsafe {
        (
            std::slice::from_raw_parts_mut(sums, ROWS * width),
            std::slice::from_raw_parts(b.cast::<f32>(), groups * width),
        )
    };
    // SAFETY: as above.
    let a: [&[f32]; ROWS] = std::array::from_fn(|i| unsafe {
        std::slice::from_raw_parts(a.add(i * a_stride).cast::<f32>(), groups)
    });
    let mut acc = [[[0.0f32; LANES]; VECTORS]; ROWS];
    for (k, b) in b.chunks_exact(width).enumerate() {
        for (acc, a) in acc.iter_mut().zip(&a) {
            let a = a[k];
            for (acc, b) in acc.as_flattened_mut().iter_mut().zip(b) {
                *acc += a * b;
            }
        }
    }
    for (sums, acc) in sums.chunks_exact_mut(width).zip(&acc) {
        for (sum, acc) in sums.iter_mut().zip(acc.as_flattened()) {
            *sum = if add { *sum + acc } else { *acc };
        }
    }
}

/// [`super::kernel::Store`].
///
/// # Safety
/// See [`super::kernel::Store`]: the tile and the target cover `rows` x `cols`.
#[inline(always)]
pub(super) unsafe fn store(
    sums: *const f32,
    width: usize,
    rows: usize,
    cols: usize,
    alpha: f32,
    accumulate: bool,
    c: Target,
) {
    for i in 0..rows {
        // SAFETY: the caller promises both rows; the target is this task's alone.
        unsafe {
            let sums = std::slice::from_raw_parts(sums.add(i * width), cols);
            match c.start {
                TargetStart::F32(p) => {
                    let c = std::slice::from_raw_parts_mut(p.add(i * c.row_stride), cols);
                    store_row(sums, alpha, accumulate, c, |v| v);
                }
                TargetStart::Bf16(p) => {
                    let c = std::slice::from_raw_parts_mut(p.add(i * c.row_stride), cols);
                    store_row(sums, alpha, accumulate, c, bf16::from_f32);
                }
            }
        }
    }
}

#[inline(always)]
fn store_row<C: Source>(sums: &[f32], alpha: f32, accumulate: bool, c: &mut [C], narrow: impl Fn(f32) -> C) {
    for (c, sum) in c.iter_mut().zip(sums) {
        *c = narrow(if accumulate { c.widen() + alpha * sum } else { alpha * sum });
    }
}

/// [`few_rows::Dots`].
///
/// # Safety
/// See [`few_rows::Dots`].
#[inline(always)]
pub(super) unsafe fn dots(rows: usize, x: *const u8, x_stride: usize, w: Operand<'_>, sums: *mut f32) {
    for i in 0..rows {
        // SAFETY: the caller promises packed rows of `w.rows` floats.
        let x = unsafe { std::slice::from_raw_parts(x.add(i * x_stride).cast::<f32>(), w.rows) };
        for j in 0..w.cols {
            let dot = match w.data {
                Slice::F32(s) => dot(x, &s[j * w.col_stride..][..w.rows]),
                Slice::Bf16(s) => dot(x, &s[j * w.col_stride..][..w.rows]),
            };
            // SAFETY: sums have room for `rows` x `COLS`.
            unsafe { *sums.add(i * few_rows::COLS + j) = dot };
        }
    }
}

/// The sum of products in sixteen interleaved parts, an order that vectors of any width can follow.
#[inline(always)]
fn dot<S: Source>(x: &[f32], w: &[S]) -> f32 {
    const PARTS: usize = 16;
    let mut acc = [0.0f32; PARTS];
    let (x_parts, x_rest) = x.as_chunks::<PARTS>();
    let (w_parts, w_rest) = w.as_chunks::<PARTS>();
    for (x, w) in x_parts.iter().zip(w_parts) {
        for i in 0..PARTS {
            acc[i] += x[i] * w[i].widen();
        }
    }
    for (i, (x, w)) in x_rest.iter().zip(w_rest).enumerate() {
        acc[i] += x * w.widen();
    }
    let mut half = PARTS / 2;
    while half > 0 {
        for i in 0..half {
            acc[i] += acc[i + half];
        }
        half /= 2;
    }
    acc[0]
}
