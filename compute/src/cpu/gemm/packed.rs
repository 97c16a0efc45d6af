//! Small products inside a task, of factors in packed form: packed once for several products, or written that
//! way by what computes them. Nothing is packed twice, and sums go where they are wanted without a pass of
//! their own.

use super::kernel::{CHUNK, Kernel};
use super::{Isa, Operand};
use crate::matrix::{Slice, SliceMut};
use crate::{DType, Matrix, Precision};

/// How the products of a precision want their factors.
#[derive(Clone, Copy)]
pub(crate) struct Packing(&'static Kernel);

impl Packing {
    pub(crate) fn of(isa: Isa, precision: Precision) -> Self {
        Packing(Kernel::of(isa, precision))
    }

    /// The element that is multiplied.
    pub(crate) fn dtype(self) -> DType {
        self.0.packed
    }

    /// What so many rows of a left factor take up: whole tiles. As many rows of sums are written.
    pub(crate) fn rows(self, rows: usize) -> usize {
        rows.next_multiple_of(self.0.rows)
    }

    /// How many columns of sums are written for so many of a right factor.
    pub(crate) fn cols(self, cols: usize) -> usize {
        cols.next_multiple_of(self.0.lanes)
    }

    /// `K` as factors have room for it: whole chunks.
    fn depth(self, k: usize) -> usize {
        k.next_multiple_of(Kernel::DEPTH_STEP)
    }
}

/// A left factor `[rows, k]` in packed form: for every tile of rows chunk after chunk of `K`, in each one of
/// every row.
pub(crate) struct PackedLeft {
    packing: Packing,
    values: Matrix,
    depth: usize,
}

/// Where the chunks of a [`PackedLeft`] stand, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeftLayout {
    /// Rows of a tile.
    pub(crate) tile: usize,
    /// Elements of a row that stand together.
    pub(crate) chunk: usize,
    depth: usize,
}

impl LeftLayout {
    /// Where a row's first chunk begins.
    #[inline(always)]
    pub(crate) fn row(self, row: usize) -> usize {
        row / self.tile * self.tile * self.depth + row % self.tile * self.chunk
    }

    /// From one chunk of a row to its next.
    #[inline(always)]
    pub(crate) fn step(self) -> usize {
        self.tile * self.chunk
    }
}

impl PackedLeft {
    /// Room for so many rows, with zeros.
    pub(crate) fn new(packing: Packing, rows: usize, k: usize) -> Self {
        let depth = packing.depth(k);
        PackedLeft { packing, values: Matrix::zeros(packing.rows(rows), depth, packing.dtype()), depth }
    }

    pub(crate) fn layout(&self) -> LeftLayout {
        let Kernel { rows, packed, .. } = *self.packing.0;
        LeftLayout { tile: rows, chunk: CHUNK / packed.size(), depth: self.depth }
    }

    /// The elements, to be written where [`PackedLeft::layout`] says. Up to the next even `k` they must be
    /// numbers.
    pub(crate) fn values(&mut self) -> &mut Matrix {
        &mut self.values
    }

    /// Takes the rows of `a` as rows `first..`, a tile's first row.
    pub(crate) fn pack(&mut self, first: usize, a: Operand<'_>) {
        let kernel = self.packing.0;
        let rows = self.packing.rows(a.rows);
        a.check("a");
        assert!(first.is_multiple_of(kernel.rows) && first + rows <= self.values.rows(), "rows have room");
        assert!(a.cols <= self.depth, "K of {} has room for {}", self.depth, a.cols);
        let row_bytes = self.depth * kernel.packed.size();
        // SAFETY: the rows have room, `a` is checked.
        unsafe {
            let to = start_mut(&mut self.values).add(first * row_bytes);
            (kernel.pack_a)(a, rows, row_bytes * kernel.rows, to);
        }
    }

    /// `sums[rows, n] = left[first.., k] right[k, n]`, or `+=` if `add`. Rows of `sums` are `stride` apart;
    /// whole tiles are written, see [`Packing::rows`] and [`Packing::cols`]. A sum is the same to the byte
    /// whatever `rows` and `n` are, and whatever zeros stand behind `k`.
    pub(crate) fn multiply(
        &self,
        (first, rows): (usize, usize),
        right: &PackedRight,
        (k, n): (usize, usize),
        (sums, stride): (&mut [f32], usize),
        add: bool,
    ) {
        let kernel = self.packing.0;
        let (rows, cols, row_bytes) =
            (self.packing.rows(rows), self.packing.cols(n), self.depth * kernel.packed.size());
        assert!(first.is_multiple_of(kernel.rows) && first + rows <= self.values.rows(), "rows are there");
        assert!(k <= self.depth && k <= right.depth && cols <= right.cols(), "factors are there");
        assert!(
            cols <= stride && rows.saturating_sub(1) * stride + cols <= sums.len(),
            "{rows} x {cols} sums have room"
        );
        let groups = k.div_ceil(kernel.group());
        // SAFETY: tiles of sums, rows of the left and panels of the right factor are there, by the
        // assertions.
        unsafe {
            let (a, b) = (start(&self.values).add(first * row_bytes), start(&right.values));
            for col in (0..cols).step_by(kernel.width()) {
                let tile = kernel.even_tiles[kernel.width().min(cols - col) / kernel.lanes - 1];
                let b = b.add(col * right.depth * kernel.packed.size());
                for row in (0..rows).step_by(kernel.rows) {
                    let sums = sums.as_mut_ptr().add(row * stride + col);
                    tile(groups, a.add(row * row_bytes), b, sums, stride, add);
                }
            }
        }
    }
}

/// A right factor `[k, cols]` in packed form: panels of columns, in each for every group of `K` all columns.
pub(crate) struct PackedRight {
    packing: Packing,
    values: Matrix,
    depth: usize,
}

/// Where the elements of a [`PackedRight`] whose columns are whole panels stand, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RightLayout {
    /// Columns of a panel.
    pub(crate) panel: usize,
    depth: usize,
}

impl RightLayout {
    /// Where the elements of a panel begin of which the first is at `k`, a multiple of the group.
    #[inline(always)]
    pub(crate) fn at(self, k: usize, panel: usize) -> usize {
        (panel * self.depth + k) * self.panel
    }
}

impl PackedRight {
    /// Room for so many columns, with zeros.
    pub(crate) fn new(packing: Packing, k: usize, cols: usize) -> Self {
        let (depth, cols) = (packing.depth(k), cols.next_multiple_of(packing.0.width()));
        PackedRight { packing, values: Matrix::zeros(cols, depth, packing.dtype()), depth }
    }

    pub(crate) fn layout(&self) -> RightLayout {
        let kernel = self.packing.0;
        RightLayout { panel: kernel.width(), depth: self.depth }
    }

    /// The elements, to be written where [`PackedRight::layout`] says.
    pub(crate) fn values(&mut self) -> &mut Matrix {
        &mut self.values
    }

    fn cols(&self) -> usize {
        self.values.rows()
    }

    /// Takes `b`, and columns of zeros behind its last one.
    pub(crate) fn pack(&mut self, b: Operand<'_>) {
        let kernel = self.packing.0;
        b.check("b");
        assert!(b.rows <= self.depth && b.cols <= self.cols(), "a factor has room");
        let cols = self.packing.cols(b.cols);
        for col in (0..cols).step_by(kernel.width()) {
            let width = kernel.width().min(cols - col);
            let panel = b.view(0..b.rows, col..b.cols.min(col + width));
            // SAFETY: a panel has room, `b` is checked.
            unsafe {
                let to = start_mut(&mut self.values).add(col * self.depth * kernel.packed.size());
                (kernel.pack_b)(panel, width, to);
            }
        }
    }
}

fn start(m: &Matrix) -> *const u8 {
    match m.as_ref().slice() {
        Slice::F32(s) => s.as_ptr().cast(),
        Slice::Bf16(s) => s.as_ptr().cast(),
    }
}

fn start_mut(m: &mut Matrix) -> *mut u8 {
    match m.as_mut().slice() {
        SliceMut::F32(s) => s.as_mut_ptr().cast(),
        SliceMut::Bf16(s) => s.as_mut_ptr().cast(),
    }
}
