//! Blocks into values with AVX2: the codes of a group, a byte each, for either width of vectors; and few rows
//! by blocks as they lie in memory.

// Safety comments stand within the arguments of macros, where clippy does not look for them.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::arch::x86_64::*;

use super::Operand;
use super::coded::Coded;
use super::few_rows::{ROWS, WIDTH};
use super::scratch::{B_BYTES, Room};
use crate::cpu::simd;
use crate::matrix::Slice;
use crate::quant::blocks::{BlockType, Blocks, GROUP, scale_and_min};

/// Floats of a vector.
const LANES: usize = 8;
/// Bytes that are asked for ahead of those at hand.
const AHEAD: usize = 1024;

/// How the groups of a type are read: [`crate::quant::blocks`] with vectors.
///
/// Everything is inlined into functions that have the features: AVX2, FMA and F16C, and AVX-512 F for its
/// vectors.
pub(super) trait Groups {
    const TYPE: BlockType;

    /// The codes of a group, a byte each.
    ///
    /// # Safety
    /// `block` is a whole one, and has this group.
    unsafe fn codes(block: *const u8, group: usize) -> __m256i;

    /// What the codes of either half of a group are multiplied by, and what is added.
    ///
    /// # Safety
    /// As [`Groups::codes`].
    unsafe fn scale(block: *const u8, group: usize) -> [[f32; 2]; 2];

    /// The values of a group.
    ///
    /// # Safety
    /// As [`Groups::codes`].
    #[inline(always)]
    unsafe fn values(block: *const u8, group: usize) -> [__m256; 4] {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = Self::codes(block, group);
            let [d, m] = Self::scale(block, group);
            let halves = [_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes)];
            let value = |half: usize, codes: __m128i| {
                let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
                _mm256_fmadd_ps(codes, _mm256_set1_ps(d[half]), _mm256_set1_ps(m[half]))
            };
            [
                value(0, halves[0]),
                value(0, _mm_srli_si128::<8>(halves[0])),
                value(1, halves[1]),
                value(1, _mm_srli_si128::<8>(halves[1])),
            ]
        }
    }

    /// The values of a group, in wider vectors.
    ///
    /// # Safety
    /// As [`Groups::codes`].
    #[inline(always)]
    unsafe fn wide_values(block: *const u8, group: usize) -> [__m512; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = Self::codes(block, group);
            let [d, m] = Self::scale(block, group);
            let value = |half: usize, codes: __m128i| {
                let codes = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
                _mm512_fmadd_ps(codes, _mm512_set1_ps(d[half]), _mm512_set1_ps(m[half]))
            };
            [value(0, _mm256_castsi256_si128(codes)), value(1, _mm256_extracti128_si256::<1>(codes))]
        }
    }
}

/// Evaluates an expression with a type name bound to the [`Groups`] of a block type.
macro_rules! by_type {
    ($kind:expr, $name:ident => $body:expr) => {{
        macro_rules! of {
            ($groups:ident) => {{
                type $name = $crate::cpu::gemm::blocks2::$groups;
                $body
            }};
        }
        match $kind {
            BlockType::F16 => of!(F16),
            BlockType::Q8_0 => of!(Q8_0),
            BlockType::Q4_0 => of!(Q4_0),
            BlockType::Int4 => of!(Int4),
            BlockType::Q5_0 => of!(Q5_0),
            BlockType::Q5_1 => of!(Q5_1),
            BlockType::Q4K => of!(Q4K),
            BlockType::Q5K => of!(Q5K),
            BlockType::Q6K => of!(Q6K),
            BlockType::Int3 => of!(Int3),
            BlockType::Int2 => of!(Int2),
        }
    }};
}
pub(super) use by_type;

pub(super) struct F16;
pub(super) struct Q8_0;
pub(super) struct Q4_0;
pub(super) struct Int4;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;
pub(super) struct Int3;
pub(super) struct Int2;

/// A number in half precision.
#[inline(always)]
pub(super) unsafe fn half(at: *const u8) -> f32 {
    // SAFETY: two bytes of a block; inlined into a function with the features.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(at.cast::<u16>().read_unaligned().into()))) }
}

/// Sixteen low halves of bytes, then the high ones.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: sixteen bytes of a block; inlined into a function with the features.
    unsafe {
        let bytes = _mm_loadu_si128(at.cast());
        let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }
}

/// Four times two bits of eight bytes.
#[inline(always)]
unsafe fn pairs(at: *const u8) -> __m256i {
    // SAFETY: eight bytes of a block; inlined into a function with the features.
    unsafe {
        let bytes = _mm256_set1_epi64x(at.cast::<i64>().read_unaligned());
        let parts = _mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 2, 4, 6));
        _mm256_and_si256(parts, _mm256_set1_epi8(3))
    }
}

/// A byte for each of 32 bits, `bit` where it is set.
#[inline(always)]
unsafe fn bits(at: *const u8, bit: i8) -> __m256i {
    // SAFETY: four bytes of a block; inlined into a function with the features.
    unsafe {
        let bytes = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
        let (first, second) = (0x0101_0101_0101_0101, 0x0202_0202_0202_0202);
        let of_byte = _mm256_setr_epi64x(0, first, second, first + second);
        let mask = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let masked = _mm256_and_si256(_mm256_shuffle_epi8(bytes, of_byte), mask);
        _mm256_and_si256(_mm256_cmpeq_epi8(masked, mask), _mm256_set1_epi8(bit))
    }
}

/// 32 bytes, shifted right by so many bits, and of each what a mask leaves: bits that come from the
/// neighbour are not among them.
#[inline(always)]
unsafe fn shifted(at: *const u8, by: usize, mask: i8) -> __m256i {
    // SAFETY: 32 bytes of a block; inlined into a function with the features.
    unsafe {
        let bytes = _mm256_srl_epi16(_mm256_loadu_si256(at.cast()), _mm_cvtsi32_si128(by as i32));
        _mm256_and_si256(bytes, _mm256_set1_epi8(mask))
    }
}

impl Groups for F16 {
    const TYPE: BlockType = BlockType::F16;

    unsafe fn codes(_: *const u8, _: usize) -> __m256i {
        unreachable!("half precision has no codes")
    }

    unsafe fn scale(_: *const u8, _: usize) -> [[f32; 2]; 2] {
        unreachable!("half precision has no scales")
    }

    #[inline(always)]
    unsafe fn values(block: *const u8, _: usize) -> [__m256; 4] {
        // SAFETY: as the caller promises.
        std::array::from_fn(|i| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(block.add(16 * i).cast())) })
    }

    #[inline(always)]
    unsafe fn wide_values(block: *const u8, _: usize) -> [__m512; 2] {
        // SAFETY: as the caller promises.
        std::array::from_fn(|i| unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(block.add(32 * i).cast())) })
    }
}

/// The types whose blocks are one group, with a scale and a minimum in half precision or a multiple of the
/// scale.
macro_rules! one_group {
    ($name:ident, $kind:expr, $block:ident => $codes:expr, $zero:expr) => {
        impl Groups for $name {
            const TYPE: BlockType = $kind;

            #[inline(always)]
            unsafe fn codes($block: *const u8, _: usize) -> __m256i {
                // SAFETY: as the caller promises.
                unsafe { $codes }
            }

            #[inline(always)]
            unsafe fn scale(block: *const u8, _: usize) -> [[f32; 2]; 2] {
                // SAFETY: as the caller promises.
                unsafe {
                    let d = half(block);
                    let zero: Option<f32> = $zero;
                    let m = match zero {
                        Some(zero) => -zero * d,
                        None => half(block.add(2)),
                    };
                    [[d; 2], [m; 2]]
                }
            }
        }
    };
}

one_group!(Q8_0, BlockType::Q8_0, block => _mm256_loadu_si256(block.add(2).cast()), Some(0.0));
one_group!(Q4_0, BlockType::Q4_0, block => nibbles(block.add(2)), Some(8.0));
one_group!(Int4, BlockType::Int4, block => nibbles(block.add(4)), None);
one_group!(Q5_0, BlockType::Q5_0, block => _mm256_or_si256(nibbles(block.add(6)), bits(block.add(2), 16)), Some(16.0));
one_group!(Q5_1, BlockType::Q5_1, block => _mm256_or_si256(nibbles(block.add(8)), bits(block.add(4), 16)), None);
one_group!(Int3, BlockType::Int3, block => _mm256_or_si256(pairs(block.add(4)), bits(block.add(12), 4)), None);
one_group!(Int2, BlockType::Int2, block => pairs(block.add(4)), None);

/// The scale and the minimum of a group of `q4_k` and `q5_k`.
#[inline(always)]
unsafe fn scale_of_eight(block: *const u8, group: usize) -> [[f32; 2]; 2] {
    // SAFETY: the block's first sixteen bytes.
    unsafe {
        let packed = std::slice::from_raw_parts(block.add(4), 12);
        let [scale, min] = scale_and_min(packed, group).map(f32::from);
        [[half(block) * scale; 2], [-(half(block.add(2)) * min); 2]]
    }
}

impl Groups for Q4K {
    const TYPE: BlockType = BlockType::Q4K;

    #[inline(always)]
    unsafe fn codes(block: *const u8, group: usize) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe { shifted(block.add(16 + 32 * (group / 2)), 4 * (group % 2), 15) }
    }

    #[inline(always)]
    unsafe fn scale(block: *const u8, group: usize) -> [[f32; 2]; 2] {
        // SAFETY: as the caller promises.
        unsafe { scale_of_eight(block, group) }
    }
}

impl Groups for Q5K {
    const TYPE: BlockType = BlockType::Q5K;

    #[inline(always)]
    unsafe fn codes(block: *const u8, group: usize) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe {
            let low = shifted(block.add(48 + 32 * (group / 2)), 4 * (group % 2), 15);
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(shifted(block.add(16), group, 1)))
        }
    }

    #[inline(always)]
    unsafe fn scale(block: *const u8, group: usize) -> [[f32; 2]; 2] {
        // SAFETY: as the caller promises.
        unsafe { scale_of_eight(block, group) }
    }
}

impl Groups for Q6K {
    const TYPE: BlockType = BlockType::Q6K;

    #[inline(always)]
    unsafe fn codes(block: *const u8, group: usize) -> __m256i {
        let (part, line) = (group / 4, group % 4);
        // SAFETY: as the caller promises.
        unsafe {
            let low = shifted(block.add(64 * part + 32 * (line % 2)), 4 * (line / 2), 15);
            let high = shifted(block.add(128 + 32 * part), 2 * line, 3);
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
        }
    }

    #[inline(always)]
    unsafe fn scale(block: *const u8, group: usize) -> [[f32; 2]; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let all = half(block.add(208));
            let of = |half_group: usize| {
                all * f32::from(block.add(192 + 2 * group + half_group).cast::<i8>().read())
            };
            let d = [of(0), of(1)];
            [d, d.map(|d| -32.0 * d)]
        }
    }
}

/// Writes the values of elements of one row, a group at a time by `write`; of groups of which only a part is
/// wanted the rest is left away.
///
/// # Safety
/// `to` has room for `len` elements; `write` writes [`GROUP`] of them. Inlined into a function with the
/// features.
#[inline(always)]
pub(super) unsafe fn run<G: Groups, X: Copy + Default>(
    from: &Blocks,
    first: usize,
    len: usize,
    to: *mut X,
    write: impl Fn(*const u8, usize, *mut X),
) {
    let (elements, bytes) = (G::TYPE.elements(), G::TYPE.bytes());
    assert!((first + len).div_ceil(elements) * bytes <= from.bytes().len(), "elements of a weight in blocks");
    let mut done = 0;
    while done < len {
        let element = first + done;
        let (block, within) = (element / elements, element % elements);
        let (group, at) = (within / GROUP, within % GROUP);
        let count = (GROUP - at).min(len - done);
        // SAFETY: the block lies inside, by the assertion; the caller promises room.
        unsafe {
            let block = from.bytes().as_ptr().add(block * bytes);
            if count == GROUP {
                write(block, group, to.add(done));
            } else {
                let mut whole = [X::default(); GROUP];
                write(block, group, whole.as_mut_ptr());
                to.add(done).copy_from_nonoverlapping(whole.as_ptr().add(at), count);
            }
        }
        done += count;
    }
}

/// [`super::coded::OfBlocks`] to `f32`.
///
/// # Safety
/// `to` has room for `len` floats; the processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn to_f32(from: &Blocks, first: usize, len: usize, to: *mut u8) {
    by_type!(from.kind(), G => {
        // SAFETY: as the caller promises; a group is four vectors.
        unsafe {
            run::<G, f32>(from, first, len, to.cast(), |block, group, to| {
                for (i, values) in G::values(block, group).into_iter().enumerate() {
                    _mm256_storeu_ps(to.add(i * LANES), values);
                }
            });
        }
    });
}

/// Whether few rows can be multiplied by this weight as it lies: blocks, whole rows of them, of which the sums of
/// groups of inputs have room where a panel has.
pub(super) fn has_dots(w: &Coded<'_>) -> bool {
    let has_room = ROWS * (w.rows / GROUP) * size_of::<f32>() <= B_BYTES;
    w.weight.blocks().is_some() && w.rows == w.weight.cols() && has_room
}

/// [`super::coded::FewRows::pack`]: rows in `f32`, one after the other.
///
/// # Safety
/// See [`super::coded::FewRows::pack`].
pub(super) unsafe fn pack(a: Operand<'_>, to: *mut u8) {
    for i in 0..a.rows {
        let from = i * a.row_stride..i * a.row_stride + a.cols;
        // SAFETY: the caller promises room.
        let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<f32>().add(i * a.cols), a.cols) };
        match a.data {
            Slice::F32(s) => to.copy_from_slice(&s[from]),
            Slice::Bf16(s) => to.iter_mut().zip(&s[from]).for_each(|(to, x)| *to = x.to_f32()),
        }
    }
}

/// [`super::coded::FewRows::dots`].
///
/// # Safety
/// See [`super::coded::FewRows::dots`]; the processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
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
            let mut acc = [[_mm256_setzero_ps(); 4]; COUNT];
            for k in (0..depth).step_by(elements) {
                simd::prefetch(block.wrapping_add(AHEAD));
                for group in 0..elements / GROUP {
                    let values = G::values(block, group);
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let x = x.add(row * depth + k + group * GROUP);
                        for (i, acc) in acc.iter_mut().enumerate() {
                            *acc = _mm256_fmadd_ps(_mm256_loadu_ps(x.add(i * LANES)), values[i], *acc);
                        }
                    }
                }
                block = block.add(bytes);
            }
            for (row, acc) in acc.into_iter().enumerate() {
                let [a, b, c, d] = acc;
                let sum = _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d));
                *sums.add(row * WIDTH + j) = total(sum);
            }
        }
    }
}

/// The sum of a vector's floats.
#[inline(always)]
pub(super) unsafe fn total(x: __m256) -> f32 {
    // SAFETY: inlined into a function with the features.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}
