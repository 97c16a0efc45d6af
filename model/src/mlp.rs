//! The MLP half of a block: norm, projections up, activation, projection down onto the residual stream; or a
//! mixture of such.

use std::ops::Range;

use compute::ops::{activation, copy, gated};
use compute::{Matrix, Precision};

use crate::adapter::parameters::Parameters;
use crate::block::{Pass, Workspace};
use crate::config::{self, Config};
use crate::exit;
use crate::experts::{self, Experts};
use crate::linear::Linear;
use crate::memory::{Allocator, Component};
use crate::names::{ModuleId, NormPart, Part};
use crate::norm::{self, Norm};

/// Frozen weights.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// Norm of the input.
    pub(crate) norm: Option<Norm>,
    pub(crate) layers: Layers,
    /// Norm of the result.
    pub(crate) norm_behind: Option<Norm>,
}

/// The linear layers: up `[F, C]` and gate, where there is one, down `[C, F]`.
#[derive(Debug)]
pub(crate) enum Layers {
    /// `down(act(gate(x)) * up(x))`, in this order.
    Gated(Box<[Linear; 3]>),
    /// The same with gate and up in one layer `[2 F, C]`, and down.
    Fused(Box<[Linear; 2]>),
    /// `down(act(up(x)))`: up and down.
    Plain(Box<[Linear; 2]>),
    /// A few for each token.
    Experts(Box<Experts>),
}

/// What the backward pass needs of the forward pass.
#[derive(Debug)]
pub(crate) struct Saved {
    norm: norm::Saved,
    /// What the first layers give: gate and up, or up alone.
    first: [Matrix; 2],
    experts: experts::Saved,
    exit: exit::Saved,
}

impl Saved {
    pub(crate) fn new(
        config: &Config,
        tokens: usize,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let (component, inner) = (Component::Activations, config.intermediate_size);
        let has = |mlp| config.blocks.iter().any(|block| block.mlp == mlp);
        let (gated, plain) = (has(config::Mlp::Gated), has(config::Mlp::Plain));
        let widths = match () {
            () if gated => [inner, inner],
            () if plain => [inner, 0],
            () => [0, 0],
        };
        let first = widths.map(|cols| allocator.matrix(component, tokens, cols, precision.dtype()));
        let rows = if config.norms.before { tokens } else { 0 };
        let norm = norm::Saved::new(config, rows, component, allocator);
        let experts = experts::Saved::new(config, tokens, precision, allocator);
        Saved { norm, first, experts, exit: exit::Saved::new(config, tokens, precision, allocator) }
    }
}

impl Mlp {
    /// The norm of `x [T, C]` and the first layers. With what [`Mlp::forward_last`] keeps where a norm stands behind,
    /// it is what the backward pass relies on.
    pub(crate) fn forward_first(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        let Pass { run, groups, config, batch, .. } = pass;
        let t = batch.tokens();
        let Workspace { normed, fused, linear: scratch, experts: own, .. } = work;
        let input = match &self.norm {
            None => x.top(t),
            Some(norm) => {
                let id = ModuleId::Norm { layer, part: NormPart::Mlp };
                norm.forward(groups, config, id, normed.top_mut(t), x.top(t), &mut saved.norm);
                normed.top(t)
            }
        };
        if let Layers::Experts(experts) = &self.layers {
            return experts.forward_first(pass, layer, input, &mut saved.experts, own, scratch);
        }
        if let Layers::Fused(linears) = &self.layers {
            let id = ModuleId::Linear { layer, part: Part::GateUp };
            linears[0].forward(groups, id, fused.top_mut(t), false, input, scratch);
            for (n, y) in saved.first.iter_mut().enumerate() {
                copy::copy(run.device, y.top_mut(t), fused.top(t).cols_range(half(config, n)));
            }
            return;
        }
        for ((linear, part), y) in self.layers.first().zip(&mut saved.first) {
            let id = ModuleId::Linear { layer, part };
            linear.forward(groups, id, y.top_mut(t), false, input, scratch);
        }
    }

    /// `y [T, C] = residual + down(act(gate) * up)`, behind [`Mlp::forward_first`].
    pub(crate) fn forward_last(
        &self,
        pass: Pass<'_>,
        layer: usize,
        residual: &Matrix,
        y: &mut Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        let Pass { run, groups, config, batch, .. } = pass;
        let t = batch.tokens();
        if exit::is_direct(config) && !matches!(self.layers, Layers::Experts(_)) {
            let Workspace { hidden, linear: scratch, .. } = work;
            activate(pass, &self.layers, &saved.first, hidden);
            copy::copy(run.device, y.top_mut(t), residual.top(t));
            let id = ModuleId::Linear { layer, part: Part::Down };
            return self.layers.down().forward(groups, id, y.top_mut(t), true, hidden.top(t), scratch);
        }
        if let Layers::Experts(_) = &self.layers {
            experts::count_load(pass, &saved.experts, &mut work.experts);
        }
        self.branch(pass, layer, saved, work);
        let behind = ModuleId::Norm { layer, part: NormPart::AfterMlp };
        exit::forward(pass, self.norm_behind.as_ref(), behind, y, residual, &mut saved.exit, &mut work.exit);
    }

    /// What this half gives, before it joins the residual stream: [`exit::Saved::branch`].
    fn branch(&self, pass: Pass<'_>, layer: usize, saved: &mut Saved, work: &mut Workspace) {
        let t = pass.batch.tokens();
        let Workspace { hidden, linear: scratch, exit, experts: own, .. } = work;
        let branch = saved.exit.branch(pass.config, exit).top_mut(t);
        if let Layers::Experts(experts) = &self.layers {
            return experts.forward_last(pass, layer, branch, &saved.experts, own, scratch);
        }
        activate(pass, &self.layers, &saved.first, hidden);
        let id = ModuleId::Linear { layer, part: Part::Down };
        self.layers.down().forward(pass.groups, id, branch, false, hidden.top(t), scratch);
    }

    /// Makes again what [`Mlp::backward`] needs of the forward passes: the first layers' results, and where a
    /// norm stands behind this half what it read and what it keeps.
    pub(crate) fn recompute(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        self.forward_first(pass, layer, x, saved, work);
        if let Some(norm) = &self.norm_behind {
            self.branch(pass, layer, saved, work);
            let id = ModuleId::Norm { layer, part: NormPart::AfterMlp };
            exit::normalize(pass, norm, id, &mut saved.exit, &mut work.exit);
        }
    }

    /// Adds the gradient of the input `x` to that of the output in `work.dx`, and the trained tensors'
    /// gradients. What was saved of the first layers is replaced by its gradient.
    pub(crate) fn backward(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        saved: &mut Saved,
        gradients: &mut [Parameters],
        work: &mut Workspace,
    ) {
        let Pass { run, groups, config, batch, .. } = pass;
        let t = batch.tokens();
        let (device, id) = (run.device, |part| ModuleId::Linear { layer, part });
        let behind = ModuleId::Norm { layer, part: NormPart::AfterMlp };
        let Workspace {
            normed,
            fused,
            hidden,
            dx,
            dnormed,
            dhidden,
            linear: scratch,
            exit,
            experts: own,
            ..
        } = work;
        let dy = exit::backward(pass, self.norm_behind.as_ref(), behind, dx, &saved.exit, exit, gradients);
        // The norm's result was not kept: making it again costs one pass over x.
        let norm_id = ModuleId::Norm { layer, part: NormPart::Mlp };
        let input = match &self.norm {
            None => x.top(t),
            Some(norm) => {
                norm.forward(groups, config, norm_id, normed.top_mut(t), x.top(t), &mut saved.norm);
                normed.top(t)
            }
        };
        if let Layers::Experts(experts) = &self.layers {
            experts.backward(
                pass,
                layer,
                dnormed,
                dy.top(t),
                input,
                &mut saved.experts,
                gradients,
                own,
                scratch,
            );
        } else {
            // Nor was the activation's.
            activate(pass, &self.layers, &saved.first, hidden);
            let (down, dh) = (self.layers.down(), Some(dhidden.top_mut(t)));
            down.backward(groups, id(Part::Down), dh, false, dy.top(t), hidden.top(t), gradients, scratch);
            let [first, second] = &mut saved.first;
            let (act, dh) = (config.activation, dhidden.top(t));
            match &self.layers {
                Layers::Plain(_) => activation::backward(device, act, first.top_mut(t), dh),
                _ => gated::backward(device, act, first.top_mut(t), second.top_mut(t), dh),
            }
            let mut gradients_of_first = [&*first, &*second];
            if let Layers::Fused(_) = &self.layers {
                for (n, dy) in gradients_of_first.into_iter().enumerate() {
                    copy::copy(device, fused.top_mut(t).cols_range(half(config, n)), dy.top(t));
                }
                gradients_of_first[0] = fused;
            }
            // Without a norm before, the gradient goes straight to the residual stream.
            let (to, added) = if self.norm.is_some() { (&mut *dnormed, false) } else { (&mut *dx, true) };
            let first_layers = self.layers.first().zip(gradients_of_first);
            for (n, ((linear, part), dy)) in first_layers.enumerate() {
                let (to, added) = (Some(to.top_mut(t)), added || n > 0);
                linear.backward(groups, id(part), to, added, dy.top(t), input, gradients, scratch);
            }
        }
        if let Some(norm) = &self.norm {
            let (dx, dy) = (dx.top_mut(t), dnormed.top(t));
            norm.backward(groups, config, norm_id, dx, true, dy, x.top(t), &saved.norm, gradients);
        }
    }
}

impl Layers {
    /// The layers that read the norm's result; experts have their own.
    fn first(&self) -> impl Iterator<Item = (&Linear, Part)> {
        let (linears, parts): (&[Linear], &[Part]) = match self {
            Layers::Gated(linears) => (&linears[..2], &[Part::Gate, Part::Up]),
            Layers::Fused(linears) => (&linears[..1], &[Part::GateUp]),
            Layers::Plain(linears) => (&linears[..1], &[Part::Up]),
            Layers::Experts(_) => (&[], &[]),
        };
        linears.iter().zip(parts.iter().copied())
    }

    /// The layer that leads back to the model's width.
    fn down(&self) -> &Linear {
        match self {
            Layers::Gated(linears) => &linears[2],
            Layers::Fused(linears) | Layers::Plain(linears) => &linears[1],
            Layers::Experts(_) => unreachable!("each expert has its own"),
        }
    }

    /// A linear layer of an expert.
    pub(crate) fn expert(&self, expert: usize, part: Part) -> Option<&Linear> {
        let Layers::Experts(experts) = self else { return None };
        let place = Part::GATED.iter().position(|&p| p == part)?;
        experts.experts.get(expert).map(|linears| &linears[place])
    }

    /// A linear layer, of the expert of this number or of all tokens, to change.
    pub(crate) fn linear_mut(&mut self, expert: Option<usize>, part: Part) -> Option<&mut Linear> {
        let of = |parts: &[Part]| parts.iter().position(|&p| p == part);
        match (self, expert) {
            (Layers::Gated(linears), None) => of(&Part::GATED).map(|place| &mut linears[place]),
            (Layers::Fused(linears), None) => {
                of(&[Part::GateUp, Part::Down]).map(|place| &mut linears[place])
            }
            (Layers::Plain(linears), None) => of(&[Part::Up, Part::Down]).map(|place| &mut linears[place]),
            (Layers::Experts(experts), Some(expert)) => {
                of(&Part::GATED).map(|place| &mut experts.experts[expert][place])
            }
            _ => None,
        }
    }

    /// A linear layer by its name.
    pub(crate) fn linear(&self, part: Part) -> Option<&Linear> {
        match self {
            Layers::Experts(experts) => (part == Part::Router).then_some(&experts.router),
            _ if part == Part::Down => Some(self.down()),
            _ => self.first().find(|(_, p)| *p == part).map(|(linear, _)| linear),
        }
    }
}

/// Which columns of what gate and up give as one layer are the gate's (0) and up's (1).
fn half(config: &Config, n: usize) -> Range<usize> {
    let inner = config.intermediate_size;
    n * inner..(n + 1) * inner
}

/// `hidden [T, F]`: what stands before the last layer.
fn activate(pass: Pass<'_>, layers: &Layers, [first, second]: &[Matrix; 2], hidden: &mut Matrix) {
    let (device, act, t) = (pass.run.device, pass.config.activation, pass.batch.tokens());
    let hidden = hidden.top_mut(t);
    match layers {
        Layers::Gated(_) | Layers::Fused(_) => {
            gated::forward(device, act, hidden, first.top(t), second.top(t));
        }
        Layers::Plain(_) => activation::forward(device, act, hidden, first.top(t)),
        Layers::Experts(_) => unreachable!("experts have activations of their own"),
    }
}
