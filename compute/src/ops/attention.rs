//! Causal attention over segments of packed sequences, with grouped heads and an optional sliding window.
//!
//! For every segment, head `h` with its key head `κ = h / (H / K)`, query at position `p` of its sequence:
//!
//! ```text
//! s_j   = scale * q_p · k_j                    for the visible keys  max(0, p - window + 1) ..= p
//! s_j   = cap * tanh(s_j / cap)                where scores are capped (Gemma 2)
//! lse   = ln Σ_j exp(s_j)
//! out_p = Σ_j exp(s_j - lse) v_j
//! ```
//!
//! and backwards, with `P_pj = exp(s_pj - lse_p)` computed again and `δ_p = dout_p · out_p`:
//!
//! ```text
//! dv_j = Σ_p P_pj dout_p          dS_pj = P_pj (dout_p · v_j - δ_p) * scale
//! dk_j = Σ_p dS_pj q_p            dq_p  = Σ_j dS_pj k_j
//! ```
//!
//! (with a cap, `dS_pj` times `1 - (s_pj / cap)²`), where sums over `p` run over the heads of a group too.
//! Both directions work on tiles with the softmax kept up to date as keys go by (Dao, FlashAttention-2,
//! arXiv:2307.08691): no `T x T` matrix ever stands in memory, tiles above the diagonal or outside the window
//! cost nothing, and only `lse` is kept for the backward pass. The result of a segment depends on nothing but
//! that segment: not on its neighbours, not on the number of threads.

use std::ops::Range;
use std::sync::Arc;

use crate::cpu::attention as cpu;
use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, Precision};

/// Rows of a page of keys: those that are multiplied together.
pub const PAGE: usize = cpu::KEYS;

/// Where the keys of a sequence lie, and their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// In these rows.
    Rows(Range<usize>),
    /// In pages: key `i` in row `PAGE * pages[i / PAGE] + i % PAGE`.
    Pages {
        /// The sequence's pages, the first keys' first.
        pages: Arc<[u32]>,
        /// How many keys there are.
        len: usize,
    },
}

impl Keys {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Keys::Rows(rows) => rows.len(),
            Keys::Pages { len, .. } => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row of a key. Those up to the next multiple of [`PAGE`] lie behind it.
    pub fn row(&self, key: usize) -> usize {
        match self {
            Keys::Rows(rows) => rows.start + key,
            Keys::Pages { pages, .. } => PAGE * pages[key / PAGE] as usize + key % PAGE,
        }
    }

    /// The rows of some keys, in runs that lie together.
    pub fn runs(&self, keys: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let whole = match self {
            Keys::Rows(_) => usize::MAX,
            Keys::Pages { .. } => PAGE,
        };
        let mut next = keys.start;
        std::iter::from_fn(move || {
            let first = next;
            (first < keys.end).then(|| {
                next = keys.end.min((first / whole + 1).saturating_mul(whole));
                self.row(first)..self.row(first) + next - first
            })
        })
    }

    /// # Panics
    /// If they reach beyond a matrix of so many rows.
    fn check(&self, rows: usize) {
        match self {
            Keys::Rows(keys) => assert!(keys.end <= rows, "keys {keys:?} of {rows}"),
            Keys::Pages { pages, len } => {
                assert!(*len <= PAGE * pages.len(), "{len} keys in {} pages", pages.len());
                assert!(pages.iter().all(|&page| PAGE * (page as usize + 1) <= rows), "pages of {rows} rows");
            }
        }
    }

    /// The rows of keys that do not lie in pages.
    ///
    /// # Panics
    /// If they do: their gradients have no place.
    pub fn rows(&self) -> &Range<usize> {
        match self {
            Keys::Rows(rows) => rows,
            Keys::Pages { .. } => panic!("keys in pages are of sequences that are not trained on"),
        }
    }
}

impl From<Range<usize>> for Keys {
    fn from(rows: Range<usize>) -> Self {
        Keys::Rows(rows)
    }
}

/// One sequence's part of a batch.
///
/// The last query stands at the last key: query `i` of the segment is at position `p = keys.len() -
/// queries.len() + i` and sees keys `0 ..= p` of the segment. In training `queries == keys`; in generation
/// `keys` are rows of a cache and longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Rows of `q` and `out`.
    pub queries: Range<usize>,
    /// Of `k` and `v`; at least as many as queries.
    pub keys: Keys,
}

/// What kind of attention: the numbers that do not change from batch to batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads, `H`.
    pub heads: usize,
    /// Key and value heads, `K`; divides `heads`. Query head `h` reads key head `h / (H / K)`.
    pub kv_heads: usize,
    /// Head size, `D`.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(D)`; positive.
    pub scale: f32,
    /// A query at position `p` sees keys `p - window + 1 ..= p` only (the `sliding_window` of transformers).
    pub window: Option<usize>,
    /// Scores stay between `-cap` and `cap`; above 0.
    pub cap: Option<f32>,
}

/// `out [T, H*D]` and `lse [T, H]` (`f32`: the logarithm of each softmax's denominator, for [`backward`])
/// from `q [T, H*D]`, `k [S, K*D]`, `v [S, K*D]`, on the rows that segments name; other rows stay as they
/// are. `q`, `k`, `v` and `out` share one element type.
///
/// # Panics
/// If shapes or types do not agree, a segment reaches beyond its matrix or has more queries than keys, or two
/// segments share a query row. Key rows may be shared.
pub fn forward(
    device: &Device,
    precision: Precision,
    attention: &Attention,
    segments: &[Segment],
    q: MatrixRef<'_>,
    k: MatrixRef<'_>,
    v: MatrixRef<'_>,
    out: MatrixMut<'_>,
    lse: MatrixMut<'_>,
) {
    attention.check(segments, q, k, v);
    assert_eq!(
        (out.rows(), out.cols(), out.dtype()),
        (q.rows(), q.cols(), q.dtype()),
        "out is shaped like q"
    );
    assert_eq!((lse.rows(), lse.cols()), (q.rows(), attention.heads), "lse is [T, H]");
    assert_disjoint(segments, |s| &s.queries);
    let _watch = device.watch("attention", [q.home(), k.home(), v.home(), out.home(), lse.home()], || {
        attention.work(segments, 2, q.dtype().size())
    });
    match device {
        Device::Cpu(device) => cpu::forward(device, precision, attention, segments, q, k, v, out, lse.f32()),
        Device::Null(_) => {}
    }
}

/// `dq [T, H*D]`, `dk [S, K*D]`, `dv [S, K*D]` from what [`forward`] read and wrote and from `dout [T, H*D]`:
/// overwritten on the rows that segments name, untouched elsewhere. All but `lse` share one element type.
///
/// # Panics
/// As [`forward`], and if two segments share a key row.
pub fn backward(
    device: &Device,
    precision: Precision,
    attention: &Attention,
    segments: &[Segment],
    q: MatrixRef<'_>,
    k: MatrixRef<'_>,
    v: MatrixRef<'_>,
    out: MatrixRef<'_>,
    lse: MatrixRef<'_>,
    dout: MatrixRef<'_>,
    dq: MatrixMut<'_>,
    dk: MatrixMut<'_>,
    dv: MatrixMut<'_>,
) {
    attention.check(segments, q, k, v);
    for (name, m) in [("out", out), ("dout", dout), ("dq", dq.as_ref())] {
        assert_eq!(
            (m.rows(), m.cols(), m.dtype()),
            (q.rows(), q.cols(), q.dtype()),
            "{name} is shaped like q"
        );
    }
    for (name, m) in [("dk", dk.as_ref()), ("dv", dv.as_ref())] {
        assert_eq!(
            (m.rows(), m.cols(), m.dtype()),
            (k.rows(), k.cols(), k.dtype()),
            "{name} is shaped like k"
        );
    }
    assert_eq!((lse.rows(), lse.cols()), (q.rows(), attention.heads), "lse is [T, H]");
    assert_disjoint(segments, |s| &s.queries);
    assert_disjoint(segments, |s| s.keys.rows());
    let _watch = device.watch(
        "attention backward",
        [q.home(), k.home(), v.home(), out.home(), lse.home(), dout.home(), dq.home(), dk.home(), dv.home()],
        || attention.work(segments, 5, 2 * q.dtype().size()),
    );
    match device {
        Device::Cpu(device) => {
            cpu::backward(device, precision, attention, segments, q, k, v, out, lse.f32(), dout, dq, dk, dv)
        }
        Device::Null(_) => {}
    }
}

impl Attention {
    /// Bytes that a thread of the host comes to hold when it works on segments of at most this many keys.
    pub fn thread_memory(&self, precision: Precision, keys: usize) -> u64 {
        cpu::thread_memory(self, precision, keys)
    }

    /// Query heads that read one key head, `H / K`.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Work of so many products of all queries and the keys they see. Of each element of queries, results,
    /// keys and values `size` bytes are read or written.
    fn work(&self, segments: &[Segment], products: u64, size: usize) -> Work {
        let visible = |segment: &Segment| {
            let (queries, keys) = (segment.queries.len() as u64, segment.keys.len() as u64);
            let all = queries * (keys - queries) + queries * (queries + 1) / 2;
            let Some(window) = self.window.map(|window| window as u64) else { return all };
            // What lies before the window is a triangle, cut off where the queries begin.
            let hidden = |positions: u64| {
                positions.saturating_sub(window) * (positions.saturating_sub(window) + 1) / 2
            };
            all - (hidden(keys) - hidden(keys - queries))
        };
        let pairs: u64 = segments.iter().map(visible).sum();
        let elements = |s: &Segment| s.queries.len() * self.heads + s.keys.len() * self.kv_heads;
        let rows: usize = segments.iter().map(elements).sum();
        Work {
            flops: 2 * products * pairs * (self.heads * self.head_dim) as u64,
            bytes: (2 * rows * self.head_dim * size) as u64,
        }
    }

    fn check(&self, segments: &[Segment], q: MatrixRef<'_>, k: MatrixRef<'_>, v: MatrixRef<'_>) {
        let Attention { heads, kv_heads, head_dim, scale, window, cap } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads in {kv_heads} groups");
        assert!(head_dim > 0, "heads of size 0");
        assert!(scale > 0.0 && scale.is_finite(), "scale {scale}");
        assert_ne!(window, Some(0), "a window of 0 keys");
        assert!(cap.is_none_or(|cap| cap > 0.0), "a cap of {cap:?}");
        assert_eq!(q.cols(), heads * head_dim, "columns of q");
        assert_eq!((k.cols(), k.dtype()), (kv_heads * head_dim, q.dtype()), "k is [S, K*D], of q's type");
        assert_eq!((v.rows(), v.cols(), v.dtype()), (k.rows(), k.cols(), k.dtype()), "v is shaped like k");
        for s in segments {
            assert!(
                s.queries.len() <= s.keys.len(),
                "a segment of {:?} queries, {:?} keys",
                s.queries,
                s.keys
            );
            assert!(s.queries.end <= q.rows(), "queries {:?} of {}", s.queries, q.rows());
            s.keys.check(k.rows());
        }
    }
}

/// Several threads write the rows of different segments, so these must not overlap.
fn assert_disjoint(segments: &[Segment], rows: impl Fn(&Segment) -> &Range<usize>) {
    let mut ranges: Vec<_> = segments.iter().map(rows).filter(|r| !r.is_empty()).collect();
    ranges.sort_by_key(|r| r.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "segments share rows: {:?} and {:?}", pair[0], pair[1]);
    }
}
