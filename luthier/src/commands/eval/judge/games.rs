//! What is judged: each question with the answers of two systems, in both orders.

use std::collections::BTreeSet;

use serde_json::Value;

use super::endpoint::{Endpoint, Said};
use super::prompt::Prompt;
use super::questions::Question;
use super::replies::{Replies, Reply, key_of};
use crate::error::user;
use crate::run_file::{JudgeFile, Pairs};

/// More judgements than this are a slip of the pen.
const MOST: usize = 1_000_000;

/// One look of the judge at two answers to a question.
#[derive(Debug)]
pub(super) struct Game {
    /// Its place in the list.
    pub(super) number: usize,
    pub(super) question: usize,
    first: usize,
    second: usize,
    /// The hash of its request.
    pub(super) request: String,
}

/// All of them, by question, then by pair.
pub(super) struct Games<'a> {
    questions: &'a [Question],
    systems: Vec<&'a str>,
    answers: Vec<&'a [String]>,
    prompt: &'a Prompt,
    all: Vec<Game>,
}

impl<'a> Games<'a> {
    /// The games of a judge file. `answers`: of each system in its order, one for each question.
    ///
    /// # Errors
    /// If there are too many.
    pub(super) fn of(
        file: &'a JudgeFile,
        questions: &'a [Question],
        answers: &'a [Vec<String>],
        prompt: &'a Prompt,
        endpoint: &Endpoint,
    ) -> anyhow::Result<Self> {
        let systems: Vec<&str> = file.answers.keys().map(String::as_str).collect();
        let reference = systems.iter().position(|name| Some(*name) == file.reference.as_deref());
        let met = |a: usize, b: usize| file.pairs == Pairs::All || [Some(a), Some(b)].contains(&reference);
        let mut pairs = Vec::new();
        for a in 0..systems.len() {
            pairs.extend((a + 1..systems.len()).filter(|b| met(a, *b)).flat_map(|b| [(a, b), (b, a)]));
        }
        let count = pairs.len().saturating_mul(questions.len());
        if count > MOST {
            return Err(user(format!("{count} judgements are asked for, and {MOST} are the most")));
        }
        let answers = answers.iter().map(Vec::as_slice).collect();
        let mut games = Games { questions, systems, answers, prompt, all: Vec::with_capacity(count) };
        for question in 0..questions.len() {
            for &(first, second) in &pairs {
                let (number, request) = (games.all.len(), String::new());
                let mut game = Game { number, question, first, second, request };
                game.request = key_of(endpoint.url(), &endpoint.body(&games.messages(&game)));
                games.all.push(game);
            }
        }
        Ok(games)
    }

    pub(super) fn all(&self) -> &[Game] {
        &self.all
    }

    /// What the judge is shown.
    pub(super) fn messages(&self, game: &Game) -> Value {
        let answer = |system: usize| self.answers[system][game.question].as_str();
        self.prompt.messages(&self.questions[game.question].text, answer(game.first), answer(game.second))
    }

    /// The question's id, and who stands first and second.
    pub(super) fn names(&self, game: &Game) -> [&str; 3] {
        [&self.questions[game.question].id, self.systems[game.first], self.systems[game.second]]
    }

    /// How many different requests there are: where both answers are the same, both orders are one.
    pub(super) fn requests(&self) -> usize {
        self.all.iter().map(|game| game.request.as_str()).collect::<BTreeSet<_>>().len()
    }

    /// One game of each request that has no reply yet.
    pub(super) fn missing(&self, replies: &Replies) -> Vec<&Game> {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let without = self.all.iter().filter(|game| replies.get(&game.request).is_none());
        without.filter(|game| seen.insert(&game.request)).collect()
    }

    /// What is kept of what the judge said.
    pub(super) fn reply(&self, game: &Game, said: Said) -> Reply {
        let Said { reply, finish_reason, tokens } = said;
        let [question, first, second] = self.names(game).map(str::to_owned);
        Reply { request: game.request.clone(), question, first, second, reply, finish_reason, tokens }
    }
}
