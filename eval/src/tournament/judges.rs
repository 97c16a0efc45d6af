//! How far judges can be trusted: whether two agree, and whether one favours a place.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Game, Outcome, Result, Tournament, TournamentError, Verdict, interval, share};
use crate::paired::{Bootstrap, Estimate, PairedError, Table};

/// How far two judges agree on who is better, over the judgements that both made: the same question, systems
/// and order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// How many judgements both made.
    pub games: usize,
    /// How many questions they are about.
    pub questions: usize,
    /// How many only one of them made.
    pub unmatched: usize,
    /// How often they fall together: rows are what the first judge said, columns what the second did, in the
    /// order first, tie, second.
    pub table: [[usize; 3]; 3],
    /// The share of judgements on which they agree, between 0 and 1.
    pub share: Estimate,
    /// Cohen's kappa ("A coefficient of agreement for nominal scales", 1960): by how much they agree more
    /// than they would by chance, 1 at most; `None` where one word is all that both ever said, or nearly so.
    pub kappa: Option<Estimate>,
}

/// Whether a judge favours a place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OrderBias {
    /// How many judgements there are.
    pub games: usize,
    /// The share that the first place won.
    pub first: Estimate,
    /// The share of ties.
    pub tie: Estimate,
    /// The share that the second place won.
    pub second: Estimate,
    /// The share that the first place won of those that were decided; without bias a half, where every pair
    /// is judged in both orders. `None` if none was.
    pub first_of_decided: Option<Estimate>,
    /// By how much the first place's scores are higher in the mean, where there are scores.
    pub first_less_second: Option<Estimate>,
    /// How many pairs of answers were judged in both orders.
    pub both_orders: usize,
    /// The share of those for which both orders name different winners; `None` if there are too few.
    pub contradict: Option<Estimate>,
    /// The share of those for which both orders say the same.
    pub agree: Option<Estimate>,
}

impl Tournament {
    /// How far this judge and another agree. Of judgements that one made several times, the first of one
    /// belongs to the first of the other. Intervals draw questions.
    ///
    /// # Errors
    /// If they have no judgement in common, or only on one question.
    pub fn agreement(&self, other: &Tournament, bootstrap: &Bootstrap) -> Result<Agreement> {
        let mut theirs: BTreeMap<[&str; 3], Vec<Outcome>> = BTreeMap::new();
        for game in other.games.iter().rev() {
            theirs.entry(other.key(game)).or_default().push(game.verdict.outcome());
        }
        // One after the other, since a judgement is used up by the one that it belongs to.
        let mut both: BTreeMap<&str, Vec<(Outcome, Outcome)>> = BTreeMap::new();
        for game in &self.games {
            let key = self.key(game);
            if let Some(their) = theirs.get_mut(&key).and_then(Vec::pop) {
                both.entry(key[0]).or_default().push((game.verdict.outcome(), their));
            }
        }
        let games = both.values().map(Vec::len).sum();
        if games == 0 {
            return Err(TournamentError::Empty(" that both judges made".to_owned()));
        }
        let mut by_question = Table::zero(both.len(), 9);
        let mut table = [[0; 3]; 3];
        for (unit, pairs) in both.values().enumerate() {
            for &(a, b) in pairs {
                by_question.row(unit)[3 * a as usize + b as usize] += 1.0;
                table[a as usize][b as usize] += 1;
            }
        }
        let draws = bootstrap
            .draw(&by_question, 2, |sums, out| {
                let all: f64 = sums.iter().sum();
                let rows = |k: usize| sums[3 * k..3 * k + 3].iter().sum::<f64>();
                let columns = |k: usize| sums[k] + sums[k + 3] + sums[k + 6];
                let by_chance = (0..3).map(|k| rows(k) * columns(k)).sum::<f64>() / (all * all);
                out[0] = (sums[0] + sums[4] + sums[8]) / all;
                out[1] = (out[0] - by_chance) / (1.0 - by_chance);
            })
            .map_err(interval("the agreement of both judges"))?;
        let share = draws[0].estimate(bootstrap.level);
        let undefined = || interval("the agreement of both judges")(PairedError::Undefined("a share"));
        Ok(Agreement {
            games,
            questions: both.len(),
            unmatched: self.games.len() + other.games.len() - 2 * games,
            table,
            share: bootstrap.open_ended(share.ok_or_else(undefined)?, both.len()),
            kappa: draws[1].estimate(bootstrap.level),
        })
    }

    /// Whether this judge favours a place. Intervals draw questions.
    ///
    /// # Errors
    /// If there is only one question.
    pub fn order_bias(&self, bootstrap: &Bootstrap) -> Result<OrderBias> {
        let of = || interval("the bias of the order");
        let (table, games) = self.table(4, |game, part| {
            part[game.verdict.outcome() as usize] = 1.0;
            part[3] = 1.0;
            true
        });
        let rate = |outcome: Outcome| share(bootstrap, &table, outcome as usize, "a share").map_err(of());
        let decided = |sums: &[f64]| sums[0] / (sums[0] + sums[2]);
        let (scores, scored) = self.table(2, |game, part| {
            let Verdict::Scores([first, second]) = game.verdict else { return false };
            part.copy_from_slice(&[first - second, 1.0]);
            true
        });
        let (orders, both_orders) = self.both_orders();
        let if_any = |count: usize, estimate: Result<Estimate, PairedError>| match estimate {
            Err(PairedError::Undefined(_) | PairedError::TooFew { .. }) => Ok(None),
            _ if count == 0 => Ok(None),
            estimate => estimate.map(Some).map_err(of()),
        };
        Ok(OrderBias {
            games,
            first: rate(Outcome::First)?,
            tie: rate(Outcome::Tie)?,
            second: rate(Outcome::Second)?,
            first_of_decided: if_any(games, bootstrap.estimate(&table, "a share", decided))?,
            first_less_second: if_any(
                scored,
                bootstrap.estimate(&scores, "a mean", |sums| sums[0] / sums[1]),
            )?,
            both_orders,
            contradict: if_any(both_orders, share(bootstrap, &orders, 0, "a share"))?,
            agree: if_any(both_orders, share(bootstrap, &orders, 1, "a share"))?,
        })
    }

    /// Of pairs that were judged in both orders, by question: how often the orders contradict each other, how
    /// often they say the same, how many there are; and how many in all. Of several judgements of one order,
    /// the first of one order belongs to the first of the other.
    fn both_orders(&self) -> (Table, usize) {
        let mut pairs: BTreeMap<_, [Vec<f64>; 2]> = BTreeMap::new();
        for game in &self.games {
            let (a, b) = game.pair();
            let points = game.verdict.outcome().points();
            let in_order = game.first == a;
            let of_a = if in_order { points } else { 1.0 - points };
            pairs.entry((game.question, (a, b))).or_default()[usize::from(in_order)].push(of_a);
        }
        let mut by_question: BTreeMap<usize, [f64; 3]> = BTreeMap::new();
        for ((question, _), [one, other]) in &pairs {
            for (one, other) in one.iter().zip(other) {
                let row = by_question.entry(*question).or_default();
                row[0] += f64::from(u8::from((one - other).abs() == 1.0));
                row[1] += f64::from(u8::from(one == other));
                row[2] += 1.0;
            }
        }
        let mut table = Table::zero(by_question.len(), 3);
        by_question.values().enumerate().for_each(|(unit, row)| table.row(unit).copy_from_slice(row));
        (table, by_question.values().map(|row| row[2] as usize).sum())
    }

    /// What two judges' judgements are matched by.
    fn key(&self, game: &Game) -> [&str; 3] {
        [&self.questions[game.question], &self.systems[game.first], &self.systems[game.second]]
    }
}
