//! DoRA (Liu et al. 2024): a low-rank update of a weight's rows, whose norms are trained apart from their
//! directions.
//!
//! `y = (m / n) * (W x + scale * B A dropout(x))`, with magnitudes `m` for each row and `n` the norm of the
//! row of `W + scale * B A`, a constant to the gradient, as in PEFT. The product in brackets is LoRA's; `n`
//! comes from two thin products ([`compute::ops::magnitude`]), and the adapted weight is never made. PEFT
//! drops inputs of `W` too where there is dropout; here only the update sees dropped inputs, as with LoRA.

use std::collections::BTreeMap;

use compute::ops::magnitude;
use compute::ops::matmul::{Factor, matmul};
use compute::{DType, Device, Matrix, MatrixMut, MatrixRef, Precision};

use super::lora::{self, Lora};
use crate::adapter::parameters::{Adapter, Layout, Parameters, Role, Trained};
use crate::decoder::Decoder;
use crate::linear::{BaseWeight, Rows};
use crate::memory::{Allocator, Component};
use crate::names::{Module, ModuleId, Part};
use crate::run::Run;

/// A low-rank update and magnitudes of one linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dora {
    /// The update of the direction.
    pub lora: Lora,
    /// Index of the magnitudes `[1, out]`.
    pub magnitude: usize,
}

impl Layout {
    /// Trains low-rank matrices and magnitudes on a linear layer, saved under `prefix`.
    pub fn add_dora(&mut self, module: Module, prefix: &str, rank: usize, scale: f32) {
        let lora = self.add_lora(module, prefix, rank, scale);
        let name = format!("{prefix}.lora_magnitude_vector");
        let magnitude = self.push(Role::Magnitude, name, [1, module.rows], true);
        self.train(module.id, Trained::Dora(Dora { lora, magnitude }));
    }
}

/// Magnitudes begin as the norms of the frozen rows: the adapted model begins as the base.
pub(in crate::adapter) fn initialize(
    adapter: &mut Adapter,
    dora: Dora,
    weight: BaseWeight<'_>,
    device: &Device,
) {
    let tensor = &adapter.layout.tensors()[dora.magnitude];
    magnitude::row_norms(device, adapter.parameters.tensor_mut(tensor), weight.rows());
}

/// Turns the frozen weight's values `w [out, in]` into those of the adapted one.
pub(in crate::adapter) fn merge(adapter: &Adapter, dora: Dora, device: &Device, mut w: MatrixMut<'_>) {
    lora::merge(adapter, dora.lora, device, w.reborrow());
    magnitude::set_row_norms(device, w, adapter.tensor(dora.magnitude));
}

/// What this method needs beside LoRA's buffers; empty without it.
#[derive(Debug)]
pub(crate) struct Memory {
    modules: BTreeMap<ModuleId, OfModule>,
    /// Products before their magnitudes `[T, out]`. The last layers have their own, so that the backward pass
    /// finds them.
    products: BTreeMap<Option<Part>, Products>,
    /// `A Wᵀ`, `A Aᵀ` and `B A Aᵀ`, of which norms come.
    across: Matrix,
    gram: Matrix,
    own: Matrix,
    /// A product's gradient `[T, out]`; only in training.
    dproduct: Matrix,
}

/// What is known of the rows of a module, `[1, out]` each.
#[derive(Debug)]
struct OfModule {
    /// Squared norms of the frozen rows, and whether they are there: they never change, and are computed when
    /// first asked for.
    squares: (Matrix, bool),
    /// Norms of the adapted rows, and of which adapter: in the backward pass they are what they were in the
    /// forward pass.
    norms: (Matrix, Option<usize>),
}

impl OfModule {
    fn new(out: usize, training: bool, allocator: &mut Allocator) -> Self {
        if !training {
            // What [`Decoder::fix`] puts beside the adapter.
            allocator.count(Component::Adapter, (out * DType::F32.size()) as u64);
        }
        let mut row = || allocator.matrix(Component::Workspace, 1, out, DType::F32);
        OfModule { squares: (row(), false), norms: (row(), None) }
    }
}

/// Factors `m / n` of the rows of an adapter's modules, `[1, out]` each.
pub(in crate::adapter) type Factors = BTreeMap<ModuleId, Matrix>;

/// The factors of the rows of a pass's adapter, if they are fixed.
fn fixed<'a>(rows: &Rows<'a>) -> Option<MatrixRef<'a>> {
    rows.run.adapter?.factors.get()?.get(&rows.module).map(Matrix::as_ref)
}

impl Decoder {
    /// Computes once what depends on an adapter alone, for all passes to come: its values must not change any
    /// more. In bf16 what is fixed rounds once where a pass that computes it rounds twice.
    pub fn fix(&self, adapter: &Adapter) {
        adapter.factors.get_or_init(|| {
            let (run, mut allocator) = (self.run(Some(adapter)), Allocator::real(&self.device));
            let layers = (self.config.layers, |_| 1);
            let rows = (0, false);
            let mut memory =
                Memory::new(&adapter.layout, |_| true, layers, rows, self.precision, &mut allocator);
            let dora = |(module, trained)| match trained {
                Trained::Dora(dora) => Some((module, dora)),
                _ => None,
            };
            let factors = |(module, dora): (ModuleId, Dora)| {
                memory.measure(&run, module, dora.lora, self.base_weight(module));
                let norms = memory.modules[&module].norms.0.as_ref();
                let mut factors = self.device.zeros(1, norms.cols(), DType::F32);
                magnitude::factors(&self.device, factors.as_mut(), (adapter.tensor(dora.magnitude), norms));
                (module, factors)
            };
            adapter.layout.modules().filter_map(dora).map(factors).collect()
        });
    }
}

/// The products of one kind of module.
#[derive(Debug)]
struct Products {
    /// The first layer with a place of its own; those before it share the first place.
    first: usize,
    places: Vec<(Matrix, Option<ModuleId>)>,
}

impl Products {
    fn of(&mut self, module: ModuleId) -> &mut (Matrix, Option<ModuleId>) {
        let layer = module.layer().unwrap_or(self.first);
        &mut self.places[layer.saturating_sub(self.first)]
    }
}

/// Where a pass's adapter is in memory, which tells it from others as long as it is lent.
fn address(run: &Run<'_>) -> usize {
    std::ptr::from_ref(run.adapter()).addr()
}

/// Of which kind a module is.
fn kind(module: ModuleId) -> Option<Part> {
    match module {
        ModuleId::Linear { part, .. } | ModuleId::Expert { part, .. } => Some(part),
        _ => None,
    }
}

impl Memory {
    /// For the trained modules that `takes` names, of `tokens` rows; `kept` says of how many of the last of
    /// `layers` layers the product of a kind of module is kept.
    pub(crate) fn new(
        layout: &Layout,
        takes: impl Fn(ModuleId) -> bool,
        (layers, kept): (usize, impl Fn(Part) -> usize),
        (tokens, training): (usize, bool),
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let component = Component::Workspace;
        let (mut modules, mut products) = (BTreeMap::new(), BTreeMap::new());
        let (mut rank, mut out) = (0, 0);
        for (module, trained) in layout.modules().filter(|(module, _)| takes(*module)) {
            let Trained::Dora(dora) = trained else { continue };
            let rows = layout.tensors()[dora.magnitude].cols;
            (rank, out) = (rank.max(dora.lora.rank), out.max(rows));
            modules.insert(module, OfModule::new(rows, training, allocator));
            let dtype = if module == ModuleId::Head { DType::F32 } else { precision.dtype() };
            products.entry(kind(module)).or_insert_with(|| {
                let places = kind(module).map_or(1, |part| kept(part).clamp(1, layers));
                let place = || (allocator.matrix(Component::Activations, tokens, rows, dtype), None);
                Products {
                    first: layers - places,
                    places: std::iter::repeat_with(place).take(places).collect(),
                }
            });
        }
        let back = if training && out > 0 { tokens } else { 0 };
        let dtype = if takes(ModuleId::Head) { DType::F32 } else { precision.dtype() };
        Memory {
            modules,
            products,
            across: allocator.matrix(component, rank, out, DType::F32),
            gram: allocator.matrix(component, rank, rank, DType::F32),
            own: allocator.matrix(component, out, rank, DType::F32),
            dproduct: allocator.matrix(component, back, out, dtype),
        }
    }

    /// Where the products of the rows of a list go, of a module that some of them train by this method.
    pub(crate) fn places(&mut self, all: &[Rows<'_>], count: usize) -> Places<'_> {
        let is_apart = |rows: &&Rows<'_>| rows.dora().is_some() && fixed(rows).is_none();
        let Some(&Rows { module, .. }) = all.iter().find(is_apart) else { return Places { z: None } };
        let (z, there) = self.products.get_mut(&kind(module)).expect(LAID_OUT).of(module);
        *there = Some(module);
        Places { z: Some(z.top_mut(count)) }
    }

    /// Whether the products of the last forward pass through a module are there.
    pub(crate) fn has_products(&mut self, module: ModuleId) -> bool {
        self.products.get_mut(&kind(module)).expect(LAID_OUT).of(module).1 == Some(module)
    }

    /// What was kept of a module was that batch's alone.
    pub(crate) fn forget_products(&mut self, module: ModuleId) {
        self.products.get_mut(&kind(module)).expect(LAID_OUT).of(module).1 = None;
    }

    /// `y`, or what is added to it, from the products of some rows, unless that was all.
    pub(crate) fn finish(&mut self, rows: &Rows<'_>, dora: Dora, y: MatrixMut<'_>, accumulate: bool) {
        let &Rows { run, module, ref range, .. } = rows;
        if fixed(rows).is_some() {
            return;
        }
        self.measure(run, module, dora.lora, rows.weight());
        let (z, _) = self.products.get_mut(&kind(module)).expect(LAID_OUT).of(module);
        let (m, n) = (run.adapter().tensor(dora.magnitude), self.modules[&module].norms.0.as_ref());
        magnitude::forward(run.device, y, accumulate, z.as_ref().rows_range(range.clone()), (m, n));
    }

    /// Adds to the gradient of the magnitudes, from some rows of `dy`, and brings the products' gradient.
    pub(crate) fn backward(
        &mut self,
        rows: &Rows<'_>,
        dora: Dora,
        dy: MatrixRef<'_>,
        gradients: &mut Parameters,
    ) {
        let &Rows { run, module, ref range, .. } = rows;
        if self.modules.get(&module).expect(LAID_OUT).norms.1 != Some(address(run)) {
            // Another group's adapter was measured since.
            self.measure(run, module, dora.lora, rows.weight());
        }
        let (z, _) = self.products.get_mut(&kind(module)).expect(LAID_OUT).of(module);
        let (z, n) = (z.as_ref().rows_range(range.clone()), self.modules[&module].norms.0.as_ref());
        let (adapter, all) = (run.adapter(), self.dproduct.rows());
        let (m, tensor) = (adapter.tensor(dora.magnitude), &adapter.layout.tensors()[dora.magnitude]);
        let dz = self.dproduct.as_mut().prefix(all, m.cols()).rows_range(range.clone());
        magnitude::backward(run.device, dz, gradients.tensor_mut(tensor), dy, z, (m, n));
    }

    /// The products' gradient in some rows, behind [`Memory::backward`] of them.
    pub(crate) fn product_gradient(&self, rows: &Rows<'_>, dora: Dora) -> MatrixRef<'_> {
        let out = dora.lora.out;
        self.dproduct.as_ref().prefix(self.dproduct.rows(), out).rows_range(rows.range.clone())
    }

    /// Brings the norms of a module's adapted rows.
    fn measure(&mut self, run: &Run<'_>, module: ModuleId, lora: Lora, weight: BaseWeight<'_>) {
        let (device, (a, b)) = (run.device, run.adapter().lora(lora));
        let OfModule { squares: (squares, known), norms: (norms, of), .. } =
            self.modules.get_mut(&module).expect(LAID_OUT);
        if !*known {
            magnitude::row_squares(device, squares.as_mut(), weight.rows());
            *known = true;
        }
        let (rank, out) = (lora.rank, b.rows());
        let (mut across, mut gram) =
            (self.across.as_mut().prefix(rank, out), self.gram.as_mut().prefix(rank, rank));
        let mut own = self.own.as_mut().prefix(out, rank);
        let (left, precision) = (Factor::Plain(a), Precision::F32);
        matmul(device, precision, 1.0, left, weight.transposed(), false, across.reborrow());
        matmul(device, precision, 1.0, left, Factor::Transposed(a), false, gram.reborrow());
        let (left, right) = (Factor::Plain(b), Factor::Plain(gram.as_ref()));
        matmul(device, precision, 1.0, left, right, false, own.reborrow());
        let products = (across.as_ref(), own.as_ref());
        magnitude::norms(device, norms.as_mut(), squares.as_ref(), products, b, lora.scale);
        *of = Some(address(run));
    }
}

/// Where the products of the rows of a list go, one after the other.
pub(crate) struct Places<'m> {
    z: Option<MatrixMut<'m>>,
}

/// Where the product of some rows goes, of DoRA.
pub(crate) enum Place<'m> {
    /// To `y`, its columns times the factors of an adapter that does not change.
    Scaled(MatrixRef<'m>),
    /// To a place of its own, from which [`Memory::finish`] makes `y`.
    Apart(MatrixMut<'m>),
}

impl<'m> Places<'m> {
    /// The place of the next rows of the list, if they have DoRA.
    pub(crate) fn next(&mut self, rows: &Rows<'m>) -> Option<Place<'m>> {
        let z = self.z.as_mut().map(|z| z.split_off_rows(rows.range.len()));
        rows.dora()?;
        match fixed(rows) {
            Some(factors) => Some(Place::Scaled(factors)),
            None => Some(Place::Apart(z.expect(LAID_OUT))),
        }
    }
}

const LAID_OUT: &str = "the buffers were laid out for this adapter";
