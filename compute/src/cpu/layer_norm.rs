//! Layer norm on the host: a task is some rows; gradients of weight and bias are some columns.

use super::Cpu;
use super::column_sums::{self, COLUMNS};
use super::rows::RowsMut;
use super::simd::{Element, LANES, by_dtype, fold, multiversion, sum};
use crate::{MatrixMut, MatrixRef};

pub(crate) fn forward(
    cpu: &Cpu,
    y: MatrixMut<'_>,
    x: MatrixRef<'_>,
    weight: MatrixRef<'_>,
    bias: Option<MatrixRef<'_>>,
    eps: f32,
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let (tokens, width) = (x.rows(), x.cols());
    let weight = weight.f32();
    let bias = bias.map_or(&[][..], |bias| bias.f32());
    by_dtype!(x.dtype(), X => {
        let x = X::of(x);
        let out = (RowsMut::new(X::of_mut(y), tokens), RowsMut::new(mean, tokens), RowsMut::new(rstd, tokens));
        cpu.for_rows(2 * width, out, |rows, (y, mean, rstd)| {
            forward_rows(y, &x[rows.start * width..rows.end * width], weight, bias, eps, mean, rstd);
        });
    });
}

multiversion! {
    fn forward_rows<X: Element>(
        y: &mut [X], x: &[X], weight: &[f32], bias: &[f32], eps: f32, mean: &mut [f32], rstd: &mut [f32]
    ) {
        let width = weight.len();
        let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(mean).zip(rstd);
        for (((y, x), mean), rstd) in rows {
            let m = sum(x, |x| x) / width as f32;
            let r = 1.0 / (sum(x, |x| (x - m) * (x - m)) / width as f32 + eps).sqrt();
            (*mean, *rstd) = (m, r);
            if bias.is_empty() {
                for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                    *y = X::store(w * ((x.load() - m) * r));
                }
            } else {
                for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = X::store(w * ((x.load() - m) * r) + b);
                }
            }
        }
    }
}

pub(crate) fn backward(
    cpu: &Cpu,
    dx: MatrixMut<'_>,
    accumulate: bool,
    dy: MatrixRef<'_>,
    x: MatrixRef<'_>,
    weight: MatrixRef<'_>,
    mean: &[f32],
    rstd: &[f32],
    dweight: Option<MatrixMut<'_>>,
    dbias: Option<MatrixMut<'_>>,
) {
    let (tokens, width) = (dx.rows(), dx.cols());
    by_dtype!(x.dtype(), X => {
        let (x, dy, weight) = (X::of(x), X::of(dy), weight.f32());
        cpu.for_rows(3 * width, RowsMut::new(X::of_mut(dx), tokens), |rows, dx| {
            let span = rows.start * width..rows.end * width;
            let (mean, rstd) = (&mean[rows.clone()], &rstd[rows]);
            backward_rows(dx, accumulate, &dy[span.clone()], &x[span], weight, mean, rstd);
        });
        if let Some(dweight) = dweight {
            column_sums::sum(cpu, dweight.f32(), tokens, |sums, t, span| {
                let row = t * width + span.start..t * width + span.end;
                add_products(sums, &dy[row.clone()], &x[row], mean[t], rstd[t]);
            });
        }
        if let Some(dbias) = dbias {
            column_sums::sum(cpu, dbias.f32(), tokens, |sums, t, span| {
                add_row(sums, &dy[t * width + span.start..t * width + span.end]);
            });
        }
    });
}

multiversion! {
    fn backward_rows<X: Element>(
        dx: &mut [X], accumulate: bool, dy: &[X], x: &[X], weight: &[f32], mean: &[f32], rstd: &[f32]
    ) {
        let width = weight.len();
        let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width));
        for (((dx, dy), x), (&m, &r)) in rows.zip(mean.iter().zip(rstd)) {
            let (plain, along) = gradient_means(dy, x, weight, m, r);
            for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
                let n = (x.load() - m) * r;
                let d = r * (w * dy.load() - plain - n * along);
                *dx = X::store(if accumulate { dx.load() + d } else { d });
            }
        }
    }
}

/// `mean_c g` and `mean_c(g n)` of a row, in [`LANES`] partial sums each.
#[inline(always)]
fn gradient_means<X: Element>(dy: &[X], x: &[X], weight: &[f32], mean: f32, rstd: f32) -> (f32, f32) {
    let (mut plain, mut along) = ([0.0; LANES], [0.0; LANES]);
    for ((dy, x), w) in dy.chunks(LANES).zip(x.chunks(LANES)).zip(weight.chunks(LANES)) {
        for (i, ((dy, x), w)) in dy.iter().zip(x).zip(w).enumerate() {
            let g = w * dy.load();
            plain[i] += g;
            along[i] += g * ((x.load() - mean) * rstd);
        }
    }
    let width = weight.len() as f32;
    (fold(plain, |a, b| a + b) / width, fold(along, |a, b| a + b) / width)
}

multiversion! {
    fn add_products<X: Element>(sums: &mut [f64; COLUMNS], dy: &[X], x: &[X], mean: f32, rstd: f32) {
        for ((sum, dy), x) in sums.iter_mut().zip(dy).zip(x) {
            *sum += f64::from(dy.load() * ((x.load() - mean) * rstd));
        }
    }
}

multiversion! {
    fn add_row<X: Element>(sums: &mut [f64; COLUMNS], dy: &[X]) {
        for (sum, dy) in sums.iter_mut().zip(dy) {
            *sum += f64::from(dy.load());
        }
    }
}
