//! Blocks into values with AVX-512, and few rows by blocks as they lie in memory.

use std::arch::x86_64::*;

use super::blocks2::{Groups, by_type, run};
use super::coded::Coded;
use super::few_rows::{ROWS, WIDTH};
use super::scratch::Room;
use crate::bf16;
use crate::cpu::simd;
use crate::quant::blocks::{BlockType, Blocks, GROUP};

pub(super) use super::blocks2::{has_dots, pack};

/// Floats of a vector.
const LANES: usize = 16;
/// Bytes that are asked for ahead of those at hand.
const AHEAD: usize = 1024;

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

/// [`super::coded::FewRows::dots`].
///
/// # Safety
/// See [`super::coded::FewRows::dots`]; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn dots(rows: usize, x: *const u8, w: Coded<'_>, _: Room, sums: *mut f32) {
    const { assert!(ROWS == 4) };
    let (x, blocks) = (x.cast::<f32>(), w.weight.blocks().expect("a kernel for blocks"));
    // SAFETY: as the caller promises.
    by_type!(blocks.kind(), G => unsafe {
        match rows {
            1 => dots_of::<G, 1>(x, w, sums),
            2 => dots_of::<G, 2>(x, w, sums),
            3 => dots_of::<G, 3>(x, w, sums),
            _ => dots_of::<G, 4>(x, w, sums),
        }
    });
}

/// # Safety
/// See [`dots`], of exactly `COUNT` rows. Inlined into a function with the features.
#[inline(always)]
unsafe fn dots_of<G: Groups, const COUNT: usize>(x: *const f32, w: Coded<'_>, sums: *mut f32) {
    let (depth, elements, bytes) = (w.rows, G::TYPE.elements(), G::TYPE.bytes());
    // SAFETY: whole blocks of the weight's rows, and as many elements of each row of `x`.
    unsafe {
        for j in 0..w.cols {
            let (mut block, _) = w.weight.codes_of(w.first + j * depth, depth);
            let mut acc = [[_mm512_setzero_ps(); 2]; COUNT];
            for k in (0..depth).step_by(elements) {
                simd::prefetch(block.wrapping_add(AHEAD));
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
