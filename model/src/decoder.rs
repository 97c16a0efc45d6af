//! A decoder with adapters: forward, loss, backward.

use std::convert::Infallible;
use std::ops::Range;

use compute::ops::{copy, embedding, scale};
use compute::{Device, Matrix, MatrixRef, Precision, bf16};

use crate::activations::{Activations, Purpose};
use crate::adapter::parameters::{Adapter, Parameters};
use crate::batch::Batch;
use crate::block::{Block, Pass};
use crate::cache::Cache;
use crate::config::Config;
use crate::error::Result;
use crate::head::{Change, Head};
use crate::inputs::Inputs;
use crate::linear::{BaseWeight, Linear, Weight};
use crate::names::{ModuleId, NormPart};
use crate::norm::Norm;
use crate::run::{Group, Run, gradients_of};

/// The targets in these rows: they are in order.
fn targets_of(batch: &Batch, rows: &Range<usize>) -> Range<usize> {
    let before = |row: usize| batch.targets.partition_point(|target| target.row < row);
    before(rows.start)..before(rows.end)
}

/// A frozen model on a device. Adapters stay apart from it: every pass names the one it uses.
#[derive(Debug)]
pub struct Decoder {
    /// Its shape.
    pub config: Config,
    /// Where it lives.
    pub device: Device,
    /// How its activations are stored and its products multiply.
    pub precision: Precision,
    /// Token embeddings `[V, C]`; as a linear layer, because a tied head projects with them.
    pub(crate) embedding: Linear,
    /// Embeddings of positions `[positions, C]`, where these are learned.
    pub(crate) position_embedding: Option<Matrix>,
    pub(crate) blocks: Vec<Block>,
    /// The norm before the head.
    pub(crate) final_norm: Norm,
    /// The head's own weight `[V, C]`, where it is not tied to the embeddings.
    pub(crate) head: Option<Linear>,
}

impl Decoder {
    /// A pass with an adapter, without dropout.
    pub fn run<'a>(&'a self, adapter: Option<&'a Adapter>) -> Run<'a> {
        Run::new(&self.device, self.precision, adapter)
    }

    /// Brings a batch to the end of the residual stream. With a cache, the keys and values of its tokens are
    /// appended there and its segments name cache rows.
    ///
    /// # Panics
    /// If the batch is larger than the buffers were laid out for.
    pub fn forward(
        &self,
        run: &Run<'_>,
        batch: &Batch,
        cache: Option<&mut Cache>,
        buffers: &mut Activations,
    ) {
        self.forward_groups(&[Group::of_all(run, batch)], batch, cache, buffers);
    }

    /// [`Decoder::forward`] of a batch whose rows have several adapters. The rows of a group come to what
    /// they come to alone, to the byte.
    ///
    /// # Panics
    /// As [`Decoder::forward`]; also if the groups are not all rows of the batch in order, sequences whole,
    /// if the buffers were laid out for lower ranks, or if inputs are dropped and examples have no numbers.
    pub fn forward_groups(
        &self,
        groups: &[Group<'_>],
        batch: &Batch,
        cache: Option<&mut Cache>,
        buffers: &mut Activations,
    ) {
        buffers.check(groups, batch);
        buffers.set(batch, cache.is_some());
        self.embed(groups, buffers);
        let keep = |_: &mut Inputs, _, _: MatrixRef<'_>| Ok::<_, Infallible>(());
        let Ok(()) = self.layers(0..self.blocks.len(), groups, batch, cache, buffers, keep);
    }

    /// [`Decoder::forward`] of whole sequences, which begins behind the frozen layers where what they give is
    /// [kept]: the same to the byte.
    ///
    /// [kept]: Activations::keeping_frozen
    ///
    /// # Errors
    /// If what is kept cannot be written to its file or read from it.
    ///
    /// # Panics
    /// If the batch is larger than the buffers were laid out for.
    pub fn forward_examples(&self, run: &Run<'_>, batch: &Batch, buffers: &mut Activations) -> Result<()> {
        self.pass(&[Group::of_all(run, batch)], batch, buffers, |_, _, _| Ok(()))
    }

    /// [`Decoder::forward_examples`]; a layer's input is shown to `keep` where the residual stream does not
    /// keep it.
    fn pass(
        &self,
        groups: &[Group<'_>],
        batch: &Batch,
        buffers: &mut Activations,
        keep: impl Fn(&mut Inputs, usize, MatrixRef<'_>) -> Result<()>,
    ) -> Result<()> {
        buffers.check(groups, batch);
        buffers.set(batch, false);
        let (kept, frozen) = (buffers.frozen_layers(), self.frozen_layers(groups));
        assert!(kept <= frozen, "the result of {kept} layers is kept, and {frozen} are frozen");
        // No backward pass comes to the inputs of frozen layers.
        let nothing = |_: &mut Inputs, _, _: MatrixRef<'_>| Ok::<_, Infallible>(());
        // No layer with experts is among those that are kept: what it adds to the loss of their load is not
        // lost.
        if !buffers.restore_frozen(&self.device, batch)? {
            self.embed(groups, buffers);
            let Ok(()) = self.layers(0..kept, groups, batch, None, buffers, nothing);
            buffers.store_frozen(&self.device, batch)?;
        }
        let Ok(()) = self.layers(kept..frozen, groups, batch, None, buffers, nothing);
        self.layers(frozen..self.blocks.len(), groups, batch, None, buffers, keep)
    }

    /// Layers below everything that a pass trains.
    fn frozen_layers(&self, groups: &[Group<'_>]) -> usize {
        let layers = self.blocks.len();
        let of_group = |group: &Group<'_>| {
            group.run.adapter.map_or(layers, |adapter| adapter.layout.frozen_layers(layers))
        };
        groups.iter().map(of_group).min().unwrap_or(layers)
    }

    /// The beginning of the residual stream.
    fn embed(&self, groups: &[Group<'_>], buffers: &mut Activations) {
        let (device, factor) = (&self.device, self.embedding_scale());
        let Activations { stream, ids, positions, .. } = buffers;
        for Group { rows, run } in groups {
            let mut x = stream[0].as_mut().rows_range(rows.clone());
            let ids = ids.get().range(rows.clone());
            match run.table(&self.embedding.weight) {
                BaseWeight::Dense(table) => embedding::forward(device, x.reborrow(), table, ids),
                BaseWeight::Quantized(table) => {
                    embedding::forward_quantized(device, x.reborrow(), table, ids);
                }
            }
            if factor != 1.0 {
                scale::in_place(device, x.reborrow(), factor);
            }
            if let Some(table) = &self.position_embedding {
                let table = run.weight(ModuleId::Positions, table);
                embedding::add(device, x, table, positions.positions.get().range(rows.clone()));
            }
        }
    }

    /// The residual stream `[T, C]` before the first layer.
    pub(crate) fn begin(&self, run: &Run<'_>, batch: &Batch, buffers: &mut Activations) -> Matrix {
        let groups = [Group::of_all(run, batch)];
        buffers.check(&groups, batch);
        buffers.set(batch, false);
        self.embed(&groups, buffers);
        self.taken(buffers.stream[0].top(batch.tokens()))
    }

    /// The residual stream `[T, C]` behind one layer, from that before it.
    pub(crate) fn through(
        &self,
        run: &Run<'_>,
        layer: usize,
        batch: &Batch,
        stream: &Matrix,
        buffers: &mut Activations,
    ) -> Matrix {
        buffers.set(batch, false);
        copy::copy(&self.device, buffers.stream[0].top_mut(batch.tokens()), stream.as_ref());
        let nothing = |_: &mut Inputs, _, _: MatrixRef<'_>| Ok::<_, Infallible>(());
        let groups = [Group::of_all(run, batch)];
        let Ok(()) = self.layers(layer..layer + 1, &groups, batch, None, buffers, nothing);
        self.taken(buffers.stream[0].top(batch.tokens()))
    }

    fn taken(&self, stream: MatrixRef<'_>) -> Matrix {
        let mut copied = self.device.unset(stream.rows(), stream.cols(), stream.dtype());
        copy::copy(&self.device, copied.as_mut(), stream);
        copied
    }

    /// Puts another weight into a linear layer.
    pub(crate) fn replace(&mut self, module: ModuleId, weight: Weight) {
        self.linear_mut(module).unwrap_or_else(|| panic!("the model has no {module:?}")).weight = weight;
    }

    /// The factor on embeddings, as the type of the activations has it: so transformers rounds it.
    fn embedding_scale(&self) -> f32 {
        match self.precision {
            Precision::F32 => self.config.embedding_scale,
            Precision::Bf16 => bf16::from_f32(self.config.embedding_scale).to_f32(),
        }
    }

    /// Some layers, one after the other, whose first one's input is in the residual stream.
    fn layers<E>(
        &self,
        layers: Range<usize>,
        groups: &[Group<'_>],
        batch: &Batch,
        mut cache: Option<&mut Cache>,
        buffers: &mut Activations,
        keep: impl Fn(&mut Inputs, usize, MatrixRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let t = batch.tokens();
        let Activations { stream, inputs, saved, work, positions, .. } = buffers;
        let Some(Group { run, .. }) = groups.first() else { return Ok(()) };
        let pass = Pass { run, groups, config: &self.config, positions, batch };
        for layer in layers {
            let block = &self.blocks[layer];
            // Each layer's output has its own buffer, or it replaces the input.
            let (from, to) = if stream.len() == 1 { (0, 0) } else { (layer, layer + 1) };
            if let Some(inputs) = inputs {
                keep(inputs, layer, stream[from].top(t))?;
            }
            let cache = cache.as_deref_mut().map(|c| c.layer(layer));
            block.forward_first(pass, layer, cache, &stream[from], saved, work);
            block.forward_last(pass, layer, &mut stream[to], saved, work);
        }
        Ok(())
    }

    /// The loss of every target of a batch that went through [`Decoder::forward`], in nats.
    pub fn losses(&self, run: &Run<'_>, batch: &Batch, buffers: &mut Activations, losses: &mut [f32]) {
        self.losses_of_groups(&[Group::of_all(run, batch)], batch, buffers, losses);
    }

    /// [`Decoder::losses`] behind [`Decoder::forward_groups`] of the same groups.
    pub fn losses_of_groups(
        &self,
        groups: &[Group<'_>],
        batch: &Batch,
        buffers: &mut Activations,
        losses: &mut [f32],
    ) {
        let Activations { stream, work, head, .. } = buffers;
        let stream = (stream.last().expect("there is a residual stream"), work.linear.lora.names.host());
        for Group { rows, run } in groups {
            let of_group = targets_of(batch, rows);
            let (targets, losses) = (&batch.targets[of_group.clone()], &mut losses[of_group]);
            self.output().losses(run, &self.config, stream, targets, losses, head);
        }
    }

    /// What an adapter changes about every target of a batch. Base and adapter pass the layers together, so the
    /// buffers must have room for the batch twice.
    ///
    /// # Panics
    /// If they have not, or the pass is one that must be alone.
    pub fn changes(&self, run: &Run<'_>, batch: &Batch, buffers: &mut Activations) -> Vec<Change> {
        let (base, rows) = (Run { adapter: None, ..*run }, batch.tokens());
        let mut twice = batch.clone();
        twice.append(batch);
        let groups = [Group { rows: 0..rows, run: base }, Group { rows: rows..2 * rows, run: *run }];
        self.forward_groups(&groups, &twice, None, buffers);
        let Activations { stream, work, head, .. } = buffers;
        let stream = (stream.last().expect("there is a residual stream"), work.linear.lora.names.host());
        self.output().changes([base, *run], &self.config, stream, (&batch.targets, rows), head)
    }

    /// Logits `[rows.len(), V]` of these rows of a batch that went through [`Decoder::forward`]; of several
    /// groups, of rows of the run's own.
    ///
    /// # Panics
    /// If more than [`Activations::logits_rows`] rows are asked for.
    pub fn logits<'b>(&self, run: &Run<'_>, rows: &[usize], buffers: &'b mut Activations) -> MatrixRef<'b> {
        self.logits_of_groups(&[(*run, rows)], buffers)
    }

    /// Logits of rows of several groups, those of the first group first: each as it comes to alone.
    ///
    /// # Panics
    /// As [`Decoder::logits`], of all rows together.
    pub fn logits_of_groups<'b>(
        &self,
        groups: &[(Run<'_>, &[usize])],
        buffers: &'b mut Activations,
    ) -> MatrixRef<'b> {
        let rows: usize = groups.iter().map(|(_, rows)| rows.len()).sum();
        assert!(rows <= buffers.logits_rows(), "{rows} rows of {}", buffers.logits_rows());
        let Activations { stream, work, head, .. } = buffers;
        let stream = (stream.last().expect("there is a residual stream"), work.linear.lora.names.host());
        self.output().logits_of_groups(&self.config, stream, groups, head)
    }

    /// The losses of these tokens, one for each row whose logits were asked for last: those that
    /// [`Decoder::losses`] has of them, to the bit.
    ///
    /// # Panics
    /// If there are more tokens than rows, or one is not of the vocabulary.
    pub fn losses_of_next(&self, tokens: &[u32], buffers: &mut Activations) -> Vec<f32> {
        buffers.head.losses_of(&self.device, tokens)
    }

    /// The residual stream behind layer `layer` (0: the embeddings) of a batch that went through
    /// [`Decoder::forward`] with training buffers that keep it; `[T, C]` in the first rows.
    pub fn residual<'b>(&self, layer: usize, tokens: usize, buffers: &'b Activations) -> MatrixRef<'b> {
        buffers.stream[layer].top(tokens)
    }

    /// [`Decoder::forward_examples`], after which [`Decoder::losses`] may be asked for and
    /// [`Decoder::backward`] can follow.
    ///
    /// # Errors
    /// If layers' inputs, or what frozen layers give, cannot be written to their file or read from it.
    ///
    /// # Panics
    /// If the batch is larger than the buffers were laid out for, or they were not laid out for training.
    pub fn forward_to_train(&self, run: &Run<'_>, batch: &Batch, buffers: &mut Activations) -> Result<()> {
        assert_ne!(buffers.extent().purpose, Purpose::Infer, "gradients need buffers laid out for training");
        self.forward_groups_to_train(&[Group::of_all(run, batch)], batch, buffers)
    }

    /// [`Decoder::forward_to_train`] of a batch whose rows have several adapters, as
    /// [`Decoder::forward_groups`].
    ///
    /// # Errors
    /// As [`Decoder::forward_to_train`].
    ///
    /// # Panics
    /// As [`Decoder::forward_to_train`] and [`Decoder::forward_groups`].
    pub fn forward_groups_to_train(
        &self,
        groups: &[Group<'_>],
        batch: &Batch,
        buffers: &mut Activations,
    ) -> Result<()> {
        assert_ne!(buffers.extent().purpose, Purpose::Infer, "gradients need buffers laid out for training");
        self.pass(groups, batch, buffers, |inputs, layer, x| inputs.put(&self.device, layer, x))
    }

    /// Behind [`Decoder::forward_to_train`] of the same batch: adds to `gradients` those of an objective
    /// whose derivative by the loss of each target is `weights`, and says these losses. If a pass has a loss
    /// of the spread over experts, it counts as part of each target's. Plain training knows its weights
    /// beforehand, and so needs the head's product once; an objective of several sequences asks for the
    /// losses first.
    ///
    /// # Errors
    /// If layers' inputs cannot be read from their file; a part of the gradients is then added.
    ///
    /// # Panics
    /// If there is not a weight and a place for the loss of each target, or the buffers were not laid out for
    /// training.
    pub fn backward(
        &self,
        run: &Run<'_>,
        batch: &Batch,
        weights: &[f32],
        buffers: &mut Activations,
        losses: &mut [f32],
        gradients: &mut Parameters,
    ) -> Result<()> {
        let (groups, gradients) = ([Group::of_all(run, batch)], std::slice::from_mut(gradients));
        self.backward_groups(&groups, batch, weights, buffers, losses, gradients)
    }

    /// [`Decoder::backward`] behind [`Decoder::forward_groups_to_train`] of the same groups, with gradients
    /// for each of them: those that it has alone, to the byte.
    ///
    /// # Errors
    /// As [`Decoder::backward`].
    ///
    /// # Panics
    /// As [`Decoder::backward`], and if there are not gradients for each group.
    pub fn backward_groups(
        &self,
        groups: &[Group<'_>],
        batch: &Batch,
        weights: &[f32],
        buffers: &mut Activations,
        losses: &mut [f32],
        gradients: &mut [Parameters],
    ) -> Result<()> {
        assert_ne!(buffers.extent().purpose, Purpose::Infer, "gradients need buffers laid out for training");
        assert_eq!(groups.len(), gradients.len(), "groups and their gradients");
        let targets = batch.targets.len();
        assert_eq!((targets, targets), (weights.len(), losses.len()), "targets, weights and losses");
        let Some(Group { run, .. }) = groups.first() else { return Ok(()) };
        let (t, config, device) = (batch.tokens(), &self.config, &self.device);
        let Activations { stream, inputs, saved, work, positions, head, ids, .. } = buffers;
        let last = (stream.last().expect("there is a residual stream"), work.linear.lora.names.host());
        copy::fill(device, work.dx.top_mut(t), 0.0);
        for (Group { rows, run }, gradients) in groups.iter().zip(gradients.iter_mut()) {
            let of_group = targets_of(batch, rows);
            self.output().losses_and_gradients(
                run,
                config,
                last,
                work.dx.top_mut(t),
                &batch.targets[of_group.clone()],
                &weights[of_group.clone()],
                &mut losses[of_group],
                gradients,
                head,
            );
        }
        if run.router_aux_loss != 0.0 {
            let weight: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            work.experts.balance(f64::from(run.router_aux_loss) * weight);
        }
        let pass = Pass { run, groups, config, positions, batch };
        for layer in (self.frozen_layers(groups)..self.blocks.len()).rev() {
            let block = &self.blocks[layer];
            let x = match inputs {
                None => &stream[layer],
                Some(inputs) => {
                    inputs.get(device, layer, stream[0].top_mut(t))?;
                    &stream[0]
                }
            };
            block.recompute(pass, layer, x, saved, work);
            block.backward(pass, layer, x, saved, gradients, work);
        }
        let factor = self.embedding_scale();
        for (Group { rows, run }, gradients) in groups.iter().zip(gradients) {
            let (mut dx, places) = (work.dx.as_mut().rows_range(rows.clone()), positions.positions.get());
            if let (Some(table), _) = gradients_of(run, ModuleId::Positions, gradients) {
                embedding::backward(device, table, dx.as_ref(), places.range(rows.clone()));
            }
            if let (Some(table), _) = gradients_of(run, ModuleId::Embedding, gradients) {
                if factor != 1.0 {
                    scale::in_place(device, dx.reborrow(), factor);
                }
                embedding::backward(device, table, dx.as_ref(), ids.get().range(rows.clone()));
            }
        }
        Ok(())
    }

    fn output(&self) -> Head<'_> {
        Head { norm: &self.final_norm, projection: self.head.as_ref().unwrap_or(&self.embedding) }
    }

    /// The linear layer of a module, if it is one.
    pub(crate) fn linear(&self, module: ModuleId) -> Option<&Linear> {
        match module {
            ModuleId::Head => Some(self.output().projection),
            ModuleId::Linear { layer, part } => {
                let Block { attention, mlp } = &self.blocks[layer];
                attention.linear(part).or_else(|| mlp.layers.linear(part))
            }
            ModuleId::Expert { layer, expert, part } => self.blocks[layer].mlp.layers.expert(expert, part),
            _ => None,
        }
    }

    /// A linear layer of a block, to change.
    fn linear_mut(&mut self, module: ModuleId) -> Option<&mut Linear> {
        match module {
            ModuleId::Linear { layer, part } => {
                let Block { attention, mlp } = &mut self.blocks[layer];
                attention.linear_mut(part).or_else(|| mlp.layers.linear_mut(None, part))
            }
            ModuleId::Expert { layer, expert, part } => {
                self.blocks[layer].mlp.layers.linear_mut(Some(expert), part)
            }
            _ => None,
        }
    }

    fn norm(&self, module: ModuleId) -> Option<&Norm> {
        let ModuleId::Norm { layer, part } = module else {
            return (module == ModuleId::FinalNorm).then_some(&self.final_norm);
        };
        let Block { attention, mlp } = &self.blocks[layer];
        match part {
            NormPart::Attention => attention.norm.as_ref(),
            NormPart::Q => attention.qk_norms.as_ref().map(|[q, _]| q),
            NormPart::K => attention.qk_norms.as_ref().map(|[_, k]| k),
            NormPart::AfterAttention => attention.norm_behind.as_ref(),
            NormPart::Mlp => mlp.norm.as_ref(),
            NormPart::AfterMlp => mlp.norm_behind.as_ref(),
        }
    }

    /// The weight of any module as the base has it.
    ///
    /// # Panics
    /// If the model has no such module.
    pub fn base_weight(&self, module: ModuleId) -> BaseWeight<'_> {
        let dense = |weight| BaseWeight::Dense(Matrix::as_ref(weight));
        let weight = match module {
            ModuleId::Embedding => Some(self.embedding.weight.as_ref()),
            ModuleId::Positions => self.position_embedding.as_ref().map(dense),
            _ if module.is_norm() => self.norm(module).map(|norm| dense(&norm.weight)),
            _ => self.linear(module).map(|linear| linear.weight.as_ref()),
        };
        weight.unwrap_or_else(|| panic!("the model has no {module:?}"))
    }

    /// The bias of a module as the base has it.
    pub fn base_bias(&self, module: ModuleId) -> Option<MatrixRef<'_>> {
        let bias = match module.is_norm() {
            true => self.norm(module)?.bias.as_ref(),
            false => self.linear(module)?.bias.as_ref(),
        };
        bias.map(Matrix::as_ref)
    }
}
