//! The optimizer's loop.
//!
//! A step is: the examples that the plan names, in micro-batches that fit the memory; the sum of token losses over the
//! whole step divided by its trained tokens, whatever the micro-batches; clip; update; a line of metrics. Nothing that
//! a step does depends on anything but the state at its beginning, so a run that is stopped anywhere and resumed
//! writes the bytes of one that was not.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use compute::random;
use data::{Dataset, Example, OrderSpec};
use model::checkpoint::sweep;
use model::memory::{Allocator, Component, MemoryPlan};
use model::{
    Activations, Adapter, Batch, Checkpointing, Config, Decoder, Extent, FrozenActivations, FrozenExtent,
    Layout, Parameters, Purpose, Run,
};

use crate::checkpoint::{self, Best, Checkpoints, State};
use crate::error::{Result, TrainError};
use crate::metrics::{EvalMetrics, MetricsFile, StepMetrics, peak_memory_bytes};
use crate::optimizer::{Optimizer, OptimizerSettings};
use crate::plan::StepPlan;
use crate::saving::Saving;
use crate::schedule::Schedule;

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
    /// Bytes that may be in memory of what frozen layers give for examples that come again, the rest being in a file; `None`:
    /// it is computed again. It changes no result.
    pub frozen_activations: Option<u64>,
    /// Steps between evaluations; `None`: only before the first step and after the last.
    pub eval_every: Option<u64>,
    /// Steps between checkpoints; `None`: only at the end.
    pub save_every: Option<u64>,
    /// Checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Evaluations without improvement after which the run ends with the best tensors.
    pub early_stopping_patience: Option<u64>,
    /// Seed of dropout.
    pub seed: u64,
}

/// What the loop tells while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// The loop begins, or goes on, after `step` of `steps`.
    Started {
        /// Steps done before.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
    },
    /// A step is done.
    Step(&'a StepMetrics),
    /// An evaluation is done.
    Evaluated(&'a EvalMetrics),
    /// A checkpoint stands.
    Saved(&'a Path),
    /// Early stopping ends the run; the tensors of `step` are the result.
    StoppedEarly {
        /// The step of the best evaluation.
        step: u64,
        /// Its loss.
        eval_loss: f64,
    },
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

/// The buffers that a run needs beside the base, for examples of at most `longest` tokens.
pub fn extent(
    settings: &Settings,
    decoder_precision: compute::Precision,
    longest: usize,
    total: usize,
) -> Extent {
    Extent {
        tokens: settings.micro_batch_tokens.min(total).max(longest),
        positions: longest,
        purpose: Purpose::Train(settings.checkpointing),
        precision: decoder_precision,
    }
}

/// The memory of trained tensors, gradients, moments and activations, without the base. `frozen`: what is kept of what frozen
/// layers give.
pub fn memory_plan(
    config: &Config,
    layout: &Layout,
    dropout: f32,
    optimizer: OptimizerSettings,
    extent: Extent,
    frozen: Option<FrozenExtent<'_>>,
) -> MemoryPlan {
    let mut planning = Allocator::planning();
    Parameters::zeros(layout, Component::Adapter, &mut planning);
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
}

impl<'a> Trainer<'a> {
    /// Takes up a job where its last checkpoint left it. No other process may be at work in its folder.
    ///
    /// # Errors
    /// If the checkpoint is damaged, or of other data, or there is no room for what is not to be in memory.
    pub fn open(job: Job<'a>) -> Result<Self> {
        let Settings { epochs, max_steps, batch_size, order, .. } = job.settings;
        let plan = StepPlan::new(job.train, order, batch_size, epochs, max_steps);
        sweep(job.folder);
        let checkpoints = Checkpoints::open(job.folder.join("checkpoints"))?;
        let state = State { data: fingerprint(&job.train.examples), ..State::default() };
        let Some((saved, path)) = checkpoints.latest()? else {
            return Trainer::new(job, plan, state, checkpoints);
        };
        if saved.data != state.data {
            let problem =
                "was saved while training on other data; put the data back, or train into a new folder";
            return Err(TrainError::Checkpoint { path, problem: problem.into() });
        }
        let mut trainer = Trainer::new(job, plan, saved, checkpoints)?;
        let (layout, parameters) = (&trainer.adapter.layout, &mut trainer.adapter.parameters);
        checkpoint::restore(&path, &trainer.saving, layout, parameters, &mut trainer.optimizer)?;
        Ok(trainer)
    }

    fn new(job: Job<'a>, plan: StepPlan<'a>, state: State, checkpoints: Checkpoints) -> Result<Self> {
        let Job { decoder, adapter, saving, train, eval, settings, folder, stop } = job;
        let train = &train.examples;
        let all = || train.iter().chain(eval);
        let longest = all().map(Example::len).max().unwrap_or(1);
        let total: usize = all().map(Example::len).sum();
        let extent = extent(&settings, decoder.precision, longest, total);
        let mut allocator = Allocator::real();
        let layout = &adapter.layout;
        let gradients = Parameters::zeros(layout, Component::Gradients, &mut allocator);
        let mut optimizer = Optimizer::new(settings.optimizer, layout, &mut allocator);
        optimizer.open(folder)?;
        let lengths = plan.repeated(eval);
        let frozen = settings.frozen_activations.and_then(|memory| {
            let frozen = FrozenExtent { lengths: &lengths, memory };
            FrozenActivations::new(&decoder.config, layout, decoder.precision, frozen, &mut allocator)
        });
        let mut buffers = Activations::new(&decoder.config, layout, adapter.dropout, extent, &mut allocator)
            .keeping_frozen(frozen);
        buffers.open(folder).map_err(TrainError::of_pages)?;
        let last = plan.steps().min(settings.max_steps.unwrap_or(u64::MAX));
        let schedule_steps = settings.max_steps.unwrap_or(last);
        Ok(Trainer {
            decoder,
            adapter,
            gradients,
            optimizer,
            buffers,
            saving,
            examples: train,
            eval,
            settings,
            folder,
            stop,
            plan,
            last,
            schedule_steps,
            state,
            checkpoints,
        })
    }

    fn done(&self) -> bool {
        self.state.evaluated && (self.state.stopped_early || self.state.step >= self.last)
    }

    /// Whether the result is written: there is nothing left to run.
    pub fn finished(&self) -> bool {
        self.done() && self.saving.result_exists(self.folder)
    }

    /// Runs to the end, or until it is asked to stop.
    pub fn run(mut self, observe: &mut dyn FnMut(Event<'_>)) -> Result<Outcome> {
        if self.finished() {
            return Ok(Outcome::AlreadyFinished);
        }
        self.saving.remove_result(self.folder)?;
        let path = self.folder.join("metrics.jsonl");
        let mut metrics = MetricsFile::open(&path, self.state.step, self.state.evaluated)?;
        observe(Event::Started { step: self.state.step, steps: self.last });
        let mut saved = self.state.step > 0;
        loop {
            if !self.state.evaluated {
                self.evaluate_if_due(&mut metrics, observe)?;
                saved = false;
            }
            if self.done() {
                break;
            }
            if !saved
                && self
                    .settings
                    .save_every
                    .is_some_and(|n| self.state.step > 0 && self.state.step.is_multiple_of(n))
            {
                self.save(&metrics, observe)?;
                saved = true;
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
                return Ok(Outcome::Interrupted);
            }
        }
        if !saved {
            self.save(&metrics, observe)?;
        }
        if let Some(best) = self.state.best.filter(|_| self.settings.early_stopping_patience.is_some()) {
            let (layout, parameters) = (&self.adapter.layout, &mut self.adapter.parameters);
            self.saving.read_trained(&self.checkpoints.best_path(), layout, parameters)?;
            if self.state.stopped_early {
                observe(Event::StoppedEarly { step: best.step, eval_loss: best.eval_loss });
            }
        }
        self.checkpoints.check_in_place()?;
        self.saving.write_result(self.folder, self.decoder, &self.adapter)?;
        Ok(Outcome::Finished)
    }

    fn save(&mut self, metrics: &MetricsFile, observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        metrics.sync()?;
        let (layout, parameters) = (&self.adapter.layout, &self.adapter.parameters);
        let keep = self.settings.keep_checkpoints;
        let optimizer = &mut self.optimizer;
        let path = self.checkpoints.save(&self.state, &self.saving, layout, parameters, optimizer, keep)?;
        observe(Event::Saved(&path));
        Ok(())
    }

    /// One optimizer step: gradients of its examples, clipping, update. [`Trainer::run`] does this and all that
    /// belongs around it.
    ///
    /// # Errors
    /// If the loss or the gradient is no longer a finite number, or what is not in memory cannot be written or read.
    pub fn step(&mut self) -> Result<StepMetrics> {
        let begun = Instant::now();
        let step = self.state.step + 1;
        let examples: Vec<(usize, &Example)> =
            self.plan.examples(step).into_iter().map(|i| (i, &self.examples[i])).collect();
        let tokens: usize = examples.iter().map(|(_, e)| e.len()).sum();
        let trained: usize = examples.iter().map(|(_, e)| e.trained_tokens()).sum();
        let scale = 1.0 / trained.max(1) as f32;
        let step_key = random::key(random::key(self.settings.seed, 0xd40), step);
        self.gradients.values_mut().fill(0.0);
        let mut sum = 0.0;
        for (i, batch) in micro_batches(&examples, self.buffers.extent().tokens).iter().enumerate() {
            let key = random::key(step_key, i as u64);
            let run = Run { dropout_key: Some(key), ..self.decoder.run(Some(&self.adapter)) };
            let mut losses = vec![0.0; batch.targets.len()];
            let (buffers, gradients) = (&mut self.buffers, &mut self.gradients);
            let added =
                self.decoder.accumulate_gradients(&run, batch, scale, buffers, &mut losses, gradients);
            added.map_err(TrainError::of_pages)?;
            sum += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
        }
        let loss = sum / trained.max(1) as f64;
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { step, what: "loss", value: loss });
        }
        let factor = self.settings.schedule.factor(step, self.schedule_steps);
        let learning_rate = self.settings.optimizer.learning_rate * factor;
        let (device, parameters) = (&self.decoder.device, &mut self.adapter.parameters);
        let grad_norm = self.optimizer.step(device, step, learning_rate, parameters, &self.gradients)?;
        if !grad_norm.is_finite() {
            return Err(TrainError::NotFinite { step, what: "gradient norm", value: grad_norm });
        }
        self.state.step = step;
        self.state.evaluated = false;
        Ok(StepMetrics {
            step,
            epoch: self.plan.epochs_done(step),
            loss,
            grad_norm,
            learning_rate,
            tokens: tokens as u64,
            trained_tokens: trained as u64,
            tokens_per_second: tokens as f64 / begun.elapsed().as_secs_f64(),
            memory_bytes: peak_memory_bytes(),
        })
    }

    /// Evaluates before the first step, after the last, and every `eval_every` steps.
    fn evaluate_if_due(
        &mut self,
        metrics: &mut MetricsFile,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let step = self.state.step;
        let due = step == 0
            || step >= self.last
            || self.settings.eval_every.is_some_and(|n| step.is_multiple_of(n));
        if due && !self.eval.is_empty() {
            let run = self.decoder.run(Some(&self.adapter));
            // Held-out examples are numbered behind those of training.
            let (first, eval) = (self.examples.len(), self.eval);
            let (sum, tokens) = evaluate(&run, self.decoder, (first, eval), &mut self.buffers)?;
            let evaluation = EvalMetrics { step, eval_loss: sum / tokens.max(1) as f64, eval_tokens: tokens };
            metrics.append(&evaluation)?;
            observe(Event::Evaluated(&evaluation));
            self.judge(&evaluation)?;
        }
        self.state.evaluated = true;
        Ok(())
    }

    /// Keeps the best tensors and counts evaluations without improvement, where early stopping is wanted.
    fn judge(&mut self, evaluation: &EvalMetrics) -> Result<()> {
        let Some(patience) = self.settings.early_stopping_patience else { return Ok(()) };
        let state = &mut self.state;
        if state.best.is_none_or(|best| evaluation.eval_loss < best.eval_loss) {
            state.best = Some(Best { step: evaluation.step, eval_loss: evaluation.eval_loss });
            state.evaluations_without_improvement = 0;
            return self.checkpoints.save_best(&self.saving, &self.adapter.layout, &self.adapter.parameters);
        }
        state.evaluations_without_improvement += 1;
        state.stopped_early = state.evaluations_without_improvement >= patience;
        Ok(())
    }
}

/// The sum of the losses of all trained tokens of these examples, the first of which has this number in the run, and their number.
/// Keeps no logits.
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
        let mut losses = vec![0.0; batch.targets.len()];
        decoder.forward_examples(run, &batch, buffers).map_err(TrainError::of_pages)?;
        decoder.losses(run, &batch, buffers, &mut losses);
        sum += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
        tokens += losses.len() as u64;
    }
    Ok((sum, tokens))
}

/// Cuts numbered examples, in order, into batches of at most `most` tokens; an example longer than that stands alone.
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
