//! Causal attention on the host, tile by tile.
//!
//! A tile's rows are the queries of a few tokens for all heads of one group (row `r` is token `r / G`, head `r % G` of
//! the group), so keys and values are read once for the whole group; its columns are keys. Scores of a tile live in
//! this thread's scratch, whose size does not depend on the batch.
//!
//! Forward, a task is a (segment, group, block of tokens): it walks the keys that the block sees with the softmax kept
//! up to date. Backward, a task sweeps a range of tokens over a range of keys ([`Sweep`]). Where sequences are short
//! and many enough for the threads, one sweep per (segment, group) computes `dq`, `dk` and `dv` from the same tiles. Else
//! some sweeps compute `dq` for a block of tokens, others `dk` and `dv` for a range of keys; every tile is then
//! computed twice, but nothing has to be added up between threads. Either way each sum runs over the same tiles in the
//! same order, so the choice changes no byte of the result.

mod softmax;

use std::cell::RefCell;
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
/// Keys whose `dk` and `dv` a sweep can hold, a multiple of [`KEYS`]: at `D` = 128 they take half a megabyte.
const SWEEP_KEYS: usize = 512;

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
    let step = tokens_of_tile(spec);
    let mut tasks = Vec::new();
    for segment in segments {
        // The last tokens see the most keys: begin with them, so that no thread ends long after the others.
        for first in (0..segment.queries.len()).step_by(step).rev() {
            let tokens = first..segment.queries.len().min(first + step);
            tasks.extend((0..spec.kv_heads).map(|group| Block { segment, group, tokens: tokens.clone() }));
        }
    }
    cpu.pool.run(tasks.len(), |task, _| {
        with_scratch(spec, precision, q.dtype(), |scratch| {
            let block = &tasks[task];
            call.attend(block, scratch);
            // SAFETY: tasks are of different blocks, which write different elements.
            unsafe { call.store_attended(block, scratch, &out, &lse) }
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

/// A forward task: these tokens of a segment (counted from its first query), all heads of a group.
struct Block<'a> {
    segment: &'a Segment,
    group: usize,
    tokens: Range<usize>,
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

/// The backward pass as independent sweeps.
fn sweeps<'a>(threads: usize, spec: &Attention, segments: &'a [Segment]) -> Vec<Sweep<'a>> {
    let enough = segments.len() * spec.kv_heads >= threads;
    let step = tokens_of_tile(spec);
    let mut sweeps = Vec::new();
    for segment in segments {
        let (tokens, keys) = (0..segment.queries.len(), 0..segment.keys.len());
        let whole =
            |group| Sweep { segment, group, tokens: tokens.clone(), keys: keys.clone(), dq: true, dkv: true };
        if enough && keys.len() <= SWEEP_KEYS {
            sweeps.extend((0..spec.kv_heads).map(whole));
            continue;
        }
        for first in keys.clone().step_by(SWEEP_KEYS) {
            let keys = first..keys.end.min(first + SWEEP_KEYS);
            sweeps.extend((0..spec.kv_heads).map(|g| Sweep { keys: keys.clone(), dq: false, ..whole(g) }));
        }
        for first in tokens.clone().step_by(step).rev() {
            let tokens = first..tokens.end.min(first + step);
            sweeps.extend((0..spec.kv_heads).map(|g| Sweep {
                tokens: tokens.clone(),
                dkv: false,
                ..whole(g)
            }));
        }
    }
    sweeps
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
    /// Leaves `Σ_j exp(s_j - max) v_j` of every row in `scratch.sums`, its `max` and `Σ_j exp(s_j - max)` beside it.
    fn attend(&self, block: &Block<'_>, scratch: &mut Scratch) {
        let Block { segment, group, tokens } = block;
        let rows = self.load(self.q, segment, *group, tokens, &mut scratch.q);
        scratch.max[..rows].fill(f32::NEG_INFINITY);
        scratch.denominator[..rows].fill(0.0);
        scratch.sums.top_mut(rows).clear();
        for keys in tiles(self.spec.visible_to(segment, tokens)) {
            let [k, v] = [self.k, self.v].map(|m| self.keys(m, segment, *group, &keys));
            self.product(
                plain(&scratch.q, rows),
                transposed(k),
                false,
                tile(&mut scratch.scores, rows, keys.len()),
            );
            let view = self.spec.view(segment, tokens, &keys);
            let scores = scratch.scores.as_ref().f32();
            let running = Running {
                max: &mut scratch.max[..rows],
                denominator: &mut scratch.denominator[..rows],
                sums: scratch.sums.top_mut(rows).f32(),
                factor: &mut scratch.factor[..rows],
            };
            by_dtype!(self.precision.dtype(), P => {
                softmax::step(self.isa, &view, scores, P::of_mut(scratch.p.as_mut()), running)
            });
            self.product(block_of(&scratch.p, rows, keys.len()), v, true, whole(&mut scratch.sums, rows));
        }
    }

    /// Writes what [`Call::attend`] left: `out` and `lse` of the block.
    ///
    /// # Safety
    /// Nobody else touches these rows of this group meanwhile.
    unsafe fn store_attended(
        &self,
        block: &Block<'_>,
        scratch: &mut Scratch,
        out: &Shared<'_>,
        lse: &Shared<'_>,
    ) {
        let Block { segment, group, tokens } = block;
        let (heads, d) = (self.spec.group(), self.spec.head_dim);
        let rows = tokens.len() * heads;
        let sums = scratch.sums.as_mut().f32();
        for ((sums, denominator), max) in
            sums.chunks_exact_mut(d).zip(&scratch.denominator[..rows]).zip(&mut scratch.max)
        {
            let factor = 1.0 / denominator;
            sums.iter_mut().for_each(|s| *s *= factor);
            *max += denominator.ln();
        }
        for (i, token) in tokens.clone().enumerate() {
            let row = segment.queries.start + token;
            // SAFETY: the caller's promise.
            unsafe {
                out.store(row, group * heads * d, &sums[i * heads * d..][..heads * d]);
                lse.store(row, group * heads, &scratch.max[i * heads..][..heads]);
            }
        }
    }

    /// # Safety
    /// Nobody else touches what the sweep writes meanwhile: `dq` of its tokens, `dk` and `dv` of its keys, in its group.
    unsafe fn sweep(&self, sweep: &Sweep<'_>, kept: &Kept<'_>, to: &Gradients<'_>, scratch: &mut Scratch) {
        let Sweep { segment, group, tokens, keys, dq, dkv } = sweep;
        let (heads, d) = (self.spec.group(), self.spec.head_dim);
        if *dkv {
            scratch.dk.top_mut(keys.len()).clear();
            scratch.dv.top_mut(keys.len()).clear();
        }
        let step = tokens_of_tile(self.spec);
        for first in tokens.clone().step_by(step) {
            let tokens = first..tokens.end.min(first + step);
            let visible = intersection(&self.spec.visible_to(segment, &tokens), keys);
            if visible.is_empty() {
                continue;
            }
            let rows = self.load_backward(kept, segment, *group, &tokens, scratch);
            if *dq {
                scratch.sums.top_mut(rows).clear();
            }
            for tile_keys in tiles(visible) {
                self.score_gradients(segment, *group, &tokens, &tile_keys, scratch);
                let n = tile_keys.len();
                if *dkv {
                    let (p, ds) = (block_of(&scratch.p, rows, n), block_of(&scratch.ds, rows, n));
                    let at = tile_keys.start - keys.start;
                    let [dk, dv] = [&mut scratch.dk, &mut scratch.dv].map(|m| rows_of(m, at..at + n));
                    self.product(transposed(p), plain(&scratch.dout, rows), true, dv);
                    self.product(transposed(ds), plain(&scratch.q, rows), true, dk);
                }
                if *dq {
                    let k = self.keys(self.k, segment, *group, &tile_keys);
                    self.product(block_of(&scratch.ds, rows, n), k, true, whole(&mut scratch.sums, rows));
                }
            }
            for (i, token) in tokens.clone().enumerate().filter(|_| *dq) {
                let sums = &scratch.sums.as_ref().f32()[i * heads * d..][..heads * d];
                // SAFETY: the caller's promise.
                unsafe { to.dq.store(segment.queries.start + token, group * heads * d, sums) }
            }
        }
        for (i, key) in keys.clone().enumerate().filter(|_| *dkv) {
            let row = segment.keys.start + key;
            // SAFETY: the caller's promise.
            unsafe {
                to.dk.store(row, group * d, &scratch.dk.as_ref().f32()[i * d..][..d]);
                to.dv.store(row, group * d, &scratch.dv.as_ref().f32()[i * d..][..d]);
            }
        }
    }

    /// Loads what a block of tokens contributes to the backward pass: `q`, `dout`, `lse`, `δ`. Returns the rows of its
    /// tiles.
    fn load_backward(
        &self,
        kept: &Kept<'_>,
        segment: &Segment,
        group: usize,
        tokens: &Range<usize>,
        scratch: &mut Scratch,
    ) -> usize {
        let (heads, d) = (self.spec.group(), self.spec.head_dim);
        let rows = self.load(self.q, segment, group, tokens, &mut scratch.q);
        self.load(kept.dout, segment, group, tokens, &mut scratch.dout);
        self.load(kept.out, segment, group, tokens, &mut scratch.out);
        by_dtype!(self.q.dtype(), X => {
            let (out, dout) = (X::of(scratch.out.top(rows)), X::of(scratch.dout.top(rows)));
            dots::<X>(out, dout, d, &mut scratch.delta[..rows])
        });
        for (lse, token) in scratch.lse.chunks_exact_mut(heads).zip(tokens.clone()) {
            let at = (segment.queries.start + token) * self.spec.heads + group * heads;
            lse.copy_from_slice(&kept.lse[at..at + heads]);
        }
        rows
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
        let rows = tokens.len() * self.spec.group();
        let [k, v] = [self.k, self.v].map(|m| self.keys(m, segment, group, keys));
        self.product(
            plain(&scratch.q, rows),
            transposed(k),
            false,
            tile(&mut scratch.scores, rows, keys.len()),
        );
        self.product(
            plain(&scratch.dout, rows),
            transposed(v),
            false,
            tile(&mut scratch.dp, rows, keys.len()),
        );
        let view = self.spec.view(segment, tokens, keys);
        let products = (scratch.scores.as_ref().f32(), scratch.dp.as_ref().f32());
        let per_row = (&scratch.lse[..rows], &scratch.delta[..rows]);
        by_dtype!(self.precision.dtype(), P => {
            let to = (P::of_mut(scratch.p.as_mut()), P::of_mut(scratch.ds.as_mut()));
            softmax::gradient(self.isa, &view, products, per_row, to)
        });
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

    /// Copies these tokens' rows for all heads of a group, so that they stand `D` apart. Returns the number of rows.
    fn load(
        &self,
        m: MatrixRef<'_>,
        segment: &Segment,
        group: usize,
        tokens: &Range<usize>,
        to: &mut Matrix,
    ) -> usize {
        let width = self.spec.group() * self.spec.head_dim;
        let starts = tokens.clone().map(|t| (segment.queries.start + t) * m.cols() + group * width);
        match (m.data, to.as_mut().data) {
            (Slice::F32(from), SliceMut::F32(to)) => copy_rows(from, starts, width, to),
            (Slice::Bf16(from), SliceMut::Bf16(to)) => copy_rows(from, starts, width, to),
            _ => unreachable!("scratch has the type of q"),
        }
        tokens.len() * self.spec.group()
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
    fn convert<X: Element>(from: &[f32], to: &mut [X]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = X::store(*from));
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
    /// `[SWEEP_KEYS, D]` each, `f32`.
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
    fn new(spec: &Attention, precision: Precision, dtype: DType) -> Self {
        let (rows, d) = (tokens_of_tile(spec) * spec.group(), spec.head_dim);
        let [q, out, dout] = [(); 3].map(|()| Matrix::zeros(rows, d, dtype));
        let [scores, dp] = [(); 2].map(|()| Matrix::zeros(rows, KEYS, DType::F32));
        let [p, ds] = [(); 2].map(|()| Matrix::zeros(rows, KEYS, precision.dtype()));
        let [dk, dv] = [(); 2].map(|()| Matrix::zeros(SWEEP_KEYS, d, DType::F32));
        let [max, denominator, factor, lse, delta] = [(); 5].map(|()| vec![0.0; rows]);
        let sums = Matrix::zeros(rows, d, DType::F32);
        let made_for = (spec.group(), d, dtype, precision);
        Scratch {
            made_for,
            q,
            out,
            dout,
            scores,
            dp,
            p,
            ds,
            sums,
            dk,
            dv,
            max,
            denominator,
            factor,
            lse,
            delta,
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

/// The first `rows` rows.
fn plain(m: &Matrix, rows: usize) -> Operand<'_> {
    Operand { data: m.as_ref().data, rows, cols: m.cols(), row_stride: m.cols(), col_stride: 1 }
}

/// The first columns of the first rows.
fn block_of(m: &Matrix, rows: usize, cols: usize) -> Operand<'_> {
    Operand { cols, ..plain(m, rows) }
}

fn transposed(o: Operand<'_>) -> Operand<'_> {
    Operand { rows: o.cols, cols: o.rows, row_stride: o.col_stride, col_stride: o.row_stride, ..o }
}

fn whole(m: &mut Matrix, rows: usize) -> OperandMut<'_> {
    let cols = m.cols();
    tile(m, rows, cols)
}

fn tile(m: &mut Matrix, rows: usize, cols: usize) -> OperandMut<'_> {
    let row_stride = m.cols();
    OperandMut { data: m.as_mut().data, rows, cols, row_stride }
}

fn rows_of(m: &mut Matrix, rows: Range<usize>) -> OperandMut<'_> {
    let (count, cols) = (rows.len(), m.cols());
    OperandMut { data: m.as_mut().rows_range(rows).data, rows: count, cols, row_stride: cols }
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

    /// Writes `values` at this row, from this column on.
    ///
    /// # Safety
    /// Nobody else touches these elements meanwhile.
    unsafe fn store(&self, row: usize, col: usize, values: &[f32]) {
        assert!(
            row < self.rows && col + values.len() <= self.cols,
            "row {row}, column {col} of {}",
            self.cols
        );
        let at = row * self.cols + col;
        match self.data {
            SharedData::F32(start) => {
                // SAFETY: within the matrix by the assertion; ours alone by the caller's promise.
                unsafe { std::slice::from_raw_parts_mut(start.add(at), values.len()) }
                    .copy_from_slice(values);
            }
            SharedData::Bf16(start) => {
                // SAFETY: as above.
                convert::<bf16>(values, unsafe {
                    std::slice::from_raw_parts_mut(start.add(at), values.len())
                });
            }
        }
    }
}
