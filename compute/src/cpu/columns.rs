//! Columns of a matrix, on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype};
use crate::{MatrixMut, MatrixRef};

pub(crate) fn take(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>, start: usize) {
    let (rows, narrow, wide) = (y.rows(), y.cols(), x.cols());
    by_dtype!(y.dtype(), X => {
        let x = X::of(x);
        cpu.for_rows(narrow, RowsMut::new(X::of_mut(y), rows), |range, y| {
            for (y, row) in y.chunks_exact_mut(narrow).zip(range) {
                y.copy_from_slice(&x[row * wide + start..][..narrow]);
            }
        });
    });
}

pub(crate) fn put(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>, start: usize) {
    let (rows, narrow, wide) = (y.rows(), x.cols(), y.cols());
    by_dtype!(y.dtype(), X => {
        let x = X::of(x);
        cpu.for_rows(narrow, RowsMut::new(X::of_mut(y), rows), |range, y| {
            for (y, row) in y.chunks_exact_mut(wide).zip(range) {
                y[start..start + narrow].copy_from_slice(&x[row * narrow..][..narrow]);
            }
        });
    });
}
