//! Every buffer of a forward and backward pass, laid out once for the largest batch.

use std::path::Path;

use compute::{Device, Matrix, Precision};

use crate::adapter::parameters::Layout;
use crate::batch::Batch;
use crate::block::{self, Kept};
use crate::config::Config;
use crate::error::Result;
use crate::frozen::FrozenActivations;
use crate::head;
use crate::inputs::Inputs;
use crate::memory::{Allocator, Component};
use crate::positions::Positions;
use crate::run::Group;
use crate::staged::Staged;

/// What the forward pass keeps of each layer for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointing {
    /// All that the backward pass needs.
    None,
    /// Each layer's input, and what else is cheap to keep; the rest is computed again (Chen et al. 2016).
    Block(Keeping),
}

/// What is kept of layers that are computed again, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    /// Beside the inputs, what the attention halves need: a few widths of the model for each layer, which
    /// spares a quarter of what is computed again in the usual shapes. It changes no result.
    pub attention: bool,
    /// Of how many layers, the last ones, what the MLP halves need is kept too: those are not computed again.
    /// It changes no result.
    pub mlp: usize,
    /// Inputs are rounded to `bf16` whatever the precision, so that the backward pass sees the rounded ones.
    pub bf16: bool,
    /// Bytes of the inputs that may be in memory, [`arena::SMALLEST`](crate::arena::SMALLEST) at least; the
    /// others lie in a file. `None`: all are in memory. It changes no result.
    pub memory: Option<u64>,
}

/// What a set of buffers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Forward and backward.
    Train(Checkpointing),
    /// Forward only.
    Infer,
}

/// The sizes that decide a set of buffers.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The most tokens in a batch.
    pub tokens: usize,
    /// The most tokens in a sequence.
    pub positions: usize,
    /// What the buffers are for.
    pub purpose: Purpose,
    /// How activations are stored.
    pub precision: Precision,
}

/// The buffers of a pass.
#[derive(Debug)]
pub struct Activations {
    extent: Extent,
    /// The residual stream `[T, C]`: before each layer and after the last if it is kept here, else one that
    /// is overwritten.
    pub(crate) stream: Vec<Matrix>,
    /// The layers' inputs, if training keeps them otherwise.
    pub(crate) inputs: Option<Inputs>,
    /// What frozen layers gave for examples that come again, if it is kept.
    frozen: Option<FrozenActivations>,
    pub(crate) saved: block::Saved,
    pub(crate) work: block::Workspace,
    pub(crate) head: head::Workspace,
    pub(crate) positions: Positions,
    /// Token ids of the batch at hand `[T]`.
    pub(crate) ids: Staged<u32>,
}

impl Activations {
    /// Buffers for a model with an adapter of this layout, which drops inputs with probability `dropout` in
    /// training.
    pub fn new(
        config: &Config,
        layout: &Layout,
        dropout: f32,
        extent: Extent,
        allocator: &mut Allocator,
    ) -> Self {
        let Extent { tokens, positions, purpose, precision } = extent;
        let (layers, width, dtype) = (config.layers, config.hidden_size, precision.dtype());
        let inputs = match purpose {
            Purpose::Train(Checkpointing::Block(keeping)) => Inputs::new(
                keeping.bf16,
                keeping.memory,
                layers,
                tokens.saturating_mul(width),
                dtype,
                allocator,
            ),
            _ => None,
        };
        // No backward pass comes below the lowest trained layer.
        let trained = layers - layout.frozen_layers(layers);
        let (attention, mlp) = match purpose {
            Purpose::Train(Checkpointing::None) => (trained, trained),
            Purpose::Train(Checkpointing::Block(keeping)) => {
                (if keeping.attention { trained } else { 0 }, trained.min(keeping.mlp))
            }
            Purpose::Infer => (0, 0),
        };
        let streams = if purpose == Purpose::Infer || inputs.is_some() { 1 } else { layers + 1 };
        let training = purpose != Purpose::Infer;
        let mut stream = || allocator.matrix(Component::Activations, tokens, width, dtype);
        let stream = (0..streams).map(|_| stream()).collect();
        let kept = Kept { attention, mlp };
        let saved = block::Saved::new(config, kept, tokens, precision, allocator);
        let work =
            block::Workspace::new(config, layout, dropout, kept, tokens, training, precision, allocator);
        let head = head::Workspace::new(config, layout, dropout, tokens, training, precision, allocator);
        let positions = Positions::new(config, tokens, positions, allocator);
        let ids = Staged::new(tokens, Component::Workspace, allocator);
        Activations { extent, stream, inputs, frozen: None, saved, work, head, positions, ids }
    }

    /// The same, and what frozen layers give is kept for examples that come again. It must be laid out for
    /// the adapter of these buffers; it changes no result.
    pub fn keeping_frozen(self, frozen: Option<FrozenActivations>) -> Self {
        Activations { frozen, ..self }
    }

    /// Makes the files in `folder` for what is not to be in memory, if there is anything.
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn open(&mut self, folder: &Path) -> Result<()> {
        self.inputs.as_mut().map_or(Ok(()), |inputs| inputs.open(folder))?;
        self.frozen.as_mut().map_or(Ok(()), |frozen| frozen.open(folder))
    }

    /// Makes sure that several groups of rows can pass together through these buffers.
    pub(crate) fn check(&self, groups: &[Group<'_>], batch: &Batch) {
        Group::check(groups, batch);
        if groups.len() < 2 {
            return;
        }
        let most = self.work.linear.lora.max_rank();
        for Group { run, .. } in groups {
            let rank = run.adapter.map_or(0, |adapter| adapter.layout.max_rank());
            assert!(rank <= most, "an adapter of rank {rank} in buffers for ranks up to {most}");
            // By place in the batch an example would have other masks than by itself.
            let drops = run.dropout_key.is_some() && run.adapter.is_some_and(|adapter| adapter.dropout > 0.0);
            let numbered = batch.examples.len() == batch.segments.len();
            assert!(numbered || !drops, "examples without numbers in groups that drop inputs");
        }
    }

    /// Takes up a batch, for which there must be room.
    pub(crate) fn set(&mut self, batch: &Batch, cached: bool) {
        let (t, most) = (batch.tokens(), self.extent.tokens);
        assert!(t <= most, "{t} tokens in buffers for {most}");
        self.positions.set(batch, cached);
        self.ids.set(batch.ids.iter().copied());
        let names = &mut self.work.linear.lora.names;
        // Only training draws masks.
        if !names.is_for_none() {
            names.set(batch.row_names());
        }
        self.work.experts.begin();
    }

    /// Layers whose result is kept from one pass over an example to the next.
    pub(crate) fn frozen_layers(&self) -> usize {
        self.frozen.as_ref().map_or(0, FrozenActivations::layers)
    }

    /// Brings the residual stream behind the frozen layers, if it is there for all examples of a batch;
    /// whether it was.
    pub(crate) fn restore_frozen(&mut self, device: &Device, batch: &Batch) -> Result<bool> {
        let Some(frozen) = &mut self.frozen else { return Ok(false) };
        let behind = behind(frozen.layers(), self.stream.len());
        frozen.get(device, batch, self.stream[behind].top_mut(batch.tokens()))
    }

    /// Keeps the residual stream behind the frozen layers, as far as it is not there yet.
    pub(crate) fn store_frozen(&mut self, device: &Device, batch: &Batch) -> Result<()> {
        let Some(frozen) = &mut self.frozen else { return Ok(()) };
        let behind = behind(frozen.layers(), self.stream.len());
        frozen.put(device, batch, self.stream[behind].top(batch.tokens()))
    }

    /// The loss of an uneven spread over experts in the last pass, before its coefficient
    /// ([`Run::router_aux_loss`](crate::Run::router_aux_loss)): the number of experts a token if it is even.
    /// 0 if none was asked for.
    pub fn router_aux_loss(&self) -> f64 {
        self.work.experts.load_loss()
    }

    /// What these buffers were laid out for.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The most rows whose logits can be asked for at once.
    pub fn logits_rows(&self) -> usize {
        self.head.rows()
    }
}

/// Which of so many buffers of the residual stream holds it behind so many layers.
fn behind(layers: usize, streams: usize) -> usize {
    layers.min(streams - 1)
}
