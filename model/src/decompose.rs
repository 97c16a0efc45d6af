//! Decompositions of matrices in the host's memory: singular values, orthogonal and triangular factors.
//!
//! On one thread, so that results do not depend on their number.

use compute::{MatrixMut, MatrixRef};
use faer::linalg::solvers::DenseSolveCore;
use faer::{Mat, MatRef, Side};

/// A matrix `[m, n]` as `U Σ Vᵀ`.
#[derive(Debug)]
pub(crate) struct Singular {
    /// Left singular vectors `[m, k]`.
    u: Mat<f32>,
    /// Singular values, the largest first.
    pub(crate) values: Vec<f32>,
    /// Right singular vectors `[n, k]`.
    v: Mat<f32>,
}

impl Singular {
    /// Decomposes a matrix of `f32`; `None` if the iteration does not converge.
    pub(crate) fn of(matrix: MatrixRef<'_>) -> Option<Singular> {
        Singular::of_view(view(matrix))
    }

    /// Decomposes `B A` without making it, from `b [m, r]` and `a [r, n]`: by the triangular factors of both,
    /// in about `(m + n) r²` operations.
    pub(crate) fn of_product(b: MatrixRef<'_>, a: MatrixRef<'_>) -> Option<Singular> {
        let (b, a) = (view(b).qr(), view(a).transpose().qr());
        let core = Singular::of_view((b.thin_R() * a.thin_R().transpose()).as_ref())?;
        Some(Singular { u: b.compute_thin_Q() * core.u, v: a.compute_thin_Q() * core.v, ..core })
    }

    fn of_view(matrix: MatRef<'_, f32>) -> Option<Singular> {
        let svd = matrix.thin_svd().ok()?;
        let values = svd.S().column_vector().iter().copied().collect();
        Some(Singular { u: svd.U().to_owned(), values, v: svd.V().to_owned() })
    }

    /// Writes the leading part of rank R as `scale * B A`, with the square root of each singular value in both
    /// factors: `a [R, n]`, `b [m, R]`. Of a rank above the number of singular values the rest stays as it is.
    pub(crate) fn write_leading(&self, scale: f32, mut a: MatrixMut<'_>, mut b: MatrixMut<'_>) {
        let (rank, inner) = (a.rows(), a.cols());
        let roots = || self.values.iter().take(rank).map(|value| (value / scale).sqrt()).enumerate();
        let (a, b) = (a.reborrow().f32(), b.reborrow().f32());
        for (k, root) in roots() {
            let v = self.v.col(k);
            a[k * inner..][..inner].iter_mut().zip(v.iter()).for_each(|(to, v)| *to = root * v);
        }
        for (row, to) in b.chunks_mut(rank).enumerate() {
            roots().for_each(|(k, root)| to[k] = self.u[(row, k)] * root);
        }
    }

    /// The sum of squares of the values from `first` on: what is lost where only those before it are kept.
    pub(crate) fn squares_from(&self, first: usize) -> f64 {
        // The smallest first.
        self.values[first.min(self.values.len())..].iter().rev().map(|&v| f64::from(v).powi(2)).sum()
    }
}

/// Writes the leading part of rank R of the product of an orthogonal and a triangular factor: the first
/// columns of the one into `b [m, R]`, the first rows of the other into `a [R, n]`.
pub(crate) fn write_orthogonal_triangular(matrix: MatrixRef<'_>, a: MatrixMut<'_>, b: MatrixMut<'_>) {
    let qr = view(matrix).qr();
    let (rank, inner) = (a.rows(), a.cols());
    let (q, r) = (qr.compute_thin_Q(), qr.thin_R());
    for (row, to) in a.f32().chunks_mut(inner).enumerate() {
        to.iter_mut().enumerate().for_each(|(col, to)| *to = if col < row { 0.0 } else { r[(row, col)] });
    }
    for (row, to) in b.f32().chunks_mut(rank).enumerate() {
        to.iter_mut().enumerate().for_each(|(col, to)| *to = q[(row, col)]);
    }
}

/// An orthogonal matrix `[n, n]`, row after row: the orthogonal factor of the given one.
pub(crate) fn orthogonal(matrix: MatrixRef<'_>) -> Vec<f32> {
    let q = view(matrix).qr().compute_thin_Q();
    let n = q.ncols();
    (0..n * n).map(|i| q[(i / n, i % n)]).collect()
}

/// The upper factor `u [n, n]`, row after row, of the inverse of a symmetric matrix of positive eigenvalues: `uᵀ
/// u`. None if it has others.
pub(crate) fn inverse_factor(matrix: MatrixRef<'_>) -> Option<Vec<f32>> {
    let inverse = view(matrix).llt(Side::Lower).ok()?.inverse();
    let lower = inverse.llt(Side::Lower).ok()?;
    let (lower, n) = (lower.L(), matrix.rows());
    let u: Vec<f32> = (0..n * n).map(|i| if i % n < i / n { 0.0 } else { lower[(i % n, i / n)] }).collect();
    u.iter().all(|u| u.is_finite()).then_some(u)
}

fn view(matrix: MatrixRef<'_>) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(matrix.f32(), matrix.rows(), matrix.cols())
}
