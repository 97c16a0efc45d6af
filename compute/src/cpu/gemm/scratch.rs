//! Working memory for products, of fixed sizes, allocated by a thread when it first needs it and kept until it ends.

use std::cell::RefCell;

use crate::{DType, Matrix};

/// Bytes of a block of `a` that a task packs for itself: it stays in the second-level cache.
pub(super) const A_BYTES: usize = 512 << 10;
/// Bytes of a packed panel of `b`: it stays in the first-level cache.
pub(super) const B_BYTES: usize = 32 << 10;
/// Sums (`f32`) of a block of `c`, kept between blocks of `K`.
pub(super) const SUMS: usize = 128 << 10;
/// Bytes of `a` that are packed once for all tasks.
pub(super) const SHARED_A_BYTES: usize = 8 << 20;
/// Sums of the rows of `a` that are packed for all tasks a part of `K` at a time.
pub(super) const SHARED_SUMS: usize = 1 << 20;

/// Zeroed memory for one task at a time.
pub(super) struct Scratch {
    a: Matrix,
    b: Matrix,
    values: Matrix,
    sums: Matrix,
}

impl Scratch {
    /// The start of the packed block of `a`, of the packed panel of `b`, and of the sums.
    pub(super) fn pointers(&mut self) -> (*mut u8, *mut u8, *mut f32) {
        (start(&mut self.a).cast(), start(&mut self.b).cast(), start(&mut self.sums))
    }

    /// The start of the values of a panel whose factor stands in four bits: [`B_BYTES`], as its packed form.
    pub(super) fn values(&mut self) -> *mut u8 {
        start(&mut self.values).cast()
    }
}

fn floats(count: usize) -> Matrix {
    Matrix::zeros(1, count, DType::F32)
}

fn start(floats: &mut Matrix) -> *mut f32 {
    floats.as_mut().f32().as_mut_ptr()
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch { a: floats(A_BYTES / 4), b: floats(B_BYTES / 4), values: floats(B_BYTES / 4), sums: floats(SUMS) });
    static SHARED: RefCell<(Matrix, Matrix)> = RefCell::new((floats(SHARED_A_BYTES / 4), floats(SHARED_SUMS)));
}

/// Runs `body` with this thread's scratch.
pub(super) fn with<R>(body: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(body)
}

/// Runs `body` with the start of this thread's room for `a` packed for all tasks, and for sums.
pub(super) fn with_shared<R>(body: impl FnOnce(*mut u8, *mut f32) -> R) -> R {
    SHARED.with_borrow_mut(|(a, sums)| body(start(a).cast(), start(sums)))
}
