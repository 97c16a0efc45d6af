//! Causal attention on the host, tile by tile.
//!
//! A tile's rows are the queries of a few tokens for all heads of one group (row `r` is token `r / G`, head `r % G` of
//! the group), so keys and values are read once for the whole group; its columns are keys. Scores of a tile live in
//! this thread's scratch, whose size does not depend on the batch.
//!
//! Forward, a task is a [`Block`] of tokens: it walks the keys that they see with the softmax kept up to date. Backward, a task sweeps a range of tokens over a range of keys ([`Sweep`]). Where sequences are short
//! and many enough for the threads, one sweep per (segment, group) computes `dq`, `dk` and `dv` from the same tiles. Else
//! some sweeps compute `dq` for a block of tokens, others `dk` and `dv` for a range of keys; every tile is then
//! computed twice, but nothing has to be added up between threads. Either way each sum runs over the same tiles in the
//! same order, so the choice changes no byte of the result.

mod softmax;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::ops::Range;

use super::gemm::{Isa, Operand, OperandMut, serial};
use super::simd::{self, Element, LANES, by_dtype, multiversion};
use crate::matrix::{Slice, SliceMut};
use crate::ops::attention::{Attention, Segment};
use crate::{Cpu, DType, Matrix, MatrixMut, MatrixRef, Precision, bf16};
use softmax::{Running, View};

/// Columns of a tile; a multiple of [`LANES`].
const KEYS: usize = 128;
/// Rows of a tile, unless a group has more heads.
const ROWS: usize = 128;
/// Elements of `dk` that a sweep can hold, and of `dv`: half a megabyte each, 2048 keys at `D` = 64.
const SWEEP_ELEMENTS: usize = 1 << 17;
/// Keys of a sweep where `dk` and `dv` are computed apart from `dq`: few, for many threads.
const SPLIT_KEYS: usize = 256;

/// See [`crate::ops::attention::forward`].
pub(crate) fn forward(
    cpu: &Cpu,
    precision: Precision,
    spec: &Attention,
    segments: &[Segment],
    q: MatrixRef<'_>,
    k: MatrixRef<'_>,
    v: MatrixRef<'_>,
    out: MatrixMut<'_>,
    lse: &mut [f32],
) {
    let call = Call { isa: cpu.isa, precision, spec, q, k, v };
    let (out, lse) = (Shared::new(out), Shared::new(MatrixMut::from_f32(q.rows(), spec.heads, lse)));
    let blocks = blocks(cpu.threads(), spec, segments);
    cpu.pool.run(blocks.len(), |task, _| {
        with_scratch(spec, precision, q.dtype(), |scratch| {
            call.attend(&blocks[task], scratch);
            // SAFETY: blocks are different tokens or groups, so they write different elements.
            unsafe { call.store_attended(&blocks[task], scratch, &out, &lse) }
        })
    });
}

/// See [`crate::ops::attention::backward`].
pub(crate) fn backward(
    cpu: &Cpu,
    precision: Precision,
    spec: &Attention,
    segments: &[Segment],
    q: MatrixRef<'_>,
    k: MatrixRef<'_>,
    v: MatrixRef<'_>,
    out: MatrixRef<'_>,
    lse: &[f32],
    dout: MatrixRef<'_>,
    dq: MatrixMut<'_>,
    dk: MatrixMut<'_>,
    dv: MatrixMut<'_>,
) {
    let call = Call { isa: cpu.isa, precision, spec, q, k, v };
    let forward = Kept { out, lse, dout };
    let to = Gradients { dq: Shared::new(dq), dk: Shared::new(dk), dv: Shared::new(dv) };
    let sweeps = sweeps(cpu.threads(), spec, segments);
    cpu.pool.run(sweeps.len(), |task, _| {
        with_scratch(spec, precision, q.dtype(), |scratch| {
            // SAFETY: sweeps write different elements: `sweeps` divides tokens and keys.
            unsafe { call.sweep(&sweeps[task], &forward, &to, scratch) }
        })
    });
}

/// A forward task: these tokens of a segment (counted from its first query), all heads of some groups.
struct Block<'a> {
    segment: &'a Segment,
    groups: Range<usize>,
    tokens: Range<usize>,
}

/// The forward pass as independent blocks, those that see the most keys first, so that no thread ends long after the
/// others. A block of few tokens, as in generation, takes as many groups as it has room for and as leaves enough blocks
/// for the threads: it then reads whole rows of keys and values.
fn blocks<'a>(threads: usize, spec: &Attention, segments: &'a [Segment]) -> Vec<Block<'a>> {
    let step = tokens_of_tile(spec);
    let count: usize = segments.iter().map(|s| s.queries.len().div_ceil(step)).sum();
    let affordable = count * spec.kv_heads / (2 * threads);
    let mut blocks = Vec::new();
    for segment in segments {
        for tokens in parts(0..segment.queries.len(), step) {
            let room = (step / tokens.len()).min(affordable).max(1);
            blocks.extend(parts(0..spec.kv_heads, room).map(|groups| Block {
                segment,
                groups,
                tokens: tokens.clone(),
            }));
        }
    }
    blocks.sort_by_key(|b| Reverse(b.tokens.len() * spec.visible_to(b.segment, &b.tokens).len()));
    blocks
}

/// A backward task: the tiles where these tokens see these keys (both counted from the segment's first), all heads of a
/// group.
struct Sweep<'a> {
    segment: &'a Segment,
    group: usize,
    tokens: Range<usize>,
    keys: Range<usize>,
    /// Whether to compute `dq` of the tokens; `keys` must then be all keys.
    dq: bool,
    /// Whether to compute `dk` and `dv` of the keys; `tokens` must then be all tokens.
    dkv: bool,
}

/// The backward pass as independent sweeps, the longest first.
fn sweeps<'a>(threads: usize, spec: &Attention, segments: &'a [Segment]) -> Vec<Sweep<'a>> {
    let enough = segments.len() * spec.kv_heads >= threads;
    let step = tokens_of_tile(spec);
    let mut sweeps = Vec::new();
    for segment in segments {
        let (tokens, keys) = (0..segment.queries.len(), 0..segment.keys.len());
        let whole =
            |group| Sweep { segment, group, tokens: tokens.clone(), keys: keys.clone(), dq: true, dkv: true };
        if enough && keys.len() <= keys_of_sweep(spec) {
            sweeps.extend((0..spec.kv_heads).map(whole));
            continue;
        }
        for keys in parts(keys.clone(), SPLIT_KEYS.min(keys_of_sweep(spec))) {
            sweeps.extend((0..spec.kv_heads).map(|g| Sweep { keys: keys.clone(), dq: false, ..whole(g) }));
        }
        for tokens in parts(tokens.clone(), step) {
            sweeps.extend((0..spec.kv_heads).map(|g| Sweep {
                tokens: tokens.clone(),
                dkv: false,
                ..whole(g)
            }));
        }
    }
    sweeps.sort_by_key(|s| Reverse(s.tokens.len() * s.keys.len()));
    sweeps
}

/// A range in parts of this length, the last one shorter.
fn parts(range: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(len).map(move |first| first..range.end.min(first + len))
}

/// Keys whose `dk` and `dv` a sweep can hold, whole tiles.
fn keys_of_sweep(spec: &Attention) -> usize {
    (SWEEP_ELEMENTS / spec.head_dim / KEYS).max(1) * KEYS
}

/// Tokens whose queries, for all heads of a group, make up a tile.
fn tokens_of_tile(spec: &Attention) -> usize {
    (ROWS / spec.group()).max(1)
}

/// What every task reads.
struct Call<'a> {
    isa: Isa,
    precision: Precision,
    spec: &'a Attention,
    q: MatrixRef<'a>,
    k: MatrixRef<'a>,
    v: MatrixRef<'a>,
}

/// What the backward pass reads beyond that.
struct Kept<'a> {
    out: MatrixRef<'a>,
    lse: &'a [f32],
    dout: MatrixRef<'a>,
}

/// What the backward pass writes.
struct Gradients<'a> {
    dq: Shared<'a>,
    dk: Shared<'a>,
    dv: Shared<'a>,
}

impl Call<'_> {
    /// Leaves `Σ_j exp(s_j - max) v_j` of every row in `scratch.sums`, its `max` and `Σ_j exp(s_j - max)` beside it; rows
    /// are the groups' tiles, one after the other.
    fn attend(&self, block: &Block<'_>, scratch: &mut Scratch) {
        let Block { segment, groups, tokens } = block;
        let rows = tokens.len() * self.spec.group();
        let all = rows * groups.len();
        for (i, group) in groups.clone().enumerate() {
            self.load(
                self.q,
                segment,
                group,
                tokens,
                scratch.q.as_mut().rows_range(i * rows..(i + 1) * rows),
            );
        }
        scratch.max[..all].fill(f32::NEG_INFINITY);
        scratch.denominator[..all].fill(0.0);
        scratch.sums.top_mut(all).clear();
        let visible = self.spec.visible_to(segment, tokens);
        for keys in tiles(visible.clone()) {
            let next = intersection(&(keys.end..keys.end + KEYS), &visible);
            for (i, group) in groups.clone().enumerate() {
                let part = |i: usize| next.start + next.len() * i / groups.len();
                self.prefetch(segment, groups, part(i)..part(i + 1));
                self.attend_tile(segment, group, tokens, &keys, i * rows..(i + 1) * rows, scratch);
            }
        }
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
        let (count, n) = (rows.len(), keys.len());
        let [k, v] = [self.k, self.v].map(|m| self.keys(m, segment, group, keys));
        self.product(
            rows_of(&scratch.q, &rows),
            transposed(k),
            false,
            corner_mut(&mut scratch.scores, count, n),
        );
        let view = self.spec.view(segment, tokens, keys);
        let scores = scratch.scores.as_ref().f32();
        let running = Running {
            max: &mut scratch.max[rows.clone()],
            denominator: &mut scratch.denominator[rows.clone()],
            sums: scratch.sums.as_mut().rows_range(rows.clone()).f32(),
            factor: &mut scratch.factor[rows.clone()],
        };
        by_dtype!(self.precision.dtype(), P => {
            softmax::step(self.isa, &view, scores, P::of_mut(scratch.p.as_mut()), running)
        });
        self.product(corner(&scratch.p, count, n), v, true, rows_of_mut(&mut scratch.sums, &rows));
    }

    /// Writes what [`Call::attend`] left: `out` and `lse` of the block.
    ///
    /// # Safety
    /// Nobody else touches these rows of these groups meanwhile.
    unsafe fn store_attended(
        &self,
        block: &Block<'_>,
        scratch: &mut Scratch,
        out: &Shared<'_>,
        lse: &Shared<'_>,
    ) {
        let Block { segment, groups, tokens } = block;
        let (heads, d) = (self.spec.group(), self.spec.head_dim);
        let all = groups.len() * tokens.len() * heads;
        let sums = scratch.sums.top_mut(all).f32();
        let state = scratch.denominator[..all].iter().zip(&mut scratch.max);
        for (sums, (denominator, max)) in sums.chunks_exact_mut(d).zip(state) {
            let factor = 1.0 / denominator;
            sums.iter_mut().for_each(|s| *s *= factor);
            *max += denominator.ln();
        }
        let rows = tokens.len() * heads;
        let values = sums.chunks_exact(rows * d).zip(scratch.max.chunks_exact(rows));
        for (group, (sums, max)) in groups.clone().zip(values) {
            let row = segment.queries.start + tokens.start;
            // SAFETY: the caller's promise.
            unsafe {
                out.store(row, group * heads * d, heads * d, sums);
                lse.store(row, group * heads, heads, max);
            }
        }
    }

    /// # Safety
    /// Nobody else touches what the sweep writes meanwhile: `dq` of its tokens, `dk` and `dv` of its keys, in its group.
    unsafe fn sweep(&self, sweep: &Sweep<'_>, kept: &Kept<'_>, to: &Gradients<'_>, scratch: &mut Scratch) {
        let Sweep { segment, group, tokens, keys, dq, dkv } = sweep;
        let (step, d) = (tokens_of_tile(self.spec), self.spec.head_dim);
        let width = self.spec.group() * d;
        if *dkv {
            scratch.dk.top_mut(keys.len()).clear();
            scratch.dv.top_mut(keys.len()).clear();
        }
        for first in tokens.clone().step_by(step) {
            let tokens = first..tokens.end.min(first + step);
            let visible = intersection(&self.spec.visible_to(segment, &tokens), keys);
            if visible.is_empty() {
                continue;
            }
            self.load_backward(kept, segment, *group, &tokens, scratch);
            for tile_keys in tiles(visible) {
                self.score_gradients(segment, *group, &tokens, &tile_keys, scratch);
                self.add_products(sweep, tokens.len() * self.spec.group(), &tile_keys, scratch);
            }
            if *dq {
                let sums = &scratch.sums.as_ref().f32()[..tokens.len() * width];
                // SAFETY: the caller's promise.
                unsafe { to.dq.store(segment.queries.start + first, group * width, width, sums) }
            }
        }
        if *dkv {
            for (to, sums) in [(&to.dk, &scratch.dk), (&to.dv, &scratch.dv)] {
                let sums = sums.top(keys.len()).f32();
                // SAFETY: the caller's promise.
                unsafe { to.store(segment.keys.start + keys.start, group * d, d, sums) }
            }
        }
    }

    /// Loads what a block of tokens contributes to the backward pass: `q`, `dout`, `lse`, `δ`; clears its `dq`.
    fn load_backward(
        &self,
        kept: &Kept<'_>,
        segment: &Segment,
        group: usize,
        tokens: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (heads, d) = (self.spec.group(), self.spec.head_dim);
        let rows = tokens.len() * heads;
        let load = |from, to: &mut Matrix| self.load(from, segment, group, tokens, to.top_mut(rows));
        load(self.q, &mut scratch.q);
        load(kept.dout, &mut scratch.dout);
        load(kept.out, &mut scratch.out);
        by_dtype!(self.q.dtype(), X => {
            let (out, dout) = (X::of(scratch.out.top(rows)), X::of(scratch.dout.top(rows)));
            dots::<X>(out, dout, d, &mut scratch.delta[..rows])
        });
        for (lse, token) in scratch.lse.chunks_exact_mut(heads).zip(tokens.clone()) {
            let at = (segment.queries.start + token) * self.spec.heads + group * heads;
            lse.copy_from_slice(&kept.lse[at..at + heads]);
        }
        scratch.sums.top_mut(rows).clear();
    }

    /// Leaves a tile's probabilities in `scratch.p` and the gradients of its scores in `scratch.ds`.
    fn score_gradients(
        &self,
        segment: &Segment,
        group: usize,
        tokens: &Range<usize>,
        keys: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let (rows, n) = (tokens.len() * self.spec.group(), keys.len());
        let [k, v] = [self.k, self.v].map(|m| transposed(self.keys(m, segment, group, keys)));
        self.product(rows_of(&scratch.q, &(0..rows)), k, false, corner_mut(&mut scratch.scores, rows, n));
        self.product(rows_of(&scratch.dout, &(0..rows)), v, false, corner_mut(&mut scratch.dp, rows, n));
        let view = self.spec.view(segment, tokens, keys);
        let products = (scratch.scores.as_ref().f32(), scratch.dp.as_ref().f32());
        let per_row = (&scratch.lse[..rows], &scratch.delta[..rows]);
        by_dtype!(self.precision.dtype(), P => {
            let to = (P::of_mut(scratch.p.as_mut()), P::of_mut(scratch.ds.as_mut()));
            softmax::gradient(self.isa, &view, products, per_row, to)
        });
    }

    /// Adds a tile's part to the sums that the sweep keeps.
    fn add_products(&self, sweep: &Sweep<'_>, rows: usize, keys: &Range<usize>, scratch: &mut Scratch) {
        let n = keys.len();
        let (p, ds) = (corner(&scratch.p, rows, n), corner(&scratch.ds, rows, n));
        let all = 0..rows;
        if sweep.dkv {
            let at = keys.start - sweep.keys.start..keys.end - sweep.keys.start;
            let (q, dout) = (rows_of(&scratch.q, &all), rows_of(&scratch.dout, &all));
            self.product(transposed(p), dout, true, rows_of_mut(&mut scratch.dv, &at));
            self.product(transposed(ds), q, true, rows_of_mut(&mut scratch.dk, &at));
        }
        if sweep.dq {
            let k = self.keys(self.k, sweep.segment, sweep.group, keys);
            self.product(ds, k, true, rows_of_mut(&mut scratch.sums, &all));
        }
    }

    fn product(&self, a: Operand<'_>, b: Operand<'_>, accumulate: bool, c: OperandMut<'_>) {
        serial(self.isa, self.precision, 1.0, a, b, accumulate, c);
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
        let start = (segment.keys.start + keys.start) * row_stride + group * cols;
        let span = start..start + (rows - 1) * row_stride + cols;
        let data = match m.data {
            Slice::F32(s) => Slice::F32(&s[span]),
            Slice::Bf16(s) => Slice::Bf16(&s[span]),
        };
        Operand { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Copies these tokens' rows for all heads of a group, so that they stand `D` apart.
    fn load(
        &self,
        m: MatrixRef<'_>,
        segment: &Segment,
        group: usize,
        tokens: &Range<usize>,
        to: MatrixMut<'_>,
    ) {
        let width = self.spec.group() * self.spec.head_dim;
        let starts = tokens.clone().map(|t| (segment.queries.start + t) * m.cols() + group * width);
        match (m.data, to.data) {
            (Slice::F32(from), SliceMut::F32(to)) => copy_rows(from, starts, width, to),
            (Slice::Bf16(from), SliceMut::Bf16(to)) => copy_rows(from, starts, width, to),
            _ => unreachable!("scratch has the type of q"),
        }
    }

    /// Asks for these keys of some groups and their values: they stand in short runs far apart, which no processor
    /// guesses, and with few queries there is no work to hide the wait for them.
    fn prefetch(&self, segment: &Segment, groups: &Range<usize>, keys: Range<usize>) {
        let bytes = self.spec.head_dim * self.q.dtype().size();
        for m in [self.k, self.v] {
            let start: *const u8 = match m.data {
                Slice::F32(s) => s.as_ptr().cast(),
                Slice::Bf16(s) => s.as_ptr().cast(),
            };
            for key in keys.clone() {
                let row = (segment.keys.start + key) * self.spec.kv_heads * bytes;
                for line in (row + groups.start * bytes..row + groups.end * bytes).step_by(64) {
                    simd::prefetch(start.wrapping_add(line));
                }
            }
        }
    }
}

fn copy_rows<X: Copy>(from: &[X], starts: impl Iterator<Item = usize>, width: usize, to: &mut [X]) {
    to.chunks_exact_mut(width)
        .zip(starts)
        .for_each(|(to, start)| to.copy_from_slice(&from[start..start + width]));
}

impl Attention {
    /// Keys that at least one of these tokens sees, counted from the segment's first.
    fn visible_to(&self, segment: &Segment, tokens: &Range<usize>) -> Range<usize> {
        let before = segment.keys.len() - segment.queries.len();
        let first = self.window.map_or(0, |w| (before + tokens.start + 1).saturating_sub(w));
        first..before + tokens.end
    }

    fn view(&self, segment: &Segment, tokens: &Range<usize>, keys: &Range<usize>) -> View {
        View {
            group: self.group(),
            scale: self.scale,
            window: self.window.unwrap_or(usize::MAX),
            position: segment.keys.len() - segment.queries.len() + tokens.start,
            keys: keys.clone(),
        }
    }
}

/// Tiles of a range of keys: cut at multiples of [`KEYS`], whatever the range, so that every sweep sees the same ones.
fn tiles(keys: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    (keys.start / KEYS..keys.end.div_ceil(KEYS))
        .map(move |i| intersection(&(i * KEYS..(i + 1) * KEYS), &keys))
}

fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
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
    fn round(from: &[f32], to: &mut [bf16]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::store(*from));
    }
}

/// A thread's working memory: the parts of one tile, and the sums that a task keeps. Its size depends on the kind of
/// attention alone.
struct Scratch {
    /// Group size, head size, type of activations, precision of products: what it was made for.
    made_for: (usize, usize, DType, Precision),
    /// `[rows, D]` each, as the activations.
    q: Matrix,
    out: Matrix,
    dout: Matrix,
    /// `[rows, KEYS]` each, `f32`; `scores` not yet multiplied by the scale.
    scores: Matrix,
    dp: Matrix,
    /// `[rows, KEYS]` each, as the precision multiplies them.
    p: Matrix,
    ds: Matrix,
    /// `[rows, D]`, `f32`: `out` before its division, or `dq`.
    sums: Matrix,
    /// `[keys_of_sweep, D]` each, `f32`.
    dk: Matrix,
    dv: Matrix,
    /// One number per row each.
    max: Vec<f32>,
    denominator: Vec<f32>,
    factor: Vec<f32>,
    lse: Vec<f32>,
    delta: Vec<f32>,
}

impl Scratch {
    #[rustfmt::skip] // two lines of names say as much as sixteen
    fn new(spec: &Attention, precision: Precision, dtype: DType) -> Self {
        let (rows, d) = (tokens_of_tile(spec) * spec.group(), spec.head_dim);
        let [q, out, dout] = [(); 3].map(|()| Matrix::zeros(rows, d, dtype));
        let [scores, dp] = [(); 2].map(|()| Matrix::zeros(rows, KEYS, DType::F32));
        let [p, ds] = [(); 2].map(|()| Matrix::zeros(rows, KEYS, precision.dtype()));
        let [dk, dv] = [(); 2].map(|()| Matrix::zeros(keys_of_sweep(spec), d, DType::F32));
        let sums = Matrix::zeros(rows, d, DType::F32);
        let [max, denominator, factor, lse, delta] = [(); 5].map(|()| vec![0.0; rows]);
        let made_for = (spec.group(), d, dtype, precision);
        Scratch {
            made_for, q, out, dout, scores, dp, p, ds, sums, dk, dv, max, denominator, factor, lse, delta,
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

/// Runs `body` with this thread's scratch.
fn with_scratch(spec: &Attention, precision: Precision, dtype: DType, body: impl FnOnce(&mut Scratch)) {
    SCRATCH.with_borrow_mut(|scratch| {
        let wanted = (spec.group(), spec.head_dim, dtype, precision);
        if scratch.as_ref().is_none_or(|s| s.made_for != wanted) {
            *scratch = Some(Scratch::new(spec, precision, dtype));
        }
        body(scratch.as_mut().expect("it was just made"));
    })
}

/// The first columns of the first rows.
fn corner(m: &Matrix, rows: usize, cols: usize) -> Operand<'_> {
    Operand { data: m.as_ref().data, rows, cols, row_stride: m.cols(), col_stride: 1 }
}

fn corner_mut(m: &mut Matrix, rows: usize, cols: usize) -> OperandMut<'_> {
    let row_stride = m.cols();
    OperandMut { data: m.as_mut().data, rows, cols, row_stride }
}

fn rows_of<'a>(m: &'a Matrix, rows: &Range<usize>) -> Operand<'a> {
    let data = m.as_ref().rows_range(rows.clone()).data;
    Operand { data, rows: rows.len(), cols: m.cols(), row_stride: m.cols(), col_stride: 1 }
}

fn rows_of_mut<'a>(m: &'a mut Matrix, rows: &Range<usize>) -> OperandMut<'a> {
    let cols = m.cols();
    OperandMut { data: m.as_mut().rows_range(rows.clone()).data, rows: rows.len(), cols, row_stride: cols }
}

fn transposed(o: Operand<'_>) -> Operand<'_> {
    Operand { rows: o.cols, cols: o.rows, row_stride: o.col_stride, col_stride: o.row_stride, ..o }
}

/// A matrix that tasks write parts of.
struct Shared<'a> {
    data: SharedData,
    rows: usize,
    cols: usize,
    matrix: std::marker::PhantomData<MatrixMut<'a>>,
}

enum SharedData {
    F32(*mut f32),
    Bf16(*mut bf16),
}

// SAFETY: it is written through `store` alone, whose callers promise that no two write the same elements.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(m: MatrixMut<'a>) -> Self {
        let (rows, cols) = (m.rows(), m.cols());
        let data = match m.data {
            SliceMut::F32(s) => SharedData::F32(s.as_mut_ptr()),
            SliceMut::Bf16(s) => SharedData::Bf16(s.as_mut_ptr()),
        };
        Shared { data, rows, cols, matrix: std::marker::PhantomData }
    }

    /// Writes `values [_, width]` from this row and column on.
    ///
    /// # Safety
    /// Nobody else touches these elements meanwhile.
    unsafe fn store(&self, row: usize, col: usize, width: usize, values: &[f32]) {
        let rows = values.len() / width;
        assert!(row + rows <= self.rows && col + width <= self.cols, "{rows} x {width} at {row}, {col}");
        for (i, values) in values.chunks_exact(width).enumerate() {
            let at = (row + i) * self.cols + col;
            match self.data {
                SharedData::F32(start) => {
                    // SAFETY: within the matrix by the assertion; ours alone by the caller's promise.
                    unsafe { std::slice::from_raw_parts_mut(start.add(at), width) }.copy_from_slice(values);
                }
                SharedData::Bf16(start) => {
                    // SAFETY: as above.
                    round(values, unsafe { std::slice::from_raw_parts_mut(start.add(at), width) });
                }
            }
        }
    }
}
