//! Causal attention on the host, tile by tile.
//!
//! A tile's rows are the queries of a few tokens for all heads of one group (row `r` is token `r / G`, head
//! `r % G` of the group), so keys and values are read once for the whole group; its columns are keys. Scores
//! of a tile live in this thread's scratch ([`call`]), whose size does not depend on the batch. Factors are
//! packed by whoever owns them: a block's queries once for all keys, and probabilities are written in packed
//! form ([`softmax`]).
//!
//! Forward, a task is a [`Block`] of tokens: it walks the keys that they see with the softmax kept up to
//! date. Backward, a task sweeps a range of tokens over a range of keys ([`Sweep`]). Where sequences are
//! short and many enough for the threads, one sweep per (segment, group) computes `dq`, `dk` and `dv` from
//! the same tiles. Else some sweeps compute `dq` for a block of tokens, others `dk` and `dv` for a range of
//! keys; every tile is then computed twice, but nothing has to be added up between threads. Either way each
//! sum runs over the same tiles in the same order, so the choice changes no byte of the result.

mod call;
mod shared;
mod softmax;

use std::cmp::Reverse;
use std::ops::Range;

use super::gemm::Packing;
use super::simd::LANES;
use crate::ops::attention::{Attention, Segment};
use crate::{Cpu, MatrixMut, MatrixRef, Precision};
use call::{Call, Gradients, Kept, with_scratch};
use shared::Shared;
use softmax::View;

/// Columns of a tile; a multiple of [`LANES`].
pub(crate) const KEYS: usize = 128;
/// Rows of a tile, unless a group has more heads.
const ROWS: usize = 128;
/// Elements of `dk` that a sweep can hold, and of `dv`: two megabytes each, 8192 keys at `D` = 64. They need
/// not stay in the second-level cache: each tile reads and writes as many bytes of them as its products take
/// time to multiply.
const SWEEP_ELEMENTS: usize = 1 << 19;
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
    let call = Call { isa: cpu.isa, packing: Packing::of(cpu.isa, precision), spec, q, k, v };
    let (out, lse) = (Shared::new(out), Shared::new(MatrixMut::from_f32(q.rows(), spec.heads, lse)));
    let blocks = blocks(cpu.threads(), spec, call.packing, segments);
    cpu.pool.run(blocks.len(), |task, _| {
        with_scratch(&call, |scratch| {
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
    let call = Call { isa: cpu.isa, packing: Packing::of(cpu.isa, precision), spec, q, k, v };
    let forward = Kept { out, lse, dout };
    let to = Gradients { dq: Shared::new(dq), dk: Shared::new(dk), dv: Shared::new(dv) };
    let sweeps = sweeps(cpu.threads(), spec, segments);
    cpu.pool.run(sweeps.len(), |task, _| {
        with_scratch(&call, |scratch| {
            // SAFETY: sweeps write different elements: `sweeps` divides tokens and keys.
            unsafe { call.sweep(&sweeps[task], &forward, &to, scratch) }
        })
    });
}

/// See [`Attention::thread_memory`].
pub(crate) fn thread_memory(spec: &Attention, precision: Precision, keys: usize) -> u64 {
    call::scratch_bytes(spec, precision.dtype().size(), keys)
}

/// A forward task: these tokens of a segment (counted from its first query), all heads of some groups.
struct Block<'a> {
    segment: &'a Segment,
    groups: Range<usize>,
    tokens: Range<usize>,
}

/// The forward pass as independent blocks, those that see the most keys first, so that no thread ends long
/// after the others. A block of few tokens, as in generation, takes as many groups as it has room for and as
/// leaves enough blocks for the threads: it then reads whole rows of keys and values.
fn blocks<'a>(threads: usize, spec: &Attention, packing: Packing, segments: &'a [Segment]) -> Vec<Block<'a>> {
    let step = tokens_of_tile(spec);
    let count: usize = segments.iter().map(|s| s.queries.len().div_ceil(step)).sum();
    let affordable = count * spec.kv_heads / (2 * threads);
    let mut blocks = Vec::new();
    for segment in segments {
        for tokens in parts(0..segment.queries.len(), step) {
            let rows = packing.rows(tokens.len() * spec.group());
            let room = (ROWS / rows).min(affordable).max(1);
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

/// A backward task: the tiles where these tokens see these keys (both counted from the segment's first), all
/// heads of a group.
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
            // Capped scores are scaled before.
            scale: if self.cap.is_some() { 1.0 } else { self.scale },
            window: self.window.unwrap_or(usize::MAX),
            position: segment.keys.len() - segment.queries.len() + tokens.start,
            keys: keys.clone(),
        }
    }
}

/// Tiles of a range of keys: cut at multiples of [`KEYS`], whatever the range, so that every sweep sees the
/// same ones. The first one begins at a multiple of [`LANES`], before the range perhaps: whole vectors of
/// columns are written.
fn tiles(keys: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let keys = keys.start / LANES * LANES..keys.end;
    (keys.start / KEYS..keys.end.div_ceil(KEYS))
        .map(move |i| intersection(&(i * KEYS..(i + 1) * KEYS), &keys))
}

fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
