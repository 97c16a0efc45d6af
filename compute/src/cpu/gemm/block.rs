//! A product, the blocks that it is cut into, and how one block is computed.

use std::ops::Range;

use super::kernel::{Kernel, Target, TargetStart};
use super::scratch::{self, A_BYTES, B_BYTES, SUMS, Scratch};
use super::{Operand, OperandMut, few_rows};
use crate::matrix::{Slice, SliceMut};

/// At most this many columns in a block, so that its sums and its packed `a` share the second-level cache.
const MAX_COLS: usize = 256;
/// Blocks are not made smaller than this for the sake of busy threads.
const MIN_ROWS: usize = 64;

/// A product whose shapes are checked.
pub(super) struct Product<'a> {
    pub(super) kernel: &'static Kernel,
    pub(super) alpha: f32,
    pub(super) a: Operand<'a>,
    pub(super) b: Operand<'a>,
    pub(super) accumulate: bool,
    pub(super) c: Target,
}

// SAFETY: the operands are shared slices. `c` comes from an exclusive borrow that lives as long as the product, and
// threads write different blocks of it (`Plan::block`).
unsafe impl Sync for Product<'_> {}

/// A part of `c`.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

/// How `c` is cut into blocks. Cuts lie between tiles, so they change no sum.
#[derive(Debug)]
pub(super) struct Plan {
    shape: (usize, usize),
    block: (usize, usize),
}

impl Plan {
    /// Number of blocks.
    pub(super) fn tasks(&self) -> usize {
        self.row_blocks() * self.shape.1.div_ceil(self.block.1)
    }

    fn row_blocks(&self) -> usize {
        self.shape.0.div_ceil(self.block.0)
    }

    /// A block by its number. Neighbours share columns of `b`, which the second one finds in a shared cache.
    pub(super) fn block(&self, task: usize) -> Block {
        let part = |index: usize, size: usize, end: usize| index * size..((index + 1) * size).min(end);
        let rows = part(task % self.row_blocks(), self.block.0, self.shape.0);
        Block { rows, cols: part(task / self.row_blocks(), self.block.1, self.shape.1) }
    }
}

impl<'a> Product<'a> {
    /// Checks shapes, strides and lengths; `None` if `c` is empty.
    pub(super) fn new(
        kernel: &'static Kernel,
        alpha: f32,
        a: Operand<'a>,
        b: Operand<'a>,
        accumulate: bool,
        c: OperandMut<'a>,
    ) -> Option<Self> {
        assert_eq!((a.rows, b.cols, a.cols), (c.rows, c.cols, b.rows), "shapes of a product");
        for (factor, name) in [(&a, "a"), (&b, "b")] {
            assert!(factor.row_stride == 1 || factor.col_stride == 1, "one stride of {name} is 1");
            let end = extent(factor.rows, factor.cols, factor.row_stride, factor.col_stride);
            assert!(end <= factor.len(), "{name} ends at element {end} of {}", factor.len());
        }
        let (end, len) = (extent(c.rows, c.cols, c.row_stride, 1), c.len());
        assert!(end <= len, "c ends at element {end} of {len}");
        assert!(c.rows <= 1 || c.row_stride >= c.cols, "rows of c overlap: {} < {}", c.row_stride, c.cols);
        if c.rows == 0 || c.cols == 0 {
            return None;
        }
        let start = match c.data {
            SliceMut::F32(s) => TargetStart::F32(s.as_mut_ptr()),
            SliceMut::Bf16(s) => TargetStart::Bf16(s.as_mut_ptr()),
        };
        Some(Product { kernel, alpha, a, b, accumulate, c: Target { start, row_stride: c.row_stride } })
    }

    /// Blocks large enough to make packing cheap, and enough of them to keep all threads busy.
    pub(super) fn plan(&self, threads: usize) -> Plan {
        let shape = (self.a.rows, self.b.cols);
        if few_rows::applies(self) {
            return Plan { shape, block: (shape.0, few_rows::cols_per_task(self, threads)) };
        }
        let (tile_rows, width) = (self.kernel.rows, self.kernel.width());
        let split = |n: usize, parts: usize, unit: usize| n.div_ceil(parts).next_multiple_of(unit);
        let max_rows = self.max_rows();
        let (mut rows, mut cols) = (split(shape.0, shape.0.div_ceil(max_rows), tile_rows), MAX_COLS);
        let tasks = |rows: usize, cols: usize| shape.0.div_ceil(rows) * shape.1.div_ceil(cols);
        while threads > 1 && tasks(rows, cols) < 4 * threads && cols > 2 * width {
            cols = split(cols, 2, width);
        }
        while threads > 1 && tasks(rows, cols) < 2 * threads && rows > MIN_ROWS.next_multiple_of(tile_rows) {
            rows = split(rows, 2, tile_rows);
        }
        Plan { shape, block: (rows.min(max_rows), cols) }
    }

    /// The rows of `a` that scratch has room for, in whole tiles.
    fn max_rows(&self) -> usize {
        let kernel = self.kernel;
        let rows = (A_BYTES / (kernel.depth * kernel.packed.size())).min(SUMS / MAX_COLS);
        rows - rows % kernel.rows
    }

    /// Computes one block on this thread.
    pub(super) fn compute(&self, block: Block) {
        // SAFETY: `new` checked the operands, `plan` made the block; different blocks do not overlap in `c`.
        scratch::with(|scratch| unsafe {
            if few_rows::applies(self) {
                few_rows::compute(self, block, scratch);
            } else {
                self.compute_tiles(block, scratch);
            }
        });
    }

    /// The `k` of a block: equal parts of `K` as far as whole vectors allow.
    fn depth(&self) -> usize {
        let parts = self.a.cols.div_ceil(self.kernel.depth).max(1);
        self.a.cols.div_ceil(parts).next_multiple_of(Kernel::DEPTH_STEP).max(Kernel::DEPTH_STEP)
    }

    /// # Safety
    /// The block is one of [`Product::plan`]'s, and nobody else touches that part of `c`.
    unsafe fn compute_tiles(&self, block: Block, scratch: &mut Scratch) {
        let (kernel, depth, end) = (self.kernel, self.depth(), self.a.cols);
        let rows = block.rows.len().next_multiple_of(kernel.rows);
        let stride = depth * kernel.packed.size();
        assert!(rows * stride <= A_BYTES && kernel.width() * stride <= B_BYTES, "{block:?} exceeds scratch");
        assert!(rows * block.cols.len().next_multiple_of(kernel.lanes) <= SUMS, "{block:?} exceeds scratch");
        let (a_packed, b_packed, all_sums) = scratch.pointers();
        for k in (0..end.max(1)).step_by(depth).map(|k| k..end.min(k + depth)) {
            let groups = k.len().div_ceil(kernel.group());
            // SAFETY: by the assertion above, scratch has room for what is packed.
            unsafe { (kernel.pack_a)(self.a.view(block.rows.clone(), k.clone()), rows, stride, a_packed) };
            for panel in panels(kernel, &block.cols) {
                let (tile, width) = self.tile_for(panel.len());
                // SAFETY: as above.
                unsafe { (kernel.pack_b)(self.b.view(k.clone(), panel.clone()), width, b_packed) };
                let mut prefetch = self.prefetch(&block, &k, panel.end, depth, rows / kernel.rows);
                for row in (0..rows).step_by(kernel.rows) {
                    prefetch.step();
                    let kept =
                        if depth >= end { 0 } else { rows * (panel.start - block.cols.start) + row * width };
                    // SAFETY: the tile's rows of `a` and panel of `b` are packed; sums have room for all tiles of
                    // the block, and the tile's valid part lies inside `c`.
                    unsafe {
                        let sums = all_sums.add(kept);
                        tile(groups, a_packed.add(row * stride), stride, b_packed, sums, k.start > 0);
                        if k.end == end {
                            let valid = kernel.rows.min(block.rows.len() - row);
                            let c = self.c.at(block.rows.start + row, panel.start);
                            (kernel.store)(sums, width, valid, panel.len(), self.alpha, self.accumulate, c);
                        }
                    }
                }
            }
        }
    }

    fn tile_for(&self, cols: usize) -> (super::kernel::Tile, usize) {
        let wide = cols > self.kernel.lanes;
        (self.kernel.tiles[wide as usize], if wide { self.kernel.width() } else { self.kernel.lanes })
    }

    /// What the panel after the one that ends at column `at` will read of `b`, to be asked for in `steps` steps.
    fn prefetch(&self, block: &Block, k: &Range<usize>, at: usize, depth: usize, steps: usize) -> Prefetch {
        let (k, cols) = if at < block.cols.end {
            (k.clone(), at..block.cols.end.min(at + self.kernel.width()))
        } else {
            let next = k.end..self.a.cols.min(k.end + depth);
            (next, block.cols.start..block.cols.end.min(block.cols.start + self.kernel.width()))
        };
        Prefetch::new(self.b.view(k, cols), steps)
    }
}

/// The panels of these columns.
fn panels(kernel: &Kernel, cols: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let (end, width) = (cols.end, kernel.width());
    cols.clone().step_by(width).map(move |start| start..end.min(start + width))
}

/// One past the last element's index.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    let last = (rows - 1).checked_mul(row_stride).zip((cols - 1).checked_mul(col_stride));
    last.and_then(|(i, j)| i.checked_add(j)?.checked_add(1)).expect("size of a factor overflows")
}

impl Operand<'_> {
    fn len(&self) -> usize {
        match self.data {
            Slice::F32(s) => s.len(),
            Slice::Bf16(s) => s.len(),
        }
    }

    /// A part of it.
    pub(super) fn view(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let offset = rows.start * self.row_stride + cols.start * self.col_stride;
        let empty = rows.is_empty() || cols.is_empty();
        let data = match self.data {
            Slice::F32(s) => Slice::F32(if empty { &[] } else { &s[offset..] }),
            Slice::Bf16(s) => Slice::Bf16(if empty { &[] } else { &s[offset..] }),
        };
        Operand { data, rows: rows.len(), cols: cols.len(), ..self }
    }
}

impl OperandMut<'_> {
    fn len(&self) -> usize {
        match &self.data {
            SliceMut::F32(s) => s.len(),
            SliceMut::Bf16(s) => s.len(),
        }
    }
}

/// Asks for the cache lines of a part of `b` a few at a time, while the panel before it is multiplied: weights are
/// read from memory in short runs, which no processor guesses by itself.
struct Prefetch {
    start: *const u8,
    runs: usize,
    run_bytes: usize,
    stride: usize,
    run: usize,
    offset: usize,
    lines_per_step: usize,
}

impl Prefetch {
    fn new(b: Operand<'_>, steps: usize) -> Self {
        let (start, size): (*const u8, usize) = match b.data {
            Slice::F32(s) => (s.as_ptr().cast(), 4),
            Slice::Bf16(s) => (s.as_ptr().cast(), 2),
        };
        let (runs, run, stride) =
            if b.row_stride == 1 { (b.cols, b.rows, b.col_stride) } else { (b.rows, b.cols, b.row_stride) };
        let lines = runs * (run * size).div_ceil(64);
        let lines_per_step = lines.div_ceil(steps);
        Prefetch {
            start,
            runs,
            run_bytes: run * size,
            stride: stride * size,
            run: 0,
            offset: 0,
            lines_per_step,
        }
    }

    #[inline]
    fn step(&mut self) {
        for _ in 0..self.lines_per_step {
            if self.run == self.runs || self.run_bytes == 0 {
                return;
            }
            prefetch(self.start.wrapping_add(self.run * self.stride + self.offset));
            self.offset += 64;
            if self.offset >= self.run_bytes {
                (self.offset, self.run) = (0, self.run + 1);
            }
        }
    }
}

#[inline]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is only a hint, and SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
