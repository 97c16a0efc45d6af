//! Magnitudes and norms of rows on the host.

use super::Cpu;
use super::column_sums::{self, COLUMNS};
use super::quant;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::ops::magnitude::Weight;
use crate::{MatrixMut, MatrixRef};

/// Elements of a row that are added in `f32` lanes before they are added in `f64`.
const BLOCK: usize = 512;

pub(crate) fn row_squares(cpu: &Cpu, squares: MatrixMut<'_>, w: Weight<'_>) {
    let rows = squares.cols();
    let out = RowsMut::new(squares.f32(), rows);
    match w {
        Weight::Dense(w) => by_dtype!(w.dtype(), W => {
            let (width, w) = (w.cols(), W::of(w));
            cpu.for_rows(width, out, |range, squares| {
                for (square, row) in squares.iter_mut().zip(range) {
                    *square = sum_of_squares(&w[row * width..][..width]);
                }
            });
        }),
        Weight::Quantized(w) => {
            let width = w.cols();
            cpu.for_rows(4 * width, out, |range, squares| {
                let mut values = vec![0.0_f32; width];
                for (square, row) in squares.iter_mut().zip(range) {
                    quant::run(w, row * width, &mut values);
                    *square = sum_of_squares(&values);
                }
            });
        }
    }
}

fn sum_of_squares<W: Element>(row: &[W]) -> f32 {
    row.chunks(BLOCK).map(|block| f64::from(block_of_squares(block))).sum::<f64>() as f32
}

multiversion! {
    fn block_of_squares<W: Element>(row: &[W]) -> f32 {
        super::simd::sum(row, |w| w * w)
    }
}

pub(crate) fn set_row_norms(cpu: &Cpu, w: MatrixMut<'_>, m: MatrixRef<'_>) {
    let (rows, width, m) = (w.rows(), w.cols(), m.f32());
    cpu.for_rows(2 * width, RowsMut::new(w.f32(), rows), |range, w| {
        for (row, m) in w.chunks_exact_mut(width).zip(&m[range]) {
            let norm = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt();
            let factor = if norm == 0.0 { 0.0 } else { f64::from(*m) / norm };
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
        }
    });
}

pub(crate) fn norms(
    cpu: &Cpu,
    norms: MatrixMut<'_>,
    squares: MatrixRef<'_>,
    (u, v): (MatrixRef<'_>, MatrixRef<'_>),
    b: MatrixRef<'_>,
    scale: f32,
) {
    let (out, rank) = (b.rows(), b.cols());
    let (squares, u, v, b) = (squares.f32(), u.f32(), v.f32(), b.f32());
    let s = f64::from(scale);
    cpu.for_rows(4 * rank, RowsMut::new(norms.f32(), out), |range, norms| {
        for (norm, o) in norms.iter_mut().zip(range) {
            let (b, v) = (&b[o * rank..][..rank], &v[o * rank..][..rank]);
            let (mut cross, mut own) = (0.0, 0.0);
            for (r, (b, v)) in b.iter().zip(v).enumerate() {
                cross += f64::from(*b) * f64::from(u[r * out + o]);
                own += f64::from(*b) * f64::from(*v);
            }
            *norm = (f64::from(squares[o]) + s * (2.0 * cross + s * own)).max(0.0).sqrt() as f32;
        }
    });
}

pub(crate) fn factors(g: MatrixMut<'_>, (m, n): (MatrixRef<'_>, MatrixRef<'_>)) {
    let values = m.f32().iter().zip(n.f32());
    g.f32().iter_mut().zip(values).for_each(|(g, (m, n))| *g = ratio(*m, *n));
}

pub(crate) fn forward(
    cpu: &Cpu,
    y: MatrixMut<'_>,
    accumulate: bool,
    z: MatrixRef<'_>,
    (m, n): (MatrixRef<'_>, MatrixRef<'_>),
) {
    let (tokens, width) = (y.rows(), y.cols());
    let (m, n) = (m.f32(), n.f32());
    by_dtype!(y.dtype(), X => {
        let z = X::of(z);
        cpu.for_rows(2 * width, RowsMut::new(X::of_mut(y), tokens), |rows, y| {
            scale_rows(y, accumulate, &z[rows.start * width..rows.end * width], m, n);
        });
    });
}

pub(crate) fn backward(
    cpu: &Cpu,
    dz: MatrixMut<'_>,
    dm: MatrixMut<'_>,
    dy: MatrixRef<'_>,
    z: MatrixRef<'_>,
    (m, n): (MatrixRef<'_>, MatrixRef<'_>),
) {
    let (tokens, width) = (dy.rows(), dy.cols());
    let (m, n) = (m.f32(), n.f32());
    by_dtype!(dy.dtype(), X => {
        let (dy, z) = (X::of(dy), X::of(z));
        cpu.for_rows(2 * width, RowsMut::new(X::of_mut(dz), tokens), |rows, dz| {
            scale_rows(dz, false, &dy[rows.start * width..rows.end * width], m, n);
        });
        column_sums::sum(cpu, dm.f32(), tokens, |sums, t, span| {
            let row = t * width + span.start..t * width + span.end;
            add_products(sums, &dy[row.clone()], &z[row], &n[span]);
        });
    });
}

/// A row of zeros has no direction: it stays one, whatever its magnitude.
#[inline(always)]
fn ratio(of: f32, norm: f32) -> f32 {
    if norm == 0.0 { 0.0 } else { of / norm }
}

multiversion! {
    fn scale_rows<X: Element>(y: &mut [X], accumulate: bool, z: &[X], m: &[f32], n: &[f32]) {
        let width = m.len();
        for (y, z) in y.chunks_exact_mut(width).zip(z.chunks_exact(width)) {
            for (((y, z), m), n) in y.iter_mut().zip(z).zip(m).zip(n) {
                let scaled = ratio(*m, *n) * z.load();
                *y = X::store(if accumulate { y.load() + scaled } else { scaled });
            }
        }
    }
}

multiversion! {
    fn add_products<X: Element>(sums: &mut [f64; COLUMNS], dy: &[X], z: &[X], n: &[f32]) {
        for (((sum, dy), z), n) in sums.iter_mut().zip(dy).zip(z).zip(n) {
            *sum += f64::from(ratio(dy.load() * z.load(), *n));
        }
    }
}
