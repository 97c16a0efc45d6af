//! The gated activation of a decoder's MLP (Shazeer, 2020, arXiv:2002.05202).
//!
//! Forward, all `[T, F]`:
//!
//! ```text
//! y = act(gate) * up
//! ```
//!
//! Backward:
//!
//! ```text
//! dgate = dy * up * act'(gate)              dup = dy * act(gate)
//! ```
//!
//! with, for `σ` the logistic function and `Φ`, `φ` the normal distribution and density:
//!
//! ```text
//! Silu      act(x) = x σ(x)                               act'(x) = σ(x) (1 + x (1 - σ(x)))
//! Gelu      act(x) = x Φ(x)                               act'(x) = Φ(x) + x φ(x)
//! GeluTanh  act(x) = x σ(2u), u = √(2/π) (x + 0.044715 x³) act'(x) = σ(2u) (1 + 2 x u' (1 - σ(2u)))
//! ```
//!
//! The last is the usual `x (1 + tanh u) / 2` without its cancellation for negative `x`.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// The activation of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x σ(x)`, also known as swish.
    Silu,
    /// `x Φ(x)`, with the error function.
    Gelu,
    /// The `tanh` approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
}

/// `y[T, F] = act(gate[T, F]) * up[T, F]`.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn forward(
    device: &Device,
    activation: Activation,
    y: MatrixMut<'_>,
    gate: MatrixRef<'_>,
    up: MatrixRef<'_>,
) {
    assert_eq!((y.rows(), y.cols()), (gate.rows(), gate.cols()), "shapes of a gated result and its gate");
    assert_eq!((y.rows(), y.cols()), (up.rows(), up.cols()), "shapes of a gated result and its input");
    let _watch = device
        .watch("gated activation", [y.home(), gate.home(), up.home()], || Work::bytes(3 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::gated::forward(cpu, activation, y, gate, up),
        Device::Null(_) => {}
    }
}

/// In place: `gate` and `up`, all `[T, F]`, become their gradients `dgate` and `dup`.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn backward(
    device: &Device,
    activation: Activation,
    gate: MatrixMut<'_>,
    up: MatrixMut<'_>,
    dy: MatrixRef<'_>,
) {
    assert_eq!((dy.rows(), dy.cols()), (gate.rows(), gate.cols()), "shapes of a gated gradient and its gate");
    assert_eq!((dy.rows(), dy.cols()), (up.rows(), up.cols()), "shapes of a gated gradient and its input");
    let _watch = device.watch("gated activation backward", [gate.home(), up.home(), dy.home()], || {
        Work::bytes(5 * dy.size_bytes())
    });
    match device {
        Device::Cpu(cpu) => cpu::gated::backward(cpu, activation, gate, up, dy),
        Device::Null(_) => {}
    }
}
