//! A right factor of codes: becomes values in cache, a few runs at a time, and is then a factor as any other.

use std::ops::Range;

use super::Operand;
use super::kernel::Kernel;
use super::scratch::Room;
use crate::matrix::Slice;
use crate::quant::{Blocks, Codebook, Quantized, Stored};
use crate::{DType, bf16};

/// Writes the values of `len` elements from element `first` on, in the kernel's packed type.
#[derive(Clone, Copy)]
pub(super) struct Dequantize {
    pub(super) codebook: OfCodebook,
    /// The elements lie in one row.
    pub(super) blocks: OfBlocks,
}

/// [`Dequantize`] of codes of sixteen values.
pub(super) type OfCodebook = unsafe fn(from: &Codebook, first: usize, len: usize, to: *mut u8);
/// [`Dequantize`] of blocks.
pub(super) type OfBlocks = unsafe fn(from: &Blocks, first: usize, len: usize, to: *mut u8);

/// How few rows are multiplied by a weight of codes without a stop in memory.
pub(super) struct FewRows {
    /// Whether it can be done with this weight, its depth whole.
    pub(super) applies: fn(&Coded<'_>) -> bool,
    /// Brings rows, contiguous along `k`, into the type and the order of `dots`: at most `4 * k` bytes each,
    /// `k` rounded up to [`FewRows::DEPTH_STEP`].
    pub(super) pack: unsafe fn(a: Operand<'_>, to: *mut u8),
    /// Bytes from one packed row of so many elements to the next.
    pub(super) row_bytes: fn(usize) -> usize,
    /// Writes sums as [`super::few_rows::Dots`]: packed rows by the columns `w.cols <= WIDTH` of a transposed
    /// weight. `scales` is memory to work with, as much as a panel takes up. Those of a row are the same to the
    /// byte whatever rows are with it.
    pub(super) dots: unsafe fn(rows: usize, x: *const u8, w: Coded<'_>, scales: Room, sums: *mut f32),
}

impl FewRows {
    /// Packed rows are multiples of this.
    pub(super) const DEPTH_STEP: usize = 128;
}

/// [`FewRows::row_bytes`] of whole steps of elements of so many bytes.
pub(super) fn steps_of<const BYTES: usize>(depth: usize) -> usize {
    BYTES * depth.next_multiple_of(FewRows::DEPTH_STEP)
}

/// [`FewRows::row_bytes`] of floats, as many as the depth.
pub(super) fn floats_of(depth: usize) -> usize {
    4 * depth
}

/// A part of a quantized matrix `[R, C]`, or of its transpose: logically `[rows, cols]`.
#[derive(Clone, Copy)]
pub(crate) struct Coded<'a> {
    pub(super) weight: &'a Quantized,
    /// Whether a column here is a row of the weight.
    transposed: bool,
    /// The first element of the part in the weight.
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl<'a> Coded<'a> {
    /// The whole weight.
    pub(crate) fn plain(weight: &'a Quantized) -> Self {
        Coded { weight, transposed: false, first: 0, rows: weight.rows(), cols: weight.cols() }
    }

    /// The whole weight, transposed.
    pub(crate) fn transposed(weight: &'a Quantized) -> Self {
        Coded { weight, transposed: true, first: 0, rows: weight.cols(), cols: weight.rows() }
    }

    /// The codebook of a weight that is known to have one.
    pub(super) fn codebook(&self) -> &'a Codebook {
        self.weight.codebook().expect("a kernel for codebooks")
    }

    /// Whether what is summed over lies side by side.
    pub(super) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Bytes of a column, about.
    pub(super) fn column_bytes(&self) -> usize {
        let elements = self.weight.rows() * self.weight.cols();
        self.rows * self.weight.size_bytes() / elements.max(1)
    }

    /// Whether it is the same part of the same weight.
    pub(super) fn is_same(&self, other: &Coded<'_>) -> bool {
        let part = |m: &Coded<'_>| (m.transposed, m.first, m.rows, m.cols);
        std::ptr::eq(self.weight, other.weight) && part(self) == part(other)
    }

    /// A part of it.
    pub(super) fn view(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let (down, along) = if self.transposed { (cols.start, rows.start) } else { (rows.start, cols.start) };
        let first = self.first + down * self.weight.cols() + along;
        Coded { first, rows: rows.len(), cols: cols.len(), ..self }
    }

    /// Runs of elements that lie side by side, and how many there are in each.
    fn runs(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    /// Where the codes are: the first byte, the runs, the bytes of a run, and the bytes between them.
    pub(super) fn bytes(&self) -> (*const u8, usize, usize, usize) {
        let (runs, run) = self.runs();
        let (start, bytes) = self.weight.codes_of(self.first, run);
        let (_, between) = self.weight.codes_of(0, self.weight.cols());
        (start, runs, bytes, between)
    }

    /// The values, in the kernel's packed type.
    ///
    /// # Safety
    /// `to` is aligned to a cache line, has room for them, and lives while they are used.
    pub(super) unsafe fn values<'s>(&self, kernel: &Kernel, to: *mut u8) -> Operand<'s> {
        let (runs, run) = self.runs();
        let place = |i: usize| {
            // SAFETY: there is room.
            let to = unsafe { to.add(i * run * kernel.packed.size()) };
            (self.first + i * self.weight.cols(), to)
        };
        let runs_of = (0..runs).map(place);
        match self.weight.stored() {
            Stored::Codebook(from) => {
                let dequantize = kernel.dequantize.codebook;
                // SAFETY: the view lies inside the weight, runs in rows of it; there is room.
                runs_of.for_each(|(first, to)| unsafe { dequantize(from, first, run, to) });
            }
            Stored::Blocks(from) => {
                let dequantize = kernel.dequantize.blocks;
                // SAFETY: the view lies inside the weight, runs in rows of it; there is room.
                runs_of.for_each(|(first, to)| unsafe { dequantize(from, first, run, to) });
            }
            Stored::Nothing => panic!("{:?} has no values", self.weight),
        }
        // SAFETY: just written.
        let data = unsafe {
            match kernel.packed {
                DType::F32 => Slice::F32(std::slice::from_raw_parts(to.cast::<f32>(), runs * run)),
                DType::Bf16 => Slice::Bf16(std::slice::from_raw_parts(to.cast::<bf16>(), runs * run)),
            }
        };
        let (row_stride, col_stride) = if self.transposed { (1, run) } else { (run, 1) };
        Operand { data, rows: self.rows, cols: self.cols, row_stride, col_stride }
    }
}
