//! The attention half of a block: norm, projections with their adapters, rotary embedding, attention,
//! projection onto the residual stream.

use compute::ops::attention::{self, Attention as Heads};
use compute::ops::rms_norm;
use compute::ops::rope;
use compute::{Buffer, DType, Matrix, Precision};

use crate::adapter::parameters::Parameters;
use crate::block::{Pass, Workspace};
use crate::cache::LayerCache;
use crate::config::Config;
use crate::linear::Linear;
use crate::memory::{Allocator, Component};
use crate::names::{ModuleId, NormPart, Part};
use crate::run::gradient_of;

/// Frozen weights.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Norm of the block's input `[1, C]`.
    pub(crate) norm: Matrix,
    /// Query projection `[H * D, C]`.
    pub(crate) q: Linear,
    /// Key projection `[K * D, C]`.
    pub(crate) k: Linear,
    /// Value projection `[K * D, C]`.
    pub(crate) v: Linear,
    /// Output projection `[C, H * D]`.
    pub(crate) o: Linear,
    /// Norm of each query head `[1, D]` (Qwen3).
    pub(crate) q_norm: Option<Matrix>,
    /// Norm of each key head `[1, D]` (Qwen3).
    pub(crate) k_norm: Option<Matrix>,
}

/// What the backward pass needs of the forward pass.
#[derive(Debug)]
pub(crate) struct Saved {
    rstd: Buffer<f32>,
    /// Queries and keys before their norms; present where the family has these.
    raw: Option<[Matrix; 2]>,
    raw_rstd: [Buffer<f32>; 2],
    q: Matrix,
    k: Matrix,
    v: Matrix,
    attended: Matrix,
    lse: Matrix,
}

impl Saved {
    pub(crate) fn new(
        config: &Config,
        tokens: usize,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let dtype = precision.dtype();
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let mut keep = |cols| allocator.matrix(Component::Activations, tokens, cols, dtype);
        let raw = config.qk_norm.then(|| [keep(q), keep(kv)]);
        let (q, k, v, attended) = (keep(q), keep(kv), keep(kv), keep(q));
        let normed = if config.qk_norm { tokens } else { 0 };
        let mut vector = |len| allocator.vector(Component::Activations, len);
        let raw_rstd = [vector(normed * config.heads), vector(normed * config.kv_heads)];
        let rstd = vector(tokens);
        let lse = allocator.matrix(Component::Activations, tokens, config.heads, DType::F32);
        Saved { rstd, raw, raw_rstd, q, k, v, attended, lse }
    }
}

/// The heads of a layer as the attention operation wants them.
fn heads(config: &Config, layer: usize) -> Heads {
    Heads {
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        scale: (config.head_dim as f32).powf(-0.5),
        window: config.windows[layer],
    }
}

/// Bytes that each thread comes to hold for attention over examples of at most this many tokens.
pub fn attention_memory(config: &Config, precision: Precision, tokens: usize) -> u64 {
    heads(config, 0).thread_memory(precision, tokens)
}

impl Attention {
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
        let Pass { run, config, rope, batch } = pass;
        let t = batch.tokens();
        let (device, id) = (run.device, |part| ModuleId::Linear { layer, part });
        let norm_id = |part| ModuleId::Norm { layer, part };
        let Saved { rstd, raw, raw_rstd, q, k, v, attended, lse } = saved;
        let scratch = &mut work.linear;

        let norm = run.weight(norm_id(NormPart::Attention), &self.norm);
        rms_norm::forward(
            device,
            work.normed.top_mut(t),
            x.top(t),
            norm,
            config.rms_norm_eps,
            &mut rstd[..t],
        );
        let normed = work.normed.top(t);
        let (q_to, k_to) = match raw {
            Some([q, k]) => (q, k),
            None => (&mut *q, &mut *k),
        };
        self.q.forward(run, id(Part::Q), q_to.top_mut(t), false, normed, scratch);
        self.k.forward(run, id(Part::K), k_to.top_mut(t), false, normed, scratch);
        self.v.forward(run, id(Part::V), v.top_mut(t), false, normed, scratch);
        if let Some(raw) = raw {
            let norms =
                [(&self.q_norm, NormPart::Q, config.heads), (&self.k_norm, NormPart::K, config.kv_heads)];
            for (((norm, part, heads), raw), (to, rstd)) in
                norms.into_iter().zip(raw).zip([&mut *q, &mut *k].into_iter().zip(raw_rstd))
            {
                let rows = t * heads;
                let norm =
                    run.weight(norm_id(part), norm.as_ref().expect("the family has a norm for each head"));
                let to = to.top_mut(t).reshape(rows, config.head_dim);
                let from = raw.top(t).reshape(rows, config.head_dim);
                rms_norm::forward(device, to, from, norm, config.rms_norm_eps, &mut rstd[..rows]);
            }
        }
        rope::forward(device, q.top_mut(t), rope, &batch.positions);
        rope::forward(device, k.top_mut(t), rope, &batch.positions);
        let (keys, values) = match cache {
            Some(cache) => {
                cache.append(&batch.segments, k, v);
                (cache.keys.as_ref(), cache.values.as_ref())
            }
            None => (k.top(t), v.top(t)),
        };
        let (out, lse) = (attended.top_mut(t), lse.top_mut(t));
        let heads = heads(config, layer);
        attention::forward(device, run.precision, &heads, &batch.segments, q.top(t), keys, values, out, lse);
        y.top_mut(t).copy_from(x.top(t));
        self.o.forward(run, id(Part::O), y.top_mut(t), true, attended.top(t), scratch);
    }

    /// Turns the gradient of the output in `work.dx` into that of the input, and adds the trained tensors'
    /// gradients.
    pub(crate) fn backward(
        &self,
        pass: Pass<'_>,
        layer: usize,
        x: &Matrix,
        saved: &mut Saved,
        gradients: &mut Parameters,
        work: &mut Workspace,
    ) {
        let Pass { run, config, rope, batch } = pass;
        let t = batch.tokens();
        let (device, id) = (run.device, |part| ModuleId::Linear { layer, part });
        let norm_id = |part| ModuleId::Norm { layer, part };
        let Saved { rstd, raw, raw_rstd, q, k, v, attended, lse } = saved;
        let Workspace { normed, dx, dnormed, dq, dk, dv, dattended, dk_raw, linear: scratch, .. } = work;

        let dy = Some(dattended.top_mut(t));
        self.o.backward(run, id(Part::O), dy, false, dx.top(t), attended.top(t), gradients, scratch);
        attention::backward(
            device,
            run.precision,
            &heads(config, layer),
            &batch.segments,
            q.top(t),
            k.top(t),
            v.top(t),
            attended.top(t),
            lse.top(t),
            dattended.top(t),
            dq.top_mut(t),
            dk.top_mut(t),
            dv.top_mut(t),
        );
        rope::backward(device, dq.top_mut(t), rope, &batch.positions);
        rope::backward(device, dk.top_mut(t), rope, &batch.positions);
        // The gradient of attention's result is spent: its buffer takes that of the queries before their
        // norm.
        let (dq, dk) = match raw {
            None => (&*dq, &*dk),
            Some(raw) => {
                let norms =
                    [(&self.q_norm, NormPart::Q, config.heads), (&self.k_norm, NormPart::K, config.kv_heads)];
                let ends = [(&*dq, &mut *dattended), (&*dk, &mut *dk_raw)];
                for ((((norm, part, heads), raw), rstd), (from, to)) in
                    norms.into_iter().zip(raw).zip(raw_rstd).zip(ends)
                {
                    let rows = t * heads;
                    let norm = run
                        .weight(norm_id(part), norm.as_ref().expect("the family has a norm for each head"));
                    rms_norm::backward(
                        device,
                        to.top_mut(t).reshape(rows, config.head_dim),
                        false,
                        from.top(t).reshape(rows, config.head_dim),
                        raw.top(t).reshape(rows, config.head_dim),
                        norm,
                        &rstd[..rows],
                        gradient_of(run, norm_id(part), gradients),
                    );
                }
                (&*dattended, &*dk_raw)
            }
        };
        let norm = run.weight(norm_id(NormPart::Attention), &self.norm);
        // The norm's result was not kept: making it again costs one pass over x.
        rms_norm::forward(device, normed.top_mut(t), x.top(t), norm, config.rms_norm_eps, &mut rstd[..t]);
        let input = normed.top(t);
        for (linear, part, accumulate, dy) in
            [(&self.q, Part::Q, false, dq), (&self.k, Part::K, true, dk), (&self.v, Part::V, true, &*dv)]
        {
            let dn = Some(dnormed.top_mut(t));
            linear.backward(run, id(part), dn, accumulate, dy.top(t), input, gradients, scratch);
        }
        let dnorm = gradient_of(run, norm_id(NormPart::Attention), gradients);
        rms_norm::backward(device, dx.top_mut(t), true, dnormed.top(t), x.top(t), norm, &rstd[..t], dnorm);
    }
}
