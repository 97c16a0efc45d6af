//! Metrics of a generated answer against its references. Each gives a number from 0 to 1 for an item, which
//! is what paired statistics need; those that are defined over a corpus (BLEU) have sums that add up, too.
//!
//! Numbers agree with the programs that people quote: lm-evaluation-harness 0.4.13 (exact match, regular
//! expressions, GSM8K's numbers), rouge-score 0.1.2, sacreBLEU 2.6.0 and the official script of SQuAD 2.0.
//!
//! # What it costs
//!
//! n and m are the tokens of answer and reference; what is not named here takes time and memory linear in the
//! texts.
//!
//! | metric | time | memory |
//! |---|---|---|
//! | ROUGE-N, BLEU, F1 | n log n | n + m |
//! | ROUGE-L | n m / 64 | n + m |
//! | ROUGE-Lsum | n m / 64, and at least n for each line of the reference | 8 MB, or √n m / 4 bytes if more |
//! | regular expressions | linear for each match | the matches, [`Pattern::MAX_MATCHES`] at most |
//! | JSON | linear, at worst 256 times | the value |

mod bleu;
mod exact;
mod f1;
mod json;
mod ngrams;
mod number;
mod pass;
mod pattern;
pub(crate) mod python;
mod rouge;

pub use bleu::{Bleu, BleuCounts};
pub use exact::ExactMatch;
pub use f1::{TokenF1, squad_normalized};
pub use json::{JsonMatch, JsonScore, equal as json_equal, first_value as first_json};
pub use number::{Decimal, NumberMatch};
pub use pass::pass_at_k;
pub use pattern::{Pattern, PatternMatch};
pub use rouge::{Rouge, RougeKind, RougeScore, porter_stem};

/// Why an answer has no score.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// An item without a reference.
    #[error("an answer is scored against references, and there is none; give the item at least one")]
    NoReferences,
    /// A regular expression that is none.
    #[error("the regular expression {pattern:?} cannot be read: {reason}")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A regular expression that takes too many steps over a text.
    #[error(
        "the regular expression {pattern:?} was given up: {reason}; write it with less that can match in \
         several ways"
    )]
    Search {
        /// As it was given.
        pattern: String,
        /// Which bound it met.
        reason: String,
    },
    /// A reference for [`JsonMatch`] that is not JSON.
    #[error("reference {index} is not JSON: {reason}")]
    NotJson {
        /// Which of the item's references, from 0.
        index: usize,
        /// What the parser said.
        reason: String,
    },
    /// A field for [`JsonMatch`] that is a malformed pointer.
    #[error(
        "the field {field:?} begins with a slash but is no JSON pointer: `~` is written `~0` there, `/` \
         is written `~1`"
    )]
    Field {
        /// As it was given.
        field: String,
    },
    /// A reference for [`NumberMatch`] without a number.
    #[error("reference {index} holds no number: {reference:?}")]
    NoNumber {
        /// Which of the item's references, from 0.
        index: usize,
        /// Its text.
        reference: String,
    },
    /// Numbers of samples of which pass@k is not defined.
    #[error(
        "pass@{k} of {samples} samples of which {passed} pass is not defined; k is 1 to {samples}, and no \
         more pass than there are"
    )]
    Samples {
        /// How many samples there are, n.
        samples: u64,
        /// How many of them pass, c.
        passed: u64,
        /// Of how many one should pass, k.
        k: u64,
    },
    /// A name that no metric has.
    #[error("no metric is called {given:?}; known are {}", Metric::NAMES.join(", "))]
    UnknownMetric {
        /// As it was given.
        given: String,
    },
}

/// A metric with its settings.
#[derive(Clone, Debug)]
pub enum Metric {
    /// Whether the texts are equal.
    ExactMatch(ExactMatch),
    /// Whether what a regular expression finds in the answer equals the reference.
    Pattern(Box<PatternMatch>),
    /// Whether the number that the answer ends in is the reference's.
    Number(NumberMatch),
    /// Whether the JSON in the answer is the reference's, or which share of its fields.
    Json(JsonMatch),
    /// The F-measure of ROUGE.
    Rouge(Rouge),
    /// Sentence BLEU.
    Bleu(Bleu),
    /// F1 of tokens as SQuAD counts it.
    TokenF1(TokenF1),
}

impl Metric {
    /// The names that [`Metric::named`] knows.
    pub const NAMES: &'static [&'static str] = &[
        "exact_match",
        "gsm8k_strict",
        "gsm8k_flexible",
        "number",
        "json",
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
        "bleu",
        "f1",
    ];

    /// The metric of a name, in its usual settings: `exact_match` compares texts to the byte, `json` whole
    /// values, ROUGE stems, as transformers' example of summarization does, BLEU keeps case. A
    /// [`Metric::Pattern`] has no usual settings.
    pub fn named(name: &str) -> Result<Metric, TextError> {
        let rouge = |kind| Metric::Rouge(Rouge { kind, stem: true });
        Ok(match name {
            "exact_match" => Metric::ExactMatch(ExactMatch::default()),
            "gsm8k_strict" => Metric::Number(NumberMatch::Strict),
            "gsm8k_flexible" => Metric::Number(NumberMatch::Flexible),
            "number" => Metric::Number(NumberMatch::Value),
            "json" => Metric::Json(JsonMatch::default()),
            "rouge1" => rouge(RougeKind::ONE),
            "rouge2" => rouge(RougeKind::TWO),
            "rougeL" => rouge(RougeKind::L),
            "rougeLsum" => rouge(RougeKind::Lsum),
            "bleu" => Metric::Bleu(Bleu::default()),
            "f1" => Metric::TokenF1(TokenF1),
            _ => return Err(TextError::UnknownMetric { given: name.into() }),
        })
    }

    /// The score of an answer, from 0 to 1: against the reference that it fits best, for BLEU against all of
    /// them.
    pub fn score(&self, answer: &str, references: &[impl AsRef<str>]) -> Result<f64, TextError> {
        match self {
            Metric::ExactMatch(metric) => metric.score(answer, references),
            Metric::Pattern(metric) => metric.score(answer, references),
            Metric::Number(metric) => metric.score(answer, references),
            Metric::Json(metric) => Ok(metric.score(answer, references)?.fields),
            Metric::Rouge(metric) => Ok(metric.score(answer, references)?.f1),
            Metric::Bleu(metric) => metric.sentence(answer, references),
            Metric::TokenF1(metric) => metric.score(answer, references),
        }
    }
}

/// The best score of the references, and 0 at least. `score` also gets the reference's index.
fn best<R: AsRef<str>>(
    references: &[R],
    mut score: impl FnMut(usize, &str) -> Result<f64, TextError>,
) -> Result<f64, TextError> {
    if references.is_empty() {
        return Err(TextError::NoReferences);
    }
    let mut best = 0.0f64;
    for (index, reference) in references.iter().enumerate() {
        best = best.max(score(index, reference.as_ref())?);
    }
    Ok(best)
}
