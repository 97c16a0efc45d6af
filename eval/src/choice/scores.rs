//! What log-likelihoods of choices are worth.

use std::collections::BTreeMap;

use super::{ChoiceError, Question};

/// What a model said of a choice's continuation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// The sum of the log-probabilities of its tokens, in nats; 0 at most, perhaps minus infinity.
    pub log: f64,
    /// How many tokens it has.
    pub tokens: usize,
    /// Whether each of them is the likeliest there.
    pub greedy: bool,
}

/// The scores of an item, each from 0 to 1. Of equal choices the first is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// The likeliest choice.
    pub chosen: usize,
    /// Whether that is right: lm-evaluation-harness' `acc`, and QLoRA's accuracy of MMLU (argmax over A to
    /// D).
    pub acc: f64,
    /// The same of log-likelihoods divided by the characters (code points) of the choice, without the space
    /// before it: `acc_norm`. (It is often described as divided by bytes, which is `acc_bytes`. They differ
    /// beyond ASCII.)
    pub acc_norm: f64,
    /// Divided by the choice's bytes in UTF-8: `acc_bytes`.
    pub acc_bytes: f64,
    /// Divided by the continuation's tokens, as for GPT-3 (Brown et al., 2020, section 2.4); not in
    /// lm-evaluation-harness.
    pub acc_tokens: f64,
    /// The probability of the right choices among all of the choices: `acc` of truthfulqa_mc2.
    pub mass: f64,
    /// Whether greedy decoding would write a right choice: `exact_match`.
    pub exact_match: f64,
}

impl Question {
    /// The scores for a log-likelihood of each choice (`ConfigurableTask.process_results` of output type
    /// `multiple_choice`, and `process_results_mc2` of `truthfulqa/utils.py`).
    pub fn scores(&self, likelihoods: &[Likelihood]) -> Result<Scores, ChoiceError> {
        if likelihoods.len() != self.len() {
            return Err(ChoiceError::Count { given: likelihoods.len(), choices: self.len() });
        }
        let is_none = |likelihood: &Likelihood| likelihood.log.is_nan() || likelihood.log > 0.0;
        if let Some(choice) = likelihoods.iter().position(is_none) {
            return Err(ChoiceError::NotLogLikelihood { choice, value: likelihoods[choice].log });
        }
        let is_right = |choice: usize| f64::from(self.right[choice]);
        // A choice without length is as unlikely as can be.
        let by = |length: &dyn Fn(usize) -> usize| {
            argmax(likelihoods.iter().enumerate().map(|(choice, likelihood)| match length(choice) {
                0 => f64::NEG_INFINITY,
                length => likelihood.log / length as f64,
            }))
        };
        let chosen = by(&|_| 1);
        let greedy =
            likelihoods.iter().zip(&self.right).any(|(likelihood, &right)| right && likelihood.greedy);
        Ok(Scores {
            chosen,
            acc: is_right(chosen),
            acc_norm: is_right(by(&|choice| self.choices[choice].chars().count())),
            acc_bytes: is_right(by(&|choice| self.choices[choice].len())),
            acc_tokens: is_right(by(&|choice| likelihoods[choice].tokens)),
            mass: self.mass(likelihoods),
            exact_match: f64::from(greedy),
        })
    }

    /// Relative to the largest, so that long choices do not all come to a probability of 0, where
    /// lm-evaluation-harness divides 0 by 0. If all are minus infinity it is 0.
    fn mass(&self, likelihoods: &[Likelihood]) -> f64 {
        let largest = likelihoods.iter().map(|likelihood| likelihood.log).fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY {
            return 0.0;
        }
        let (mut right, mut all) = (0.0, 0.0);
        for (likelihood, &is_right) in likelihoods.iter().zip(&self.right) {
            let probability = (likelihood.log - largest).exp();
            all += probability;
            right += if is_right { probability } else { 0.0 };
        }
        right / all
    }
}

/// The index of the largest value, of equal ones the first.
fn argmax(values: impl Iterator<Item = f64>) -> usize {
    let first = (0, f64::NEG_INFINITY);
    values.enumerate().fold(first, |best, next| if next.1 > best.1 { next } else { best }).0
}

/// Means of items' scores, of all and by group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupMeans {
    /// The mean over items: lm-evaluation-harness' accuracy of `mmlu`, whose groups are weighted by their
    /// size.
    pub over_items: f64,
    /// The mean over the groups' means: QLoRA's accuracy of MMLU (`qlora.py`, `MMLUEvalCallback`).
    pub over_groups: f64,
    /// Each group, in the order of their names; items without one are a group of their own, the first.
    pub groups: Vec<GroupMean>,
}

/// The mean of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupMean {
    /// Its name.
    pub group: Option<String>,
    /// How many items it has.
    pub items: usize,
    /// The mean of their scores.
    pub mean: f64,
}

impl GroupMeans {
    /// The means of scores with their groups; none of no scores.
    pub fn of<'a>(scores: impl IntoIterator<Item = (Option<&'a str>, f64)>) -> Option<Self> {
        let mut sums: BTreeMap<Option<&str>, (usize, f64)> = BTreeMap::new();
        for (group, score) in scores {
            let (items, sum) = sums.entry(group).or_default();
            *items += 1;
            *sum += score;
        }
        let groups: Vec<GroupMean> = sums
            .iter()
            .map(|(group, &(items, sum))| GroupMean {
                group: group.map(String::from),
                items,
                mean: sum / items as f64,
            })
            .collect();
        let items: usize = sums.values().map(|(items, _)| items).sum();
        let sum: f64 = sums.values().map(|(_, sum)| sum).sum();
        let means: f64 = groups.iter().map(|group| group.mean).sum();
        (items > 0).then(|| GroupMeans {
            over_items: sum / items as f64,
            over_groups: means / groups.len() as f64,
            groups,
        })
    }
}
