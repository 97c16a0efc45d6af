//! Codes of four bits into values with AVX-512: the sixteen values of a block are one register, and looking
//! up is a permutation. For few rows the values go from there into sums, without a stop in memory.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Operand;
use super::avx512::{bits, mask16, totals};
use super::coded::{Coded, FewRows};
use super::few_rows::{COLS, ROWS, WIDTH};
use super::scales::{READ, Rounded, SCALES, granule, granules_fit, write_scales};
use super::scratch::Room;
use crate::bf16;
use crate::cpu::quant;
use crate::cpu::simd::{self, Element};
use crate::matrix::Slice;
use crate::quant::{Codebook, Scales};

/// Elements of a step: a vector of pairs.
const STEP: usize = 32;

/// [`super::coded::OfCodebook`] to `bf16`.
///
/// # Safety
/// `to` has room for `len` elements; the processor has AVX-512 F, BW, DQ, VL and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn to_bf16(from: &Codebook, first: usize, len: usize, to: *mut u8) {
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

/// [`super::coded::OfCodebook`] to `f32`.
///
/// # Safety
/// `to` has room for `len` elements; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn to_f32(from: &Codebook, first: usize, len: usize, to: *mut u8) {
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
fn table_of(from: &Codebook) -> __m512 {
    // SAFETY: sixteen floats.
    unsafe { _mm512_loadu_ps(from.table().as_ptr()) }
}

/// The values that the codes of a block stand for.
#[inline]
#[target_feature(enable = "avx512f")]
fn values_of(from: &Codebook, table: __m512, block: usize) -> __m512 {
    _mm512_mul_ps(table, _mm512_set1_ps(from.scales().of(block)))
}

/// Calls what `of_block` makes of each block on [`STEP`] codes after another, as sixteen lanes with a byte of
/// two codes in each; what is left over, and runs that begin inside a byte, go element by element.
///
/// # Safety
/// `to` has room for `len` elements. Inlined into a function with the features.
#[inline(always)]
unsafe fn steps<T: Element, F: Fn(__m512i, *mut T)>(
    from: &Codebook,
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
            quant::run_of_codebook(from, element + whole, to);
        }
        done += part;
    }
}

/// Bytes of a vector.
const VECTOR: usize = 64;
/// Elements of a step of few rows: a vector of codes, eight of them in each lane.
const CODES: usize = FewRows::DEPTH_STEP;
const _: () = assert!(CODES == 2 * VECTOR);
/// What a lane's codes are, taken from the lowest bits on: the low half of a byte is the later one of its
/// two.
const IN_LANE: [usize; 8] = [1, 0, 3, 2, 5, 4, 7, 6];
/// Whether few rows can be multiplied by this weight from its codes.
pub(super) fn has_dots(w: &Coded<'_>) -> bool {
    granules_fit(w)
}

/// Elements of a packed row: whole steps.
fn row_len(depth: usize) -> usize {
    depth.next_multiple_of(CODES)
}

/// [`super::coded::FewRows::pack`] to `bf16`.
///
/// # Safety
/// See [`super::coded::FewRows::pack`]; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pack_bf16(a: Operand<'_>, to: *mut u8) {
    let arrange = |from: &[bf16; CODES], to: *mut bf16| {
        for (vector, from) in from.as_chunks::<32>().0.iter().enumerate() {
            // SAFETY: eight lanes of four elements; the caller promises room.
            unsafe {
                let lanes = _mm512_loadu_si512(from.as_ptr().cast());
                for (part, at) in IN_LANE.into_iter().take(4).enumerate() {
                    let part_of = _mm512_srl_epi64(lanes, _mm_cvtsi32_si128(16 * at as i32));
                    _mm_storeu_si128(to.add(part * 32 + vector * 8).cast(), _mm512_cvtepi64_epi16(part_of));
                }
            }
        }
    };
    // SAFETY: as the caller promises.
    unsafe { pack(a, to.cast(), arrange) }
}

/// [`super::coded::FewRows::pack`] to `f32`.
///
/// # Safety
/// See [`super::coded::FewRows::pack`]; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pack_f32(a: Operand<'_>, to: *mut u8) {
    let lanes = _mm512_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120);
    let arrange = |from: &[f32; CODES], to: *mut f32| {
        for (part, at) in IN_LANE.into_iter().enumerate() {
            // SAFETY: sixteen lanes of eight elements; the caller promises room.
            unsafe {
                let part_of = _mm512_i32gather_ps::<4>(lanes, from.as_ptr().add(at));
                _mm512_storeu_ps(to.add(part * 16), part_of);
            }
        }
    };
    // SAFETY: as the caller promises.
    unsafe { pack(a, to.cast(), arrange) }
}

/// Rows one after the other, in steps of [`CODES`] that `arrange` brings into the order in which shifts bring
/// codes down; zeros follow the last element.
///
/// # Safety
/// `a` lies contiguous along `k`, and `to` has room. Inlined into a function with the features.
#[inline(always)]
unsafe fn pack<X: Element>(a: Operand<'_>, to: *mut X, arrange: impl Fn(&[X; CODES], *mut X)) {
    for i in 0..a.rows {
        for k in (0..a.cols).step_by(CODES) {
            let mut step = [X::store(0.0); CODES];
            let from = i * a.row_stride + k..i * a.row_stride + a.cols.min(k + CODES);
            match a.data {
                Slice::F32(s) => step.iter_mut().zip(&s[from]).for_each(|(to, x)| *to = X::store(*x)),
                Slice::Bf16(s) => step.iter_mut().zip(&s[from]).for_each(|(to, x)| *to = X::store(x.load())),
            }
            // SAFETY: the caller promises room.
            unsafe { arrange(&step, to.add(i * row_len(a.cols) + k)) };
        }
    }
}

/// [`super::coded::FewRows::dots`] over pairs of `bf16`. The sixteen values are rounded to `bf16` before
/// they are scaled, and sums of blocks are scaled in `f32`.
///
/// # Safety
/// See [`super::coded::FewRows::dots`]; the processor has AVX-512 F, BW, DQ, VL and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn dots_bf16(rows: usize, x: *const u8, w: Coded<'_>, scales: Room, sums: *mut f32) {
    let values = _mm512_cvtneps_pbh(table_of(w.codebook()));
    // SAFETY: both are 32 plain bytes.
    let values = unsafe { std::mem::transmute::<__m256bh, __m256i>(values) };
    // The same sixteen twice: of an index, the fifth bit then does not matter, and those above it never do.
    let values = _mm512_broadcast_i64x4(values);
    let look_up = |codes: __m512i| {
        [
            _mm512_permutexvar_epi16(codes, values),
            _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(codes), values),
            _mm512_permutexvar_epi16(_mm512_srli_epi16::<8>(codes), values),
            _mm512_permutexvar_epi16(_mm512_srli_epi16::<12>(codes), values),
        ]
    };
    let multiply = |sum, x, w| _mm512_dpbf16_ps(sum, bits(x), bits(w));
    // SAFETY: as the caller promises.
    unsafe { dots(rows, x, w, scales, sums, look_up, multiply) }
}

/// [`super::coded::FewRows::dots`] over `f32`.
///
/// # Safety
/// See [`super::coded::FewRows::dots`]; the processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn dots_f32(rows: usize, x: *const u8, w: Coded<'_>, scales: Room, sums: *mut f32) {
    let values = _mm512_castps_si512(table_of(w.codebook()));
    let look_up = |codes: __m512i| {
        [
            _mm512_permutexvar_epi32(codes, values),
            _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(codes), values),
            _mm512_permutexvar_epi32(_mm512_srli_epi32::<8>(codes), values),
            _mm512_permutexvar_epi32(_mm512_srli_epi32::<12>(codes), values),
            _mm512_permutexvar_epi32(_mm512_srli_epi32::<16>(codes), values),
            _mm512_permutexvar_epi32(_mm512_srli_epi32::<20>(codes), values),
            _mm512_permutexvar_epi32(_mm512_srli_epi32::<24>(codes), values),
            _mm512_permutexvar_epi32(_mm512_srli_epi32::<28>(codes), values),
        ]
    };
    let multiply = |sum, x, w| _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum);
    // SAFETY: as the caller promises.
    unsafe { dots(rows, x, w, scales, sums, look_up, multiply) }
}

/// # Safety
/// See [`super::coded::FewRows::dots`]. Inlined into a function with the features.
#[inline(always)]
unsafe fn dots<const PARTS: usize>(
    rows: usize,
    x: *const u8,
    w: Coded<'_>,
    scales: Room,
    sums: *mut f32,
    look_up: impl Fn(__m512i) -> [__m512i; PARTS],
    multiply: impl Fn(__m512, __m512i, __m512i) -> __m512,
) {
    const { assert!(ROWS == 4) };
    // SAFETY: as the caller promises.
    unsafe {
        match rows {
            1 => dots_of::<1, PARTS>(x, w, scales, sums, look_up, multiply),
            2 => dots_of::<2, PARTS>(x, w, scales, sums, look_up, multiply),
            3 => dots_of::<3, PARTS>(x, w, scales, sums, look_up, multiply),
            _ => dots_of::<4, PARTS>(x, w, scales, sums, look_up, multiply),
        }
    }
}

/// Scales are made of many columns together, then two columns at a time share what is loaded of `x`.
///
/// # Safety
/// See [`dots`], of exactly `COUNT` rows.
#[inline(always)]
unsafe fn dots_of<const COUNT: usize, const PARTS: usize>(
    x: *const u8,
    w: Coded<'_>,
    scales: Room,
    sums: *mut f32,
    look_up: impl Fn(__m512i) -> [__m512i; PARTS],
    multiply: impl Fn(__m512, __m512i, __m512i) -> __m512,
) {
    let planes = Planes::of(w.codebook().scales());
    let of_column = w.rows / granule(&w);
    // Columns whose scales there is room for.
    let group = 1 << (2 * SCALES / of_column.max(1)).min(WIDTH).ilog2();
    let scales = scales.sums(0, group * of_column + READ);
    // SAFETY: as the caller promises; scales of a group have room, and so has what is read behind them.
    unsafe {
        for first in (0..w.cols).step_by(COLS) {
            let mut acc = [[_mm512_setzero_ps(); COUNT]; COLS];
            for j in (0..COLS.min(w.cols - first)).step_by(2) {
                let (at, in_group) = (first + j, (first + j) & (group - 1));
                if in_group == 0 {
                    make_scales(&w, at..w.cols.min(at + group), &planes, scales);
                }
                let scales = scales.add(in_group * of_column);
                if at + 1 < w.cols {
                    let of = columns::<COUNT, 2, PARTS>(at, x, w, scales, &look_up, &multiply);
                    acc[j..j + 2].copy_from_slice(&of);
                } else {
                    [acc[j]] = columns::<COUNT, 1, PARTS>(at, x, w, scales, &look_up, &multiply);
                }
            }
            for i in 0..COUNT {
                _mm_storeu_ps(sums.add(i * WIDTH + first), totals(acc.map(|acc| acc[i])));
            }
        }
    }
}

/// Writes the scales of some columns, one column after the other, and zeros behind them: a step that ends
/// with the depth reads scales of elements that there are not.
///
/// # Safety
/// `to` has room for them and [`READ`] more; inlined into a function with the features.
#[inline(always)]
unsafe fn make_scales(w: &Coded<'_>, columns: Range<usize>, planes: &Option<Planes>, to: *mut f32) {
    let (granule, of_column) = (granule(w), w.rows / granule(w));
    // Those of whole rows of the weight follow each other.
    let (runs, run) = match columns.len() {
        n if w.weight.cols() == w.rows => (1, n * of_column),
        n => (n, of_column),
    };
    for n in 0..runs {
        // SAFETY: as the caller promises.
        let to = unsafe { std::slice::from_raw_parts_mut(to.add(n * of_column), run) };
        let first = w.first + (columns.start + n) * w.weight.cols();
        write_scales(w.codebook(), first, granule, to, |rounded, codes, to| match planes {
            // SAFETY: `Planes::of` made sure that the processor has what it takes.
            Some(planes) => unsafe { planes.write(rounded, codes, to) },
            None => rounded.write(codes, to),
        });
    }
    // SAFETY: as the caller promises.
    unsafe { to.add(columns.len() * of_column).write_bytes(0, READ) };
}

/// The sums of `N` columns from `j` on, in sixteen parts each, with their scales.
///
/// # Safety
/// See [`dots_of`].
#[inline(always)]
unsafe fn columns<const COUNT: usize, const N: usize, const PARTS: usize>(
    j: usize,
    x: *const u8,
    w: Coded<'_>,
    scales: *const f32,
    look_up: &impl Fn(__m512i) -> [__m512i; PARTS],
    multiply: &impl Fn(__m512, __m512i, __m512i) -> __m512,
) -> [[__m512; COUNT]; N] {
    let (depth, granule) = (w.rows, granule(&w));
    let (steps, rest) = (depth / CODES, depth % CODES);
    let (column_scales, step_scales) = (depth / granule, CODES / granule);
    let row_bytes = row_len(depth) / CODES * PARTS * VECTOR;
    let first = |n: usize| w.first + (j + n) * w.weight.cols();
    // SAFETY: codes are read as far as the depth goes, scales of the columns are there, and `x` has whole
    // steps; asking ahead is only a hint.
    unsafe {
        // Which of a step's scales is a lane's.
        let lanes = _mm512_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120);
        let lanes = _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(granule.trailing_zeros() as i32));
        let codes: [_; N] = std::array::from_fn(|n| w.codebook().codes().as_ptr().add(first(n) / 2));
        let mut acc = [[_mm512_setzero_ps(); COUNT]; N];
        for i in 0..steps {
            for (n, acc) in acc.iter_mut().enumerate() {
                let codes = codes[n].add(i * VECTOR);
                simd::prefetch(codes.wrapping_add(AHEAD));
                let weights = look_up(_mm512_loadu_si512(codes.cast()));
                let scale = spread(scales.add(n * column_scales + i * step_scales), lanes);
                step(x.add(i * PARTS * VECTOR), row_bytes, weights, scale, acc, multiply);
            }
        }
        if rest > 0 {
            for (n, acc) in acc.iter_mut().enumerate() {
                let codes = codes[n].add(steps * VECTOR).cast();
                let weights = look_up(_mm512_maskz_loadu_epi32((1 << (rest / 8)) - 1, codes));
                let scale = spread(scales.add(n * column_scales + steps * step_scales), lanes);
                step(x.add(steps * PARTS * VECTOR), row_bytes, weights, scale, acc, multiply);
            }
        }
        acc
    }
}

/// The map of rounded scales cut into the bytes of its values, each in a table that two permutations look 64
/// codes up in: one scale after the other takes as long as all the rest of a step.
#[repr(align(64))]
struct Planes([[u8; 256]; 4]);

impl Planes {
    /// Those of scales that were rounded, if the processor can look up in them.
    #[inline(always)]
    fn of(scales: &Scales) -> Option<Self> {
        match scales {
            Scales::Double { map, .. } if std::arch::is_x86_feature_detected!("avx512vbmi") => {
                // SAFETY: the processor has AVX-512 F, as everywhere here.
                Some(unsafe { Self::cut(map) })
            }
            _ => None,
        }
    }

    #[target_feature(enable = "avx512f")]
    fn cut(map: &[f32; 256]) -> Self {
        let mut planes = Planes([[0; 256]; 4]);
        for (i, values) in map.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: sixteen floats, and sixteen bytes of each plane.
            unsafe {
                let mut values = _mm512_loadu_si512(values.as_ptr().cast());
                for plane in &mut planes.0 {
                    let to = plane.as_mut_ptr().add(16 * i);
                    _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(values));
                    values = _mm512_srli_epi32::<8>(values);
                }
            }
        }
        planes
    }

    /// [`Rounded::write`].
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL and VBMI, as [`Planes::of`] makes sure.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    fn write(&self, rounded: &Rounded<'_>, codes: &[u8], to: &mut [f32]) {
        let (absmax, offset) = (_mm512_set1_ps(rounded.absmax), _mm512_set1_ps(rounded.offset));
        // Where unpacking bytes, then pairs of them, takes sixteen values that follow each other from.
        let order: [u8; 64] = std::array::from_fn(|i| (i % 16 / 4 * 16 + i / 16 * 4 + i % 4) as u8);
        // SAFETY: masks keep to the codes and scales that there are; tables are 256 bytes.
        unsafe {
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            for start in (0..codes.len()).step_by(64) {
                let count = (codes.len() - start).min(64);
                let codes =
                    _mm512_maskz_loadu_epi8(u64::MAX >> (64 - count), codes.as_ptr().add(start).cast());
                let codes = _mm512_permutexvar_epi8(order, codes);
                let upper = _mm512_movepi8_mask(codes);
                let [a, b, c, d] = self.0.each_ref().map(|plane| {
                    let part = |i: usize| _mm512_load_si512(plane.as_ptr().add(64 * i).cast());
                    let low = _mm512_permutex2var_epi8(part(0), codes, part(1));
                    let high = _mm512_permutex2var_epi8(part(2), codes, part(3));
                    _mm512_mask_blend_epi8(upper, low, high)
                });
                let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
                let values = [
                    _mm512_unpacklo_epi16(ab, cd),
                    _mm512_unpackhi_epi16(ab, cd),
                    _mm512_unpacklo_epi16(ab_high, cd_high),
                    _mm512_unpackhi_epi16(ab_high, cd_high),
                ];
                for (i, values) in values.into_iter().enumerate().take(count.div_ceil(16)) {
                    let scales = _mm512_add_ps(_mm512_mul_ps(_mm512_castsi512_ps(values), absmax), offset);
                    let to = to.as_mut_ptr().add(start + 16 * i);
                    _mm512_mask_storeu_ps(to, mask16(count - 16 * i), scales);
                }
            }
        }
    }
}

/// Each lane's scale, of at most four.
///
/// # Safety
/// Four floats; inlined into a function with the features.
#[inline(always)]
unsafe fn spread(scales: *const f32, lanes: __m512i) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe { _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(scales)), lanes) }
}

/// Adds the products of a step. Values come from the table as it is, and their sum is scaled: what depends on
/// the block is one multiplication behind everything else.
///
/// # Safety
/// `x` holds the step of `COUNT` rows; inlined into a function with the features.
#[inline(always)]
unsafe fn step<const COUNT: usize, const PARTS: usize>(
    x: *const u8,
    row_bytes: usize,
    weights: [__m512i; PARTS],
    scale: __m512,
    acc: &mut [__m512; COUNT],
    multiply: &impl Fn(__m512, __m512i, __m512i) -> __m512,
) {
    // SAFETY: as the caller promises.
    unsafe {
        for (i, acc) in acc.iter_mut().enumerate() {
            let x = x.add(i * row_bytes);
            let mut sum = _mm512_setzero_ps();
            for (part, weights) in weights.into_iter().enumerate() {
                sum = multiply(sum, _mm512_loadu_si512(x.add(part * VECTOR).cast()), weights);
            }
            *acc = _mm512_fmadd_ps(sum, scale, *acc);
        }
    }
}

/// Bytes between what is multiplied and what is asked for, into the second level of cache: two columns and
/// more, which are in no stream that a processor would find.
const AHEAD: usize = 8192;
