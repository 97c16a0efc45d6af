//! Sums down the columns of a matrix: the gradients of biases and norm weights.

use std::ops::Range;

use super::Cpu;
use super::rows::RowsMut;

/// Columns summed together: wide enough for whole cache lines, narrow enough for the sums to stay in the
/// first cache.
pub(crate) const COLUMNS: usize = 128;

/// `out[c] += Σ_t term(t, c)` for `t` in `0..rows`, in the order of the rows, in `f64`. `add(sums, t, span)`
/// adds the terms of row `t` and the columns `span` (at most [`COLUMNS`]) to the first of `sums`. Threads
/// share out the columns, so the order of a sum is always the same.
pub(crate) fn sum(
    cpu: &Cpu,
    out: &mut [f32],
    rows: usize,
    add: impl Fn(&mut [f64; COLUMNS], usize, Range<usize>) + Sync,
) {
    let width = out.len();
    cpu.for_rows(rows, RowsMut::new(out, width), |columns, out| {
        for (i, out) in out.chunks_mut(COLUMNS).enumerate() {
            let start = columns.start + i * COLUMNS;
            let mut sums = [0.0; COLUMNS];
            for t in 0..rows {
                add(&mut sums, t, start..start + out.len());
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out += sum as f32;
            }
        }
    });
}
