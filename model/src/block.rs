//! One layer of the decoder: attention and the MLP, each added onto the residual stream, the MLP reading what
//! attention made of it or, with a parallel residual, the layer's own input.

use compute::ops::copy;
use compute::{DType, Matrix, Precision};

use crate::adapter::method::quantization_aware::Effective;
use crate::adapter::method::{dora, lora};
use crate::adapter::parameters::{Layout, Parameters};
use crate::attention::{self, Attention};
use crate::batch::Batch;
use crate::cache::LayerCache;
use crate::config::{self, BlockConfig, Config};
use crate::memory::{Allocator, Component};
use crate::mlp::{self, Mlp};
use crate::names::{ModuleId, Part};
use crate::positions::Positions;
use crate::run::{Group, Run};
use crate::{exit, experts, linear};

/// Frozen weights of a layer.
#[derive(Debug)]
pub(crate) struct Block {
    /// The attention half.
    pub(crate) attention: Attention,
    /// The MLP half.
    pub(crate) mlp: Mlp,
}

/// What the backward passes of a layer's halves need of their forward passes.
#[derive(Debug)]
pub(crate) struct Saved {
    attention: LastLayers<attention::Saved>,
    /// The residual stream between the halves `[T, C]`.
    middle: LastLayers<Matrix>,
    mlp: LastLayers<mlp::Saved>,
}

/// Of how many layers, the last ones, what their halves need is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) attention: usize,
    pub(crate) mlp: usize,
}

impl Saved {
    pub(crate) fn new(
        config: &Config,
        kept: Kept,
        tokens: usize,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let (layers, width, dtype) = (config.layers, config.hidden_size, precision.dtype());
        let attention = || attention::Saved::new(config, tokens, precision, allocator);
        Saved {
            attention: LastLayers::new(layers, kept.attention, attention),
            middle: LastLayers::new(layers, kept.attention, || {
                allocator.matrix(Component::Activations, tokens, width, dtype)
            }),
            mlp: LastLayers::new(layers, kept.mlp, || mlp::Saved::new(config, tokens, precision, allocator)),
        }
    }
}

/// Something of each of the last layers; the layers before them take the first place in turn. So what is
/// there of the last layer of all is always its own.
#[derive(Debug)]
struct LastLayers<T> {
    places: Vec<T>,
    /// The first layer with a place of its own.
    first: usize,
}

impl<T> LastLayers<T> {
    fn new(layers: usize, kept: usize, make: impl FnMut() -> T) -> Self {
        let kept = kept.clamp(1, layers);
        LastLayers { places: std::iter::repeat_with(make).take(kept).collect(), first: layers - kept }
    }

    fn of(&mut self, layer: usize) -> &mut T {
        &mut self.places[layer.saturating_sub(self.first)]
    }

    fn keeps(&self, layer: usize) -> bool {
        layer >= self.first
    }
}

/// Buffers that every layer uses in turn.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// A norm's result `[T, C]`.
    pub(crate) normed: Matrix,
    /// What gate and up give where they are one layer, and in the backward pass its gradient `[T, 2 F]`.
    pub(crate) fused: Matrix,
    /// What stands before the last layer of an MLP `[T, F]`.
    pub(crate) hidden: Matrix,
    /// Gradient of the residual stream `[T, C]`; from here on only in training.
    pub(crate) dx: Matrix,
    pub(crate) dnormed: Matrix,
    pub(crate) dhidden: Matrix,
    /// Gradient of the output of a block whose halves read the same input `[T, C]`.
    pub(crate) dparallel: Matrix,
    pub(crate) attention: attention::Scratch,
    pub(crate) experts: experts::Scratch,
    pub(crate) exit: exit::Scratch,
    pub(crate) linear: linear::Scratch,
}

impl Workspace {
    pub(crate) fn new(
        config: &Config,
        layout: &Layout,
        dropout: f32,
        kept: Kept,
        tokens: usize,
        training: bool,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let (c, q) = (config.hidden_size, config.q_width());
        let has_experts = |block: &BlockConfig| block.mlp == config::Mlp::Experts;
        let inner = if config.blocks.iter().all(has_experts) { 0 } else { config.intermediate_size };
        let dropout = if training { dropout } else { 0.0 };
        let of_experts = config.experts.map_or(0, |experts| experts.inner);
        let widest = c.max(inner).max(q).max(of_experts);
        let of_part = |part| match part {
            Part::Q | Part::K | Part::V | Part::Qkv | Part::O => kept.attention,
            Part::Router | Part::Gate | Part::Up | Part::GateUp | Part::Down => kept.mlp,
        };
        let (of_blocks, rows) = (|module| module != ModuleId::Head, (tokens, training));
        let dora = dora::Memory::new(layout, of_blocks, (config.layers, of_part), rows, precision, allocator);
        let sizes = (tokens, tokens * config.experts.map_or(1, |experts| experts.per_token));
        let lora = lora::Buffers::new(layout, dropout, sizes, widest, precision, allocator);
        let effective = Effective::new(config, layout, allocator);
        let joint = if training { 0 } else { tokens.min(linear::JOINT_ROWS) };
        let modules = config.modules();
        let of_layers = modules.iter().filter(|module| matches!(module.id, ModuleId::Linear { .. }));
        let widest_out = of_layers.map(|module| module.rows).max().unwrap_or(0);
        let sums = allocator.matrix(Component::Workspace, joint, widest_out, DType::F32);
        let linear = linear::Scratch { lora, dora, effective, sums };
        let attention = attention::Scratch::new(config, tokens, training, precision, allocator);
        let experts = experts::Scratch::new(config, tokens, training, precision, allocator);
        let exit = exit::Scratch::new(config, tokens, training, precision, allocator);
        let mut buffer = |rows, cols| allocator.matrix(Component::Workspace, rows, cols, precision.dtype());
        let back = if training { tokens } else { 0 };
        let before = |rows| if config.norms.before { rows } else { 0 };
        Workspace {
            normed: buffer(before(tokens), c),
            fused: buffer(if config.fused_gate_up { tokens } else { 0 }, 2 * inner),
            hidden: buffer(tokens, inner),
            dx: buffer(back, c),
            dnormed: buffer(before(back), c),
            dhidden: buffer(back, inner),
            dparallel: buffer(if config.parallel_residual { back } else { 0 }, c),
            attention,
            experts,
            exit,
            linear,
        }
    }
}

/// What a pass over a layer needs beside the layer: constant over the layers of a pass.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    /// Device, precision and the loss of experts; of adapters, those of the first group.
    pub(crate) run: &'a Run<'a>,
    pub(crate) groups: &'a [Group<'a>],
    pub(crate) config: &'a Config,
    pub(crate) positions: &'a Positions,
    pub(crate) batch: &'a Batch,
}

impl Block {
    /// The attention half, `saved.middle`, and the first layers of the MLP, from the layer's input.
    pub(crate) fn forward_first(
        &self,
        pass: Pass<'_>,
        layer: usize,
        cache: Option<&mut LayerCache>,
        x: &Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        let (attention, middle) = (saved.attention.of(layer), saved.middle.of(layer));
        self.attention.forward(pass, layer, cache, x, middle, attention, work);
        let input = if pass.config.parallel_residual { x } else { middle };
        self.mlp.forward_first(pass, layer, input, saved.mlp.of(layer), work);
    }

    /// The rest: the layer's output, which may stand where its input stood.
    pub(crate) fn forward_last(
        &self,
        pass: Pass<'_>,
        layer: usize,
        y: &mut Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        self.mlp.forward_last(pass, layer, saved.middle.of(layer), y, saved.mlp.of(layer), work);
    }

    /// Makes again what [`Block::backward`] needs and is not kept, from the layer's input.
    pub(crate) fn recompute(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        if !saved.attention.keeps(layer) {
            let (attention, middle) = (saved.attention.of(layer), saved.middle.of(layer));
            self.attention.forward(pass, layer, None, x, middle, attention, work);
        }
        if !saved.mlp.keeps(layer) {
            let input = if pass.config.parallel_residual { x } else { &*saved.middle.of(layer) };
            self.mlp.recompute(pass, layer, input, saved.mlp.of(layer), work);
        }
    }

    /// Turns the gradient of the output in `work.dx` into that of the input `x`.
    pub(crate) fn backward(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        saved: &mut Saved,
        gradients: &mut [Parameters],
        work: &mut Workspace,
    ) {
        let t = pass.batch.tokens();
        let input = if pass.config.parallel_residual {
            copy::copy(pass.run.device, work.dparallel.top_mut(t), work.dx.top(t));
            x
        } else {
            &*saved.middle.of(layer)
        };
        self.mlp.backward(pass, layer, input, saved.mlp.of(layer), gradients, work);
        self.attention.backward(pass, layer, x, saved.attention.of(layer), gradients, work);
    }
}
