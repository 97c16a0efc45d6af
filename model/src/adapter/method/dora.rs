//! DoRA (Liu et al. 2024): a low-rank update of a weight's rows, whose norms are trained apart from their
//! directions.
//!
//! `y = (m / n) * (W x + scale * B A dropout(x))`, with magnitudes `m` for each row and `n` the norm of the
//! row of `W + scale * B A`, a constant to the gradient, as in PEFT. The product in brackets is LoRA's; `n`
//! comes from two thin products ([`compute::ops::magnitude`]), and the adapted weight is never made. PEFT
//! drops inputs of `W` too where there is dropout; here only the update sees dropped inputs, as with LoRA.

use std::collections::BTreeMap;

use compute::ops::magnitude;
use compute::ops::matmul::{Epilogue, Factor, matmul};
use compute::{DType, Device, Matrix, MatrixMut, MatrixRef, Precision};

use super::lora::{self, Lora};
use crate::adapter::parameters::{Adapter, Layout, Parameters, Role, Trained};
use crate::linear::{BaseWeight, Scratch};
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
    /// Squared norms of the frozen rows, of every module: they never change, and are computed when first
    /// asked for.
    squares: BTreeMap<ModuleId, (Matrix, bool)>,
    /// Products before their magnitudes `[T, out]`. The last layers have their own, so that the backward pass
    /// finds them.
    products: BTreeMap<Option<Part>, Products>,
    /// `A Wᵀ`, `A Aᵀ`, `B A Aᵀ`, and the norms that come of them.
    across: Matrix,
    gram: Matrix,
    own: Matrix,
    norms: Matrix,
    /// Factors `m / n` of an adapter that no longer changes, and where in memory it is, if they are there; never
    /// in training.
    fixed: BTreeMap<ModuleId, (Matrix, Option<usize>)>,
    /// A product's gradient `[T, out]`; only in training.
    dproduct: Matrix,
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

/// Where a pass's adapter is in memory: which one it is, as long as it is lent.
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
        let (mut squares, mut fixed, mut products) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (mut rank, mut out) = (0, 0);
        for (module, trained) in layout.modules().filter(|(module, _)| takes(*module)) {
            let Trained::Dora(dora) = trained else { continue };
            let rows = layout.tensors()[dora.magnitude].cols;
            (rank, out) = (rank.max(dora.lora.rank), out.max(rows));
            squares.insert(module, (allocator.matrix(component, 1, rows, DType::F32), false));
            if !training {
                fixed.insert(module, (allocator.matrix(component, 1, rows, DType::F32), None));
            }
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
            squares,
            products,
            across: allocator.matrix(component, rank, out, DType::F32),
            gram: allocator.matrix(component, rank, rank, DType::F32),
            own: allocator.matrix(component, out, rank, DType::F32),
            norms: allocator.matrix(component, 1, out, DType::F32),
            fixed,
            dproduct: allocator.matrix(component, back, out, dtype),
        }
    }

    /// Computes the factors of a module's rows once for all passes to come: the adapter must not change any
    /// more.
    pub(crate) fn fix(&mut self, run: &Run<'_>, module: ModuleId, dora: Dora, weight: BaseWeight<'_>) {
        let Some((_, known)) = self.fixed.get_mut(&module) else { return };
        *known = None;
        self.measure(run, module, dora.lora, weight);
        let (fixed, known) = self.fixed.get_mut(&module).expect("it was there");
        let (m, n) = (run.adapter().tensor(dora.magnitude), self.norms.as_ref().prefix(1, dora.lora.out));
        magnitude::factors(run.device, fixed.as_mut(), (m, n));
        *known = Some(address(run));
    }

    /// The factors of this pass's adapter on a module, if they are fixed.
    fn fixed(&self, run: &Run<'_>, module: ModuleId) -> Option<MatrixRef<'_>> {
        let (factors, _) = self.fixed.get(&module).filter(|(_, known)| *known == Some(address(run)))?;
        Some(factors.as_ref())
    }

    /// Lets the backward pass make a module's product again.
    pub(crate) fn forget(&mut self, module: ModuleId) {
        if let Some(products) = self.products.get_mut(&kind(module)) {
            products.of(module).1 = None;
        }
    }

    /// Brings the norms of a module's adapted rows to the front of `self.norms`.
    fn measure(&mut self, run: &Run<'_>, module: ModuleId, lora: Lora, weight: BaseWeight<'_>) {
        let (device, (a, b)) = (run.device, run.adapter().lora(lora));
        let (squares, known) = self.squares.get_mut(&module).expect(LAID_OUT);
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
        let (norms, products) = (self.norms.as_mut().prefix(1, out), (across.as_ref(), own.as_ref()));
        magnitude::norms(device, norms, squares.as_ref(), products, b, lora.scale);
    }
}

/// `y [T, out]`, or what is added to it: the product of `x [T, in]` by the adapted weight.
pub(crate) fn forward(
    run: &Run<'_>,
    dora: Dora,
    module: ModuleId,
    y: MatrixMut<'_>,
    accumulate: bool,
    (x, weight): (MatrixRef<'_>, BaseWeight<'_>),
    Scratch { lora, dora: memory }: &mut Scratch,
) {
    if let Some(scale) = memory.fixed(run, module) {
        let (factors, epilogue) = ((x, weight.transposed()), Epilogue { scale: Some(scale), bias: None });
        return lora::forward(run, dora.lora, run.mask_key(module), y, accumulate, factors, epilogue, lora);
    }
    memory.measure(run, module, dora.lora, weight);
    let m = run.adapter().tensor(dora.magnitude);
    let (z, there) = memory.products.get_mut(&kind(module)).expect(LAID_OUT).of(module);
    *there = Some(module);
    let (key, to) = (run.mask_key(module), z.as_mut().prefix(x.rows(), m.cols()));
    let w = weight.transposed();
    lora::forward(run, dora.lora, key, to, false, (x, w), Epilogue::default(), lora);
    let (z, n) = (z.as_ref().prefix(x.rows(), m.cols()), memory.norms.as_ref().prefix(1, m.cols()));
    magnitude::forward(run.device, y, accumulate, z, (m, n));
}

/// Adds to the gradients of A, B and the magnitudes; if it is wanted, sets `dx [T, in]`, or adds to it.
pub(crate) fn backward(
    run: &Run<'_>,
    dora: Dora,
    module: ModuleId,
    dx: Option<(MatrixMut<'_>, bool)>,
    (dy, weight): (MatrixRef<'_>, BaseWeight<'_>),
    x: MatrixRef<'_>,
    gradients: &mut Parameters,
    Scratch { lora, dora: memory }: &mut Scratch,
) {
    memory.measure(run, module, dora.lora, weight);
    let adapter = run.adapter();
    let (m, tensor) = (adapter.tensor(dora.magnitude), &adapter.layout.tensors()[dora.magnitude]);
    let (rows, out, key) = (dy.rows(), m.cols(), run.mask_key(module));
    let (z, there) = memory.products.get_mut(&kind(module)).expect(LAID_OUT).of(module);
    if *there != Some(module) {
        // Another layer has used the place since: the product is made again.
        let (to, w) = (z.as_mut().prefix(rows, out), weight.transposed());
        lora::forward(run, dora.lora, key, to, false, (x, w), Epilogue::default(), lora);
    }
    // What was kept is of this batch alone.
    *there = None;
    let (z, n) = (z.as_ref().prefix(rows, out), memory.norms.as_ref().prefix(1, out));
    let dz = memory.dproduct.as_mut().prefix(rows, out);
    magnitude::backward(run.device, dz, gradients.tensor_mut(tensor), dy, z, (m, n));
    let dz = memory.dproduct.as_ref().prefix(rows, out);
    lora::backward(run, dora.lora, key, dx, (dz, weight.plain()), x, gradients, lora);
}

const LAID_OUT: &str = "the buffers were laid out for this adapter";
