//! A thread's working memory for products: of one fixed size, allocated at its first product, kept until it ends.

use std::cell::RefCell;

use crate::{DType, Matrix};

/// Bytes of a packed block of `a`: it stays in the second-level cache beside the panel of `b`.
pub(super) const A_BYTES: usize = 512 << 10;
/// Bytes of a packed panel of `b`: it stays in the first-level cache.
pub(super) const B_BYTES: usize = 32 << 10;
/// Sums (`f32`) of a block of `c`, kept between blocks of `K`.
pub(super) const SUMS: usize = 128 << 10;

/// Zeroed memory whose start is aligned to a cache line.
pub(super) struct Scratch {
    a: Matrix,
    b: Matrix,
    sums: Matrix,
}

impl Scratch {
    fn new() -> Self {
        let floats = |n| Matrix::zeros(1, n, DType::F32);
        Scratch { a: floats(A_BYTES / 4), b: floats(B_BYTES / 4), sums: floats(SUMS) }
    }

    /// The start of the packed block of `a`, of the packed panel of `b`, and of the sums.
    pub(super) fn pointers(&mut self) -> (*mut u8, *mut u8, *mut f32) {
        let start = |m: &mut Matrix| m.as_mut().f32().as_mut_ptr();
        (start(&mut self.a).cast(), start(&mut self.b).cast(), start(&mut self.sums))
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// Runs `body` with this thread's scratch.
pub(super) fn with<R>(body: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(body)
}
