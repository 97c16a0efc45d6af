//! Packing with AVX-512. The unit is a vector of 16 lanes of 32 bits, each a group of `k`: two `bf16` or one
//! `f32`. Elements that lie along `k` are loaded sixteen groups at a time, those that lie across it are
//! joined lane by lane; where the packed form runs the other way, 16 such vectors are transposed.

use std::arch::x86_64::*;

use super::Operand;
use super::avx512::{ROWS, mask16, widen};
use super::kernel::CHUNK;
use crate::bf16;
use crate::cpu::simd;
use crate::matrix::Slice;

/// Rows that are asked for before they are packed: they stand in short runs, which no processor guesses.
const AHEAD: usize = 8;

/// An element that packing reads.
pub(super) trait Element: Copy {
    /// Whether it is `bf16`, else `f32`.
    const IS_BF16: bool;
}

impl Element for f32 {
    const IS_BF16: bool = false;
}

impl Element for bf16 {
    const IS_BF16: bool = true;
}

/// Defines the two entries of a kernel's table, which only choose the source type, with the features they
/// need.
macro_rules! entries {
    ($a:ident, $b:ident, $group:literal, $features:literal) => {
        /// [`super::kernel::PackA`].
        ///
        /// # Safety
        /// See [`super::kernel::PackA`]; the operand's data covers its shape, and the processor has the
        /// features.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $a(a: Operand<'_>, rows: usize, tile_bytes: usize, to: *mut u8) {
            // SAFETY: as the caller promises.
            unsafe {
                match a.data {
                    Slice::F32(s) => pack_a::<f32, $group>(a, s.as_ptr(), rows, tile_bytes, to),
                    Slice::Bf16(s) => pack_a::<bf16, $group>(a, s.as_ptr(), rows, tile_bytes, to),
                }
            }
        }

        /// [`super::kernel::PackB`].
        ///
        /// # Safety
        /// See [`super::kernel::PackB`]; the operand's data covers its shape, and the processor has the
        /// features.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $b(b: Operand<'_>, width: usize, to: *mut u8) {
            // SAFETY: as the caller promises.
            unsafe {
                match b.data {
                    Slice::F32(s) => pack_b::<f32, $group>(b, s.as_ptr(), width, to),
                    Slice::Bf16(s) => pack_b::<bf16, $group>(b, s.as_ptr(), width, to),
                }
            }
        }
    };
}

entries!(a_bf16, b_bf16, 2, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");
entries!(a_f32, b_f32, 1, "avx512f,avx512bw,avx512dq,avx512vl");

/// # Safety
/// See [`super::kernel::PackA`]; `from` is the start of `a`.
#[inline(always)]
unsafe fn pack_a<S: Element, const GROUP: usize>(
    a: Operand<'_>,
    from: *const S,
    rows: usize,
    tile_bytes: usize,
    to: *mut u8,
) {
    let place = |row: usize, chunk: usize| row / ROWS * tile_bytes + (chunk * ROWS + row % ROWS) * CHUNK;
    let depth = 16 * GROUP;
    let whole = a.cols / depth;
    // SAFETY: loads keep to the `a.rows` x `a.cols` elements that there are; stores to the tiles.
    unsafe {
        if a.col_stride == 1 {
            for i in 0..rows {
                let (from, to) = (from.wrapping_add(i * a.row_stride), to.add(place(i, 0)));
                let is_row = i < a.rows;
                for chunk in 0..whole {
                    let valid = if is_row { depth } else { 0 };
                    simd::prefetch(from.wrapping_add(AHEAD * a.row_stride + chunk * depth).cast());
                    let vector = along_k::<S, GROUP>(from.wrapping_add(chunk * depth), valid);
                    store_vector(to.add(chunk * ROWS * CHUNK), vector);
                }
                if a.cols > whole * depth {
                    let valid = if is_row { a.cols - whole * depth } else { 0 };
                    let vector = along_k::<S, GROUP>(from.wrapping_add(whole * depth), valid);
                    store_vector(to.add(whole * ROWS * CHUNK), vector);
                }
            }
            return;
        }
        for i in (0..rows).step_by(16) {
            for (chunk, k) in (0..a.cols).step_by(depth).enumerate() {
                let mut block = [_mm512_setzero_si512(); 16];
                let (start, lanes) = (from.wrapping_add(i + k * a.col_stride), a.rows.saturating_sub(i));
                if lanes >= 16 && a.cols - k >= depth {
                    for (g, vector) in block.iter_mut().enumerate() {
                        *vector = across_k::<S, GROUP>(
                            start.wrapping_add(g * GROUP * a.col_stride),
                            a.col_stride,
                            16,
                            GROUP,
                        );
                    }
                } else {
                    for (g, vector) in block.iter_mut().enumerate() {
                        let left = (a.cols - k).saturating_sub(g * GROUP);
                        let start = start.wrapping_add(g * GROUP * a.col_stride);
                        *vector = across_k::<S, GROUP>(start, a.col_stride, lanes, left);
                    }
                }
                transpose(&mut block);
                for (r, vector) in block.iter().enumerate() {
                    if i + r < rows {
                        store_vector(to.add(place(i + r, chunk)), *vector);
                    }
                }
            }
        }
    }
}

/// # Safety
/// See [`super::kernel::PackB`]; `from` is the start of `b`, and `width` is a multiple of 16.
#[inline(always)]
unsafe fn pack_b<S: Element, const GROUP: usize>(b: Operand<'_>, from: *const S, width: usize, to: *mut u8) {
    let groups = b.rows.div_ceil(GROUP);
    // SAFETY: loads keep to the `b.rows` x `b.cols` elements that there are; stores to `groups` of `width`
    // lanes.
    unsafe {
        if b.row_stride != 1 {
            for g in 0..groups {
                for n in (0..width).step_by(16) {
                    let (k, lanes) = (g * GROUP, b.cols.saturating_sub(n));
                    let start = from.wrapping_add(k * b.row_stride + n);
                    let vector = if lanes >= 16 && b.rows - k >= GROUP {
                        across_k::<S, GROUP>(start, b.row_stride, 16, GROUP) // constants: no masks to make
                    } else {
                        across_k::<S, GROUP>(start, b.row_stride, lanes, b.rows - k)
                    };
                    store_vector(to.add((g * width + n) * 4), vector);
                }
            }
            return;
        }
        for n in (0..width).step_by(16) {
            for g in (0..groups).step_by(16) {
                let (start, to) =
                    (from.wrapping_add(n * b.col_stride + g * GROUP), to.add((g * width + n) * 4));
                let (columns, depth) = (b.cols.saturating_sub(n), b.rows - g * GROUP);
                if columns >= 16 && depth >= 16 * GROUP {
                    turn::<S, GROUP, true>(start, b.col_stride, 16, depth, to, 4 * width, 16);
                } else {
                    turn::<S, GROUP, false>(start, b.col_stride, columns, depth, to, 4 * width, groups - g);
                }
            }
        }
    }
}

/// Sixteen runs of sixteen groups along `k`, `stride` elements apart, turned into sixteen groups of runs,
/// `to_stride` bytes apart: the first `runs` of `depth` elements from memory, the first `groups` written.
/// `WHOLE` says that nothing is missing, which saves counting.
///
/// # Safety
/// As many elements can be read, and written. Inlined into a function with the features.
#[inline(always)]
unsafe fn turn<S: Element, const GROUP: usize, const WHOLE: bool>(
    from: *const S,
    stride: usize,
    runs: usize,
    depth: usize,
    to: *mut u8,
    to_stride: usize,
    groups: usize,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut block = [_mm512_setzero_si512(); 16];
        for (j, vector) in block.iter_mut().enumerate() {
            let valid = if WHOLE {
                16 * GROUP
            } else if j < runs {
                depth
            } else {
                0
            };
            *vector = along_k::<S, GROUP>(from.wrapping_add(j * stride), valid);
        }
        transpose(&mut block);
        for (i, vector) in block.iter().enumerate() {
            if WHOLE || i < groups {
                store_vector(to.wrapping_add(i * to_stride), *vector);
            }
        }
    }
}

/// Sixteen groups of elements that follow each other, the first `count` elements of them from memory, then
/// zeros.
///
/// # Safety
/// `count` elements can be read at `from`. Inlined into a function with the features, BF16 among them if
/// `GROUP` is 2.
#[inline(always)]
pub(super) unsafe fn along_k<S: Element, const GROUP: usize>(from: *const S, count: usize) -> __m512i {
    // SAFETY: masks keep to `count` elements.
    unsafe {
        match (S::IS_BF16, GROUP) {
            (true, 2) => {
                let mask = if count >= 32 { u32::MAX } else { (1 << count) - 1 };
                _mm512_maskz_loadu_epi16(mask, from.cast())
            }
            (false, 2) => {
                let low = _mm512_maskz_loadu_ps(mask16(count), from.cast());
                let high =
                    _mm512_maskz_loadu_ps(mask16(count.saturating_sub(16)), from.wrapping_add(16).cast());
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
            }
            _ => lanes::<S>(from, count),
        }
    }
}

/// Sixteen groups side by side: lane `j` holds elements `(k, j)` for the `GROUP` values of `k`, the first
/// `lanes` of them and the first `depth` values of `k` from memory, zeros elsewhere.
///
/// # Safety
/// `min(depth, GROUP)` rows of `lanes` elements, `stride` apart, can be read at `from`. Inlined into a
/// function with the features, BF16 among them if `GROUP` is 2.
#[inline(always)]
unsafe fn across_k<S: Element, const GROUP: usize>(
    from: *const S,
    stride: usize,
    lane_count: usize,
    depth: usize,
) -> __m512i {
    let count = |k: usize| if k < depth { lane_count } else { 0 };
    // SAFETY: masks keep to the rows and lanes that there are.
    unsafe {
        if GROUP == 1 {
            return lanes::<S>(from, count(0));
        }
        let (first, second) = (lanes::<S>(from, count(0)), lanes::<S>(from.wrapping_add(stride), count(1)));
        if S::IS_BF16 {
            // Both stand in the upper half of their lanes: the first moves down, the second stays.
            return _mm512_or_si512(_mm512_srli_epi32::<16>(first), second);
        }
        join(_mm512_castsi512_ps(first), _mm512_castsi512_ps(second))
    }
}

/// Lane by lane, rounded to `bf16`, the first in the lower half and the second in the upper.
///
/// # Safety
/// Inlined into a function with the features, BF16 among them.
#[inline(always)]
pub(crate) unsafe fn join(first: __m512, second: __m512) -> __m512i {
    // SAFETY: the features are enabled where this is inlined.
    unsafe {
        let both = _mm512_cvtne2ps_pbh(second, first);
        _mm512_permutexvar_epi16(INTERLEAVE.load(), std::mem::transmute::<__m512bh, __m512i>(both))
    }
}

/// `f32` values of the first `count` of sixteen elements, then zeros, as bits.
///
/// # Safety
/// `count` elements can be read at `from`. Inlined into a function with the features.
#[inline(always)]
unsafe fn lanes<S: Element>(from: *const S, count: usize) -> __m512i {
    // SAFETY: masks keep to `count` elements.
    unsafe {
        if S::IS_BF16 {
            _mm512_castps_si512(widen(_mm256_maskz_loadu_epi16(mask16(count), from.cast())))
        } else {
            _mm512_maskz_loadu_epi32(mask16(count), from.cast())
        }
    }
}

/// A constant vector of 16-bit indices.
#[repr(align(64))]
struct Indices([u16; 32]);

impl Indices {
    #[inline(always)]
    fn load(&self) -> __m512i {
        // SAFETY: 64 aligned bytes.
        unsafe { _mm512_load_si512(self.0.as_ptr().cast()) }
    }
}

/// Joins the lower half's element `i` and the upper half's element `i` in lane `i`.
static INTERLEAVE: Indices = Indices({
    let mut indices = [0; 32];
    let mut i = 0;
    while i < 16 {
        indices[2 * i] = i as u16;
        indices[2 * i + 1] = i as u16 + 16;
        i += 1;
    }
    indices
});

/// 64 bytes from anywhere.
///
/// # Safety
/// They can be read. Inlined into a function with the features.
#[inline(always)]
pub(super) unsafe fn vector(from: *const u8) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

/// # Safety
/// 64 bytes can be written. Inlined into a function with the features.
#[inline(always)]
unsafe fn store_vector(to: *mut u8, v: __m512i) {
    // SAFETY: as the caller promises.
    unsafe { _mm512_storeu_si512(to.cast(), v) }
}

/// Transposes 16 x 16 lanes: in fours within quarters of vectors, then the quarters.
///
/// # Safety
/// Inlined into a function with the features.
#[inline(always)]
unsafe fn transpose(r: &mut [__m512i; 16]) {
    // SAFETY: the features are enabled where this is inlined.
    unsafe {
        let mut t = *r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            let q = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]];
            r[4 * i] = _mm512_unpacklo_epi64(q[0], q[2]);
            r[4 * i + 1] = _mm512_unpackhi_epi64(q[0], q[2]);
            r[4 * i + 2] = _mm512_unpacklo_epi64(q[1], q[3]);
            r[4 * i + 3] = _mm512_unpackhi_epi64(q[1], q[3]);
        }
        // Now quarter `q` of `r[4 * i + j]` holds column `4 * q + j` of rows `4 * i..4 * i + 4`.
        for j in 0..4 {
            let (a, b) =
                (_mm512_shuffle_i32x4::<0x44>(r[j], r[4 + j]), _mm512_shuffle_i32x4::<0xee>(r[j], r[4 + j]));
            let (c, d) = (
                _mm512_shuffle_i32x4::<0x44>(r[8 + j], r[12 + j]),
                _mm512_shuffle_i32x4::<0xee>(r[8 + j], r[12 + j]),
            );
            t[j] = _mm512_shuffle_i32x4::<0x88>(a, c);
            t[4 + j] = _mm512_shuffle_i32x4::<0xdd>(a, c);
            t[8 + j] = _mm512_shuffle_i32x4::<0x88>(b, d);
            t[12 + j] = _mm512_shuffle_i32x4::<0xdd>(b, d);
        }
        *r = t;
    }
}
