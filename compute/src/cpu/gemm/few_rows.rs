//! Products of few rows by weights as they lie in memory, as when text is generated: each weight is used once
//! or a few times, so nothing is packed but the few rows, and the time is that of reading the weights.

use std::ops::Range;

use super::coded::{Coded, FewRows};
use super::kernel::Kernel;
use super::prefetch::Prefetch;
use super::product::Product;
use super::scratch::{self, Room, Scratch};
use super::team::Team;
use super::{Operand, Right};

/// Bytes of weights that stay in the first-level cache beside what is multiplied by them.
const L1_BYTES: usize = 16 << 10;
/// At most this many rows of `a`: with more, packing weights for a tile costs less than reading them twice.
pub(crate) const ROWS: usize = 4;
/// Weight rows multiplied at once.
pub(super) const COLS: usize = 4;
/// Columns whose sums are made before any is written: each call and each store is for many of them.
pub(super) const WIDTH: usize = 64;
const _: () = assert!(WIDTH.is_multiple_of(COLS));
/// Below this `K` a horizontal sum for each element costs more than packing; that of an adapter of the usual
/// rank does not. An update's own depth does not matter: it goes where the frozen weight's product goes.
const MIN_DEPTH: usize = 8;
/// Weights of a product that one thread has read before another one comes to its help: an adapter's first
/// factor, say, of rank 16 and width 2048.
const ALONE: usize = 16 * 2048;

/// Elements of a row of a weight in four bits that become values at once: [`COLS`] rows of them stay in
/// cache.
pub(super) const FOUR_BIT_DEPTH: usize = 1024;
const _: () = assert!(FOUR_BIT_DEPTH.is_multiple_of(Kernel::DEPTH_STEP));
/// Sums of the few rows and a task's columns at a time, twice: those of a part of the depth stand behind
/// those so far.
const SUMS: usize = 2 * ROWS * WIDTH;

/// Writes `sums[rows, WIDTH]`: the first `rows <= ROWS` of the packed tile `x` by `w[k, cols <= WIDTH]`,
/// which lies contiguous along `k`. Sums of the columns behind the last one, to a multiple of [`COLS`], may
/// be anything.
pub(super) type Dots = unsafe fn(rows: usize, x: *const u8, w: Operand<'_>, sums: *mut f32);

/// Whether a product goes this way, its update included.
pub(super) fn applies(product: &Product<'_>) -> bool {
    let along = |b: &Right<'_>| match b {
        Right::Dense(b) => b.row_stride == 1,
        Right::Coded(b) => b.is_transposed(),
    };
    !product.by_tiles
        && product.a.rows <= ROWS
        && product.a.cols >= MIN_DEPTH
        && along(&product.b)
        && product.update.as_ref().is_none_or(|update| along(&update.second))
        && product.layout().few_rows_fit()
}

/// Computes products whose updates' `s` are there: their rows are packed once, for all tasks, as many at once
/// as there is room for, then columns are handed out.
pub(super) fn run(products: &[&Product<'_>], team: &Team<'_>) {
    if products.is_empty() {
        return;
    }
    let bytes = |product: &&Product<'_>| product.layout().few_rows_of_all_bytes();
    scratch::with_shared(|room, _| {
        for round in scratch::rounds(products, bytes) {
            let mut room = room;
            let packed: Vec<_> = joined(round).map(|joined| Packed::new(joined, &mut room)).collect();
            run_packed(&packed, team);
        }
    });
}

/// Cuts products into runs of neighbours whose rows are multiplied together: by codes that are then decoded once.
/// Each row's sums are the same alone. By values each product goes for itself: how they are summed depends on
/// how many rows there are.
fn joined<'j, 'p, 'a>(products: &'j [&'p Product<'a>]) -> impl Iterator<Item = &'j [&'p Product<'a>]> {
    let mut rest = products;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut rows = first.a.rows;
        let more = rest[1..].iter().take_while(|next| {
            rows += next.a.rows;
            rows <= ROWS && next.b.is_same(&first.b) && [*first, *next].iter().all(|p| codes_of(p).is_some())
        });
        let (run, others) = rest.split_at(1 + more.count());
        rest = others;
        Some(run)
    })
}

/// How a product's rows are multiplied by codes as they are, if they can be.
fn codes_of(product: &Product<'_>) -> Option<&'static FewRows> {
    few_rows_of(product.kernel, &product.a, &product.b)
}

fn few_rows_of(kernel: &'static Kernel, a: &Operand<'_>, b: &Right<'_>) -> Option<&'static FewRows> {
    match b {
        Right::Coded(b) if a.col_stride == 1 => kernel.coded_rows.iter().find(|few| (few.applies)(b)),
        _ => None,
    }
}

/// Products whose few rows are packed.
struct Packed<'p, 'a> {
    /// The rows of all of them.
    first: Pair<'a>,
    members: Vec<Member<'p, 'a>>,
}

/// One of the products.
struct Member<'p, 'a> {
    product: &'p Product<'a>,
    /// Its first row among the packed ones.
    row: usize,
    /// The update's rows and factor.
    second: Option<Pair<'a>>,
}

impl<'p, 'a> Packed<'p, 'a> {
    /// Packs the rows of products into room that is taken for them, which is theirs as long as this lives.
    fn new(products: &[&'p Product<'a>], rest: &mut Room) -> Self {
        let (kernel, b) = (products[0].kernel, products[0].b);
        let rooms: Vec<Room> =
            products.iter().map(|product| rest.take(product.layout().few_rows_of_all_bytes())).collect();
        let bytes = |product: &Product<'_>| product.layout().few_rows_bytes(product.a.cols);
        let all: Vec<Operand<'a>> = products.iter().map(|product| product.a).collect();
        let first = Pair::pack(kernel, &all, b, rooms[0].part(0, bytes(products[0])));
        let mut row = 0;
        let member = |(&product, room): (&&'p Product<'a>, Room)| {
            let second = product.update.map(|update| {
                // SAFETY: an update's `s` was made before.
                let s = unsafe { update.s(0..product.a.rows) };
                let room = room.part(bytes(product), product.layout().few_rows_bytes(update.rank));
                Pair::pack(kernel, &[s], update.second, room)
            });
            row += product.a.rows;
            Member { product, row: row - product.a.rows, second }
        };
        let members = products.iter().zip(rooms).map(member).collect();
        Packed { first, members }
    }

    /// Writes some columns of each `c`.
    ///
    /// # Safety
    /// Nobody else touches these columns of any `c` now, and the packed rows are alive.
    unsafe fn compute(&self, cols: Range<usize>, scratch: Scratch) {
        let kernel = self.members[0].product.kernel;
        let (sums, more) = (scratch.sums.sums(0, SUMS), scratch.sums.sums(SUMS, SUMS));
        // SAFETY: both have room for sums; what is written of `c` lies inside.
        unsafe {
            for second in self.members.iter().filter_map(|member| member.second.as_ref()) {
                // An update's weights come from memory while the frozen ones are multiplied.
                Prefetch::new(second.b.view(0..second.depth, cols.clone()), 1).step();
            }
            self.first.sums(kernel, cols.clone(), scratch, sums);
            for Member { product, row, second } in &self.members {
                let sums = sums.add(row * WIDTH);
                if let Some(second) = second {
                    second.sums(kernel, cols.clone(), scratch, more);
                    add(more, sums, product.a.rows * WIDTH);
                }
                let (alpha, accumulate) = (product.alpha, product.accumulate);
                let c = product.c.at(0, cols.start);
                product.epilogue.apply(sums, WIDTH, product.a.rows, cols.clone());
                (kernel.store)(sums, WIDTH, product.a.rows, cols.len(), alpha, accumulate, c);
            }
        }
    }
}

/// Hands out columns of products whose rows are packed; those of a right factor that neighbours have in
/// common are one task, so that it comes from memory once.
fn run_packed(packed: &[Packed<'_, '_>], team: &Team<'_>) {
    let weights: usize = packed.iter().map(|p| p.first.b.cols() * p.first.depth).sum();
    let team = if weights <= ALONE { &Team::Alone } else { team };
    let families: Vec<_> = packed.chunk_by(|x, y| x.first.b.is_same(&y.first.b)).collect();
    // A few tasks for each thread, whole groups of weight rows.
    let parts = if team.threads() == 1 { 1 } else { (8 * team.threads()).div_ceil(families.len().max(1)) };
    let mut tasks = Vec::new();
    for &family in &families {
        let all = family[0].first.b.cols();
        let size = all.div_ceil(parts).next_multiple_of(COLS);
        tasks.extend((0..all).step_by(size).map(|col| (family, col..all.min(col + size))));
    }
    team.run(tasks.len(), |task| {
        let (family, block) = &tasks[task];
        let width = width(family);
        scratch::with(|scratch| {
            for col in block.clone().step_by(width) {
                for packed in *family {
                    // SAFETY: tasks have columns of their own; the rows are packed.
                    unsafe { packed.compute(col..block.end.min(col + width), scratch) };
                }
            }
        });
    });
}

/// Columns that all products of a family multiply before the next ones are read: where there are several, as
/// many as stay in the first-level cache meanwhile.
fn width(family: &[Packed<'_, '_>]) -> usize {
    let fitting = L1_BYTES / family[0].first.b.column_bytes().max(1);
    match family {
        [_] => WIDTH,
        _ => (fitting / COLS * COLS).clamp(COLS, WIDTH),
    }
}

/// `to += from`
///
/// # Safety
/// Both have so many elements.
unsafe fn add(from: *const f32, to: *mut f32, count: usize) {
    // SAFETY: as the caller promises.
    (0..count).for_each(|i| unsafe { *to.add(i) += *from.add(i) });
}

/// Two factors, the left one packed for all tasks.
struct Pair<'a> {
    rows: usize,
    depth: usize,
    x: *const u8,
    b: Right<'a>,
    /// How codes of four bits are multiplied as they are, if they can be; `x` is then packed for that.
    codes: Option<&'static FewRows>,
}

// SAFETY: packed before there are tasks, which only read it.
unsafe impl Sync for Pair<'_> {}

impl<'a> Pair<'a> {
    /// Packs rows one after the other into this room, which is theirs as long as the pair lives. Those of several
    /// operands go together by codes alone.
    fn pack(kernel: &'static Kernel, all: &[Operand<'a>], b: Right<'a>, room: Room) -> Self {
        let (depth, x) = (all[0].cols, room.start::<u8>());
        let codes = few_rows_of(kernel, &all[0], &b);
        let mut rows = 0;
        for a in all {
            // SAFETY: the room holds `ROWS` rows in either form, which `Layout` is tested for.
            unsafe {
                match codes {
                    Some(few) => (few.pack)(*a, x.add(rows * (few.row_bytes)(depth))),
                    None => (kernel.pack_a)(*a, kernel.rows, room.bytes(), x),
                }
            }
            rows += a.rows;
        }
        Pair { rows, depth, x, b, codes }
    }

    /// Writes the sums of these few columns to `to`, as [`Dots`].
    ///
    /// # Safety
    /// `to` has room for [`SUMS`], and nothing else of `scratch` is in use.
    unsafe fn sums(&self, kernel: &Kernel, cols: Range<usize>, scratch: Scratch, to: *mut f32) {
        // SAFETY: as the caller promises; `x` is packed as each wants it.
        unsafe {
            match (&self.b, self.codes) {
                (Right::Coded(b), Some(few)) => {
                    (few.dots)(self.rows, self.x, b.view(0..self.depth, cols), scratch.b, to);
                }
                (Right::Coded(b), None) => self.sums_of_values(kernel, cols, b, scratch.values, to),
                (Right::Dense(b), _) => (kernel.dots)(self.rows, self.x, b.view(0..self.depth, cols), to),
            }
        }
    }

    /// By way of values in the first-level cache, a part of the depth at a time.
    ///
    /// # Safety
    /// See [`Pair::sums`].
    unsafe fn sums_of_values(
        &self,
        kernel: &Kernel,
        cols: Range<usize>,
        b: &Coded<'_>,
        values: Room,
        to: *mut f32,
    ) {
        let values = values.part(0, FOUR_BIT_DEPTH.min(self.depth) * COLS * kernel.packed.size()).start();
        let part = |k: usize, cols: Range<usize>, to: *mut f32| {
            let codes = b.view(k..self.depth.min(k + FOUR_BIT_DEPTH), cols);
            // SAFETY: as the caller promises.
            unsafe {
                let x = self.x.add(k * kernel.packed.size() * kernel.rows);
                (kernel.dots)(self.rows, x, codes.values(kernel, values), to);
            }
        };
        for first in cols.clone().step_by(COLS) {
            let some = first..cols.end.min(first + COLS);
            // SAFETY: as the caller promises.
            unsafe {
                let to = to.add(first - cols.start);
                part(0, some.clone(), to);
                for k in (FOUR_BIT_DEPTH..self.depth).step_by(FOUR_BIT_DEPTH) {
                    let more = to.add(ROWS * WIDTH);
                    part(k, some.clone(), more);
                    for row in 0..self.rows {
                        add(more.add(row * WIDTH), to.add(row * WIDTH), COLS);
                    }
                }
            }
        }
    }
}
