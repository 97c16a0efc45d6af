//! Cross entropy of logits and target ids, and its gradient.
//!
//! ```text
//! loss[n]      = log Σ_v exp(logits[n, v]) - logits[n, targets[n]]
//! dlogits[n,v] = weights[n] * (softmax(logits[n])[v] - (v = targets[n]))
//! ```
//!
//! `N` is the number of tokens that carry loss; the caller gathers them, and walks over chunks of them so
//! that no `[T, V]` matrix is ever whole. `weights` are what the objective has as the derivative by each
//! loss: in plain training all the same, one over the trained tokens of the whole optimizer step. The largest
//! logit is subtracted first; the sum runs in `f64` over short `f32` partial sums, so a long vocabulary costs
//! no precision.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `losses[N]` from `logits[N, V]` (`f32`), which become the gradients of the losses weighted by
/// `weights[N]`.
///
/// # Panics
/// If the shapes do not agree or a target is not below `V`.
pub fn forward_backward(
    device: &Device,
    logits: MatrixMut<'_>,
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
) {
    check(logits.as_ref(), targets, losses);
    assert_eq!(targets.len(), weights.len(), "targets and weights");
    let _watch = device.watch("cross entropy and gradient", || Work::bytes(2 * logits.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::cross_entropy::forward_backward(cpu, logits, targets, weights, losses),
    }
}

/// `losses[N]` from `logits[N, V]` (`f32`), for evaluation.
///
/// # Panics
/// As [`forward_backward`].
pub fn forward(device: &Device, logits: MatrixRef<'_>, targets: &[u32], losses: &mut [f32]) {
    check(logits, targets, losses);
    let _watch = device.watch("cross entropy", || Work::bytes(logits.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::cross_entropy::forward(cpu, logits, targets, losses),
    }
}

fn check(logits: MatrixRef<'_>, targets: &[u32], losses: &[f32]) {
    assert_eq!(logits.rows(), targets.len(), "rows of logits and targets");
    assert_eq!(logits.rows(), losses.len(), "rows of logits and losses");
    if let Some((n, id)) = targets.iter().enumerate().find(|&(_, &id)| id as usize >= logits.cols()) {
        panic!("target {n} is {id}, but there are {} logits", logits.cols());
    }
}
