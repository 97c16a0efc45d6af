//! Layer normalization (Ba, Kiros, Hinton, 2016, arXiv:1607.06450), as torch's `LayerNorm`.
//!
//! Forward, `x[T, C]`, `y[T, C]`, `weight[1, C]`, `bias[1, C]` or none; `mean[T, 1]` and `rstd[T, 1]` (`f32`)
//! are kept for the backward:
//!
//! ```text
//! mean[t] = mean_c x[t, c]
//! rstd[t] = 1 / sqrt(mean_c (x[t, c] - mean[t])² + eps)
//! y[t, c] = weight[c] * n[t, c] + bias[c]                      n[t, c] = (x[t, c] - mean[t]) * rstd[t]
//! ```
//!
//! Backward, with `g[t, c] = weight[c] * dy[t, c]`:
//!
//! ```text
//! dx[t, c]   = rstd[t] * (g[t, c] - mean_c g[t, c] - n[t, c] * mean_c(g[t, c] * n[t, c]))
//! dweight[c] += Σ_t dy[t, c] * n[t, c]                         dbias[c] += Σ_t dy[t, c]
//! ```
//!
//! Means and every product are `f32` whatever the element type.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `y[T, C]`, `mean[T, 1]` and `rstd[T, 1]` from `x[T, C]`, `weight[1, C]` and `bias[1, C]`, which are `f32`.
///
/// # Panics
/// If the shapes do not agree, or `x` and `y` differ in element type.
pub fn forward(
    device: &Device,
    y: MatrixMut<'_>,
    x: MatrixRef<'_>,
    weight: MatrixRef<'_>,
    bias: Option<MatrixRef<'_>>,
    eps: f32,
    mean: MatrixMut<'_>,
    rstd: MatrixMut<'_>,
) {
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of a norm's result and input");
    check(x, weight, mean.as_ref(), rstd.as_ref());
    assert!(bias.is_none_or(|bias| (bias.rows(), bias.cols()) == (1, x.cols())), "shape of a norm's bias");
    let _watch = device.watch(
        "norm",
        [y.home(), x.home(), weight.home(), mean.home(), rstd.home()]
            .into_iter()
            .chain(bias.as_ref().map(|m| m.home())),
        || Work::bytes(2 * x.size_bytes()),
    );
    match device {
        Device::Cpu(cpu) => cpu::layer_norm::forward(cpu, y, x, weight, bias, eps, mean.f32(), rstd.f32()),
        Device::Null(_) => {}
    }
}

/// `dx[T, C]` (added to what it holds if `accumulate`) and, if wanted, `dweight[1, C]` and `dbias[1, C]`
/// (`f32`, always added to).
///
/// # Panics
/// If the shapes do not agree, or `x`, `dx` and `dy` differ in element type.
pub fn backward(
    device: &Device,
    dx: MatrixMut<'_>,
    accumulate: bool,
    dy: MatrixRef<'_>,
    x: MatrixRef<'_>,
    weight: MatrixRef<'_>,
    mean: MatrixRef<'_>,
    rstd: MatrixRef<'_>,
    dweight: Option<MatrixMut<'_>>,
    dbias: Option<MatrixMut<'_>>,
) {
    for (m, what) in [(dx.as_ref(), "gradient"), (dy, "result's gradient")] {
        assert_eq!((m.rows(), m.cols()), (x.rows(), x.cols()), "shapes of a norm's {what} and input");
    }
    check(x, weight, mean, rstd);
    for d in [&dweight, &dbias].into_iter().flatten() {
        assert_eq!((1, x.cols()), (d.rows(), d.cols()), "shape of the gradient of a norm's weight or bias");
    }
    let passes = if accumulate { 4 } else { 3 };
    let _watch = device.watch(
        "norm backward",
        [dx.home(), dy.home(), x.home(), weight.home(), mean.home(), rstd.home()]
            .into_iter()
            .chain(dweight.as_ref().map(|m| m.home()))
            .chain(dbias.as_ref().map(|m| m.home())),
        || Work::bytes(dx.size_bytes() * passes),
    );
    match device {
        Device::Cpu(cpu) => cpu::layer_norm::backward(
            cpu,
            dx,
            accumulate,
            dy,
            x,
            weight,
            mean.f32(),
            rstd.f32(),
            dweight,
            dbias,
        ),
        Device::Null(_) => {}
    }
}

fn check(x: MatrixRef<'_>, weight: MatrixRef<'_>, mean: MatrixRef<'_>, rstd: MatrixRef<'_>) {
    assert_eq!((1, x.cols()), (weight.rows(), weight.cols()), "shape of a norm's weight");
    for of_rows in [mean, rstd] {
        assert_eq!(
            (x.rows(), 1),
            (of_rows.rows(), of_rows.cols()),
            "rows of a norm, their means or deviations"
        );
    }
}
