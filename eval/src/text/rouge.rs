//! ROUGE.

mod lcs;
mod porter;

use std::borrow::Cow;
use std::num::NonZeroU8;

use super::TextError;
use super::ngrams::{Vocabulary, counts, overlap};
use lcs::{Positions, Union, length};

pub use porter::stem as porter_stem;

/// ROUGE (Lin, 2004) as Google's `rouge_score` 0.1.2 computes it (`rouge_scorer.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rouge {
    /// What is counted.
    pub kind: RougeKind,
    /// Compare stems, `use_stemmer=True`: of words of more than three letters, by [`porter_stem`].
    pub stem: bool,
}

/// What ROUGE counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RougeKind {
    /// n-grams that answer and reference have in common.
    N(NonZeroU8),
    /// The longest common subsequence.
    L,
    /// For each sentence of the reference what it has in common with any sentence of the answer (section 3.2
    /// of the paper), no token counted twice. A sentence is a line.
    Lsum,
}

impl RougeKind {
    /// ROUGE-1.
    pub const ONE: RougeKind = RougeKind::N(NonZeroU8::MIN);
    /// ROUGE-2.
    pub const TWO: RougeKind = RougeKind::N(NonZeroU8::MIN.saturating_add(1));
}

/// How much answer and reference have in common, from 0 to 1 each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RougeScore {
    /// The share of the answer.
    pub precision: f64,
    /// The share of the reference.
    pub recall: f64,
    /// The harmonic mean of both, `fmeasure` there.
    pub f1: f64,
}

impl RougeScore {
    /// `hits` of so many parts of the answer and of the reference.
    fn new(hits: u64, answer: usize, reference: usize) -> Self {
        let precision = hits as f64 / answer.max(1) as f64;
        let recall = hits as f64 / reference.max(1) as f64;
        let sum = precision + recall;
        RougeScore { precision, recall, f1: if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 } }
    }
}

impl Rouge {
    /// The score against the reference with the largest F-measure, of equal ones the first (`score_multi`).
    pub fn score(&self, answer: &str, references: &[impl AsRef<str>]) -> Result<RougeScore, TextError> {
        let scores = references.iter().map(|reference| self.against(answer, reference.as_ref()));
        scores.reduce(|best, next| if next.f1 > best.f1 { next } else { best }).ok_or(TextError::NoReferences)
    }

    fn against(&self, answer: &str, reference: &str) -> RougeScore {
        let mut vocabulary = Vocabulary::default();
        if self.kind == RougeKind::Lsum {
            let mut lines = |text: &str| -> Vec<Vec<u32>> {
                text.split('\n').map(|line| vocabulary.ids(self.tokens(line))).collect()
            };
            let (answer, reference) = (lines(answer), lines(reference));
            return summary(&answer, &reference, vocabulary.len());
        }
        let answer = vocabulary.ids(self.tokens(answer));
        let reference = vocabulary.ids(self.tokens(reference));
        match self.kind {
            RougeKind::N(n) => {
                let n = usize::from(n.get());
                let hits = overlap(&counts(&answer, n), &counts(&reference, n));
                let grams = |tokens: &[u32]| (tokens.len() + 1).saturating_sub(n);
                RougeScore::new(hits, grams(&answer), grams(&reference))
            }
            RougeKind::L | RougeKind::Lsum => {
                let hits = length(&reference, &answer, vocabulary.len()) as u64;
                RougeScore::new(hits, answer.len(), reference.len())
            }
        }
    }

    /// The tokens of a text: runs of ASCII letters and digits in lower case, perhaps stemmed (`tokenize.py`).
    /// Text in other scripts has none, there as here.
    pub fn tokens(&self, text: &str) -> Vec<String> {
        let lower = text.to_lowercase();
        let tokens = lower.split(|c: char| !c.is_ascii_alphanumeric());
        tokens
            .map(|token| match self.stem && token.len() > 3 {
                true => porter_stem(token),
                false => Cow::Borrowed(token),
            })
            .filter(|token| !token.is_empty())
            .map(Cow::into_owned)
            .collect()
    }
}

/// ROUGE-Lsum of sentences (`_summary_level_lcs`), of tokens below `vocabulary`.
fn summary(answer: &[Vec<u32>], reference: &[Vec<u32>], vocabulary: usize) -> RougeScore {
    let left = |sentences: &[Vec<u32>]| {
        let mut left = vec![0u32; vocabulary];
        sentences.iter().flatten().for_each(|&token| left[token as usize] += 1);
        left
    };
    let (mut in_answer, mut in_reference) = (left(answer), left(reference));
    let mut positions = Positions::new(vocabulary);
    let mut union = Union::default();
    let mut hits = 0;
    for sentence in reference.iter().filter(|sentence| !sentence.is_empty()) {
        positions.of(sentence);
        for token in union.of(&positions, sentence, answer) {
            let token = token as usize;
            // What the answer says once is a hit once, as in ROUGE 1.5.5.
            if in_answer[token] > 0 && in_reference[token] > 0 {
                hits += 1;
                in_answer[token] -= 1;
                in_reference[token] -= 1;
            }
        }
    }
    RougeScore::new(hits, answer.iter().map(Vec::len).sum(), reference.iter().map(Vec::len).sum())
}
