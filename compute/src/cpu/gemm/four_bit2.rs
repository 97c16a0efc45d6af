//! Few rows by weights in four bits with AVX2: the sixteen values of a table are four tables of a byte each,
//! one shuffle looks up 32 codes in one of them, and unpacking puts the bytes together again. Nothing is
//! rounded on the way.

use std::arch::x86_64::*;

use super::Operand;
use super::coded::Coded;
use super::few_rows::{ROWS, WIDTH};
use super::scales::{granule, granules_fit, write_scales};
use super::scratch::Room;
use crate::matrix::Slice;

/// Elements of a step: a vector of codes, in one block.
const STEP: usize = 64;
/// Floats of a vector.
const LANES: usize = 8;

/// Whether few rows can be multiplied by this weight from its codes.
pub(super) fn has_dots(w: &Coded<'_>) -> bool {
    granules_fit(w) && granule(w) == STEP
}

/// [`super::coded::FewRows::pack`]: in each step the even elements before the odd ones, and in the order
/// in which unpacking, which keeps to the halves of a vector, brings values forth.
///
/// # Safety
/// See [`super::coded::FewRows::pack`].
pub(super) unsafe fn pack(a: Operand<'_>, to: *mut u8) {
    let to = to.cast::<f32>();
    for i in 0..a.rows {
        for k in (0..a.cols).step_by(STEP) {
            for at in 0..STEP {
                let (odd, vector, half, lane) = (at / 32, at / 8 % 4, at / 4 % 2, at % 4);
                let from = i * a.row_stride + k + 2 * (16 * half + 4 * vector + lane) + odd;
                let x = match a.data {
                    Slice::F32(s) => s[from],
                    Slice::Bf16(s) => s[from].to_f32(),
                };
                // SAFETY: the caller promises room.
                unsafe { *to.add(i * a.cols + k + at) = x };
            }
        }
    }
}

/// [`super::coded::FewRows::dots`].
///
/// # Safety
/// See [`super::coded::FewRows::dots`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dots(rows: usize, x: *const u8, w: Coded<'_>, scales: Room, sums: *mut f32) {
    const { assert!(ROWS == 4) };
    let x = x.cast::<f32>();
    let scales = scales.sums(0, w.rows / STEP);
    // SAFETY: as the caller promises; there is room for the scales of a column.
    unsafe {
        match rows {
            1 => dots_of::<1>(x, w, scales, sums),
            2 => dots_of::<2>(x, w, scales, sums),
            3 => dots_of::<3>(x, w, scales, sums),
            _ => dots_of::<4>(x, w, scales, sums),
        }
    }
}

/// # Safety
/// See [`dots`], of exactly `COUNT` rows. Inlined into a function with the features.
#[inline(always)]
unsafe fn dots_of<const COUNT: usize>(x: *const f32, w: Coded<'_>, scales: *mut f32, sums: *mut f32) {
    let (depth, steps) = (w.rows, w.rows / STEP);
    // SAFETY: codes and `x` are whole steps, and there is room for a scale of each.
    unsafe {
        let tables = byte_tables(w.codebook().table());
        let nibble = _mm256_set1_epi8(15);
        for j in 0..w.cols {
            let first = w.first + j * w.weight.cols();
            let to = std::slice::from_raw_parts_mut(scales, steps);
            write_scales(w.codebook(), first, STEP, to, |rounded, codes, to| rounded.write(codes, to));
            let codes = w.codebook().codes().as_ptr().add(first / 2);
            let mut acc = [_mm256_setzero_ps(); COUNT];
            for i in 0..steps {
                let codes = _mm256_loadu_si256(codes.add(i * STEP / 2).cast());
                let even = look_up(&tables, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble));
                let odd = look_up(&tables, _mm256_and_si256(codes, nibble));
                let scale = _mm256_set1_ps(*scales.add(i));
                for (row, acc) in acc.iter_mut().enumerate() {
                    let x = x.add(row * depth + i * STEP);
                    let mut sum = [_mm256_setzero_ps(); 2];
                    for (v, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                        sum[0] = _mm256_fmadd_ps(_mm256_loadu_ps(x.add(v * LANES)), even, sum[0]);
                        sum[1] = _mm256_fmadd_ps(_mm256_loadu_ps(x.add((4 + v) * LANES)), odd, sum[1]);
                    }
                    *acc = _mm256_fmadd_ps(_mm256_add_ps(sum[0], sum[1]), scale, *acc);
                }
            }
            for (row, acc) in acc.into_iter().enumerate() {
                let mut lanes = [0.0_f32; LANES];
                _mm256_storeu_ps(lanes.as_mut_ptr(), acc);
                let [a, b, c, d, e, f, g, h] = lanes;
                *sums.add(row * WIDTH + j) = ((a + e) + (c + g)) + ((b + f) + (d + h));
            }
        }
    }
}

/// The first, second ... bytes of sixteen values, in both halves of a vector.
#[inline(always)]
unsafe fn byte_tables(values: &[f32; 16]) -> [__m256i; 4] {
    std::array::from_fn(|byte| {
        let bytes: [u8; 16] = std::array::from_fn(|value| values[value].to_le_bytes()[byte]);
        // SAFETY: sixteen bytes; inlined into a function with the features.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
    })
}

/// The values of 32 codes, one in each byte.
#[inline(always)]
unsafe fn look_up(tables: &[__m256i; 4], codes: __m256i) -> [__m256; 4] {
    // SAFETY: inlined into a function with the features.
    unsafe {
        let [a, b, c, d] = tables.map(|table| _mm256_shuffle_epi8(table, codes));
        let (low, low_high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
        let (high, high_high) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
        [
            _mm256_unpacklo_epi16(low, low_high),
            _mm256_unpackhi_epi16(low, low_high),
            _mm256_unpacklo_epi16(high, high_high),
            _mm256_unpackhi_epi16(high, high_high),
        ]
        .map(|value| _mm256_castsi256_ps(value))
    }
}
