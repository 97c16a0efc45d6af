//! Divergence of logits on the host: a row of both at a time, while they are in the cache.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{LANES, exp, fold, max, multiversion, sum};
use crate::MatrixRef;

/// Terms summed in `f32` before they are added in `f64`.
const BLOCK: usize = 64 * LANES;

/// What an element costs in units of an addition: four exponentials and a polynomial.
const COST: usize = 30;

/// Where `exp(d) - 1 - d` is summed as a series: beyond it the difference is exact enough.
const SERIES: f32 = 0.5;

pub(crate) fn forward(cpu: &Cpu, of: MatrixRef<'_>, from: MatrixRef<'_>, divergences: &mut [f32]) {
    let (rows, width) = (of.rows(), of.cols());
    let (of, from) = (of.f32(), from.f32());
    cpu.for_rows(COST * width, RowsMut::new(divergences, rows), |range, divergences| {
        for (n, divergence) in range.zip(divergences) {
            *divergence = row_divergence(&of[n * width..][..width], &from[n * width..][..width]);
        }
    });
}

multiversion! {
    fn row_divergence(of: &[f32], from: &[f32]) -> f32 {
        let (p, q) = (Softmax::of(of), Softmax::of(from));
        let shift = (q.logarithm - p.logarithm) as f32;
        let mut total = 0.0;
        for (of, from) in of.chunks(BLOCK).zip(from.chunks(BLOCK)) {
            total += f64::from(terms(of, from, p, q, shift));
        }
        total as f32
    }
}

/// What turns a row's logits into probabilities.
#[derive(Clone, Copy)]
struct Softmax {
    largest: f32,
    /// One over the sum of `exp(x - largest)`.
    factor: f32,
    /// The logarithm of the sum of `exp(x)`.
    logarithm: f64,
}

impl Softmax {
    #[inline(always)]
    fn of(row: &[f32]) -> Self {
        let largest = max(row);
        let mut total = 0.0;
        for block in row.chunks(BLOCK) {
            total += f64::from(sum(block, |x| exp(x - largest)));
        }
        Softmax { largest, factor: (1.0 / total) as f32, logarithm: total.ln() + f64::from(largest) }
    }

    #[inline(always)]
    fn probability(self, x: f32) -> f32 {
        exp(x - self.largest) * self.factor
    }
}

/// The terms of a block.
#[inline(always)]
fn terms(of: &[f32], from: &[f32], p: Softmax, q: Softmax, shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a_chunks, a), (b_chunks, b)) = (of.as_chunks::<LANES>(), from.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += term(a[i], b[i], p, q, shift);
        }
    }
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        lanes[i] += term(*a, *b, p, q, shift);
    }
    fold(lanes, |a, b| a + b)
}

/// `p (exp(d) - 1 - d)` of a token with these logits.
#[inline(always)]
fn term(a: f32, b: f32, p: Softmax, q: Softmax, shift: f32) -> f32 {
    let (p, q, d) = (p.probability(a), q.probability(b), (b - a) - shift);
    let series = 1.0 / 40_320.0;
    let series = series * d + 1.0 / 5040.0;
    let series = series * d + 1.0 / 720.0;
    let series = series * d + 1.0 / 120.0;
    let series = series * d + 1.0 / 24.0;
    let series = series * d + 1.0 / 6.0;
    let series = series * d + 0.5;
    let near = p * (d * d) * series;
    let far = (q - p) - p * d;
    let term = if d.abs() < SERIES { near } else { far };
    // Where `p` has nothing, `d` may be no number.
    if p == 0.0 { q } else { term }
}
