//! Scores of items: a system's mean, the difference of two systems on the same items, and how sure both are.
//!
//! Everything rests on one idea: a statistic is a function of sums over units, and a unit is what would be
//! drawn anew if the experiment were repeated, an item or a whole group of items that belong together. The
//! bootstrap draws units with replacement, adds up their parts, and computes the statistic again
//! (`paired/resample.rs`). Two systems are drawn together, so that what makes an item hard for both cancels
//! out.
//!
//! Scores of 0 and 1, right and wrong, of items on their own are an exception: with few wrong answers, or few
//! that tell two systems apart, drawn sums take few values, and their intervals are too narrow. There the
//! score intervals of Wilson and Tango stand, and McNemar's test ([`McNemar`]), which hold their level from
//! 30 items on.

mod distributions;
mod mcnemar;
mod resample;

use serde::Serialize;

pub use mcnemar::McNemar;
pub(crate) use resample::{Table, percentile};

/// What this module's fallible functions return.
pub type Result<T, E = PairedError> = std::result::Result<T, E>;

/// Scores, or settings, of which no statistics can be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PairedError {
    /// Two lists that must have an entry for each item.
    #[error("{what} are {found}, but there are {expected} items; give one for each item, in the same order")]
    Lengths {
        /// What has another length.
        what: &'static str,
        /// How many items there are.
        expected: usize,
        /// How many entries there are.
        found: usize,
    },
    /// How sure a number is cannot be told from fewer than two units.
    #[error("an interval needs at least two {what}, and there are {found}")]
    TooFew {
        /// "items" or "groups of items".
        what: &'static str,
        /// How many there are.
        found: usize,
    },
    /// More units than can be drawn.
    #[error("{0} items are more than can be resampled")]
    TooMany(usize),
    /// A score that is no number.
    #[error("{what} of item {item} (counted from 0) is {value}; every score must be a finite number")]
    NotFinite {
        /// Which of its numbers.
        what: &'static str,
        /// Its place in the list.
        item: usize,
        /// What stands there.
        value: f64,
    },
    /// The statistic has no value, such as a ratio over nothing.
    #[error("{0} is not defined for these items")]
    Undefined(&'static str),
    /// A setting out of its range.
    #[error("`{field}` is {value}; {range}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// What it was set to.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
}

/// A statistic with an interval: of all experiments, the share that is called the level gives one that holds
/// the true value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// What the items come to.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Estimate {
    /// The estimate of a rising function of the statistic, such as the perplexity of a mean loss. The
    /// intervals here are made of ranks, so it has the coverage that the statistic itself has.
    pub fn map(self, rising: impl Fn(f64) -> f64) -> Self {
        Estimate { value: rising(self.value), low: rising(self.low), high: rising(self.high) }
    }

    /// Whether the interval holds a value.
    pub fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// Which items belong together: all questions of a subject, all passages of a document. Scores within a group
/// are alike, so that groups are what is drawn; an interval that draws their items one by one is too narrow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    of_item: Vec<usize>,
    count: usize,
}

impl Groups {
    /// Groups by their labels, one for each item.
    pub fn by<L: Ord>(labels: &[L]) -> Self {
        let mut distinct: Vec<&L> = labels.iter().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let of_item = labels.iter().map(|label| distinct.partition_point(|other| *other < label)).collect();
        Groups { of_item, count: distinct.len() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// What an item contributes to a ratio of sums: the loss summed over its tokens and their number, for a loss
/// per token; its score and 1, for a mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// What is summed above the line.
    pub sum: f64,
    /// What is summed below it.
    pub count: f64,
}

impl Part {
    /// A score of an item that counts once.
    pub fn score(score: f64) -> Self {
        Part { sum: score, count: 1.0 }
    }
}

/// How an interval is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// By drawing units anew.
    Bootstrap,
    /// By inverting score tests: scores of 0 and 1.
    Score,
}

/// Two systems on the same items.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The first system's mean, or ratio of sums.
    pub a: Estimate,
    /// The second system's.
    pub b: Estimate,
    /// The first less the second.
    pub difference: Estimate,
    /// Two-sided: one less the largest level at which the interval of the difference leaves out 0. So it is
    /// below 0.05 where the 95 % interval leaves out 0. Drawing cannot tell those apart that are smaller than
    /// a few parts in `resamples`.
    pub p_value: f64,
    /// How intervals and p-value were made.
    pub method: Method,
    /// How many items both answered.
    pub items: usize,
    /// How many items or groups were drawn.
    pub units: usize,
}

/// How intervals are made: units are drawn with replacement, and the interval is cut out of what the
/// statistic comes to.
///
/// It is cut bias-corrected and accelerated (BCa; Efron, "Better Bootstrap Confidence Intervals", 1987),
/// which allows for skewed scores, at levels that are widened for few units from the normal to Student's
/// distribution (Hesterberg, "What Teachers Should Know About the Bootstrap", 2014, section 4.4): plain
/// percentiles are too narrow by about a factor of √((n − 1)/n) and the ratio of both distributions'
/// quantiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bootstrap {
    /// How many times units are drawn anew, from 100 to a million.
    pub resamples: usize,
    /// Coverage of the intervals, between 0 and 1.
    pub level: f64,
    /// Which random numbers; the same seed gives the same bytes.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 10,000 resamples, intervals of 95 %.
    fn default() -> Self {
        Bootstrap { resamples: 10_000, level: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// A system's mean over items. Of scores of 0 and 1, the share of right answers: Wilson's interval for
    /// items on their own; with groups that are all right, or all wrong, an end that resampling leaves closed
    /// is Clopper and Pearson's (1934), with as many trials as there are groups.
    ///
    /// # Errors
    /// If a score is not finite, groups do not fit, or there are fewer than two units.
    pub fn mean(&self, scores: &[f64], groups: Option<&Groups>) -> Result<Estimate> {
        match (right_or_wrong(scores), groups) {
            (Some(right), None) => {
                check_level(self.level)?;
                check_units(right.len())?;
                let count = right.iter().filter(|&&right| right).count();
                Ok(mcnemar::wilson(count as f64, right.len() as f64, self.level))
            }
            (Some(_), Some(groups)) => {
                Ok(self.open_ended(self.ratio(&parts(scores), Some(groups))?, groups.count()))
            }
            (None, _) => self.ratio(&parts(scores), groups),
        }
    }

    /// A system's ratio of sums over items, such as the loss per token over texts of different length.
    ///
    /// # Errors
    /// As for [`mean`](Self::mean), and if the sum below the line is 0.
    pub fn ratio(&self, items: &[Part], groups: Option<&Groups>) -> Result<Estimate> {
        check(items, "the score")?;
        let table = Table::of(items.iter().map(|item| [item.sum, item.count]), groups)?;
        self.estimate(&table, "the ratio", |sums| sums[0] / sums[1])
    }

    /// The difference of two systems' means over the same items, in the same order. Of scores of 0 and 1 of
    /// items on their own, interval and p-value are those of [`McNemar`].
    ///
    /// # Errors
    /// As for [`mean`](Self::mean), and if one has more items than the other.
    pub fn difference(&self, a: &[f64], b: &[f64], groups: Option<&Groups>) -> Result<Comparison> {
        if let (Some(of_a), Some(of_b), None) = (right_or_wrong(a), right_or_wrong(b), groups) {
            check_units(of_a.len())?;
            let flips = McNemar::of(&of_a, &of_b, self.level)?;
            return Ok(Comparison {
                a: self.mean(a, None)?,
                b: self.mean(b, None)?,
                difference: flips.difference,
                p_value: flips.p_value,
                method: Method::Score,
                items: a.len(),
                units: a.len(),
            });
        }
        self.ratio_difference(&parts(a), &parts(b), groups)
    }

    /// The difference of two systems' ratios of sums over the same items, in the same order; counts may
    /// differ, as those of tokens do under two tokenizers.
    ///
    /// # Errors
    /// As for [`ratio`](Self::ratio), and if one has more items than the other.
    pub fn ratio_difference(&self, a: &[Part], b: &[Part], groups: Option<&Groups>) -> Result<Comparison> {
        if a.len() != b.len() {
            let what = "the second system's scores";
            return Err(PairedError::Lengths { what, expected: a.len(), found: b.len() });
        }
        check(a, "the first system's score")?;
        check(b, "the second system's score")?;
        let rows = a.iter().zip(b).map(|(a, b)| [a.sum, a.count, b.sum, b.count]);
        let table = Table::of(rows, groups)?;
        let draws = self.draw(&table, 3, |sums, out| {
            out[0] = sums[0] / sums[1];
            out[1] = sums[2] / sums[3];
            // Over a common denominator, so that equal differences of right answers are equal to the last
            // bit.
            out[2] = (sums[0] * sums[3] - sums[2] * sums[1]) / (sums[1] * sums[3]);
        })?;
        let estimate = |at: usize| draws[at].estimate(self.level).ok_or(PairedError::Undefined("the ratio"));
        Ok(Comparison {
            a: estimate(0)?,
            b: estimate(1)?,
            difference: estimate(2)?,
            p_value: draws[2].p_value(0.0),
            method: Method::Bootstrap,
            items: a.len(),
            units: table.units(),
        })
    }

    /// The interval of one statistic of sums over units.
    pub(crate) fn estimate(
        &self,
        table: &Table,
        what: &'static str,
        statistic: impl Fn(&[f64]) -> f64,
    ) -> Result<Estimate> {
        let draws = self.draw(table, 1, |sums, out| out[0] = statistic(sums))?;
        draws[0].estimate(self.level).ok_or(PairedError::Undefined(what))
    }

    /// The estimate of a rate with an end that is not closed where it was 0 or 1 in all of `units`: the true
    /// rate x for which as much, or more, has half of what the level leaves as probability, (1 − x)^units or
    /// x^units.
    pub(crate) fn open_ended(&self, rate: Estimate, units: usize) -> Estimate {
        let reach = 1.0 - ((1.0 - self.level) / 2.0).powf(1.0 / units.max(1) as f64);
        match rate.value {
            0.0 => Estimate { high: reach, ..rate },
            1.0 => Estimate { low: 1.0 - reach, ..rate },
            _ => rate,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if !(100..=1_000_000).contains(&self.resamples) {
            let range = "it may be 100 to 1000000";
            return Err(PairedError::Setting { field: "resamples", value: self.resamples as f64, range });
        }
        check_level(self.level)
    }
}

/// Whether a level is one.
pub(crate) fn check_level(level: f64) -> Result<()> {
    if level > 0.0 && level < 1.0 {
        return Ok(());
    }
    Err(PairedError::Setting {
        field: "level",
        value: level,
        range: "it must be between 0 and 1, such as 0.95",
    })
}

/// Scores as right and wrong, if they are all 0 or 1.
fn right_or_wrong(scores: &[f64]) -> Option<Vec<bool>> {
    scores.iter().map(|&score| (score == 0.0 || score == 1.0).then_some(score == 1.0)).collect()
}

fn check_units(items: usize) -> Result<()> {
    if items < 2 { Err(PairedError::TooFew { what: "items", found: items }) } else { Ok(()) }
}

fn parts(scores: &[f64]) -> Vec<Part> {
    scores.iter().copied().map(Part::score).collect()
}

fn check(items: &[Part], what: &'static str) -> Result<()> {
    for (item, part) in items.iter().enumerate() {
        if let Some(value) = [part.sum, part.count].into_iter().find(|number| !number.is_finite()) {
            return Err(PairedError::NotFinite { what, item, value });
        }
    }
    Ok(())
}
