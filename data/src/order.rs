//! The order in which an epoch visits examples, and how they are packed into rows.
//!
//! Random numbers come from a counter hashed with the seed, the purpose and the epoch, so an epoch's order
//! depends on nothing that ran before it and a resumed run finds it again.

use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Examples (by index) that stand in one row, in order.
pub type Row = Vec<usize>;

/// Examples that are packed together: few enough that a row's neighbours stay random, many enough that rows
/// fill.
const WINDOW: usize = 8192;

/// Of steps whose rows are of similar length: those that are drawn together and sorted, at most.
const STEPS_TOGETHER: usize = 50;
/// So many such draws an epoch has at least, as far as there are steps.
const FEWEST_DRAWS: usize = 4;

/// How an epoch is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderSpec {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Whether the order is random; else it is that of the examples.
    pub shuffle: bool,
    /// Whether rows are filled with several examples; else each is a row of its own.
    pub packing: bool,
    /// The rows of an optimizer step, if those of a step are to be of similar length; not with `packing`.
    pub group: Option<usize>,
    /// The tokens that fit into a row.
    pub max_length: usize,
}

/// The rows of an epoch over examples of the given lengths: every example stands in exactly one row, and no
/// packed row is longer than `max_length`.
///
/// Packing is best-fit decreasing within windows of the (shuffled) order, then the rows are shuffled, so that
/// long examples do not gather at a window's beginning. Without `shuffle` rows are in the order of their
/// first example.
///
/// Grouping is that of transformers' `LengthGroupedSampler`: up to fifty steps' rows are drawn at random, and
/// the longest of them come first. That the longest row of all comes first in the epoch, so that memory which
/// does not suffice is found out early, is left out: the plan knows it before.
///
/// # Panics
/// If rows are both packed and grouped.
pub fn epoch_rows(lengths: &[usize], spec: &OrderSpec) -> Vec<Row> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    if spec.shuffle {
        Shuffle::new(spec.seed, "examples", spec.epoch).shuffle(&mut order);
    }
    if let Some(step) = spec.group {
        assert!(!spec.packing, "rows of {} tokens have nothing to be grouped by", spec.max_length);
        let steps = (order.len() / (step * FEWEST_DRAWS)).clamp(1, STEPS_TOGETHER);
        order.chunks_mut(steps * step).for_each(|drawn| drawn.sort_by_key(|&i| Reverse(lengths[i])));
    }
    if !spec.packing {
        return order.into_iter().map(|i| vec![i]).collect();
    }
    let mut rows: Vec<Row> =
        order.chunks(WINDOW).flat_map(|window| pack(window, lengths, spec.max_length)).collect();
    if spec.shuffle {
        Shuffle::new(spec.seed, "rows", spec.epoch).shuffle(&mut rows);
    } else {
        rows.iter_mut().for_each(|row| row.sort_unstable());
        rows.sort_unstable();
    }
    rows
}

/// Best-fit decreasing: the longest example first, each into the fullest row that still has room for it.
fn pack(window: &[usize], lengths: &[usize], max_length: usize) -> Vec<Row> {
    let mut longest_first = window.to_vec();
    longest_first.sort_by_key(|&i| Reverse(lengths[i]));
    let mut rows: Vec<Row> = Vec::new();
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for i in longest_first {
        let length = lengths[i];
        assert!(length <= max_length, "example {i} has {length} tokens, a row {max_length}");
        let (free, row) = match room.range((length, 0)..).next().copied() {
            Some(fit) => {
                room.remove(&fit);
                fit
            }
            None => {
                rows.push(Row::new());
                (max_length, rows.len() - 1)
            }
        };
        rows[row].push(i);
        room.insert((free - length, row));
    }
    rows
}

/// The share of `rows` that holds tokens, from 0 to 1.
pub fn fill(rows: &[Row], lengths: &[usize], max_length: usize) -> f64 {
    let tokens: usize = rows.iter().flatten().map(|&i| lengths[i]).sum();
    tokens as f64 / (rows.len() * max_length).max(1) as f64
}

/// A stream of random numbers for one purpose: SplitMix64 (Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators", 2014) started at a hash of seed, purpose and number.
#[derive(Clone, Debug)]
pub struct Shuffle {
    state: u64,
}

impl Shuffle {
    /// The stream for a purpose and, say, an epoch.
    pub fn new(seed: u64, purpose: &str, number: u64) -> Self {
        let start = Shuffle { state: seed };
        let named = purpose.bytes().fold(start, |stream, byte| stream.fork(u64::from(byte)));
        named.fork(number)
    }

    fn fork(mut self, number: u64) -> Self {
        Shuffle { state: self.next_u64() ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1) of 24 bits, so that sums with whole numbers are exact.
    pub fn fraction(&mut self) -> f64 {
        (self.next_u64() >> 40) as f64 / f64::from(1 << 24)
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Puts the items in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
