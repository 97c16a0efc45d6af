//! Multiplication by a number on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::{MatrixMut, MatrixRef};

pub(crate) fn apply(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>, factor: f32) {
    by_dtype!(y.dtype(), X => {
        let (y, x) = (X::of_mut(y), X::of(x));
        let len = y.len();
        cpu.for_rows(1, RowsMut::new(y, len), |range, y| apply_slice(y, &x[range], factor));
    });
}

pub(crate) fn in_place(cpu: &Cpu, x: MatrixMut<'_>, factor: f32) {
    by_dtype!(x.dtype(), X => {
        let x = X::of_mut(x);
        let len = x.len();
        cpu.for_rows(1, RowsMut::new(x, len), |_, x| scale_slice(x, factor));
    });
}

multiversion! {
    fn apply_slice<X: Element>(y: &mut [X], x: &[X], factor: f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = X::store(factor * x.load());
        }
    }
}

multiversion! {
    fn scale_slice<X: Element>(x: &mut [X], factor: f32) {
        for x in x.iter_mut() {
            *x = X::store(factor * x.load());
        }
    }
}
