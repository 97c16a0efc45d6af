//! Drawing units with replacement, and cutting intervals out of what a statistic comes to.

use std::cmp::Ordering;

use rand::{RngCore, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::distributions::{normal_below, normal_of_student, normal_quantile, student_of_normal};
use super::{Bootstrap, Estimate, Groups, PairedError, Result};

/// What is summed, by unit: a row for each item or group that can be drawn.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// `units × columns`, rows end to end.
    rows: Vec<f64>,
    columns: usize,
}

impl Table {
    /// A row for each item, or for each group the sum of its items' rows.
    pub(crate) fn of<const K: usize>(
        items: impl ExactSizeIterator<Item = [f64; K]>,
        groups: Option<&Groups>,
    ) -> Result<Self> {
        let table = match groups {
            None => Table { rows: items.flatten().collect(), columns: K },
            Some(groups) if groups.of_item.len() != items.len() => {
                let (expected, found) = (items.len(), groups.of_item.len());
                return Err(PairedError::Lengths { what: "labels of groups", expected, found });
            }
            Some(groups) => {
                let mut table = Table::zero(groups.count, K);
                for (item, &group) in items.zip(&groups.of_item) {
                    table.row(group).iter_mut().zip(item).for_each(|(sum, part)| *sum += part);
                }
                table
            }
        };
        match table.units() {
            found @ 0..2 => {
                let what = if groups.is_some() { "groups of items" } else { "items" };
                Err(PairedError::TooFew { what, found })
            }
            _ => Ok(table),
        }
    }

    /// A table of zeros.
    pub(crate) fn zero(units: usize, columns: usize) -> Self {
        Table { rows: vec![0.0; units * columns], columns }
    }

    /// A unit's row.
    pub(crate) fn row(&mut self, unit: usize) -> &mut [f64] {
        &mut self.rows[unit * self.columns..][..self.columns]
    }

    /// How many units can be drawn.
    pub(crate) fn units(&self) -> usize {
        self.rows.len() / self.columns.max(1)
    }

    /// The sums over all units.
    pub(crate) fn sums(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        for row in self.rows.chunks_exact(self.columns.max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, part)| *sum += part);
        }
        sums
    }

    /// The sums over as many units as there are, each drawn from all.
    fn draw(&self, random: &mut Pcg64Mcg, sums: &mut [f64]) {
        // Sums of few columns stay in registers.
        match self.columns {
            1 => draw_rows::<1>(&self.rows, random, sums),
            2 => draw_rows::<2>(&self.rows, random, sums),
            3 => draw_rows::<3>(&self.rows, random, sums),
            4 => draw_rows::<4>(&self.rows, random, sums),
            columns => {
                sums.fill(0.0);
                let units = self.units();
                let mut add = |unit: usize| {
                    let row = &self.rows[unit * columns..][..columns];
                    sums.iter_mut().zip(row).for_each(|(sum, part)| *sum += part);
                };
                each_drawn(units, random, |first, second| {
                    add(first);
                    second.into_iter().for_each(&mut add);
                });
            }
        }
    }
}

fn draw_rows<const K: usize>(rows: &[f64], random: &mut Pcg64Mcg, sums: &mut [f64]) {
    let (rows, _) = rows.as_chunks::<K>();
    // Two sums, so that an addition need not wait for the one before it.
    let (mut even, mut odd) = ([0.0; K], [0.0; K]);
    each_drawn(rows.len(), random, |first, second| {
        (0..K).for_each(|k| even[k] += rows[first][k]);
        if let Some(second) = second {
            (0..K).for_each(|k| odd[k] += rows[second][k]);
        }
    });
    (0..K).for_each(|k| sums[k] = even[k] + odd[k]);
}

/// Draws as many of `count` units as there are, two from each random number of 64 bits. By multiplication,
/// not division (Lemire, "Fast Random Integer Generation in an Interval", 2019), without its rejection: a
/// unit's probability is off by less than one part in 2³² / `count`.
#[inline(always)]
fn each_drawn(count: usize, random: &mut Pcg64Mcg, mut each: impl FnMut(usize, Option<usize>)) {
    let scaled = |bits: u64| ((bits * count as u64) >> 32) as usize;
    for _ in 0..count / 2 {
        let bits = random.next_u64();
        each(scaled(bits >> 32), Some(scaled(bits & 0xffff_ffff)));
    }
    if count % 2 == 1 {
        each(scaled(random.next_u64() >> 32), None);
    }
}

/// What a statistic came to, over and over.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    /// Of all units, once each.
    value: f64,
    /// Of drawn units, sorted; those that are not finite are left out.
    drawn: Vec<f64>,
    /// How many were drawn.
    resamples: usize,
    /// Efron's a: how much the statistic's error changes with its value.
    acceleration: f64,
    /// How many units there are.
    units: usize,
}

impl Bootstrap {
    /// Computes `outputs` statistics of the sums, of all units and of drawn ones.
    pub(crate) fn draw(
        &self,
        table: &Table,
        outputs: usize,
        statistics: impl Fn(&[f64], &mut [f64]),
    ) -> Result<Vec<Draws>> {
        self.check()?;
        let units = table.units();
        if units < 2 {
            return Err(PairedError::TooFew { what: "items", found: units });
        }
        if units > 1 << 28 {
            return Err(PairedError::TooMany(units));
        }
        let mut out = vec![f64::NAN; outputs];
        let all = table.sums();
        statistics(&all, &mut out);
        let values = out.clone();
        let mut sums = all.clone();
        let mut left_out = vec![Vec::with_capacity(units); outputs];
        for row in table.rows.chunks_exact(table.columns) {
            (0..sums.len()).for_each(|k| sums[k] = all[k] - row[k]);
            statistics(&sums, &mut out);
            left_out.iter_mut().zip(&out).for_each(|(list, &value)| list.push(value));
        }
        let mut random = Pcg64Mcg::seed_from_u64(self.seed);
        let mut drawn = vec![Vec::with_capacity(self.resamples); outputs];
        for _ in 0..self.resamples {
            table.draw(&mut random, &mut sums);
            statistics(&sums, &mut out);
            drawn.iter_mut().zip(&out).for_each(|(list, &value)| list.push(value));
        }
        let of_output = |((value, mut drawn), left_out): ((f64, Vec<f64>), Vec<f64>)| {
            drawn.retain(|value| value.is_finite());
            drawn.sort_unstable_by(f64::total_cmp);
            let acceleration = acceleration(&left_out);
            Draws { value, drawn, resamples: self.resamples, acceleration, units }
        };
        Ok(values.into_iter().zip(drawn).zip(left_out).map(of_output).collect())
    }
}

/// Efron's acceleration from the values without each unit: a sixth of the skewness of their influence.
fn acceleration(left_out: &[f64]) -> f64 {
    let mean = left_out.iter().sum::<f64>() / left_out.len() as f64;
    let (mut squares, mut cubes) = (0.0, 0.0);
    for value in left_out {
        let influence = mean - value;
        squares += influence * influence;
        cubes += influence * influence * influence;
    }
    let acceleration = cubes / (6.0 * squares * squares.sqrt());
    if acceleration.is_finite() { acceleration } else { 0.0 }
}

impl Draws {
    /// The value and its BCa interval (Efron 1987, equations 6.4 to 6.6), at levels widened for few units;
    /// `None` if the value is not defined, or is not for more than a tenth of what was drawn.
    pub(crate) fn estimate(&self, level: f64) -> Option<Estimate> {
        if !self.value.is_finite() || self.drawn.len() * 10 < self.resamples * 9 {
            return None;
        }
        let end = |tail: f64| {
            let z = self.widening() * student_of_normal(normal_quantile(tail), self.units - 1);
            let (bias, a) = (self.bias(), self.acceleration);
            // A denominator that reaches 0 stands for the end of the distribution.
            let scaled = (bias + z) / (1.0 - a * (bias + z)).max(1e-9);
            percentile(&self.drawn, normal_below(bias + scaled))
        };
        Some(Estimate { value: self.value, low: end((1.0 - level) / 2.0), high: end((1.0 + level) / 2.0) })
    }

    /// The two-sided p-value of a true value: the interval's formula solved for the level at which the value
    /// is its end.
    pub(crate) fn p_value(&self, truth: f64) -> f64 {
        // What was drawn at the value itself lies within the interval whose end it is.
        let count = match truth.total_cmp(&self.value) {
            Ordering::Less => self.drawn.partition_point(|&drawn| drawn <= truth),
            _ => self.drawn.partition_point(|&drawn| drawn < truth),
        };
        if truth == self.value {
            return 1.0;
        }
        let (bias, a) = (self.bias(), self.acceleration);
        let scaled = self.normal_rank(count as f64) - bias;
        let z = scaled / (1.0 + a * scaled).max(1e-9) - bias;
        let z = normal_of_student(z / self.widening(), self.units - 1);
        (2.0 * normal_below(-z.abs())).min(1.0)
    }

    /// By how much the spread of drawn sums, which divides by n, is too small an estimate.
    fn widening(&self) -> f64 {
        (self.units as f64 / (self.units as f64 - 1.0)).sqrt()
    }

    /// Efron's z0: where the value stands among what was drawn. Equal ones count half, so that scores of few
    /// values are not shifted.
    fn bias(&self) -> f64 {
        let below = self.drawn.partition_point(|&drawn| drawn < self.value);
        let up_to = self.drawn.partition_point(|&drawn| drawn <= self.value);
        self.normal_rank(0.5 * (below + up_to) as f64)
    }

    /// The standard normal number that stands where so many of the drawn lie below; beyond all of them is as
    /// far as their number can tell.
    fn normal_rank(&self, below: f64) -> f64 {
        let count = self.drawn.len().max(1) as f64;
        normal_quantile(below.clamp(0.5, count - 0.5) / count)
    }
}

/// The value that so much of a sorted list lies below, between two of them if need be; `part` from 0 to 1.
/// NaN for an empty list.
pub(crate) fn percentile(sorted: &[f64], part: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = (part * (sorted.len() + 1) as f64 - 1.0).clamp(0.0, last as f64);
    let (below, share) = (at.floor() as usize, at.fract());
    let above = (below + 1).min(last);
    sorted[below] + share * (sorted[above] - sorted[below])
}
