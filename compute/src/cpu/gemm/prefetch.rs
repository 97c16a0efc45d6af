//! Weights that are asked for before they are packed.

use super::Right;
use crate::cpu::simd;
use crate::matrix::Slice;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the cache lines of a part of `b` a few at a time, while something else is multiplied: weights are
/// read from memory in short runs, which no processor guesses by itself.
pub(super) struct Prefetch {
    /// The run at hand, and the next of its lines.
    run: *const u8,
    line: usize,
    lines_of_run: usize,
    /// Bytes between runs.
    stride: usize,
    /// Lines that are left, and how many are asked for in a step.
    left: usize,
    lines_per_step: usize,
}

impl Prefetch {
    /// To be done in so many steps.
    pub(super) fn new(b: Right<'_>, steps: usize) -> Self {
        let (run, runs, run_bytes, stride) = match b {
            Right::Coded(b) => b.bytes(),
            Right::Dense(b) => {
                let (start, size): (*const u8, usize) = match b.data {
                    Slice::F32(s) => (s.as_ptr().cast(), 4),
                    Slice::Bf16(s) => (s.as_ptr().cast(), 2),
                };
                let (runs, run, stride) = if b.row_stride == 1 {
                    (b.cols, b.rows, b.col_stride)
                } else {
                    (b.rows, b.cols, b.row_stride)
                };
                (start, runs, run * size, stride * size)
            }
        };
        let lines_of_run = run_bytes.div_ceil(LINE);
        let left = runs * lines_of_run;
        Prefetch { run, line: 0, lines_of_run, stride, left, lines_per_step: left.div_ceil(steps) }
    }

    /// Asks for the next lines.
    #[inline]
    pub(super) fn step(&mut self) {
        let Prefetch { mut run, mut line, lines_of_run, stride, .. } = *self;
        let count = self.lines_per_step.min(self.left);
        for _ in 0..count {
            simd::prefetch(run.wrapping_add(line * LINE));
            line += 1;
            let is_last = line == lines_of_run;
            run = run.wrapping_add(if is_last { stride } else { 0 });
            line = if is_last { 0 } else { line };
        }
        (self.run, self.line) = (run, line);
        self.left -= count;
    }
}
