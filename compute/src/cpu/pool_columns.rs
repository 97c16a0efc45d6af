//! Sums of neighbouring columns on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::{MatrixMut, MatrixRef};

/// Sums that are made side by side: those of a group of 32 or more.
const LANES: usize = 16;

pub(crate) fn forward(cpu: &Cpu, p: MatrixMut<'_>, x: MatrixRef<'_>, group: usize) {
    let (rows, width) = (x.rows(), x.cols());
    by_dtype!(x.dtype(), X => {
        let x = X::of(x);
        cpu.for_rows(width, RowsMut::new(p.f32(), rows), |range, p| {
            sum_groups(p, &x[range.start * width..range.end * width], group);
        });
    });
}

multiversion! {
    fn sum_groups<X: Element>(p: &mut [f32], x: &[X], group: usize) {
        for (p, x) in p.iter_mut().zip(x.chunks_exact(group)) {
            let mut lanes = [0.0_f32; LANES];
            let (chunks, rest) = x.as_chunks::<LANES>();
            for chunk in chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane += x.load();
                }
            }
            for (lane, x) in lanes.iter_mut().zip(rest) {
                *lane += x.load();
            }
            let mut half = LANES / 2;
            while half > 0 {
                for i in 0..half {
                    lanes[i] += lanes[i + half];
                }
                half /= 2;
            }
            *p = lanes[0];
        }
    }
}

pub(crate) fn backward(cpu: &Cpu, dx: MatrixMut<'_>, dp: MatrixRef<'_>, group: usize, accumulate: bool) {
    let (rows, width) = (dp.rows(), dp.cols());
    let dp = dp.f32();
    by_dtype!(dx.dtype(), X => {
        cpu.for_rows(width * group, RowsMut::new(X::of_mut(dx), rows), |range, dx| {
            spread(dx, &dp[range.start * width..range.end * width], group, accumulate);
        });
    });
}

multiversion! {
    fn spread<X: Element>(dx: &mut [X], dp: &[f32], group: usize, accumulate: bool) {
        for (dx, &dp) in dx.chunks_exact_mut(group).zip(dp) {
            for dx in dx.iter_mut() {
                *dx = X::store(if accumulate { dx.load() + dp } else { dp });
            }
        }
    }
}
