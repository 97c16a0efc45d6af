//! Dropout on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::random;
use crate::{MatrixMut, MatrixRef};

/// What an element costs in units of an addition: its random bits.
const COST: usize = 4;

pub(crate) fn apply(cpu: &Cpu, y: MatrixMut<'_>, x: MatrixRef<'_>, p: f32, key: u64, accumulate: bool) {
    by_dtype!(y.dtype(), X => {
        let (y, x) = (X::of_mut(y), X::of(x));
        let mask = Mask::new(p, key);
        let len = y.len();
        cpu.for_rows(COST, RowsMut::new(y, len), |range, y| {
            mask_slice(y, &x[range.clone()], range.start as u64, &mask, accumulate);
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
    fn apply(&self, x: f32, index: u64) -> f32 {
        if random::bits(self.key, index) >> 32 >= self.threshold { x * self.scale } else { 0.0 }
    }
}

multiversion! {
    fn mask_slice<X: Element>(y: &mut [X], x: &[X], first: u64, mask: &Mask, accumulate: bool) {
        let elements = y.iter_mut().zip(x).zip(first..);
        if accumulate {
            for ((y, x), i) in elements {
                *y = X::store(y.load() + mask.apply(x.load(), i));
            }
        } else {
            for ((y, x), i) in elements {
                *y = X::store(mask.apply(x.load(), i));
            }
        }
    }
}
