//! BLEU.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

use super::ngrams::{Vocabulary, counts, overlap, union};
use super::{TextError, python};

/// The longest n-grams that count.
const ORDERS: usize = 4;

/// BLEU (Papineni et al., 2002) as sacreBLEU 2.6.0 computes it by default: signature
/// `nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp`, for sentences `eff:yes`. Scores are from 0 to 1, a
/// hundredth of sacreBLEU's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bleu {
    /// Compare lower case (`case:lc`).
    pub lowercase: bool,
}

/// What BLEU is computed from. Items' counts add up to those of a corpus, and to those of a resampled one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BleuCounts {
    /// Tokens of the answers.
    pub answer_len: u64,
    /// Tokens of the references: of each item's the one that is nearest in length to the answer, of two such
    /// the shorter.
    pub reference_len: u64,
    /// The n-grams of the answers that stand in a reference, for n from 1 to 4.
    pub correct: [u64; ORDERS],
    /// All n-grams of the answers.
    pub total: [u64; ORDERS],
}

impl Bleu {
    /// The counts of an item.
    pub fn counts(&self, answer: &str, references: &[impl AsRef<str>]) -> Result<BleuCounts, TextError> {
        if references.is_empty() {
            return Err(TextError::NoReferences);
        }
        let mut vocabulary = Vocabulary::default();
        let answer = vocabulary.ids(self.tokens(answer));
        let references: Vec<Vec<u32>> =
            references.iter().map(|reference| vocabulary.ids(self.tokens(reference.as_ref()))).collect();
        let nearest =
            references.iter().map(Vec::len).min_by_key(|&len| (len.abs_diff(answer.len()), len)).unwrap_or(0);
        let mut item = BleuCounts {
            answer_len: answer.len() as u64,
            reference_len: nearest as u64,
            ..BleuCounts::default()
        };
        for n in 1..=ORDERS {
            let in_references =
                references.iter().map(|reference| counts(reference, n)).reduce(union).unwrap_or_default();
            item.correct[n - 1] = overlap(&counts(&answer, n), &in_references);
            item.total[n - 1] = (answer.len() + 1).saturating_sub(n) as u64;
        }
        Ok(item)
    }

    /// BLEU of one answer, over the orders that it is long enough for (`sacrebleu.sentence_bleu`).
    pub fn sentence(&self, answer: &str, references: &[impl AsRef<str>]) -> Result<f64, TextError> {
        Ok(self.counts(answer, references)?.score_of_orders(true))
    }

    /// The tokens of a text: those of `mteval-v13a`, the tokenizer of WMT
    /// (`sacrebleu/tokenizers/tokenizer_13a.py` and `tokenizer_re.py`).
    pub fn tokens(&self, text: &str) -> Vec<String> {
        let text = python::strip_end(text);
        let mut text = if self.lowercase { text.to_lowercase() } else { text.to_string() };
        for (from, to) in [("<skipped>", ""), ("-\n", ""), ("\n", " ")] {
            text = text.replace(from, to);
        }
        for (from, to) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            text = text.replace(from, to);
        }
        let spaced = spaced(&format!(" {text} "));
        python::split(&spaced).map(str::to_string).collect()
    }
}

/// Spaces around punctuation. The four passes are the four expressions of sacreBLEU's `TokenizerRegexp`, in
/// its order; what a pass has matched it does not look at again, as `re.sub` does not.
fn spaced(text: &str) -> String {
    let mut apart = String::with_capacity(2 * text.len());
    for c in text.chars() {
        // ([\{-\~\[-\` -\&\(-\+\:-\@\/])
        if matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/') {
            apart.extend([' ', c, ' ']);
        } else {
            apart.push(c);
        }
    }
    let is_stop = |c: char| c == '.' || c == ',';
    // ([^0-9])([\.,]): a period or comma is apart unless a digit stands before it,
    let apart = pass(&apart, |a, b| !a.is_ascii_digit() && is_stop(b), |a, b| vec![a, ' ', b, ' ']);
    // ([\.,])([^0-9]): or after it;
    let apart = pass(&apart, |a, b| is_stop(a) && !b.is_ascii_digit(), |a, b| vec![' ', a, ' ', b]);
    // ([0-9])(-): a dash is if a digit stands before it.
    pass(&apart, |a, b| a.is_ascii_digit() && b == '-', |a, b| vec![a, ' ', b, ' '])
}

/// Replaces pairs of neighbouring characters, from left to right, that have no character in common.
fn pass(
    text: &str,
    is_found: impl Fn(char, char) -> bool,
    becomes: impl Fn(char, char) -> Vec<char>,
) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 4);
    let mut chars = text.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.next_if(|&b| is_found(a, b)) {
            Some(b) => out.extend(becomes(a, b)),
            None => out.push(a),
        }
    }
    out
}

impl BleuCounts {
    /// BLEU of a corpus with these counts, from 0 to 1 (`sacrebleu.corpus_bleu`).
    pub fn score(&self) -> f64 {
        self.score_of_orders(false)
    }

    /// What an answer that is shorter than its reference is multiplied by, exp(1 - r / c).
    pub fn brevity_penalty(&self) -> f64 {
        match (self.answer_len, self.reference_len) {
            (answer, reference) if answer >= reference => 1.0,
            (0, _) => 0.0,
            (answer, reference) => (1.0 - reference as f64 / answer as f64).exp(),
        }
    }

    /// sacreBLEU's `BLEU.compute_bleu` with exponential smoothing (Chen and Cherry, 2014, method 3): the k-th
    /// order without a match counts as 1 / 2^k matches. `effective`: leave out orders that are longer than
    /// every answer, which else make the score 0.
    fn score_of_orders(&self, effective: bool) -> f64 {
        if self.correct.iter().all(|&count| count == 0) {
            return 0.0;
        }
        let orders = self.total.iter().take_while(|&&total| total > 0).count();
        if orders < ORDERS && !effective {
            return 0.0;
        }
        let mut smoothed = 1.0;
        let logs = (0..orders).map(|n| {
            let total = self.total[n] as f64;
            match self.correct[n] {
                0 => {
                    smoothed *= 2.0;
                    (1.0 / (smoothed * total)).ln()
                }
                correct => (correct as f64 / total).ln(),
            }
        });
        let mean = logs.sum::<f64>() / orders as f64;
        (self.brevity_penalty() * mean.exp()).clamp(0.0, 1.0)
    }
}

impl Add for BleuCounts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for BleuCounts {
    fn add_assign(&mut self, other: Self) {
        self.answer_len += other.answer_len;
        self.reference_len += other.reference_len;
        for n in 0..ORDERS {
            self.correct[n] += other.correct[n];
            self.total[n] += other.total[n];
        }
    }
}

impl Sum for BleuCounts {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(BleuCounts::default(), Add::add)
    }
}
