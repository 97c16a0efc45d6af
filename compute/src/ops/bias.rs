//! The bias of a linear layer.
//!
//! ```text
//! y[t, n] += bias[n]              dbias[n] += Σ_t dy[t, n]
//! ```

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `y[T, N] += bias[1, N]`, which may be of another element type.
///
/// # Panics
/// If the widths do not agree.
pub fn add(device: &Device, y: MatrixMut<'_>, bias: MatrixRef<'_>) {
    assert_eq!((1, y.cols()), (bias.rows(), bias.cols()), "shape of a bias");
    let _watch = device.watch("bias", [y.home(), bias.home()], || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::bias::add(cpu, y, bias),
        Device::Null(_) => {}
    }
}

/// `dbias[1, N] += Σ_t dy[t, N]`; `dbias` is `f32`.
///
/// # Panics
/// If the widths do not agree.
pub fn backward(device: &Device, dbias: MatrixMut<'_>, dy: MatrixRef<'_>) {
    assert_eq!((1, dy.cols()), (dbias.rows(), dbias.cols()), "shape of a bias's gradient");
    let _watch = device.watch("bias backward", [dbias.home(), dy.home()], || Work::bytes(dy.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::bias::backward(cpu, dbias, dy),
        Device::Null(_) => {}
    }
}
