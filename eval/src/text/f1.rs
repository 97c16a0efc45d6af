//! F1 of tokens.

use super::ngrams::{Vocabulary, counts, overlap};
use super::{TextError, best, python};

/// F1 of the tokens of answer and reference, each counted as often as it stands there: the official script of
/// SQuAD 2.0 (Rajpurkar et al., 2018; `evaluate-v2.0.py`, `compute_f1`). If either has no tokens, it is 1 if
/// both have none, else 0; the script of SQuAD 1.1 gives 0 to both.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenF1;

impl TokenF1 {
    /// The best F1 of the references.
    pub fn score(&self, answer: &str, references: &[impl AsRef<str>]) -> Result<f64, TextError> {
        let answer = squad_normalized(answer);
        best(references, |_, reference| {
            let reference = squad_normalized(reference);
            let mut vocabulary = Vocabulary::default();
            let answer = vocabulary.ids(python::split(&answer));
            let reference = vocabulary.ids(python::split(&reference));
            if answer.is_empty() || reference.is_empty() {
                return Ok(f64::from(answer.is_empty() && reference.is_empty()));
            }
            let same = overlap(&counts(&answer, 1), &counts(&reference, 1)) as f64;
            if same == 0.0 {
                return Ok(0.0);
            }
            let (precision, recall) = (same / answer.len() as f64, same / reference.len() as f64);
            Ok(2.0 * precision * recall / (precision + recall))
        })
    }
}

/// A text in lower case without ASCII punctuation, without the words a, an and the, and with single spaces
/// (`normalize_answer` of SQuAD's script). Two texts that are equal so are SQuAD's exact match.
pub fn squad_normalized(text: &str) -> String {
    let mut lower = text.to_lowercase();
    lower.retain(|c| !c.is_ascii_punctuation());
    let mut kept = String::with_capacity(lower.len());
    let mut end = 0;
    for word in python::words(&lower).filter(|word| matches!(&lower[word.clone()], "a" | "an" | "the")) {
        kept.push_str(&lower[end..word.start]);
        kept.push(' ');
        end = word.end;
    }
    kept.push_str(&lower[end..]);
    python::split(&kept).collect::<Vec<_>>().join(" ")
}
