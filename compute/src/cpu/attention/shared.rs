//! A matrix that tasks write parts of.

use std::marker::PhantomData;

use crate::cpu::simd::{Element, multiversion};
use crate::matrix::SliceMut;
use crate::{MatrixMut, bf16};

/// A matrix of which every task writes elements of its own.
pub(super) struct Shared<'a> {
    data: Data,
    rows: usize,
    cols: usize,
    matrix: PhantomData<MatrixMut<'a>>,
}

enum Data {
    F32(*mut f32),
    Bf16(*mut bf16),
}

// SAFETY: it is written through `store` alone, whose callers promise that no two write the same elements.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(m: MatrixMut<'a>) -> Self {
        let (rows, cols) = (m.rows(), m.cols());
        let data = match m.slice() {
            SliceMut::F32(s) => Data::F32(s.as_mut_ptr()),
            SliceMut::Bf16(s) => Data::Bf16(s.as_mut_ptr()),
        };
        Shared { data, rows, cols, matrix: PhantomData }
    }

    /// Writes the first `width` of every `stride` values: `count` of them side by side, from this column on,
    /// then as many in the next row.
    ///
    /// # Safety
    /// Nobody else touches these elements meanwhile.
    pub(super) unsafe fn store(
        &self,
        (row, col): (usize, usize),
        (count, width): (usize, usize),
        values: &[f32],
        stride: usize,
    ) {
        let rows = (values.len() / stride).div_ceil(count);
        assert!(
            row + rows <= self.rows && col + count * width <= self.cols,
            "{rows} x {count} x {width} at {row}, {col}"
        );
        for (i, values) in values.chunks_exact(stride).enumerate() {
            let (at, values) = ((row + i / count) * self.cols + col + i % count * width, &values[..width]);
            match self.data {
                Data::F32(start) => {
                    // SAFETY: within the matrix by the assertion; ours alone by the caller's promise.
                    unsafe { std::slice::from_raw_parts_mut(start.add(at), width) }.copy_from_slice(values);
                }
                Data::Bf16(start) => {
                    // SAFETY: as above.
                    round(values, unsafe { std::slice::from_raw_parts_mut(start.add(at), width) });
                }
            }
        }
    }
}

multiversion! {
    fn round(from: &[f32], to: &mut [bf16]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::store(*from));
    }
}
