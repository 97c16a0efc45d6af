//! Random weights on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::MatrixMut;
use crate::random;

/// What an element costs in units of an addition: its random bits.
const COST: usize = 4;

pub(crate) fn nearly_normal(cpu: &Cpu, y: MatrixMut<'_>, deviation: f32, key: u64) {
    by_dtype!(y.dtype(), X => {
        let y = X::of_mut(y);
        let len = y.len();
        cpu.for_rows(COST, RowsMut::new(y, len), |range, y| fill(y, range.start as u64, deviation, key));
    });
}

multiversion! {
    fn fill<X: Element>(y: &mut [X], first: u64, deviation: f32, key: u64) {
        for (y, i) in y.iter_mut().zip(first..) {
            *y = X::store(deviation * one(key, i));
        }
    }
}

#[inline(always)]
fn one(key: u64, counter: u64) -> f32 {
    let bits = random::bits(key, counter);
    let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
    // Each uniform number in 0..65536 has variance (65536² - 1) / 12; four of them 65536² / 3.
    (sum as f32 - 131_070.0) * (3.0_f32.sqrt() / 65_536.0)
}
