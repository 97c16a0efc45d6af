//! Weights whose direction and magnitude are adapted apart: DoRA (Liu et al., 2024, arXiv:2402.09353), its
//! part that is not LoRA.
//!
//! With `z[T, out] = x W'ᵀ` for the adapted weight `W' = W + s B A`, whose rows have the norms `n[out]`, and
//! magnitudes `m[out]`:
//!
//! ```text
//! y[t, o] (+)= g[o] z[t, o]                           g[o] = m[o] / n[o], 0 where n[o] is
//! ```
//!
//! Norms are constants to the gradient, as in PEFT. Backward:
//!
//! ```text
//! dz[t, o] = g[o] dy[t, o]                            dm[o] += Σ_t dy[t, o] z[t, o] / n[o], 0 where n[o] is
//! ```
//!
//! `W'` is never made. With `u = A Wᵀ [R, out]` and `v = B A Aᵀ [out, R]`:
//!
//! ```text
//! n[o]² = |W[o]|² + 2 s Σ_r B[o, r] u[r, o] + s² Σ_r B[o, r] v[o, r]
//! ```
//!
//! The terms nearly cancel where an update takes back what a row was, so they are added in `f64`.

use crate::profile::Work;
use crate::quant::Quantized;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `squares[1, out]`: the squared norm of every row of `w[out, in]`.
///
/// # Panics
/// If the shapes do not agree.
pub fn row_squares(device: &Device, squares: MatrixMut<'_>, w: Weight<'_>) {
    let (rows, bytes, home) = match w {
        Weight::Dense(w) => (w.rows(), w.size_bytes(), w.home()),
        Weight::Quantized(w) => (w.rows(), w.size_bytes(), w.home()),
    };
    assert_eq!((1, rows), (squares.rows(), squares.cols()), "a square for each row");
    let _watch = device.watch("norms of rows", [squares.home(), home], || Work::bytes(bytes));
    match device {
        Device::Cpu(cpu) => cpu::magnitude::row_squares(cpu, squares, w),
        Device::Null(_) => {}
    }
}

/// `norms[1, out]`: the norm of every row of `w[out, in]`.
///
/// # Panics
/// If the shapes do not agree.
pub fn row_norms(device: &Device, mut norms: MatrixMut<'_>, w: Weight<'_>) {
    row_squares(device, norms.reborrow(), w);
    match device {
        Device::Cpu(_) => norms.f32().iter_mut().for_each(|square| *square = square.sqrt()),
        Device::Null(_) => {}
    }
}

/// Scales every row of `w[out, in]` to the norm that `m[1, out]` has for it; both `f32`.
///
/// # Panics
/// If the shapes do not agree.
pub fn set_row_norms(device: &Device, w: MatrixMut<'_>, m: MatrixRef<'_>) {
    assert_eq!((1, w.rows()), (m.rows(), m.cols()), "a norm for each row");
    let _watch = device.watch("norms of rows", [w.home(), m.home()], || Work::bytes(3 * w.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::magnitude::set_row_norms(cpu, w, m),
        Device::Null(_) => {}
    }
}

/// A weight whose rows are measured.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// As it stands.
    Dense(MatrixRef<'a>),
    /// In four bits.
    Quantized(&'a Quantized),
}

/// `norms[1, out]`, by the squares of the frozen rows `[1, out]`, `u[R, out]`, `v[out, R]`, `b[out, R]`; all
/// `f32`.
///
/// # Panics
/// If the shapes do not agree.
pub fn norms(
    device: &Device,
    norms: MatrixMut<'_>,
    squares: MatrixRef<'_>,
    (u, v): (MatrixRef<'_>, MatrixRef<'_>),
    b: MatrixRef<'_>,
    scale: f32,
) {
    let (out, rank) = (b.rows(), b.cols());
    assert_eq!((1, out), (norms.rows(), norms.cols()), "a norm for each row");
    assert_eq!((1, out), (squares.rows(), squares.cols()), "a square for each row");
    assert_eq!([(rank, out), (out, rank)], [u, v].map(|m| (m.rows(), m.cols())), "shapes of A Wᵀ and B A Aᵀ");
    let _watch =
        device.watch("norms of rows", [norms.home(), squares.home(), b.home(), u.home(), v.home()], || {
            Work::bytes(3 * u.size_bytes())
        });
    match device {
        Device::Cpu(cpu) => cpu::magnitude::norms(cpu, norms, squares, (u, v), b, scale),
        Device::Null(_) => {}
    }
}

/// `g[1, out] = m / n`, 0 where `n` is; all `f32`.
///
/// # Panics
/// If the shapes do not agree.
pub fn factors(device: &Device, g: MatrixMut<'_>, (m, n): (MatrixRef<'_>, MatrixRef<'_>)) {
    check(g.as_ref(), g.as_ref(), m, n);
    let homes = [g.home(), m.home(), n.home()];
    let _watch = device.watch("magnitudes", homes, || Work::bytes(3 * g.size_bytes()));
    match device {
        Device::Cpu(_) => cpu::magnitude::factors(g, (m, n)),
        Device::Null(_) => {}
    }
}

/// `y[T, out] = g z`, or `y += ...`, from `z[T, out]` of the same type, `m[1, out]` and `n[1, out]` (`f32`).
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn forward(
    device: &Device,
    y: MatrixMut<'_>,
    accumulate: bool,
    z: MatrixRef<'_>,
    (m, n): (MatrixRef<'_>, MatrixRef<'_>),
) {
    check(y.as_ref(), z, m, n);
    let passes = if accumulate { 3 } else { 2 };
    let _watch = device.watch("magnitudes", [y.home(), z.home(), m.home(), n.home()], || {
        Work::bytes(passes * z.size_bytes())
    });
    match device {
        Device::Cpu(cpu) => cpu::magnitude::forward(cpu, y, accumulate, z, (m, n)),
        Device::Null(_) => {}
    }
}

/// `dz[T, out]` and `dm[1, out]` (`f32`, added to) from `dy[T, out]` and `z[T, out]`.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn backward(
    device: &Device,
    dz: MatrixMut<'_>,
    dm: MatrixMut<'_>,
    dy: MatrixRef<'_>,
    z: MatrixRef<'_>,
    (m, n): (MatrixRef<'_>, MatrixRef<'_>),
) {
    check(dz.as_ref(), dy, m, n);
    check(z, dy, m, n);
    assert_eq!((1, dm.cols()), (m.rows(), m.cols()), "the gradient of a magnitude for each column");
    let _watch = device.watch(
        "magnitudes backward",
        [dz.home(), dm.home(), dy.home(), z.home(), m.home(), n.home()],
        || Work::bytes(4 * dy.size_bytes()),
    );
    match device {
        Device::Cpu(cpu) => cpu::magnitude::backward(cpu, dz, dm, dy, z, (m, n)),
        Device::Null(_) => {}
    }
}

fn check(y: MatrixRef<'_>, z: MatrixRef<'_>, m: MatrixRef<'_>, n: MatrixRef<'_>) {
    assert_eq!(
        (y.rows(), y.cols(), y.dtype()),
        (z.rows(), z.cols(), z.dtype()),
        "scaled columns and their source"
    );
    for (what, v) in [("magnitude", m), ("norm", n)] {
        assert_eq!((1, y.cols()), (v.rows(), v.cols()), "a {what} for each column");
    }
}
