//! Systems that a judge compares in pairs: who is better, by how much, and how far the judge can be trusted.
//!
//! A [`Judgement`] is one look of a judge at two answers to one question, of which one stands first. A
//! [`Tournament`] is what one judge said of many. Judges favour places, so a pair is shown in both orders;
//! both belong to the same question, and intervals draw questions, never single judgements.

mod bradley_terry;
mod elo;
mod judges;
mod percent;
mod rates;
mod ratings;
mod reply;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::paired::{Bootstrap, Estimate, PairedError, Table};

pub use bradley_terry::{Anchor, BradleyTerry};
pub use elo::Elo;
pub use judges::{Agreement, OrderBias};
pub use percent::Percent;
pub use rates::Rates;
pub use ratings::{FileReport, Order, Ratings, RatingsError, RatingsKind, Unread};
pub use reply::{Reading, read_scores, read_verdict};

/// What this module's fallible functions return.
pub type Result<T, E = TournamentError> = std::result::Result<T, E>;

/// Judgements of which no tournament can be made, or settings that do not fit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TournamentError {
    /// There is nothing to count.
    #[error("there are no judgements{0}")]
    Empty(String),
    /// A system that plays itself.
    #[error("judgement {at} (counted from 0) compares `{system}` with itself")]
    Itself {
        /// Its place in the list.
        at: usize,
        /// The system.
        system: String,
    },
    /// A score that is negative or no number.
    #[error("judgement {at} (counted from 0) has a score of {score}; a score is a number of 0 or more")]
    Score {
        /// Its place in the list.
        at: usize,
        /// The score.
        score: f64,
    },
    /// A name that nobody in the tournament has.
    #[error("no system is called `{name}`; there are {}", known.join(", "))]
    UnknownSystem {
        /// The name.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
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
    /// No interval can be made.
    #[error("{of}: {source}")]
    Interval {
        /// Of what.
        of: String,
        /// Why.
        source: PairedError,
    },
}

/// Which of two answers is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// That which stands first.
    First,
    /// Neither.
    Tie,
    /// That which stands second.
    Second,
}

impl Outcome {
    /// All of them, in their order as numbers.
    pub const ALL: [Outcome; 3] = [Outcome::First, Outcome::Tie, Outcome::Second];

    /// The first place's points in a game: 1, a half, or 0.
    pub fn points(self) -> f64 {
        match self {
            Outcome::First => 1.0,
            Outcome::Tie => 0.5,
            Outcome::Second => 0.0,
        }
    }
}

/// What a judge says of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A score for each, in the order in which they stood; a larger one is better.
    Scores([f64; 2]),
    /// Only which is better.
    Better(Outcome),
}

impl Verdict {
    /// Who is better: of scores, whose is larger.
    pub fn outcome(self) -> Outcome {
        match self {
            Verdict::Better(outcome) => outcome,
            Verdict::Scores([first, second]) if first > second => Outcome::First,
            Verdict::Scores([first, second]) if first < second => Outcome::Second,
            Verdict::Scores(_) => Outcome::Tie,
        }
    }
}

/// One look of a judge at two answers to a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Which question.
    pub question: String,
    /// The system whose answer stood first.
    pub first: String,
    /// The system whose answer stood second.
    pub second: String,
    /// What the judge said.
    pub verdict: Verdict,
}

/// A system's place in a rating.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rating {
    /// Its name.
    pub system: String,
    /// How many judgements it is in.
    pub games: usize,
    /// On the scale of Elo: 400 points more are ten to one.
    pub rating: Estimate,
}

/// All that one judge said.
#[derive(Clone, Debug)]
pub struct Tournament {
    systems: Vec<String>,
    questions: Vec<String>,
    games: Vec<Game>,
}

/// A judgement with numbers for names.
#[derive(Clone, Copy, Debug)]
struct Game {
    question: usize,
    first: usize,
    second: usize,
    verdict: Verdict,
}

impl Game {
    /// The system's score and the other's, and whether it stood first; `None` for a game of others, or
    /// without scores.
    fn scores_of(&self, system: usize) -> Option<([f64; 2], bool)> {
        match self.verdict {
            Verdict::Scores(scores) if self.first == system => Some((scores, true)),
            Verdict::Scores([first, second]) if self.second == system => Some(([second, first], false)),
            _ => None,
        }
    }

    /// A system's points; `None` for a game of others.
    fn points_of(&self, system: usize) -> Option<f64> {
        let points = self.verdict.outcome().points();
        match system {
            _ if self.first == system => Some(points),
            _ if self.second == system => Some(1.0 - points),
            _ => None,
        }
    }

    /// Both systems, the one with the smaller number first.
    fn pair(&self) -> (usize, usize) {
        (self.first.min(self.second), self.first.max(self.second))
    }
}

impl Tournament {
    /// A tournament of one judge's judgements. Their order changes nothing but the shuffles of [`Elo`].
    ///
    /// # Errors
    /// If there are none, a system is compared with itself, or a score is negative or not finite.
    pub fn new(judgements: &[Judgement]) -> Result<Self> {
        if judgements.is_empty() {
            return Err(TournamentError::Empty(String::new()));
        }
        let mut systems: BTreeMap<&str, usize> = BTreeMap::new();
        let mut questions: BTreeMap<&str, usize> = BTreeMap::new();
        for judgement in judgements {
            systems.extend([(judgement.first.as_str(), 0), (judgement.second.as_str(), 0)]);
            questions.insert(&judgement.question, 0);
        }
        systems.values_mut().enumerate().for_each(|(number, entry)| *entry = number);
        questions.values_mut().enumerate().for_each(|(number, entry)| *entry = number);
        let mut games = Vec::with_capacity(judgements.len());
        for (at, Judgement { question, first, second, verdict }) in judgements.iter().enumerate() {
            if first == second {
                return Err(TournamentError::Itself { at, system: first.clone() });
            }
            if let Verdict::Scores(scores) = verdict
                && let Some(&score) = scores.iter().find(|score| !(score.is_finite() && **score >= 0.0))
            {
                return Err(TournamentError::Score { at, score });
            }
            games.push(Game {
                question: questions[question.as_str()],
                first: systems[first.as_str()],
                second: systems[second.as_str()],
                verdict: *verdict,
            });
        }
        let names = |map: BTreeMap<&str, usize>| map.into_keys().map(str::to_owned).collect();
        Ok(Tournament { systems: names(systems), questions: names(questions), games })
    }

    /// The systems' names, sorted.
    pub fn systems(&self) -> &[String] {
        &self.systems
    }

    /// How many questions there are.
    pub fn questions(&self) -> usize {
        self.questions.len()
    }

    /// How many judgements there are.
    pub fn games(&self) -> usize {
        self.games.len()
    }

    fn number_of(&self, name: &str) -> Result<usize> {
        self.systems.iter().position(|system| system == name).ok_or_else(|| TournamentError::UnknownSystem {
            name: name.to_owned(),
            known: self.systems.clone(),
        })
    }

    /// What games contribute to sums, by question: `row` adds a game's part to its question's `columns`, and
    /// says whether it has one. Questions without a game that has are no units. Also how many games had one.
    fn table(&self, columns: usize, row: impl Fn(&Game, &mut [f64]) -> bool) -> (Table, usize) {
        let (mut by_question, mut games) = (vec![Vec::new(); self.questions.len()], 0);
        for game in &self.games {
            let mut part = vec![0.0; columns];
            if row(game, &mut part) {
                by_question[game.question].push(part);
                games += 1;
            }
        }
        by_question.retain(|parts| !parts.is_empty());
        let mut table = Table::zero(by_question.len(), columns);
        for (unit, parts) in by_question.iter().enumerate() {
            for part in parts {
                table.row(unit).iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
        (table, games)
    }
}

/// The error of an interval that cannot be made.
fn interval(of: impl Into<String>) -> impl FnOnce(PairedError) -> TournamentError {
    let of = of.into();
    |source| match source {
        PairedError::TooFew { found, .. } => {
            TournamentError::Interval { of, source: PairedError::TooFew { what: "questions", found } }
        }
        source => TournamentError::Interval { of, source },
    }
}

/// How often something was so, of all games of a table: the sum of a column over that of the last.
fn share(
    bootstrap: &Bootstrap,
    table: &Table,
    column: usize,
    what: &'static str,
) -> Result<Estimate, PairedError> {
    let rate = bootstrap.estimate(table, what, |sums| sums[column] / sums[sums.len() - 1])?;
    Ok(bootstrap.open_ended(rate, table.units()))
}
