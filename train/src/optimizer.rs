//! One optimizer step over the flat buffers: clip, then update.

use compute::Device;
use compute::ops::{optimizer, reduce};
use model::memory::{Allocator, Component};
use model::{Layout, Parameters};

/// Which update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`.
    AdamW {
        /// Decay of the first and second moment.
        betas: [f64; 2],
        /// Added to the root of the second moment.
        eps: f64,
    },
    /// Sign of an interpolated momentum (Chen et al. 2023).
    Lion {
        /// Interpolation and decay.
        betas: [f64; 2],
    },
    /// Plain gradient descent, without momentum.
    Sgd,
}

impl Rule {
    /// Buffers the size of the parameters that the rule keeps.
    pub fn moments(self) -> usize {
        match self {
            Rule::AdamW { .. } => 2,
            Rule::Lion { .. } => 1,
            Rule::Sgd => 0,
        }
    }
}

/// The settings of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Which update rule.
    pub rule: Rule,
    /// The base learning rate, which the schedule multiplies.
    pub learning_rate: f64,
    /// Decoupled decay of every trained tensor.
    pub weight_decay: f64,
    /// Gradients longer than this are scaled down to it; 0: never.
    pub max_grad_norm: f64,
    /// Learning rate of B over that of A (Hayou et al. 2024, LoRA+).
    pub lora_plus_ratio: f64,
}

/// The moments of the trained tensors, in the layout of the adapter.
#[derive(Debug)]
pub(crate) struct Optimizer {
    settings: OptimizerSettings,
    pub(crate) moments: Vec<Parameters>,
    /// Runs of tensors that share a learning rate: their end in the flat buffer, and the rate's multiple.
    groups: Vec<(usize, f64)>,
}

impl Optimizer {
    pub(crate) fn new(settings: OptimizerSettings, layout: &Layout, allocator: &mut Allocator) -> Self {
        let moment = |_| Parameters::zeros(layout, Component::Optimizer, allocator);
        let moments = (0..settings.rule.moments()).map(moment).collect();
        let mut groups: Vec<(usize, f64)> = Vec::new();
        for tensor in layout.tensors() {
            let multiple =
                if tensor.name.ends_with(".lora_B.weight") { settings.lora_plus_ratio } else { 1.0 };
            match groups.last_mut() {
                Some((end, of)) if *of == multiple => *end = tensor.range.end,
                _ => groups.push((tensor.range.end, multiple)),
            }
        }
        Optimizer { settings, moments, groups }
    }

    /// Clips and applies the gradients of step `step` (from 1) with this learning rate. Returns the norm before
    /// clipping; where that is not a finite number, nothing is changed.
    pub(crate) fn step(
        &mut self,
        device: &Device,
        step: u64,
        learning_rate: f64,
        parameters: &mut Parameters,
        gradients: &Parameters,
    ) -> f64 {
        let norm = reduce::sum_of_squares(device, gradients.values()).sqrt();
        if !norm.is_finite() {
            return norm;
        }
        let OptimizerSettings { rule, weight_decay, max_grad_norm, .. } = self.settings;
        // torch.nn.utils.clip_grad_norm_: the epsilon keeps a zero norm from dividing.
        let clip = if max_grad_norm > 0.0 { (max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 } as f32;
        let mut start = 0;
        for &(end, multiple) in &self.groups {
            let (range, rate) = (start..end, learning_rate * multiple);
            start = end;
            let (p, g) = (&mut parameters.values_mut()[range.clone()], &gradients.values()[range.clone()]);
            let mut moments = self.moments.iter_mut().map(|m| &mut m.values_mut()[range.clone()]);
            let mut moment = || moments.next().expect("as many moments as the rule keeps");
            match rule {
                Rule::AdamW { betas: [beta1, beta2], eps } => {
                    let settings =
                        optimizer::AdamW { learning_rate: rate, beta1, beta2, eps, weight_decay, step };
                    let (m, v) = (moment(), moment());
                    optimizer::adamw(device, p, g, m, v, &settings, clip);
                }
                Rule::Lion { betas: [beta1, beta2] } => {
                    let settings = optimizer::Lion { learning_rate: rate, beta1, beta2, weight_decay };
                    optimizer::lion(device, p, g, moment(), &settings, clip);
                }
                Rule::Sgd => {
                    optimizer::sgd(device, p, g, &optimizer::Sgd { learning_rate: rate, weight_decay }, clip);
                }
            }
        }
        norm
    }
}
