//! Reductions of a matrix to one number.

use crate::profile::Work;
use crate::{Device, MatrixRef, cpu};

/// `Σ x[i]²`, the square of the norm by which gradients are clipped.
///
/// The matrix is cut into a fixed number of blocks whose `f64` sums are added in order: the same bytes on any
/// number of threads.
pub fn sum_of_squares(device: &Device, x: MatrixRef<'_>) -> f64 {
    let _watch = device.watch("sum of squares", [x.home()], || Work::bytes(x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::reduce::sum_of_squares(cpu, x.f32()),
        Device::Null(_) => 0.0,
    }
}
