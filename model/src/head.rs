//! The output head: final norm, projection onto the vocabulary and cross entropy, in chunks of the rows that
//! carry loss. Logits exist for one chunk at a time; rows without loss are never projected.

use compute::ops::{copy, cross_entropy, divergence, scale, soft_cap};
use compute::{DType, Device, Matrix, MatrixMut, MatrixRef, Precision};

use crate::adapter::method::quantization_aware::Effective;
use crate::adapter::method::{dora, lora};
use crate::adapter::parameters::{Layout, Parameters};
use crate::batch::Target;
use crate::config::Config;
use crate::linear::{self, Linear, Rows};
use crate::memory::{Allocator, Component};
use crate::names::ModuleId;
use crate::norm::{self, Norm};
use crate::run::Run;
use crate::staged::Staged;

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
    norm: norm::Saved,
    logits: Matrix,
    /// Logits as they were capped, where the family caps them `[rows, V]`: their gradient needs them.
    capped: Matrix,
    dnormed: Matrix,
    /// Which rows of the batch these are, and the tokens that follow.
    numbers: Staged<u32>,
    tokens: Staged<u32>,
    /// Of each target `[rows, 1]`.
    losses: Matrix,
    weights: Matrix,
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
        let wanted = (LOGITS_PER_CHUNK / config.vocab_size) / 32 * 32;
        let rows = wanted.clamp(*ROWS_PER_CHUNK.start(), *ROWS_PER_CHUNK.end()).min(tokens);
        let (c, dtype) = (config.hidden_size, precision.dtype());
        let dropout = if training { dropout } else { 0.0 };
        let of_head = |module| module == ModuleId::Head;
        let dora = dora::Memory::new(layout, of_head, (1, |_| 1), (rows, training), precision, allocator);
        let mut buffer = |rows, cols, dtype| allocator.matrix(Component::Workspace, rows, cols, dtype);
        let (gathered, normed) = (buffer(rows, c, dtype), buffer(rows, c, dtype));
        let logits = buffer(rows, config.vocab_size, DType::F32);
        let capped = if training && config.logits_cap.is_some() { rows } else { 0 };
        let capped = buffer(capped, config.vocab_size, DType::F32);
        let dnormed = buffer(if training { rows } else { 0 }, c, dtype);
        Workspace {
            rows,
            gathered,
            normed,
            norm: norm::Saved::new(config, rows, Component::Workspace, allocator),
            logits,
            capped,
            dnormed,
            numbers: Staged::new(rows, Component::Workspace, allocator),
            tokens: Staged::new(rows, Component::Workspace, allocator),
            losses: allocator.matrix(Component::Workspace, rows, 1, DType::F32),
            weights: allocator.matrix(Component::Workspace, if training { rows } else { 0 }, 1, DType::F32),
            linear: linear::Scratch {
                lora: lora::Buffers::new(layout, dropout, (rows, rows), c, precision, allocator),
                dora,
                effective: Effective::new(config, &Layout::default(), allocator),
                sums: allocator.matrix(Component::Workspace, 0, 0, DType::F32),
            },
        }
    }

    /// Rows that one chunk holds.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The losses of these tokens by the logits that are here, a row each.
    pub(crate) fn losses_of(&mut self, device: &Device, tokens: &[u32]) -> Vec<f32> {
        let n = tokens.len();
        self.tokens.set(tokens.iter().copied());
        cross_entropy::forward(device, self.logits.top(n), self.tokens.get(), self.losses.top_mut(n));
        self.losses.top(n).download().f32().to_vec()
    }
}

/// What an adapter changes about a token that is to be predicted, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// The token's loss by the base.
    pub base_loss: f32,
    /// Its loss with the adapter.
    pub loss: f32,
    /// How far the adapter's distribution over all tokens is from the base's: `KL(base, adapter)`.
    pub divergence: f32,
}

/// The head's frozen weights, borrowed from the decoder: a tied head borrows the embedding.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) norm: &'a Norm,
    pub(crate) projection: &'a Linear,
}

impl Head<'_> {
    /// The first rows of a chunk, on their way through the projection.
    fn rows<'r>(&'r self, run: &'r Run<'r>, count: usize) -> Rows<'r> {
        Rows { range: 0..count, linear: self.projection, module: ModuleId::Head, run, group: 0 }
    }

    /// Logits of these rows of the residual stream, which are called so where dropout is in use; at most
    /// [`Workspace::rows`] of them. `f32`, `[rows.len(), V]`.
    pub(crate) fn logits<'w>(
        &self,
        run: &Run<'_>,
        config: &Config,
        stream: (&Matrix, &[u64]),
        rows: impl Iterator<Item = usize>,
        work: &'w mut Workspace,
    ) -> MatrixRef<'w> {
        let rows: Vec<usize> = rows.collect();
        self.logits_of_groups(config, stream, &[(*run, &rows)], work)
    }

    /// [`Head::logits`] of rows of several groups, one after the other.
    pub(crate) fn logits_of_groups<'w>(
        &self,
        config: &Config,
        (stream, names): (&Matrix, &[u64]),
        groups: &[(Run<'_>, &[usize])],
        work: &'w mut Workspace,
    ) -> MatrixRef<'w> {
        work.numbers.set(groups.iter().flat_map(|(_, rows)| rows.iter().map(|&row| row as u32)));
        let rows = work.numbers.host();
        work.linear.lora.names.set(rows.iter().filter_map(|&row| names.get(row as usize).copied()));
        let n = rows.len();
        let Some((Run { device, .. }, _)) = groups.first() else { return work.logits.top(0) };
        copy::gather(device, work.gathered.top_mut(n), stream.as_ref(), work.numbers.get());
        let (mut first, mut parts): (_, Vec<Rows<'_>>) = (0, Vec::new());
        for (run, rows) in groups {
            let range = first..first + rows.len();
            first = range.end;
            let (to, from) = (work.normed.as_mut().rows_range(range.clone()), work.gathered.as_ref());
            let from = from.rows_range(range.clone());
            self.norm.forward_rows(run, config, ModuleId::FinalNorm, to, from, &mut work.norm, range.start);
            let part = Rows { range, ..self.rows(run, 0) };
            // By tiles it does not matter how many rows pass the base's own head together.
            match parts.last_mut().filter(|last| last.is_by_tiles_alone() && part.is_by_tiles_alone()) {
                Some(last) => last.range.end = first,
                None => parts.push(part),
            }
        }
        let (x, y) = (work.normed.top(n), work.logits.top_mut(n));
        linear::forward(&parts, y, false, x, &mut work.linear);
        match (config.logits_scale, config.logits_cap) {
            (1.0, None) => {}
            (factor, None) => scale::in_place(device, work.logits.top_mut(n), factor),
            (factor, Some(cap)) => soft_cap::forward(device, work.logits.top_mut(n), factor, cap),
        }
        work.logits.top(n)
    }

    /// The loss of every target.
    pub(crate) fn losses(
        &self,
        run: &Run<'_>,
        config: &Config,
        stream: (&Matrix, &[u64]),
        targets: &[Target],
        losses: &mut [f32],
        work: &mut Workspace,
    ) {
        let rows = work.rows;
        for (targets, losses) in targets.chunks(rows).zip(losses.chunks_mut(rows)) {
            self.logits(run, config, stream, targets.iter().map(|t| t.row), work);
            let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
            losses.copy_from_slice(&work.losses_of(run.device, &tokens));
        }
    }

    /// What the second of two groups changes about targets, which are those of the first group; the second has the
    /// same rows so many rows later.
    pub(crate) fn changes(
        &self,
        [base, changed]: [Run<'_>; 2],
        config: &Config,
        stream: (&Matrix, &[u64]),
        (targets, later): (&[Target], usize),
        work: &mut Workspace,
    ) -> Vec<Change> {
        let mut changes = Vec::with_capacity(targets.len());
        for targets in targets.chunks(work.rows / 2) {
            let n = targets.len();
            let rows: Vec<usize> = targets.iter().map(|target| target.row).collect();
            let rows_later: Vec<usize> = rows.iter().map(|row| row + later).collect();
            self.logits_of_groups(config, stream, &[(base, &rows), (changed, &rows_later)], work);
            let tokens: Vec<u32> = targets.iter().chain(targets).map(|target| target.token).collect();
            let losses = work.losses_of(base.device, &tokens);
            let Workspace { logits, losses: divergences, .. } = work;
            let of = |range: std::ops::Range<usize>| logits.as_ref().rows_range(range);
            divergence::forward(base.device, of(0..n), of(n..2 * n), divergences.top_mut(n));
            let divergences = divergences.top(n).download();
            let (base_losses, losses) = losses.split_at(n);
            let all = base_losses.iter().zip(losses).zip(divergences.f32());
            changes.extend(all.map(|((&base_loss, &loss), &divergence)| Change {
                base_loss,
                loss,
                divergence,
            }));
        }
        changes
    }

    /// The loss of every target; into `dx [T, C]`, the gradient of their sum weighted by `weights` with
    /// respect to the residual stream, in the rows of targets; and the gradients of what is trained on the
    /// head.
    pub(crate) fn losses_and_gradients(
        &self,
        run: &Run<'_>,
        config: &Config,
        stream: (&Matrix, &[u64]),
        mut dx: MatrixMut<'_>,
        targets: &[Target],
        weights: &[f32],
        losses: &mut [f32],
        gradients: &mut Parameters,
        work: &mut Workspace,
    ) {
        let rows = work.rows;
        let chunks = targets.chunks(rows).zip(weights.chunks(rows)).zip(losses.chunks_mut(rows));
        for ((targets, weights), losses) in chunks {
            let n = targets.len();
            work.tokens.set(targets.iter().map(|t| t.token));
            work.weights.top_mut(n).upload(|to| to.f32().copy_from_slice(weights));
            self.logits(run, config, stream, targets.iter().map(|t| t.row), work);
            let Workspace { gathered, normed, norm, logits, capped, dnormed, linear, .. } = work;
            if config.logits_cap.is_some() {
                copy::copy(run.device, capped.top_mut(n), logits.top(n));
            }
            let (tokens, weights) = (work.tokens.get(), work.weights.top(n));
            let (to, of_targets) = (logits.top_mut(n), work.losses.top_mut(n));
            cross_entropy::forward_backward(run.device, to, tokens, weights, of_targets);
            losses.copy_from_slice(work.losses.top(n).download().f32());
            match (config.logits_scale, config.logits_cap) {
                (1.0, None) => {}
                (factor, None) => scale::in_place(run.device, logits.top_mut(n), factor),
                (factor, Some(cap)) => {
                    soft_cap::backward(run.device, logits.top_mut(n), capped.top(n), factor, cap);
                }
            }
            let (dn, dy, input) = (Some(dnormed.top_mut(n)), logits.top(n), normed.top(n));
            let (all, gradients_of) = ([self.rows(run, n)], std::slice::from_mut(&mut *gradients));
            linear::backward(&all, dn, false, dy, input, gradients_of, linear);
            // The chunk's normalized rows are spent: their buffer takes the gradient of the rows before the
            // norm.
            let (dx_rows, dn, x) = (normed.top_mut(n), dnormed.top(n), gathered.top(n));
            let id = ModuleId::FinalNorm;
            self.norm.backward_rows(run, config, id, dx_rows, false, dn, x, norm, 0, gradients);
            copy::scatter(run.device, dx.reborrow(), normed.top(n), work.numbers.get());
        }
    }
}
