//! Which tokens may come next: a rule that a request brings, such as a grammar. What it is about is its own
//! business.

use std::fmt::Debug;

/// Why a rule could not go on, in words for whoever asked.
pub type Reason = String;

/// The tokens that may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Token `t` may come if bit `t % 32` of word `t / 32` is set; tokens beyond the words may not.
    pub tokens: Vec<u32>,
    /// Whether the sequence may end here: then the request's stop tokens may come, too.
    pub may_end: bool,
}

impl Allowed {
    /// Whether a token may come as a part of the sequence.
    pub fn has(&self, token: u32) -> bool {
        self.tokens.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Logits `[V]` with those of all other tokens at minus infinity; `stop` may come where the sequence may end.
    /// Whether anything is left.
    pub(crate) fn mask(&self, logits: &[f32], stop: &[u32], masked: &mut Vec<f32>) -> bool {
        masked.clear();
        masked.extend(
            (0..).zip(logits).map(|(token, &logit)| if self.has(token) { logit } else { f32::NEG_INFINITY }),
        );
        for &token in stop.iter().filter(|_| self.may_end) {
            if let (Some(masked), Some(&logit)) = (masked.get_mut(token as usize), logits.get(token as usize))
            {
                *masked = logit;
            }
        }
        masked.iter().any(|logit| *logit > f32::NEG_INFINITY)
    }
}

/// A rule over the new tokens of one sequence. What it allows must depend on the tokens that it has taken alone.
pub trait Constraint: Debug + Send + Sync {
    /// What may come next. It may take its time: it is asked while the model computes.
    ///
    /// # Errors
    /// If it cannot go on; the request fails with that.
    fn allowed(&mut self) -> Result<Allowed, Reason>;

    /// Takes a token that has come.
    ///
    /// # Errors
    /// If it cannot go on; the request fails with that.
    fn accept(&mut self, token: u32) -> Result<(), Reason>;

    /// Whether nothing more may come: the sequence ends with the token that was taken last.
    fn is_over(&self) -> bool;

    /// The same rule for another sequence, as far as this one has come.
    fn copy(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.copy()
    }
}
