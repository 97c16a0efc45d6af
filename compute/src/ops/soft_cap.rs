//! A cap that bends rather than cuts (Gemma 2): logits stay between `-cap` and `cap`.
//!
//! ```text
//! y = cap * tanh(factor * x / cap)                dx = dy * factor * (1 - (y / cap)²)
//! ```

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// In place: `x[N, V]` (`f32`) becomes `y`.
///
/// # Panics
/// If the cap is not above 0.
pub fn forward(device: &Device, x: MatrixMut<'_>, factor: f32, cap: f32) {
    assert!(cap > 0.0, "a cap of {cap}");
    let _watch = device.watch("soft cap", [x.home()], || Work::bytes(2 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::soft_cap::forward(cpu, x, factor, cap),
        Device::Null(_) => {}
    }
}

/// In place: `dy[N, V]` (`f32`) becomes `dx`, from the capped `y[N, V]`.
///
/// # Panics
/// If the shapes do not agree, or the cap is not above 0.
pub fn backward(device: &Device, dy: MatrixMut<'_>, y: MatrixRef<'_>, factor: f32, cap: f32) {
    assert!(cap > 0.0, "a cap of {cap}");
    assert_eq!((dy.rows(), dy.cols()), (y.rows(), y.cols()), "shapes of a cap's gradient and result");
    let _watch = device.watch("soft cap backward", [dy.home(), y.home()], || Work::bytes(3 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::soft_cap::backward(cpu, dy, y, factor, cap),
        Device::Null(_) => {}
    }
}
