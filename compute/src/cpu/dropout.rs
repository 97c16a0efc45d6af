//! Dropout on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::random;
use crate::{MatrixMut, MatrixRef};

/// What an element costs in units of an addition: its random bits.
const COST: usize = 4;

pub(crate) fn apply(
    cpu: &Cpu,
    y: MatrixMut<'_>,
    x: MatrixRef<'_>,
    p: f32,
    (key, rows): (u64, &[u64]),
    accumulate: bool,
) {
    let (tokens, width) = (x.rows(), x.cols());
    by_dtype!(y.dtype(), X => {
        let x = X::of(x);
        let mask = Mask::new(p, key);
        cpu.for_rows(COST * width, RowsMut::new(X::of_mut(y), tokens), |range, y| {
            mask_rows(y, &x[range.start * width..range.end * width], &rows[range], &mask, accumulate);
        });
    });
}

/// Which elements are kept, and what they are multiplied by.
struct Mask {
    key: u64,
    threshold: u64,
    scale: f32,
}

impl Mask {
    fn new(p: f32, key: u64) -> Self {
        let p = f64::from(p);
        Mask { key, threshold: (p * (1_u64 << 32) as f64).round() as u64, scale: (1.0 / (1.0 - p)) as f32 }
    }

    #[inline(always)]
    fn apply(&self, x: f32, row: u64, column: u64) -> f32 {
        if random::bits(row, column) >> 32 >= self.threshold { x * self.scale } else { 0.0 }
    }
}

multiversion! {
    fn mask_rows<X: Element>(y: &mut [X], x: &[X], rows: &[u64], mask: &Mask, accumulate: bool) {
        let width = x.len() / rows.len();
        for ((y, x), row) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(rows) {
            let row = random::key(mask.key, *row);
            if accumulate {
                for ((y, x), c) in y.iter_mut().zip(x).zip(0..) {
                    *y = X::store(y.load() + mask.apply(x.load(), row, c));
                }
            } else {
                for ((y, x), c) in y.iter_mut().zip(x).zip(0..) {
                    *y = X::store(mask.apply(x.load(), row, c));
                }
            }
        }
    }
}
