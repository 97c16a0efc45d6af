//! A system's score in percent of a reference system's.

use serde::Serialize;

use super::{Result, Tournament, TournamentError, interval};
use crate::paired::{Bootstrap, Estimate, PairedError};

/// A system's score in percent of the reference's, as QLoRA has it (Dettmers et al., "QLoRA: Efficient
/// Finetuning of Quantized LLMs", 2023, table 6): the sum of its scores over the sum of those that the
/// reference got beside it, for each order, then the mean of both orders.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Percent {
    /// The system.
    pub system: String,
    /// How many questions it was compared on.
    pub questions: usize,
    /// How many judgements there are, in both orders.
    pub games: usize,
    /// The mean of both orders, in percent; the only order's, if there is one.
    pub percent: Estimate,
    /// Where the system stood first.
    pub standing_first: Option<Estimate>,
    /// Where it stood second.
    pub standing_second: Option<Estimate>,
}

impl Tournament {
    /// What every other system's scores are in percent of a reference's, highest first. Only judgements with
    /// scores of a system and the reference count. Intervals draw questions, with all judgements of each.
    ///
    /// # Errors
    /// If there is no such system, it has no scores beside others, or a system has scores for only one
    /// question or beside zeros of the reference.
    pub fn percent_of(&self, reference: &str, bootstrap: &Bootstrap) -> Result<Vec<Percent>> {
        let reference = self.number_of(reference)?;
        let mut all = Vec::new();
        for (system, name) in self.systems.iter().enumerate().filter(|&(system, _)| system != reference) {
            let (table, games) = self.table(4, |game, part| {
                let Some(([own, other], first)) = game.scores_of(system) else { return false };
                let at = if first { 0 } else { 2 };
                part[at] = own;
                part[at + 1] = other;
                game.first == reference || game.second == reference
            });
            if games == 0 {
                continue;
            }
            // Which orders there are is asked of the games, since a sum of zero says less.
            let [first, second] = [true, false].map(|is_first| {
                let of_order = |scores: Option<(_, bool)>| scores.is_some_and(|(_, first)| first == is_first);
                let with_reference =
                    |pair: (usize, usize)| pair == (system.min(reference), system.max(reference));
                self.games.iter().any(|game| with_reference(game.pair()) && of_order(game.scores_of(system)))
            });
            let draws = bootstrap
                .draw(&table, 3, |sums, out| {
                    out[1] = 100.0 * sums[0] / sums[1];
                    out[2] = 100.0 * sums[2] / sums[3];
                    out[0] = match (first, second) {
                        (true, true) => 0.5 * (out[1] + out[2]),
                        (true, false) => out[1],
                        (false, _) => out[2],
                    };
                })
                .map_err(interval(name))?;
            let [percent, standing_first, standing_second] =
                [0, 1, 2].map(|output: usize| draws[output].estimate(bootstrap.level));
            let Some(percent) = percent else {
                let source = PairedError::Undefined("the score in percent of the reference's");
                return Err(interval(name)(source));
            };
            let (system, questions) = (name.clone(), table.units());
            all.push(Percent { system, questions, games, percent, standing_first, standing_second });
        }
        if all.is_empty() {
            let name = &self.systems[reference];
            return Err(TournamentError::Empty(format!(" with scores of `{name}` and another system")));
        }
        all.sort_by(|a, b| b.percent.value.total_cmp(&a.percent.value));
        Ok(all)
    }
}
