//! A mixture of experts: each token goes to a few gated MLPs out of many, and takes the weighted sum of what
//! they give.
//!
//! The rows of a batch are sorted by expert, `S = T * k` of them for `k` experts a token, so that the rows of
//! an expert lie together and its products are those of any linear layer over some rows. However tokens are
//! spread over experts, there are `S` rows: the memory does not depend on it. The weight of a token's expert
//! stands on the input of that expert's last layer, which is linear, rather than on its output: so nothing of
//! the width `C` is kept for the weight's gradient.

use compute::ops::gated;
use compute::ops::routing::{self, Load, Routing};
use compute::{DType, Matrix, MatrixMut, MatrixRef, Precision};

use crate::adapter::parameters::Parameters;
use crate::block::Pass;
use crate::config::Config;
use crate::linear::{self, Linear, Rows};
use crate::memory::{Allocator, Component};
use crate::names::{ModuleId, Part};
use crate::run::Group;

/// Frozen weights.
#[derive(Debug)]
pub(crate) struct Experts {
    /// `[E, C]`
    pub(crate) router: Linear,
    /// Gate and up `[F, C]`, down `[C, F]` of each.
    pub(crate) experts: Vec<[Linear; 3]>,
}

/// What the backward pass needs of the forward pass.
#[derive(Debug)]
pub(crate) struct Saved {
    /// The router's result `[T, E]`, in the backward pass its gradient.
    logits: Matrix,
    routing: Routing,
    /// Rows by expert `[S, F]`.
    gate: Matrix,
    up: Matrix,
}

/// Buffers that every layer uses in turn, rows by expert; gradients only in training.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// What experts read, or their results' gradient `[S, C]`.
    input: Matrix,
    /// What experts give, or their inputs' gradient `[S, C]`.
    output: Matrix,
    /// `act(gate) * up` `[S, F]`.
    hidden: Matrix,
    /// The same times the weight of each row, what the last layers read `[S, F]`.
    weighted: Matrix,
    dhidden: Matrix,
    /// Gradients of the weights `[T * k, 1]`.
    dweights: Matrix,
    /// How tokens spread over experts, over all layers of a pass that has a loss for it.
    load: Load,
    /// The gradient of that loss by the probabilities of any token, or zeros `[1, E]`.
    dp: Matrix,
}

/// Rows and inner width of a batch by expert.
fn sizes(config: &Config, tokens: usize) -> (usize, usize) {
    config.experts.map_or((0, 0), |experts| (tokens * experts.per_token, experts.inner))
}

impl Saved {
    pub(crate) fn new(
        config: &Config,
        tokens: usize,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let (component, (rows, inner)) = (Component::Activations, sizes(config, tokens));
        let mut keep = || allocator.matrix(component, rows, inner, precision.dtype());
        let (gate, up) = (keep(), keep());
        let (count, per_token) = config.experts.map_or((0, 0), |experts| (experts.count, experts.per_token));
        let normalized = config.experts.is_some_and(|experts| experts.normalized);
        let routed = if count > 0 { tokens } else { 0 };
        let logits = allocator.matrix(component, routed, count, DType::F32);
        let bytes = Routing::size_bytes(count, per_token, tokens) as u64;
        let room = allocator.count(component, bytes).map_or(0, |_| tokens);
        Saved { logits, routing: Routing::new(count, per_token, normalized, room), gate, up }
    }
}

impl Scratch {
    pub(crate) fn new(
        config: &Config,
        tokens: usize,
        training: bool,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let (rows, inner) = sizes(config, tokens);
        let back = if training { rows } else { 0 };
        let mut buffer = |rows, cols| allocator.matrix(Component::Workspace, rows, cols, precision.dtype());
        let (input, output) = (buffer(rows, config.hidden_size), buffer(rows, config.hidden_size));
        let (hidden, weighted, dhidden) = (buffer(rows, inner), buffer(rows, inner), buffer(back, inner));
        let dweights = allocator.matrix(Component::Workspace, back, 1, DType::F32);
        let count = config.experts.map_or(0, |experts| experts.count);
        let bytes = Load::size_bytes(count) as u64;
        let load = Load::new(allocator.count(Component::Workspace, bytes).map_or(0, |_| count));
        let of_experts = if training { count } else { 0 };
        let dp = allocator.matrix(Component::Workspace, 1, of_experts, DType::F32);
        Scratch { input, output, hidden, weighted, dhidden, dweights, load, dp }
    }

    /// Before the first layer of a pass.
    pub(crate) fn begin(&mut self) {
        self.load.clear();
    }

    /// Between forward and backward pass: `scale` times the loss of the load is to be minimized too.
    pub(crate) fn balance(&mut self, scale: f64) {
        self.dp.as_mut().upload(|dp| self.load.gradient(scale, dp.f32()));
    }

    /// The loss of the load, if the pass was to compute it.
    pub(crate) fn load_loss(&self) -> f64 {
        self.load.loss()
    }
}

impl Experts {
    /// The choice of experts, and their first layers, of `x [T, C]`.
    pub(crate) fn forward_first(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: MatrixRef<'_>,
        saved: &mut Saved,
        own: &mut Scratch,
        scratch: &mut linear::Scratch,
    ) {
        let (run, groups, t) = (pass.run, pass.groups, x.rows());
        let Saved { logits, routing, gate, up } = saved;
        let id = ModuleId::Linear { layer, part: Part::Router };
        self.router.forward(groups, id, logits.top_mut(t), false, x, scratch);
        routing::choose(run.device, logits.top(t), routing);
        let rows = routing.rows();
        routing::gather(run.device, own.input.top_mut(rows), x, routing);
        for (place, y) in [(0, gate), (1, up)] {
            let all = self.rows(pass, layer, place, routing);
            linear::forward(&all, y.top_mut(rows), false, own.input.top(rows), scratch);
        }
    }

    /// The experts' sum `y [T, C]`, behind [`Experts::forward_first`].
    pub(crate) fn forward_last(
        &self,
        pass: Pass<'_>,
        layer: usize,
        y: MatrixMut<'_>,
        saved: &Saved,
        own: &mut Scratch,
        scratch: &mut linear::Scratch,
    ) {
        let (run, routing) = (pass.run, &saved.routing);
        activate(pass, saved, own);
        let (all, rows) = (self.rows(pass, layer, 2, routing), routing.rows());
        linear::forward(&all, own.output.top_mut(rows), false, own.weighted.top(rows), scratch);
        routing::sum(run.device, y, false, own.output.top(routing.rows()), routing);
    }

    /// `dx [T, C]` from the gradient of the sum `dy [T, C]` and the input `x` of [`Experts::forward_first`];
    /// and the gradients of what is trained. What was saved is spent.
    pub(crate) fn backward(
        &self,
        pass: Pass<'_>,
        layer: usize,
        dx: &mut Matrix,
        dy: MatrixRef<'_>,
        x: MatrixRef<'_>,
        saved: &mut Saved,
        gradients: &mut [Parameters],
        own: &mut Scratch,
        scratch: &mut linear::Scratch,
    ) {
        let (run, groups, device, t) = (pass.run, pass.groups, pass.run.device, x.rows());
        activate(pass, saved, own);
        let Saved { logits, routing, gate, up } = saved;
        let Scratch { input, output, hidden, weighted, dhidden, dweights, dp, .. } = own;
        let (all, act) = (routing.rows(), pass.config.activation);
        routing::gather(device, input.top_mut(all), dy, routing);
        let (of_down, dh) = (self.rows(pass, layer, 2, routing), Some(dhidden.top_mut(all)));
        linear::backward(&of_down, dh, false, input.top(all), weighted.top(all), gradients, scratch);
        let to = dweights.top_mut(all);
        routing::weigh_backward(device, dhidden.top_mut(all), hidden.top(all), to, routing);
        gated::backward(device, act, gate.top_mut(all), up.top_mut(all), dhidden.top(all));
        routing::gather(device, input.top_mut(all), x, routing);
        for (place, dy) in [(0, &*gate), (1, &*up)] {
            let (of_place, dx) = (self.rows(pass, layer, place, routing), Some(output.top_mut(all)));
            linear::backward(&of_place, dx, place > 0, dy.top(all), input.top(all), gradients, scratch);
        }
        routing::sum(device, dx.top_mut(t), false, output.top(all), routing);
        let dp = (run.router_aux_loss != 0.0).then(|| dp.as_ref());
        routing::choose_backward(device, logits.top_mut(t), dweights.top(all), dp, routing);
        let id = ModuleId::Linear { layer, part: Part::Router };
        self.router.backward(groups, id, Some(dx.top_mut(t)), true, logits.top(t), x, gradients, scratch);
    }

    /// The rows of each expert, and among them of each group, through one of its layers (gate, up or down).
    fn rows<'a>(&'a self, pass: Pass<'a>, layer: usize, place: usize, routing: &Routing) -> Vec<Rows<'a>> {
        let (part, mut all) = (Part::GATED[place], Vec::new());
        for (expert, linears) in self.experts.iter().enumerate() {
            let (linear, module) = (&linears[place], ModuleId::Expert { layer, expert, part });
            all.extend(pass.groups.iter().enumerate().map(|(group, Group { rows, run })| {
                let range = routing.rows_of_tokens(expert, rows);
                Rows { range, linear, module, run, group }
            }));
        }
        all.retain(|rows| !rows.range.is_empty());
        all
    }
}

/// Adds a layer's choices to the load of its experts, if a pass has a loss for it.
pub(crate) fn count_load(pass: Pass<'_>, saved: &Saved, own: &mut Scratch) {
    if pass.run.router_aux_loss != 0.0 {
        let logits = saved.logits.top(pass.batch.tokens());
        routing::load(pass.run.device, logits, &saved.routing, &mut own.load);
    }
}

/// What the last layers read, from what the first ones gave.
fn activate(pass: Pass<'_>, saved: &Saved, own: &mut Scratch) {
    let (device, rows) = (pass.run.device, saved.routing.rows());
    let (gate, up) = (saved.gate.top(rows), saved.up.top(rows));
    gated::forward(device, pass.config.activation, own.hidden.top_mut(rows), gate, up);
    routing::weigh(device, own.weighted.top_mut(rows), own.hidden.top(rows), &saved.routing);
}
