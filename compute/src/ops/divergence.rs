//! How far a distribution is from another one: Kullback and Leibler's divergence of their logits' softmax.
//!
//! ```text
//! p = softmax(of[n]),  q = softmax(from[n])
//! divergence[n] = Σ_v p[v] (log p[v] - log q[v])
//!               = Σ_v p[v] (exp(d) - 1 - d),  d = log q[v] - log p[v]
//! ```
//!
//! The second form is summed: since both sum to one it is the same, its terms are none below zero, so that
//! nothing cancels where `p` and `q` are close, and an error in the logarithm of a softmax's sum counts by its
//! square. There is no backward pass: the divergence is measured, not trained.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `divergences[N, 1]`, in nats, of the distributions by the logits `from[N, V]` from those by `of[N, V]`; all
/// `f32`. Infinite where `q` has no room for what `p` has.
///
/// # Panics
/// If the shapes do not agree.
pub fn forward(device: &Device, of: MatrixRef<'_>, from: MatrixRef<'_>, divergences: MatrixMut<'_>) {
    assert_eq!((of.rows(), of.cols()), (from.rows(), from.cols()), "logits and logits");
    assert_eq!((of.rows(), 1), (divergences.rows(), divergences.cols()), "logits and divergences");
    let _watch = device.watch("divergence", [of.home(), from.home(), divergences.home()], || {
        Work::bytes(of.size_bytes() + from.size_bytes())
    });
    match device {
        Device::Cpu(cpu) => cpu::divergence::forward(cpu, of, from, divergences.f32()),
        Device::Null(_) => {}
    }
}
