//! A product: its check, its tasks, and how a task computes its block of `c`.
//!
//! Element `(i, j)` of `c` is always summed in the same order: within blocks of `K` that depend on `K` alone
//! ([`Layout::place`]), one block after the other. Cutting only decides which thread does it, and when.

use std::ops::Range;

use super::kernel::{Kernel, Target, TargetStart};
use super::layout::{Block, Layout};
use super::scratch::{self, Room, Scratch};
use super::{Epilogue, Operand, OperandMut, Right, few_rows, portable};
use crate::cpu::{Pool, simd};
use crate::matrix::{Slice, SliceMut};

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
    pub(super) epilogue: Epilogue<'a>,
    pub(super) accumulate: bool,
    pub(super) c: Target,
}

// SAFETY: the operands are shared slices. `c` and an update's `s` come from exclusive borrows that live as
// long as the product. Tasks write different blocks of them (`Grid::block`, strips of rows), and `s` is read
// only where it was written.
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

/// Some rows of `a` over some blocks of `K`, packed for all tasks: one block of `K` after the other, in each
/// all rows.
struct PackedA {
    room: Room,
    rows: Range<usize>,
    k_blocks: Range<usize>,
    /// Where `K` is too long to be packed at once: the sums of these rows and all columns, block by block of
    /// `c`.
    sums: Option<Room>,
}

impl<'a> Product<'a> {
    /// Checks shapes, strides and lengths; `None` if `c` is empty.
    pub(super) fn new(
        kernel: &'static Kernel,
        alpha: f32,
        (a, b): (Operand<'a>, Right<'a>),
        update: Option<super::Update<'a>>,
        epilogue: Epilogue<'a>,
        accumulate: bool,
        c: OperandMut<'a>,
    ) -> Option<Self> {
        assert!(epilogue.is_none() || alpha == 1.0, "an epilogue of a product with a factor of {alpha}");
        for of_columns in [epilogue.scale, epilogue.bias].into_iter().flatten() {
            assert_eq!(of_columns.len(), c.cols, "an epilogue's values and columns");
        }
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
        // An update of rank 0 adds nothing.
        let update = update.filter(|update| update.rank > 0);
        let (cols, c) = (c.cols, c.target("c"));
        let product = Product { kernel, alpha, a, b, update, epilogue, accumulate, c };
        match b {
            // Packed rows of `a` would have to be turned, for one narrow panel: the other way round they are
            // the panels.
            Right::Dense(b)
                if cols <= kernel.lanes && a.col_stride != 1 && update.is_none() && epilogue.is_none() =>
            {
                let c = Target { row_stride: c.col_stride, col_stride: c.row_stride, ..c };
                Some(Product { a: b.transposed(), b: a.transposed().into(), c, ..product })
            }
            _ => Some(product),
        }
    }

    /// Its sizes.
    pub(super) fn layout(&self) -> Layout {
        let rank = self.update.map_or(0, |update| update.rank);
        Layout::new(self.kernel, (self.a.rows, self.b.cols()), self.a.cols, rank)
    }

    /// Computes `c`.
    pub(super) fn run(&self, team: &Team<'_>) {
        let layout = self.layout();
        if few_rows::applies(self) {
            self.make_s(team);
            return few_rows::run(self, team);
        }
        if let Some(shared) = layout.shared() {
            let in_parts = shared.k_blocks < layout.k_blocks();
            let makes_s = !in_parts && self.packed_serves_s();
            if !makes_s {
                self.make_s(team);
            }
            scratch::with_shared(|room, sums| {
                for rows in chunks(0..self.a.rows, shared.rows) {
                    for k_blocks in chunks(0..layout.k_blocks(), shared.k_blocks) {
                        let (rows, sums) = (rows.clone(), in_parts.then_some(sums));
                        let packed = PackedA { room, rows, k_blocks, sums };
                        self.run_packed(team, &packed, makes_s);
                    }
                }
            });
        } else {
            self.make_s(team);
            let grid = layout.own_grid(team.threads());
            // SAFETY: blocks of a grid do not overlap in `c`.
            team.run(grid.blocks(), |task| unsafe { self.compute(grid.block(task), None) });
        }
    }

    /// The product that makes an update's `s`, if it is to be made.
    fn product_of_s(&self) -> Option<Product<'a>> {
        let Update { first, scale, s, .. } = self.update?;
        let epilogue = Epilogue::default();
        Some(Product { alpha: scale, b: first?, update: None, epilogue, accumulate: false, c: s, ..*self })
    }

    /// Makes an update's `s`, on its own.
    fn make_s(&self, team: &Team<'_>) {
        if let Some(product) = self.product_of_s() {
            product.run(team);
        }
    }

    /// Whether `s` can be made from the rows of `a` as they are packed for the product itself: in rows as
    /// long, by blocks whose sums have room.
    fn packed_serves_s(&self) -> bool {
        self.product_of_s().is_some_and(|product| {
            let (whole, of_s) = (self.layout(), product.layout());
            of_s.row_bytes() == whole.row_bytes()
                && of_s.sums(whole.strip_rows(), product.b.cols()) <= scratch::SUMS
        })
    }

    /// Packs some rows of `a`, then computes these rows of `c`, or goes on with their sums. A strip of rows
    /// whose `s` is to be made is multiplied by the update's first factor as soon as it is packed.
    fn run_packed(&self, team: &Team<'_>, a: &PackedA, makes_s: bool) {
        let layout = self.layout();
        let strips: Vec<_> = chunks(a.rows.clone(), layout.strip_rows()).collect();
        // SAFETY: strips are whole tiles, so that each task writes rows of its own, all of which have room.
        let pack = |k_block: usize, rows: &Range<usize>| unsafe {
            self.pack_a(&layout, k_block, rows.clone(), a.at(&layout, k_block, rows));
        };
        match self.product_of_s().filter(|_| makes_s) {
            None => team.run(strips.len() * a.k_blocks.len(), |task| {
                pack(a.k_blocks.start + task / strips.len(), &strips[task % strips.len()]);
            }),
            Some(product) => team.run(strips.len(), |task| {
                let (rows, own) = (&strips[task], layout.own_k_blocks());
                (0..own).for_each(|k_block| pack(k_block, rows));
                let of_s = PackedA { room: a.room, rows: a.rows.clone(), k_blocks: 0..own, sums: None };
                // SAFETY: these rows of `s` are this task's, those of `a` are packed as `product` packs them.
                unsafe {
                    product.compute(Block { rows: rows.clone(), cols: 0..product.b.cols() }, Some(&of_s))
                };
                (own..layout.k_blocks()).for_each(|k_block| pack(k_block, rows));
            }),
        }
        let grid = layout.shared_grid(a.rows.clone(), team.threads());
        // SAFETY: blocks of a grid do not overlap in `c`, and all of their rows are packed.
        team.run(grid.blocks(), |task| unsafe { self.compute(grid.block(task), Some(a)) });
    }

    /// Packs some rows of the left factor over a block of `K`.
    ///
    /// # Safety
    /// Nobody else touches `to` meanwhile; if it is a block of an update, these rows of `s` are written and
    /// not written any more.
    unsafe fn pack_a(&self, layout: &Layout, k_block: usize, rows: Range<usize>, to: Room) {
        let padded = layout.whole_tiles(rows.len());
        let to = to.part(0, layout.packed_bytes(rows.len())).start();
        // SAFETY: as the caller promises; there is room for whole tiles.
        unsafe { (self.kernel.pack_a)(self.left(layout, k_block, rows), padded, layout.tile_bytes(), to) }
    }

    /// Some rows of the left factor over a block of `K`.
    ///
    /// # Safety
    /// If it is a block of an update, these rows of `s` are written and not written any more.
    unsafe fn left(&self, layout: &Layout, k_block: usize, rows: Range<usize>) -> Operand<'a> {
        let (is_update, ks) = layout.place(k_block);
        match self.update.filter(|_| is_update) {
            // SAFETY: as the caller promises.
            Some(update) => unsafe { update.s(rows.clone()) }.view(0..rows.len(), ks),
            None => self.a.view(rows, ks),
        }
    }

    /// Some columns of the right factor over a block of `K`.
    fn right(&self, layout: &Layout, k_block: usize, cols: Range<usize>) -> Right<'a> {
        let (is_update, ks) = layout.place(k_block);
        self.update.filter(|_| is_update).map_or(self.b, |update| update.second).view(ks, cols)
    }

    /// Computes one block on this thread, with rows of `a` that are packed, or packing them.
    ///
    /// # Safety
    /// Nobody else touches this part of `c` now.
    unsafe fn compute(&self, block: Block, packed: Option<&PackedA>) {
        let layout = self.layout();
        let k_blocks = packed.map_or(0..layout.k_blocks(), |packed| packed.k_blocks.clone());
        scratch::with(|scratch| {
            let sums = packed.and_then(|packed| packed.sums_of(&layout, &block)).unwrap_or(scratch.sums);
            for k_block in k_blocks {
                let a = match packed {
                    Some(packed) => packed.at(&layout, k_block, &block.rows),
                    None => {
                        // SAFETY: the scratch is this task's; an update's `s` was made before.
                        unsafe { self.pack_a(&layout, k_block, block.rows.clone(), scratch.a) };
                        scratch.a
                    }
                };
                for cols in chunks(block.cols.clone(), self.kernel.width()) {
                    // SAFETY: `a` is packed, and nobody else touches this part of `c` and these sums.
                    unsafe { self.compute_panel(&layout, &block, k_block, cols, a, scratch, sums) };
                }
            }
        });
    }

    /// Multiplies the packed rows of a block by one panel of `b`, over one block of `K`.
    ///
    /// # Safety
    /// `a` holds the block's packed rows; nobody else touches the block in `c`, nor `scratch` and `sums`.
    unsafe fn compute_panel(
        &self,
        layout: &Layout,
        block: &Block,
        k_block: usize,
        cols: Range<usize>,
        a: Room,
        scratch: Scratch,
        sums: Room,
    ) {
        let (kernel, right) = (self.kernel, self.right(layout, k_block, cols.clone()));
        let vectors = cols.len().div_ceil(kernel.lanes);
        let (tile, width) = (kernel.tiles[vectors - 1], vectors * kernel.lanes);
        let groups = right.rows().div_ceil(kernel.group());
        let (is_only, is_last) = (layout.k_blocks() == 1, k_block + 1 == layout.k_blocks());
        let (rows, row_bytes) = (layout.whole_tiles(block.rows.len()), layout.row_bytes());
        // Sums that are written out at once need not be kept: all tiles share a place in the first-level
        // cache.
        let (first, kept) = if is_only { (0, kernel.rows) } else { (cols.start - block.cols.start, rows) };
        let sums = sums.sums(kept * first, kept * width);
        let a = a.part(0, layout.packed_bytes(block.rows.len())).start::<u8>();
        let [b, values] =
            [scratch.b, scratch.values].map(|room| room.part(0, layout.panel_bytes(cols.len())));
        let store = if self.c.col_stride == 1 { kernel.store } else { portable::store_transposed };
        // SAFETY: there is room for the panel, and for its values where they stand in four bits.
        unsafe {
            let values = match right {
                Right::Dense(values) => values,
                Right::FourBit(codes) => codes.values(kernel, values.start()),
            };
            (kernel.pack_b)(values, width, b.start());
        }
        let next = self.next_panel(layout, block, k_block, cols.end);
        let mut prefetch = Prefetch::new(next, rows / kernel.rows);
        for row in (0..rows).step_by(kernel.rows) {
            prefetch.step();
            // SAFETY: the tile's rows of `a` and panel of `b` are packed, its sums have room, and its valid
            // part lies inside `c`.
            unsafe {
                let sums = sums.add(if is_only { 0 } else { row * width });
                tile(groups, a.add(row * row_bytes), b.start(), sums, width, k_block > 0);
                if is_last {
                    let valid = kernel.rows.min(block.rows.len() - row);
                    let c = self.c.at(block.rows.start + row, cols.start);
                    self.epilogue.apply(sums, width, valid, cols.clone());
                    store(sums, width, valid, cols.len(), self.alpha, self.accumulate, c);
                }
            }
        }
    }

    /// What is packed of `b` after the panel of this block of `K` that ends at column `end`.
    fn next_panel(&self, layout: &Layout, block: &Block, k_block: usize, end: usize) -> Right<'a> {
        let (k_block, start) =
            if end < block.cols.end { (k_block, end) } else { (k_block + 1, block.cols.start) };
        if k_block == layout.k_blocks() {
            return self.b.view(0..0, 0..0);
        }
        self.right(layout, k_block, start..block.cols.end.min(start + self.kernel.width()))
    }
}

impl PackedA {
    /// Where some of its rows are packed in a block of `K`.
    fn at(&self, layout: &Layout, k_block: usize, rows: &Range<usize>) -> Room {
        let of_k_block = layout.packed_bytes(self.rows.len());
        let before = (rows.start - self.rows.start) * layout.row_bytes();
        let first = (k_block - self.k_blocks.start) * of_k_block + before;
        self.room.part(first, layout.packed_bytes(rows.len()))
    }

    /// Where the sums of a block of these rows are kept from one part of `K` to the next, if there are
    /// several.
    fn sums_of(&self, layout: &Layout, block: &Block) -> Option<Room> {
        // The columns before this block's have all rows, its own columns the rows before it.
        let before_columns = layout.sums(self.rows.len(), block.cols.start);
        let before = before_columns + layout.sums(block.rows.start - self.rows.start, block.cols.len());
        let count = layout.sums(block.rows.len(), block.cols.len());
        Some(self.sums?.part(before * size_of::<f32>(), count * size_of::<f32>()))
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

/// Asks for the cache lines of a part of `b` a few at a time, while something else is multiplied: weights are
/// read from memory in short runs, which no processor guesses by itself.
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
