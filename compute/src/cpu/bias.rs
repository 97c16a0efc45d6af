//! Bias on the host.

use super::Cpu;
use super::column_sums::{self, COLUMNS};
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::{MatrixMut, MatrixRef};

pub(crate) fn add(cpu: &Cpu, y: MatrixMut<'_>, bias: MatrixRef<'_>) {
    by_dtype!(y.dtype(), Y => by_dtype!(bias.dtype(), B => {
        let bias = B::of(bias);
        let tokens = y.rows();
        cpu.for_rows(bias.len(), RowsMut::new(Y::of_mut(y), tokens), |_, y| add_rows(y, bias));
    }));
}

multiversion! {
    fn add_rows<Y: Element, B: Element>(y: &mut [Y], bias: &[B]) {
        for y in y.chunks_exact_mut(bias.len()) {
            for (y, b) in y.iter_mut().zip(bias) {
                *y = Y::store(y.load() + b.load());
            }
        }
    }
}

pub(crate) fn backward(cpu: &Cpu, dbias: MatrixMut<'_>, dy: MatrixRef<'_>) {
    let (tokens, width) = (dy.rows(), dy.cols());
    by_dtype!(dy.dtype(), Y => {
        let dy = Y::of(dy);
        column_sums::sum(cpu, dbias.f32(), tokens, |sums, t, span| {
            add_row(sums, &dy[t * width + span.start..t * width + span.end]);
        });
    });
}

multiversion! {
    fn add_row<Y: Element>(sums: &mut [f64; COLUMNS], dy: &[Y]) {
        for (sum, dy) in sums.iter_mut().zip(dy) {
            *sum += f64::from(dy.load());
        }
    }
}
