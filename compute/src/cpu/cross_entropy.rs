//! Cross entropy on the host: a row of logits at a time, while it is in the cache.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{LANES, exp, fold, max, multiversion, sum};
use crate::{MatrixMut, MatrixRef};

/// Terms summed in `f32` before they are added in `f64`.
const BLOCK: usize = 64 * LANES;

/// What an element costs in units of an addition: its exponential.
const COST: usize = 6;

pub(crate) fn forward(cpu: &Cpu, logits: MatrixRef<'_>, targets: &[u32], losses: &mut [f32]) {
    let (rows, width) = (logits.rows(), logits.cols());
    let logits = logits.f32();
    cpu.for_rows(COST * width, RowsMut::new(losses, rows), |range, losses| {
        for (n, loss) in range.zip(losses) {
            *loss = row_loss(&logits[n * width..][..width], targets[n]);
        }
    });
}

pub(crate) fn forward_backward(
    cpu: &Cpu,
    logits: MatrixMut<'_>,
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
) {
    let (rows, width) = (logits.rows(), logits.cols());
    let out = (RowsMut::new(logits.f32(), rows), RowsMut::new(losses, rows));
    cpu.for_rows(COST * width, out, |range, (logits, losses)| {
        let of_rows = targets[range.clone()].iter().zip(&weights[range]);
        for ((row, (&target, &weight)), loss) in logits.chunks_exact_mut(width).zip(of_rows).zip(losses) {
            *loss = row_gradient(row, target, weight);
        }
    });
}

multiversion! {
    fn row_loss(row: &[f32], target: u32) -> f32 {
        let largest = max(row);
        let mut total = 0.0;
        for block in row.chunks(BLOCK) {
            total += f64::from(sum(block, |x| exp(x - largest)));
        }
        negative_log(total, largest, row[target as usize])
    }
}

multiversion! {
    fn row_gradient(row: &mut [f32], target: u32, weight: f32) -> f32 {
        let largest = max(row);
        let logit = row[target as usize];
        let mut total = 0.0;
        for block in row.chunks_mut(BLOCK) {
            total += f64::from(exponentials(block, largest));
        }
        let factor = (f64::from(weight) / total) as f32;
        for x in row.iter_mut() {
            *x *= factor;
        }
        row[target as usize] -= weight;
        negative_log(total, largest, logit)
    }
}

/// `-log(exp(logit - largest) / total)`, where `total` is the sum of `exp(x - largest)` over the row.
#[inline(always)]
fn negative_log(total: f64, largest: f32, logit: f32) -> f32 {
    (total.ln() + f64::from(largest) - f64::from(logit)) as f32
}

/// Replaces every `x` by `exp(x - largest)` and returns the sum.
#[inline(always)]
fn exponentials(block: &mut [f32], largest: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = block.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - largest);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp(*x - largest);
        *lane += *x;
    }
    fold(lanes, |a, b| a + b)
}
