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
use crate::{Device, MatrixMut, MatrixRef, VectorRef, cpu};

/// `losses[N, 1]` from `logits[N, V]`, which become the gradients of the losses weighted by `weights[N, 1]`;
/// all `f32`.
///
/// # Panics
/// If the shapes do not agree or a target is not below `V`.
pub fn forward_backward(
    device: &Device,
    logits: MatrixMut<'_>,
    targets: VectorRef<'_, u32>,
    weights: MatrixRef<'_>,
    losses: MatrixMut<'_>,
) {
    check(logits.as_ref(), targets, losses.as_ref());
    assert_eq!((targets.len(), 1), (weights.rows(), weights.cols()), "targets and weights");
    let _watch = device.watch(
        "cross entropy and gradient",
        [logits.home(), targets.home(), weights.home(), losses.home()],
        || Work::bytes(2 * logits.size_bytes()),
    );
    match device {
        Device::Cpu(cpu) => {
            let targets = ids(targets, logits.cols());
            cpu::cross_entropy::forward_backward(cpu, logits, targets, weights.f32(), losses.f32());
        }
        Device::Null(_) => {}
    }
}

/// `losses[N, 1]` from `logits[N, V]` (both `f32`), for evaluation.
///
/// # Panics
/// As [`forward_backward`].
pub fn forward(device: &Device, logits: MatrixRef<'_>, targets: VectorRef<'_, u32>, losses: MatrixMut<'_>) {
    check(logits, targets, losses.as_ref());
    let _watch = device.watch("cross entropy", [logits.home(), targets.home(), losses.home()], || {
        Work::bytes(logits.size_bytes())
    });
    match device {
        Device::Cpu(cpu) => {
            cpu::cross_entropy::forward(cpu, logits, ids(targets, logits.cols()), losses.f32());
        }
        Device::Null(_) => {}
    }
}

fn check(logits: MatrixRef<'_>, targets: VectorRef<'_, u32>, losses: MatrixRef<'_>) {
    assert_eq!(logits.rows(), targets.len(), "rows of logits and targets");
    assert_eq!((logits.rows(), 1), (losses.rows(), losses.cols()), "rows of logits and losses");
}

/// Targets that the host can read, all below `logits`.
fn ids(targets: VectorRef<'_, u32>, logits: usize) -> &[u32] {
    targets.below(logits, |n, id| format!("target {n} is {id}, but there are {logits} logits"))
}
