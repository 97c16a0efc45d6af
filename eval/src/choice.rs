//! Multiple-choice questions: which texts a model is asked to score, and what its log-likelihoods are worth.
//!
//! Rows of the files that people have become [`Question`]s ([`Form`] says which files), a question and
//! perhaps worked examples ([`Shots`]) become a [`Prompt`], and the log-likelihoods of its continuations
//! become numbers for the item ([`Scores`]), which paired statistics compare and [`GroupMeans`] averages.
//!
//! Texts and scores are those of lm-evaluation-harness 0.4.13, to the byte: of its tasks `mmlu`, `arc_easy`,
//! `arc_challenge`, `hellaswag`, `winogrande`, `boolq`, `piqa`, `truthfulqa_mc1` and `truthfulqa_mc2`. Only
//! which examples are drawn is not, since that is Python's random generator there.

mod form;
mod scores;
mod shots;

use std::borrow::Cow;

pub use form::Form;
pub use scores::{GroupMean, GroupMeans, Likelihood, Scores};
pub use shots::{Example, ShotOrder, Shots};

use crate::text::python;

/// What stands between two examples of a prompt, and between the last of them and the question.
pub(crate) const BETWEEN: &str = "\n\n";

/// A question with its choices.
///
/// Most have one context, and a continuation for each choice. Of WinoGrande it is the other way round: the
/// choices stand in the contexts, and what follows is the same for all ("partial scoring", Trinh and Le,
/// 2018).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What stands before all examples: MMLU's line about its subject.
    description: String,
    /// One for all choices, or one for each.
    contexts: Vec<String>,
    /// One for each choice, or one for all; with the space between a context and it.
    continuations: Vec<String>,
    /// The choices themselves, whose lengths normalize.
    choices: Vec<String>,
    /// Whether each choice is right; at least one is.
    right: Vec<bool>,
    group: Option<String>,
}

impl Question {
    /// How many choices there are, K.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Never: a question has two choices at least.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// The K choices as they are scored, without the space before them: the letters of MMLU, the endings of
    /// HellaSwag without their brackets; of WinoGrande the beginnings of the sentence with either option.
    pub fn choices(&self) -> &[String] {
        &self.choices
    }

    /// Whether each of the K choices is right.
    pub fn right(&self) -> &[bool] {
        &self.right
    }

    /// The first right choice.
    pub fn gold(&self) -> usize {
        self.right.iter().position(|&right| right).unwrap_or(0)
    }

    /// What the question belongs to: the subject of MMLU, `group` of a row of [`Form::Choice`].
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// What is scored: description, examples with their answers (of several right ones the first), the
    /// question, and each choice.
    pub fn prompt(&self, shots: &[&Question]) -> Prompt {
        let mut before = self.description.clone();
        for shot in shots {
            let gold = shot.gold();
            before.push_str(of(&shot.contexts, gold));
            before.push_str(of(&shot.continuations, gold));
            before.push_str(BETWEEN);
        }
        let contexts = self.contexts.iter().map(|context| format!("{before}{context}")).collect();
        Prompt { contexts, continuations: self.continuations.clone(), choices: self.len() }
    }
}

impl Example for Question {
    fn group(&self) -> Option<&str> {
        self.group()
    }
}

/// The text of a choice where there may be one for all.
fn of(texts: &[String], choice: usize) -> &str {
    texts.get(choice).or(texts.first()).map_or("", String::as_str)
}

/// The texts of a question whose log-likelihoods are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    contexts: Vec<String>,
    continuations: Vec<String>,
    choices: usize,
}

impl Prompt {
    /// For each of the K choices a context and what follows it, whose log-likelihood is the choice's:
    /// lm-evaluation-harness' requests `loglikelihood`.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        (0..self.choices).map(|choice| (of(&self.contexts, choice), of(&self.continuations, choice)))
    }

    /// The context, if all choices have the same.
    pub fn shared_context(&self) -> Option<&str> {
        match self.contexts.as_slice() {
            [context] => Some(context),
            _ => None,
        }
    }
}

/// A context and its continuation with whitespace at the context's end moved to the continuation, since
/// tokens begin with their space. The continuation's tokens are then those of both texts together beyond as
/// many as the context alone has (lm-evaluation-harness' `TemplateLM._encode_pair`).
pub fn split_for_tokens<'a>(context: &'a str, continuation: &'a str) -> (&'a str, Cow<'a, str>) {
    let kept = python::strip_end(context);
    match &context[kept.len()..] {
        "" => (context, Cow::Borrowed(continuation)),
        space => (kept, Cow::Owned(format!("{space}{continuation}"))),
    }
}

/// Why rows are no questions, or a question has no score.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// A name that no form has.
    #[error("no form of multiple-choice questions is called {given:?}; known are {}", Form::names())]
    UnknownForm {
        /// As it was given.
        given: String,
    },
    /// There are no rows to tell a form by.
    #[error("there are no rows")]
    NoRows,
    /// A row whose fields no form has.
    #[error(
        "row {row} is of no known form, {found}; known are {}; name the form if fields are missing",
        form::KNOWN
    )]
    Unrecognized {
        /// Which row, from 1.
        row: usize,
        /// What it is or has.
        found: String,
    },
    /// A row of TruthfulQA, which has two sets of choices.
    #[error(
        "row {row} has both \"mc1_targets\" (one choice is right) and \"mc2_targets\" (several may be); \
         name the form, truthfulqa_mc1 or truthfulqa_mc2"
    )]
    TwoTargets {
        /// Which row, from 1.
        row: usize,
    },
    /// Rows of several forms.
    #[error("row {row} is of the form {form}, but those before it of {before}; give one form at a time")]
    Mixed {
        /// Which row, from 1.
        row: usize,
        /// Its form.
        form: Form,
        /// The form of the first row.
        before: Form,
    },
    /// A row that does not fit its form.
    #[error("row {row}, of the form {form}: {field} {reason}")]
    Row {
        /// Which row, from 1.
        row: usize,
        /// Its form.
        form: Form,
        /// The field, in quotes, with a place in it.
        field: String,
        /// What is wrong with it, and what is known.
        reason: String,
    },
    /// Too few other questions for examples.
    #[error("{wanted} examples are wanted, but only {found} others are there{}", of_group(.group))]
    TooFewShots {
        /// How many are wanted.
        wanted: usize,
        /// How many there are.
        found: usize,
        /// The question's group.
        group: Option<String>,
    },
    /// As many log-likelihoods as there are choices are needed.
    #[error("{given} log-likelihoods for {choices} choices")]
    Count {
        /// How many were given.
        given: usize,
        /// How many choices there are.
        choices: usize,
    },
    /// A log-likelihood that is none.
    #[error("the log-likelihood of choice {choice} is {value}, which is not a number up to 0")]
    NotLogLikelihood {
        /// Which choice, from 0.
        choice: usize,
        /// The value.
        value: f64,
    },
}

fn of_group(group: &Option<String>) -> String {
    group.as_ref().map(|group| format!(" in the group {group:?}")).unwrap_or_default()
}
