//! Tokens as numbers, and how often sequences of them stand in a text.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// The number of each token, from 0 in the order of first sight.
#[derive(Debug, Default)]
pub(super) struct Vocabulary(BTreeMap<String, u32>);

impl Vocabulary {
    /// The numbers of a text's tokens.
    pub(super) fn ids(&mut self, tokens: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<u32> {
        tokens.into_iter().map(|token| self.id(token.as_ref())).collect()
    }

    fn id(&mut self, token: &str) -> u32 {
        if let Some(&id) = self.0.get(token) {
            return id;
        }
        let id = self.0.len() as u32;
        self.0.insert(token.to_string(), id);
        id
    }

    /// How many tokens have numbers.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// n-grams in ascending order with how often each stands in a text.
pub(super) type Counts<'a> = Vec<(&'a [u32], u64)>;

/// The n-grams of a text; none if it is shorter than n, or n is 0.
pub(super) fn counts(tokens: &[u32], n: usize) -> Counts<'_> {
    if n == 0 {
        return Vec::new();
    }
    let mut grams: Vec<&[u32]> = tokens.windows(n).collect();
    grams.sort_unstable();
    let mut counts: Counts<'_> = Vec::new();
    for gram in grams {
        match counts.last_mut() {
            Some((last, count)) if *last == gram => *count += 1,
            _ => counts.push((gram, 1)),
        }
    }
    counts
}

/// How many n-grams two texts have in common, each as often as in the text that has fewer of it.
pub(super) fn overlap(a: &Counts<'_>, b: &Counts<'_>) -> u64 {
    let (mut i, mut j, mut same) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].0.cmp(b[j].0) {
            Ordering::Less => i += 1,
            Ordering::Greater => j += 1,
            Ordering::Equal => {
                same += a[i].1.min(b[j].1);
                i += 1;
                j += 1;
            }
        }
    }
    same
}

/// For each n-gram of either the larger count.
pub(super) fn union<'a>(a: Counts<'a>, b: Counts<'a>) -> Counts<'a> {
    let mut both = a;
    both.extend(b);
    // The larger count of equal ones comes first, and is the one that stays.
    both.sort_unstable_by(|(gram, count), (other, others)| gram.cmp(other).then(others.cmp(count)));
    both.dedup_by(|(later, _), (first, _)| later == first);
    both
}
