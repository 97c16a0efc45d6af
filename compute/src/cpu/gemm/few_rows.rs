//! Products of few rows by weights as they lie in memory, as when text is generated: each weight is used once or a
//! few times, so nothing is packed but the few rows, and the time is that of reading the weights.

use std::ops::Range;

use super::block::{Product, Team};
use super::four_bit::{FewRows, FourBit};
use super::kernel::Kernel;
use super::scratch::{self, B_BYTES, SHARED_A_BYTES};
use super::{Operand, Right};

/// At most this many rows of `a`: with more, packing weights for a tile costs less than reading them twice.
pub(super) const ROWS: usize = 4;
/// Weight rows multiplied at once.
pub(super) const COLS: usize = 4;
/// Below this `K` a horizontal sum for each element costs more than packing; that of an adapter of the usual rank does not.
const MIN_DEPTH: usize = 8;
/// Columns of a task at least: an adapter's few long rows are read by several threads.
const MIN_COLS: usize = COLS;

/// Elements of a row of a weight in four bits that become values at once: [`COLS`] rows of them stay in cache.
const FOUR_BIT_DEPTH: usize = 1024;
const _: () =
    assert!(FOUR_BIT_DEPTH * COLS * 4 <= B_BYTES && FOUR_BIT_DEPTH.is_multiple_of(Kernel::DEPTH_STEP));

/// Writes `sums[rows, COLS]`: the first `rows <= ROWS` of the packed tile `x` by `w[k, cols <= COLS]`, which lies
/// contiguous along `k`.
pub(super) type Dots = unsafe fn(rows: usize, x: *const u8, w: Operand<'_>, sums: *mut f32);

/// Whether a product goes this way.
pub(super) fn applies(product: &Product<'_>) -> bool {
    let a = &product.a;
    let along = match &product.b {
        Right::Dense(b) => b.row_stride == 1,
        Right::FourBit(b) => b.is_transposed(),
    };
    a.rows <= ROWS && along && a.cols >= MIN_DEPTH && tile_bytes(product) <= SHARED_A_BYTES
}

/// Bytes of the rows, packed as one tile: more than [`FewRows::pack`] writes.
fn tile_bytes(product: &Product<'_>) -> usize {
    let kernel = product.kernel;
    product.a.cols.next_multiple_of(FewRows::DEPTH_STEP) * kernel.packed.size() * kernel.rows
}

/// Columns of a task: a few tasks for each thread, whole groups of weight rows.
fn cols_per_task(product: &Product<'_>, threads: usize) -> usize {
    let parts = if threads == 1 { 1 } else { 8 * threads };
    product.b.cols().div_ceil(parts).next_multiple_of(COLS).max(MIN_COLS)
}

/// Computes the product: the rows are packed once, for all tasks, then columns are handed out.
pub(super) fn run(product: &Product<'_>, team: &Team<'_>) {
    scratch::with_shared(|x, _| {
        let x = Packed(x);
        let codes = match &product.b {
            Right::FourBit(b) if product.a.col_stride == 1 => {
                product.kernel.four_bit_rows.as_ref().filter(|few| (few.applies)(b)).map(|few| (few, b))
            }
            _ => None,
        };
        // SAFETY: `applies` made sure that there is room for the rows, packed in either way.
        unsafe {
            match codes {
                Some((few, _)) => (few.pack)(product.a, x.0),
                None => (product.kernel.pack_a)(product.a, product.kernel.rows, tile_bytes(product), x.0),
            }
        }
        let cols = cols_per_task(product, team.threads());
        team.run(product.b.cols().div_ceil(cols), |task| {
            let x = &x;
            let block = task * cols..product.b.cols().min((task + 1) * cols);
            // SAFETY: tasks have columns of their own; the rows are packed as these want them.
            unsafe {
                match (product.b, codes) {
                    (_, Some((few, b))) => compute_codes(product, block, *b, few, x.0),
                    (Right::Dense(b), _) => compute_dense(product, block, b, x.0),
                    (Right::FourBit(b), _) => compute_four_bit(product, block, b, x.0),
                }
            }
        });
    });
}

/// The rows, packed for all tasks.
struct Packed(*mut u8);

// SAFETY: written before there are tasks, which only read it.
unsafe impl Sync for Packed {}

/// Calls `sums` for each few columns of a task and writes what it makes.
///
/// # Safety
/// Nobody else touches these columns of `c` now; `sums` writes as [`Dots`].
unsafe fn by_columns(product: &Product<'_>, block: Range<usize>, to: *mut f32, sums: impl Fn(Range<usize>)) {
    for col in block.clone().step_by(COLS) {
        let cols = col..block.end.min(col + COLS);
        sums(cols.clone());
        // SAFETY: the part written of `c` lies inside the block.
        unsafe {
            let c = product.c.at(0, col);
            let (alpha, accumulate) = (product.alpha, product.accumulate);
            (product.kernel.store)(to, COLS, product.a.rows, cols.len(), alpha, accumulate, c);
        }
    }
}

/// # Safety
/// See [`by_columns`]; `x` is a packed tile.
unsafe fn compute_dense(product: &Product<'_>, block: Range<usize>, b: Operand<'_>, x: *const u8) {
    let a = product.a;
    scratch::with(|scratch| {
        let (_, _, sums) = scratch.pointers();
        // SAFETY: scratch holds the few sums.
        unsafe {
            by_columns(product, block, sums, |cols| {
                (product.kernel.dots)(a.rows, x, b.view(0..a.cols, cols), sums);
            });
        }
    });
}

/// By way of values in the first-level cache, a part of the depth at a time.
///
/// # Safety
/// See [`by_columns`]; `x` is a packed tile.
unsafe fn compute_four_bit(product: &Product<'_>, block: Range<usize>, b: FourBit<'_>, x: *const u8) {
    let (kernel, a) = (product.kernel, product.a);
    scratch::with(|scratch| {
        let (_, _, sums) = scratch.pointers();
        let values = scratch.values();
        // SAFETY: scratch holds the few sums twice, and the values.
        unsafe {
            let part = sums.add(ROWS * COLS);
            by_columns(product, block, sums, |cols| {
                for k in (0..a.cols).step_by(FOUR_BIT_DEPTH) {
                    let codes = b.view(k..a.cols.min(k + FOUR_BIT_DEPTH), cols.clone());
                    let x = x.add(k * kernel.packed.size() * kernel.rows);
                    (kernel.dots)(a.rows, x, codes.values(kernel, values), if k == 0 { sums } else { part });
                    if k > 0 {
                        (0..a.rows * COLS).for_each(|i| *sums.add(i) += *part.add(i));
                    }
                }
            });
        }
    });
}

/// Straight from the codes.
///
/// # Safety
/// See [`by_columns`]; `few` applies and packed `x`.
unsafe fn compute_codes(
    product: &Product<'_>,
    block: Range<usize>,
    b: FourBit<'_>,
    few: &FewRows,
    x: *const u8,
) {
    let a = product.a;
    scratch::with(|scratch| {
        let (_, scales, sums) = scratch.pointers();
        // SAFETY: scratch holds the scales and the few sums.
        unsafe {
            by_columns(product, block, sums, |cols| {
                (few.dots)(a.rows, x, b.view(0..a.cols, cols), scales.cast(), sums);
            });
        }
    });
}
