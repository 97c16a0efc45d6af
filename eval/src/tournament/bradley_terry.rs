//! Bradley-Terry strengths.

use std::f64::consts::LN_10;

use super::{Rating, Result, Tournament, TournamentError, interval};
use crate::paired::{Bootstrap, PairedError};

/// Points of the Elo scale for a strength of 1: 400 points are odds of ten to one.
const POINTS: f64 = 400.0 / LN_10;
/// Newton's steps; from any start a few suffice, since the likelihood is concave.
const STEPS: usize = 100;
/// Strengths that change by less than this are found: a millionth of a point.
const FOUND: f64 = 1e-8;

/// What a scale without a zero is hung on.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    /// The mean of all systems has this rating.
    Mean(f64),
    /// A system has this rating, with an interval of no width.
    System(String, f64),
}

/// How strengths are fitted by the model of Bradley and Terry ("Rank Analysis of Incomplete Block Designs",
/// 1952): i wins against j with probability 1 / (1 + exp(θj − θi)). A tie is half a win for both. Ratings are
/// θ on Elo's scale; unlike Elo's they do not depend on the order of games.
///
/// A system that won all its games, or lost all, would be infinitely strong or weak, and two groups of
/// systems that never met could not be compared. Therefore each system has also drawn `prior` games with an
/// opponent of strength 0, which makes the likelihood strictly concave: its maximum exists and is unique. One
/// such game in hundreds moves ratings by less than a point or two.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct BradleyTerry {
    /// How many drawn games each system has beside its own, above 0.
    pub prior: f64,
    /// What the scale is hung on.
    pub anchor: Anchor,
}

impl Default for BradleyTerry {
    /// One drawn game; the mean is 1000.
    fn default() -> Self {
        BradleyTerry { prior: 1.0, anchor: Anchor::Mean(1000.0) }
    }
}

/// Two systems that met: their numbers, and the columns of sums that hold the first's points and all games.
struct Met {
    a: usize,
    b: usize,
}

impl Tournament {
    /// Bradley-Terry ratings of all systems, highest first. Intervals draw questions, with all judgements of
    /// each.
    ///
    /// # Errors
    /// If a setting is out of its range, the anchor is no system, or there is only one question.
    pub fn bradley_terry(&self, settings: &BradleyTerry, bootstrap: &Bootstrap) -> Result<Vec<Rating>> {
        let prior = settings.prior;
        if !(prior > 0.0 && prior.is_finite()) {
            let range = "it must be above 0, or systems that always win have no rating";
            return Err(TournamentError::Setting { field: "prior", value: prior, range });
        }
        let (anchor, at) = match &settings.anchor {
            Anchor::Mean(at) => (None, *at),
            Anchor::System(name, at) => (Some(self.number_of(name)?), *at),
        };
        if !at.is_finite() {
            return Err(TournamentError::Setting {
                field: "anchor",
                value: at,
                range: "it must be a number",
            });
        }
        let pairs = self.pairs();
        let met: Vec<Met> = pairs.iter().map(|&(a, b)| Met { a, b }).collect();
        let (table, _) = self.table(2 * pairs.len(), |game, part| {
            let pair = pairs.binary_search(&game.pair()).ok();
            let points = game.points_of(game.pair().0);
            if let (Some(pair), Some(points)) = (pair, points) {
                part[2 * pair] = points;
                part[2 * pair + 1] = 1.0;
            }
            pair.is_some()
        });
        let systems = self.systems.len();
        // What all questions come to is near what drawn ones do.
        let start = fit(&met, &table.sums(), prior, vec![0.0; systems]);
        let draws = bootstrap
            .draw(&table, systems, |sums, out| {
                let strengths = fit(&met, sums, prior, start.clone());
                let zero = match anchor {
                    Some(system) => strengths[system],
                    None => strengths.iter().sum::<f64>() / systems as f64,
                };
                out.iter_mut().zip(strengths).for_each(|(out, theta)| *out = at + POINTS * (theta - zero));
            })
            .map_err(interval("Bradley-Terry ratings"))?;
        let estimates: Option<Vec<_>> = draws.iter().map(|draws| draws.estimate(bootstrap.level)).collect();
        let undefined = || interval("Bradley-Terry ratings")(PairedError::Undefined("a rating"));
        Ok(self.ranking(estimates.ok_or_else(undefined)?.into_iter()))
    }
}

/// The strengths that make games likeliest, by Newton's method: the gradient is points less expected ones,
/// the Hessian a Laplacian of the games' weights with the prior's on the diagonal.
fn fit(met: &[Met], sums: &[f64], prior: f64, mut theta: Vec<f64>) -> Vec<f64> {
    let n = theta.len();
    let mut value = log_likelihood(met, sums, prior, &theta);
    for _ in 0..STEPS {
        let mut gradient: Vec<f64> = theta.iter().map(|&theta| prior * (0.5 - chance(theta))).collect();
        let mut hessian = vec![0.0; n * n];
        for (i, &theta) in theta.iter().enumerate() {
            hessian[i * n + i] = prior * chance(theta) * chance(-theta);
        }
        for (&Met { a, b }, sums) in met.iter().zip(sums.chunks_exact(2)) {
            let (points, games) = (sums[0], sums[1]);
            let win = chance(theta[a] - theta[b]);
            let (slope, weight) = (points - games * win, games * win * (1.0 - win));
            gradient[a] += slope;
            gradient[b] -= slope;
            hessian[a * n + a] += weight;
            hessian[b * n + b] += weight;
            hessian[a * n + b] -= weight;
            hessian[b * n + a] -= weight;
        }
        solve(&mut hessian, &mut gradient);
        // Half a step, a quarter, until it is uphill: a whole one can go too far where strengths are far
        // apart.
        let mut size = 1.0;
        loop {
            let next: Vec<f64> =
                theta.iter().zip(&gradient).map(|(theta, step)| theta + size * step).collect();
            let of_next = log_likelihood(met, sums, prior, &next);
            if of_next >= value || size < 1e-6 {
                theta = next;
                value = of_next;
                break;
            }
            size *= 0.5;
        }
        if gradient.iter().all(|step| step.abs() < FOUND) {
            break;
        }
    }
    theta
}

/// The logistic function.
fn chance(difference: f64) -> f64 {
    1.0 / (1.0 + (-difference).exp())
}

fn log_likelihood(met: &[Met], sums: &[f64], prior: f64, theta: &[f64]) -> f64 {
    // The logarithm of the logistic function, without overflow.
    let log_chance = |x: f64| x.min(0.0) - (-x.abs()).exp().ln_1p();
    let of_prior: f64 = theta.iter().map(|&x| 0.5 * prior * (log_chance(x) + log_chance(-x))).sum();
    let of_games = met.iter().zip(sums.chunks_exact(2)).map(|(&Met { a, b }, sums)| {
        let difference = theta[a] - theta[b];
        sums[0] * log_chance(difference) + (sums[1] - sums[0]) * log_chance(-difference)
    });
    of_prior + of_games.sum::<f64>()
}

/// Solves `matrix` · x = `right` for a symmetric positive definite matrix by Cholesky's decomposition, in
/// place.
fn solve(matrix: &mut [f64], right: &mut [f64]) {
    let n = right.len();
    for j in 0..n {
        for i in j..n {
            let inner: f64 = (0..j).map(|k| matrix[i * n + k] * matrix[j * n + k]).sum();
            let rest = matrix[i * n + j] - inner;
            // The prior keeps the diagonal above 0, but where rounding reaches it.
            matrix[i * n + j] = if i == j { rest.max(1e-12).sqrt() } else { rest / matrix[j * n + j] };
        }
    }
    for i in 0..n {
        let inner: f64 = (0..i).map(|k| matrix[i * n + k] * right[k]).sum();
        right[i] = (right[i] - inner) / matrix[i * n + i];
    }
    for i in (0..n).rev() {
        let inner: f64 = (i + 1..n).map(|k| matrix[k * n + i] * right[k]).sum();
        right[i] = (right[i] - inner) / matrix[i * n + i];
    }
}
