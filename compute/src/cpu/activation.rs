//! Activations without a gate on the host.

use super::Cpu;
use super::gated::{Act, COST, by_activation};
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::ops::gated::Activation;
use crate::{MatrixMut, MatrixRef};

pub(crate) fn forward(cpu: &Cpu, activation: Activation, y: MatrixMut<'_>, x: MatrixRef<'_>) {
    by_dtype!(y.dtype(), X => by_activation!(activation, A => {
        let (y, x) = (X::of_mut(y), X::of(x));
        let len = y.len();
        cpu.for_rows(COST, RowsMut::new(y, len), |range, y| forward_slice::<X, A>(y, &x[range]));
    }));
}

pub(crate) fn backward(cpu: &Cpu, activation: Activation, x: MatrixMut<'_>, dy: MatrixRef<'_>) {
    by_dtype!(dy.dtype(), X => by_activation!(activation, A => {
        let (x, dy) = (X::of_mut(x), X::of(dy));
        let len = x.len();
        cpu.for_rows(COST, RowsMut::new(x, len), |range, x| backward_slice::<X, A>(x, &dy[range]));
    }));
}

multiversion! {
    fn forward_slice<X: Element, A: Act>(y: &mut [X], x: &[X]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = X::store(A::value(x.load()));
        }
    }
}

multiversion! {
    fn backward_slice<X: Element, A: Act>(x: &mut [X], dy: &[X]) {
        for (x, dy) in x.iter_mut().zip(dy) {
            let (_, slope) = A::value_and_slope(x.load());
            *x = X::store(dy.load() * slope);
        }
    }
}
