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
use crate::{Device, MatrixMut, MatrixRef, cpu};

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

impl<'a> Moments8<'a> {
    /// The 32-bit words that the moments of `n` elements take.
    pub fn words(n: usize) -> usize {
        2 * n.div_ceil(BLOCK) + (2 * n).div_ceil(4)
    }

    /// The moments of `n` elements in so many words of the host's memory: the scales of both moments, then
    /// the codes of both.
    ///
    /// # Panics
    /// If there is another number of words.
    pub fn of(state: &'a mut [f32], n: usize) -> Self {
        assert_eq!(state.len(), Moments8::words(n), "words for the moments of {n} elements");
        let blocks = n.div_ceil(BLOCK);
        let (absmax, codes) = state.split_at_mut(2 * blocks);
        let (m_absmax, v_absmax) = absmax.split_at_mut(blocks);
        let (m, rest) = bytemuck::cast_slice_mut::<f32, u8>(codes).split_at_mut(n);
        Moments8 { m, v: &mut rest[..n], m_absmax, v_absmax }
    }
}

/// One step of AdamW over a tensor `[1, n]`, or over a part of it that begins with a block; `state[1, words]`
/// holds the moments as [`Moments8::of`] has them.
///
/// # Panics
/// If the lengths do not fit each other or the step is 0.
pub fn adamw_8bit(
    device: &Device,
    params: MatrixMut<'_>,
    grads: MatrixRef<'_>,
    state: MatrixMut<'_>,
    settings: &AdamW,
    grad_scale: f32,
) {
    let n = params.cols();
    for (m, cols) in [(params.as_ref(), n), (grads, n), (state.as_ref(), Moments8::words(n))] {
        assert_eq!((1, cols), (m.rows(), m.cols()), "parameters, gradients and the words of moments");
    }
    assert!(settings.step > 0, "the first step of AdamW is 1, not 0");
    let _watch = device.watch("adamw_8bit", [params.home(), grads.home(), state.home()], || {
        Work::bytes(n * (4 + 4 + 4 + 4))
    });
    match device {
        Device::Cpu(cpu) => {
            let moments = Moments8::of(state.f32(), n);
            cpu::adamw_8bit::adamw_8bit(cpu, params.f32(), grads.f32(), moments, settings, grad_scale);
        }
        Device::Null(_) => {}
    }
}
