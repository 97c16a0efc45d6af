//! The kernel for AVX2 and FMA: `f32`, 6 x 16 tiles.

use std::arch::x86_64::*;

use super::kernel::{CHUNK, Target};
use super::{Operand, pack, portable};
use crate::quant::Codebook;

/// Rows of a tile: 12 sums, 2 factors of `b` and one of `a` fill the 16 registers.
pub(super) const ROWS: usize = 6;
/// Groups of a chunk.
const GROUPS: usize = CHUNK / 4;

/// [`super::kernel::Tile`] of `8 * VECTORS` columns.
///
/// # Safety
/// See [`super::kernel::Tile`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile<const VECTORS: usize>(
    groups: usize,
    a: *const u8,
    b: *const u8,
    sums: *mut f32,
    stride: usize,
    add: bool,
) {
    // SAFETY: the caller promises a full tile of sums, `groups` of width in `b`, and a packed tile of
    // `groups` in `a`.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); VECTORS]; ROWS];
        if add {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_loadu_ps(sums.add(i * stride + 8 * j));
                }
            }
        }
        let step = |acc: &mut [[__m256; VECTORS]; ROWS], a: *const f32, b: *const f32| {
            let b: [__m256; VECTORS] = std::array::from_fn(|j| _mm256_loadu_ps(b.add(8 * j)));
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*a.add(i * GROUPS));
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm256_fmadd_ps(a, b, *acc);
                }
            }
        };
        // Four groups in a turn: how fast a short loop runs depends on where in a cache line it begins.
        let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
        for _ in 0..groups / GROUPS {
            for k in (0..GROUPS).step_by(4) {
                let (a, b) = (a.add(k), b.add(k * VECTORS * 8));
                step(&mut acc, a, b);
                step(&mut acc, a.add(1), b.add(VECTORS * 8));
                step(&mut acc, a.add(2), b.add(2 * VECTORS * 8));
                step(&mut acc, a.add(3), b.add(3 * VECTORS * 8));
            }
            (a, b) = (a.add(ROWS * GROUPS), b.add(GROUPS * VECTORS * 8));
        }
        for k in 0..groups % GROUPS {
            step(&mut acc, a.add(k), b.add(k * VECTORS * 8));
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                _mm256_storeu_ps(sums.add(i * stride + 8 * j), *acc);
            }
        }
    }
}

/// [`pack::a`], vectorized by the compiler.
///
/// # Safety
/// See [`pack::a`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pack_a(a: Operand<'_>, rows: usize, tile_bytes: usize, to: *mut u8) {
    // SAFETY: as the caller promises.
    unsafe { pack::a::<ROWS>(a, rows, tile_bytes, to) }
}

/// [`pack::b`], vectorized by the compiler.
///
/// # Safety
/// See [`pack::b`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pack_b(b: Operand<'_>, width: usize, to: *mut u8) {
    // SAFETY: as the caller promises.
    unsafe { pack::b(b, width, to) }
}

/// [`portable::store`], vectorized by the compiler.
///
/// # Safety
/// See [`portable::store`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn store(
    sums: *const f32,
    width: usize,
    rows: usize,
    cols: usize,
    alpha: f32,
    accumulate: bool,
    c: Target,
) {
    // SAFETY: as the caller promises.
    unsafe { portable::store(sums, width, rows, cols, alpha, accumulate, c) }
}

/// [`portable::dots`], vectorized by the compiler.
///
/// # Safety
/// See [`portable::dots`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dots(rows: usize, x: *const u8, w: Operand<'_>, sums: *mut f32) {
    // SAFETY: as the caller promises.
    unsafe { portable::dots::<ROWS>(rows, x, w, sums) }
}

/// [`portable::dequantize_codebook`], compiled for AVX2.
///
/// # Safety
/// See [`portable::dequantize_codebook`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dequantize(from: &Codebook, first: usize, len: usize, to: *mut u8) {
    // SAFETY: as the caller promises.
    unsafe { portable::dequantize_codebook(from, first, len, to) }
}
