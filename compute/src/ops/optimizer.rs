//! Optimizer steps over parameters, gradients and moments of one shape, `f32`, one pass each.
//!
//! `g = grad_scale * grad` throughout; `grad_scale` carries the clipping. Weight decay is decoupled and comes
//! first: `p = p * (1 - lr * wd)`. Then, for [`adamw`] (Loshchilov, Hutter, 2017, arXiv:1711.05101):
//!
//! ```text
//! m = m + (1 - β₁) (g - m)
//! v = β₂ v + (1 - β₂) g²
//! p = p - lr / (1 - β₁ⁿ) * m / (√v / √(1 - β₂ⁿ) + eps)          n: the step, from 1
//! ```
//!
//! for [`lion`] (Chen et al., 2023, arXiv:2302.06675):
//!
//! ```text
//! p = p - lr * sign(β₁ m + (1 - β₁) g)
//! m = β₂ m + (1 - β₂) g
//! ```
//!
//! and for [`sgd`], without momentum:
//!
//! ```text
//! p = p - lr * g
//! ```
//!
//! AdamW's operations stand in the order in which `torch.optim.AdamW` does them, each rounded to `f32`;
//! constants are computed in `f64` and rounded once.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// Settings of one step of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
    /// The step's number, from 1.
    pub step: u64,
}

/// Settings of one step of Lion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    /// The step's learning rate.
    pub learning_rate: f64,
    /// The moment's share in the update.
    pub beta1: f64,
    /// Decay of the moment.
    pub beta2: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

/// Settings of one step of plain gradient descent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

/// One step of AdamW; `m` and `v` are the moments, zero before the first step.
///
/// # Panics
/// If the shapes differ or the step is 0.
pub fn adamw(
    device: &Device,
    params: MatrixMut<'_>,
    grads: MatrixRef<'_>,
    m: MatrixMut<'_>,
    v: MatrixMut<'_>,
    settings: &AdamW,
    grad_scale: f32,
) {
    assert_eq!(shape(params.as_ref()), shape(grads), "parameters and gradients");
    assert_eq!(shape(params.as_ref()), shape(m.as_ref()), "parameters and first moments");
    assert_eq!(shape(params.as_ref()), shape(v.as_ref()), "parameters and second moments");
    assert!(settings.step > 0, "the first step of AdamW is 1, not 0");
    let _watch = device.watch("adamw", [params.home(), grads.home(), m.home(), v.home()], || {
        Work::bytes(7 * grads.size_bytes())
    });
    match device {
        Device::Cpu(cpu) => {
            let (p, g, m, v) = (params.f32(), grads.f32(), m.f32(), v.f32());
            cpu::optimizer::adamw(cpu, p, g, m, v, settings, grad_scale);
        }
        Device::Null(_) => {}
    }
}

/// One step of Lion; `m` is the moment, zero before the first step.
///
/// # Panics
/// If the shapes differ.
pub fn lion(
    device: &Device,
    params: MatrixMut<'_>,
    grads: MatrixRef<'_>,
    m: MatrixMut<'_>,
    settings: &Lion,
    grad_scale: f32,
) {
    assert_eq!(shape(params.as_ref()), shape(grads), "parameters and gradients");
    assert_eq!(shape(params.as_ref()), shape(m.as_ref()), "parameters and moments");
    let _watch =
        device.watch("lion", [params.home(), grads.home(), m.home()], || Work::bytes(5 * grads.size_bytes()));
    match device {
        Device::Cpu(cpu) => {
            cpu::optimizer::lion(cpu, params.f32(), grads.f32(), m.f32(), settings, grad_scale);
        }
        Device::Null(_) => {}
    }
}

/// One step of gradient descent.
///
/// # Panics
/// If the shapes differ.
pub fn sgd(device: &Device, params: MatrixMut<'_>, grads: MatrixRef<'_>, settings: &Sgd, grad_scale: f32) {
    assert_eq!(shape(params.as_ref()), shape(grads), "parameters and gradients");
    let _watch = device.watch("sgd", [params.home(), grads.home()], || Work::bytes(3 * grads.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::optimizer::sgd(cpu, params.f32(), grads.f32(), settings, grad_scale),
        Device::Null(_) => {}
    }
}

fn shape(m: MatrixRef<'_>) -> (usize, usize) {
    (m.rows(), m.cols())
}
