//! The residual stream's addition.
//!
//! ```text
//! y[t, c] += x[t, c]
//! ```
//!
//! Its backward is the identity to both: the gradient of the sum is the gradient of each summand.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `y[T, C] += x[T, C]`, of one element type.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn add(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>) {
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of a residual and what is added");
    let _watch = device.watch("residual", || Work::bytes(3 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::residual::add(cpu, y, x),
    }
}
