//! Rows that grow with their position, on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::MatrixMut;

pub(crate) fn apply(cpu: &Cpu, x: MatrixMut<'_>, factors: &[f32], positions: &[u32]) {
    let (tokens, width) = (x.rows(), x.cols());
    by_dtype!(x.dtype(), X => {
        cpu.for_rows(width, RowsMut::new(X::of_mut(x), tokens), |range, x| {
            scale_rows(x, factors, &positions[range]);
        });
    });
}

multiversion! {
    fn scale_rows<X: Element>(x: &mut [X], factors: &[f32], positions: &[u32]) {
        let width = x.len() / positions.len();
        for (x, &position) in x.chunks_exact_mut(width).zip(positions) {
            let factor = factors[position as usize];
            for x in x.iter_mut() {
                *x = X::store(factor * x.load());
            }
        }
    }
}
