//! Equality of texts, with what may differ.

use super::pattern::Pattern;
use super::{TextError, best, python};

/// Whether an answer equals a reference, after the same things were taken out of both: lm-evaluation-harness'
/// metric `exact_match` (`lm_eval/api/metrics.py`, `exact_match_hf_evaluate`), in its order: expressions,
/// case, punctuation, numbers.
///
/// By default nothing is taken out. lm-evaluation-harness cuts a text off where lower case makes it longer
/// (numpy's strings have a fixed width); here it is kept.
#[derive(Clone, Debug, Default)]
pub struct ExactMatch {
    /// What these match is taken out first, one after the other.
    pub remove: Vec<Pattern>,
    /// Compare lower case.
    pub ignore_case: bool,
    /// Take out ASCII punctuation, Python's `string.punctuation`.
    pub ignore_punctuation: bool,
    /// Take out the digits 0 to 9.
    pub ignore_numbers: bool,
    /// Take out whitespace at both ends, last of all; lm-evaluation-harness has a filter for it,
    /// `remove_whitespace`.
    pub strip: bool,
}

impl ExactMatch {
    /// 1 if the answer equals one of the references, else 0.
    pub fn score(&self, answer: &str, references: &[impl AsRef<str>]) -> Result<f64, TextError> {
        let answer = self.normalized(answer)?;
        best(references, |_, reference| Ok(f64::from(self.normalized(reference)? == answer)))
    }

    /// What is compared of a text.
    pub fn normalized(&self, text: &str) -> Result<String, TextError> {
        let mut text = text.to_string();
        for pattern in &self.remove {
            text = pattern.remove_from(&text)?;
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.ignore_punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        if self.ignore_numbers {
            text.retain(|c| !c.is_ascii_digit());
        }
        Ok(if self.strip { python::strip(&text).to_string() } else { text })
    }
}
