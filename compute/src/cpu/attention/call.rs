//! What a task of attention does, tile by tile, and the memory it does it in.

use std::cell::RefCell;
use std::ops::Range;

use super::shared::Shared;
use super::softmax::{self, Running};
use super::{Block, KEYS, ROWS, Sweep, intersection, keys_of_sweep, parts, tiles, tokens_of_tile};
use crate::cpu::gemm::{Isa, Operand, PackedLeft, PackedRight, Packing};
use crate::cpu::simd::{self, Element, LANES, by_dtype, multiversion};
use crate::matrix::{Slice, SliceMut};
use crate::ops::attention::{Attention, Segment};
use crate::{Buffer, DType, Matrix, MatrixRef};

/// What every task reads.
pub(super) struct Call<'a> {
    pub(super) isa: Isa,
    pub(super) packing: Packing,
    pub(super) spec: &'a Attention,
    pub(super) q: MatrixRef<'a>,
    pub(super) k: MatrixRef<'a>,
    pub(super) v: MatrixRef<'a>,
}

/// What the backward pass reads beyond that.
pub(super) struct Kept<'a> {
    pub(super) out: MatrixRef<'a>,
    pub(super) lse: &'a [f32],
    pub(super) dout: MatrixRef<'a>,
}

/// What the backward pass writes.
pub(super) struct Gradients<'a> {
    pub(super) dq: Shared<'a>,
    pub(super) dk: Shared<'a>,
    pub(super) dv: Shared<'a>,
}

impl Call<'_> {
    /// Leaves `Σ_j exp(s_j - max) v_j` of every row in `scratch.sums`, its `max` and `Σ_j exp(s_j - max)`
    /// beside it. Each group's rows begin with a tile of the products, [`Call::rows_of`] says where.
    pub(super) fn attend(&self, block: &Block<'_>, scratch: &mut Scratch) {
        let Block { segment, groups, tokens } = block;
        for (i, group) in groups.clone().enumerate() {
            let rows = self.rows_of(i, tokens);
            let q = load(self.q, self.spec, segment, group, tokens, &mut scratch.rows);
            scratch.q.pack(rows.start, q);
            scratch.max[rows.clone()].fill(f32::NEG_INFINITY);
            scratch.denominator[rows.clone()].fill(0.0);
            scratch.sums.as_mut().rows_range(rows).f32().fill(0.0);
        }
        let visible = self.spec.visible_to(segment, tokens);
        for keys in tiles(visible.clone()) {
            let next = intersection(&(keys.end..keys.end + KEYS), &visible);
            for (i, group) in groups.clone().enumerate() {
                let part = |i: usize| next.start + next.len() * i / groups.len();
                self.prefetch(segment, groups, part(i)..part(i + 1));
                self.attend_tile(segment, group, tokens, &keys, self.rows_of(i, tokens), scratch);
            }
        }
    }

    /// The rows of scratch that belong to the `i`-th of a block's groups.
    fn rows_of(&self, i: usize, tokens: &Range<usize>) -> Range<usize> {
        let rows = tokens.len() * self.spec.group();
        let first = i * self.packing.rows(rows);
        first..first + rows
    }

    /// One tile of [`Call::attend`], of one group, whose rows of scratch these are.
    fn attend_tile(
        &self,
        segment: &Segment,
        group: usize,
        tokens: &Range<usize>,
        keys: &Range<usize>,
        rows: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (d, n) = (self.spec.head_dim, keys.len());
        let at = (rows.start, rows.len());
        let Scratch { q, k_columns, v_rows, scores, p, sums, stride, .. } = scratch;
        k_columns.pack(self.keys(self.k, segment, group, keys).transposed());
        v_rows.pack(self.keys(self.v, segment, group, keys));
        q.multiply(at, k_columns, (d, n), (scores.as_mut().f32(), KEYS), false);
        let running = Running {
            max: &mut scratch.max[rows.clone()],
            denominator: &mut scratch.denominator[rows.clone()],
            sums: sums.as_mut().rows_range(rows.clone()).f32(),
            factor: &mut scratch.factor[rows.clone()],
        };
        let view = self.spec.view(segment, tokens, keys);
        if let Some(cap) = self.spec.cap {
            softmax::cap(&mut scores.as_mut().f32()[..rows.len() * KEYS], view.width(), self.spec.scale, cap);
        }
        softmax::step(self.isa, &view, scores.as_ref().f32(), p, running);
        let sums = &mut sums.as_mut().f32()[rows.start * *stride..];
        p.multiply((0, rows.len()), v_rows, (n, d), (sums, *stride), true);
    }

    /// Writes what [`Call::attend`] left: `out` and `lse` of the block.
    ///
    /// # Safety
    /// Nobody else touches these rows of these groups meanwhile.
    pub(super) unsafe fn store_attended(
        &self,
        block: &Block<'_>,
        scratch: &mut Scratch,
        out: &Shared<'_>,
        lse: &Shared<'_>,
    ) {
        let Block { segment, groups, tokens } = block;
        let (heads, d, stride) = (self.spec.group(), self.spec.head_dim, scratch.stride);
        let row = segment.queries.start + tokens.start;
        for (i, group) in groups.clone().enumerate() {
            let rows = self.rows_of(i, tokens);
            let (max, denominator) = (&mut scratch.max[rows.clone()], &scratch.denominator[rows.clone()]);
            let sums = scratch.sums.as_mut().rows_range(rows).f32();
            for ((sums, max), denominator) in sums.chunks_exact_mut(stride).zip(&mut *max).zip(denominator) {
                let factor = 1.0 / denominator;
                sums.iter_mut().for_each(|s| *s *= factor);
                *max += denominator.ln();
            }
            // SAFETY: the caller's promise.
            unsafe {
                out.store((row, group * heads * d), (heads, d), sums, stride);
                lse.store((row, group * heads), (1, heads), max, heads);
            }
        }
    }

    /// # Safety
    /// Nobody else touches what the sweep writes meanwhile: `dq` of its tokens, `dk` and `dv` of its keys, in
    /// its group.
    pub(super) unsafe fn sweep(
        &self,
        sweep: &Sweep<'_>,
        kept: &Kept<'_>,
        to: &Gradients<'_>,
        scratch: &mut Scratch,
    ) {
        let Sweep { segment, group, tokens, keys, dq, dkv } = sweep;
        let (heads, d) = (self.spec.group(), self.spec.head_dim);
        if *dkv {
            let used = scratch.dk.rows() * columns(keys);
            for sums in [&mut scratch.dk, &mut scratch.dv] {
                sums.as_mut().f32()[..used].fill(0.0);
            }
        }
        for tokens in parts(tokens.clone(), tokens_of_tile(self.spec)) {
            let visible = intersection(&self.spec.visible_to(segment, &tokens), keys);
            if visible.is_empty() {
                continue;
            }
            self.load_backward(kept, sweep, &tokens, scratch);
            for tile_keys in tiles(visible) {
                self.score_gradients(segment, *group, &tokens, &tile_keys, scratch);
                self.add_products(sweep, tokens.len() * heads, &tile_keys, scratch);
            }
            if *dq {
                let at = (segment.queries.start + tokens.start, group * heads * d);
                let sums = scratch.sums.top(tokens.len() * heads).f32();
                // SAFETY: the caller's promise.
                unsafe { to.dq.store(at, (heads, d), sums, scratch.stride) }
            }
        }
        if *dkv {
            for (to, sums) in [(&to.dk, &scratch.dk), (&to.dv, &scratch.dv)] {
                for part in parts(0..keys.len(), KEYS) {
                    let rows = scratch.turned.top_mut(part.len()).f32();
                    transpose(&sums.as_ref().f32()[part.start..], columns(keys), d, rows);
                    let at = (segment.keys.rows().start + keys.start + part.start, group * d);
                    // SAFETY: the caller's promise.
                    unsafe { to.store(at, (1, d), rows, d) }
                }
            }
        }
    }

    /// Loads what a block of tokens contributes to the backward pass: `q`, `dout`, `lse`, `δ`; clears its
    /// `dq`.
    fn load_backward(
        &self,
        kept: &Kept<'_>,
        sweep: &Sweep<'_>,
        tokens: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let Sweep { segment, group, dkv, .. } = sweep;
        let (heads, d) = (self.spec.group(), self.spec.head_dim);
        let rows = tokens.len() * heads;
        let q = load(self.q, self.spec, segment, *group, tokens, &mut scratch.rows);
        scratch.q.pack(0, q);
        if *dkv {
            scratch.q_columns.pack(0, q.transposed());
        }
        load(kept.out, self.spec, segment, *group, tokens, &mut scratch.out);
        let dout = load(kept.dout, self.spec, segment, *group, tokens, &mut scratch.rows);
        scratch.dout.pack(0, dout);
        if *dkv {
            scratch.dout_columns.pack(0, dout.transposed());
        }
        by_dtype!(self.q.dtype(), X => {
            let (out, dout) = (X::of(scratch.out.top(rows)), X::of(scratch.rows.top(rows)));
            dots::<X>(out, dout, d, &mut scratch.delta[..rows])
        });
        for (lse, token) in scratch.lse.chunks_exact_mut(heads).zip(tokens.clone()) {
            let at = (segment.queries.start + token) * self.spec.heads + group * heads;
            lse.copy_from_slice(&kept.lse[at..at + heads]);
        }
        scratch.sums.top_mut(rows).f32().fill(0.0);
    }

    /// Leaves a tile's probabilities in `scratch.p_columns` and the gradients of its scores in `scratch.p`
    /// and `scratch.ds_columns`.
    fn score_gradients(
        &self,
        segment: &Segment,
        group: usize,
        tokens: &Range<usize>,
        keys: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (rows, d, n) = (tokens.len() * self.spec.group(), self.spec.head_dim, keys.len());
        let Scratch { q, dout, k_columns, v_columns, scores, dp, p, p_columns, ds_columns, .. } = scratch;
        k_columns.pack(self.keys(self.k, segment, group, keys).transposed());
        v_columns.pack(self.keys(self.v, segment, group, keys).transposed());
        q.multiply((0, rows), k_columns, (d, n), (scores.as_mut().f32(), KEYS), false);
        dout.multiply((0, rows), v_columns, (d, n), (dp.as_mut().f32(), KEYS), false);
        let view = self.spec.view(segment, tokens, keys);
        let mut delta = &scratch.delta[..rows];
        if let Some(cap) = self.spec.cap {
            let (scores, dp) = (scores.as_mut().f32(), dp.as_mut().f32());
            let products = (&mut scores[..rows * KEYS], &mut dp[..rows * KEYS]);
            softmax::cap_gradient(products, delta, view.width(), self.spec.scale, cap);
            // It is taken off there.
            scratch.factor[..rows].fill(0.0);
            delta = &scratch.factor[..rows];
        }
        let products = (scores.as_ref().f32(), dp.as_ref().f32());
        let per_row = (&scratch.lse[..rows], delta);
        softmax::gradient(self.isa, &view, products, per_row, p_columns, (p, ds_columns));
    }

    /// Adds a tile's part to the sums that the sweep keeps.
    fn add_products(&self, sweep: &Sweep<'_>, rows: usize, keys: &Range<usize>, scratch: &mut Scratch) {
        let (d, n) = (self.spec.head_dim, keys.len());
        let Scratch {
            q_columns, dout_columns, p, p_columns, ds_columns, k_rows, sums, stride, dk, dv, ..
        } = scratch;
        if sweep.dkv {
            let (at, columns) = (keys.start - sweep.keys.start, columns(&sweep.keys));
            // Hidden columns are zeros, so that whole chunks can be added.
            let shape = (rows, n.next_multiple_of(LANES));
            assert!(at + shape.1 <= columns, "{n} keys from {at} on stay in their row of {columns}");
            for (left, right, sums) in [(dout_columns, &*p_columns, dv), (q_columns, ds_columns, dk)] {
                left.multiply((0, d), right, shape, (&mut sums.as_mut().f32()[at..], columns), true);
            }
        }
        if sweep.dq {
            k_rows.pack(self.keys(self.k, sweep.segment, sweep.group, keys));
            p.multiply((0, rows), k_rows, (n, d), (sums.as_mut().f32(), *stride), true);
        }
    }

    /// `[n, D]`: these keys of a segment in `k` or `v`, where they lie.
    fn keys<'b>(
        &self,
        m: MatrixRef<'b>,
        segment: &Segment,
        group: usize,
        keys: &Range<usize>,
    ) -> Operand<'b> {
        let (rows, cols) = (keys.len(), self.spec.head_dim);
        let row_stride = m.cols();
        let start = segment.keys.row(keys.start) * row_stride + group * cols;
        let span = start..start + (rows - 1) * row_stride + cols;
        let data = match m.slice() {
            Slice::F32(s) => Slice::F32(&s[span]),
            Slice::Bf16(s) => Slice::Bf16(&s[span]),
        };
        Operand { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Asks for these keys of some groups and their values: they stand in short runs far apart, which no
    /// processor guesses, and with few queries there is no work to hide the wait for them.
    fn prefetch(&self, segment: &Segment, groups: &Range<usize>, keys: Range<usize>) {
        let bytes = self.spec.head_dim * self.q.dtype().size();
        for m in [self.k, self.v] {
            let start: *const u8 = match m.slice() {
                Slice::F32(s) => s.as_ptr().cast(),
                Slice::Bf16(s) => s.as_ptr().cast(),
            };
            for key in segment.keys.runs(keys.clone()).flatten() {
                let row = key * self.spec.kv_heads * bytes;
                for line in (row + groups.start * bytes..row + groups.end * bytes).step_by(64) {
                    simd::prefetch(start.wrapping_add(line));
                }
            }
        }
    }
}

/// From one row of a sweep's `dk` or `dv` to its next: not a power of two, or the rows of a tile would
/// compete for the same places in the first-level cache.
fn columns(keys: &Range<usize>) -> usize {
    keys.len().next_multiple_of(LANES) + LANES / 2
}

/// Copies these tokens' rows for all heads of a group, so that they stand `D` apart: `[tokens * G, D]`.
fn load<'a>(
    m: MatrixRef<'_>,
    spec: &Attention,
    segment: &Segment,
    group: usize,
    tokens: &Range<usize>,
    to: &'a mut Matrix,
) -> Operand<'a> {
    let (width, rows) = (spec.group() * spec.head_dim, tokens.len() * spec.group());
    let starts = tokens.clone().map(|t| (segment.queries.start + t) * m.cols() + group * width);
    match (m.slice(), to.top_mut(rows).slice()) {
        (Slice::F32(from), SliceMut::F32(to)) => copy_rows(from, starts, width, to),
        (Slice::Bf16(from), SliceMut::Bf16(to)) => copy_rows(from, starts, width, to),
        _ => unreachable!("scratch has the type of q"),
    }
    Operand {
        data: to.top(rows).slice(),
        rows,
        cols: spec.head_dim,
        row_stride: spec.head_dim,
        col_stride: 1,
    }
}

fn copy_rows<X: Copy>(from: &[X], starts: impl Iterator<Item = usize>, width: usize, to: &mut [X]) {
    to.chunks_exact_mut(width)
        .zip(starts)
        .for_each(|(to, start)| to.copy_from_slice(&from[start..start + width]));
}

multiversion! {
    /// `to[r] = Σ_i a[r, i] b[r, i]` for rows of `d` elements.
    fn dots<X: Element>(a: &[X], b: &[X], d: usize, to: &mut [f32]) {
        for ((a, b), to) in a.chunks_exact(d).zip(b.chunks_exact(d)).zip(to) {
            let mut lanes = [0.0; LANES];
            for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
                for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
                    *lane += a.load() * b.load();
                }
            }
            *to = simd::fold(lanes, |a, b| a + b);
        }
    }
}

multiversion! {
    /// `to [_, d]`, the first columns of `from`, whose `d` rows are `stride` apart, as rows.
    fn transpose(from: &[f32], stride: usize, d: usize, to: &mut [f32]) {
        // Few rows at a time: what is read of them shares cache lines with what is read next.
        for first in (0..d).step_by(16) {
            for (column, to) in to.chunks_exact_mut(d).enumerate() {
                for (i, to) in to[first..d.min(first + 16)].iter_mut().enumerate() {
                    *to = from[(first + i) * stride + column];
                }
            }
        }
    }
}

/// Group size, head size, type of activations, and whose factors of which type.
type MadeFor = (usize, usize, DType, Isa, DType);

impl Call<'_> {
    fn scratch_made_for(&self) -> MadeFor {
        (self.spec.group(), self.spec.head_dim, self.q.dtype(), self.isa, self.packing.dtype())
    }
}

/// A thread's working memory: the parts of one tile, and the sums that a task keeps. Its size depends on the
/// kind of attention alone.
pub(super) struct Scratch {
    made_for: MadeFor,
    /// `[rows, D]` each, as the activations: what is to be packed, and `out`.
    rows: Matrix,
    out: Matrix,
    /// `[rows, D]` each.
    q: PackedLeft,
    dout: PackedLeft,
    /// `[D, rows]` each: the same, transposed.
    q_columns: PackedLeft,
    dout_columns: PackedLeft,
    /// `[D, KEYS]` each.
    k_columns: PackedRight,
    v_columns: PackedRight,
    /// `[KEYS, D]` each.
    k_rows: PackedRight,
    v_rows: PackedRight,
    /// `[rows, KEYS]` each, `f32`; `scores` not yet multiplied by the scale.
    scores: Matrix,
    dp: Matrix,
    /// `[rows, KEYS]`: probabilities forward, gradients of scores backward.
    p: PackedLeft,
    /// `[rows, KEYS]` each.
    p_columns: PackedRight,
    ds_columns: PackedRight,
    /// `[rows, stride]`, `f32`, the first `D` columns: `out` before its division, or `dq`.
    sums: Matrix,
    stride: usize,
    /// `[D, columns(keys)]` each, `f32`; whole tiles.
    dk: Matrix,
    dv: Matrix,
    /// `[KEYS, D]`, `f32`: some of these as they are stored.
    turned: Matrix,
    /// One number per row each.
    max: Buffer<f32>,
    denominator: Buffer<f32>,
    factor: Buffer<f32>,
    lse: Buffer<f32>,
    delta: Buffer<f32>,
}

impl Scratch {
    #[rustfmt::skip] // a line for each kind says as much as thirty
    fn new(call: &Call<'_>) -> Self {
        let Call { spec, packing, .. } = *call;
        let (rows, d) = (packing.rows(ROWS.max(spec.group())), spec.head_dim);
        let stride = packing.cols(d);
        let floats = |rows, cols| Matrix::unset(rows, cols, DType::F32);
        let [max, denominator, factor, lse, delta] = [(); 5].map(|()| Buffer::zeros(rows));
        let [activations, out] = [(); 2].map(|()| Matrix::unset(rows, d, call.q.dtype()));
        let [q, dout] = [(); 2].map(|()| PackedLeft::new(packing, rows, d));
        let [q_columns, dout_columns] = [(); 2].map(|()| PackedLeft::new(packing, d, rows));
        let [k_columns, v_columns] = [(); 2].map(|()| PackedRight::new(packing, d, KEYS));
        let [k_rows, v_rows] = [(); 2].map(|()| PackedRight::new(packing, KEYS, d));
        let [scores, dp] = [(); 2].map(|()| floats(rows, KEYS));
        let p = PackedLeft::new(packing, rows, KEYS);
        let [p_columns, ds_columns] = [(); 2].map(|()| PackedRight::new(packing, rows, KEYS));
        let [dk, dv] = [(); 2].map(|()| floats(packing.rows(d), columns(&(0..keys_of_sweep(spec)))));
        let (sums, turned) = (floats(rows, stride), floats(KEYS, d));
        let made_for = call.scratch_made_for();
        Scratch {
            made_for, rows: activations, out, q, dout, q_columns, dout_columns, k_columns, v_columns, k_rows, v_rows, scores,
            dp, p, p_columns, ds_columns, sums, stride, dk, dv, turned, max, denominator, factor, lse, delta,
        }
    }
}

/// About the bytes of [`Scratch`], of factors of this size, that segments of at most so many keys touch.
pub(super) fn scratch_bytes(spec: &Attention, factor: usize, keys: usize) -> u64 {
    let (rows, d) = (ROWS.max(spec.group()), spec.head_dim);
    let factors = rows * d * 6 + KEYS * d * 4 + rows * KEYS * 3;
    let floats = rows * KEYS * 2 + (rows + KEYS) * d + 2 * d * columns(&(0..keys.min(keys_of_sweep(spec))));
    (factors * factor + floats * 4) as u64
}

thread_local! {
    static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

/// Runs `body` with this thread's scratch.
pub(super) fn with_scratch(call: &Call<'_>, body: impl FnOnce(&mut Scratch)) {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.as_ref().is_none_or(|s| s.made_for != call.scratch_made_for()) {
            *scratch = Some(Scratch::new(call));
        }
        body(scratch.as_mut().expect("it was just made"));
    })
}
