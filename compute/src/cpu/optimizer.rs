//! Optimizer steps on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::multiversion;
use crate::ops::optimizer::{AdamW, Lion, Sgd};

/// What a parameter costs in units of an addition: the root and the divisions.
const COST: usize = 8;

/// A step's constants as the kernel wants them.
pub(super) struct AdamWConstants {
    pub(super) decay: f32,
    pub(super) beta1: f32,
    pub(super) one_minus_beta1: f32,
    pub(super) beta2: f32,
    pub(super) one_minus_beta2: f32,
    pub(super) root_correction2: f32,
    pub(super) eps: f32,
    pub(super) minus_step_size: f32,
}

impl AdamWConstants {
    pub(super) fn new(s: &AdamW) -> Self {
        let correction1 = 1.0 - s.beta1.powf(s.step as f64);
        let correction2 = 1.0 - s.beta2.powf(s.step as f64);
        AdamWConstants {
            decay: (1.0 - s.learning_rate * s.weight_decay) as f32,
            beta1: s.beta1 as f32,
            one_minus_beta1: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            one_minus_beta2: (1.0 - s.beta2) as f32,
            root_correction2: correction2.sqrt() as f32,
            eps: s.eps as f32,
            minus_step_size: -(s.learning_rate / correction1) as f32,
        }
    }
}

pub(crate) fn adamw(
    cpu: &Cpu,
    params: &mut [f32],
    grads: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    settings: &AdamW,
    grad_scale: f32,
) {
    let constants = AdamWConstants::new(settings);
    let n = params.len();
    let out = (RowsMut::new(params, n), RowsMut::new(m, n), RowsMut::new(v, n));
    cpu.for_rows(COST, out, |range, (params, m, v)| {
        adamw_slice(params, &grads[range], m, v, &constants, grad_scale);
    });
}

multiversion! {
    fn adamw_slice(
        params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], c: &AdamWConstants, grad_scale: f32
    ) {
        for (((p, g), m), v) in params.iter_mut().zip(grads).zip(m).zip(v) {
            let g = g * grad_scale;
            *m += c.one_minus_beta1 * (g - *m);
            *v = *v * c.beta2 + c.one_minus_beta2 * g * g;
            let denominator = v.sqrt() / c.root_correction2 + c.eps;
            *p = *p * c.decay + c.minus_step_size * *m / denominator;
        }
    }
}

pub(crate) fn lion(
    cpu: &Cpu,
    params: &mut [f32],
    grads: &[f32],
    m: &mut [f32],
    settings: &Lion,
    grad_scale: f32,
) {
    let n = params.len();
    cpu.for_rows(1, (RowsMut::new(params, n), RowsMut::new(m, n)), |range, (params, m)| {
        lion_slice(params, &grads[range], m, settings, grad_scale);
    });
}

multiversion! {
    fn lion_slice(params: &mut [f32], grads: &[f32], m: &mut [f32], s: &Lion, grad_scale: f32) {
        let decay = (1.0 - s.learning_rate * s.weight_decay) as f32;
        let rate = s.learning_rate as f32;
        let (beta1, rest1) = (s.beta1 as f32, (1.0 - s.beta1) as f32);
        let (beta2, rest2) = (s.beta2 as f32, (1.0 - s.beta2) as f32);
        for ((p, g), m) in params.iter_mut().zip(grads).zip(m) {
            let g = g * grad_scale;
            let update = beta1 * *m + rest1 * g;
            let step = if update == 0.0 { 0.0 } else { rate.copysign(update) };
            *p = *p * decay - step;
            *m = beta2 * *m + rest2 * g;
        }
    }
}

pub(crate) fn sgd(cpu: &Cpu, params: &mut [f32], grads: &[f32], settings: &Sgd, grad_scale: f32) {
    let n = params.len();
    cpu.for_rows(1, RowsMut::new(params, n), |range, params| {
        sgd_slice(params, &grads[range], settings, grad_scale);
    });
}

multiversion! {
    fn sgd_slice(params: &mut [f32], grads: &[f32], s: &Sgd, grad_scale: f32) {
        let decay = (1.0 - s.learning_rate * s.weight_decay) as f32;
        let rate = s.learning_rate as f32;
        for (p, g) in params.iter_mut().zip(grads) {
            *p = *p * decay - rate * (g * grad_scale);
        }
    }
}
