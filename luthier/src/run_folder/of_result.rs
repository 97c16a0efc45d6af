//! Which of a run's steps its result is of, and what was measured there.

use train::{EvalMetrics, ForgettingMetrics, History};

use crate::run_file::RunFile;

/// What is known of a run's result. Of a run that goes on, it is what would be its result now.
pub(crate) struct OfResult<'a> {
    /// Steps done before the result's tensors.
    pub(crate) step: u64,
    /// Whether it has forgotten more than is allowed: no measurement was within the limit.
    pub(crate) is_beyond: bool,
    /// The last evaluation up to there.
    pub(crate) evaluation: Option<&'a EvalMetrics>,
    /// The last measurement of what is forgotten up to there.
    pub(crate) forgetting: Option<&'a ForgettingMetrics>,
}

impl<'a> OfResult<'a> {
    /// By the rules of the training loop: what was forgotten beyond a limit is taken back, and a run that may
    /// stop early ends with its best evaluation.
    pub(crate) fn of(run: &RunFile, history: &'a History) -> Self {
        let training = &run.training;
        let within = training.forgetting_limit.and_then(|limit| history.within(limit));
        let best = || history.evaluations.iter().min_by(|a, b| a.eval_loss.total_cmp(&b.eval_loss));
        let best = training.early_stopping_patience.and_then(|_| best());
        let last = history.steps.last().map_or(0, |step| step.step);
        let step = within.map(|of| of.step).or(best.map(|of| of.step)).unwrap_or(last);
        let beyond = |limit| history.forgetting.last().is_some_and(|of| of.forgetting_kl > limit);
        OfResult {
            step,
            is_beyond: within.is_none() && training.forgetting_limit.is_some_and(beyond),
            evaluation: history.evaluations.iter().rfind(|of| of.step <= step),
            forgetting: history.forgetting.iter().rfind(|of| of.step <= step),
        }
    }
}
