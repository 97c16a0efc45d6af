//! Root mean square normalization (Zhang, Sennrich, 2019, arXiv:1910.07467), as transformers' `LlamaRMSNorm`.
//!
//! Forward, `x[T, C]`, `y[T, C]`, `weight[1, C]`; `rstd[T, 1]` (`f32`) is kept for the backward:
//!
//! ```text
//! rstd[t] = 1 / sqrt(mean_c(x[t, c]²) + eps)
//! y[t, c] = w[c] * (x[t, c] * rstd[t])            w = weight, or 1 + weight (`Offset::One`, as Gemma has it)
//! ```
//!
//! Backward, with `g[t, c] = w[c] * dy[t, c]`:
//!
//! ```text
//! dx[t, c]   = rstd[t] * (g[t, c] - x[t, c] * rstd[t]² * mean_c(g[t, c] * x[t, c]))
//! dweight[c] += Σ_t dy[t, c] * x[t, c] * rstd[t]
//! ```
//!
//! The mean, `rstd` and every product are `f32` whatever the element type. A norm over each head of `[T, H *
//! D]` is the same operation on `[T * H, D]`.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// What is added to a norm's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// Nothing.
    None,
    /// One.
    One,
}

/// `y[T, C]` and `rstd[T, 1]` from `x[T, C]` and `weight[1, C]`, which may be of another element type.
///
/// # Panics
/// If the shapes do not agree, or `x` and `y` differ in element type.
pub fn forward(
    device: &Device,
    y: MatrixMut<'_>,
    x: MatrixRef<'_>,
    weight: MatrixRef<'_>,
    offset: Offset,
    eps: f32,
    rstd: MatrixMut<'_>,
) {
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of a norm's result and input");
    assert_eq!((1, x.cols()), (weight.rows(), weight.cols()), "shape of a norm's weight");
    assert_eq!((x.rows(), 1), (rstd.rows(), rstd.cols()), "rows of a norm and their deviations");
    let _watch = device
        .watch("norm", [y.home(), x.home(), weight.home(), rstd.home()], || Work::bytes(2 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::rms_norm::forward(cpu, y, x, weight, offset, eps, rstd.f32()),
        Device::Null(_) => {}
    }
}

/// `dx[T, C]` (added to what it holds if `accumulate`) and, if wanted, `dweight[1, C]` (`f32`, always added
/// to).
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
    offset: Offset,
    rstd: MatrixRef<'_>,
    dweight: Option<MatrixMut<'_>>,
) {
    assert_eq!((dx.rows(), dx.cols()), (x.rows(), x.cols()), "shapes of a norm's gradient and input");
    assert_eq!((dy.rows(), dy.cols()), (x.rows(), x.cols()), "shapes of a norm's gradient and input");
    assert_eq!((1, x.cols()), (weight.rows(), weight.cols()), "shape of a norm's weight");
    assert_eq!((x.rows(), 1), (rstd.rows(), rstd.cols()), "rows of a norm and their deviations");
    if let Some(dw) = &dweight {
        assert_eq!((1, x.cols()), (dw.rows(), dw.cols()), "shape of the gradient of a norm's weight");
    }
    let _watch = device.watch(
        "norm backward",
        [dx.home(), dy.home(), x.home(), weight.home(), rstd.home()]
            .into_iter()
            .chain(dweight.as_ref().map(|m| m.home())),
        || Work::bytes(dx.size_bytes() * if accumulate { 4 } else { 3 }),
    );
    match device {
        Device::Cpu(cpu) => {
            cpu::rms_norm::backward(cpu, dx, accumulate, dy, x, weight, offset, rstd.f32(), dweight)
        }
        Device::Null(_) => {}
    }
}
