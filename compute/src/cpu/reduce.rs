//! Reductions on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{LANES, multiversion};

/// Blocks that a buffer is cut into, whatever its length and the number of threads.
const BLOCKS: usize = 256;

pub(crate) fn sum_of_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    let length = x.len().div_ceil(BLOCKS).next_multiple_of(LANES);
    let mut sums = [0.0; BLOCKS];
    cpu.for_rows(length, RowsMut::new(&mut sums, BLOCKS), |blocks, sums| {
        for (block, sum) in blocks.zip(sums) {
            let start = (block * length).min(x.len());
            *sum = block_sum(&x[start..(start + length).min(x.len())]);
        }
    });
    sums.iter().sum()
}

multiversion! {
    fn block_sum(x: &[f32]) -> f64 {
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(*x) * f64::from(*x);
        }
        lanes.iter().sum()
    }
}
