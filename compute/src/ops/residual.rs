//! The residual stream's addition.
//!
//! ```text
//! y[t, c] += x[t, c]                y[t, c] += factor * x[t, c]
//! ```
//!
//! Its backward is the identity to `y`, and to `x` but for the factor.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `y[T, C] += x[T, C]`, of one element type.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn add(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>) {
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of a residual and what is added");
    let _watch = device.watch("residual", [y.home(), x.home()], || Work::bytes(3 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::residual::add(cpu, y, x),
        Device::Null(_) => {}
    }
}

/// `y[T, C] += factor * x[T, C]`, of one element type; with a factor of 1 as [`add`].
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn add_scaled(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, factor: f32) {
    if factor == 1.0 {
        return add(device, y, x);
    }
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of a residual and what is added");
    let _watch = device.watch("residual", [y.home(), x.home()], || Work::bytes(3 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::residual::add_scaled(cpu, y, x, factor),
        Device::Null(_) => {}
    }
}
