//! Sums of neighbouring columns: the inputs of an update that treats the weights of a group alike (QA-LoRA, Xu
//! et al., 2023, arXiv:2309.14717).
//!
//! Forward, `x[T, in]`, groups of `n` columns, `p[T, in / n]`, `f32`:
//!
//! ```text
//! p[t, g] = Σ_{i: i / n = g} x[t, i]
//! ```
//!
//! Backward:
//!
//! ```text
//! dx[t, i] = dp[t, i / n]             (+ dx)
//! ```

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `p[T, in / group]`, `f32`, of `x[T, in]`.
///
/// # Panics
/// If the shapes do not agree.
pub fn forward(device: &Device, p: MatrixMut<'_>, x: MatrixRef<'_>, group: usize) {
    check((p.rows(), p.cols()), (x.rows(), x.cols()), group);
    let _watch = device.watch("pooling", [p.home(), x.home()], || Work::bytes(x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::pool_columns::forward(cpu, p, x, group),
        Device::Null(_) => {}
    }
}

/// `dx[T, in]` from `dp[T, in / group]`, which is `f32`; added where `accumulate` says so.
///
/// # Panics
/// If the shapes do not agree.
pub fn backward(device: &Device, dx: MatrixMut<'_>, dp: MatrixRef<'_>, group: usize, accumulate: bool) {
    check((dp.rows(), dp.cols()), (dx.rows(), dx.cols()), group);
    let _watch =
        device.watch("pooling backward", [dx.home(), dp.home()], || Work::bytes(2 * dx.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::pool_columns::backward(cpu, dx, dp, group, accumulate),
        Device::Null(_) => {}
    }
}

fn check(pooled: (usize, usize), (rows, cols): (usize, usize), group: usize) {
    assert!(group > 0 && cols.is_multiple_of(group), "{cols} columns in groups of {group}");
    assert_eq!(pooled, (rows, cols / group), "the shape of pooled columns");
}
