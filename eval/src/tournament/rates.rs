//! How often a system wins, ties and loses.

use serde::Serialize;

use super::{Outcome, Result, Tournament, interval, share};
use crate::paired::{Bootstrap, Estimate};

/// How often a system wins, ties and loses, as shares of its games, between 0 and 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// The system.
    pub system: String,
    /// Against whom; `None` for all others.
    pub opponent: Option<String>,
    /// How many judgements.
    pub games: usize,
    /// How many questions.
    pub questions: usize,
    /// The share that it won.
    pub win: Estimate,
    /// The share of ties.
    pub tie: Estimate,
    /// The share that it lost.
    pub loss: Estimate,
}

impl Tournament {
    /// Each system against all others, in the order of names. Intervals draw questions.
    ///
    /// # Errors
    /// If a system was judged on only one question.
    pub fn rates(&self, bootstrap: &Bootstrap) -> Result<Vec<Rates>> {
        (0..self.systems.len()).map(|system| self.rates_of(system, None, bootstrap)).collect()
    }

    /// Each pair of systems that met, once, in the order of names.
    ///
    /// # Errors
    /// If two were judged on only one question.
    pub fn pair_rates(&self, bootstrap: &Bootstrap) -> Result<Vec<Rates>> {
        self.pairs().into_iter().map(|(a, b)| self.rates_of(a, Some(b), bootstrap)).collect()
    }

    /// The pairs of systems that met.
    pub(super) fn pairs(&self) -> Vec<(usize, usize)> {
        let mut pairs: Vec<_> = self.games.iter().map(super::Game::pair).collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    fn rates_of(&self, system: usize, opponent: Option<usize>, bootstrap: &Bootstrap) -> Result<Rates> {
        let (table, games) = self.table(Outcome::ALL.len() + 1, |game, part| {
            let Some(points) = game.points_of(system) else { return false };
            let outcome = Outcome::ALL.iter().position(|outcome| outcome.points() == points);
            outcome.into_iter().chain([Outcome::ALL.len()]).for_each(|at| part[at] = 1.0);
            opponent.is_none_or(|opponent| game.points_of(opponent).is_some())
        });
        let name = &self.systems[system];
        let rate = |outcome: Outcome| {
            let of = || interval(format!("the rates of {name}"));
            share(bootstrap, &table, outcome as usize, "a rate of no games").map_err(of())
        };
        Ok(Rates {
            system: name.clone(),
            opponent: opponent.map(|opponent| self.systems[opponent].clone()),
            games,
            questions: table.units(),
            win: rate(Outcome::First)?,
            tie: rate(Outcome::Tie)?,
            loss: rate(Outcome::Second)?,
        })
    }
}
