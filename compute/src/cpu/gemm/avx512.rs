//! The kernels for AVX-512, with `bf16` and with `f32` products: 8 x 32 tiles.

use std::arch::x86_64::*;

use super::kernel::{CHUNK, Target, TargetStart};
use super::pack512::{Element, along_k, vector};
use super::{Operand, few_rows};
use crate::matrix::Slice;

/// Rows of a tile: 16 sums of a wide one hide the latency of two multipliers.
pub(super) const ROWS: usize = 8;
/// Groups of a chunk: a vector's lanes.
const GROUPS: usize = CHUNK / 4;

/// [`super::kernel::Tile`] of `16 * VECTORS` columns over pairs of `bf16`, summed in `CHAINS` alternating
/// parts.
///
/// # Safety
/// See [`super::kernel::Tile`]; the processor has AVX-512 F, BW and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn tile_bf16<const VECTORS: usize, const CHAINS: usize>(
    groups: usize,
    a: *const u8,
    b: *const u8,
    sums: *mut f32,
    stride: usize,
    add: bool,
) {
    let multiply = |acc, a, b| _mm512_dpbf16_ps(acc, bits(a), bits(b));
    // SAFETY: as the caller promises.
    unsafe { tile::<VECTORS, CHAINS>(groups, a, b, sums, stride, add, multiply) }
}

/// [`super::kernel::Tile`] of `16 * VECTORS` columns over `f32`, summed in `CHAINS` alternating parts.
///
/// # Safety
/// See [`super::kernel::Tile`]; the processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn tile_f32<const VECTORS: usize, const CHAINS: usize>(
    groups: usize,
    a: *const u8,
    b: *const u8,
    sums: *mut f32,
    stride: usize,
    add: bool,
) {
    let multiply = |acc, a, b| _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc);
    // SAFETY: as the caller promises.
    unsafe { tile::<VECTORS, CHAINS>(groups, a, b, sums, stride, add, multiply) }
}

/// The same 64 bytes as the type that the `bf16` instructions take.
#[inline(always)]
pub(super) fn bits(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 plain bytes.
    unsafe { std::mem::transmute(v) }
}

/// # Safety
/// See [`super::kernel::Tile`]; inlined into a function with the features.
#[inline(always)]
unsafe fn tile<const VECTORS: usize, const CHAINS: usize>(
    groups: usize,
    a: *const u8,
    b: *const u8,
    sums: *mut f32,
    stride: usize,
    add: bool,
    multiply: impl Fn(__m512, __m512i, __m512i) -> __m512,
) {
    // SAFETY: the caller promises a full tile of sums, `groups` of width in `b`, and a packed tile of
    // `groups` in `a`.
    unsafe {
        let mut acc = [[[_mm512_setzero_ps(); VECTORS]; ROWS]; CHAINS];
        if add {
            for (i, acc) in acc[0].iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_loadu_ps(sums.add(i * stride + 16 * j));
                }
            }
        }
        let (a, b) = (a.cast::<i32>(), b.cast::<i32>());
        let step = |acc: &mut [[__m512; VECTORS]; ROWS], chunk: usize, group: usize| {
            let b = b.add((chunk * GROUPS + group) * VECTORS * 16);
            let b: [__m512i; VECTORS] = std::array::from_fn(|j| _mm512_loadu_si512(b.add(j * 16).cast()));
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = _mm512_set1_epi32(*a.add((chunk * ROWS + i) * GROUPS + group));
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = multiply(*acc, a, b);
                }
            }
        };
        for chunk in 0..groups / GROUPS {
            for group in (0..GROUPS).step_by(CHAINS) {
                for (chain, acc) in acc.iter_mut().enumerate() {
                    step(acc, chunk, group + chain);
                }
            }
        }
        for group in 0..groups % GROUPS {
            step(&mut acc[0], groups / GROUPS, group);
        }
        for i in 0..ROWS {
            for j in 0..VECTORS {
                let parts = acc[1..].iter().map(|part| part[i][j]);
                let sum = parts.fold(acc[0][i][j], |sum, part| _mm512_add_ps(sum, part));
                _mm512_storeu_ps(sums.add(i * stride + 16 * j), sum);
            }
        }
    }
}

/// [`super::kernel::Store`].
///
/// # Safety
/// See [`super::kernel::Store`]; the processor has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn store(
    sums: *const f32,
    width: usize,
    rows: usize,
    cols: usize,
    alpha: f32,
    accumulate: bool,
    c: Target,
) {
    let alpha = _mm512_set1_ps(alpha);
    for i in 0..rows {
        for j in (0..cols).step_by(16) {
            let mask = mask16(cols - j);
            // SAFETY: the mask keeps to `cols`, and the caller promises tile and target for `rows` x `cols`.
            unsafe {
                let sum = _mm512_maskz_loadu_ps(mask, sums.add(i * width + j));
                match c.at(i, j).start {
                    TargetStart::F32(p) => {
                        let old =
                            if accumulate { _mm512_maskz_loadu_ps(mask, p) } else { _mm512_setzero_ps() };
                        _mm512_mask_storeu_ps(p, mask, _mm512_fmadd_ps(alpha, sum, old));
                    }
                    TargetStart::Bf16(p) => {
                        let p = p.cast::<i16>();
                        let old = || widen(_mm256_maskz_loadu_epi16(mask, p));
                        let old = if accumulate { old() } else { _mm512_setzero_ps() };
                        _mm256_mask_storeu_epi16(p, mask, narrow(_mm512_fmadd_ps(alpha, sum, old)));
                    }
                }
            }
        }
    }
}

/// The first `count` of 16 lanes.
#[inline(always)]
pub(super) fn mask16(count: usize) -> u16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

/// `bf16` to `f32`, exactly.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn widen(v: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(v)))
}

/// `f32` to `bf16`, to nearest even; every NaN becomes the quiet one of its sign.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn narrow(v: __m512) -> __m256i {
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, is_nan, quiet)))
}

/// [`few_rows::Dots`] over pairs of `bf16`.
///
/// # Safety
/// See [`few_rows::Dots`]; the processor has AVX-512 F, BW and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn dots_bf16(rows: usize, x: *const u8, w: Operand<'_>, sums: *mut f32) {
    let multiply = |acc, a, b| _mm512_dpbf16_ps(acc, bits(a), bits(b));
    // SAFETY: as the caller promises.
    unsafe { dots::<2>(rows, x, w, sums, multiply) }
}

/// [`few_rows::Dots`] over `f32`.
///
/// # Safety
/// See [`few_rows::Dots`]; the processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn dots_f32(rows: usize, x: *const u8, w: Operand<'_>, sums: *mut f32) {
    let multiply = |acc, a, b| _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc);
    // SAFETY: as the caller promises.
    unsafe { dots::<1>(rows, x, w, sums, multiply) }
}

/// # Safety
/// See [`few_rows::Dots`]; inlined into a function with the features.
#[inline(always)]
unsafe fn dots<const GROUP: usize>(
    rows: usize,
    x: *const u8,
    w: Operand<'_>,
    sums: *mut f32,
    multiply: impl Fn(__m512, __m512i, __m512i) -> __m512 + Copy,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match (w.data, rows) {
            (Slice::F32(s), 1) => dots_of_one::<f32, GROUP>(x, w, s.as_ptr(), sums, multiply),
            (Slice::F32(s), 2) => dots_of::<f32, GROUP, 2>(x, w, s.as_ptr(), sums, multiply),
            (Slice::F32(s), 3) => dots_of::<f32, GROUP, 3>(x, w, s.as_ptr(), sums, multiply),
            (Slice::F32(s), _) => dots_of::<f32, GROUP, 4>(x, w, s.as_ptr(), sums, multiply),
            (Slice::Bf16(s), 1) => dots_of_one::<_, GROUP>(x, w, s.as_ptr(), sums, multiply),
            (Slice::Bf16(s), 2) => dots_of::<_, GROUP, 2>(x, w, s.as_ptr(), sums, multiply),
            (Slice::Bf16(s), 3) => dots_of::<_, GROUP, 3>(x, w, s.as_ptr(), sums, multiply),
            (Slice::Bf16(s), _) => dots_of::<_, GROUP, 4>(x, w, s.as_ptr(), sums, multiply),
        }
    }
}

/// One row at the memory's speed: a weight row after the other, as they lie, in sums that do not wait for one
/// another.
///
/// # Safety
/// See [`few_rows::Dots`] of one row; `from` is the start of `w`.
#[inline(always)]
unsafe fn dots_of_one<S: Element, const GROUP: usize>(
    x: *const u8,
    w: Operand<'_>,
    from: *const S,
    sums: *mut f32,
    multiply: impl Fn(__m512, __m512i, __m512i) -> __m512,
) {
    const CHAINS: usize = 4;
    let (depth, chunks) = (GROUPS * GROUP, w.rows.div_ceil(GROUPS * GROUP));
    let whole = w.rows / (depth * CHAINS) * CHAINS;
    // SAFETY: as in `dots_of`.
    unsafe {
        for first in (0..w.cols).step_by(few_rows::COLS) {
            let mut all = [_mm512_setzero_ps(); few_rows::COLS];
            for (j, all) in all.iter_mut().enumerate() {
                let from = from.add((first + j).min(w.cols - 1) * w.col_stride);
                let part = |acc, chunk: usize, valid| {
                    let w = along_k::<S, GROUP>(from.add(chunk * depth), valid);
                    multiply(acc, vector(x.add(chunk * ROWS * CHUNK)), w)
                };
                if chunks == 1 {
                    *all = part(_mm512_setzero_ps(), 0, w.rows);
                    continue;
                }
                let mut acc = [_mm512_setzero_ps(); CHAINS];
                for chunk in (0..whole).step_by(CHAINS) {
                    for (chain, acc) in acc.iter_mut().enumerate() {
                        *acc = part(*acc, chunk + chain, depth);
                    }
                }
                for (chunk, acc) in (whole..chunks).zip(&mut acc) {
                    *acc = part(*acc, chunk, w.rows - chunk * depth);
                }
                let [a, b, c, d] = acc;
                *all = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            }
            _mm_storeu_ps(sums.add(first), totals(all));
        }
    }
}

/// The sum of each vector's lanes: of four together, in half the instructions of one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn totals([a, b, c, d]: [__m512; few_rows::COLS]) -> __m128 {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (low, high) = (_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
    // Four sums of a quarter each, one behind the other.
    let quarters = _mm512_add_ps(low, high);
    let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}

/// Several rows: several weight rows at once share what is read of them.
///
/// # Safety
/// See [`few_rows::Dots`] of exactly `COUNT` rows; `from` is the start of `w`.
#[inline(always)]
unsafe fn dots_of<S: Element, const GROUP: usize, const COUNT: usize>(
    x: *const u8,
    w: Operand<'_>,
    from: *const S,
    sums: *mut f32,
    multiply: impl Fn(__m512, __m512i, __m512i) -> __m512,
) {
    // SAFETY: packed rows of `x` are whole chunks, padded with zeros; `along_k` keeps to the elements that
    // there are, and weight rows beyond the last one are not read but repeated.
    unsafe {
        for first in (0..w.cols).step_by(few_rows::COLS) {
            let mut acc = [[_mm512_setzero_ps(); few_rows::COLS]; COUNT];
            let from: [*const S; few_rows::COLS] =
                std::array::from_fn(|j| from.add((first + j).min(w.cols - 1) * w.col_stride));
            for (chunk, k) in (0..w.rows).step_by(GROUPS * GROUP).enumerate() {
                let w: [__m512i; few_rows::COLS] =
                    std::array::from_fn(|j| along_k::<S, GROUP>(from[j].add(k), w.rows - k));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = vector(x.add((chunk * ROWS + i) * CHUNK));
                    for (acc, w) in acc.iter_mut().zip(w) {
                        *acc = multiply(*acc, x, w);
                    }
                }
            }
            for (i, acc) in acc.into_iter().enumerate() {
                _mm_storeu_ps(sums.add(i * few_rows::WIDTH + first), totals(acc));
            }
        }
    }
}
