//! What is trained: a flat buffer of `f32` tensors, kept apart from the frozen base.
//!
//! One buffer holds every trained tensor, and its gradients and the optimizer's moments are buffers of the
//! same layout. Clipping, optimizer steps and checkpoints are then loops over one slice, whatever the method.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use compute::quant::Format;
use compute::{DType, Device, Matrix, MatrixMut, MatrixRef};

use super::method::dora;
pub use super::method::dora::Dora;
pub use super::method::full::Full;
pub use super::method::lora::Lora;
use crate::config::Config;
use crate::memory::{Allocator, Component};
use crate::names::ModuleId;

/// What a trained tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The factor of a low-rank update that reads the input.
    A,
    /// The factor of a low-rank update that gives the output.
    B,
    /// Magnitudes of a weight's rows.
    Magnitude,
    /// The weight itself.
    Whole,
    /// The bias itself.
    Bias,
}

/// One trained tensor `[rows, cols]` in the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its key in the saved file.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// First dimension (1 for vectors).
    pub rows: usize,
    /// Second dimension.
    pub cols: usize,
    /// Of B of the experts of a block, which stand one below the other, `[E * out, R]`: their number `E`.
    /// PEFT's file has them side by side, column by column: `[out, R * E]`. 1 for any other tensor.
    pub experts: usize,
    /// Whether PEFT's file has it as `[cols, rows]`: a weight of a base that stores its linear layers so.
    pub transposed: bool,
    /// One-dimensional in files (norm weights, biases).
    pub vector: bool,
    /// Where its elements lie in the flat buffer.
    pub range: Range<usize>,
}

impl Tensor {
    /// Its dimensions in an adapter's file.
    pub fn file_shape(&self) -> Vec<usize> {
        match () {
            () if self.vector => vec![self.cols],
            () if self.transposed => vec![self.cols, self.rows],
            () => vec![self.rows / self.experts, self.cols * self.experts],
        }
    }
}

/// What is trained on one module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trained {
    /// Low-rank matrices beside the frozen weight.
    Lora(Lora),
    /// The same, and magnitudes of the rows of both together.
    Dora(Dora),
    /// The weight itself.
    Full(Full),
}

/// The tensors of an adapter and which module each belongs to; without values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// The format in which the layers' weights are seen in training, updates included.
    pub quantization_aware: Option<Format>,
    tensors: Vec<Tensor>,
    modules: BTreeMap<ModuleId, Trained>,
    len: usize,
    /// Elements of A and B whose beginning is taken out of the base.
    taken_out: usize,
}

impl Trained {
    /// The low-rank update in it.
    pub fn lora(self) -> Option<Lora> {
        match self {
            Trained::Lora(lora) | Trained::Dora(Dora { lora, .. }) => Some(lora),
            Trained::Full(_) => None,
        }
    }
}

impl Layout {
    /// Every weight of a model, under the names that its checkpoint gives them; a tied head shares the
    /// embedding's.
    pub fn full(config: &Config) -> Self {
        let mut layout = Layout::default();
        for module in config.modules() {
            layout.add_full(module, &config.path(module.id));
        }
        if config.tie_word_embeddings {
            layout.share(ModuleId::Head, ModuleId::Embedding);
        }
        layout
    }

    /// A layout that no adapter has: buffers for it have room for any adapter of at most this rank whose
    /// pooled inputs, if it has such, come of groups of at least so many, and which is [fixed].
    ///
    /// [fixed]: crate::Decoder::fix
    pub fn room(config: &Config, max_rank: usize, smallest_group: usize) -> Self {
        let mut layout = Layout::default();
        let module = config.modules().into_iter().find(|module| matches!(module.id, ModuleId::Linear { .. }));
        if let Some(module) = module.filter(|_| max_rank > 0) {
            layout.add_pooled_lora(module, "", max_rank, 1.0, smallest_group);
        }
        layout
    }

    /// Adds a tensor behind the others, and says where.
    pub(in crate::adapter) fn push(
        &mut self,
        role: Role,
        name: String,
        [rows, cols]: [usize; 2],
        vector: bool,
    ) -> usize {
        let range = self.len..self.len + rows * cols;
        self.len = range.end;
        self.tensors.push(Tensor { name, role, rows, cols, experts: 1, transposed: false, vector, range });
        self.tensors.len() - 1
    }

    /// Says that a tensor is the experts' of a block, one below the other.
    pub(in crate::adapter) fn share_among_experts(&mut self, tensor: usize, experts: usize) {
        self.tensors[tensor].experts = experts;
    }

    /// Says that files have the weight of a module that is trained whole as `[in, out]`.
    pub(in crate::adapter) fn store_transposed(&mut self, module: ModuleId) {
        if let Some(Trained::Full(full)) = self.get(module) {
            self.tensors[full.weight].transposed = true;
        }
    }

    /// Says that A and B of low-rank updates begin as a part of the base that is then no longer there: the
    /// frozen base is what is left, and where they began has to be remembered.
    pub fn take_out_of_base(&mut self) {
        let is_low_rank = |tensor: &&Tensor| matches!(tensor.role, Role::A | Role::B);
        self.taken_out = self.tensors.iter().filter(is_low_rank).map(|t| t.range.end).max().unwrap_or(0);
    }

    /// How many elements, from the first on, have a beginning to be remembered; 0 where the base stays as it
    /// is.
    pub fn taken_out(&self) -> usize {
        self.taken_out
    }

    /// Trains something on a module, whose tensors were just added.
    pub(in crate::adapter) fn train(&mut self, module: ModuleId, trained: Trained) {
        self.modules.insert(module, trained);
    }

    /// Lets a module use what is trained on another one: a tied output head under full training.
    pub fn share(&mut self, module: ModuleId, with: ModuleId) {
        let trained = self.modules[&with];
        self.modules.insert(module, trained);
    }

    /// The tensors in the order of the flat buffer.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The trained modules in a fixed order.
    pub fn modules(&self) -> impl Iterator<Item = (ModuleId, Trained)> + '_ {
        self.modules.iter().map(|(&m, &t)| (m, t))
    }

    /// The lowest layer whose output a trained module touches: below it no gradient is needed. None: only
    /// what comes behind the layers is trained, if anything.
    pub fn lowest_layer(&self) -> Option<usize> {
        let layer_of = |module: ModuleId| match module {
            ModuleId::Embedding | ModuleId::Positions => Some(0),
            module => module.layer(),
        };
        self.modules().filter_map(|(module, _)| layer_of(module)).min()
    }

    /// How many of a model's layers lie below everything that is trained: what comes out of them is a
    /// function of the tokens alone.
    pub fn frozen_layers(&self, layers: usize) -> usize {
        self.lowest_layer().map_or(layers, |lowest| lowest.min(layers))
    }

    /// What is trained on a module.
    pub fn get(&self, module: ModuleId) -> Option<Trained> {
        self.modules.get(&module).copied()
    }

    /// The rank on a module, 0 without one.
    pub fn rank(&self, module: ModuleId) -> usize {
        self.get(module).and_then(Trained::lora).map_or(0, |lora| lora.rank)
    }

    /// The largest rank.
    pub fn max_rank(&self) -> usize {
        self.modules.keys().map(|&m| self.rank(m)).max().unwrap_or(0)
    }

    /// Number of trained parameters.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A flat buffer laid out by a [`Layout`]: values, or their gradients.
#[derive(Debug)]
pub struct Parameters {
    data: Matrix,
}

impl Parameters {
    /// Zeros for every tensor of the layout.
    pub fn zeros(layout: &Layout, component: Component, allocator: &mut Allocator) -> Self {
        Parameters::of_len(layout.len(), component, allocator)
    }

    /// Zeros for the first tensors of a layout, which have so many elements.
    fn of_len(len: usize, component: Component, allocator: &mut Allocator) -> Self {
        Parameters { data: allocator.matrix(component, 1, len, DType::F32) }
    }

    /// All elements `[1, n]`.
    pub fn values(&self) -> MatrixRef<'_> {
        self.data.as_ref()
    }

    /// All elements `[1, n]`, to change.
    pub fn values_mut(&mut self) -> MatrixMut<'_> {
        self.data.as_mut()
    }

    /// One tensor.
    pub fn tensor(&self, tensor: &Tensor) -> MatrixRef<'_> {
        self.values().cols_range(tensor.range.clone()).reshape(tensor.rows, tensor.cols)
    }

    /// One tensor, to change.
    pub fn tensor_mut(&mut self, tensor: &Tensor) -> MatrixMut<'_> {
        self.values_mut().cols_range(tensor.range.clone()).reshape(tensor.rows, tensor.cols)
    }

    /// A tensor and the one right behind it, to change: A and B of a low-rank update.
    pub fn pair_mut(&mut self, first: &Tensor, second: &Tensor) -> (MatrixMut<'_>, MatrixMut<'_>) {
        assert_eq!(first.range.end, second.range.start, "the two tensors of a pair lie side by side");
        let both = self.values_mut().cols_range(first.range.start..second.range.end);
        let (a, b) = both.split_at(first.range.len());
        (a.reshape(first.rows, first.cols), b.reshape(second.rows, second.cols))
    }

    /// A and B of a low-rank update, to change.
    pub(crate) fn lora_mut(&mut self, layout: &Layout, lora: Lora) -> (MatrixMut<'_>, MatrixMut<'_>) {
        let (a, b) = self.pair_mut(&layout.tensors[lora.a], &layout.tensors[lora.a + 1]);
        let [a_rows, b_rows] = lora.rows();
        (a.rows_range(a_rows), b.rows_range(b_rows))
    }
}

/// A trained adapter: a layout and its values. It knows the base only by the shapes of its modules.
#[derive(Debug)]
pub struct Adapter {
    /// Tensors and modules.
    pub layout: Layout,
    /// Their values.
    pub parameters: Parameters,
    /// Where A and B began, if that was taken out of the base.
    pub taken_out: Option<Parameters>,
    /// Probability with which an element of a low-rank layer's input is dropped in training.
    pub dropout: f32,
    /// What [`Decoder::fix`](crate::Decoder::fix) computed of it.
    pub(in crate::adapter) factors: OnceLock<dora::Factors>,
}

impl Adapter {
    /// Whether it is made of low-rank updates only and every B is zero, so that it changes nothing.
    pub fn is_without_effect(&self) -> bool {
        self.layout.modules.values().all(|trained| match trained {
            Trained::Lora(lora) => {
                let b = self.lora(*lora).1.download();
                b.f32().iter().all(|&value| value == 0.0)
            }
            // Magnitudes count for themselves, whatever B is.
            Trained::Dora(_) | Trained::Full(_) => false,
        })
    }

    /// An adapter of zeros, in the memory of a device.
    pub fn zeros(layout: Layout, dropout: f32, device: &Device) -> Self {
        let mut allocator = Allocator::real(device);
        let parameters = Parameters::zeros(&layout, Component::Adapter, &mut allocator);
        let remembers = layout.taken_out > 0;
        let taken_out =
            remembers.then(|| Parameters::of_len(layout.taken_out, Component::Adapter, &mut allocator));
        Adapter { layout, parameters, taken_out, dropout, factors: OnceLock::new() }
    }

    /// Counts the memory of an adapter that is made elsewhere.
    pub fn count(layout: &Layout, allocator: &mut Allocator) {
        let elements = (layout.len + layout.taken_out) as u64;
        allocator.count(Component::Adapter, DType::F32.size() as u64 * elements);
    }

    /// A and B of a low-rank update.
    pub fn lora(&self, lora: Lora) -> (MatrixRef<'_>, MatrixRef<'_>) {
        let [a, b] = lora.rows();
        (self.tensor(lora.a).rows_range(a), self.tensor(lora.a + 1).rows_range(b))
    }

    /// The tensor at an index of the layout.
    pub fn tensor(&self, index: usize) -> MatrixRef<'_> {
        self.parameters.tensor(&self.layout.tensors()[index])
    }

    /// The module's own weight, if it is trained whole.
    pub fn full(&self, module: ModuleId) -> Option<Full> {
        match self.layout.get(module) {
            Some(Trained::Full(full)) => Some(full),
            _ => None,
        }
    }
}
