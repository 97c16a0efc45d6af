//! The output head: final norm, projection onto the vocabulary and cross entropy, in chunks of the rows that
//! carry loss. Logits exist for one chunk at a time; rows without loss are never projected.

use compute::ops::{cross_entropy, rms_norm};
use compute::{Buffer, DType, Matrix, MatrixMut, MatrixRef, Precision};

use crate::adapter::parameters::{Layout, Parameters};
use crate::batch::Target;
use crate::config::Config;
use crate::linear::{self, Linear};
use crate::memory::{Allocator, Component};
use crate::names::ModuleId;
use crate::run::{Run, gradient_of};

/// Logits held at once: enough rows to make the projection efficient, few enough to stay small beside the
/// model.
const LOGITS_PER_CHUNK: usize = 1 << 25;
const ROWS_PER_CHUNK: std::ops::RangeInclusive<usize> = 64..=1024;

/// Buffers for one chunk of rows.
#[derive(Debug)]
pub(crate) struct Workspace {
    rows: usize,
    /// Rows of the residual stream `[rows, C]`, and in the backward pass their gradient.
    gathered: Matrix,
    normed: Matrix,
    rstd: Buffer<f32>,
    logits: Matrix,
    dnormed: Matrix,
    tokens: Vec<u32>,
    linear: linear::Scratch,
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
        let wanted = (LOGITS_PER_CHUNK / config.vocab_size) / 32 * 32;
        let rows = wanted.clamp(*ROWS_PER_CHUNK.start(), *ROWS_PER_CHUNK.end()).min(tokens);
        let (c, dtype) = (config.hidden_size, precision.dtype());
        let dropout = if training { dropout } else { 0.0 };
        let mut buffer = |rows, cols, dtype| allocator.matrix(Component::Workspace, rows, cols, dtype);
        let (gathered, normed) = (buffer(rows, c, dtype), buffer(rows, c, dtype));
        let logits = buffer(rows, config.vocab_size, DType::F32);
        let dnormed = buffer(if training { rows } else { 0 }, c, dtype);
        Workspace {
            rows,
            gathered,
            normed,
            rstd: allocator.vector(Component::Workspace, rows),
            logits,
            dnormed,
            tokens: Vec::with_capacity(rows),
            linear: linear::Scratch::new(layout, dropout, rows, c, precision, allocator),
        }
    }

    /// Rows that one chunk holds.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
}

/// The head's frozen weights, borrowed from the decoder: a tied head borrows the embedding.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) norm: &'a Matrix,
    pub(crate) projection: &'a Linear,
}

impl Head<'_> {
    /// Logits of these rows of the residual stream; at most [`Workspace::rows`] of them. `f32`, `[rows.len(),
    /// V]`.
    pub(crate) fn logits<'w>(
        &self,
        run: &Run<'_>,
        config: &Config,
        stream: &Matrix,
        rows: impl Iterator<Item = usize>,
        work: &'w mut Workspace,
    ) -> MatrixRef<'w> {
        let mut n = 0;
        for row in rows {
            work.gathered.as_mut().rows_range(n..n + 1).copy_from(stream.as_ref().rows_range(row..row + 1));
            n += 1;
        }
        let norm = run.weight(ModuleId::FinalNorm, self.norm);
        let (normed, rstd) = (work.normed.top_mut(n), &mut work.rstd[..n]);
        rms_norm::forward(run.device, normed, work.gathered.top(n), norm, config.rms_norm_eps, rstd);
        let (x, y) = (work.normed.top(n), work.logits.top_mut(n));
        self.projection.forward(run, ModuleId::Head, y, false, x, &mut work.linear);
        work.logits.top(n)
    }

    /// The loss of every target.
    pub(crate) fn losses(
        &self,
        run: &Run<'_>,
        config: &Config,
        stream: &Matrix,
        targets: &[Target],
        losses: &mut [f32],
        work: &mut Workspace,
    ) {
        let rows = work.rows;
        for (targets, losses) in targets.chunks(rows).zip(losses.chunks_mut(rows)) {
            work.tokens.clear();
            work.tokens.extend(targets.iter().map(|t| t.token));
            self.logits(run, config, stream, targets.iter().map(|t| t.row), work);
            cross_entropy::forward(run.device, work.logits.top(targets.len()), &work.tokens, losses);
        }
    }

    /// The loss of every target; `dx [T, C]`, the gradient of `scale` times their sum with respect to the
    /// residual stream, and the gradients of what is trained on the head.
    pub(crate) fn losses_and_gradients(
        &self,
        run: &Run<'_>,
        config: &Config,
        stream: &Matrix,
        mut dx: MatrixMut<'_>,
        targets: &[Target],
        scale: f32,
        losses: &mut [f32],
        gradients: &mut Parameters,
        work: &mut Workspace,
    ) {
        dx.clear();
        let rows = work.rows;
        for (targets, losses) in targets.chunks(rows).zip(losses.chunks_mut(rows)) {
            let n = targets.len();
            work.tokens.clear();
            work.tokens.extend(targets.iter().map(|t| t.token));
            self.logits(run, config, stream, targets.iter().map(|t| t.row), work);
            let Workspace { gathered, normed, rstd, logits, dnormed, tokens, linear, .. } = work;
            cross_entropy::forward_backward(run.device, logits.top_mut(n), tokens, scale, losses);
            let (dn, dy, input) = (Some(dnormed.top_mut(n)), logits.top(n), normed.top(n));
            self.projection.backward(run, ModuleId::Head, dn, false, dy, input, gradients, linear);
            let norm = run.weight(ModuleId::FinalNorm, self.norm);
            let dnorm = gradient_of(run, ModuleId::FinalNorm, gradients);
            // The chunk's normalized rows are spent: their buffer takes the gradient of the rows before the
            // norm.
            rms_norm::backward(
                run.device,
                normed.top_mut(n),
                false,
                dnormed.top(n),
                gathered.top(n),
                norm,
                &rstd[..n],
                dnorm,
            );
            for (i, target) in targets.iter().enumerate() {
                dx.reborrow()
                    .rows_range(target.row..target.row + 1)
                    .copy_from(normed.as_ref().rows_range(i..i + 1));
            }
        }
    }
}
