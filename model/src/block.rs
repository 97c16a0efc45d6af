//! One layer of the decoder: attention, then the MLP, each added onto the residual stream.

use compute::ops::rope::RopeTable;
use compute::{Matrix, Precision};

use crate::adapter::parameters::{Layout, Parameters};
use crate::attention::{self, Attention};
use crate::batch::Batch;
use crate::cache::LayerCache;
use crate::config::Config;
use crate::linear;
use crate::memory::{Allocator, Component};
use crate::mlp::{self, Mlp};
use crate::run::Run;

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

/// Something of each of the last layers; the layers before them take the first place in turn. So what is there of the last
/// layer of all is always its own.
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
    /// The gated product `[T, F]`.
    pub(crate) hidden: Matrix,
    /// Gradient of the residual stream `[T, C]`; from here on only in training.
    pub(crate) dx: Matrix,
    pub(crate) dnormed: Matrix,
    pub(crate) dhidden: Matrix,
    pub(crate) dq: Matrix,
    pub(crate) dk: Matrix,
    pub(crate) dv: Matrix,
    pub(crate) dattended: Matrix,
    pub(crate) dk_raw: Matrix,
    pub(crate) linear: linear::Scratch,
}

impl Workspace {
    pub(crate) fn new(
        config: &Config,
        layout: &Layout,
        dropout: f32,
        tokens: usize,
        training: bool,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let (c, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let dropout = if training { dropout } else { 0.0 };
        let linear = linear::Scratch::new(layout, dropout, tokens, c.max(f).max(q), precision, allocator);
        let mut buffer = |rows, cols| allocator.matrix(Component::Workspace, rows, cols, precision.dtype());
        let back = if training { tokens } else { 0 };
        Workspace {
            normed: buffer(tokens, c),
            hidden: buffer(tokens, f),
            dx: buffer(back, c),
            dnormed: buffer(back, c),
            dhidden: buffer(back, f),
            dq: buffer(back, q),
            dk: buffer(back, kv),
            dv: buffer(back, kv),
            dattended: buffer(back, q),
            dk_raw: buffer(if config.qk_norm { back } else { 0 }, kv),
            linear,
        }
    }
}

/// What a pass over a layer needs beside the layer: constant over the layers of a pass.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) run: &'a Run<'a>,
    pub(crate) config: &'a Config,
    pub(crate) rope: &'a RopeTable,
    pub(crate) batch: &'a Batch,
}

impl Block {
    /// The first half: from the layer's input to `saved.middle`.
    pub(crate) fn forward_attention(
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
    }

    /// The second half: from `saved.middle` to the layer's output.
    pub(crate) fn forward_mlp(
        &self,
        pass: Pass<'_>,
        layer: usize,
        y: &mut Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        self.mlp.forward(pass, layer, saved.middle.of(layer), y, saved.mlp.of(layer), work);
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
            self.forward_attention(pass, layer, None, x, saved, work);
        }
        if !saved.mlp.keeps(layer) {
            self.mlp.forward_gates(pass, layer, saved.middle.of(layer), saved.mlp.of(layer), work);
        }
    }

    /// Turns the gradient of the output in `work.dx` into that of the input `x`.
    pub(crate) fn backward(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        saved: &mut Saved,
        gradients: &mut Parameters,
        work: &mut Workspace,
    ) {
        self.mlp.backward(pass, layer, saved.middle.of(layer), saved.mlp.of(layer), gradients, work);
        self.attention.backward(pass, layer, x, saved.attention.of(layer), gradients, work);
    }
}
