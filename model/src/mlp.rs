//! The MLP half of a block: norm, gate and up projections, gated activation, down projection onto the
//! residual stream.

use compute::ops::{gated, rms_norm};
use compute::{Buffer, Matrix, Precision};

use crate::adapter::parameters::Parameters;
use crate::block::{Pass, Workspace};
use crate::config::Config;
use crate::linear::Linear;
use crate::memory::{Allocator, Component};
use crate::names::{ModuleId, NormPart, Part};
use crate::run::gradient_of;

/// Frozen weights.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// Norm of the input `[1, C]`.
    pub(crate) norm: Matrix,
    /// Gate projection `[F, C]`.
    pub(crate) gate: Linear,
    /// Up projection `[F, C]`.
    pub(crate) up: Linear,
    /// Down projection `[C, F]`.
    pub(crate) down: Linear,
}

/// What the backward pass needs of the forward pass.
#[derive(Debug)]
pub(crate) struct Saved {
    rstd: Buffer<f32>,
    gate: Matrix,
    up: Matrix,
}

impl Saved {
    pub(crate) fn new(
        config: &Config,
        tokens: usize,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let mut keep = |cols| allocator.matrix(Component::Activations, tokens, cols, precision.dtype());
        let (gate, up) = (keep(config.intermediate_size), keep(config.intermediate_size));
        let rstd = allocator.vector(Component::Activations, tokens);
        Saved { rstd, gate, up }
    }
}

impl Mlp {
    /// `y [T, C] = x + down(act(gate(norm(x))) * up(norm(x)))`.
    pub(crate) fn forward(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        y: &mut Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        self.forward_gates(pass, layer, x, saved, work);
        let Pass { run, config, batch, .. } = pass;
        let t = batch.tokens();
        let Saved { gate, up, .. } = saved;
        let Workspace { hidden, linear: scratch, .. } = work;
        gated::forward(run.device, config.activation, hidden.top_mut(t), gate.top(t), up.top(t));
        y.top_mut(t).copy_from(x.top(t));
        let id = ModuleId::Linear { layer, part: Part::Down };
        self.down.forward(run, id, y.top_mut(t), true, hidden.top(t), scratch);
    }

    /// The part that the backward pass relies on: norm, gate and up projections.
    pub(crate) fn forward_gates(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        let Pass { run, config, batch, .. } = pass;
        let t = batch.tokens();
        let Saved { rstd, gate, up } = saved;
        let Workspace { normed, linear: scratch, .. } = work;
        let norm = run.weight(ModuleId::Norm { layer, part: NormPart::Mlp }, &self.norm);
        rms_norm::forward(run.device, normed.top_mut(t), x.top(t), norm, config.rms_norm_eps, &mut rstd[..t]);
        for (linear, part, y) in [(&self.gate, Part::Gate, gate), (&self.up, Part::Up, up)] {
            linear.forward(
                run,
                ModuleId::Linear { layer, part },
                y.top_mut(t),
                false,
                normed.top(t),
                scratch,
            );
        }
    }

    /// Turns the gradient of the output in `work.dx` into that of the input, and adds the trained tensors'
    /// gradients. What was saved of gate and up is replaced by their gradients.
    pub(crate) fn backward(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        saved: &mut Saved,
        gradients: &mut Parameters,
        work: &mut Workspace,
    ) {
        let Pass { run, config, batch, .. } = pass;
        let t = batch.tokens();
        let (device, id) = (run.device, |part| ModuleId::Linear { layer, part });
        let norm_id = ModuleId::Norm { layer, part: NormPart::Mlp };
        let Saved { rstd, gate, up } = saved;
        let Workspace { normed, hidden, dx, dnormed, dhidden, linear: scratch, .. } = work;

        // Neither the gated product nor the norm's result was kept: each is one pass to make again.
        gated::forward(device, config.activation, hidden.top_mut(t), gate.top(t), up.top(t));
        let dh = Some(dhidden.top_mut(t));
        self.down.backward(run, id(Part::Down), dh, false, dx.top(t), hidden.top(t), gradients, scratch);
        gated::backward(device, config.activation, gate.top_mut(t), up.top_mut(t), dhidden.top(t));
        let norm = run.weight(norm_id, &self.norm);
        rms_norm::forward(device, normed.top_mut(t), x.top(t), norm, config.rms_norm_eps, &mut rstd[..t]);
        let input = normed.top(t);
        let dn = Some(dnormed.top_mut(t));
        self.gate.backward(run, id(Part::Gate), dn, false, gate.top(t), input, gradients, scratch);
        let dn = Some(dnormed.top_mut(t));
        self.up.backward(run, id(Part::Up), dn, true, up.top(t), input, gradients, scratch);
        let dnorm = gradient_of(run, norm_id, gradients);
        rms_norm::backward(device, dx.top_mut(t), true, dnormed.top(t), x.top(t), norm, &rstd[..t], dnorm);
    }
}
