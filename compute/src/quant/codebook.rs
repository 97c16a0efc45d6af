//! Weights in four bits: sixteen values, scaled by the largest magnitude of each block (QLoRA, Dettmers et
//! al. 2023, arXiv:2305.14314; the bytes are those of bitsandbytes).
//!
//! A matrix is quantized as it lies in memory, row after row, in blocks that know nothing of rows: element
//! `i` belongs to block `i / block_size`, and stands in the high half of byte `i / 2` if `i` is even, in the
//! low half if it is odd. `value = table[code] * absmax[block]`, the product in `f32`, rounded once to the
//! type that is asked for.
//!
//! With double quantization the scales themselves are rounded to eight bits: their mean is taken off, and
//! what is left is rounded to [`dynamic_map::signed`] in blocks of [`SCALES_BLOCK`].

use std::fmt;
use std::str::FromStr;

use super::{dynamic_map, torch_sum};
use crate::{Buffer, Cpu, MatrixRef, cpu};

/// Scales that share a scale of their own under double quantization.
pub const SCALES_BLOCK: usize = dynamic_map::BLOCK;
/// The sizes that a block of weights may have.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Which sixteen values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// 4-bit NormalFloat: quantiles of a normal distribution, zero among them.
    Nf4,
    /// A sign, two bits of exponent and one of mantissa.
    Fp4,
}

impl Code {
    /// All of them.
    pub const ALL: [Code; 2] = [Code::Nf4, Code::Fp4];

    /// The name in settings and files.
    pub fn name(self) -> &'static str {
        match self {
            Code::Nf4 => "nf4",
            Code::Fp4 => "fp4",
        }
    }

    /// The value of each code, in units of the block's scale.
    pub fn table(self) -> [f32; 16] {
        match self {
            Code::Nf4 => NF4,
            Code::Fp4 => std::array::from_fn(|code| {
                let magnitude = FP4_TWELFTHS[code % 8] / 12.0;
                // There is no negative zero: both codes of zero stand for the positive one.
                if code <= 8 { magnitude } else { -magnitude }
            }),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Code {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Code::ALL.map(Code::name).join(", ");
        Code::ALL.into_iter().find(|code| code.name() == name).ok_or_else(|| format!("expected {}", known()))
    }
}

/// Appendix E of the paper, as bitsandbytes has them.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];
/// Twelve times the magnitudes of FP4.
const FP4_TWELFTHS: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];

/// How a matrix is quantized by a codebook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodebookFormat {
    /// Which sixteen values.
    pub code: Code,
    /// Weights that share a scale: one of [`BLOCK_SIZES`].
    pub block_size: usize,
    /// Whether the scales are quantized too.
    pub double_quant: bool,
}

impl CodebookFormat {
    /// What QLoRA trains over: NF4, blocks of 64, double quantization.
    pub const QLORA: CodebookFormat = CodebookFormat { code: Code::Nf4, block_size: 64, double_quant: true };

    /// Bytes that `elements` weights take.
    pub fn size_bytes(self, elements: usize) -> usize {
        let blocks = elements.div_ceil(self.block_size);
        let scales = if self.double_quant { blocks + 4 * blocks.div_ceil(SCALES_BLOCK) } else { 4 * blocks };
        elements.div_ceil(2) + scales
    }
}

/// The scale of every block.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// As they are.
    Plain(Buffer<f32>),
    /// Rounded to eight bits: `map[codes[b]] * absmax[b / block_size] + offset`.
    Double {
        /// An index into `map` for each block.
        codes: Buffer<u8>,
        /// The values of the indices.
        map: Box<[f32; 256]>,
        /// Scales of the scales.
        absmax: Buffer<f32>,
        /// Blocks that share one of them, a power of two.
        block_size: usize,
        /// The mean that was taken off.
        offset: f32,
    },
}

impl Scales {
    /// Blocks that these are the scales of.
    pub fn blocks(&self) -> usize {
        match self {
            Scales::Plain(scales) => scales.len(),
            Scales::Double { codes, .. } => codes.len(),
        }
    }

    /// The scale of a block.
    #[inline(always)]
    pub fn of(&self, block: usize) -> f32 {
        match self {
            Scales::Plain(scales) => scales[block],
            Scales::Double { codes, map, absmax, block_size, offset } => {
                // A power of two: a shift, which a division is not.
                map[usize::from(codes[block])] * absmax[block >> block_size.trailing_zeros()] + offset
            }
        }
    }

    /// Rounds scales to eight bits, as bitsandbytes does on a CPU.
    pub fn double(scales: &[f32]) -> Scales {
        let offset = if scales.is_empty() { 0.0 } else { torch_sum::sum(scales) / scales.len() as f32 };
        let map = dynamic_map::signed();
        let mut codes = Buffer::zeros(scales.len());
        let mut absmax = Vec::with_capacity(scales.len().div_ceil(SCALES_BLOCK));
        for (scales, codes) in scales.chunks(SCALES_BLOCK).zip(codes.chunks_mut(SCALES_BLOCK)) {
            let mut rest = [0.0; SCALES_BLOCK];
            rest.iter_mut().zip(scales).for_each(|(rest, scale)| *rest = scale - offset);
            absmax.push(map.encode(&rest, codes));
        }
        let map = Box::new(*map.values());
        Scales::Double { codes, map, absmax: absmax.into(), block_size: SCALES_BLOCK, offset }
    }

    fn size_bytes(&self) -> usize {
        match self {
            Scales::Plain(scales) => 4 * scales.len(),
            Scales::Double { codes, absmax, .. } => codes.len() + 4 * absmax.len(),
        }
    }
}

/// The codes of a matrix, row after row, and the scales of their blocks.
#[derive(Debug)]
pub struct Codebook {
    elements: usize,
    block_size: usize,
    /// Whose values the table has, if it was made here.
    code: Option<Code>,
    table: [f32; 16],
    codes: Buffer<u8>,
    scales: Scales,
}

impl Codebook {
    /// Codes and scales that come from elsewhere; the codes, zero at first, are filled by the caller through
    /// [`Codebook::codes_mut`].
    ///
    /// # Panics
    /// If there is not one scale for each block, or the block size is not one of [`BLOCK_SIZES`].
    pub fn new(elements: usize, block_size: usize, table: [f32; 16], scales: Scales) -> Self {
        assert!(BLOCK_SIZES.contains(&block_size), "a block size of {block_size}");
        assert_eq!(scales.blocks(), elements.div_ceil(block_size), "a scale for each block of {block_size}");
        if let Scales::Double { codes, absmax, block_size, .. } = &scales {
            assert!(block_size.is_power_of_two(), "blocks of {block_size} scales");
            assert_eq!(absmax.len(), codes.len().div_ceil(*block_size), "a scale for each block of scales");
        }
        Codebook {
            elements,
            block_size,
            code: None,
            table,
            codes: Buffer::zeros(elements.div_ceil(2)),
            scales,
        }
    }

    /// Quantizes the elements of a matrix as they lie in memory.
    pub(super) fn quantize(cpu: &Cpu, values: MatrixRef<'_>, format: CodebookFormat) -> Self {
        let mut codebook = Codebook::zeros(values.rows() * values.cols(), format);
        codebook.requantize(cpu, values);
        codebook
    }

    /// Zeros, to be quantized into.
    pub(super) fn zeros(elements: usize, format: CodebookFormat) -> Self {
        let CodebookFormat { code, block_size, double_quant } = format;
        let scales = vec![0.0; elements.div_ceil(block_size)];
        let scales = if double_quant { Scales::double(&scales) } else { Scales::Plain(scales.into()) };
        Codebook { code: Some(code), ..Codebook::new(elements, block_size, code.table(), scales) }
    }

    /// Quantizes other values into the same memory, but for the scales, which are few.
    ///
    /// # Panics
    /// If it was not made by quantizing.
    pub(super) fn requantize(&mut self, cpu: &Cpu, values: MatrixRef<'_>) {
        let code = self.code.expect("one of the codes that there are");
        let mut scales = Buffer::zeros(self.elements.div_ceil(self.block_size));
        cpu::quant::quantize(cpu, values, self.block_size, code, &mut self.codes, &mut scales);
        self.scales = match self.scales {
            Scales::Plain(_) => Scales::Plain(scales),
            Scales::Double { .. } => Scales::double(&scales),
        };
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Weights that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The sixteen values.
    pub fn table(&self) -> &[f32; 16] {
        &self.table
    }

    /// Two codes a byte.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Two codes a byte, to fill.
    pub fn codes_mut(&mut self) -> &mut [u8] {
        &mut self.codes
    }

    /// The blocks' scales.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Bytes of codes and scales.
    pub fn size_bytes(&self) -> usize {
        self.codes.len() + self.scales.size_bytes()
    }

    /// The code of an element.
    #[inline(always)]
    pub(crate) fn code(&self, element: usize) -> u8 {
        let byte = self.codes[element / 2];
        if element.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
    }

    /// The values that the codes of a block stand for.
    #[inline(always)]
    pub(crate) fn values(&self, block: usize) -> [f32; 16] {
        let scale = self.scales.of(block);
        self.table.map(|value| value * scale)
    }
}
