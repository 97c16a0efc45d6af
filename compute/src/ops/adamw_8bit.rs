//! AdamW whose moments are kept in eight bits, as bitsandbytes' `AdamW8bit` keeps them (Dettmers et al. 2022,
//! arXiv:2110.02861; version 0.50.2 on the CPU).
//!
//! A moment of a tensor is a code for each element and an `absmax` for each block of [`BLOCK`] elements, the
//! last of which may be shorter: `value = map[code] * absmax`, with the map of both signs for `m` and the
//! positive one for `v` ([`dynamic_map`](crate::quant::dynamic_map)). A step decodes a block, updates it in
//! `f32`, and encodes it again under its new largest magnitude:
//!
//! ```text
//! g = grad_scale * grad
//! m = β₁ m + (1 - β₁) g
//! v = β₂ v + (1 - β₂) g²
//! p = p * (1 - lr * wd) - lr / (1 - β₁ⁿ) * m / (√v / √(1 - β₂ⁿ) + eps)      n: the step, from 1
//! ```
//!
//! The update itself sees the moments before they are rounded. The first moment is `β₁ m + (1 - β₁) g` where
//! [`adamw`](super::optimizer::adamw) has PyTorch's `m + (1 - β₁) (g - m)`: both are as their originals have
//! them.
//!
//! What is encoded is `x = value / absmax` in [-1, 1], on the grid of
//! [`DynamicMap`](crate::quant::dynamic_map::DynamicMap). No point of it is zero, so a zero beside other
//! values gets the code of 1.5e-5, and no second moment of a block is below that share of its largest. A
//! block of zeros has zeros as its codes and its absmax.

use super::optimizer::AdamW;
use crate::profile::Work;
use crate::{Device, cpu};

pub use crate::quant::dynamic_map::BLOCK;

/// The moments of a tensor of `n` elements; all zeros before the first step.
#[derive(Debug)]
pub struct Moments8<'a> {
    /// Codes of the first moment, `n`.
    pub m: &'a mut [u8],
    /// Codes of the second moment, `n`.
    pub v: &'a mut [u8],
    /// Largest magnitudes of the first moment, one for each block.
    pub m_absmax: &'a mut [f32],
    /// Largest magnitudes of the second moment, one for each block.
    pub v_absmax: &'a mut [f32],
}

/// One step of AdamW over a tensor, or over a part of it that begins with a block.
///
/// # Panics
/// If the lengths do not fit each other or the step is 0.
pub fn adamw_8bit(
    device: &Device,
    params: &mut [f32],
    grads: &[f32],
    moments: Moments8<'_>,
    settings: &AdamW,
    grad_scale: f32,
) {
    let blocks = params.len().div_ceil(BLOCK);
    assert_eq!(params.len(), grads.len(), "parameters and gradients");
    assert_eq!(params.len(), moments.m.len(), "parameters and codes of the first moments");
    assert_eq!(params.len(), moments.v.len(), "parameters and codes of the second moments");
    assert_eq!(blocks, moments.m_absmax.len(), "blocks and scales of the first moments");
    assert_eq!(blocks, moments.v_absmax.len(), "blocks and scales of the second moments");
    assert!(settings.step > 0, "the first step of AdamW is 1, not 0");
    let _watch = device.watch("adamw_8bit", || Work::bytes(params.len() * (4 + 4 + 4 + 4)));
    match device {
        Device::Cpu(cpu) => cpu::adamw_8bit::adamw_8bit(cpu, params, grads, moments, settings, grad_scale),
    }
}
