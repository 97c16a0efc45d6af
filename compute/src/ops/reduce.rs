//! Reductions of a flat buffer to one number.

use crate::profile::Work;
use crate::{Device, cpu};

/// `Σ x[i]²`, the square of the norm by which gradients are clipped.
///
/// The buffer is cut into a fixed number of blocks whose `f64` sums are added in order: the same bytes on any
/// number of threads.
pub fn sum_of_squares(device: &Device, x: &[f32]) -> f64 {
    let _watch = device.watch("sum of squares", || Work::bytes(4 * x.len()));
    match device {
        Device::Cpu(cpu) => cpu::reduce::sum_of_squares(cpu, x),
    }
}
