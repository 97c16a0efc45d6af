//! Soft caps on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{multiversion, tanh};
use crate::{MatrixMut, MatrixRef};

/// What an element costs in units of an addition: the exponential and the division.
const COST: usize = 8;

pub(crate) fn forward(cpu: &Cpu, x: MatrixMut<'_>, factor: f32, cap: f32) {
    let x = x.f32();
    let len = x.len();
    cpu.for_rows(COST, RowsMut::new(x, len), |_, x| cap_slice(x, factor, cap));
}

pub(crate) fn backward(cpu: &Cpu, dy: MatrixMut<'_>, y: MatrixRef<'_>, factor: f32, cap: f32) {
    let (dy, y) = (dy.f32(), y.f32());
    let len = dy.len();
    cpu.for_rows(COST, RowsMut::new(dy, len), |range, dy| uncap_slice(dy, &y[range], factor, cap));
}

multiversion! {
    /// `x = cap tanh(factor x / cap)`
    pub(super) fn cap_slice(x: &mut [f32], factor: f32, cap: f32) {
        let inner = factor / cap;
        for x in x.iter_mut() {
            *x = cap * tanh(inner * *x);
        }
    }
}

multiversion! {
    fn uncap_slice(dy: &mut [f32], y: &[f32], factor: f32, cap: f32) {
        let inverse = 1.0 / cap;
        for (dy, y) in dy.iter_mut().zip(y) {
            let part = y * inverse;
            *dy *= factor * (1.0 - part * part);
        }
    }
}
