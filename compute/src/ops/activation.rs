//! The activation of an MLP without a gate.
//!
//! ```text
//! y = act(x)                 dx = dy * act'(x)
//! ```
//!
//! with the functions of [`super::gated`].

use super::gated::Activation;
use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `y[T, F] = act(x[T, F])`.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn forward(device: &Device, activation: Activation, y: MatrixMut<'_>, x: MatrixRef<'_>) {
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of an activation's result and input");
    let _watch = device.watch("activation", [y.home(), x.home()], || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::activation::forward(cpu, activation, y, x),
        Device::Null(_) => {}
    }
}

/// In place: `x[T, F]` becomes its gradient, from `dy[T, F]`.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn backward(device: &Device, activation: Activation, x: MatrixMut<'_>, dy: MatrixRef<'_>) {
    assert_eq!((dy.rows(), dy.cols()), (x.rows(), x.cols()), "shapes of an activation's gradient and input");
    let _watch =
        device.watch("activation backward", [x.home(), dy.home()], || Work::bytes(3 * dy.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::activation::backward(cpu, activation, x, dy),
        Device::Null(_) => {}
    }
}
