//! Codes of four bits into values with AVX-512: the sixteen values of a block are one register, and looking up is a
//! permutation.

use std::arch::x86_64::*;

use crate::bf16;
use crate::cpu::quant;
use crate::quant::Quantized;

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
        let block = element / block_size;
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
