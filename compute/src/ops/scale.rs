//! Multiplication by a number.
//!
//! ```text
//! y[t, c] = factor * x[t, c]
//! ```
//!
//! The map is linear: the same call with `dy` gives `dx`.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `y[T, C] = factor * x[T, C]`, of one element type.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn apply(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, factor: f32) {
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of a scaled matrix and its source");
    let _watch = device.watch("scale", [y.home(), x.home()], || Work::bytes(2 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::scale::apply(cpu, y, x, factor),
        Device::Null(_) => {}
    }
}

/// `x[T, C] = factor * x[T, C]`.
pub fn in_place(device: &Device, x: MatrixMut<'_>, factor: f32) {
    let _watch = device.watch("scale", [x.home()], || Work::bytes(2 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::scale::in_place(cpu, x, factor),
        Device::Null(_) => {}
    }
}
