//! RMS norm on the host: a task is some rows; the weight's gradient is some columns.

use super::Cpu;
use super::column_sums::{self, COLUMNS};
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, dot3, multiversion, sum};
use crate::ops::rms_norm::Offset;
use crate::{MatrixMut, MatrixRef};

/// What is added to the weight, as a type, so that a loop is compiled for it.
trait Offsets {
    fn add(weight: f32) -> f32;
}

struct Nothing;
struct One;

impl Offsets for Nothing {
    #[inline(always)]
    fn add(weight: f32) -> f32 {
        weight
    }
}

impl Offsets for One {
    #[inline(always)]
    fn add(weight: f32) -> f32 {
        1.0 + weight
    }
}

/// Evaluates an expression with a type name bound to what an [`Offset`] stands for.
macro_rules! by_offset {
    ($offset:expr, $name:ident => $body:expr) => {
        match $offset {
            Offset::None => {
                type $name = Nothing;
                $body
            }
            Offset::One => {
                type $name = One;
                $body
            }
        }
    };
}

pub(crate) fn forward(
    cpu: &Cpu,
    y: MatrixMut<'_>,
    x: MatrixRef<'_>,
    weight: MatrixRef<'_>,
    offset: Offset,
    eps: f32,
    rstd: &mut [f32],
) {
    by_dtype!(x.dtype(), X => by_dtype!(weight.dtype(), W => by_offset!(offset, O => {
        forward_typed::<X, W, O>(cpu, y, x, weight, eps, rstd);
    })));
}

fn forward_typed<X: Element, W: Element, O: Offsets>(
    cpu: &Cpu,
    y: MatrixMut<'_>,
    x: MatrixRef<'_>,
    weight: MatrixRef<'_>,
    eps: f32,
    rstd: &mut [f32],
) {
    let (tokens, width) = (x.rows(), x.cols());
    let (x, weight) = (X::of(x), W::of(weight));
    let out = (RowsMut::new(X::of_mut(y), tokens), RowsMut::new(rstd, tokens));
    cpu.for_rows(width, out, |rows, (y, rstd)| {
        forward_rows::<X, W, O>(y, &x[rows.start * width..rows.end * width], weight, eps, rstd);
    });
}

multiversion! {
    fn forward_rows<X: Element, W: Element, O: Offsets>(
        y: &mut [X], x: &[X], weight: &[W], eps: f32, rstd: &mut [f32]
    ) {
        let width = weight.len();
        for ((y, x), rstd) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(rstd) {
            let r = 1.0 / (sum(x, |x| x * x) / width as f32 + eps).sqrt();
            *rstd = r;
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = X::store(O::add(w.load()) * (x.load() * r));
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
    offset: Offset,
    rstd: &[f32],
    dweight: Option<MatrixMut<'_>>,
) {
    by_dtype!(x.dtype(), X => {
        by_dtype!(weight.dtype(), W => by_offset!(offset, O => {
            backward_input::<X, W, O>(cpu, dx, accumulate, X::of(dy), X::of(x), W::of(weight), rstd);
        }));
        if let Some(dweight) = dweight {
            backward_weight::<X>(cpu, dweight.f32(), X::of(dy), X::of(x), rstd);
        }
    });
}

fn backward_input<X: Element, W: Element, O: Offsets>(
    cpu: &Cpu,
    dx: MatrixMut<'_>,
    accumulate: bool,
    dy: &[X],
    x: &[X],
    weight: &[W],
    rstd: &[f32],
) {
    let (tokens, width) = (dx.rows(), dx.cols());
    cpu.for_rows(width, RowsMut::new(X::of_mut(dx), tokens), |rows, dx| {
        let span = rows.start * width..rows.end * width;
        backward_rows::<X, W, O>(dx, accumulate, &dy[span.clone()], &x[span], weight, &rstd[rows]);
    });
}

multiversion! {
    fn backward_rows<X: Element, W: Element, O: Offsets>(
        dx: &mut [X], accumulate: bool, dy: &[X], x: &[X], weight: &[W], rstd: &[f32]
    ) {
        let width = weight.len();
        let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width)).zip(rstd);
        for (((dx, dy), x), &r) in rows {
            let pull = r * r * (dot3(x, dy, weight, O::add) / width as f32);
            let row = dx.iter_mut().zip(dy).zip(x).zip(weight);
            if accumulate {
                for (((dx, dy), x), w) in row {
                    *dx = X::store(dx.load() + r * (O::add(w.load()) * dy.load() - x.load() * pull));
                }
            } else {
                for (((dx, dy), x), w) in row {
                    *dx = X::store(r * (O::add(w.load()) * dy.load() - x.load() * pull));
                }
            }
        }
    }
}

fn backward_weight<X: Element>(cpu: &Cpu, dweight: &mut [f32], dy: &[X], x: &[X], rstd: &[f32]) {
    let width = dweight.len();
    column_sums::sum(cpu, dweight, rstd.len(), |sums, t, span| {
        let row = t * width + span.start..t * width + span.end;
        add_products(sums, &dy[row.clone()], &x[row], rstd[t]);
    });
}

multiversion! {
    fn add_products<X: Element>(sums: &mut [f64; COLUMNS], dy: &[X], x: &[X], rstd: f32) {
        for ((sum, dy), x) in sums.iter_mut().zip(dy).zip(x) {
            *sum += f64::from(dy.load() * (x.load() * rstd));
        }
    }
}
