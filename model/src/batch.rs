//! The one shape of input: tokens of many sequences, end to end, without padding.

use std::ops::Range;
use std::sync::Arc;

use compute::ops::attention::{Keys, PAGE, Segment};
use compute::random;

/// The label of a token that carries no loss, as in transformers.
pub const IGNORE: i32 = -100;

/// A row whose next token is to be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The row of the batch that predicts.
    pub row: usize,
    /// The token that follows.
    pub token: u32,
}

/// Tokens of one forward pass: `T` rows, cut into segments that do not see each other.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids `[T]`.
    pub ids: Vec<u32>,
    /// Position of each token in its own sequence `[T]`.
    pub positions: Vec<u32>,
    /// Which rows form a sequence, and which keys they attend to: rows of the batch itself, or of a cache.
    pub segments: Vec<Segment>,
    /// The rows that carry loss, in order.
    pub targets: Vec<Target>,
    /// Which example each segment is, by its number in the run, for dropout's masks and for buffers that
    /// [keep] something of examples; else empty.
    ///
    /// [keep]: crate::FrozenActivations
    pub examples: Vec<usize>,
    /// Rows whose keys and values stand in a cache a second time, for a sequence that goes on from theirs: which
    /// rows, and in which of the cache's.
    pub(crate) copies: Vec<(Range<usize>, Range<usize>)>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// A name for each row that depends on its example and its position there alone: by these dropout's masks
    /// are drawn. Segments without a number in the run count from 0.
    pub(crate) fn row_names(&self) -> impl Iterator<Item = u64> + '_ {
        self.segments.iter().enumerate().flat_map(|(i, segment)| {
            let example = self.examples.get(i).copied().unwrap_or(i);
            let positions = &self.positions[segment.queries.clone()];
            positions.iter().map(move |&position| random::key(example as u64, u64::from(position)))
        })
    }

    /// Appends a sequence. `labels` are not shifted: the label of token `i` is what row `i - 1` should
    /// predict, so `labels[0]` never carries loss.
    ///
    /// # Panics
    /// If the two slices differ in length, or a label is negative and not [`IGNORE`].
    pub fn push(&mut self, ids: &[u32], labels: &[i32]) {
        assert_eq!(ids.len(), labels.len(), "one label a token");
        let start = self.push_unlabelled(ids);
        for (i, &label) in labels.iter().enumerate().skip(1) {
            if label != IGNORE {
                let token = u32::try_from(label).expect("labels were checked when the example was read");
                self.targets.push(Target { row: start + i - 1, token });
            }
        }
    }

    /// Appends the sequences of another batch.
    ///
    /// # Panics
    /// If only one of them says which examples its sequences are, or the other's keys lie in a cache's pages.
    pub fn append(&mut self, other: &Batch) {
        let numbered = |batch: &Batch| batch.examples.len() == batch.segments.len();
        let same = self.segments.is_empty() || numbered(self) == numbered(other);
        assert!(same, "batches with and without numbers of examples");
        let start = self.tokens();
        let moved = |rows: &std::ops::Range<usize>| rows.start + start..rows.end + start;
        self.ids.extend_from_slice(&other.ids);
        self.positions.extend_from_slice(&other.positions);
        let segments = other.segments.iter();
        let moved = |s: &Segment| Segment { queries: moved(&s.queries), keys: moved(s.keys.rows()).into() };
        self.segments.extend(segments.map(moved));
        let targets = other.targets.iter();
        self.targets.extend(targets.map(|target| Target { row: target.row + start, ..*target }));
        self.examples.extend_from_slice(&other.examples);
    }

    /// Appends a sequence without targets and returns its first row.
    pub fn push_unlabelled(&mut self, ids: &[u32]) -> usize {
        let start = self.tokens();
        self.ids.extend_from_slice(ids);
        self.positions.extend(0..ids.len() as u32);
        let rows = start..self.tokens();
        self.segments.push(Segment { queries: rows.clone(), keys: rows.into() });
        start
    }

    /// Appends a sequence whose first `cached` tokens are already in cache rows `slots`; the new rows' keys
    /// are written behind them. Returns the first row.
    ///
    /// # Panics
    /// If the cache rows cannot hold the sequence.
    pub fn push_cached(&mut self, ids: &[u32], cached: usize, slots: std::ops::Range<usize>) -> usize {
        let length = cached + ids.len();
        assert!(length <= slots.len(), "{length} tokens in {} cache rows", slots.len());
        self.push_behind(ids, Keys::Rows(slots.start..slots.start + length))
    }

    /// Appends a sequence whose keys, those of the new rows last, lie in these pages of a cache. Returns the
    /// first row.
    ///
    /// # Panics
    /// If the pages cannot hold the sequence.
    pub fn push_paged(&mut self, ids: &[u32], cached: usize, pages: Arc<[u32]>) -> usize {
        let len = cached + ids.len();
        assert!(len <= PAGE * pages.len(), "{len} tokens in {} pages", pages.len());
        self.push_behind(ids, Keys::Pages { pages, len })
    }

    /// Appends tokens that follow a sequence of this batch, as others may, too: that one's rows are `stem`, all
    /// of it. `pages` begin with the sequence's own full pages; of the rest of it the pages hold copies. Returns
    /// the first row.
    ///
    /// # Panics
    /// If the pages cannot hold the sequence, or `stem` is no beginning.
    pub fn push_branch(&mut self, ids: &[u32], stem: Range<usize>, pages: Arc<[u32]>) -> usize {
        let (cached, len) = (stem.len(), stem.len() + ids.len());
        assert!(self.positions[stem.start] == 0, "a branch follows a whole sequence");
        assert!(len <= PAGE * pages.len(), "{len} tokens in {} pages", pages.len());
        let ragged = cached % PAGE;
        if ragged > 0 {
            let to = PAGE * pages[cached / PAGE] as usize;
            self.copies.push((stem.end - ragged..stem.end, to..to + ragged));
        }
        self.push_behind(ids, Keys::Pages { pages, len })
    }

    /// Appends the last tokens of a sequence.
    fn push_behind(&mut self, ids: &[u32], keys: Keys) -> usize {
        let (start, length) = (self.tokens(), keys.len());
        self.ids.extend_from_slice(ids);
        self.positions.extend((length - ids.len()) as u32..length as u32);
        self.segments.push(Segment { queries: start..self.tokens(), keys });
        start
    }
}
