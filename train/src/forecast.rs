//! How long a run takes, from what its parts were measured to take.

use std::time::Duration;

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of all steps.
    pub tokens: u64,
    /// The tokens among them that are passed for the first time.
    pub first_tokens: u64,
    /// Evaluations, the one before the first step included.
    pub evaluations: u64,
    /// Tokens of one of them.
    pub eval_tokens: u64,
    /// Tokens that pass, with the adapter or without it, to tell what the model forgets, all times together.
    pub compared_tokens: u64,
}

/// Seconds that the parts of a run take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// A token that is passed for the first time, forward and backward.
    pub first: f64,
    /// A token that is passed again: less where what frozen layers give was kept.
    pub again: f64,
    /// An update of the trained tensors.
    pub update: f64,
    /// A held-out token in the first evaluation and in those after it; nothing is kept of a token that tells what
    /// the model forgets, which takes as long as the first.
    pub evaluate: [f64; 2],
}

impl Amount {
    /// How long all of it takes at this pace, without loading and saving.
    pub fn time(self, pace: Pace) -> Duration {
        let again = (self.tokens - self.first_tokens) as f64;
        let steps =
            self.first_tokens as f64 * pace.first + again * pace.again + self.steps as f64 * pace.update;
        let evaluation = |i: usize| self.eval_tokens as f64 * pace.evaluate[i];
        let evaluations = match self.evaluations {
            0 => 0.0,
            n => evaluation(0) + (n - 1) as f64 * evaluation(1),
        };
        let compared = self.compared_tokens as f64 * pace.evaluate[0];
        Duration::from_secs_f64(steps + evaluations + compared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Amount = Amount {
        steps: 10,
        tokens: 1000,
        first_tokens: 400,
        evaluations: 5,
        eval_tokens: 50,
        compared_tokens: 70,
    };

    #[test]
    fn the_time_is_that_of_every_pass_update_and_evaluation() {
        let pace = Pace { first: 0.5, again: 0.25, update: 2.0, evaluate: [0.2, 0.1] };
        let seconds = 400.0 * 0.5 + 600.0 * 0.25 + 10.0 * 2.0 + 50.0 * 0.2 + 4.0 * 50.0 * 0.1 + 70.0 * 0.2;
        assert_eq!(RUN.time(pace), Duration::from_secs_f64(seconds));
    }
}
