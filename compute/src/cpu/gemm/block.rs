//! How products are computed: which way each goes, its tasks, and what a task does for its block of `c`.
//!
//! Element `(i, j)` of `c` is always summed in the same order: within blocks of `K` that depend on `K` alone
//! ([`Layout::place`]), one block after the other. Cutting, and which products are computed together, only
//! decides which thread does it, and when.

use std::ops::Range;

use super::Right;
use super::few_rows;
use super::layout::{Block, Layout};
use super::portable;
use super::prefetch::Prefetch;
use super::product::Product;
use super::scratch::{self, Room, Scratch};
use super::team::Team;

/// Computes products, of which none reads what another one writes. Their tasks are handed out together;
/// right factors that several have in common, one after the other, are packed once.
pub(super) fn run(products: &[Product<'_>], team: &Team<'_>) {
    let (few, many): (Vec<_>, Vec<_>) = products.iter().partition(|product| few_rows::applies(product));
    let (shared, own): (Vec<_>, Vec<_>) =
        many.into_iter().partition(|product| product.layout().shared().is_some());
    let apart = few.iter().chain(&own).chain(shared.iter().filter(|product| !makes_s(product)));
    let of_s: Vec<_> = apart.filter_map(|product| product.product_of_s()).collect();
    if !of_s.is_empty() {
        run(&of_s, team);
    }
    few_rows::run(&few, team);
    run_own(&own, team);
    run_shared(&shared, team);
}

/// Whether a product whose rows are packed for all tasks makes its `s` from them.
fn makes_s(product: &Product<'_>) -> bool {
    let layout = product.layout();
    let in_parts = layout.shared().is_some_and(|shared| shared.k_blocks < layout.k_blocks());
    !in_parts && product.packed_serves_s()
}

/// Products of which each task packs its own rows.
fn run_own(products: &[&Product<'_>], team: &Team<'_>) {
    if products.is_empty() {
        return;
    }
    let mut tasks = Vec::new();
    for &product in products {
        let grid = product.layout().own_grid(team.threads_for(products.len()));
        tasks.extend((0..grid.blocks()).map(|index| (product, grid.block(index))));
    }
    team.run(tasks.len(), |task| {
        let (product, block) = &tasks[task];
        // SAFETY: blocks of a grid do not overlap in `c`.
        unsafe { compute_own(product, block) }
    });
}

/// Products whose rows are packed for all tasks, as many at once as there is room for.
fn run_shared(products: &[&Product<'_>], team: &Team<'_>) {
    if products.is_empty() {
        return;
    }
    let (whole, others): (Vec<_>, Vec<_>) =
        products.iter().partition(|product| product.layout().whole_bytes().is_some());
    let bytes = |product: &&Product<'_>| product.layout().whole_bytes().expect("it is packed at once");
    scratch::with_shared(|room, sums| {
        for round in scratch::rounds(&whole, bytes) {
            let mut room = room;
            let packed: Vec<_> = round.iter().map(|p| Packed::whole(p, room.take(bytes(p)))).collect();
            run_packed(&packed, team);
        }
        for product in others {
            run_in_parts(product, room, sums, team);
        }
    });
}

/// A product that has room for some of its rows at once, or for a part of `K` and its sums.
fn run_in_parts(product: &Product<'_>, room: Room, sums: Room, team: &Team<'_>) {
    let layout = product.layout();
    let shared = layout.shared().expect("its rows are packed for all tasks");
    let (all, makes_s) = (layout.k_blocks(), makes_s(product));
    for rows in chunks(0..product.a.rows, shared.rows) {
        for k_blocks in chunks(0..all, shared.k_blocks) {
            let (rows, sums) = (rows.clone(), (shared.k_blocks < all).then_some(sums));
            run_packed(&[Packed { product, layout, room, rows, k_blocks, sums, makes_s }], team);
        }
    }
}

/// Some rows of a product's `a` over some blocks of `K`, packed for all tasks: one block of `K` after the
/// other, in each all rows.
struct Packed<'p, 'a> {
    product: &'p Product<'a>,
    layout: Layout,
    room: Room,
    rows: Range<usize>,
    k_blocks: Range<usize>,
    /// Where `K` is too long to be packed at once: the sums of these rows and all columns, block by block of
    /// `c`.
    sums: Option<Room>,
    /// Whether the rows of an update's `s` are made once those of `a` are packed.
    makes_s: bool,
}

/// Packs rows, then computes these rows of every `c`, or goes on with their sums.
fn run_packed(packed: &[Packed<'_, '_>], team: &Team<'_>) {
    // Of a single product blocks of `K` are packed apart, so that there are enough tasks.
    let (mut strips, is_single) = (Vec::new(), packed.len() == 1);
    for packed in packed {
        let together = if is_single && !packed.makes_s { 1 } else { packed.k_blocks.len() };
        for k_blocks in chunks(packed.k_blocks.clone(), together) {
            let rows = chunks(packed.rows.clone(), packed.layout.strip_rows());
            strips.extend(rows.map(|rows| (packed, rows, k_blocks.clone())));
        }
    }
    // SAFETY: strips are whole tiles, so that each task writes rows of its own.
    team.run(strips.len(), |task| unsafe {
        let (packed, rows, k_blocks) = &strips[task];
        packed.pack(rows, k_blocks.clone());
    });
    let families = families(packed);
    let mut tasks = Vec::new();
    for family in &families {
        let grid = family[0].layout.shared_grid(rows_of(family), team.threads_for(families.len()));
        tasks.extend((0..grid.blocks()).map(|index| (*family, grid.block(index))));
    }
    team.run(tasks.len(), |task| {
        let (family, block) = &tasks[task];
        // SAFETY: blocks of a grid do not overlap in `c`, and all of their rows are packed.
        unsafe { compute(family, block) }
    });
}

/// Neighbours that have a right factor in common, as far as a block has room for the sums of all their rows.
fn families<'s, 'p, 'a>(packed: &'s [Packed<'p, 'a>]) -> Vec<&'s [Packed<'p, 'a>]> {
    let (mut families, mut start) = (Vec::new(), 0);
    for end in 1..=packed.len() {
        let goes_on = packed.get(end).is_some_and(|next| {
            let same = next.product.b.is_same(&packed[start].product.b);
            let is_one_block = next.layout.is_one_block(rows_of(&packed[start..=end]));
            same && is_one_block
        });
        if !goes_on {
            families.push(&packed[start..end]);
            start = end;
        }
    }
    families
}

/// Packed rows of a family: each product's are whole tiles.
fn rows_of(family: &[Packed<'_, '_>]) -> usize {
    family.iter().map(|packed| packed.layout.whole_tiles(packed.rows.len())).sum()
}

impl<'p, 'a> Packed<'p, 'a> {
    /// All of a product, packed into this room.
    fn whole(product: &'p Product<'a>, room: Room) -> Self {
        let (layout, rows, makes_s) = (product.layout(), 0..product.a.rows, makes_s(product));
        Packed { product, layout, room, rows, k_blocks: 0..layout.k_blocks(), sums: None, makes_s }
    }

    /// Packs a strip of rows over these blocks of `K`, and makes these rows of `s` between the factors' own
    /// blocks and the update's.
    ///
    /// # Safety
    /// Nobody else touches these rows, packed and of `s`.
    unsafe fn pack(&self, rows: &Range<usize>, k_blocks: Range<usize>) {
        for k_block in k_blocks {
            // SAFETY: as the caller promises; an update's rows of `s` are there before they are packed.
            unsafe {
                if self.makes_s && k_block == self.layout.own_k_blocks() {
                    self.make_s(rows);
                }
                self.product.pack_a(&self.layout, k_block, rows.clone(), self.at(k_block, rows));
            }
        }
    }

    /// Makes a strip of `s` of the packed rows of `a`.
    ///
    /// # Safety
    /// Nobody else touches these rows of `s`, and those of `a` are packed.
    unsafe fn make_s(&self, rows: &Range<usize>) {
        let product = &self.product.product_of_s().expect("`s` is to be made");
        let (layout, k_blocks) = (product.layout(), 0..self.layout.own_k_blocks());
        let (room, all) = (self.room, &self.rows);
        let whole = Packed { product, layout, room, rows: all.clone(), k_blocks, sums: None, makes_s: false };
        let first = rows.start - all.start;
        let block = Block { rows: first..first + rows.len(), cols: 0..product.b.cols() };
        // SAFETY: as the caller promises; `Product::packed_serves_s` says that rows are packed alike.
        unsafe { compute(&[whole], &block) }
    }

    /// Where some of the rows are packed in a block of `K`.
    fn at(&self, k_block: usize, rows: &Range<usize>) -> Room {
        let of_k_block = self.layout.packed_bytes(self.rows.len());
        let before = (rows.start - self.rows.start) * self.layout.row_bytes();
        let first = (k_block - self.k_blocks.start) * of_k_block + before;
        self.room.part(first, self.layout.packed_bytes(rows.len()))
    }

    /// Where the sums of a block are kept from one part of `K` to the next, if there are several parts.
    fn kept_sums(&self, block: &Block) -> Option<Room> {
        // The columns before this block's have all rows, its own columns the rows before it.
        let layout = &self.layout;
        let before = layout.sums(self.rows.len(), block.cols.start);
        let before = before + layout.sums(block.rows.start, block.cols.len());
        let count = layout.sums(block.rows.len(), block.cols.len());
        Some(self.sums?.part(before * size_of::<f32>(), count * size_of::<f32>()))
    }
}

/// What a block has of one product.
struct Piece<'s, 'p, 'a> {
    packed: &'s Packed<'p, 'a>,
    rows: Range<usize>,
    /// Room for its sums over the columns of the block.
    sums: Room,
}

/// The rows of a block, product by product.
fn pieces<'s, 'p, 'a>(family: &'s [Packed<'p, 'a>], block: &Block, sums: Room) -> Vec<Piece<'s, 'p, 'a>> {
    let (mut pieces, mut first, mut used) = (Vec::with_capacity(family.len()), 0, 0);
    for packed in family {
        let layout = &packed.layout;
        let last = first + layout.whole_tiles(packed.rows.len());
        let within = block.rows.start.clamp(first, last) - first..block.rows.end.clamp(first, last) - first;
        let start = packed.rows.start + within.start;
        let rows = start..packed.rows.end.min(packed.rows.start + within.end);
        if !rows.is_empty() {
            let bytes = layout.sums(rows.len(), block.cols.len()) * size_of::<f32>();
            pieces.push(Piece { packed, rows, sums: sums.part(used, bytes) });
            used += bytes;
        }
        first = last;
    }
    pieces
}

/// Computes a block of the products of a family on this thread; its rows count those of the family.
///
/// # Safety
/// Nobody else touches this part of each `c` now, and the rows of `a` are packed.
unsafe fn compute(family: &[Packed<'_, '_>], block: &Block) {
    scratch::with(|scratch| {
        let sums = family[0].kept_sums(block).unwrap_or(scratch.sums);
        let pieces = pieces(family, block, sums);
        let Packed { layout, k_blocks, .. } = &family[0];
        let own = layout.own_k_blocks();
        // SAFETY: rows are packed, and nobody else touches this part of each `c` and the scratch.
        unsafe {
            for k_block in k_blocks.start..k_blocks.end.min(own) {
                compute_panels(&pieces, k_block, &block.cols, scratch);
            }
            // Updates have right factors of their own.
            for piece in &pieces {
                for k_block in own.max(k_blocks.start)..piece.packed.k_blocks.end {
                    compute_panels(std::slice::from_ref(piece), k_block, &block.cols, scratch);
                }
            }
        }
    });
}

/// Computes one block on this thread, packing its rows of `a`.
///
/// # Safety
/// Nobody else touches this part of `c` now; an update's `s` is written and not written any more.
unsafe fn compute_own(product: &Product<'_>, block: &Block) {
    scratch::with(|scratch| {
        let layout = product.layout();
        for k_block in 0..layout.k_blocks() {
            let (rows, k_blocks) = (block.rows.clone(), k_block..k_block + 1);
            let packed =
                Packed { product, layout, room: scratch.a, rows, k_blocks, sums: None, makes_s: false };
            let piece = Piece { packed: &packed, rows: block.rows.clone(), sums: scratch.sums };
            // SAFETY: the scratch is this task's; for the others, as the caller promises.
            unsafe {
                packed.pack(&block.rows, packed.k_blocks.clone());
                compute_panels(&[piece], k_block, &block.cols, scratch);
            }
        }
    });
}

/// Multiplies the packed rows of pieces by some columns of the right factor that they have in common over
/// one block of `K`, panel by panel, and writes what is complete.
///
/// # Safety
/// Nobody else touches the pieces in each `c`, nor `scratch` and the sums; the rows of `a` are packed.
unsafe fn compute_panels(
    pieces: &[Piece<'_, '_, '_>],
    k_block: usize,
    cols: &Range<usize>,
    scratch: Scratch,
) {
    let Some(Packed { product, layout, .. }) = pieces.first().map(|piece| piece.packed) else { return };
    let kernel = product.kernel;
    for panel in chunks(cols.clone(), kernel.width()) {
        let right = product.right(layout, k_block, panel.clone());
        let vectors = panel.len().div_ceil(kernel.lanes);
        let (tile, width) = (kernel.tiles[vectors - 1], vectors * kernel.lanes);
        let groups = right.rows().div_ceil(kernel.group());
        let [b, values] =
            [scratch.b, scratch.values].map(|room| room.part(0, layout.panel_bytes(panel.len())));
        // SAFETY: there is room for the panel, and for its values where they stand in four bits.
        unsafe {
            let values = match right {
                Right::Dense(values) => values,
                Right::Coded(codes) => codes.values(kernel, values.start()),
            };
            (kernel.pack_b)(values, width, b.start());
        }
        let tiles = pieces.iter().map(|piece| piece.rows.len().div_ceil(kernel.rows)).sum();
        let mut prefetch = Prefetch::new(next_panel(product, layout, k_block, cols, panel.end), tiles);
        for piece in pieces {
            let Packed { product, layout, .. } = piece.packed;
            let (is_only, is_last) = (layout.k_blocks() == 1, k_block + 1 == layout.k_blocks());
            let (rows, row_bytes) = (layout.whole_tiles(piece.rows.len()), layout.row_bytes());
            // Sums that are written out at once need not be kept: all tiles share a place in the
            // first-level cache.
            let (first, kept) = if is_only { (0, kernel.rows) } else { (panel.start - cols.start, rows) };
            let sums = piece.sums.sums(kept * first, kept * width);
            let a = piece.packed.at(k_block, &piece.rows).start::<u8>();
            let store = if product.c.col_stride == 1 { kernel.store } else { portable::store_transposed };
            for row in (0..rows).step_by(kernel.rows) {
                prefetch.step();
                // SAFETY: the tile's rows of `a` and panel of `b` are packed, its sums have room, and its
                // valid part lies inside `c`.
                unsafe {
                    let sums = sums.add(if is_only { 0 } else { row * width });
                    let valid = kernel.rows.min(piece.rows.len() - row);
                    if k_block == 0 {
                        let first = piece.rows.start + row;
                        product.begin(first..first + valid, panel.clone(), sums, width);
                    }
                    let goes_on = k_block > 0 || product.goes_on();
                    tile(groups, a.add(row * row_bytes), b.start(), sums, width, goes_on);
                    if is_last {
                        let c = product.c.at(piece.rows.start + row, panel.start);
                        product.epilogue.apply(sums, width, valid, panel.clone());
                        store(sums, width, valid, panel.len(), product.alpha, product.accumulate, c);
                    }
                }
            }
        }
    }
}

/// What is packed of the right factor after the panel of this block of `K` that ends at column `end`.
fn next_panel<'a>(
    product: &Product<'a>,
    layout: &Layout,
    k_block: usize,
    cols: &Range<usize>,
    end: usize,
) -> Right<'a> {
    let (k_block, start) = if end < cols.end { (k_block, end) } else { (k_block + 1, cols.start) };
    if k_block == layout.k_blocks() {
        return product.b.view(0..0, 0..0);
    }
    product.right(layout, k_block, start..cols.end.min(start + product.kernel.width()))
}

/// The parts of a range, of `size` but for the last.
fn chunks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |start| start..range.end.min(start + size))
}
