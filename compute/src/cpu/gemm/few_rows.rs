//! Products of few rows by weights as they lie in memory, as when text is generated: each weight is used once or a
//! few times, so nothing is packed but the few rows, and the time is that of reading the weights.

use std::ops::Range;

use super::block::{Block, Product};
use super::four_bit::{FewRows, FourBit};
use super::kernel::Kernel;
use super::scratch::{self, A_BYTES, B_BYTES};
use super::{Operand, Right};

/// At most this many rows of `a`: with more, packing weights for a tile costs less than reading them twice.
pub(super) const ROWS: usize = 4;
/// Weight rows multiplied at once.
pub(super) const COLS: usize = 4;
/// Below this `K` too little is summed to be worth a horizontal sum for each element.
const MIN_DEPTH: usize = 128;
/// Columns of a task at least.
const MIN_COLS: usize = 16;

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
    a.rows <= ROWS && along && a.cols >= MIN_DEPTH && tile_bytes(product) <= A_BYTES
}

/// Bytes of the rows, packed as one tile.
fn tile_bytes(product: &Product<'_>) -> usize {
    let kernel = product.kernel;
    product.a.cols.next_multiple_of(Kernel::DEPTH_STEP) * kernel.packed.size() * kernel.rows
}

/// Columns of a task: a few tasks for each thread, whole groups of weight rows.
pub(super) fn cols_per_task(product: &Product<'_>, threads: usize) -> usize {
    let parts = if threads == 1 { 1 } else { 8 * threads };
    product.b.cols().div_ceil(parts).next_multiple_of(COLS).max(MIN_COLS)
}

/// Computes one block on this thread.
///
/// # Safety
/// The block has all rows, [`applies`], and nobody else touches that part of `c` now.
pub(super) unsafe fn compute(product: &Product<'_>, block: Block) {
    // SAFETY: as the caller promises.
    unsafe {
        match product.b {
            Right::Dense(b) => compute_dense(product, block, b),
            Right::FourBit(b) => match &product.kernel.four_bit_rows {
                Some(few) if product.a.col_stride == 1 && (few.applies)(&b) => {
                    compute_codes(product, block, b, few);
                }
                _ => compute_four_bit(product, block, b),
            },
        }
    }
}

/// Calls `sums` for each few columns of a block and writes what it makes.
///
/// # Safety
/// See [`compute`]; `sums` writes as [`Dots`].
unsafe fn by_columns(product: &Product<'_>, block: &Block, to: *mut f32, sums: impl Fn(Range<usize>)) {
    for col in block.cols.clone().step_by(COLS) {
        let cols = col..block.cols.end.min(col + COLS);
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
/// See [`compute`].
unsafe fn compute_dense(product: &Product<'_>, block: Block, b: Operand<'_>) {
    let (kernel, a) = (product.kernel, product.a);
    scratch::with(|scratch| {
        let (x, _, sums) = scratch.pointers();
        // SAFETY: `applies` made sure that scratch holds the rows; it holds the few sums, too.
        unsafe {
            (kernel.pack_a)(a, kernel.rows, tile_bytes(product), x);
            by_columns(product, &block, sums, |cols| (kernel.dots)(a.rows, x, b.view(0..a.cols, cols), sums));
        }
    });
}

/// By way of values in the first-level cache, a part of the depth at a time.
///
/// # Safety
/// See [`compute`].
unsafe fn compute_four_bit(product: &Product<'_>, block: Block, b: FourBit<'_>) {
    let (kernel, a) = (product.kernel, product.a);
    scratch::with(|scratch| {
        let (x, _, sums) = scratch.pointers();
        let values = scratch.values();
        // SAFETY: `applies` made sure that scratch holds the rows; it holds the few sums twice, and the values.
        unsafe {
            let part = sums.add(ROWS * COLS);
            (kernel.pack_a)(a, kernel.rows, tile_bytes(product), x);
            by_columns(product, &block, sums, |cols| {
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
/// See [`compute`]; `few` applies, and `a` lies contiguous along `k`.
unsafe fn compute_codes(product: &Product<'_>, block: Block, b: FourBit<'_>, few: &FewRows) {
    let a = product.a;
    assert!(a.rows * a.cols * 4 <= A_BYTES, "{} rows of {} exceed the scratch of a", a.rows, a.cols);
    scratch::with(|scratch| {
        let (x, _, sums) = scratch.pointers();
        let x = x.cast::<f32>();
        // SAFETY: scratch holds the rows, by the assertion, and the few sums.
        unsafe {
            (few.pack)(a, x);
            by_columns(product, &block, sums, |cols| (few.dots)(a.rows, x, b.view(0..a.cols, cols), sums));
        }
    });
}
