//! The learning rate over the steps, as transformers' schedulers have it.

use std::f64::consts::PI;

/// How the rate falls after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// In a straight line to zero.
    Linear,
    /// Along half a cosine to zero.
    Cosine,
    /// Not at all.
    Constant,
}

/// The part of the steps that is warm-up where nobody says otherwise.
const USUAL_WARMUP: f64 = 0.03;
/// In a run of fewer steps than this there is none then: its first step, whose rate is 0, would be much of
/// it.
const FEWEST_WARMED_UP: u64 = 10;

/// A schedule: warm-up from zero, then decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// What follows the warm-up.
    pub decay: Decay,
    /// A fraction of all steps, or a number of steps if 1 or more. `None`: 0.03, and no warm-up in a run of
    /// fewer than ten steps.
    pub warmup: Option<f64>,
}

impl Schedule {
    /// Steps of warm-up in a run of `steps`.
    pub fn warmup_steps(&self, steps: u64) -> u64 {
        match self.warmup {
            None if steps < FEWEST_WARMED_UP => 0,
            Some(number) if number >= 1.0 => number as u64,
            fraction => (fraction.unwrap_or(USUAL_WARMUP) * steps as f64).ceil() as u64,
        }
    }

    /// What the base rate is multiplied with at `step` (from 1) of `steps`. As in transformers, the first
    /// step has the factor for step 0, so under a warm-up its rate is 0 (`optimization.py`,
    /// `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup`).
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let (n, warmup) = (step - 1, self.warmup_steps(steps));
        if n < warmup {
            return n as f64 / warmup.max(1) as f64;
        }
        let rest = steps.saturating_sub(warmup).max(1) as f64;
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => (steps.saturating_sub(n) as f64 / rest).max(0.0),
            Decay::Cosine => (0.5 * (1.0 + (PI * (n - warmup) as f64 / rest).cos())).max(0.0),
        }
    }

    /// The largest factor in the first `done` steps of a run of `steps`: that of the step behind the warm-up,
    /// or the last one.
    pub fn peak(&self, done: u64, steps: u64) -> f64 {
        self.factor(done.min(self.warmup_steps(steps).saturating_add(1)), steps)
    }
}
