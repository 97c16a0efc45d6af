//! Residual addition on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::{MatrixMut, MatrixRef};

pub(crate) fn add(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>) {
    by_dtype!(y.dtype(), X => {
        let y = X::of_mut(y);
        let x = X::of(x);
        let len = y.len();
        cpu.for_rows(1, RowsMut::new(y, len), |range, y| add_slice(y, &x[range]));
    });
}

multiversion! {
    fn add_slice<X: Element>(y: &mut [X], x: &[X]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = X::store(y.load() + x.load());
        }
    }
}

pub(crate) fn add_scaled(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>, factor: f32) {
    by_dtype!(y.dtype(), X => {
        let y = X::of_mut(y);
        let x = X::of(x);
        let len = y.len();
        cpu.for_rows(1, RowsMut::new(y, len), |range, y| add_scaled_slice(y, &x[range], factor));
    });
}

multiversion! {
    fn add_scaled_slice<X: Element>(y: &mut [X], x: &[X], factor: f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = X::store(y.load() + factor * x.load());
        }
    }
}
