//! Elo ratings.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64Mcg;

use super::{Rating, Result, Tournament, TournamentError, interval};
use crate::paired::{Estimate, check_level, percentile};

/// How Elo ratings are computed: game after game, the winner takes points from the loser, more of them the
/// less it was expected to win (Elo, "The Rating of Chessplayers, Past and Present", 1978). The result
/// depends on the order of games, so it is averaged over many.
///
/// An interval here is where the rating lies for that part of the orders. It says nothing of how the rating
/// would change with other questions: [`BradleyTerry`](super::BradleyTerry) says that, and has no order.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Elo {
    /// The most points that a game can move.
    pub k: f64,
    /// Every system's rating before its first game.
    pub start: f64,
    /// How many orders of the games are played, from 2 to 100,000.
    pub shuffles: usize,
    /// The part of orders that an interval holds, between 0 and 1.
    pub level: f64,
    /// Which orders; the same seed gives the same bytes.
    pub seed: u64,
}

impl Default for Elo {
    /// K of 32, from 1000, a thousand orders, intervals of 95 %.
    fn default() -> Self {
        Elo { k: 32.0, start: 1000.0, shuffles: 1000, level: 0.95, seed: 0 }
    }
}

/// What a system of rating `a` can expect against one of rating `b`, in points of a game.
fn expected(a: f64, b: f64) -> f64 {
    1.0 / (1.0 + 10.0_f64.powf((b - a) / 400.0))
}

impl Tournament {
    /// Elo ratings of all systems, highest first.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn elo(&self, settings: &Elo) -> Result<Vec<Rating>> {
        let &Elo { k, start, shuffles, level, seed } = settings;
        check_level(level).map_err(interval("Elo"))?;
        let out_of_range = |field, value, range| Err(TournamentError::Setting { field, value, range });
        if !(k > 0.0 && k <= 1000.0) {
            return out_of_range("k", k, "it must be above 0 and at most 1000");
        }
        if !(-1e6..=1e6).contains(&start) {
            return out_of_range("start", start, "it may be -1000000 to 1000000");
        }
        if !(2..=100_000).contains(&shuffles) {
            return out_of_range("shuffles", shuffles as f64, "it may be 2 to 100000");
        }
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let mut games = self.games.clone();
        let mut last = vec![Vec::with_capacity(shuffles); self.systems.len()];
        for _ in 0..shuffles {
            games.shuffle(&mut random);
            let mut ratings = vec![start; self.systems.len()];
            for game in &games {
                let surprise =
                    game.verdict.outcome().points() - expected(ratings[game.first], ratings[game.second]);
                ratings[game.first] += k * surprise;
                ratings[game.second] -= k * surprise;
            }
            last.iter_mut().zip(ratings).for_each(|(last, rating)| last.push(rating));
        }
        let over_orders = |mut last: Vec<f64>| {
            last.sort_unstable_by(f64::total_cmp);
            let value = last.iter().sum::<f64>() / last.len() as f64;
            let [low, high] = [(1.0 - level) / 2.0, (1.0 + level) / 2.0].map(|part| percentile(&last, part));
            Estimate { value, low, high }
        };
        Ok(self.ranking(last.into_iter().map(over_orders)))
    }

    /// Ratings of all systems in the order of their numbers, as a list with the highest first.
    pub(super) fn ranking(&self, ratings: impl Iterator<Item = Estimate>) -> Vec<Rating> {
        let rated = ratings.enumerate().map(|(number, rating)| Rating {
            system: self.systems[number].clone(),
            games: self.games.iter().filter(|game| game.points_of(number).is_some()).count(),
            rating,
        });
        let mut all: Vec<Rating> = rated.collect();
        all.sort_by(|a, b| b.rating.value.total_cmp(&a.rating.value));
        all
    }
}
