//! The attention half of a block: norm, projections with their adapters, norms of queries and keys, rotary
//! embedding, attention, projection onto the residual stream.

use compute::ops::attention::{self, Attention as Heads};
use compute::ops::{copy, position_scale, rope};
use compute::{DType, Matrix, MatrixRef, Precision};

use crate::adapter::parameters::Parameters;
use crate::block::{Pass, Workspace};
use crate::cache::LayerCache;
use crate::config::{Config, FusedQkv, QkNorm, Span};
use crate::exit;
use crate::linear::Linear;
use crate::memory::{Allocator, Component};
use crate::names::{ModuleId, NormPart, Part};
use crate::norm::{self, Norm};

/// Frozen weights.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Norm of the block's input.
    pub(crate) norm: Option<Norm>,
    pub(crate) qkv: Qkv,
    /// Output projection `[C, H * D]`.
    pub(crate) o: Linear,
    /// Norms of queries and of keys.
    pub(crate) qk_norms: Option<[Norm; 2]>,
    /// Norm of the result.
    pub(crate) norm_behind: Option<Norm>,
}

/// The projections of queries `[H * D, C]`, keys and values `[K * D, C]`.
#[derive(Debug)]
pub(crate) enum Qkv {
    /// A layer each.
    Apart(Box<[Linear; 3]>),
    /// One layer for all, `[(H + 2 K) * D, C]`.
    Fused(Box<Linear>),
}

/// What the backward pass needs of the forward pass.
#[derive(Debug)]
pub(crate) struct Saved {
    norm: norm::Saved,
    /// Queries and keys before their norms, where they have norms.
    raw: Option<[Matrix; 2]>,
    raw_norms: [norm::Saved; 2],
    q: Matrix,
    k: Matrix,
    v: Matrix,
    attended: Matrix,
    lse: Matrix,
    exit: exit::Saved,
}

/// Buffers that every layer uses in turn; gradients only in training.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// What a fused projection gives, and in the backward pass its gradient `[T, (H + 2 K) * D]`.
    fused: Matrix,
    gradients: Gradients,
}

/// Gradients of what attention reads and writes.
#[derive(Debug)]
struct Gradients {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    attended: Matrix,
    /// Of the keys before their norm.
    k_raw: Matrix,
}

impl Saved {
    pub(crate) fn new(
        config: &Config,
        tokens: usize,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let component = Component::Activations;
        let (q, kv) = (config.q_width(), config.kv_width());
        let mut keep = |cols| allocator.matrix(component, tokens, cols, precision.dtype());
        let raw = config.qk_norm.map(|_| [keep(q), keep(kv)]);
        let (q, k, v, attended) = (keep(q), keep(kv), keep(kv), keep(q));
        let raw_rows = |heads: usize| match config.qk_norm {
            None => 0,
            Some(QkNorm { span: Span::Head, .. }) => tokens * heads,
            Some(QkNorm { span: Span::Width, .. }) => tokens,
        };
        let mut of_norm = |rows| norm::Saved::new(config, rows, component, allocator);
        let raw_norms = [of_norm(raw_rows(config.heads)), of_norm(raw_rows(config.kv_heads))];
        let norm = of_norm(if config.norms.before { tokens } else { 0 });
        let lse = allocator.matrix(component, tokens, config.heads, DType::F32);
        let exit = exit::Saved::new(config, tokens, precision, allocator);
        Saved { norm, raw, raw_norms, q, k, v, attended, lse, exit }
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
        let (q, kv) = (config.q_width(), config.kv_width());
        let back = if training { tokens } else { 0 };
        let mut buffer = |rows, cols| allocator.matrix(Component::Workspace, rows, cols, precision.dtype());
        Scratch {
            fused: buffer(if config.fused_qkv.is_some() { tokens } else { 0 }, q + 2 * kv),
            gradients: Gradients {
                q: buffer(back, q),
                k: buffer(back, kv),
                v: buffer(back, kv),
                attended: buffer(back, q),
                k_raw: buffer(if config.qk_norm.is_some() { back } else { 0 }, kv),
            },
        }
    }
}

/// The heads of a layer as the attention operation wants them.
fn heads(config: &Config, layer: usize) -> Heads {
    Heads {
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        scale: match config.attention_scale_by_layer {
            true => config.attention_scale / (layer + 1) as f32,
            false => config.attention_scale,
        },
        window: config.blocks[layer].window,
        cap: config.attention_cap,
    }
}

/// Bytes that each thread comes to hold for attention over examples of at most this many tokens.
pub fn attention_memory(config: &Config, precision: Precision, tokens: usize) -> u64 {
    heads(config, 0).thread_memory(precision, tokens)
}

/// Which columns of a fused projection's result are queries, keys and values: as a matrix of rows of `row`
/// columns (all of a token's, or those of one head), the first and the number of columns of each.
fn parts_of(config: &Config, order: FusedQkv) -> (usize, [(usize, usize); 3]) {
    let (q, kv, d) = (config.q_width(), config.kv_width(), config.head_dim);
    match order {
        FusedQkv::Blocks => (q + 2 * kv, [(0, q), (q, kv), (q + kv, kv)]),
        FusedQkv::ByHead => (3 * d, [(0, d), (d, d), (2 * d, d)]),
    }
}

impl Attention {
    /// A linear layer by its name.
    pub(crate) fn linear(&self, part: Part) -> Option<&Linear> {
        match (part, &self.qkv) {
            (Part::O, _) => Some(&self.o),
            (Part::Qkv, Qkv::Fused(linear)) => Some(linear),
            (Part::Q, Qkv::Apart(linears)) => Some(&linears[0]),
            (Part::K, Qkv::Apart(linears)) => Some(&linears[1]),
            (Part::V, Qkv::Apart(linears)) => Some(&linears[2]),
            _ => None,
        }
    }

    /// The same, to change.
    pub(crate) fn linear_mut(&mut self, part: Part) -> Option<&mut Linear> {
        match (part, &mut self.qkv) {
            (Part::O, _) => Some(&mut self.o),
            (Part::Qkv, Qkv::Fused(linear)) => Some(linear),
            (Part::Q, Qkv::Apart(linears)) => Some(&mut linears[0]),
            (Part::K, Qkv::Apart(linears)) => Some(&mut linears[1]),
            (Part::V, Qkv::Apart(linears)) => Some(&mut linears[2]),
            _ => None,
        }
    }

    /// `y [T, C] = x + attention(norm(x))`. With a cache, keys and values go there and the batch's segments
    /// name cache rows.
    pub(crate) fn forward(
        &self,
        pass: Pass<'_>,
        layer: usize,
        cache: Option<&mut LayerCache>,
        x: &Matrix,
        y: &mut Matrix,
        saved: &mut Saved,
        work: &mut Workspace,
    ) {
        let Pass { run, groups, config, batch, .. } = pass;
        let t = batch.tokens();
        let id = |part| ModuleId::Linear { layer, part };
        let Workspace { normed, linear: scratch, attention: own, exit, .. } = work;

        let input = match &self.norm {
            None => x.top(t),
            Some(norm) => {
                let id = ModuleId::Norm { layer, part: NormPart::Attention };
                norm.forward(groups, config, id, normed.top_mut(t), x.top(t), &mut saved.norm);
                normed.top(t)
            }
        };
        let [q_to, k_to] = match &mut saved.raw {
            Some([q, k]) => [q, k],
            None => [&mut saved.q, &mut saved.k],
        };
        match (&self.qkv, config.fused_qkv) {
            (Qkv::Fused(qkv), Some(order)) => {
                qkv.forward(groups, id(Part::Qkv), own.fused.top_mut(t), false, input, scratch);
                let (row, columns) = parts_of(config, order);
                let rows = t * own.fused.cols() / row;
                let fused = own.fused.top(t).reshape(rows, row);
                for (to, (start, width)) in [q_to, k_to, &mut saved.v].into_iter().zip(columns) {
                    let part = fused.cols_range(start..start + width);
                    copy::copy(run.device, to.top_mut(t).reshape(rows, width), part);
                }
            }
            (Qkv::Apart(linears), _) => {
                let parts = [Part::Q, Part::K, Part::V];
                for ((linear, part), to) in linears.iter().zip(parts).zip([q_to, k_to, &mut saved.v]) {
                    linear.forward(groups, id(part), to.top_mut(t), false, input, scratch);
                }
            }
            (Qkv::Fused(_), None) => unreachable!("the configuration says how a fused projection is ordered"),
        }
        self.place(pass, layer, saved);
        let Saved { q, k, v, attended, lse, .. } = saved;
        let (keys, values) = match cache {
            Some(cache) => {
                cache.append(run.device, batch, k, v);
                (cache.keys.as_ref(), cache.values.as_ref())
            }
            None => (k.top(t), v.top(t)),
        };
        let (out, lse) = (attended.top_mut(t), lse.top_mut(t));
        let heads = heads(config, layer);
        let (device, precision) = (run.device, run.precision);
        attention::forward(device, precision, &heads, &batch.segments, q.top(t), keys, values, out, lse);
        if exit::is_direct(config) {
            copy::copy(device, y.top_mut(t), x.top(t));
            self.o.forward(groups, id(Part::O), y.top_mut(t), true, attended.top(t), scratch);
        } else {
            let branch = saved.exit.branch(config, exit).top_mut(t);
            self.o.forward(groups, id(Part::O), branch, false, attended.top(t), scratch);
            let behind = ModuleId::Norm { layer, part: NormPart::AfterAttention };
            exit::forward(pass, self.norm_behind.as_ref(), behind, y, x, &mut saved.exit, exit);
        }
    }

    /// Norms of queries and keys, and their positions, in the family's order.
    fn place(&self, pass: Pass<'_>, layer: usize, saved: &mut Saved) {
        let Pass { run, groups, config, batch, .. } = pass;
        let (t, table) = (batch.tokens(), config.blocks[layer].rope.map(|rope| &pass.positions.tables[rope]));
        let turn = |x: &mut Matrix| {
            if let Some(table) = table {
                rope::forward(run.device, x.top_mut(t), table, pass.positions.rows.get());
            }
        };
        let Saved { raw, raw_norms, q, k, .. } = saved;
        match (&self.qk_norms, raw, config.qk_norm) {
            (Some(norms), Some(raw), Some(QkNorm { span, behind_rope })) => {
                if behind_rope {
                    raw.iter_mut().for_each(turn);
                }
                let ends = raw.iter().zip([&mut *q, &mut *k]);
                for ((norm, part), ((from, to), saved)) in
                    norms.iter().zip([NormPart::Q, NormPart::K]).zip(ends.zip(raw_norms))
                {
                    let (rows, cols) = rows_of(config, span, t, to.cols());
                    let (to, from) = (to.top_mut(t).reshape(rows, cols), from.top(t).reshape(rows, cols));
                    norm.forward(groups, config, ModuleId::Norm { layer, part }, to, from, saved);
                }
                if !behind_rope {
                    [q, k].into_iter().for_each(turn);
                }
            }
            _ => [q, k].into_iter().for_each(turn),
        }
        if let Some(growth) = &pass.positions.growth {
            position_scale::apply(run.device, saved.q.top_mut(t), growth, pass.positions.positions.get());
        }
    }

    /// Takes the gradients of placed queries and keys back to those of what the projections gave, and says
    /// where these stand.
    fn displace<'a>(
        &self,
        pass: Pass<'_>,
        layer: usize,
        saved: &Saved,
        own: &'a mut Gradients,
        gradients: &mut [Parameters],
    ) -> [&'a Matrix; 3] {
        let Pass { run, groups, config, batch, .. } = pass;
        let (t, table) = (batch.tokens(), config.blocks[layer].rope.map(|rope| &pass.positions.tables[rope]));
        let turn_back = |dx: &mut Matrix| {
            if let Some(table) = table {
                rope::backward(run.device, dx.top_mut(t), table, pass.positions.rows.get());
            }
        };
        let Gradients { q: dq, k: dk, v: dv, attended: dattended, k_raw: dk_raw } = own;
        if let Some(growth) = &pass.positions.growth {
            position_scale::apply(run.device, dq.top_mut(t), growth, pass.positions.positions.get());
        }
        let (Some(norms), Some(raw), Some(QkNorm { span, behind_rope })) =
            (&self.qk_norms, &saved.raw, config.qk_norm)
        else {
            [&mut *dq, &mut *dk].into_iter().for_each(turn_back);
            return [dq, dk, dv];
        };
        if !behind_rope {
            [&mut *dq, &mut *dk].into_iter().for_each(turn_back);
        }
        // The gradient of attention's result is spent: its buffer takes that of the queries before their
        // norm.
        let ends = [(&*dq, &mut *dattended), (&*dk, &mut *dk_raw)];
        for (((norm, part), (raw, saved)), (from, to)) in
            norms.iter().zip([NormPart::Q, NormPart::K]).zip(raw.iter().zip(&saved.raw_norms)).zip(ends)
        {
            let (rows, cols) = rows_of(config, span, t, from.cols());
            let id = ModuleId::Norm { layer, part };
            let (to, from) = (to.top_mut(t).reshape(rows, cols), from.top(t).reshape(rows, cols));
            norm.backward(
                groups,
                config,
                id,
                to,
                false,
                from,
                raw.top(t).reshape(rows, cols),
                saved,
                gradients,
            );
        }
        if behind_rope {
            [&mut *dattended, &mut *dk_raw].into_iter().for_each(turn_back);
        }
        [dattended, dk_raw, dv]
    }

    /// Turns the gradient of the output in `work.dx` into that of the input, and adds the trained tensors'
    /// gradients.
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
        let Workspace { normed, dx, dnormed, dparallel, linear: scratch, attention: own, exit, .. } = work;

        let behind = ModuleId::Norm { layer, part: NormPart::AfterAttention };
        // With a parallel residual `dx` has the MLP's share of the input's gradient already.
        let dy = if config.parallel_residual { &*dparallel } else { &*dx };
        let dbranch =
            exit::backward(pass, self.norm_behind.as_ref(), behind, dy, &saved.exit, exit, gradients);
        let Scratch { fused, gradients: own } = own;
        let dattended = Some(own.attended.top_mut(t));
        let attended = saved.attended.top(t);
        self.o.backward(groups, id(Part::O), dattended, false, dbranch.top(t), attended, gradients, scratch);
        attention::backward(
            device,
            run.precision,
            &heads(config, layer),
            &batch.segments,
            saved.q.top(t),
            saved.k.top(t),
            saved.v.top(t),
            attended,
            saved.lse.top(t),
            own.attended.top(t),
            own.q.top_mut(t),
            own.k.top_mut(t),
            own.v.top_mut(t),
        );
        let parts = self.displace(pass, layer, saved, own, gradients);
        // The norm's result was not kept: making it again costs one pass over x.
        let norm_id = ModuleId::Norm { layer, part: NormPart::Attention };
        let input = match &self.norm {
            None => x.top(t),
            Some(norm) => {
                norm.forward(groups, config, norm_id, normed.top_mut(t), x.top(t), &mut saved.norm);
                normed.top(t)
            }
        };
        let mut to_input = |linear: &Linear, part, dy: MatrixRef<'_>, accumulate| {
            // Without a norm the gradient goes straight to the residual stream.
            let (to, accumulate) = match &self.norm {
                None => (dx.top_mut(t), true),
                Some(_) => (dnormed.top_mut(t), accumulate),
            };
            linear.backward(groups, id(part), Some(to), accumulate, dy, input, gradients, scratch);
        };
        match (&self.qkv, config.fused_qkv) {
            (Qkv::Fused(qkv), Some(order)) => {
                let (row, columns) = parts_of(config, order);
                let rows = t * fused.cols() / row;
                for (from, (start, width)) in parts.into_iter().zip(columns) {
                    let (to, from) = (fused.top_mut(t).reshape(rows, row), from.top(t).reshape(rows, width));
                    copy::copy(device, to.cols_range(start..start + width), from);
                }
                to_input(qkv, Part::Qkv, fused.top(t), false);
            }
            (Qkv::Apart(linears), _) => {
                for (n, (linear, part)) in linears.iter().zip([Part::Q, Part::K, Part::V]).enumerate() {
                    to_input(linear, part, parts[n].top(t), n > 0);
                }
            }
            (Qkv::Fused(_), None) => unreachable!("the configuration says how a fused projection is ordered"),
        }
        if let Some(norm) = &self.norm {
            let (dx, dy) = (dx.top_mut(t), dnormed.top(t));
            norm.backward(groups, config, norm_id, dx, true, dy, x.top(t), &saved.norm, gradients);
        }
    }
}

/// Queries or keys of so many tokens and columns as a matrix whose rows the norm runs over.
fn rows_of(config: &Config, span: Span, tokens: usize, cols: usize) -> (usize, usize) {
    match span {
        Span::Head => (tokens * cols / config.head_dim, config.head_dim),
        Span::Width => (tokens, cols),
    }
}
