//! A product: its check, how it is cut into tasks, and how a task computes its block of `c`.
//!
//! Element `(i, j)` of `c` is always summed in the same order: within blocks of `K` that depend on `K` alone
//! ([`Product::depth`]), one block after the other. Cutting only decides which thread does it, and when.

use std::ops::Range;

use super::kernel::{Kernel, Target, TargetStart};
use super::scratch::{self, A_BYTES, B_BYTES, SHARED_A_BYTES, SHARED_SUMS, SUMS};
use super::{Operand, OperandMut, Right, few_rows, portable};
use crate::cpu::{Pool, simd};
use crate::matrix::{Slice, SliceMut};

/// Where `a` is packed for all tasks: at most this many rows in a block, for which a panel of `b` is packed once ...
const SHARED_ROWS: usize = 512;
/// ... and this many columns: the block's sums stay in the second-level cache.
const SHARED_COLS: usize = 128;
/// Where each task packs its own `a`: at most this many rows in a block ...
const OWN_ROWS: usize = 256;
/// ... and this many columns, for which `a` is packed once.
const OWN_COLS: usize = SUMS / OWN_ROWS;
/// Blocks are not made of fewer rows than this for the sake of busy threads.
const MIN_ROWS: usize = 64;

/// Who computes a product's tasks.
pub(super) enum Team<'a> {
    /// The calling thread.
    Alone,
    /// All threads of a pool.
    Pool(&'a Pool),
}

impl Team<'_> {
    pub(super) fn threads(&self) -> usize {
        match self {
            Team::Alone => 1,
            Team::Pool(pool) => pool.threads(),
        }
    }

    pub(super) fn run(&self, tasks: usize, body: impl Fn(usize) + Sync) {
        match self {
            Team::Alone => (0..tasks).for_each(body),
            Team::Pool(pool) => pool.run(tasks, |task, _| body(task)),
        }
    }
}

/// A product whose shapes are checked.
pub(super) struct Product<'a> {
    pub(super) kernel: &'static Kernel,
    pub(super) alpha: f32,
    pub(super) a: Operand<'a>,
    pub(super) b: Right<'a>,
    /// What goes into the same sums.
    pub(super) update: Option<Update<'a>>,
    pub(super) accumulate: bool,
    pub(super) c: Target,
}

// SAFETY: the operands are shared slices. `c` and an update's `s` come from exclusive borrows that live as long as the
// product. Tasks write different blocks of them (`Grid::block`, strips of rows), and `s` is read only where it was written.
unsafe impl Sync for Product<'_> {}

/// A low-rank update: `s second` is added to the product, where `s = scale * a first`.
#[derive(Clone, Copy)]
pub(super) struct Update<'a> {
    /// What makes `s`; nothing if it is there.
    first: Option<Right<'a>>,
    scale: f32,
    s: Target,
    /// Columns of `s`.
    pub(super) rank: usize,
    pub(super) second: Right<'a>,
}

impl<'a> Update<'a> {
    /// Some rows of `s`.
    ///
    /// # Safety
    /// There is one at least, and they are written and not written any more.
    pub(super) unsafe fn s(&self, rows: Range<usize>) -> Operand<'a> {
        let Target { row_stride, .. } = self.s;
        let len = (rows.len() - 1) * row_stride + self.rank;
        // SAFETY: as the caller promises; `Product::new` checked the shape.
        let data = unsafe {
            match self.s.at(rows.start, 0).start {
                TargetStart::F32(p) => Slice::F32(std::slice::from_raw_parts(p, len)),
                TargetStart::Bf16(p) => Slice::Bf16(std::slice::from_raw_parts(p, len)),
            }
        };
        Operand { data, rows: rows.len(), cols: self.rank, row_stride, col_stride: 1 }
    }
}

/// A part of `c`.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

/// A part of `c` cut into numbered blocks of at most `rows` x `cols`.
#[derive(Debug)]
struct Grid {
    whole: Block,
    rows: usize,
    cols: usize,
}

impl Grid {
    fn row_blocks(&self) -> usize {
        self.whole.rows.len().div_ceil(self.rows)
    }

    fn blocks(&self) -> usize {
        self.row_blocks() * self.whole.cols.len().div_ceil(self.cols)
    }

    /// A block by its number. Neighbours share columns of `b`, which the second one finds in a shared cache.
    fn block(&self, index: usize) -> Block {
        let part = |index: usize, size: usize, whole: &Range<usize>| {
            let start = whole.start + index * size;
            start..whole.end.min(start + size)
        };
        let rows = part(index % self.row_blocks(), self.rows, &self.whole.rows);
        Block { rows, cols: part(index / self.row_blocks(), self.cols, &self.whole.cols) }
    }
}

/// Some rows of `a` over some blocks of `K`, packed for all tasks: one block of `K` after the other, in each all rows.
struct PackedA {
    start: *mut u8,
    rows: Range<usize>,
    k_blocks: Range<usize>,
    /// Where `K` is too long to be packed at once: the sums of these rows and all columns, block by block of `c`.
    sums: Option<*mut f32>,
}

// SAFETY: tasks that pack write different parts of it, tasks that multiply only read it, and `Team::run` stands
// between the ones and the others. Sums are of blocks of `c`, one task each.
unsafe impl Sync for PackedA {}

impl<'a> Product<'a> {
    /// Checks shapes, strides and lengths; `None` if `c` is empty.
    pub(super) fn new(
        kernel: &'static Kernel,
        alpha: f32,
        (a, b): (Operand<'a>, Right<'a>),
        update: Option<super::Update<'a>>,
        accumulate: bool,
        c: OperandMut<'a>,
    ) -> Option<Self> {
        let check = |a: (usize, usize), b: &Right<'_>, c: (usize, usize)| {
            assert_eq!((a.0, b.cols(), a.1), (c.0, c.1, b.rows()), "shapes of a product");
            if let Right::Dense(b) = b {
                b.check("b");
            }
        };
        check((a.rows, a.cols), &b, (c.rows, c.cols));
        a.check("a");
        let update = update.map(|super::Update { first, scale, s, second }| {
            check((s.rows, s.cols), &second, (c.rows, c.cols));
            if let Some(first) = &first {
                check((a.rows, a.cols), first, (s.rows, s.cols));
            }
            Update { first, scale, rank: s.cols, s: s.target("s"), second }
        });
        if c.rows == 0 || c.cols == 0 {
            return None;
        }
        let (cols, c) = (c.cols, c.target("c"));
        let product = Product { kernel, alpha, a, b, update, accumulate, c };
        match b {
            // Packed rows of `a` would have to be turned, for one narrow panel: the other way round they are the panels.
            Right::Dense(b) if cols <= kernel.lanes && a.col_stride != 1 && update.is_none() => {
                let c = Target { row_stride: c.col_stride, col_stride: c.row_stride, ..c };
                Some(Product { a: b.transposed(), b: a.transposed().into(), c, ..product })
            }
            _ => Some(product),
        }
    }

    /// Computes `c`.
    pub(super) fn run(&self, team: &Team<'_>) {
        let (rows, cols) = (self.a.rows, self.b.cols());
        let whole = Block { rows: 0..rows, cols: 0..cols };
        if few_rows::applies(self) {
            self.make_s(team);
            return few_rows::run(self, team);
        }
        if let Some((part_rows, part_k_blocks)) = self.parts() {
            let in_parts = part_k_blocks < self.k_blocks();
            let makes_s = !in_parts && self.packed_serves_s();
            if !makes_s {
                self.make_s(team);
            }
            scratch::with_shared(|start, sums| {
                for rows in chunks(0..rows, part_rows) {
                    for k_blocks in chunks(0..self.k_blocks(), part_k_blocks) {
                        let (rows, sums) = (rows.clone(), in_parts.then_some(sums));
                        let packed = PackedA { start, rows, k_blocks, sums };
                        self.run_packed(team, &packed, makes_s);
                    }
                }
            });
        } else {
            self.make_s(team);
            // Few blocks share rows of `a`.
            let grid = self.grid(whole, OWN_ROWS - OWN_ROWS % self.kernel.rows, OWN_COLS, team.threads());
            // SAFETY: blocks of a grid do not overlap in `c`.
            team.run(grid.blocks(), |task| unsafe { self.compute(grid.block(task), None) });
        }
    }

    /// The product that makes an update's `s`, if it is to be made.
    fn product_of_s(&self) -> Option<Product<'a>> {
        let Update { first, scale, s, .. } = self.update?;
        Some(Product { alpha: scale, b: first?, update: None, accumulate: false, c: s, ..*self })
    }

    /// Makes an update's `s`, on its own.
    fn make_s(&self, team: &Team<'_>) {
        if let Some(product) = self.product_of_s() {
            product.run(team);
        }
    }

    /// Whether `s` can be made from the rows of `a` as they are packed for the product itself.
    fn packed_serves_s(&self) -> bool {
        self.product_of_s().is_some_and(|product| {
            let cols = product.b.cols().next_multiple_of(self.kernel.lanes);
            product.row_bytes() == self.row_bytes() && self.strip_rows() * cols <= SUMS
        })
    }

    /// How many rows of `a`, over how many blocks of `K`, are packed for all tasks at once, if they are: as many rows as
    /// there is room for, or where `K` is too long for a block's rows, these and a part of `K`.
    fn parts(&self) -> Option<(usize, usize)> {
        let (rows, cols, unit) = (self.a.rows, self.b.cols(), self.kernel.rows);
        if cols <= SHARED_COLS {
            return None;
        }
        let block_rows = SHARED_ROWS - SHARED_ROWS % unit;
        let room = SHARED_A_BYTES / (self.k_blocks() * self.row_bytes());
        if room >= rows {
            return Some((rows, self.k_blocks()));
        }
        if room >= block_rows {
            return Some((room - room % block_rows, self.k_blocks()));
        }
        let with_sums = SHARED_SUMS / cols.next_multiple_of(self.kernel.lanes);
        let part_rows = block_rows.min(rows.next_multiple_of(unit)).min(with_sums - with_sums % unit);
        let part_k_blocks = SHARED_A_BYTES / (part_rows.max(unit) * self.row_bytes());
        (part_rows >= MIN_ROWS.min(rows)).then_some((part_rows, part_k_blocks))
    }

    /// Packs some rows of `a`, then computes these rows of `c`, or goes on with their sums. A strip of rows whose `s` is to be
    /// made is multiplied by the update's first factor as soon as it is packed.
    fn run_packed(&self, team: &Team<'_>, a: &PackedA, makes_s: bool) {
        let strips: Vec<_> = chunks(a.rows.clone(), self.strip_rows()).collect();
        // SAFETY: strips are whole tiles, so that each task writes rows of its own, all of which have room.
        let pack = |k_block: usize, rows: &Range<usize>| unsafe {
            let padded = rows.len().next_multiple_of(self.kernel.rows);
            let to = a.at(self, k_block, rows.start);
            (self.kernel.pack_a)(self.left(k_block, rows.clone()), padded, self.tile_bytes(), to);
        };
        match self.product_of_s().filter(|_| makes_s) {
            None => team.run(strips.len() * a.k_blocks.len(), |task| {
                pack(a.k_blocks.start + task / strips.len(), &strips[task % strips.len()]);
            }),
            Some(product) => team.run(strips.len(), |task| {
                let (rows, own) = (&strips[task], product.k_blocks());
                (0..own).for_each(|k_block| pack(k_block, rows));
                let of_s = PackedA { start: a.start, rows: a.rows.clone(), k_blocks: 0..own, sums: None };
                // SAFETY: these rows of `s` are this task's, those of `a` are packed as `product` packs them.
                unsafe {
                    product.compute(Block { rows: rows.clone(), cols: 0..product.b.cols() }, Some(&of_s))
                };
                (own..self.k_blocks()).for_each(|k_block| pack(k_block, rows));
            }),
        }
        let part = Block { rows: a.rows.clone(), cols: 0..self.b.cols() };
        let grid = self.grid(part, SHARED_ROWS - SHARED_ROWS % self.kernel.rows, SHARED_COLS, team.threads());
        // SAFETY: blocks of a grid do not overlap in `c`, and all of their rows are packed.
        team.run(grid.blocks(), |task| unsafe { self.compute(grid.block(task), Some(a)) });
    }

    /// Rows that a task packs for all tasks: whole tiles.
    fn strip_rows(&self) -> usize {
        MIN_ROWS.next_multiple_of(self.kernel.rows)
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

    /// The `k` of a block of `K`: equal parts of it as far as whole vectors allow.
    fn depth(&self, k: usize) -> usize {
        let parts = k.div_ceil(self.kernel.depth).max(1);
        k.div_ceil(parts).next_multiple_of(Kernel::DEPTH_STEP).max(Kernel::DEPTH_STEP)
    }

    /// Blocks of `K`; one that is empty if it is 0, so that `c` is written.
    fn blocks_of(&self, k: usize) -> usize {
        k.div_ceil(self.depth(k)).max(1)
    }

    /// Blocks of the factors' `K`, then of the update's.
    fn k_blocks(&self) -> usize {
        self.blocks_of(self.a.cols) + self.update.map_or(0, |update| self.blocks_of(update.rank))
    }

    /// The update that a block of `K` belongs to, if it does, and what of the factors' or its own `K` it is.
    fn place(&self, k_block: usize) -> (Option<Update<'a>>, Range<usize>) {
        let own = self.blocks_of(self.a.cols);
        let (update, index, k) = match self.update {
            Some(update) if k_block >= own => (Some(update), k_block - own, update.rank),
            _ => (None, k_block, self.a.cols),
        };
        let depth = self.depth(k);
        (update, index * depth..k.min((index + 1) * depth))
    }

    /// Some rows of the left factor over a block of `K`.
    ///
    /// # Safety
    /// If it is a block of an update, these rows of `s` are written and not written any more.
    unsafe fn left(&self, k_block: usize, rows: Range<usize>) -> Operand<'a> {
        let (update, ks) = self.place(k_block);
        match update {
            // SAFETY: as the caller promises.
            Some(update) => unsafe { update.s(rows.clone()) }.view(0..rows.len(), ks),
            None => self.a.view(rows, ks),
        }
    }

    /// Some columns of the right factor over a block of `K`.
    fn right(&self, k_block: usize, cols: Range<usize>) -> Right<'a> {
        let (update, ks) = self.place(k_block);
        update.map_or(self.b, |update| update.second).view(ks, cols)
    }

    /// Bytes of a packed row of `a` in a block of `K`.
    fn row_bytes(&self) -> usize {
        let update = self.update.map_or(0, |update| self.depth(update.rank));
        self.depth(self.a.cols).max(update) * self.kernel.packed.size()
    }

    /// Bytes of a packed tile of `a` in a block of `K`.
    fn tile_bytes(&self) -> usize {
        self.row_bytes() * self.kernel.rows
    }

    /// Computes one block on this thread, with rows of `a` that are packed, or packing them.
    ///
    /// # Safety
    /// Nobody else touches this part of `c` now.
    unsafe fn compute(&self, block: Block, packed: Option<&PackedA>) {
        let (kernel, row_bytes) = (self.kernel, self.row_bytes());
        let rows = block.rows.len().next_multiple_of(kernel.rows);
        assert!(packed.is_some() || rows * row_bytes <= A_BYTES, "{block:?} exceeds the scratch of a");
        assert!(
            kernel.width() * row_bytes <= B_BYTES,
            "a panel of {} columns exceeds the scratch of b",
            kernel.width()
        );
        assert!(rows * block.cols.len().next_multiple_of(kernel.lanes) <= SUMS, "{block:?} exceeds the sums");
        let k_blocks = packed.map_or(0..self.k_blocks(), |packed| packed.k_blocks.clone());
        scratch::with(|scratch| {
            let (own_a, b, own_sums) = scratch.pointers();
            let values = scratch.values();
            // SAFETY: there is room for the sums of all blocks.
            let sums = unsafe { packed.and_then(|packed| packed.sums_of(self, &block)).unwrap_or(own_sums) };
            for k_block in k_blocks {
                // SAFETY: the rows are packed, or there is room to pack them.
                let a = unsafe { packed.map_or(own_a, |packed| packed.at(self, k_block, block.rows.start)) };
                if packed.is_none() {
                    // SAFETY: as above; an update's `s` was made before.
                    unsafe {
                        let view = self.left(k_block, block.rows.clone());
                        (kernel.pack_a)(view, rows, self.tile_bytes(), a);
                    }
                }
                for cols in chunks(block.cols.clone(), kernel.width()) {
                    // SAFETY: `a` is packed, scratch has room for a panel and for the block's sums.
                    unsafe { self.compute_panel(&block, k_block, cols, a, b, values, sums) };
                }
            }
        });
    }

    /// Multiplies the packed rows of a block by one panel of `b`, over one block of `K`.
    ///
    /// # Safety
    /// `a` holds the block's packed rows, `b` and `values` have room for a panel and `sums` for the block's sums.
    unsafe fn compute_panel(
        &self,
        block: &Block,
        k_block: usize,
        cols: Range<usize>,
        a: *const u8,
        b: *mut u8,
        values: *mut u8,
        sums: *mut f32,
    ) {
        let (kernel, right) = (self.kernel, self.right(k_block, cols.clone()));
        let vectors = cols.len().div_ceil(kernel.lanes);
        let (tile, width) = (kernel.tiles[vectors - 1], vectors * kernel.lanes);
        let (groups, is_last) = (right.rows().div_ceil(kernel.group()), k_block + 1 == self.k_blocks());
        let rows = block.rows.len().next_multiple_of(kernel.rows);
        // Sums that are written out at once need not be kept: all tiles share a place in the first-level cache.
        let keep = self.k_blocks() > 1;
        let panel_sums = if keep { rows * (cols.start - block.cols.start) } else { 0 };
        let row_bytes = self.row_bytes();
        let store = if self.c.col_stride == 1 { kernel.store } else { portable::store_transposed };
        // SAFETY: there is room for the panel, and for its values where they stand in four bits.
        unsafe {
            let values = match right {
                Right::Dense(values) => values,
                Right::FourBit(codes) => codes.values(kernel, values),
            };
            (kernel.pack_b)(values, width, b);
        }
        let mut prefetch = Prefetch::new(self.next_panel(block, k_block, cols.end), rows / kernel.rows);
        for row in (0..rows).step_by(kernel.rows) {
            prefetch.step();
            // SAFETY: the tile's rows of `a` and panel of `b` are packed, its sums have room, and its valid part
            // lies inside `c`.
            unsafe {
                let sums = sums.add(panel_sums + if keep { row * width } else { 0 });
                tile(groups, a.add(row * row_bytes), b, sums, width, k_block > 0);
                if is_last {
                    let valid = kernel.rows.min(block.rows.len() - row);
                    let c = self.c.at(block.rows.start + row, cols.start);
                    store(sums, width, valid, cols.len(), self.alpha, self.accumulate, c);
                }
            }
        }
    }

    /// What is packed of `b` after the panel of this block of `K` that ends at column `end`.
    fn next_panel(&self, block: &Block, k_block: usize, end: usize) -> Right<'a> {
        let (k_block, start) =
            if end < block.cols.end { (k_block, end) } else { (k_block + 1, block.cols.start) };
        if k_block == self.k_blocks() {
            return self.b.view(0..0, 0..0);
        }
        self.right(k_block, start..block.cols.end.min(start + self.kernel.width()))
    }
}

impl PackedA {
    /// Where a row of `a` is packed in a block of `K`.
    ///
    /// # Safety
    /// It is one of these rows, and a block of `K` of this product.
    unsafe fn at(&self, product: &Product<'_>, k_block: usize, row: usize) -> *mut u8 {
        let rows = self.rows.len().next_multiple_of(product.kernel.rows);
        let k_block = k_block - self.k_blocks.start;
        // SAFETY: `Product::parts` took no more than there is room for.
        unsafe { self.start.add((k_block * rows + row - self.rows.start) * product.row_bytes()) }
    }

    /// Where the sums of a block are kept from one part of `K` to the next, if there are several.
    ///
    /// # Safety
    /// It is a block of these rows.
    unsafe fn sums_of(&self, product: &Product<'_>, block: &Block) -> Option<*mut f32> {
        let rows = self.rows.len().next_multiple_of(product.kernel.rows);
        let cols = block.cols.len().next_multiple_of(product.kernel.lanes);
        // The columns before this block's have all rows, its own columns the rows before it.
        let before = rows * block.cols.start + (block.rows.start - self.rows.start) * cols;
        // SAFETY: `Product::parts` took no more rows than there is room for.
        self.sums.map(|sums| unsafe { sums.add(before) })
    }
}

/// The parts of a range, of `size` but for the last.
fn chunks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |start| start..range.end.min(start + size))
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
    pub(super) fn check(&self, name: &str) {
        assert!(self.row_stride == 1 || self.col_stride == 1, "one stride of {name} is 1");
        let end = extent(self.rows, self.cols, self.row_stride, self.col_stride);
        assert!(end <= self.len(), "{name} ends at element {end} of {}", self.len());
    }

    fn len(&self) -> usize {
        match self.data {
            Slice::F32(s) => s.len(),
            Slice::Bf16(s) => s.len(),
        }
    }

    pub(crate) fn transposed(self) -> Self {
        let Operand { data, rows, cols, row_stride, col_stride } = self;
        Operand { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
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

impl Right<'_> {
    pub(super) fn rows(&self) -> usize {
        match self {
            Right::Dense(b) => b.rows,
            Right::FourBit(b) => b.rows,
        }
    }

    pub(super) fn cols(&self) -> usize {
        match self {
            Right::Dense(b) => b.cols,
            Right::FourBit(b) => b.cols,
        }
    }

    /// A part of it.
    pub(super) fn view(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        match self {
            Right::Dense(b) => Right::Dense(b.view(rows, cols)),
            Right::FourBit(b) => Right::FourBit(b.view(rows, cols)),
        }
    }
}

impl OperandMut<'_> {
    /// Where it is, checked.
    fn target(self, name: &str) -> Target {
        let OperandMut { data, rows, cols, row_stride } = self;
        let (start, len) = match data {
            SliceMut::F32(s) => (TargetStart::F32(s.as_mut_ptr()), s.len()),
            SliceMut::Bf16(s) => (TargetStart::Bf16(s.as_mut_ptr()), s.len()),
        };
        let end = extent(rows, cols, row_stride, 1);
        assert!(end <= len, "{name} ends at element {end} of {len}");
        assert!(rows <= 1 || row_stride >= cols, "rows of {name} overlap: {row_stride} < {cols}");
        Target { start, row_stride, col_stride: 1 }
    }
}

/// Asks for the cache lines of a part of `b` a few at a time, while something else is multiplied: weights are read from
/// memory in short runs, which no processor guesses by itself.
pub(super) struct Prefetch {
    start: *const u8,
    runs: usize,
    run_bytes: usize,
    stride: usize,
    run: usize,
    offset: usize,
    lines_per_step: usize,
}

impl Prefetch {
    /// To be done in so many steps.
    pub(super) fn new(b: Right<'_>, steps: usize) -> Self {
        let (start, runs, run_bytes, stride) = match b {
            Right::FourBit(b) => b.bytes(),
            Right::Dense(b) => {
                let (start, size): (*const u8, usize) = match b.data {
                    Slice::F32(s) => (s.as_ptr().cast(), 4),
                    Slice::Bf16(s) => (s.as_ptr().cast(), 2),
                };
                let (runs, run, stride) = if b.row_stride == 1 {
                    (b.cols, b.rows, b.col_stride)
                } else {
                    (b.rows, b.cols, b.row_stride)
                };
                (start, runs, run * size, stride * size)
            }
        };
        let lines_per_step = (runs * run_bytes.div_ceil(64)).div_ceil(steps);
        Prefetch { start, runs, run_bytes, stride, run: 0, offset: 0, lines_per_step }
    }

    #[inline]
    pub(super) fn step(&mut self) {
        for _ in 0..self.lines_per_step {
            if self.run == self.runs || self.run_bytes == 0 {
                return;
            }
            simd::prefetch(self.start.wrapping_add(self.run * self.stride + self.offset));
            self.offset += 64;
            if self.offset >= self.run_bytes {
                (self.offset, self.run) = (0, self.run + 1);
            }
        }
    }
}
