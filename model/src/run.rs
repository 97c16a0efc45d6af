//! What every layer needs to know of the pass it takes part in.

use std::ops::Range;

use compute::{Device, Matrix, MatrixMut, MatrixRef, Precision};

use crate::adapter::parameters::{Adapter, Parameters};
use crate::batch::Batch;
use crate::calibration::Observed;
use crate::linear::{BaseWeight, Weight};
use crate::names::{ModuleId, Part};

/// One pass over the model: where and how to compute, and with which adapter.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Where to compute.
    pub device: &'a Device,
    /// How activations are stored and products multiply.
    pub precision: Precision,
    /// What is trained beside the base, if anything.
    pub adapter: Option<&'a Adapter>,
    /// Key of this pass's dropout masks; `None` outside training.
    pub dropout_key: Option<u64>,
    /// How much the loss of an uneven spread over experts counts beside the mean loss of the targets; 0: it
    /// is not computed. It is that of transformers (`router_aux_loss_coef`), over all layers and tokens of a
    /// batch together.
    pub router_aux_loss: f32,
    /// Whether few rows are multiplied as many are: a row's result then does not depend on how many pass with
    /// it. Slower where they are few.
    pub by_tiles: bool,
    /// Who is shown the inputs of linear layers.
    pub observed: Option<&'a Observed>,
}

/// Rows of a batch that have an adapter of their own, or none: whole sequences.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// Which rows.
    pub rows: Range<usize>,
    /// With which adapter they pass, and under which key of dropout. Device, precision and the loss of
    /// experts are those of the first group.
    pub run: Run<'a>,
}

impl<'a> Group<'a> {
    /// All rows of a batch.
    pub fn of_all(run: &Run<'a>, batch: &Batch) -> Self {
        Group { rows: 0..batch.tokens(), run: *run }
    }

    /// Makes sure that groups are all rows of a batch, one after the other, sequences whole.
    ///
    /// # Panics
    /// If they are not.
    pub(crate) fn check(groups: &[Group<'_>], batch: &Batch) {
        let mut next = 0;
        for Group { rows, .. } in groups {
            assert_eq!(rows.start, next, "groups follow each other");
            let cut = |at: usize| batch.segments.iter().any(|s| s.queries.start < at && at < s.queries.end);
            assert!(rows.end >= rows.start && !cut(rows.end), "groups of whole sequences, not {rows:?}");
            next = rows.end;
        }
        assert_eq!(next, batch.tokens(), "groups of all rows");
    }
}

impl<'a> Run<'a> {
    /// A pass without dropout.
    pub fn new(device: &'a Device, precision: Precision, adapter: Option<&'a Adapter>) -> Self {
        Run {
            device,
            precision,
            adapter,
            dropout_key: None,
            router_aux_loss: 0.0,
            by_tiles: false,
            observed: None,
        }
    }

    /// The adapter of a pass that is known to have one.
    pub(crate) fn adapter(&self) -> &'a Adapter {
        self.adapter.expect("a module is trained only when there is an adapter")
    }

    /// The weight of a norm or of learned positions: the adapter's own copy if it is trained whole, else the base's.
    pub(crate) fn weight(&self, module: ModuleId, base: &'a Matrix) -> MatrixRef<'a> {
        match self.adapter.and_then(|a| a.full(module)) {
            Some(full) => self.adapter().tensor(full.weight),
            None => base.as_ref(),
        }
    }

    /// The table of the embeddings: the adapter's own copy if it is trained whole, else the base's.
    pub(crate) fn table(&self, base: &'a Weight) -> BaseWeight<'a> {
        match self.adapter.and_then(|a| a.full(ModuleId::Embedding)) {
            Some(full) => BaseWeight::Dense(self.adapter().tensor(full.weight)),
            None => base.as_ref(),
        }
    }

    /// The bias of a norm, as [`Run::weight`].
    pub(crate) fn bias(&self, module: ModuleId, base: Option<&'a Matrix>) -> Option<MatrixRef<'a>> {
        match self.adapter.and_then(|a| a.full(module)) {
            Some(full) => full.bias.map(|bias| self.adapter().tensor(bias)),
            None => base.map(Matrix::as_ref),
        }
    }

    /// The key of a module's dropout mask, if this pass drops anything.
    pub(crate) fn mask_key(&self, module: ModuleId) -> Option<u64> {
        let dropout = self.adapter.map_or(0.0, |a| a.dropout);
        let key = self.dropout_key.filter(|_| dropout > 0.0)?;
        let index = match module {
            ModuleId::Linear { layer, part } | ModuleId::Expert { layer, part, .. } => {
                1 + (layer * Part::ALL.len() + part as usize) as u64
            }
            _ => 0, // the head, the only other module with a low-rank update
        };
        let key = compute::random::key(key, index);
        let ModuleId::Expert { expert, .. } = module else { return Some(key) };
        Some(compute::random::key(key, expert as u64))
    }
}

/// The gradients of a norm's or an embedding's weight and bias, as far as they are trained.
pub(crate) fn gradients_of<'g>(
    run: &Run<'_>,
    module: ModuleId,
    gradients: &'g mut Parameters,
) -> (Option<MatrixMut<'g>>, Option<MatrixMut<'g>>) {
    let Some((adapter, full)) = run.adapter.and_then(|a| Some((a, a.full(module)?))) else {
        return (None, None);
    };
    let tensors = adapter.layout.tensors();
    match full.bias {
        None => (Some(gradients.tensor_mut(&tensors[full.weight])), None),
        Some(bias) => {
            let (weight, bias) = gradients.pair_mut(&tensors[full.weight], &tensors[bias]);
            (Some(weight), Some(bias))
        }
    }
}
