//! Low-rank adaptation of a linear layer (Hu et al. 2021): `y = W x + scale * B A dropout(x)`.
//!
//! With `s = scale * A dropout(x)`, `[T, R]`, and `ds = scale * Bᵀ dy`, the backward pass is `dB += dyᵀ s`,
//! `dA += dsᵀ dropout(x)`, `dx = dy W + dropout(A ds)`. Neither `s` nor the dropped input is kept: `s` is one
//! thin product, and the mask comes from a counter, so both are made again.

use std::ops::Range;

use compute::ops::matmul::{Epilogue, Factor, matmul};
use compute::ops::{dropout, low_rank};
use compute::{DType, Device, Matrix, MatrixMut, MatrixRef, Precision, random};

use crate::adapter::init::Init;
use crate::adapter::parameters::{Adapter, Layout, Parameters, Role, Trained};
use crate::memory::{Allocator, Component};
use crate::names::{Module, ModuleId, Part};
use crate::run::Run;
use crate::staged::Staged;

/// A low-rank update of one linear layer: `h = W0 x + scale * B A x` (Hu et al. 2021, equation 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lora {
    /// Index of the tensor of A `[R, in]`; that of B `[out, R]` is behind it.
    pub a: usize,
    /// The first rows of A and B in their tensors, which the experts of a block share.
    pub first: [usize; 2],
    /// Rows of B.
    pub out: usize,
    /// Rank R.
    pub rank: usize,
    /// alpha / R, or alpha / sqrt(R) with rsLoRA.
    pub scale: f32,
}

impl Lora {
    /// The rows of A and of B in their tensors.
    pub(in crate::adapter) fn rows(self) -> [Range<usize>; 2] {
        let [a, b] = self.first;
        [a..a + self.rank, b..b + self.out]
    }
}

impl Layout {
    /// Trains low-rank matrices on layers of the `count` experts of a block, saved under `prefix`. The layers
    /// `parts` of an expert, each `[out, in]`, stand one below the other as one of `[parts * out, in]`: they
    /// share A.
    pub fn add_expert_lora(
        &mut self,
        (layer, parts): (usize, &[Part]),
        count: usize,
        prefix: &str,
        [out, inner]: [usize; 2],
        rank: usize,
        scale: f32,
    ) {
        let a = self.push(Role::A, format!("{prefix}.lora_A.weight"), [count * rank, inner], false);
        let rows = parts.len() * out;
        let b = self.push(Role::B, format!("{prefix}.lora_B.weight"), [count * rows, rank], false);
        self.share_among_experts(b, count);
        for expert in 0..count {
            for (place, &part) in parts.iter().enumerate() {
                let first = [expert * rank, expert * rows + place * out];
                let lora = Lora { a, first, out, rank, scale };
                self.train(ModuleId::Expert { layer, expert, part }, Trained::Lora(lora));
            }
        }
    }

    /// Trains low-rank matrices on a linear layer, saved under `prefix`.
    pub fn add_lora(&mut self, module: Module, prefix: &str, rank: usize, scale: f32) -> Lora {
        let a = self.push(Role::A, format!("{prefix}.lora_A.weight"), [rank, module.cols], false);
        self.push(Role::B, format!("{prefix}.lora_B.weight"), [module.rows, rank], false);
        let lora = Lora { a, first: [0, 0], out: module.rows, rank, scale };
        self.train(module.id, Trained::Lora(lora));
        lora
    }
}

/// Buffers that every linear layer uses in turn.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// The input as the update sees it when some of it is dropped `[T, in]`.
    dropped: Matrix,
    /// `s = scale * A x` `[T, R]`.
    s: Matrix,
    /// Its gradient `[T, R]`.
    ds: Matrix,
    /// What the rows at hand are called, for masks that do not depend on their neighbours `[T]`; set once a
    /// batch.
    pub(crate) names: Staged<u64>,
    /// Which of the rows that have names is the first one at hand.
    pub(crate) first_row: usize,
}

impl Buffers {
    /// For `tokens` rows and inputs of at most `width` columns.
    pub(crate) fn new(
        layout: &Layout,
        dropout: f32,
        tokens: usize,
        width: usize,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let dropped = if dropout > 0.0 { tokens } else { 0 };
        let mut buffer = |rows, cols, dtype| allocator.matrix(Component::Workspace, rows, cols, dtype);
        Buffers {
            s: buffer(tokens, layout.max_rank(), DType::F32),
            ds: buffer(tokens, layout.max_rank(), DType::F32),
            dropped: buffer(dropped, width, precision.dtype()),
            names: Staged::new(dropped, Component::Workspace, allocator),
            first_row: 0,
        }
    }
}

impl Buffers {
    /// The largest rank that they are for.
    pub(crate) fn max_rank(&self) -> usize {
        self.s.cols()
    }
}

/// A begins by `init`; B stays zero, so that the adapted model begins as the base.
pub(in crate::adapter) fn initialize(adapter: &mut Adapter, lora: Lora, init: Init, seed: u64) {
    if lora.first != [0, 0] {
        return; // it shares the tensors of another one
    }
    let tensor = &adapter.layout.tensors()[lora.a];
    let key = tensor.name.bytes().fold(seed, |key, byte| random::key(key, u64::from(byte)));
    let bound = 1.0 / (tensor.cols as f64).sqrt();
    let value = |i| match init {
        Init::Default => (2.0 * random::uniform(key, i) - 1.0) * bound,
        Init::Gaussian => random::normal(key, i) / lora.rank as f64,
    };
    adapter.parameters.tensor_mut(tensor).upload(|a| {
        a.f32().iter_mut().enumerate().for_each(|(i, v)| *v = value(i as u64) as f32);
    });
}

/// Adds the update to the frozen weight's values `w [out, in]`.
pub(in crate::adapter) fn merge(adapter: &Adapter, lora: Lora, device: &Device, w: MatrixMut<'_>) {
    let (a, b) = adapter.lora(lora);
    let (a, b) = (Factor::Plain(a), Factor::Plain(b));
    matmul(device, Precision::F32, lora.scale, b, a, true, w);
}

/// `y [T, out] = x [T, in] w + update`, or `y += ...`. `w` stands for the frozen weight, transposed; `key`
/// drops inputs in training; the epilogue is of what is written or added.
pub(crate) fn forward(
    run: &Run<'_>,
    lora: Lora,
    key: Option<u64>,
    y: MatrixMut<'_>,
    accumulate: bool,
    (x, w): (MatrixRef<'_>, Factor<'_>),
    epilogue: Epilogue<'_>,
    buffers: &mut Buffers,
) {
    let Buffers { dropped, s, names, first_row, .. } = buffers;
    let s = s.as_mut().prefix(x.rows(), lora.rank);
    let dropped = dropped_input(run, key, x, (names, *first_row), dropped);
    let factors = run.adapter().lora(lora);
    let (device, precision, scale) = (run.device, run.precision, lora.scale);
    low_rank::forward(device, precision, y, accumulate, (x, w), dropped, factors, scale, s, epilogue);
}

/// Adds to the gradients of A and B; if it is wanted, `dx [T, in] = dy w + update`, or `dx += ...`. `w`
/// stands for the frozen weight.
pub(crate) fn backward(
    run: &Run<'_>,
    lora: Lora,
    key: Option<u64>,
    dx: Option<(MatrixMut<'_>, bool)>,
    (dy, w): (MatrixRef<'_>, Factor<'_>),
    x: MatrixRef<'_>,
    gradients: &mut Parameters,
    buffers: &mut Buffers,
) {
    let (adapter, device, precision) = (run.adapter(), run.device, run.precision);
    let (a, b) = adapter.lora(lora);
    let (da, db) = gradients.lora_mut(&adapter.layout, lora);
    let Buffers { dropped, s, ds, names, first_row } = buffers;
    let (rows, cols, rank) = (x.rows(), x.cols(), lora.rank);
    let (s, mut ds) = (s.as_mut().prefix(rows, rank), ds.as_mut().prefix(rows, rank));
    let dx = match (dx, key) {
        (Some((dx, accumulate)), None) => {
            let (scale, ds) = (lora.scale, ds.reborrow());
            low_rank::input_gradient(device, precision, dx, accumulate, (dy, w), (a, b), scale, ds);
            None
        }
        (dx, _) => {
            low_rank::rank_gradient(device, precision, dy, b, lora.scale, ds.reborrow());
            dx
        }
    };
    let input = dropped_input(run, key, x, (names, *first_row), dropped).unwrap_or(x);
    let ds = ds.as_ref();
    low_rank::backward(device, precision, da, db, (dy, ds), (input, a), lora.scale, s);
    let (Some((mut dx, accumulate)), Some(key)) = (dx, key) else { return };
    matmul(device, precision, 1.0, Factor::Plain(dy), w, accumulate, dx.reborrow());
    // The dropped input is spent: its buffer takes its gradient, which then passes the same mask.
    let mut through = dropped.as_mut().prefix(rows, cols);
    matmul(device, precision, 1.0, Factor::Plain(ds), Factor::Plain(a), false, through.reborrow());
    let names = names.get().range(*first_row..*first_row + rows);
    dropout::apply(device, dx, through.as_ref(), adapter.dropout, (key, names), true);
}

/// What dropout leaves of the input, if there is dropout.
fn dropped_input<'a>(
    run: &Run<'_>,
    key: Option<u64>,
    x: MatrixRef<'_>,
    (names, first_row): (&Staged<u64>, usize),
    buffer: &'a mut Matrix,
) -> Option<MatrixRef<'a>> {
    let key = key?;
    let names = names.get().range(first_row..first_row + x.rows());
    let dropped = buffer.as_mut().prefix(x.rows(), x.cols());
    dropout::apply(run.device, dropped, x, run.adapter().dropout, (key, names), false);
    Some(buffer.as_ref().prefix(x.rows(), x.cols()))
}
