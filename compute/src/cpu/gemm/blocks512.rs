//! Blocks into values with AVX-512, and few rows by blocks as they lie in memory.

// Safety comments stand within the arguments of macros, where clippy does not look for them.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::arch::x86_64::*;

use super::Operand;
use super::avx512::mask16;
use super::blocks2::{Groups, Int4, Q4_0, by_type, half, run, total};
use super::coded::{Coded, FewRows};
use super::few_rows::{ROWS, WIDTH};
use super::scratch::Room;
use crate::bf16;
use crate::cpu::simd;
use crate::matrix::Slice;
use crate::quant::blocks::{BlockType, Blocks, GROUP};

pub(super) use super::blocks2::{has_dots, pack};

/// Floats of a vector.
const LANES: usize = 16;
/// Bytes that are asked for ahead of those at hand.
const AHEAD: usize = 4096;

/// [`super::coded::OfBlocks`] to `bf16`.
///
/// # Safety
/// `to` has room for `len` elements; the processor has AVX-512 F, BW, DQ, VL and BF16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn to_bf16(from: &Blocks, first: usize, len: usize, to: *mut u8) {
    by_type!(from.kind(), G => {
        // SAFETY: as the caller promises; a group is one vector.
        unsafe {
            run::<G, bf16>(from, first, len, to.cast(), |block, group, to| {
                let [low, high] = G::wide_values(block, group);
                let values = _mm512_cvtne2ps_pbh(high, low);
                _mm512_storeu_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(values));
            });
        }
    });
}

/// [`super::coded::OfBlocks`] to `f32`.
///
/// # Safety
/// `to` has room for `len` floats; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn to_f32(from: &Blocks, first: usize, len: usize, to: *mut u8) {
    by_type!(from.kind(), G => {
        // SAFETY: as the caller promises; a group is two vectors.
        unsafe {
            run::<G, f32>(from, first, len, to.cast(), |block, group, to| {
                let [low, high] = G::wide_values(block, group);
                _mm512_storeu_ps(to, low);
                _mm512_storeu_ps(to.add(LANES), high);
            });
        }
    });
}

/// Elements of a row that are packed together: whole steps of every type.
const STEP: usize = FewRows::DEPTH_STEP;
/// Blocks whose scales are read together, of the types that have one group in a block.
const BLOCKS: usize = 16;

/// Whether few rows can be multiplied by codes of four bits in blocks of one group, without bringing each into a
/// byte.
pub(super) fn has_nibble_dots(w: &Coded<'_>) -> bool {
    has_dots(w) && matches!(kind(w), BlockType::Q4_0 | BlockType::Int4)
}

/// The same of eight groups.
pub(super) fn has_q4_k_dots(w: &Coded<'_>) -> bool {
    has_dots(w) && kind(w) == BlockType::Q4K
}

fn kind(w: &Coded<'_>) -> BlockType {
    w.weight.blocks().expect("a kernel for blocks").kind()
}

/// Floats of a packed row: whole steps.
fn row_len(depth: usize) -> usize {
    depth.next_multiple_of(STEP)
}

/// [`super::coded::FewRows::pack`] for [`nibble_dots`]: in each step the elements of the low halves of the first
/// bytes of sixteen words, then of their high halves, and so on.
///
/// # Safety
/// See [`super::coded::FewRows::pack`].
pub(super) unsafe fn pack_nibbles(a: Operand<'_>, to: *mut u8) {
    // A block has four words of four bytes.
    let element = |part: usize, lane: usize| 32 * (lane / 4) + 4 * (lane % 4) + part / 2 + 16 * (part % 2);
    // SAFETY: as the caller promises.
    unsafe { pack_by(a, to.cast(), 128, element) }
}

/// [`super::coded::FewRows::pack`] for [`q4_k_dots`].
///
/// # Safety
/// See [`super::coded::FewRows::pack`].
pub(super) unsafe fn pack_q4_k(a: Operand<'_>, to: *mut u8) {
    // Eight words hold two groups, one in the low halves of bytes and one in the high ones.
    let element = |part: usize, lane: usize| 64 * (lane / 8) + 4 * (lane % 8) + part / 2 + 32 * (part % 2);
    // SAFETY: as the caller promises.
    unsafe { pack_by(a, to.cast(), 128, element) }
}

/// Rows one after the other in `f32`, in steps of so many elements that are brought into an order of vectors;
/// zeros follow the last element.
///
/// # Safety
/// `a` lies contiguous along `k`, and `to` has room for whole steps.
unsafe fn pack_by(a: Operand<'_>, to: *mut f32, step: usize, element: impl Fn(usize, usize) -> usize) {
    let len = row_len(a.cols);
    for i in 0..a.rows {
        for k in (0..len).step_by(step) {
            for at in 0..step {
                let k = k + element(at / LANES, at % LANES);
                let x = match a.data {
                    _ if k >= a.cols => 0.0,
                    Slice::F32(s) => s[i * a.row_stride + k],
                    Slice::Bf16(s) => s[i * a.row_stride + k].to_f32(),
                };
                // SAFETY: the caller promises room.
                unsafe { *to.add(i * len + k / step * step + at) = x };
            }
        }
    }
}

/// Calls a function for `rows` with their number as a constant.
macro_rules! by_count {
    ($rows:expr, $call:ident $(::<$($generic:ty),*>)?, $args:tt) => {
        match $rows {
            1 => $call::<$($($generic,)*)? 1> $args,
            2 => $call::<$($($generic,)*)? 2> $args,
            3 => $call::<$($($generic,)*)? 3> $args,
            _ => $call::<$($($generic,)*)? 4> $args,
        }
    };
}

/// [`super::coded::FewRows::dots`] of blocks of one group with codes of four bits: sixteen words of codes at a
/// time, of which each shift brings sixteen codes down, and looking up makes floats of them.
///
/// # Safety
/// See [`super::coded::FewRows::dots`]; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn nibble_dots(rows: usize, x: *const u8, w: Coded<'_>, room: Room, sums: *mut f32) {
    const { assert!(ROWS == 4) };
    let (x, groups) = (x.cast::<f32>(), w.rows / GROUP);
    let of_groups = room.sums(0, rows * groups);
    // SAFETY: as the caller promises; there is room for a sum of each group and row.
    unsafe {
        for row in 0..rows {
            for group in 0..groups {
                // Of a step of four blocks, a quarter of each vector.
                let (step, quarter) = (group / 4, group % 4);
                let x = x.add(row * row_len(w.rows) + step * 128 + 4 * quarter);
                let of_vector =
                    |part: usize| (0..4).map(move |lane| *x.add(part * LANES + lane)).sum::<f32>();
                *of_groups.add(row * groups + group) = (0..8).map(of_vector).sum();
            }
        }
        match kind(&w) {
            BlockType::Q4_0 => by_count!(rows, nibble_dots_of::<Q4_0>, (x, w, of_groups, sums)),
            _ => by_count!(rows, nibble_dots_of::<Int4>, (x, w, of_groups, sums)),
        }
    }
}

/// # Safety
/// See [`nibble_dots`], of exactly `COUNT` rows, with the sums of their groups. Inlined into a function with the
/// features.
#[inline(always)]
unsafe fn nibble_dots_of<G: Groups, const COUNT: usize>(
    x: *const f32,
    w: Coded<'_>,
    of_groups: *const f32,
    sums: *mut f32,
) {
    let (bytes, codes_at) = (G::TYPE.bytes(), if matches!(G::TYPE, BlockType::Q4_0) { 2 } else { 4 });
    let (groups, row_len) = (w.rows / GROUP, row_len(w.rows));
    // SAFETY: whole blocks of the weight's rows, and as many elements of each row of `x`.
    unsafe {
        for j in 0..w.cols {
            let (column, _) = w.weight.codes_of(w.first + j * w.rows, w.rows);
            let mut acc = [_mm512_setzero_ps(); COUNT];
            for first in (0..groups).step_by(BLOCKS) {
                let count = BLOCKS.min(groups - first);
                let block = column.add(first * bytes);
                let (d, m) = scales_of_blocks::<G>(block, count);
                for (row, acc) in acc.iter_mut().enumerate() {
                    let x = _mm512_maskz_loadu_ps(mask16(count), of_groups.add(row * groups + first));
                    *acc = _mm512_fmadd_ps(x, m, *acc);
                }
                for step in 0..count.div_ceil(4) {
                    let of_block = |i: usize| {
                        let at = block.add((4 * step + i) * bytes + codes_at);
                        if 4 * step + i < count { _mm_loadu_si128(at.cast()) } else { _mm_setzero_si128() }
                    };
                    let ahead = block.wrapping_add(4 * step * bytes + AHEAD);
                    simd::prefetch(ahead);
                    simd::prefetch(ahead.wrapping_add(64));
                    let codes = _mm512_castsi128_si512(of_block(0));
                    let codes = _mm512_inserti32x4::<1>(codes, of_block(1));
                    let codes = _mm512_inserti32x4::<2>(codes, of_block(2));
                    let codes = _mm512_inserti32x4::<3>(codes, of_block(3));
                    let weights = look_up(codes);
                    // The scale of a block is that of its four words.
                    let lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
                    let lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(4 * step as i32));
                    let scale = _mm512_permutexvar_ps(lanes, d);
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let x = x.add(row * row_len + (first + 4 * step) * GROUP);
                        let mut sum = _mm512_mul_ps(_mm512_loadu_ps(x), weights[0]);
                        for (part, weights) in weights.into_iter().enumerate().skip(1) {
                            sum = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(part * LANES)), weights, sum);
                        }
                        *acc = _mm512_fmadd_ps(sum, scale, *acc);
                    }
                }
            }
            for (row, acc) in acc.into_iter().enumerate() {
                *sums.add(row * WIDTH + j) = _mm512_reduce_add_ps(acc);
            }
        }
    }
}

/// The scales, and what is added for each sum of a group, of up to sixteen blocks of one group; zeros behind them.
///
/// # Safety
/// There are so many blocks. Inlined into a function with the features.
#[inline(always)]
unsafe fn scales_of_blocks<G: Groups>(block: *const u8, count: usize) -> (__m512, __m512) {
    let bytes = G::TYPE.bytes() as i32;
    // SAFETY: a block has four bytes and more.
    unsafe {
        let places = _mm512_mullo_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            _mm512_set1_epi32(bytes),
        );
        let zero = _mm512_setzero_si512();
        let words = _mm512_mask_i32gather_epi32::<1>(zero, mask16(count), places, block.cast());
        let d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
        let m = match G::TYPE {
            BlockType::Q8_0 => _mm512_setzero_ps(),
            BlockType::Q4_0 => _mm512_mul_ps(d, _mm512_set1_ps(-8.0)),
            BlockType::Q5_0 => _mm512_mul_ps(d, _mm512_set1_ps(-16.0)),
            _ => _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(words))),
        };
        (d, m)
    }
}

/// The codes in sixteen words as floats, the lowest half byte first.
#[inline(always)]
unsafe fn look_up(codes: __m512i) -> [__m512; 8] {
    // SAFETY: inlined into a function with the features. Of an index, only four bits matter.
    unsafe {
        let table = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
        [
            _mm512_permutexvar_ps(codes, table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<8>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<12>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<16>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<20>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<24>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<28>(codes), table),
        ]
    }
}

/// [`super::coded::FewRows::dots`] of `q4_k`.
///
/// # Safety
/// See [`super::coded::FewRows::dots`]; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn q4_k_dots(rows: usize, x: *const u8, w: Coded<'_>, room: Room, sums: *mut f32) {
    let (x, groups) = (x.cast::<f32>(), w.rows / GROUP);
    let of_groups = room.sums(0, rows * groups);
    // SAFETY: as the caller promises; there is room for a sum of each group and row.
    unsafe {
        for row in 0..rows {
            for group in 0..groups {
                // Of a step of four groups, half of each second vector.
                let (step, half, odd) = (group / 4, group % 4 / 2, group % 2);
                let x = x.add(row * w.rows + step * 128 + 8 * half + odd * LANES);
                let of_vector =
                    |part: usize| (0..8).map(move |lane| *x.add(2 * part * LANES + lane)).sum::<f32>();
                *of_groups.add(row * groups + group) = (0..4).map(of_vector).sum();
            }
        }
        by_count!(rows, q4_k_dots_of, (x, w, of_groups, sums));
    }
}

/// # Safety
/// See [`q4_k_dots`], of exactly `COUNT` rows, with the sums of their groups. Inlined into a function with the
/// features.
#[inline(always)]
unsafe fn q4_k_dots_of<const COUNT: usize>(
    x: *const f32,
    w: Coded<'_>,
    of_groups: *const f32,
    sums: *mut f32,
) {
    const BYTES: usize = BlockType::Q4K.bytes();
    let (depth, groups) = (w.rows, w.rows / GROUP);
    // SAFETY: whole blocks of the weight's rows, and as many elements of each row of `x`.
    unsafe {
        for j in 0..w.cols {
            let (mut block, _) = w.weight.codes_of(w.first + j * depth, depth);
            let mut acc = [_mm512_setzero_ps(); COUNT];
            let mut minima = [_mm256_setzero_ps(); COUNT];
            for k in (0..depth).step_by(256) {
                for line in 0..3 {
                    simd::prefetch(block.wrapping_add(AHEAD + 64 * line));
                }
                let (d, m) = scales_of_eight(block);
                for (row, acc) in minima.iter_mut().enumerate() {
                    let x = _mm256_loadu_ps(of_groups.add(row * groups + k / GROUP));
                    *acc = _mm256_fmadd_ps(x, m, *acc);
                }
                let d = _mm512_castps256_ps512(d);
                for half in 0..2 {
                    let codes = _mm512_loadu_si512(block.add(16 + 64 * half).cast());
                    let weights = look_up(codes);
                    // The groups of the low halves of bytes, and of the high ones.
                    let even = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2);
                    let even = _mm512_add_epi32(even, _mm512_set1_epi32(4 * half as i32));
                    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
                    let scales = [_mm512_permutexvar_ps(even, d), _mm512_permutexvar_ps(odd, d)];
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let x = x.add(row * depth + k + 128 * half);
                        for (odd, scale) in scales.into_iter().enumerate() {
                            let of = |part: usize| _mm512_loadu_ps(x.add((2 * part + odd) * LANES));
                            let mut sum = _mm512_mul_ps(of(0), weights[odd]);
                            for part in 1..4 {
                                sum = _mm512_fmadd_ps(of(part), weights[2 * part + odd], sum);
                            }
                            *acc = _mm512_fmadd_ps(sum, scale, *acc);
                        }
                    }
                }
                block = block.add(BYTES);
            }
            for (row, (acc, minima)) in acc.into_iter().zip(minima).enumerate() {
                *sums.add(row * WIDTH + j) = _mm512_reduce_add_ps(acc) + total(minima);
            }
        }
    }
}

/// The scales of a block's eight groups, and what is added for each sum of a group.
///
/// # Safety
/// `block` is one of `q4_k` or `q5_k`. Inlined into a function with the features.
#[inline(always)]
unsafe fn scales_of_eight(block: *const u8) -> (__m256, __m256) {
    // SAFETY: the block's first sixteen bytes.
    unsafe {
        // As `quant::blocks::scale_and_min`, four groups at a time.
        let word = |i: usize| block.add(4 + 4 * i).cast::<u32>().read_unaligned();
        let [a, b, c] = [word(0), word(1), word(2)];
        let scales =
            u64::from(a & 0x3f3f_3f3f) | u64::from(c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4) << 32;
        let minima =
            u64::from(b & 0x3f3f_3f3f) | u64::from(c >> 4 & 0x0f0f_0f0f | (b >> 6 & 0x0303_0303) << 4) << 32;
        let floats = |bytes: u64| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64)));
        let d = _mm256_mul_ps(floats(scales), _mm256_set1_ps(half(block)));
        let m = _mm256_mul_ps(floats(minima), _mm256_set1_ps(-half(block.add(2))));
        (d, m)
    }
}

/// [`super::coded::FewRows::dots`] of any other type: a group at a time.
///
/// # Safety
/// See [`super::coded::FewRows::dots`]; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn dots(rows: usize, x: *const u8, w: Coded<'_>, room: Room, sums: *mut f32) {
    let (x, groups) = (x.cast::<f32>(), w.rows / GROUP);
    // SAFETY: as the caller promises; there is room for a sum of each group and row.
    unsafe {
        if w.weight
            .blocks()
            .is_some_and(|blocks| blocks.kind().elements() == GROUP && blocks.kind() != BlockType::F16)
        {
            let of_groups = room.sums(0, rows * groups);
            for at in 0..rows * groups {
                *of_groups.add(at) = (0..GROUP).map(|i| *x.add(at * GROUP + i)).sum();
            }
            return by_type!(kind(&w), G => by_count!(rows, dots_of_groups::<G>, (x, w, of_groups, sums)));
        }
        by_type!(kind(&w), G => by_count!(rows, dots_of_values::<G>, (x, w, sums)));
    }
}

/// Blocks of one group: codes are multiplied as they are, and sums of a group are scaled.
///
/// # Safety
/// See [`dots`], of exactly `COUNT` rows, with the sums of their groups. Inlined into a function with the
/// features.
#[inline(always)]
unsafe fn dots_of_groups<G: Groups, const COUNT: usize>(
    x: *const f32,
    w: Coded<'_>,
    of_groups: *const f32,
    sums: *mut f32,
) {
    let (depth, bytes, groups) = (w.rows, G::TYPE.bytes(), w.rows / GROUP);
    // SAFETY: whole blocks of the weight's rows, and as many elements of each row of `x`.
    unsafe {
        for j in 0..w.cols {
            let (column, _) = w.weight.codes_of(w.first + j * depth, depth);
            let mut acc = [_mm512_setzero_ps(); COUNT];
            for first in (0..groups).step_by(BLOCKS) {
                let count = BLOCKS.min(groups - first);
                let block = column.add(first * bytes);
                let (d, m) = scales_of_blocks::<G>(block, count);
                if !matches!(G::TYPE, BlockType::Q8_0) {
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let x = _mm512_maskz_loadu_ps(mask16(count), of_groups.add(row * groups + first));
                        *acc = _mm512_fmadd_ps(x, m, *acc);
                    }
                }
                for i in 0..count {
                    let block = block.add(i * bytes);
                    simd::prefetch(block.wrapping_add(AHEAD));
                    let codes = G::codes(block, 0);
                    let float = |codes: __m128i| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
                    let low = float(_mm256_castsi256_si128(codes));
                    let high = float(_mm256_extracti128_si256::<1>(codes));
                    let scale = _mm512_permutexvar_ps(_mm512_set1_epi32(i as i32), d);
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let x = x.add(row * depth + (first + i) * GROUP);
                        let sum = _mm512_mul_ps(_mm512_loadu_ps(x), low);
                        let sum = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(LANES)), high, sum);
                        *acc = _mm512_fmadd_ps(sum, scale, *acc);
                    }
                }
            }
            for (row, acc) in acc.into_iter().enumerate() {
                *sums.add(row * WIDTH + j) = _mm512_reduce_add_ps(acc);
            }
        }
    }
}

/// By way of the values of each group.
///
/// # Safety
/// See [`dots`], of exactly `COUNT` rows. Inlined into a function with the features.
#[inline(always)]
unsafe fn dots_of_values<G: Groups, const COUNT: usize>(x: *const f32, w: Coded<'_>, sums: *mut f32) {
    let (depth, elements, bytes) = (w.rows, G::TYPE.elements(), G::TYPE.bytes());
    // SAFETY: whole blocks of the weight's rows, and as many elements of each row of `x`.
    unsafe {
        for j in 0..w.cols {
            let (mut block, _) = w.weight.codes_of(w.first + j * depth, depth);
            let mut acc = [[_mm512_setzero_ps(); 2]; COUNT];
            for k in (0..depth).step_by(elements) {
                for line in 0..bytes.div_ceil(64) {
                    simd::prefetch(block.wrapping_add(AHEAD + 64 * line));
                }
                for group in 0..elements / GROUP {
                    let values = G::wide_values(block, group);
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let x = x.add(row * depth + k + group * GROUP);
                        for (i, acc) in acc.iter_mut().enumerate() {
                            *acc = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(i * LANES)), values[i], *acc);
                        }
                    }
                }
                block = block.add(bytes);
            }
            for (row, [even, odd]) in acc.into_iter().enumerate() {
                *sums.add(row * WIDTH + j) = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
            }
        }
    }
}
