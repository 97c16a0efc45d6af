//! Frozen weights that take fewer bits than a number: a matrix whose values are made of codes when a product
//! needs them.
//!
//! Codes stand for values in one of two ways. A [`Codebook`] has sixteen values, scaled by the largest
//! magnitude of each block: NF4 and FP4, to bitsandbytes' bytes. [`Blocks`] have whole numbers with a scale,
//! and perhaps a minimum, for each group of a row: ggml's types, and integers of two, three and four bits.

pub mod blocks;
mod codebook;
pub mod dynamic_map;
mod fit;
mod torch_sum;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::profile::Work;
use crate::{DType, Device, Home, Matrix, MatrixMut, MatrixRef, cpu};
pub use blocks::{AffineBlock, BlockType, Blocks};
pub use codebook::{BLOCK_SIZES, Code, Codebook, CodebookFormat, SCALES_BLOCK, Scales};

/// How a matrix is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Sixteen values, scaled by the largest magnitude of a block.
    Codebook(CodebookFormat),
    /// Whole numbers with a scale, and perhaps a minimum, for each group of a row.
    Blocks(BlockType),
}

impl Format {
    /// What QLoRA trains over: NF4, blocks of 64, double quantization.
    pub const QLORA: Format = Format::Codebook(CodebookFormat::QLORA);

    /// The name in settings and files: `nf4`, `int4`, `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Codebook(format) => format.code.name(),
            Format::Blocks(kind) => kind.name(),
        }
    }

    /// Bytes that `elements` weights take, rows of which are whole blocks.
    pub fn size_bytes(self, elements: usize) -> usize {
        match self {
            Format::Codebook(format) => format.size_bytes(elements),
            Format::Blocks(kind) => kind.size_bytes(elements),
        }
    }

    /// Of how many weights a row must be a multiple.
    pub fn row_step(self) -> usize {
        match self {
            Format::Codebook(_) => 1,
            Format::Blocks(kind) => kind.elements(),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    /// The format of a name, with [`CodebookFormat::QLORA`]'s blocks and double quantization.
    fn from_str(name: &str) -> Result<Self, String> {
        let codebook = |code| Format::Codebook(CodebookFormat { code, ..CodebookFormat::QLORA });
        let all = Code::ALL.map(codebook).into_iter().chain(BlockType::ALL.map(Format::Blocks));
        let known = || all.clone().map(Format::name).collect::<Vec<_>>().join(", ");
        all.clone().find(|format| format.name() == name).ok_or_else(|| format!("expected {}", known()))
    }
}

/// A frozen matrix `[rows, cols]` of codes.
pub struct Quantized {
    rows: usize,
    cols: usize,
    stored: Stored,
    home: Home,
    size_bytes: usize,
}

/// What its values are made of.
pub(crate) enum Stored {
    Codebook(Box<Codebook>),
    Blocks(Blocks),
    /// Nothing, in [`Home::Null`].
    Nothing,
}

impl Quantized {
    /// A matrix in the host's memory of codes of sixteen values, one after the other in rows.
    ///
    /// # Panics
    /// If the codebook is not one of so many elements.
    pub fn of_codebook(rows: usize, cols: usize, codebook: Codebook) -> Self {
        let elements = rows.checked_mul(cols).expect("matrix size overflows");
        assert_eq!(codebook.elements(), elements, "codes of a matrix {rows} x {cols}");
        let size_bytes = codebook.size_bytes();
        Quantized { rows, cols, stored: Stored::Codebook(Box::new(codebook)), home: Home::Host, size_bytes }
    }

    /// A matrix in the host's memory whose rows are whole blocks.
    ///
    /// # Panics
    /// If the blocks are not those of such a matrix.
    pub fn of_blocks(rows: usize, cols: usize, blocks: Blocks) -> Self {
        assert!(
            cols.is_multiple_of(blocks.kind().elements()),
            "rows of {cols} in blocks of {:?}",
            blocks.kind()
        );
        let size_bytes = blocks.kind().size_bytes(rows.checked_mul(cols).expect("matrix size overflows"));
        assert_eq!(
            blocks.bytes().len(),
            size_bytes,
            "bytes of a matrix {rows} x {cols} of {:?}",
            blocks.kind()
        );
        Quantized { rows, cols, stored: Stored::Blocks(blocks), home: Home::Host, size_bytes }
    }

    /// Brings a matrix of the host's into the memory of a device.
    pub fn to_device(self, device: &Device) -> Self {
        match device {
            Device::Cpu(_) => self,
            Device::Null(_) => Quantized::null(self.rows, self.cols, self.size_bytes),
        }
    }

    /// A matrix of [`Home::Null`].
    fn null(rows: usize, cols: usize, size_bytes: usize) -> Self {
        Quantized { rows, cols, stored: Stored::Nothing, home: Home::Null, size_bytes }
    }

    /// Quantizes a matrix.
    ///
    /// # Panics
    /// If the format is none of those that there are, or a row is not a multiple of [`Format::row_step`].
    pub fn quantize(device: &Device, values: MatrixRef<'_>, format: Format) -> Self {
        let (rows, cols) = (values.rows(), values.cols());
        let _watch = device.watch("quantize", [values.home()], || Work::bytes(values.size_bytes()));
        match (device, format) {
            (Device::Cpu(cpu), Format::Codebook(format)) => {
                Quantized::of_codebook(rows, cols, Codebook::quantize(cpu, values, format))
            }
            (Device::Cpu(cpu), Format::Blocks(kind)) => {
                Quantized::of_blocks(rows, cols, Blocks::quantize(cpu, values, kind))
            }
            (Device::Null(_), format) => Quantized::null(rows, cols, format.size_bytes(rows * cols)),
        }
    }

    /// A matrix of zeros in the memory of a device, to be [quantized](Quantized::requantize) into.
    ///
    /// # Panics
    /// As [`Quantized::quantize`].
    pub fn zeros(device: &Device, rows: usize, cols: usize, format: Format) -> Self {
        match (device, format) {
            (Device::Cpu(_), Format::Codebook(format)) => {
                Quantized::of_codebook(rows, cols, Codebook::zeros(rows * cols, format))
            }
            (Device::Cpu(_), Format::Blocks(kind)) => {
                Quantized::of_blocks(rows, cols, Blocks::zeros(kind, rows * cols))
            }
            (Device::Null(_), format) => Quantized::null(rows, cols, format.size_bytes(rows * cols)),
        }
    }

    /// Quantizes other values of the same shape into its memory.
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub fn requantize(&mut self, device: &Device, values: MatrixRef<'_>) {
        assert_eq!((self.rows, self.cols), (values.rows(), values.cols()), "the shape of quantized values");
        let homes = [self.home, values.home()];
        let _watch = device.watch("quantize", homes, || Work::bytes(values.size_bytes()));
        match (device, &mut self.stored) {
            (Device::Cpu(cpu), Stored::Codebook(codebook)) => codebook.requantize(cpu, values),
            (Device::Cpu(cpu), Stored::Blocks(blocks)) => blocks.requantize(cpu, values),
            _ => {}
        }
    }

    /// Whose memory it lies in.
    pub fn home(&self) -> Home {
        self.home
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of codes and scales.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    pub(crate) fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Its codes of sixteen values, if it has such.
    pub fn codebook(&self) -> Option<&Codebook> {
        match &self.stored {
            Stored::Codebook(codebook) => Some(codebook),
            _ => None,
        }
    }

    /// Its blocks, if it has such.
    pub fn blocks(&self) -> Option<&Blocks> {
        match &self.stored {
            Stored::Blocks(blocks) => Some(blocks),
            _ => None,
        }
    }

    /// A copy of a matrix in blocks, in memory of its own.
    ///
    /// # Panics
    /// If it has none.
    pub fn copy(&self) -> Quantized {
        match (&self.stored, self.home) {
            (Stored::Nothing, _) => Quantized::null(self.rows, self.cols, self.size_bytes),
            _ => Quantized::of_blocks(self.rows, self.cols, self.blocks().expect("blocks").to_owned()),
        }
    }

    /// Its blocks alone.
    ///
    /// # Panics
    /// If it has none.
    pub fn into_blocks(self) -> Blocks {
        match self.stored {
            Stored::Blocks(blocks) => blocks,
            _ => panic!("{self:?} has no blocks"),
        }
    }

    /// Its blocks, to change, if it has such.
    pub fn blocks_mut(&mut self) -> Option<&mut Blocks> {
        match &mut self.stored {
            Stored::Blocks(blocks) => Some(blocks),
            _ => None,
        }
    }

    /// Where the codes of elements that lie side by side are, from the first to the last: a pointer, perhaps
    /// past the end for none, and bytes.
    pub(crate) fn codes_of(&self, first: usize, len: usize) -> (*const u8, usize) {
        match &self.stored {
            Stored::Codebook(codebook) => {
                (codebook.codes().as_ptr().wrapping_add(first / 2), len.div_ceil(2))
            }
            Stored::Blocks(blocks) => {
                let (elements, bytes) = (blocks.kind().elements(), blocks.kind().bytes());
                let start = blocks.bytes().as_ptr().wrapping_add(first / elements * bytes);
                (start, (len * bytes).div_ceil(elements))
            }
            Stored::Nothing => (std::ptr::null(), 0),
        }
    }

    /// The values of some rows, `to [rows.len(), cols]`.
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub fn dequantize_rows(&self, device: &Device, rows: Range<usize>, to: MatrixMut<'_>) {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert_eq!((rows.len(), self.cols), (to.rows(), to.cols()), "the shape of the dequantized rows");
        let homes = [self.home, to.home()];
        let _watch = device.watch("dequantize", homes, || Work::bytes(to.size_bytes()));
        match device {
            Device::Cpu(cpu) => cpu::quant::dequantize(cpu, self, rows.start * self.cols, to),
            Device::Null(_) => {}
        }
    }

    /// All values, as a matrix of this type.
    pub fn dequantize(&self, device: &Device, dtype: DType) -> Matrix {
        let mut dense = device.unset(self.rows, self.cols, dtype);
        self.dequantize_rows(device, 0..self.rows, dense.as_mut());
        dense
    }
}

impl fmt::Debug for Quantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.stored {
            Stored::Codebook(codebook) => format!("blocks of {}", codebook.block_size()),
            Stored::Blocks(blocks) => blocks.kind().name().to_owned(),
            Stored::Nothing => "nothing".to_owned(),
        };
        write!(f, "Quantized[{} x {}, {kind}]", self.rows, self.cols)
    }
}
