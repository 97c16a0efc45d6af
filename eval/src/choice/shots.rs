//! Worked examples before a question.

use std::collections::BTreeMap;

use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64;

use super::{ChoiceError, Question};

/// Where a question's examples are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShotOrder {
    /// The first ones, the same for every question (but itself): MMLU's in lm-evaluation-harness.
    First,
    /// Drawn for each question anew, without one twice; the default there.
    Drawn {
        /// The same seed draws the same examples.
        seed: u64,
    },
}

/// A question that may be an example.
pub trait Example: PartialEq {
    /// What it belongs to, if there are groups: examples are of the question's own.
    fn group(&self) -> Option<&str>;
}

/// The questions that may be examples. A question's are of its group, and never it itself nor one that equals
/// it.
#[derive(Clone, Debug)]
pub struct Shots<'a, Q = Question> {
    pool: BTreeMap<Option<&'a str>, Vec<&'a Q>>,
    count: usize,
    order: ShotOrder,
}

impl<'a, Q: Example> Shots<'a, Q> {
    /// `count` examples for each question, from a pool that may be the evaluated questions themselves.
    pub fn new(pool: &'a [Q], count: usize, order: ShotOrder) -> Self {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for question in pool {
            groups.entry(question.group()).or_default().push(question);
        }
        Shots { pool: groups, count, order }
    }

    /// The examples of a question, in their order. What is drawn depends on the seed, the question's `number`
    /// (its row) and the pool alone, so that a part of a file is asked as the whole is.
    pub fn of(&self, question: &Q, number: u64) -> Result<Vec<&'a Q>, ChoiceError> {
        let pool = self.pool.get(&question.group()).map_or(&[][..], Vec::as_slice);
        let is_other = |other: &&'a Q| *other != question;
        let shots: Vec<&Q> = match self.order {
            ShotOrder::First => pool.iter().copied().filter(is_other).take(self.count).collect(),
            ShotOrder::Drawn { seed } => Permutation::new(pool.len(), seed, number)
                .map(|i| pool[i])
                .filter(is_other)
                .take(self.count)
                .collect(),
        };
        match shots.len() == self.count {
            true => Ok(shots),
            false => Err(ChoiceError::TooFewShots {
                wanted: self.count,
                found: shots.len(),
                group: question.group().map(String::from),
            }),
        }
    }
}

/// The numbers below `len` in random order: the shuffle of Fisher and Yates from the front, of which only the
/// places that were touched are kept, so that a few of many are drawn quickly.
struct Permutation {
    generator: Pcg64,
    next: usize,
    len: usize,
    moved: BTreeMap<usize, usize>,
}

impl Permutation {
    fn new(len: usize, seed: u64, stream: u64) -> Self {
        // Streams that begin at neighbouring numbers would begin alike.
        let generator = Pcg64::seed_from_u64(mixed(mixed(seed) ^ stream));
        Permutation { generator, next: 0, len, moved: BTreeMap::new() }
    }
}

impl Iterator for Permutation {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let (here, left) = (self.next, self.len.checked_sub(self.next).filter(|&left| left > 0)?);
        // The upper half of the product is a number below `left`, even but for one part in 2^64 / left.
        let offset = (u128::from(self.generator.next_u64()) * left as u128) >> 64;
        let there = here + offset as usize;
        let drawn = self.moved.get(&there).copied().unwrap_or(there);
        let moved = self.moved.get(&here).copied().unwrap_or(here);
        self.moved.insert(there, moved);
        self.next += 1;
        Some(drawn)
    }
}

/// Numbers that differ in a bit become numbers that differ in half of them: SplitMix64 (Steele et al., "Fast
/// Splittable Pseudorandom Number Generators", 2014).
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
