//! Low-rank adaptation of a linear layer (Hu et al. 2021): `y = W x + scale * B A dropout(x)`.
//!
//! With `s = scale * A dropout(x)`, `[T, R]`, and `ds = scale * Bᵀ dy`, the backward pass is `dB += dyᵀ s`,
//! `dA += dsᵀ dropout(x)`, `dx = dy W + dropout(A ds)`. Neither `s` nor the dropped input is kept: `s` is one
//! thin product, and the mask comes from a counter, so both are made again.

use std::ops::Range;

use compute::ops::matmul::{Factor, Update, matmul};
use compute::ops::{dropout, low_rank, pool};
use compute::{DType, Device, Matrix, MatrixMut, MatrixRef, Precision, random};

use super::qalora;
use crate::adapter::init::Init;
use crate::adapter::parameters::{Adapter, Layout, Parameters, Role, Trained};
use crate::decompose;
use crate::linear::Rows;
use crate::memory::{Allocator, Component};
use crate::names::{Module, ModuleId, Part};
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
    /// alpha / R, or alpha / sqrt(R) with rsLoRA; in QA-LoRA times what pooled inputs are divided by.
    pub scale: f32,
    /// Inputs that A reads as their sum (QA-LoRA); 1 of LoRA's own.
    pub group: usize,
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
                let lora = Lora { a, first, out, rank, scale, group: 1 };
                self.train(ModuleId::Expert { layer, expert, part }, Trained::Lora(lora));
            }
        }
    }

    /// Trains low-rank matrices on a linear layer, saved under `prefix`.
    pub fn add_lora(&mut self, module: Module, prefix: &str, rank: usize, scale: f32) -> Lora {
        self.add_pooled_lora(module, prefix, rank, scale, 1)
    }

    /// The same, of which A reads the sums of groups of inputs, which divide the layer's.
    pub(in crate::adapter) fn add_pooled_lora(
        &mut self,
        module: Module,
        prefix: &str,
        rank: usize,
        scale: f32,
        group: usize,
    ) -> Lora {
        let a = self.push(Role::A, format!("{prefix}.lora_A.weight"), [rank, module.cols / group], false);
        self.push(Role::B, format!("{prefix}.lora_B.weight"), [module.rows, rank], false);
        let lora = Lora { a, first: [0, 0], out: module.rows, rank, scale, group };
        self.train(module.id, Trained::Lora(lora));
        lora
    }
}

/// The inputs of a layer as its updates read them, where they do not read them as they are.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// With some of them dropped, `[T, in]`.
    dropped: Matrix,
    /// Added up by groups, `[S, in / group]`.
    pooled: Matrix,
}

impl Prepared {
    /// What the update of some rows of `x` reads; none: `x` itself.
    fn of(&self, rows: &Rows<'_>, lora: Lora, x: MatrixRef<'_>) -> Option<MatrixRef<'_>> {
        let whole = match (lora.group, rows.mask_key()) {
            (1, None) => return None,
            (1, Some(_)) => self.dropped.as_ref().prefix(x.rows(), x.cols()),
            (group, _) => self.pooled.as_ref().prefix(x.rows(), x.cols() / group),
        };
        Some(whole.rows_range(rows.range.clone()))
    }
}

/// Buffers that every linear layer uses in turn.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// What updates read in place of the inputs.
    pub(crate) prepared: Prepared,
    /// `s = scale * A x` `[S, R]`.
    pub(crate) s: Matrix,
    /// Its gradient `[S, R]`.
    pub(crate) ds: Matrix,
    /// What the rows at hand are called, for masks that do not depend on their neighbours `[T]`; set once a
    /// batch.
    pub(crate) names: Staged<u64>,
}

impl Buffers {
    /// For inputs of at most `width` columns: `tokens` rows, and where experts read them `rows`.
    pub(crate) fn new(
        layout: &Layout,
        dropout: f32,
        (tokens, rows): (usize, usize),
        width: usize,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let dropped = if dropout > 0.0 { tokens } else { 0 };
        let mut buffer = |rows, cols, dtype| allocator.matrix(Component::Workspace, rows, cols, dtype);
        Buffers {
            s: buffer(rows, layout.max_rank(), DType::F32),
            ds: buffer(rows, layout.max_rank(), DType::F32),
            prepared: Prepared {
                dropped: buffer(dropped, width, precision.dtype()),
                pooled: match layout.smallest_group() {
                    Some(group) => buffer(rows, width / group, DType::F32),
                    None => buffer(0, width, DType::F32),
                },
            },
            names: Staged::new(dropped, Component::Workspace, allocator),
        }
    }

    /// The largest rank that they are for.
    pub(crate) fn max_rank(&self) -> usize {
        self.s.cols()
    }

    /// Makes of the inputs `x [T, in]` what the updates of the rows read, where that is not `x`: some are
    /// dropped, or groups of them added up.
    pub(crate) fn prepare(&mut self, all: &[Rows<'_>], x: MatrixRef<'_>) {
        let Prepared { dropped, pooled } = &mut self.prepared;
        for rows in all {
            let (range, device) = (rows.range.clone(), rows.run.device);
            let mut from = x.rows_range(range.clone());
            if let Some(key) = rows.mask_key() {
                let rate = rows.run.adapter().dropout;
                let to = dropped.as_mut().prefix(x.rows(), x.cols()).rows_range(range.clone());
                let names = self.names.get().range(range.clone());
                dropout::apply(device, to, from, rate, (key, names), false);
                from = dropped.as_ref().prefix(x.rows(), x.cols()).rows_range(range.clone());
            }
            if let Some(Lora { group: group @ 2.., .. }) = rows.lora() {
                let to = pooled.as_mut().prefix(x.rows(), x.cols() / group).rows_range(range);
                pool::forward(device, to, from, group);
            }
        }
    }
}

/// A and B begin with random numbers; but for [`Init::Orthogonal`], B stays zero.
pub(in crate::adapter) fn initialize(adapter: &mut Adapter, lora: Lora, init: Init, seed: u64) {
    if lora.first != [0, 0] {
        return; // it shares the tensors of another one
    }
    let [tensor, behind] = [0, 1].map(|n| &adapter.layout.tensors()[lora.a + n]);
    let key = tensor.name.bytes().fold(seed, |key, byte| random::key(key, u64::from(byte)));
    if init == Init::Orthogonal {
        let (a, b) = adapter.parameters.pair_mut(tensor, behind);
        return a.upload(|a| b.upload(|b| orthogonal(key, a, b)));
    }
    let bound = 1.0 / (tensor.cols as f64).sqrt();
    let value = |i| match init {
        Init::Gaussian => random::normal(key, i) / lora.rank as f64,
        _ => (2.0 * random::uniform(key, i) - 1.0) * bound,
    };
    adapter.parameters.tensor_mut(tensor).upload(|a| {
        a.f32().iter_mut().enumerate().for_each(|(i, v)| *v = value(i as u64) as f32);
    });
}

/// Fills `a [R, in]` and `b [out, R]`: every second row of an orthogonal matrix `[R, R]` is for A, the others
/// for B, and each factor is a normal combination of its rows, times 0.1. So `B A` is zero.
fn orthogonal(key: u64, a: MatrixMut<'_>, b: MatrixMut<'_>) {
    let (rank, inner) = (a.rows(), a.cols());
    let normal = |stream: u64, i: usize| random::normal(random::key(key, stream), i as u64);
    let mut square = Matrix::unset(rank, rank, DType::F32);
    square.as_mut().f32().iter_mut().enumerate().for_each(|(i, v)| *v = normal(0, i) as f32);
    let q = decompose::orthogonal(square.as_ref());
    let row = |n: usize| &q[n * rank..][..rank];
    let half = rank / 2;
    let a = a.f32();
    a.fill(0.0);
    for n in 0..half {
        for col in 0..inner {
            let factor = (0.1 * normal(1, n * inner + col)) as f32;
            (0..rank).for_each(|k| a[k * inner + col] += row(2 * n)[k] * factor);
        }
    }
    for (m, to) in b.f32().chunks_mut(rank).enumerate() {
        to.fill(0.0);
        for n in 0..half {
            let factor = (0.1 * normal(2, m * half + n)) as f32;
            to.iter_mut().zip(row(2 * n + 1)).for_each(|(to, q)| *to += q * factor);
        }
    }
}

/// Adds the update to the frozen weight's values `w [out, in]`.
pub(in crate::adapter) fn merge(adapter: &Adapter, lora: Lora, device: &Device, w: MatrixMut<'_>) {
    if lora.group > 1 {
        return qalora::merge(adapter, lora, device, w);
    }
    let (a, b) = adapter.lora(lora);
    let (a, b) = (Factor::Plain(a), Factor::Plain(b));
    matmul(device, Precision::F32, lora.scale, b, a, true, w);
}

/// What the product of some rows of `x` by the frozen weight becomes the adapted layer's by. `s` is made
/// there or, of inputs that were [prepared](Buffers::prepare), now.
pub(crate) fn update<'a>(
    rows: &Rows<'a>,
    lora: Lora,
    x: MatrixRef<'_>,
    prepared: &Prepared,
    s: MatrixMut<'a>,
) -> Update<'a> {
    let (run, mut s) = (rows.run, s.cols_range(0..lora.rank));
    let (a, b) = run.adapter().lora(lora);
    let input = prepared.of(rows, lora, x);
    if let Some(input) = input {
        let to = s.reborrow();
        low_rank::prepared(run.device, run.precision, input, a, lora.scale, to, run.by_tiles);
    }
    low_rank::forward((a, b), lora.scale, s, input.is_some())
}

/// What the product of some rows of `dy` by the frozen weight becomes `dx` by, unless the update's part of it
/// goes another way: through dropout, or to groups of inputs.
pub(crate) fn input_gradient<'a>(rows: &Rows<'a>, lora: Lora, ds: MatrixMut<'a>) -> Option<Update<'a>> {
    let is_direct = rows.mask_key().is_none() && lora.group == 1;
    let ds = ds.cols_range(0..lora.rank);
    is_direct.then(|| low_rank::input_gradient(rows.run.adapter().lora(lora), lora.scale, ds))
}

/// Adds to the gradients of A and B, from some rows of `dy` and of the inputs `x [S, in]`; and to `dx`, if it
/// is wanted, what goes another way than [`input_gradient`]. The rest of it is there.
pub(crate) fn backward(
    rows: &Rows<'_>,
    lora: Lora,
    dx: Option<MatrixMut<'_>>,
    dy: MatrixRef<'_>,
    x: MatrixRef<'_>,
    gradients: &mut Parameters,
    buffers: &mut Buffers,
) {
    let Rows { range, run, .. } = rows;
    let (adapter, device, precision, key) = (run.adapter(), run.device, run.precision, rows.mask_key());
    let (a, b) = adapter.lora(lora);
    let (da, db) = gradients.lora_mut(&adapter.layout, lora);
    let Buffers { prepared, s, ds, names } = buffers;
    let [s, mut ds] = [s, ds].map(|m| m.as_mut().rows_range(range.clone()).cols_range(0..lora.rank));
    let is_direct = key.is_none() && lora.group == 1;
    if dx.is_none() || !is_direct {
        low_rank::rank_gradient(device, precision, dy, b, lora.scale, ds.reborrow());
    }
    let input = prepared.of(rows, lora, x).unwrap_or_else(|| x.rows_range(range.clone()));
    low_rank::backward(device, precision, da, db, (dy, ds.as_ref()), (input, a), lora.scale, s);
    let Some(dx) = dx.filter(|_| !is_direct) else { return };
    // What was prepared is spent: its buffers take its gradient, which goes back the way that it came.
    let Prepared { dropped, pooled } = prepared;
    let through_a = |to: MatrixMut<'_>| {
        matmul(device, precision, 1.0, Factor::Plain(ds.as_ref()), Factor::Plain(a), false, to);
    };
    if lora.group > 1 {
        let mut dp = pooled.as_mut().prefix(x.rows(), x.cols() / lora.group).rows_range(range.clone());
        through_a(dp.reborrow());
        match key {
            None => return pool::backward(device, dx, dp.as_ref(), lora.group, true),
            Some(_) => {
                let to = dropped.as_mut().prefix(x.rows(), x.cols()).rows_range(range.clone());
                pool::backward(device, to, dp.as_ref(), lora.group, false);
            }
        }
    } else {
        through_a(dropped.as_mut().prefix(x.rows(), x.cols()).rows_range(range.clone()));
    }
    let Some(key) = key else { return };
    let through = dropped.as_ref().prefix(x.rows(), x.cols()).rows_range(range.clone());
    let names = names.get().range(range.clone());
    dropout::apply(device, dx, through, adapter.dropout, (key, names), true);
}
