//! The kernel in plain Rust, right everywhere; also the bodies that the AVX2 kernel compiles with its own
//! features.

use super::kernel::{CHUNK, Target, TargetStart};
use super::pack::Source;
use super::{Operand, few_rows};
use crate::bf16;
use crate::cpu::{blocks, quant};
use crate::matrix::Slice;
use crate::quant::{Blocks, Codebook};

/// Rows of a tile.
pub(super) const ROWS: usize = 4;
/// Columns of a narrow tile: sixteen 128-bit registers hold a wide tile's sums and its factors.
pub(super) const LANES: usize = 4;
/// Rows and columns of a tile of any kernel, at most.
const MAX_ROWS: usize = 8;
const MAX_COLS: usize = 32;
/// Groups of a chunk.
const PARTS: usize = CHUNK / 4;

/// [`super::kernel::Tile`] of `VECTORS * LANES` columns.
///
/// # Safety
/// See [`super::kernel::Tile`]; all pointers are aligned for `f32`.
pub(super) unsafe fn tile<const VECTORS: usize>(
    groups: usize,
    a: *const u8,
    b: *const u8,
    sums: *mut f32,
    stride: usize,
    add: bool,
) {
    let width = VECTORS * LANES;
    // SAFETY: the caller promises `groups` of width in `b`, and a packed tile of `groups` in `a`.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(a.cast::<f32>(), groups.next_multiple_of(PARTS) * ROWS),
            std::slice::from_raw_parts(b.cast::<f32>(), groups * width),
        )
    };
    let mut acc = [[[0.0f32; LANES]; VECTORS]; ROWS];
    for (a, b) in a.chunks_exact(PARTS * ROWS).zip(b.chunks(PARTS * width)) {
        for (k, b) in b.chunks_exact(width).enumerate() {
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = a[i * PARTS + k];
                for (acc, b) in acc.as_flattened_mut().iter_mut().zip(b) {
                    *acc += a * b;
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: the caller promises a full tile of sums.
        let sums = unsafe { std::slice::from_raw_parts_mut(sums.add(i * stride), width) };
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

/// [`super::kernel::Store`] into a target whose rows, not columns, are side by side: of any kernel, for
/// results of few rows.
///
/// # Safety
/// See [`super::kernel::Store`].
pub(super) unsafe fn store_transposed(
    sums: *const f32,
    width: usize,
    rows: usize,
    cols: usize,
    alpha: f32,
    accumulate: bool,
    c: Target,
) {
    assert!(rows <= MAX_ROWS && cols <= MAX_COLS, "a tile of {rows} x {cols}");
    let mut turned = [0.0; MAX_COLS * MAX_ROWS];
    for (j, column) in turned.chunks_exact_mut(MAX_ROWS).enumerate().take(cols) {
        for (i, value) in column.iter_mut().enumerate().take(rows) {
            // SAFETY: the caller promises the tile.
            *value = unsafe { *sums.add(i * width + j) };
        }
    }
    let c = Target { row_stride: c.col_stride, col_stride: 1, ..c };
    // SAFETY: the caller promises the target, of which columns are now the rows; the tile has at most so many
    // of each.
    unsafe { store(turned.as_ptr(), MAX_ROWS, cols, rows, alpha, accumulate, c) }
}

#[inline(always)]
fn store_row<C: Source>(sums: &[f32], alpha: f32, accumulate: bool, c: &mut [C], narrow: impl Fn(f32) -> C) {
    for (c, sum) in c.iter_mut().zip(sums) {
        *c = narrow(if accumulate { c.widen() + alpha * sum } else { alpha * sum });
    }
}

/// [`few_rows::Dots`] of a tile of `ROWS` rows.
///
/// # Safety
/// See [`few_rows::Dots`].
#[inline(always)]
pub(super) unsafe fn dots<const ROWS: usize>(rows: usize, x: *const u8, w: Operand<'_>, sums: *mut f32) {
    let len = w.rows.next_multiple_of(PARTS) * ROWS;
    // SAFETY: the caller promises a packed tile of `w.rows` groups.
    let x = unsafe { std::slice::from_raw_parts(x.cast::<f32>(), len) };
    for i in 0..rows {
        for j in 0..w.cols {
            let dot = match w.data {
                Slice::F32(s) => dot::<_, ROWS>(&x[i * PARTS..], &s[j * w.col_stride..][..w.rows]),
                Slice::Bf16(s) => dot::<_, ROWS>(&x[i * PARTS..], &s[j * w.col_stride..][..w.rows]),
            };
            // SAFETY: sums have room for `rows` x `WIDTH`.
            unsafe { *sums.add(i * few_rows::WIDTH + j) = dot };
        }
    }
}

/// The sum of products of a packed row with weights, in sixteen interleaved parts, an order that vectors of
/// any width can follow.
#[inline(always)]
fn dot<S: Source, const ROWS: usize>(x: &[f32], w: &[S]) -> f32 {
    let mut acc = [0.0f32; PARTS];
    for (x, w) in x.chunks(PARTS * ROWS).zip(w.chunks(PARTS)) {
        if let Some(w) = w.as_array::<PARTS>() {
            (0..PARTS).for_each(|i| acc[i] += x[i] * w[i].widen());
        } else {
            w.iter().enumerate().for_each(|(i, w)| acc[i] += x[i] * w.widen());
        }
    }
    let mut half = PARTS / 2;
    while half > 0 {
        (0..half).for_each(|i| acc[i] += acc[i + half]);
        half /= 2;
    }
    acc[0]
}

/// [`super::coded::OfCodebook`] to `f32`.
///
/// # Safety
/// `to` has room for `len` floats.
#[inline(always)]
pub(super) unsafe fn dequantize_codebook(from: &Codebook, first: usize, len: usize, to: *mut u8) {
    // SAFETY: as the caller promises.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<f32>(), len) };
    quant::run_of_codebook(from, first, to);
}

/// [`super::coded::OfBlocks`] to `f32`.
///
/// # Safety
/// `to` has room for `len` floats.
pub(super) unsafe fn dequantize_blocks(from: &Blocks, first: usize, len: usize, to: *mut u8) {
    // SAFETY: as the caller promises.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<f32>(), len) };
    blocks::run(from, first, to);
}
