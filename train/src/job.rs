//! What a run is, what it tells while it goes, and how it ends.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use data::{Dataset, Example, OrderSpec};
use model::{Adapter, Checkpointing, Decoder, Extent, Purpose};

use crate::checkpoint::Best;
use crate::error::Result;
use crate::metrics::{EvalMetrics, ForgettingMetrics, StepMetrics};
use crate::optimizer::OptimizerSettings;
use crate::saving::Saving;
use crate::schedule::Schedule;

/// When checkpoints are saved. It changes no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saves {
    /// After so many steps.
    EverySteps(u64),
    /// At the first step's end after so much time.
    Every(Duration),
}

/// All settings of the loop.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The update rule and its rates.
    pub optimizer: OptimizerSettings,
    /// How the rate changes over the steps.
    pub schedule: Schedule,
    /// Shuffling and packing.
    pub order: OrderSpec,
    /// Passes over the data.
    pub epochs: u64,
    /// Ends the run early; the schedule's number of steps if set.
    pub max_steps: Option<u64>,
    /// Rows per optimizer step.
    pub batch_size: usize,
    /// Tokens in memory at once; an example is never cut, so a longer one is a micro-batch of its own.
    pub micro_batch_tokens: usize,
    /// What the forward pass keeps.
    pub checkpointing: Checkpointing,
    /// Bytes that may be in memory of what frozen layers give for examples that come again, the rest being in
    /// a file; `None`: it is computed again. It changes no result.
    pub frozen_activations: Option<u64>,
    /// Steps between evaluations; `None`: one after each epoch. One stands before the first step and after
    /// the last at any rate.
    pub eval_every: Option<u64>,
    /// When checkpoints are saved, beside the one at the end.
    pub saves: Saves,
    /// Checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Evaluations without improvement after which the run ends with the best tensors.
    pub early_stopping_patience: Option<u64>,
    /// Also writes the lines of `metrics.jsonl` as an event file for TensorBoard. It changes no result.
    pub tensorboard: bool,
    /// How much the load of experts counts beside the loss ([`Run::router_aux_loss`](model::Run::router_aux_loss)).
    pub router_aux_loss: f32,
    /// Seed of dropout.
    pub seed: u64,
}

/// What tells, while a run goes, how much of what the model knew is being forgotten: texts that it is not trained
/// on, by which the model with its adapter is held against its base.
#[derive(Clone, Copy, Debug)]
pub struct Forgetting<'a> {
    /// The texts.
    pub texts: &'a [Example],
    /// Steps between two measurements; one stands after the last step at any rate.
    pub every: u64,
    /// A mean divergence from the base, in nats a token, beyond which the run ends. The result is then that of
    /// the last measurement that was not beyond it, if there is one.
    pub limit: Option<f64>,
}

impl Forgetting<'_> {
    /// Measurements that are due after a later step than `step`, until the `last`.
    pub(crate) fn times(&self, step: u64, last: u64) -> u64 {
        if step >= last { 0 } else { (last - 1) / self.every - step / self.every + 1 }
    }
}

/// What the loop tells while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// A checkpoint is not what was saved; the run goes on from one before it.
    Damaged {
        /// The checkpoint.
        path: &'a Path,
        /// What is wrong with it.
        why: &'a str,
    },
    /// The loop begins, or goes on, after `step` of `steps`.
    Started {
        /// Steps done before.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Evaluations that are still to come.
        evaluations: u64,
        /// Measurements of what is forgotten that are still to come.
        measurements: u64,
    },
    /// A step is done.
    Step(&'a StepMetrics),
    /// An evaluation is done.
    Evaluated {
        /// Its line.
        metrics: &'a EvalMetrics,
        /// The best one so far, whose tensors are kept.
        best: Best,
        /// Evaluations since then.
        since_best: u64,
        /// How long it took.
        time: Duration,
        /// The tensors that were evaluated, of which training goes on.
        adapter: &'a Adapter,
    },
    /// How much is forgotten was measured.
    Measured {
        /// Its line.
        metrics: &'a ForgettingMetrics,
        /// How long it took.
        time: Duration,
    },
    /// A checkpoint stands.
    Saved(&'a Path),
    /// The run ends on request; this checkpoint has all of it.
    Stopped(&'a Path),
    /// Early stopping ends the run; the tensors of `step` are the result.
    StoppedEarly {
        /// The step of the best evaluation.
        step: u64,
        /// Its loss.
        eval_loss: f64,
    },
    /// The run ends since it forgets more than [`Forgetting::limit`] allows.
    Forgot {
        /// The divergence that was measured.
        divergence: f64,
        /// The step whose tensors are the result: the last one after which less was forgotten; none: there is no such
        /// step, and the result is that of the last one.
        step: Option<u64>,
    },
    /// The result is, to the byte, what the run began with.
    Unchanged,
    /// Every B of the result is zero: the adapter changes nothing.
    NoEffect,
    /// The run has ended so, and its result, if there is one, is written: told as it happens, while the runs
    /// beside it may go on for long. Nothing more is told of it.
    Ended(&'a Result<Outcome>),
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The result is written.
    Finished,
    /// The run was finished before; nothing was done.
    AlreadyFinished,
    /// Stopped on request after saving a checkpoint.
    Interrupted,
    /// Evaluated and saved where it was to pause ([`Job::pause`]).
    Paused,
}

/// A run: what to train, on what, how and where.
#[derive(Debug)]
pub struct Job<'a> {
    /// The frozen base.
    pub decoder: &'a Decoder,
    /// What is trained, with its initial values.
    pub adapter: Adapter,
    /// How trained tensors are written.
    pub saving: Saving<'a>,
    /// Training examples.
    pub train: &'a Dataset,
    /// Held-out examples; may be empty.
    pub eval: &'a [Example],
    /// What tells how much the model forgets.
    pub forgetting: Option<Forgetting<'a>>,
    /// Settings of the loop.
    pub settings: Settings,
    /// The run folder.
    pub folder: &'a Path,
    /// Set from outside to end the run after the step at hand.
    pub stop: &'a AtomicBool,
    /// A step after which the run is evaluated, saved and left, to be taken up another time. It changes no
    /// result.
    pub pause: Option<u64>,
}

/// What runs that train together have in common beside the base: the buffers of their passes. It changes no
/// result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Together {
    /// Tokens in memory at once, of all runs; a micro-batch of one run has room at any rate.
    pub tokens: usize,
    /// What the forward pass keeps.
    pub checkpointing: Checkpointing,
}

impl Together {
    /// The buffers of a run alone.
    pub fn alone(settings: &Settings) -> Self {
        Together { tokens: settings.micro_batch_tokens, checkpointing: settings.checkpointing }
    }

    /// The buffers for all of these runs, of which each would need so much alone.
    ///
    /// # Panics
    /// If there is no run.
    pub fn extent(self, alone: impl IntoIterator<Item = Extent>) -> Extent {
        let (mut most, mut sum, mut joint) = (0, 0usize, None::<Extent>);
        for extent in alone {
            (most, sum) = (extent.tokens.max(most), sum.saturating_add(extent.tokens));
            let positions = joint.map_or(0, |joint| joint.positions).max(extent.positions);
            joint = Some(Extent { positions, ..extent });
        }
        let purpose = Purpose::Train(self.checkpointing);
        Extent { tokens: self.tokens.min(sum).max(most), purpose, ..joint.expect("there is a run") }
    }
}
