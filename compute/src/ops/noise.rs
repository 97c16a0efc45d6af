//! Random weights: what a model that begins from nothing begins with.

use crate::cpu;
use crate::profile::Work;
use crate::{Device, MatrixMut};

/// `y[i] = deviation * z(key, i)` with `z` of mean 0 and deviation 1: the sum of four uniform numbers of 16
/// bits out of one draw of [`crate::random::bits`], scaled. That is near enough to normal for a beginning (at
/// most 3.5 deviations from the mean), and so cheap that a billion weights take a second.
///
/// The same numbers come on every device with any number of threads.
pub fn nearly_normal(device: &Device, y: MatrixMut<'_>, deviation: f32, key: u64) {
    let _watch = device.watch("random numbers", [y.home()], || Work::bytes(y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::noise::nearly_normal(cpu, y, deviation, key),
        Device::Null(_) => {}
    }
}
