//! How a product is cut, and how its parts lie in scratch: the arithmetic of rows, bytes and sums, all of it
//! and nothing else.
//!
//! Packed rows are whole tiles and columns of sums whole vectors, so that a part takes up more than its shape
//! says. What fits is decided here, by what is taken up; [`super::scratch::Room`] holds every use against the
//! memory that there is.

use std::ops::Range;

use super::coded::FewRows;
use super::few_rows::{COLS, FOUR_BIT_DEPTH};
use super::kernel::Kernel;
use super::scratch::{B_BYTES, SHARED_A_BYTES, SHARED_SUMS, SUMS};

/// Where `a` is packed for all tasks: at most this many rows in a block, for which a panel of `b` is packed
/// once ...
const SHARED_ROWS: usize = 512;
/// ... and this many columns: the block's sums stay in the second-level cache.
const SHARED_COLS: usize = 128;
/// Where each task packs its own `a`: at most this many rows in a block ...
const OWN_ROWS: usize = 256;
/// ... and this many columns, for which `a` is packed once.
const OWN_COLS: usize = SUMS / OWN_ROWS;
/// Blocks are not made of fewer rows than this for the sake of busy threads.
const MIN_ROWS: usize = 64;

/// A part of `c`.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

/// A part of `c` cut into numbered blocks of at most `rows` x `cols`.
#[derive(Debug)]
pub(super) struct Grid {
    whole: Block,
    rows: usize,
    cols: usize,
}

impl Grid {
    fn row_blocks(&self) -> usize {
        self.whole.rows.len().div_ceil(self.rows)
    }

    pub(super) fn blocks(&self) -> usize {
        self.row_blocks() * self.whole.cols.len().div_ceil(self.cols)
    }

    /// A block by its number. Neighbours share columns of `b`, which the second one finds in a shared cache.
    pub(super) fn block(&self, index: usize) -> Block {
        let part = |index: usize, size: usize, whole: &Range<usize>| {
            let start = whole.start + index * size;
            start..whole.end.min(start + size)
        };
        let rows = part(index % self.row_blocks(), self.rows, &self.whole.rows);
        Block { rows, cols: part(index / self.row_blocks(), self.cols, &self.whole.cols) }
    }
}

/// Rows of `a` over blocks of `K` that are packed for all tasks at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shared {
    /// At most so many rows at once, whole tiles.
    pub(super) rows: usize,
    /// A part of the blocks of `K`: all of them, or their sums are kept from one part to the next.
    pub(super) k_blocks: usize,
}

/// A product's sizes: `a [rows, depth]`, `b [depth, cols]`, and an update of some rank, or of rank 0 if there
/// is none.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    kernel: &'static Kernel,
    rows: usize,
    cols: usize,
    depth: usize,
    rank: usize,
}

impl Layout {
    pub(super) fn new(
        kernel: &'static Kernel,
        (rows, cols): (usize, usize),
        depth: usize,
        rank: usize,
    ) -> Self {
        Layout { kernel, rows, cols, depth, rank }
    }

    /// Packed rows, or rows of sums, that so many take up: whole tiles.
    pub(super) fn whole_tiles(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.kernel.rows)
    }

    /// Columns of sums that so many take up: whole vectors.
    pub(super) fn whole_vectors(&self, cols: usize) -> usize {
        cols.next_multiple_of(self.kernel.lanes)
    }

    /// The `k` of a block of `K`: equal parts of it as far as whole vectors allow.
    fn block_depth(&self, k: usize) -> usize {
        let parts = k.div_ceil(self.kernel.depth).max(1);
        k.div_ceil(parts).next_multiple_of(Kernel::DEPTH_STEP).max(Kernel::DEPTH_STEP)
    }

    /// Blocks of `K`; one that is empty if it is 0, so that `c` is written.
    fn blocks_of(&self, k: usize) -> usize {
        k.div_ceil(self.block_depth(k)).max(1)
    }

    /// Blocks of the factors' own `K`, which come first.
    pub(super) fn own_k_blocks(&self) -> usize {
        self.blocks_of(self.depth)
    }

    /// Blocks of the factors' `K`, then of the update's.
    pub(super) fn k_blocks(&self) -> usize {
        self.own_k_blocks() + if self.rank == 0 { 0 } else { self.blocks_of(self.rank) }
    }

    /// Whether a block of `K` is one of the update's, and what of the factors' or the update's `K` it is.
    pub(super) fn place(&self, k_block: usize) -> (bool, Range<usize>) {
        let own = self.own_k_blocks();
        let (is_update, index, k) = match k_block.checked_sub(own) {
            Some(index) => (true, index, self.rank),
            None => (false, k_block, self.depth),
        };
        let depth = self.block_depth(k);
        (is_update, index * depth..k.min((index + 1) * depth))
    }

    /// Bytes of a packed row of `a` in a block of `K`.
    pub(super) fn row_bytes(&self) -> usize {
        let update = if self.rank == 0 { 0 } else { self.block_depth(self.rank) };
        self.block_depth(self.depth).max(update) * self.kernel.packed.size()
    }

    /// Bytes of a packed tile of `a` in a block of `K`.
    pub(super) fn tile_bytes(&self) -> usize {
        self.row_bytes() * self.kernel.rows
    }

    /// Bytes of packed rows in a block of `K`.
    pub(super) fn packed_bytes(&self, rows: usize) -> usize {
        self.whole_tiles(rows) * self.row_bytes()
    }

    /// Bytes of a packed panel of so many columns of `b`, and of its values where it stands in four bits.
    pub(super) fn panel_bytes(&self, cols: usize) -> usize {
        self.whole_vectors(cols) * self.row_bytes()
    }

    /// Sums of a block of `c` that are kept from one block of `K` to the next.
    pub(super) fn sums(&self, rows: usize, cols: usize) -> usize {
        self.whole_tiles(rows) * self.whole_vectors(cols)
    }

    /// Rows that a task packs for all tasks: whole tiles.
    pub(super) fn strip_rows(&self) -> usize {
        self.whole_tiles(MIN_ROWS)
    }

    /// How much of `a` is packed for all tasks at once, if it is: as many rows as there is room for, or where
    /// `K` is too long for a block's rows, these and a part of `K`.
    pub(super) fn shared(&self) -> Option<Shared> {
        if self.cols <= SHARED_COLS {
            return None;
        }
        let (unit, k_blocks) = (self.kernel.rows, self.k_blocks());
        let tiles_of = |rows: usize| rows / unit * unit;
        let block_rows = self.whole_tiles(SHARED_ROWS);
        let room = tiles_of(SHARED_A_BYTES / (k_blocks * self.row_bytes()));
        if room >= block_rows.min(self.whole_tiles(self.rows)) {
            return Some(Shared { rows: self.equal_parts(room), k_blocks });
        }
        let with_sums = tiles_of(SHARED_SUMS / self.whole_vectors(self.cols));
        let rows = block_rows.min(self.whole_tiles(self.rows)).min(with_sums);
        if rows < MIN_ROWS.min(self.rows) {
            return None;
        }
        let rows = self.equal_parts(rows);
        Some(Shared { rows, k_blocks: (SHARED_A_BYTES / self.packed_bytes(rows)).min(k_blocks) })
    }

    /// Bytes of all of `a`, if it is packed for all tasks at once.
    pub(super) fn whole_bytes(&self) -> Option<usize> {
        let whole = self.shared()? == Shared { rows: self.whole_tiles(self.rows), k_blocks: self.k_blocks() };
        whole.then(|| self.k_blocks() * self.packed_bytes(self.rows))
    }

    /// Rows of the parts, whole tiles and at most so many in each, that all rows are cut into: each part
    /// packs `b` anew, which is a waste for a few rows that are left over.
    fn equal_parts(&self, most: usize) -> usize {
        self.whole_tiles(self.rows.div_ceil(self.rows.div_ceil(most)))
    }

    /// Most rows of a block whose `a` is packed for all tasks, whole tiles.
    fn shared_block_rows(&self) -> usize {
        SHARED_ROWS / self.kernel.rows * self.kernel.rows
    }

    /// Whether so many packed rows are one block over some columns.
    pub(super) fn is_one_block(&self, rows: usize) -> bool {
        rows <= self.shared_block_rows()
    }

    /// The blocks of so many rows that are packed for all tasks.
    pub(super) fn shared_grid(&self, rows: usize, threads: usize) -> Grid {
        let whole = Block { rows: 0..rows, cols: 0..self.cols };
        self.grid(whole, self.shared_block_rows(), SHARED_COLS, threads)
    }

    /// The blocks of the whole product where each task packs its own `a`: few of them share rows.
    pub(super) fn own_grid(&self, threads: usize) -> Grid {
        let max_rows = OWN_ROWS / self.kernel.rows * self.kernel.rows;
        self.grid(Block { rows: 0..self.rows, cols: 0..self.cols }, max_rows, OWN_COLS, threads)
    }

    /// Blocks as large as allowed, which makes packing cheap, but enough of them to keep all threads busy.
    fn grid(&self, whole: Block, max_rows: usize, max_cols: usize, threads: usize) -> Grid {
        let (unit, width) = (self.kernel.rows, self.kernel.width());
        let split = |n: usize, parts: usize, unit: usize| n.div_ceil(parts).next_multiple_of(unit);
        let (m, n) = (whole.rows.len(), whole.cols.len());
        let (mut rows, mut cols) = (split(m, m.div_ceil(max_rows), unit), max_cols);
        let blocks = |rows: usize, cols: usize| m.div_ceil(rows) * n.div_ceil(cols);
        while threads > 1 && blocks(rows, cols) < 4 * threads && cols > 2 * width {
            cols = split(cols, 2, width);
        }
        while threads > 1 && blocks(rows, cols) < 2 * threads && rows >= 2 * MIN_ROWS {
            rows = split(rows, 2, unit);
        }
        Grid { whole, rows, cols }
    }

    /// Whether the few rows of a product have room as packed tiles, its own and its update's.
    pub(super) fn few_rows_fit(&self) -> bool {
        self.few_rows_of_all_bytes() <= SHARED_A_BYTES
    }

    /// Bytes of the few rows of a product as packed tiles, its own and its update's.
    pub(super) fn few_rows_of_all_bytes(&self) -> usize {
        self.few_rows_bytes(self.depth) + self.few_rows_bytes(self.rank)
    }

    /// Bytes of a tile of a few packed rows over the whole of a depth: more than [`FewRows::pack`] writes.
    pub(super) fn few_rows_bytes(&self, depth: usize) -> usize {
        depth.next_multiple_of(FewRows::DEPTH_STEP) * self.kernel.packed.size() * self.kernel.rows
    }
}

// What a task needs beside its rows of `a` depends on no product.
const _: () = assert!(FOUR_BIT_DEPTH * COLS * 4 <= B_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::few_rows::{ROWS, WIDTH};
    use crate::cpu::gemm::kernel;
    use crate::cpu::gemm::scratch::A_BYTES;

    /// Numbers of rows on both sides of every border that the cutting of these products knows of.
    fn rows_near_borders(at: Layout) -> impl Iterator<Item = usize> {
        let of_row = at.row_bytes();
        let whole = SHARED_A_BYTES / (at.k_blocks() * of_row);
        let with_sums = SHARED_SUMS / at.whole_vectors(at.cols);
        let borders = [1, MIN_ROWS, SHARED_ROWS, whole, with_sums, A_BYTES / of_row];
        borders
            .into_iter()
            .flat_map(|border| [-7, -1, 0, 1, 7].map(|step| border.saturating_add_signed(step)))
    }

    fn check(at: Layout) {
        let what = || format!("{} x {} x {}, rank {}", at.rows, at.cols, at.depth, at.rank);
        let fits = |needed: usize, room: usize, name: &str| {
            assert!(needed <= room, "{name} takes up {needed}, there is room for {room}: {}", what());
        };
        let grids = match at.shared() {
            Some(shared) => {
                assert!(shared.rows > 0 && shared.k_blocks > 0, "nothing would be done: {}", what());
                assert!(shared.rows.is_multiple_of(at.kernel.rows), "half a tile: {}", what());
                assert!(shared.k_blocks <= at.k_blocks(), "more than there is: {}", what());
                fits(shared.k_blocks * at.packed_bytes(shared.rows), SHARED_A_BYTES, "packed a");
                if shared.k_blocks < at.k_blocks() {
                    fits(at.sums(shared.rows, at.cols), SHARED_SUMS, "sums of a part of K");
                }
                // Strips fill the rows one after the other: only the last one may end inside a tile.
                assert!(at.strip_rows().is_multiple_of(at.kernel.rows));
                let rows = at.whole_tiles(shared.rows.min(at.rows));
                [1, 2, 3, 16].map(|threads| (at.shared_grid(rows, threads), false))
            }
            None => [1, 2, 3, 16].map(|threads| (at.own_grid(threads), true)),
        };
        for (Grid { whole, rows, cols }, packs_own) in grids {
            let (rows, cols) = (rows.min(whole.rows.len()), cols.min(whole.cols.len()));
            fits(at.sums(rows, cols), SUMS, "sums of a block");
            if packs_own {
                fits(at.packed_bytes(rows), A_BYTES, "a of a block");
            }
        }
        fits(at.panel_bytes(at.kernel.width()), B_BYTES, "a panel of b");
        let (last_own, last) = (at.place(at.own_k_blocks() - 1), at.place(at.k_blocks() - 1));
        assert_eq!((last_own.0, last_own.1.end), (false, at.depth), "the end of K: {}", what());
        assert!(at.rank == 0 || (last.0 && last.1.end == at.rank), "the end of the rank: {}", what());
    }

    fn check_near_borders(kernel: &'static Kernel, depth: usize, ranks: &[usize]) {
        for (rank, cols) in ranks.iter().flat_map(|&rank| [129, 4096, 151_936].map(|cols| (rank, cols))) {
            let at = Layout::new(kernel, (0, cols), depth, rank);
            rows_near_borders(at).filter(|rows| *rows > 0).for_each(|rows| check(Layout { rows, ..at }));
        }
    }

    #[test]
    fn whatever_is_cut_has_room_for_every_kernel_and_depth_near_every_border_of_rows() {
        for kernel in kernel::all() {
            (0..=16384).for_each(|depth| check_near_borders(kernel, depth, &[0, 16]));
        }
    }

    #[test]
    fn whatever_is_cut_has_room_for_every_rank() {
        for kernel in kernel::all() {
            for depth in [64, 896, 2048, 4096, 4864, 8192, 11008, 14336] {
                let ranks: Vec<usize> = (0..=600).collect();
                check_near_borders(kernel, depth, &ranks);
            }
        }
    }

    #[test]
    fn few_rows_have_room_as_tiles_and_as_codes_want_them() {
        for kernel in kernel::all() {
            assert!(ROWS <= kernel.rows, "a tile holds the few rows");
            for depth in 1..=16384 {
                let at = Layout::new(kernel, (ROWS, 1), depth, 0);
                let tile = depth.next_multiple_of(Kernel::DEPTH_STEP) * kernel.packed.size() * kernel.rows;
                assert!(tile <= at.few_rows_bytes(depth), "a tile of {depth}");
                // `FewRows::pack` writes floats at most.
                let codes = ROWS * depth.next_multiple_of(FewRows::DEPTH_STEP) * 4;
                assert!(kernel.coded_rows.is_empty() || codes <= at.few_rows_bytes(depth), "rows of {depth}");
            }
        }
        // Sums of both pairs of factors, each twice.
        const { assert!(4 * ROWS * WIDTH <= SUMS) };
    }
}
