//! Codes of four bits into values with AVX-512: the sixteen values of a block are one register, and looking up is a
//! permutation. For few rows the values go from there into sums, without a stop in memory.

use std::arch::x86_64::*;

use super::Operand;
use super::few_rows::{COLS, ROWS};
use super::four_bit::FourBit;
use crate::bf16;
use crate::cpu::quant;
use crate::matrix::Slice;
use crate::quant::{Quantized, Scales};

/// Elements of a step: a vector of pairs.
const STEP: usize = 32;

/// [`super::four_bit::Dequantize`] to `bf16`.
///
/// # Safety
/// `to` has room for `len` elements; the processor has AVX-512 F, BW, DQ, VL and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn to_bf16(from: &Quantized, first: usize, len: usize, to: *mut u8) {
    let to = to.cast::<bf16>();
    let table = table_of(from);
    // SAFETY: `steps` keeps to the elements that there are; as the caller promises.
    unsafe {
        steps(from, first, len, to, |block| {
            let values = _mm512_cvtneps_pbh(values_of(from, table, block));
            let values = std::mem::transmute::<__m256bh, __m256i>(values);
            // The same sixteen twice: the fifth bit of an index then does not matter.
            let values = _mm512_broadcast_i64x4(values);
            move |codes: __m512i, to: *mut bf16| {
                let pairs = _mm512_or_si512(_mm512_srli_epi32::<4>(codes), _mm512_slli_epi32::<16>(codes));
                _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(pairs, values));
            }
        });
    }
}

/// [`super::four_bit::Dequantize`] to `f32`.
///
/// # Safety
/// `to` has room for `len` elements; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn to_f32(from: &Quantized, first: usize, len: usize, to: *mut u8) {
    let to = to.cast::<f32>();
    let table = table_of(from);
    // SAFETY: `steps` keeps to the elements that there are; as the caller promises.
    unsafe {
        steps(from, first, len, to, |block| {
            let values = values_of(from, table, block);
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            move |codes: __m512i, to: *mut f32| {
                let even = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), values);
                let odd = _mm512_permutexvar_ps(codes, values);
                _mm512_storeu_ps(to, _mm512_permutex2var_ps(even, low, odd));
                _mm512_storeu_ps(to.add(16), _mm512_permutex2var_ps(even, high, odd));
            }
        });
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn table_of(from: &Quantized) -> __m512 {
    // SAFETY: sixteen floats.
    unsafe { _mm512_loadu_ps(from.table().as_ptr()) }
}

/// The values that the codes of a block stand for.
#[inline]
#[target_feature(enable = "avx512f")]
fn values_of(from: &Quantized, table: __m512, block: usize) -> __m512 {
    _mm512_mul_ps(table, _mm512_set1_ps(from.scales().of(block)))
}

/// Calls what `of_block` makes of each block on [`STEP`] codes after another, as sixteen lanes with a byte of two codes in
/// each; what is left over, and runs that begin inside a byte, go element by element.
///
/// # Safety
/// `to` has room for `len` elements. Inlined into a function with the features.
#[inline(always)]
unsafe fn steps<T: crate::cpu::simd::Element, F: Fn(__m512i, *mut T)>(
    from: &Quantized,
    first: usize,
    len: usize,
    to: *mut T,
    of_block: impl Fn(usize) -> F,
) {
    let (codes, block_size) = (from.codes(), from.block_size());
    let mut done = 0;
    while done < len {
        let element = first + done;
        let block = element >> block_size.trailing_zeros();
        let part = (len - done).min((block + 1) * block_size - element);
        let whole = if element.is_multiple_of(2) { part / STEP * STEP } else { 0 };
        if whole > 0 {
            let step = of_block(block);
            let bytes = &codes[element / 2..][..whole / 2];
            for i in (0..whole).step_by(STEP) {
                // SAFETY: sixteen bytes of the slice, and room for their elements.
                unsafe {
                    let bytes = _mm_loadu_si128(bytes.as_ptr().add(i / 2).cast());
                    step(_mm512_cvtepu8_epi32(bytes), to.add(done + i));
                }
            }
        }
        if whole < part {
            // SAFETY: the caller promises room.
            let to = unsafe { std::slice::from_raw_parts_mut(to.add(done + whole), part - whole) };
            quant::run(from, element + whole, to);
        }
        done += part;
    }
}

/// Elements of a step of [`dots`]: two vectors of codes, in one block.
const DOTS_STEP: usize = 64;

/// Whether [`dots`] can multiply by this weight: whole steps, each inside a block.
pub(super) fn has_dots(w: &FourBit<'_>) -> bool {
    w.weight.block_size().is_multiple_of(DOTS_STEP) && w.rows.is_multiple_of(DOTS_STEP)
}

/// Turns the rows of `a[m, k]` into `f32`, `k` floats after one another, in each 32 the even ones before the odd ones: the
/// order in which codes come out of bytes.
///
/// # Safety
/// `a` lies contiguous along `k`, a multiple of [`STEP`]; `to` has room; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pack_rows(a: Operand<'_>, to: *mut f32) {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for i in 0..a.rows {
        for k in (0..a.cols).step_by(STEP) {
            let from = i * a.row_stride + k;
            // SAFETY: the caller promises the elements and the room.
            unsafe {
                let to = to.add(i * a.cols + k);
                let (evens, odds) = match a.data {
                    Slice::Bf16(s) => {
                        let pairs = _mm512_loadu_si512(s.as_ptr().add(from).cast());
                        let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                        (_mm512_slli_epi32::<16>(pairs), _mm512_and_si512(pairs, high))
                    }
                    Slice::F32(s) => {
                        let low = _mm512_loadu_si512(s.as_ptr().add(from).cast());
                        let high = _mm512_loadu_si512(s.as_ptr().add(from + 16).cast());
                        (
                            _mm512_permutex2var_epi32(low, even, high),
                            _mm512_permutex2var_epi32(low, odd, high),
                        )
                    }
                };
                _mm512_storeu_si512(to.cast(), evens);
                _mm512_storeu_si512(to.add(16).cast(), odds);
            }
        }
    }
}

/// Writes `sums[rows, COLS]`: `rows` rows that [`pack_rows`] made by the first `w.cols <= COLS` columns of a transposed
/// weight. Products are of `f32`, whatever the precision: looking up is what takes the time.
///
/// # Safety
/// `x` holds the rows, `sums` have room, [`has_dots`]; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn dots(rows: usize, x: *const f32, w: FourBit<'_>, sums: *mut f32) {
    // SAFETY: as the caller promises.
    unsafe {
        match w.weight.scales() {
            Scales::Plain(scales) => dots_by_rows(rows, x, w, sums, |block| *scales.get_unchecked(block)),
            Scales::Double { codes, map, absmax, block_size, offset } => {
                let shift = block_size.trailing_zeros();
                dots_by_rows(rows, x, w, sums, |block| {
                    let code = usize::from(*codes.get_unchecked(block));
                    map.get_unchecked(code) * absmax.get_unchecked(block >> shift) + offset
                });
            }
        }
    }
}

/// # Safety
/// See [`dots`]; `scale` may be asked for every block of the weight. Inlined into a function with the features.
#[inline(always)]
unsafe fn dots_by_rows(
    rows: usize,
    x: *const f32,
    w: FourBit<'_>,
    sums: *mut f32,
    scale: impl Fn(usize) -> f32 + Copy,
) {
    const _: () = assert!(ROWS == 4);
    // SAFETY: as the caller promises.
    unsafe {
        match rows {
            1 => dots_of::<1>(x, w, sums, scale),
            2 => dots_of::<2>(x, w, sums, scale),
            3 => dots_of::<3>(x, w, sums, scale),
            _ => dots_of::<4>(x, w, sums, scale),
        }
    }
}

/// # Safety
/// See [`dots_by_rows`], of exactly `COUNT` rows.
#[inline(always)]
unsafe fn dots_of<const COUNT: usize>(
    x: *const f32,
    w: FourBit<'_>,
    sums: *mut f32,
    scale: impl Fn(usize) -> f32,
) {
    let (depth, shift) = (w.rows, w.weight.block_size().trailing_zeros());
    let codes = w.weight.codes().as_ptr();
    // Columns beyond the last one are not read but repeated.
    let firsts: [usize; COLS] = std::array::from_fn(|j| w.first + j.min(w.cols - 1) * w.weight.cols());
    // SAFETY: steps keep to the weight's elements and to the rows of `x`; asking ahead is only a hint.
    unsafe {
        let table = table_of(w.weight);
        let mut acc = [[_mm512_setzero_ps(); COLS]; COUNT];
        for k in (0..depth).step_by(DOTS_STEP) {
            for (j, first) in firsts.iter().enumerate() {
                let element = first + k;
                let values = _mm512_mul_ps(table, _mm512_set1_ps(scale(element >> shift)));
                let bytes = codes.add(element / 2);
                _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(AHEAD).cast());
                let low = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.cast()));
                let high = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.add(16).cast()));
                let weights = [
                    _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(low), values),
                    _mm512_permutexvar_ps(low, values),
                    _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(high), values),
                    _mm512_permutexvar_ps(high, values),
                ];
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = x.add(i * depth + k);
                    for (part, weights) in weights.into_iter().enumerate() {
                        acc[j] = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(16 * part)), weights, acc[j]);
                    }
                }
            }
        }
        for (i, acc) in acc.as_flattened().iter().enumerate() {
            *sums.add(i) = _mm512_reduce_add_ps(*acc);
        }
    }
}

/// Bytes between what is multiplied and what is asked for.
const AHEAD: usize = 1024;
