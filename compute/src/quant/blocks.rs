//! Weights in blocks: whole numbers with a scale, and perhaps a minimum, for each group of a row.
//!
//! A row is a line of blocks, each of [`BlockType::elements`] values in [`BlockType::bytes`] bytes, which lie as
//! ggml has them (`ggml-common.h`; the package `gguf` 0.19.0, `quants.py`). A block is one or more groups of
//! [`GROUP`] values:
//!
//! ```text
//! value[i] = d[i / 16] * code[i] + m[i / 16]                 0 <= i < 32
//! ```
//!
//! `d * code` is exact in `f32` for every type, so that it does not matter whether it is fused with the sum.
//! Integers of three and two bits are not ggml's: their codes stand as those of `q5_1` and `q4_1` do, with
//! fewer bits.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::f16;

use super::fit;
use crate::cpu::blocks;
use crate::{Buffer, Cpu, MappedFile, MatrixRef};

/// Values whose codes are read together.
pub const GROUP: usize = 32;

/// How values are stored in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockType {
    /// Half precision: a value for each code.
    F16,
    /// Eight bits, signed, and a scale.
    Q8_0,
    /// Four bits and a scale: `d (code - 8)`.
    Q4_0,
    /// Four bits, a scale and a minimum: what this program calls `int4`, ggml's `Q4_1`.
    Int4,
    /// Five bits and a scale: `d (code - 16)`.
    Q5_0,
    /// Five bits, a scale and a minimum.
    Q5_1,
    /// Four bits; scales and minima of eight groups have six bits each.
    Q4K,
    /// Five bits; scales and minima as in `q4_k`.
    Q5K,
    /// Six bits; scales of sixteen half groups have eight bits each: `d s (code - 32)`.
    Q6K,
    /// Three bits, a scale and a minimum.
    Int3,
    /// Two bits, a scale and a minimum.
    Int2,
}

impl BlockType {
    /// All of them.
    pub const ALL: [BlockType; 11] = [
        BlockType::F16,
        BlockType::Q8_0,
        BlockType::Q4_0,
        BlockType::Int4,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
        BlockType::Int3,
        BlockType::Int2,
    ];

    /// The name in settings and files.
    pub fn name(self) -> &'static str {
        match self {
            BlockType::F16 => "f16",
            BlockType::Q8_0 => "q8_0",
            BlockType::Q4_0 => "q4_0",
            BlockType::Int4 => "int4",
            BlockType::Q5_0 => "q5_0",
            BlockType::Q5_1 => "q5_1",
            BlockType::Q4K => "q4_k",
            BlockType::Q5K => "q5_k",
            BlockType::Q6K => "q6_k",
            BlockType::Int3 => "int3",
            BlockType::Int2 => "int2",
        }
    }

    /// Values of a block.
    pub const fn elements(self) -> usize {
        match self {
            BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => 256,
            _ => GROUP,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            BlockType::F16 => 64,
            BlockType::Q8_0 => 34,
            BlockType::Q4_0 => 18,
            BlockType::Int4 => 20,
            BlockType::Q5_0 => 22,
            BlockType::Q5_1 => 24,
            BlockType::Q4K => 144,
            BlockType::Q5K => 176,
            BlockType::Q6K => 210,
            BlockType::Int3 => 16,
            BlockType::Int2 => 12,
        }
    }

    /// Bytes that `elements` weights take, whole blocks.
    pub fn size_bytes(self, elements: usize) -> usize {
        elements / self.elements() * self.bytes()
    }

    /// The largest code of a type whose groups have a scale and a minimum of their own in half precision, one
    /// behind the other at the beginning of their block: such a type takes up a change of its minima exactly.
    pub fn affine_codes(self) -> Option<u8> {
        match self {
            BlockType::Int4 => Some(15),
            BlockType::Q5_1 => Some(31),
            BlockType::Int3 => Some(7),
            BlockType::Int2 => Some(3),
            _ => None,
        }
    }

    /// The codes of a group of a block, and what they are multiplied by and added to.
    #[inline(always)]
    fn group(self, block: &[u8], group: usize) -> ([i8; GROUP], Scale) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let nibble = |at: usize, i: usize| block[at + i % 16] >> (4 * (i / 16)) & 15;
        let bit = |at: usize, i: usize| block[at + i / 8] >> (i % 8) & 1;
        let codes = |code: &dyn Fn(usize) -> u8| std::array::from_fn(|i| code(i) as i8);
        match self {
            BlockType::F16 => unreachable!("half precision has no codes"),
            BlockType::Q8_0 => (codes(&|i| block[2 + i]), Scale::new(half(0), 0.0)),
            BlockType::Q4_0 => (codes(&|i| nibble(2, i)), Scale::new(half(0), -8.0 * half(0))),
            BlockType::Int4 => (codes(&|i| nibble(4, i)), Scale::new(half(0), half(2))),
            BlockType::Q5_0 => {
                (codes(&|i| nibble(6, i) | bit(2, i) << 4), Scale::new(half(0), -16.0 * half(0)))
            }
            BlockType::Q5_1 => (codes(&|i| nibble(8, i) | bit(4, i) << 4), Scale::new(half(0), half(2))),
            BlockType::Int3 => {
                let code = |i: usize| block[4 + i % 8] >> (2 * (i / 8)) & 3 | bit(12, i) << 2;
                (codes(&code), Scale::new(half(0), half(2)))
            }
            BlockType::Int2 => {
                (codes(&|i| block[4 + i % 8] >> (2 * (i / 8)) & 3), Scale::new(half(0), half(2)))
            }
            BlockType::Q4K | BlockType::Q5K => {
                let [scale, min] = scale_and_min(&block[4..16], group).map(f32::from);
                let scale = Scale::new(half(0) * scale, -(half(2) * min));
                let (high, low) = if self == BlockType::Q4K { (None, 16) } else { (Some(16), 48) };
                let code = |i: usize| {
                    let low = block[low + 32 * (group / 2) + i] >> (4 * (group % 2)) & 15;
                    low | high.map_or(0, |high: usize| (block[high + i] >> group & 1) << 4)
                };
                (codes(&code), scale)
            }
            BlockType::Q6K => {
                let (part, line) = (group / 4, group % 4);
                let code = |i: usize| {
                    let low = block[64 * part + 32 * (line % 2) + i] >> (4 * (line / 2)) & 15;
                    low | (block[128 + 32 * part + i] >> (2 * line) & 3) << 4
                };
                let of = |half_group: usize| half(208) * f32::from(block[192 + 2 * group + half_group] as i8);
                let d = [of(0), of(1)];
                (codes(&code), Scale { d, m: d.map(|d| -32.0 * d) })
            }
        }
    }

    /// The values of a group of a block, in order.
    #[inline(always)]
    pub(crate) fn values(self, block: &[u8], group: usize) -> [f32; GROUP] {
        if self == BlockType::F16 {
            return std::array::from_fn(|i| f16::from_le_bytes([block[2 * i], block[2 * i + 1]]).to_f32());
        }
        let (codes, Scale { d, m }) = self.group(block, group);
        std::array::from_fn(|i| d[i / 16] * f32::from(codes[i]) + m[i / 16])
    }

    /// Begins a block with the scale and the minimum that reach over its values.
    pub(crate) fn begin_affine(self, values: &[f32], block: &mut [u8]) -> Affine {
        let codes = self.affine_codes().expect("a scale and a minimum");
        fit::begin_affine(values, codes, block)
    }

    /// Writes the codes of a block that was begun.
    pub(crate) fn put_codes(self, block: &mut [u8], codes: [u8; GROUP]) {
        fit::put_codes(self, block, codes);
    }

    /// Takes a block apart that has a scale and a minimum of its own.
    ///
    /// # Panics
    /// If the type has none ([`BlockType::affine_codes`]), or there are not as many bytes as a block has.
    pub fn affine_of(self, block: &[u8]) -> AffineBlock {
        assert!(self.affine_codes().is_some(), "{self} has no minima of its own");
        assert_eq!(block.len(), self.bytes(), "a block of {self}");
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        let codes = self.group(block, 0).0.map(|code| code as u8);
        AffineBlock { scale: half(0), minimum: half(2), codes }
    }

    /// Writes such a block.
    ///
    /// # Panics
    /// As [`BlockType::affine_of`]; also if a code is larger than the type's.
    pub fn put_affine(self, from: AffineBlock, block: &mut [u8]) {
        let largest = self.affine_codes().unwrap_or_else(|| panic!("{self} has no minima of its own"));
        assert_eq!(block.len(), self.bytes(), "a block of {self}");
        assert!(from.codes.iter().all(|&code| code <= largest), "codes up to {largest}");
        block.fill(0);
        block[..2].copy_from_slice(&from.scale.to_le_bytes());
        block[2..4].copy_from_slice(&from.minimum.to_le_bytes());
        fit::put_codes(self, block, from.codes);
    }

    /// Writes values as a block.
    ///
    /// # Panics
    /// If there are not as many values and bytes as a block has.
    pub(crate) fn encode(self, values: &[f32], block: &mut [u8]) {
        assert_eq!((values.len(), block.len()), (self.elements(), self.bytes()), "a block of {self}");
        fit::encode(self, values, block);
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a block has whose type has a scale and a minimum of its own: `value[i] = scale * codes[i] + minimum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AffineBlock {
    /// The step between two codes.
    pub scale: f16,
    /// The value of code 0.
    pub minimum: f16,
    /// The codes, in order.
    pub codes: [u8; GROUP],
}

/// A scale and a minimum as their block has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine {
    pub(super) d: f32,
    pub(super) m: f32,
    pub(super) inverse: f32,
    pub(super) largest: f32,
}

impl Affine {
    /// The code nearest to a value, and what it stands for.
    #[inline(always)]
    pub(crate) fn nearest(self, value: f32) -> (u8, f32) {
        let code = ((value - self.m) * self.inverse).round().clamp(0.0, self.largest);
        (code as u8, self.d * code + self.m)
    }
}

/// What the codes of the two halves of a group are multiplied by and added to.
struct Scale {
    d: [f32; 2],
    m: [f32; 2],
}

impl Scale {
    fn new(d: f32, m: f32) -> Self {
        Scale { d: [d; 2], m: [m; 2] }
    }
}

/// The scale and the minimum of a group, six bits each, of the twelve bytes that eight groups have: the first
/// four groups in the low bits of a byte each, the others in half bytes and the bits that those leave free.
#[inline(always)]
pub(crate) fn scale_and_min(packed: &[u8], group: usize) -> [u8; 2] {
    let early = |at: usize| packed[at] & 63;
    let late = |low: u8, high: u8| low | high >> 6 << 4;
    match group {
        0..4 => [early(group), early(group + 4)],
        _ => {
            let both = packed[group + 4];
            [late(both & 15, packed[group - 4]), late(both >> 4, packed[group])]
        }
    }
}

/// The blocks of a matrix, row after row.
#[derive(Debug)]
pub struct Blocks {
    kind: BlockType,
    bytes: Bytes,
}

/// Where blocks lie.
#[derive(Debug)]
enum Bytes {
    /// In memory of their own.
    Own(Buffer<u8>),
    /// In a file, as it is mapped.
    Mapped(Arc<MappedFile>, Range<usize>),
}

impl Blocks {
    /// Zeros, so many weights of them; to be filled through [`Blocks::bytes_mut`].
    pub fn zeros(kind: BlockType, elements: usize) -> Self {
        Blocks { kind, bytes: Bytes::Own(Buffer::zeros(kind.size_bytes(elements))) }
    }

    /// Blocks that stay in a mapped file.
    ///
    /// # Panics
    /// If the file does not have these bytes.
    pub fn mapped(kind: BlockType, file: Arc<MappedFile>, bytes: Range<usize>) -> Self {
        assert!(bytes.start <= bytes.end && bytes.end <= file.bytes().len(), "bytes {bytes:?} of a file");
        Blocks { kind, bytes: Bytes::Mapped(file, bytes) }
    }

    /// Quantizes the rows of a matrix.
    pub(super) fn quantize(cpu: &Cpu, values: MatrixRef<'_>, kind: BlockType) -> Self {
        assert!(
            values.cols().is_multiple_of(kind.elements()),
            "rows of {} in blocks of {kind}",
            values.cols()
        );
        let mut all = Blocks::zeros(kind, values.rows() * values.cols());
        all.requantize(cpu, values);
        all
    }

    /// Quantizes other rows into the same memory.
    pub(super) fn requantize(&mut self, cpu: &Cpu, values: MatrixRef<'_>) {
        blocks::quantize(cpu, values, self.kind, self.bytes_mut());
    }

    /// How values are stored.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// Their bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Own(buffer) => buffer,
            Bytes::Mapped(file, range) => &file.bytes()[range.clone()],
        }
    }

    /// Their bytes, to change.
    ///
    /// # Panics
    /// If they lie in a file.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Bytes::Own(buffer) => buffer,
            Bytes::Mapped(..) => panic!("blocks of a file are not changed"),
        }
    }

    /// The values from element `first` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn values(&self, first: usize, to: &mut [f32]) {
        blocks::run(self, first, to);
    }

    /// Adds `delta [rows, groups]`, `f32`, to the minima of the groups of each row, each of which is one or more
    /// blocks: `m' = f16(m + delta)`. Scales and codes stay.
    ///
    /// # Panics
    /// If the type has no minima of its own ([`BlockType::affine_codes`]), or the shapes do not agree.
    pub fn add_to_minima(&mut self, delta: MatrixRef<'_>) {
        let kind = self.kind;
        assert!(kind.affine_codes().is_some(), "{kind} has no minima of its own");
        let blocks = self.bytes().len() / kind.bytes();
        let per_group = blocks / (delta.rows() * delta.cols()).max(1);
        assert_eq!(per_group * delta.rows() * delta.cols(), blocks, "a change of whole blocks");
        let delta = delta.f32();
        for (i, block) in self.bytes_mut().chunks_exact_mut(kind.bytes()).enumerate() {
            let m = f16::from_le_bytes([block[2], block[3]]).to_f32();
            let changed = f16::from_f32(m + delta[i / per_group]);
            block[2..4].copy_from_slice(&changed.to_le_bytes());
        }
    }

    /// The same values in a type of as many codes or more, of those with a scale and a minimum of their own.
    ///
    /// # Panics
    /// If one of the types has none, or the other has fewer codes.
    pub fn widened(&self, to: BlockType) -> Blocks {
        let (from, enough) = (self.kind, self.kind.affine_codes().zip(to.affine_codes()));
        assert!(enough.is_some_and(|(from, to)| from <= to), "{from} in blocks of {to}");
        let count = self.bytes().len() / from.bytes();
        let mut wide = Blocks::zeros(to, count * GROUP);
        let blocks =
            self.bytes().chunks_exact(from.bytes()).zip(wide.bytes_mut().chunks_exact_mut(to.bytes()));
        for (block, wide) in blocks {
            wide[..4].copy_from_slice(&block[..4]);
            fit::put_codes(to, wide, from.group(block, 0).0.map(|code| code as u8));
        }
        wide
    }

    /// A copy in memory of its own.
    pub fn to_owned(&self) -> Blocks {
        let mut copy = Buffer::zeros(self.bytes().len());
        copy.copy_from_slice(self.bytes());
        Blocks { kind: self.kind, bytes: Bytes::Own(copy) }
    }

    /// The first scale, minimum or value that is not finite: the number of its block.
    pub fn not_finite(&self) -> Option<usize> {
        let halves: &[usize] = match self.kind {
            BlockType::F16 => &[],
            BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q5_0 => &[0],
            BlockType::Int4 | BlockType::Q5_1 | BlockType::Int3 | BlockType::Int2 => &[0, 2],
            BlockType::Q4K | BlockType::Q5K => &[0, 2],
            BlockType::Q6K => &[208],
        };
        // All bits of the exponent: infinite, or no number.
        let is_wrong = |half: [u8; 2]| half[1] & 0x7c == 0x7c;
        self.bytes().chunks_exact(self.kind.bytes()).position(|block| match self.kind {
            BlockType::F16 => block.as_chunks().0.iter().any(|&half| is_wrong(half)),
            _ => halves.iter().any(|&at| is_wrong([block[at], block[at + 1]])),
        })
    }
}
