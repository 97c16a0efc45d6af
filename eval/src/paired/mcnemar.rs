//! Right and wrong answers of two systems to the same items.

use serde::Serialize;

use super::distributions::{bisect, fair_coin, normal_below, normal_quantile};
use super::{Estimate, PairedError, Result, check_level};

/// How two systems' right and wrong answers fall together, and McNemar's test of whether one is right more
/// often (McNemar, "Note on the sampling error of the difference between correlated proportions", 1947).
///
/// Only flips, items that just one of them got right, tell the two apart: if both are equally good, each flip
/// goes either way like a fair coin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Items that both got right.
    pub both_right: u64,
    /// Items that only the first system got right.
    pub only_a: u64,
    /// Items that only the second system got right.
    pub only_b: u64,
    /// Items that both got wrong.
    pub both_wrong: u64,
    /// The first system's share of right answers less the second's, with Tango's score interval.
    pub difference: Estimate,
    /// McNemar's score test, two-sided and without a correction for continuity. It is the one to report: a
    /// true null comes out below 0.05 in close to 5 % of all experiments even with few flips, and below 0.05
    /// is where the 95 % interval leaves out 0.
    pub p_value: f64,
    /// The mid-p value, two-sided: the exact test in which half of the probability of what was seen counts.
    /// Nearly never above its level, and with fewer than some twenty flips below it (Fagerland, Lydersen and
    /// Laake, "The McNemar test for binary matched-pairs data: mid-p and asymptotic are better than exact
    /// conditional", 2013).
    pub mid_p_value: f64,
    /// The exact binomial test, two-sided: below 0.05 in at most 5 % of all experiments, which with few flips
    /// means in far fewer. For claims that must not be wrong more often than they say.
    pub exact_p_value: f64,
}

impl McNemar {
    /// Compares two systems' answers, right or not, to the same items in the same order. `level` is the
    /// coverage of the difference's interval.
    ///
    /// # Errors
    /// If there are no items, one list is longer, or the level is not between 0 and 1.
    pub fn of(a: &[bool], b: &[bool], level: f64) -> Result<Self> {
        if a.len() != b.len() {
            let what = "the second system's answers";
            return Err(PairedError::Lengths { what, expected: a.len(), found: b.len() });
        }
        let count = |of_a, of_b| a.iter().zip(b).filter(|&(&a, &b)| (a, b) == (of_a, of_b)).count() as u64;
        McNemar::of_counts(
            [count(true, true), count(true, false), count(false, true), count(false, false)],
            level,
        )
    }

    /// The same from counts: both right, only the first, only the second, both wrong.
    ///
    /// # Errors
    /// If all counts are 0, or the level is not between 0 and 1.
    pub fn of_counts([both_right, only_a, only_b, both_wrong]: [u64; 4], level: f64) -> Result<Self> {
        check_level(level)?;
        let items = [both_right, only_a, only_b, both_wrong].into_iter().fold(0, u64::saturating_add);
        if items == 0 {
            return Err(PairedError::TooFew { what: "items", found: 0 });
        }
        let (up_to, at) = fair_coin(only_a.min(only_b), only_a.saturating_add(only_b));
        Ok(McNemar {
            both_right,
            only_a,
            only_b,
            both_wrong,
            difference: tango(only_a as f64, only_b as f64, items as f64, level),
            p_value: 2.0 * normal_below(-flip_score(only_a as f64, only_b as f64).abs()),
            mid_p_value: (2.0 * up_to - at).min(1.0),
            exact_p_value: (2.0 * up_to).min(1.0),
        })
    }
}

/// By how many standard deviations the flips differ from those of a fair coin.
fn flip_score(only_a: f64, only_b: f64) -> f64 {
    if only_a == only_b { 0.0 } else { (only_a - only_b) / (only_a + only_b).sqrt() }
}

/// Wilson's score interval for a share of items ("Probable inference, the law of succession, and statistical
/// inference", 1927).
pub(super) fn wilson(right: f64, items: f64, level: f64) -> Estimate {
    let z = normal_quantile((1.0 + level) / 2.0);
    let (value, square) = (right / items, z * z / items);
    let middle = (value + square / 2.0) / (1.0 + square);
    let reach = (value * (1.0 - value) * square + square * square / 4.0).sqrt() / (1.0 + square);
    Estimate { value, low: (middle - reach).clamp(0.0, value), high: (middle + reach).clamp(value, 1.0) }
}

/// The score interval for the difference of two shares of the same items (Tango, "Equivalence test and
/// confidence interval for the difference in proportions for the paired-sample design", Statistics in
/// Medicine 17 (1998)): all differences that a score test does not reject. It does not collapse where there
/// are no flips.
fn tango(only_a: f64, only_b: f64, items: f64, level: f64) -> Estimate {
    let z = normal_quantile((1.0 + level) / 2.0);
    // How far the flips are from a true difference, in units of the error that they would have under it.
    let score = |delta: f64| {
        // The likeliest share of items that only the second got right, given the difference (equations 14,
        // 15).
        let (square, free) = (2.0 * items, -only_b * delta * (1.0 - delta));
        let linear = (2.0 * items - only_a + only_b) * delta - only_a - only_b;
        let share = ((linear * linear - 4.0 * square * free).max(0.0).sqrt() - linear) / (2.0 * square);
        let variance = items * (2.0 * share + delta * (1.0 - delta)).max(0.0);
        (only_a - only_b - items * delta) / variance.sqrt()
    };
    let value = (only_a - only_b) / items;
    // The score falls with the difference; at ±1 it has no variance, which is as far as the ends can be.
    let (mut below_low, mut low) = (-1.0, value);
    bisect(&mut below_low, &mut low, |delta| score(delta) > z);
    let (mut high, mut above_high) = (value, 1.0);
    bisect(&mut high, &mut above_high, |delta| score(delta) >= -z);
    Estimate { value, low, high }
}
