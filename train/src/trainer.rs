//! The optimizer's loop.
//!
//! A step is: the examples that the plan names, in micro-batches that fit the memory; the sum of token losses
//! over the whole step divided by its trained tokens, whatever the micro-batches; clip; update; a line of
//! metrics. Nothing that a step does depends on anything but the state at its beginning, so a run that is
//! stopped anywhere and resumed writes the bytes of one that was not.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use compute::ops::{copy, reduce};
use compute::{MatrixRef, random};
use data::{Dataset, Example, OrderSpec};
use model::checkpoint::sweep;
use model::memory::{Allocator, Component, MemoryPlan};
use model::{
    Activations, Adapter, Batch, Checkpointing, Config, Decoder, Extent, FrozenActivations, FrozenExtent,
    Layout, Parameters, Run,
};

use crate::checkpoint::{Best, Checkpoints, Damaged, Restored, State};
use crate::error::{Result, TrainError};
use crate::forecast::Pace;
use crate::metrics::{EvalMetrics, MetricsFile, StepMetrics, peak_memory_bytes};
use crate::optimizer::{Optimizer, OptimizerSettings};
use crate::plan::StepPlan;
use crate::saving::Saving;
use crate::schedule::Schedule;

/// Batches that are measured at most to tell a run's time.
const REHEARSED: u64 = 16;

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
    /// How much the load of experts counts beside the loss ([`Run::router_aux_loss`]).
    pub router_aux_loss: f32,
    /// Seed of dropout.
    pub seed: u64,
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
    /// The result is, to the byte, what the run began with.
    Unchanged,
    /// Every B of the result is zero: the adapter changes nothing.
    NoEffect,
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
    /// Settings of the loop.
    pub settings: Settings,
    /// The run folder.
    pub folder: &'a Path,
    /// Set from outside to end the run after the step at hand.
    pub stop: &'a AtomicBool,
}

/// The memory of trained tensors, gradients, moments and activations, without the base. `frozen`: what is
/// kept of what frozen layers give.
pub fn memory_plan(
    config: &Config,
    layout: &Layout,
    dropout: f32,
    optimizer: OptimizerSettings,
    extent: Extent,
    frozen: Option<FrozenExtent<'_>>,
) -> MemoryPlan {
    let mut planning = Allocator::planning();
    Adapter::count(layout, &mut planning);
    Parameters::zeros(layout, Component::Gradients, &mut planning);
    Optimizer::new(optimizer, layout, &mut planning);
    Activations::new(config, layout, dropout, extent, &mut planning);
    if let Some(frozen) = frozen {
        FrozenActivations::new(config, layout, extent.precision, frozen, &mut planning);
    }
    planning.into_plan()
}

/// Runs a job to its end, from its last checkpoint if it has one.
pub fn train(job: Job<'_>, observe: &mut dyn FnMut(Event<'_>)) -> Result<Outcome> {
    Trainer::open(job)?.run(observe)
}

/// A run that stands at its last checkpoint, or at its beginning.
#[derive(Debug)]
pub struct Trainer<'a> {
    decoder: &'a Decoder,
    adapter: Adapter,
    gradients: Parameters,
    optimizer: Optimizer,
    buffers: Activations,
    saving: Saving<'a>,
    examples: &'a [Example],
    eval: &'a [Example],
    settings: Settings,
    folder: &'a Path,
    stop: &'a AtomicBool,
    plan: StepPlan<'a>,
    /// The last step of this run, and the number of steps that the schedule knows of.
    last: u64,
    schedule_steps: u64,
    state: State,
    checkpoints: Checkpoints,
    /// Checkpoints that could not be gone on from.
    damaged: Vec<Damaged>,
    /// A hash of the trained tensors before the first step.
    initial: u64,
    /// The last step after which a loss was finite.
    proven: Option<u64>,
    memory: MemoryPlan,
}

impl<'a> Trainer<'a> {
    /// Takes up a job where its last checkpoint that is whole left it. No other process may be at work in its
    /// folder.
    ///
    /// # Errors
    /// If there are checkpoints and none is whole, or the last is of other data, or there is no room for what
    /// is not to be in memory.
    pub fn open(job: Job<'a>) -> Result<Self> {
        sweep(job.folder);
        let checkpoints = Checkpoints::open(job.folder.join("checkpoints"))?;
        let mut trainer = Trainer::new(job, checkpoints);
        match trainer.restore() {
            Err(e @ (TrainError::Checkpoint { .. } | TrainError::Setting { .. })) => Err(e),
            Err(e) => Err(trainer.checkpoints.ended(e, &trainer.saving)),
            Ok(()) => Ok(trainer),
        }
    }

    fn new(job: Job<'a>, checkpoints: Checkpoints) -> Self {
        let Job { decoder, adapter, saving, train, eval, settings, folder, stop } = job;
        let Settings { epochs, max_steps, batch_size, order, .. } = settings;
        let plan = StepPlan::new(train, order, batch_size, epochs, max_steps);
        let Settings { micro_batch_tokens, checkpointing, .. } = settings;
        let extent = plan.demand(eval).extent(micro_batch_tokens, checkpointing, decoder.precision);
        let mut allocator = Allocator::real(&decoder.device);
        let layout = &adapter.layout;
        Adapter::count(layout, &mut allocator); // it was made before
        let gradients = Parameters::zeros(layout, Component::Gradients, &mut allocator);
        let optimizer = Optimizer::new(settings.optimizer, layout, &mut allocator);
        let lengths = plan.repeated(eval);
        let frozen = settings.frozen_activations.and_then(|memory| {
            let frozen = FrozenExtent { lengths: &lengths, memory };
            FrozenActivations::new(&decoder.config, layout, decoder.precision, frozen, &mut allocator)
        });
        let buffers = Activations::new(&decoder.config, layout, adapter.dropout, extent, &mut allocator)
            .keeping_frozen(frozen);
        let last = plan.steps().min(max_steps.unwrap_or(u64::MAX));
        Trainer {
            decoder,
            initial: digest(adapter.parameters.values()),
            adapter,
            gradients,
            optimizer,
            buffers,
            saving,
            examples: &train.examples,
            eval,
            schedule_steps: max_steps.unwrap_or(last),
            settings,
            folder,
            stop,
            plan,
            last,
            state: State { data: fingerprint(&train.examples), ..State::default() },
            checkpoints,
            damaged: Vec::new(),
            proven: None,
            memory: allocator.into_plan(),
        }
    }

    /// Makes the files for what is not to be in memory, and goes back to the last checkpoint that is whole,
    /// if there are any.
    fn restore(&mut self) -> Result<()> {
        self.optimizer.open(self.folder)?;
        self.buffers.open(self.folder).map_err(TrainError::of_pages)?;
        let restored = self.checkpoints.restore(&self.saving, &mut self.adapter, &mut self.optimizer)?;
        let Some(Restored { state, path, damaged }) = restored else { return Ok(()) };
        if state.data != self.state.data {
            let problem =
                "was saved while training on other data; put the data back, or train into a new folder";
            return Err(TrainError::Checkpoint { path, problem: problem.into() });
        }
        (self.state, self.damaged) = (state, damaged);
        Ok(())
    }

    /// What was allocated, for the adapter too: what [`memory_plan`] counts.
    pub fn memory(&self) -> &MemoryPlan {
        &self.memory
    }

    /// Steps done.
    pub fn step_done(&self) -> u64 {
        self.state.step
    }

    fn done(&self) -> bool {
        self.state.evaluated && (self.state.stopped_early || self.state.step >= self.last)
    }

    /// Whether the result is written: there is nothing left to run.
    pub fn finished(&self) -> bool {
        self.done() && self.saving.result_exists(self.folder)
    }

    /// Runs to the end, or until it is asked to stop.
    ///
    /// # Errors
    /// If a number is no longer finite, or a file cannot be written or read; the error tells what there is to
    /// go on from. There is no result then.
    pub fn run(mut self, observe: &mut dyn FnMut(Event<'_>)) -> Result<Outcome> {
        self.run_on(observe).map_err(|e| self.checkpoints.ended(e, &self.saving))
    }

    fn run_on(&mut self, observe: &mut dyn FnMut(Event<'_>)) -> Result<Outcome> {
        self.damaged.iter().for_each(|Damaged { path, why }| observe(Event::Damaged { path, why }));
        if self.finished() {
            return Ok(Outcome::AlreadyFinished);
        }
        self.saving.remove_result(self.folder)?;
        let path = self.folder.join("metrics.jsonl");
        let mut metrics = MetricsFile::open(&path, self.state.step, self.state.evaluated)?;
        let step = self.state.step;
        let now = u64::from(!self.state.evaluated && self.evaluation_is_due());
        let evaluations = self.plan.evaluations(step, self.last, self.settings.eval_every, self.eval) + now;
        observe(Event::Started { step, steps: self.last, evaluations });
        let (mut saved, mut last_saved) = (self.state.step > 0, Instant::now());
        loop {
            if !self.state.evaluated {
                self.evaluate_if_due(&mut metrics, observe)?;
                saved = false;
            }
            if self.done() {
                break;
            }
            if !saved && self.state.step > 0 && self.save_is_due(last_saved) {
                self.save(&metrics, observe)?;
                (saved, last_saved) = (true, Instant::now());
            }
            let mut stop = self.stop.load(Ordering::Relaxed);
            if !stop {
                let step = self.step()?;
                self.checkpoints.check_in_place()?;
                metrics.append(&step)?;
                observe(Event::Step(&step));
                saved = false;
                stop = self.stop.load(Ordering::Relaxed);
            }
            if stop {
                if !saved {
                    self.save(&metrics, observe)?;
                }
                observe(Event::Stopped(&self.checkpoints.path(self.state.step)));
                return Ok(Outcome::Interrupted);
            }
        }
        if !saved {
            self.save(&metrics, observe)?;
        }
        if let Some(best) = self.state.best.filter(|_| self.settings.early_stopping_patience.is_some()) {
            self.checkpoints.read_best(&self.saving, &mut self.adapter)?;
            if self.state.stopped_early {
                observe(Event::StoppedEarly { step: best.step, eval_loss: best.eval_loss });
            }
        }
        if digest(self.adapter.parameters.values()) == self.initial {
            observe(Event::Unchanged);
        } else if self.adapter.is_without_effect() {
            observe(Event::NoEffect);
        }
        self.checkpoints.check_in_place()?;
        self.saving.write_result(self.folder, self.decoder, &self.adapter)?;
        Ok(Outcome::Finished)
    }

    fn save_is_due(&self, last: Instant) -> bool {
        match self.settings.saves {
            Saves::EverySteps(n) => self.state.step.is_multiple_of(n),
            Saves::Every(time) => last.elapsed() >= time,
        }
    }

    fn save(&mut self, metrics: &MetricsFile, observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        self.check_finite()?;
        metrics.sync()?;
        let keep = self.settings.keep_checkpoints;
        let optimizer = &mut self.optimizer;
        let path = self.checkpoints.save(&self.state, &self.saving, &self.adapter, optimizer, keep)?;
        observe(Event::Saved(&path));
        Ok(())
    }

    /// Makes sure that what is about to be saved is of use: all trained values are finite, and so is a loss
    /// that they give, for an update may be too large to compute with before it is too large to be a number.
    fn check_finite(&mut self) -> Result<()> {
        self.check_values()?;
        let step = self.state.step;
        if step == 0 || self.proven == Some(step) {
            return Ok(());
        }
        let number = self.plan.examples(step)[0];
        let example = (number, &self.examples[number..=number]);
        let run = self.decoder.run(Some(&self.adapter));
        let (loss, _) = evaluate(&run, self.decoder, example, &mut self.buffers)?;
        if !loss.is_finite() {
            return Err(TrainError::not_finite(step, "the loss after it", loss, step));
        }
        self.proven = Some(step);
        Ok(())
    }

    /// Makes sure that all trained values are finite.
    fn check_values(&self) -> Result<()> {
        let parameters = &self.adapter.parameters;
        if reduce::sum_of_squares(&self.decoder.device, parameters.values()).is_finite() {
            return Ok(());
        }
        let values = parameters.values().download();
        let wrong = self.adapter.layout.tensors().iter().find_map(|tensor| {
            let value = values.f32()[tensor.range.clone()].iter().find(|value| !value.is_finite())?;
            Some((format!("a value of `{}`", tensor.name), f64::from(*value)))
        });
        let (what, value) = wrong.expect("finite f32 values have a finite sum of squares in f64");
        let step = self.state.step;
        Err(TrainError::not_finite(step, what, value, step))
    }

    /// One optimizer step: gradients of its examples, clipping, update. [`Trainer::run`] does this and all
    /// that belongs around it.
    ///
    /// # Errors
    /// If the loss or the gradient is no longer a finite number, or what is not in memory cannot be written
    /// or read.
    pub fn step(&mut self) -> Result<StepMetrics> {
        let begun = Instant::now();
        let step = self.state.step + 1;
        let examples: Vec<(usize, &Example)> =
            self.plan.examples(step).into_iter().map(|i| (i, &self.examples[i])).collect();
        let tokens: usize = examples.iter().map(|(_, e)| e.len()).sum();
        let trained: usize = examples.iter().map(|(_, e)| e.trained_tokens()).sum();
        let scale = 1.0 / trained.max(1) as f32;
        let step_key = random::key(random::key(self.settings.seed, 0xd40), step);
        copy::fill(&self.decoder.device, self.gradients.values_mut(), 0.0);
        let (mut sum, mut load) = (0.0, 0.0);
        for batch in &micro_batches(&examples, self.buffers.extent().tokens) {
            sum += self.add_gradients(batch, scale, step_key)?;
            load += self.buffers.router_aux_loss() * batch.tokens() as f64 / tokens as f64;
        }
        let loss = sum / trained.max(1) as f64;
        if !loss.is_finite() {
            return Err(TrainError::not_finite(step, "the loss", loss, step - 1));
        }
        let factor = self.settings.schedule.factor(step, self.schedule_steps);
        let learning_rate = self.settings.optimizer.learning_rate * factor;
        let (device, parameters) = (&self.decoder.device, &mut self.adapter.parameters);
        let grad_norm = self.optimizer.step(device, step, learning_rate, parameters, &self.gradients)?;
        self.state.step = step;
        self.state.evaluated = false;
        Ok(StepMetrics {
            step,
            epoch: self.plan.epochs_done(step),
            loss,
            router_aux_loss: (self.settings.router_aux_loss != 0.0).then_some(load),
            grad_norm,
            learning_rate,
            tokens: tokens as u64,
            trained_tokens: trained as u64,
            tokens_per_second: tokens as f64 / begun.elapsed().as_secs_f64(),
            memory_bytes: peak_memory_bytes(),
        })
    }

    /// Evaluates before the first step, after the last, and every `eval_every` steps or after each epoch.
    fn evaluate_if_due(
        &mut self,
        metrics: &mut MetricsFile,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let step = self.state.step;
        if self.evaluation_is_due() {
            let begun = Instant::now();
            let run = self.decoder.run(Some(&self.adapter));
            // Held-out examples are numbered behind those of training.
            let (first, eval) = (self.examples.len(), self.eval);
            let (sum, tokens) = evaluate(&run, self.decoder, (first, eval), &mut self.buffers)?;
            let evaluation = EvalMetrics { step, eval_loss: sum / tokens.max(1) as f64, eval_tokens: tokens };
            if !evaluation.eval_loss.is_finite() {
                return Err(TrainError::not_finite(step, "the held-out loss", evaluation.eval_loss, step));
            }
            let time = begun.elapsed();
            self.proven = Some(step);
            metrics.append(&evaluation)?;
            let best = self.judge(&evaluation)?;
            let since_best = self.state.evaluations_without_improvement;
            observe(Event::Evaluated { metrics: &evaluation, best, since_best, time });
        }
        self.state.evaluated = true;
        Ok(())
    }

    fn evaluation_is_due(&self) -> bool {
        let step = self.state.step;
        let due = step == 0
            || step >= self.last
            || match self.settings.eval_every {
                Some(n) => step.is_multiple_of(n),
                None => self.plan.ends_epoch(step),
            };
        due && !self.eval.is_empty()
    }

    /// Keeps the best tensors, counts evaluations without improvement, and stops early where that is wanted.
    fn judge(&mut self, evaluation: &EvalMetrics) -> Result<Best> {
        let state = &mut self.state;
        if let Some(best) = state.best.filter(|best| evaluation.eval_loss >= best.eval_loss) {
            state.evaluations_without_improvement += 1;
            let patience = self.settings.early_stopping_patience;
            state.stopped_early = patience.is_some_and(|most| state.evaluations_without_improvement >= most);
            return Ok(best);
        }
        let best = Best { step: evaluation.step, eval_loss: evaluation.eval_loss };
        (state.best, state.evaluations_without_improvement) = (Some(best), 0);
        self.check_values()?;
        self.checkpoints.save_best(&self.saving, &self.adapter)?;
        Ok(best)
    }

    /// Measures how fast this run would go, for about so long: gradients of its first micro-batches, an
    /// update, and held-out examples. What a second pass over the same examples takes is measured too, for
    /// frozen layers may have been kept by then. The trainer is of no use afterwards.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn rehearse(mut self, time: Duration) -> Result<Pace> {
        let most = self.buffers.extent().tokens;
        // Cut as steps are: the last one of a step may be small.
        let mut batches = Vec::new();
        for step in 1..=self.last.min(REHEARSED) {
            let numbers = self.plan.examples(step);
            let examples: Vec<_> = numbers.iter().map(|&i| (i, &self.examples[i])).collect();
            batches.extend(micro_batches(&examples, most));
        }
        batches.truncate(REHEARSED as usize + 1);
        // The first batch touches every page for the first time.
        self.add_gradients(&batches[0], 1.0, 0)?;
        let measured = &batches[1.min(batches.len() - 1)..];
        let part = time / 3;
        let gradients = |trainer: &mut Self, batch: &Batch| trainer.add_gradients(batch, 1.0, 0);
        let first = self.measure(measured, part, gradients)?;
        let again = self.measure(measured, part, gradients)?;
        let begun = Instant::now();
        let (device, parameters) = (&self.decoder.device, &mut self.adapter.parameters);
        self.optimizer.step(device, 1, 0.0, parameters, &self.gradients)?;
        let update = begun.elapsed().as_secs_f64();
        let held_out: Vec<_> = (self.examples.len()..).zip(self.eval).collect();
        let mut evaluate = [0.0; 2];
        if !held_out.is_empty() {
            let mut batches = micro_batches(&held_out, most);
            batches.truncate(REHEARSED as usize);
            for seconds in &mut evaluate {
                *seconds = self.measure(&batches, part / 2, |trainer, batch| {
                    losses(
                        &trainer.decoder.run(Some(&trainer.adapter)),
                        trainer.decoder,
                        batch,
                        &mut trainer.buffers,
                    )
                })?;
            }
        }
        Ok(Pace { first, again, update, evaluate })
    }

    /// Seconds that a token takes, over as many of these batches as the time allows, one at least.
    fn measure(
        &mut self,
        batches: &[Batch],
        time: Duration,
        work: impl Fn(&mut Self, &Batch) -> Result<f64>,
    ) -> Result<f64> {
        let (begun, mut tokens) = (Instant::now(), 0);
        for batch in batches {
            work(self, batch)?;
            tokens += batch.tokens();
            if begun.elapsed() >= time {
                break;
            }
        }
        Ok(begun.elapsed().as_secs_f64() / tokens as f64)
    }

    /// Adds the gradient of a batch and returns the sum of its losses.
    fn add_gradients(&mut self, batch: &Batch, scale: f32, dropout_key: u64) -> Result<f64> {
        let router_aux_loss = self.settings.router_aux_loss;
        let run = self.decoder.run(Some(&self.adapter));
        let run = Run { dropout_key: Some(dropout_key), router_aux_loss, ..run };
        let mut losses = vec![0.0; batch.targets.len()];
        let (buffers, gradients) = (&mut self.buffers, &mut self.gradients);
        let weights = vec![scale; losses.len()];
        self.decoder.forward_to_train(&run, batch, buffers).map_err(TrainError::of_pages)?;
        let added = self.decoder.backward(&run, batch, &weights, buffers, &mut losses, gradients);
        added.map_err(TrainError::of_pages)?;
        Ok(sum(&losses))
    }
}

/// The sum of the losses of all trained tokens of these examples, the first of which has this number in the
/// run, and their number. Keeps no logits.
///
/// # Errors
/// If the buffers keep what frozen layers give, and it cannot be written or read.
pub fn evaluate(
    run: &Run<'_>,
    decoder: &Decoder,
    (first, examples): (usize, &[Example]),
    buffers: &mut Activations,
) -> Result<(f64, u64)> {
    let examples: Vec<(usize, &Example)> = (first..).zip(examples).collect();
    let (mut sum, mut tokens) = (0.0, 0);
    for batch in micro_batches(&examples, buffers.extent().tokens) {
        sum += losses(run, decoder, &batch, buffers)?;
        tokens += batch.targets.len() as u64;
    }
    Ok((sum, tokens))
}

/// The sum of a batch's losses.
fn losses(run: &Run<'_>, decoder: &Decoder, batch: &Batch, buffers: &mut Activations) -> Result<f64> {
    let mut losses = vec![0.0; batch.targets.len()];
    decoder.forward_examples(run, batch, buffers).map_err(TrainError::of_pages)?;
    decoder.losses(run, batch, buffers, &mut losses);
    Ok(sum(&losses))
}

fn sum(losses: &[f32]) -> f64 {
    losses.iter().map(|&loss| f64::from(loss)).sum()
}

/// Cuts numbered examples, in order, into batches of at most `most` tokens; an example longer than that
/// stands alone.
fn micro_batches(examples: &[(usize, &Example)], most: usize) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for &(number, example) in examples {
        if batches.last().is_none_or(|batch| batch.tokens() + example.len() > most) {
            batches.push(Batch::new());
        }
        let batch = batches.last_mut().expect("there is a batch");
        batch.push(&example.input_ids, &example.labels);
        batch.examples.push(number);
    }
    batches
}

/// A hash of ids and labels.
fn fingerprint(examples: &[Example]) -> u64 {
    let mut hash = examples.len() as u64;
    for example in examples {
        hash = random::bits(hash, example.len() as u64);
        for (&id, &label) in example.input_ids.iter().zip(&example.labels) {
            hash = random::bits(hash, u64::from(id) << 32 | u64::from(label as u32));
        }
    }
    hash
}

/// A hash of values, to the bit (FNV-1a over words).
fn digest(values: MatrixRef<'_>) -> u64 {
    let add = |hash: u64, value: &f32| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
    values.download().f32().iter().fold(0xcbf2_9ce4_8422_2325, add)
}
