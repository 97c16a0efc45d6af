//! One run among those that train together: what is its own, and what happens between its steps.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use compute::ops::{copy, reduce};
use compute::{Device, MatrixRef, random};
use data::Example;
use model::checkpoint::sweep;
use model::memory::{Allocator, Component};
use model::{Adapter, Batch, Extent, Parameters};

use crate::checkpoint::{Best, Checkpoints, Damaged, Kept, Restored, State};
use crate::error::{Result, TrainError};
use crate::evaluation::{changes, evaluate_by, micro_batches};
use crate::job::{Event, Forgetting, Job, Outcome, Saves, Settings};
use crate::metrics::{EvalMetrics, ForgettingMetrics, MetricsFile, StepMetrics, peak_memory_bytes};
use crate::optimizer::Optimizer;
use crate::pass::{Room, Underway};
use crate::plan::StepPlan;
use crate::saving::Saving;

/// A run that stands at its last checkpoint, or at its beginning.
#[derive(Debug)]
pub(crate) struct Course<'a> {
    pub(crate) adapter: Adapter,
    /// None while a pass adds to them.
    gradients: Option<Parameters>,
    pub(crate) optimizer: Optimizer,
    saving: Saving<'a>,
    pub(crate) examples: &'a [Example],
    pub(crate) eval: &'a [Example],
    pub(crate) forgetting: Option<Forgetting<'a>>,
    pub(crate) settings: Settings,
    folder: &'a Path,
    stop: &'a AtomicBool,
    pause: Option<u64>,
    pub(crate) plan: StepPlan<'a>,
    /// The buffers that the run would have alone.
    pub(crate) alone: Extent,
    /// Tokens of a micro-batch, at most, whatever else the buffers have room for.
    pub(crate) micro_batch: usize,
    /// The last step of this run, and the number of steps that the schedule knows of.
    pub(crate) last: u64,
    schedule_steps: u64,
    state: State,
    checkpoints: Checkpoints,
    /// Checkpoints that could not be gone on from.
    damaged: Vec<Damaged>,
    /// A hash of the trained tensors before the first step.
    initial: u64,
    /// The last step after which a loss was finite.
    proven: Option<u64>,
    /// Open while the run goes on.
    metrics: Option<MetricsFile>,
    /// Whether a checkpoint has all that was done, and when one was saved last.
    saved: bool,
    last_saved: Instant,
}

/// Gradients are lent for the time of a pass.
const LENT: &str = "the gradients are back from the last pass";

impl<'a> Course<'a> {
    /// Takes up a job, before its checkpoints are read.
    pub(crate) fn new(job: Job<'a>, allocator: &mut Allocator) -> Result<Self> {
        sweep(job.folder);
        let checkpoints = Checkpoints::open(job.folder.join("checkpoints"))?;
        let Job { decoder, adapter, saving, train, eval, forgetting, settings, folder, stop, pause } = job;
        let Settings { epochs, max_steps, batch_size, order, .. } = settings;
        let plan = StepPlan::new(train, order, batch_size, epochs, max_steps);
        let Settings { micro_batch_tokens, checkpointing, .. } = settings;
        let layout = &adapter.layout;
        Adapter::count(layout, allocator); // it was made before
        let gradients = Parameters::zeros(layout, Component::Gradients, allocator);
        let optimizer = Optimizer::new(settings.optimizer, layout, allocator);
        let demand = plan.demand(eval, forgetting.map_or(&[], |forgetting| forgetting.texts));
        let last = plan.steps().min(max_steps.unwrap_or(u64::MAX));
        Ok(Course {
            initial: digest(adapter.parameters.values()),
            adapter,
            gradients: Some(gradients),
            optimizer,
            saving,
            examples: &train.examples,
            eval,
            forgetting,
            schedule_steps: max_steps.unwrap_or(last),
            settings,
            folder,
            stop,
            pause,
            micro_batch: demand.micro_batch(micro_batch_tokens),
            alone: demand.extent(micro_batch_tokens, checkpointing, decoder.precision),
            plan,
            last,
            state: State { data: fingerprint(&train.examples), ..State::default() },
            checkpoints,
            damaged: Vec::new(),
            proven: None,
            metrics: None,
            saved: false,
            last_saved: Instant::now(),
        })
    }

    /// Makes the file for moments that are not to be in memory, and goes back to the last checkpoint that is
    /// whole, if there are any.
    pub(crate) fn restore(&mut self) -> Result<()> {
        self.optimizer.open(self.folder)?;
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

    /// Where its files are.
    pub(crate) fn folder(&self) -> &'a Path {
        self.folder
    }

    /// Steps done.
    pub(crate) fn step_done(&self) -> u64 {
        self.state.step
    }

    fn done(&self) -> bool {
        let State { evaluated, stopped_early, beyond, step, .. } = self.state;
        evaluated && (stopped_early || beyond.is_some() || step >= self.last)
    }

    /// Whether the result is written: there is nothing left to run.
    pub(crate) fn finished(&self) -> bool {
        self.done() && self.saving.result_exists(self.folder)
    }

    /// The error that ends this run, with what there is to go on from.
    pub(crate) fn ended(&self, cause: TrainError) -> TrainError {
        self.checkpoints.ended(cause, &self.saving)
    }

    /// Whether no other run can be in its passes: the load of experts is that of all rows of a pass, and
    /// weights that are rounded with the update in them are one adapter's.
    pub(crate) fn passes_alone(&self) -> bool {
        self.settings.router_aux_loss != 0.0 || self.adapter.layout.quantization_aware.is_some()
    }

    /// The gradients, for a pass that adds to them.
    pub(crate) fn lend_gradients(&mut self) -> Parameters {
        self.gradients.take().expect(LENT)
    }

    /// The gradients come back.
    pub(crate) fn take_gradients(&mut self, gradients: Parameters) {
        self.gradients = Some(gradients);
    }

    fn metrics(&mut self) -> &mut MetricsFile {
        self.metrics.as_mut().expect("a run that goes on has its metrics open")
    }

    /// Before the first step of this process.
    pub(crate) fn start(&mut self, observe: &mut dyn FnMut(Event<'_>)) -> Result<Option<Outcome>> {
        self.damaged.iter().for_each(|Damaged { path, why }| observe(Event::Damaged { path, why }));
        if self.finished() {
            return Ok(Some(Outcome::AlreadyFinished));
        }
        self.saving.remove_result(self.folder)?;
        let (path, step) = (self.folder.join("metrics.jsonl"), self.state.step);
        let tensorboard = self.settings.tensorboard;
        self.metrics = Some(MetricsFile::open(&path, step, self.state.evaluated, tensorboard)?);
        let now = u64::from(!self.state.evaluated && self.evaluation_is_due());
        let evaluations = self.plan.evaluations(step, self.last, self.settings.eval_every, self.eval) + now;
        let due = u64::from(!self.state.evaluated && self.measurement_is_due());
        let measurements = due + self.forgetting.map_or(0, |forgetting| forgetting.times(step, self.last));
        observe(Event::Started { step, steps: self.last, evaluations, measurements });
        (self.saved, self.last_saved) = (step > 0, Instant::now());
        if self.saved {
            // A kill may have come between a checkpoint and the end of older ones, and no other may follow it.
            self.checkpoints.retire(step, self.settings.keep_checkpoints);
        }
        Ok(None)
    }

    /// All that is due between two steps: an evaluation, a checkpoint, the end. None: another step is to
    /// come.
    pub(crate) fn before_step(
        &mut self,
        room: &mut Room<'_>,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Option<Outcome>> {
        if !self.state.evaluated {
            self.evaluate_if_due(room, observe)?;
            self.measure_if_due(room, observe)?;
            (self.state.evaluated, self.saved) = (true, false);
        }
        if self.done() {
            return self.finish(room, observe).map(Some);
        }
        if self.pause.is_some_and(|step| self.state.step >= step) {
            self.save_all(room, observe)?;
            return Ok(Some(Outcome::Paused));
        }
        if !self.saved && self.state.step > 0 && self.save_is_due() {
            self.save(room, observe)?;
        }
        self.stop_if_asked(room, observe)
    }

    /// What belongs to a step that was just done. None: the run goes on.
    pub(crate) fn after_step(
        &mut self,
        room: &mut Room<'_>,
        step: &StepMetrics,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Option<Outcome>> {
        self.checkpoints.check_in_place()?;
        self.metrics().append(step)?;
        observe(Event::Step(step));
        self.saved = false;
        self.stop_if_asked(room, observe)
    }

    fn stop_if_asked(
        &mut self,
        room: &mut Room<'_>,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Option<Outcome>> {
        if !self.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.save_all(room, observe)?;
        observe(Event::Stopped(&self.checkpoints.path(self.state.step)));
        Ok(Some(Outcome::Interrupted))
    }

    /// Writes the result.
    fn finish(&mut self, room: &mut Room<'_>, observe: &mut dyn FnMut(Event<'_>)) -> Result<Outcome> {
        self.save_all(room, observe)?;
        let State { best, stopped_early, within, beyond, .. } = self.state;
        let best = best.filter(|_| self.settings.early_stopping_patience.is_some());
        let kept = match (beyond, best) {
            (Some(divergence), _) => {
                observe(Event::Forgot { divergence, step: within });
                within.map(|_| Kept::Within)
            }
            (None, Some(Best { step, eval_loss })) => {
                if stopped_early {
                    observe(Event::StoppedEarly { step, eval_loss });
                }
                Some(Kept::Best)
            }
            (None, None) => None,
        };
        if let Some(kept) = kept {
            self.checkpoints.read_kept(kept, &self.saving, &mut self.adapter)?;
        }
        if digest(self.adapter.parameters.values()) == self.initial {
            observe(Event::Unchanged);
        } else if self.adapter.is_without_effect() {
            observe(Event::NoEffect);
        }
        self.checkpoints.check_in_place()?;
        self.saving.write_result(self.folder, room.decoder, &self.adapter)?;
        Ok(Outcome::Finished)
    }

    /// Makes sure that a checkpoint has all that was done.
    fn save_all(&mut self, room: &mut Room<'_>, observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        if self.saved { Ok(()) } else { self.save(room, observe) }
    }

    fn save_is_due(&self) -> bool {
        match self.settings.saves {
            Saves::EverySteps(n) => self.state.step.is_multiple_of(n),
            Saves::Every(time) => self.last_saved.elapsed() >= time,
        }
    }

    fn save(&mut self, room: &mut Room<'_>, observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        self.check_finite(room)?;
        self.metrics().sync()?;
        let keep = self.settings.keep_checkpoints;
        let optimizer = &mut self.optimizer;
        let path = self.checkpoints.save(&self.state, &self.saving, &self.adapter, optimizer, keep)?;
        observe(Event::Saved(&path));
        (self.saved, self.last_saved) = (true, Instant::now());
        Ok(())
    }

    /// Makes sure that what is about to be saved is of use: all trained values are finite, and so is a loss
    /// that they give, for an update may be too large to compute with before it is too large to be a number.
    fn check_finite(&mut self, room: &mut Room<'_>) -> Result<()> {
        self.check_values(room)?;
        let step = self.state.step;
        if step == 0 || self.proven == Some(step) {
            return Ok(());
        }
        let number = self.plan.examples(step)[0];
        let example = (number, &self.examples[number..=number]);
        let (loss, _) = self.evaluate(room, example)?;
        if !loss.is_finite() {
            return Err(TrainError::not_finite(step, "the loss after it", loss, step));
        }
        self.proven = Some(step);
        Ok(())
    }

    /// Makes sure that all trained values are finite.
    fn check_values(&self, room: &Room<'_>) -> Result<()> {
        let parameters = &self.adapter.parameters;
        if reduce::sum_of_squares(&room.decoder.device, parameters.values()).is_finite() {
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

    /// The sum of the losses of these examples, the first of which has this number, and their trained tokens.
    fn evaluate(&self, room: &mut Room<'_>, examples: (usize, &[Example])) -> Result<(f64, u64)> {
        let run = room.decoder.run(Some(&self.adapter));
        evaluate_by(&run, room.decoder, examples, self.micro_batch, &mut room.buffers)
    }

    /// The micro-batches of a step.
    pub(crate) fn micro_batches(&mut self, step: u64) -> Vec<Batch> {
        let examples: Vec<(usize, &Example)> =
            self.plan.examples(step).into_iter().map(|i| (i, &self.examples[i])).collect();
        micro_batches(&examples, self.micro_batch)
    }

    /// Begins the next step: its examples are to pass.
    pub(crate) fn begin_step(&mut self, device: &Device) -> Underway {
        let (begun, step) = (Instant::now(), self.state.step + 1);
        let batches = self.micro_batches(step);
        copy::fill(device, self.gradients.as_mut().expect(LENT).values_mut(), 0.0);
        Underway {
            begun,
            step,
            tokens: batches.iter().map(Batch::tokens).sum(),
            trained: batches.iter().map(|batch| batch.targets.len()).sum(),
            dropout_key: random::key(random::key(self.settings.seed, 0xd40), step),
            batches: batches.into(),
            loss: 0.0,
            load: 0.0,
        }
    }

    /// Ends a step whose examples have all passed: clipping and update.
    ///
    /// # Errors
    /// If the loss or the gradient is no longer a finite number, or what is not in memory cannot be written
    /// or read.
    pub(crate) fn end_step(&mut self, device: &Device, underway: Underway) -> Result<StepMetrics> {
        let Underway { begun, step, tokens, trained, loss, load, .. } = underway;
        let loss = loss / trained.max(1) as f64;
        if !loss.is_finite() {
            return Err(TrainError::not_finite(step, "the loss", loss, step - 1));
        }
        let factor = self.settings.schedule.factor(step, self.schedule_steps);
        let learning_rate = self.settings.optimizer.learning_rate * factor;
        let grad_norm = self.update(device, step, learning_rate)?;
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

    /// Clips the gradients and applies them; gives the norm before.
    pub(crate) fn update(&mut self, device: &Device, step: u64, learning_rate: f64) -> Result<f64> {
        let (parameters, gradients) = (&mut self.adapter.parameters, self.gradients.as_ref().expect(LENT));
        self.optimizer.step(device, step, learning_rate, parameters, gradients)
    }

    /// Evaluates before the first step, after the last, and every `eval_every` steps or after each epoch.
    fn evaluate_if_due(&mut self, room: &mut Room<'_>, observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let step = self.state.step;
        if self.evaluation_is_due() {
            let begun = Instant::now();
            // Held-out examples are numbered behind those of training.
            let (sum, tokens) = self.evaluate(room, (self.examples.len(), self.eval))?;
            let evaluation = EvalMetrics { step, eval_loss: sum / tokens.max(1) as f64, eval_tokens: tokens };
            if !evaluation.eval_loss.is_finite() {
                return Err(TrainError::not_finite(step, "the held-out loss", evaluation.eval_loss, step));
            }
            let time = begun.elapsed();
            self.proven = Some(step);
            self.metrics().append(&evaluation)?;
            let best = self.judge(room, &evaluation)?;
            let since_best = self.state.evaluations_without_improvement;
            let adapter = &self.adapter;
            observe(Event::Evaluated { metrics: &evaluation, best, since_best, time, adapter });
        }
        Ok(())
    }

    fn evaluation_is_due(&self) -> bool {
        let step = self.state.step;
        let due = step == 0
            || step >= self.last
            || self.pause == Some(step)
            || match self.settings.eval_every {
                Some(n) => step.is_multiple_of(n),
                None => self.plan.ends_epoch(step),
            };
        due && !self.eval.is_empty()
    }

    /// Measures what is forgotten, every so many steps and after the last.
    fn measure_if_due(&mut self, room: &mut Room<'_>, observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let Some(Forgetting { texts, limit, .. }) = self.forgetting.filter(|_| self.measurement_is_due())
        else {
            return Ok(());
        };
        let (begun, step) = (Instant::now(), self.state.step);
        let run = room.decoder.run(Some(&self.adapter));
        let changes = changes(&run, room.decoder, texts, &mut room.buffers);
        let (mut kl, mut loss, mut base_loss, mut tokens) = (0.0, 0.0, 0.0, 0);
        for change in changes.iter().flatten() {
            kl += f64::from(change.divergence);
            loss += f64::from(change.loss);
            base_loss += f64::from(change.base_loss);
            tokens += 1;
        }
        let mean = |sum: f64| sum / tokens.max(1) as f64;
        let metrics = ForgettingMetrics {
            step,
            forgetting_kl: mean(kl),
            forgetting_loss: mean(loss),
            forgetting_base_loss: mean(base_loss),
            forgetting_tokens: tokens,
        };
        let divergence = metrics.forgetting_kl;
        if !(divergence.is_finite() && metrics.forgetting_loss.is_finite()) {
            return Err(TrainError::not_finite(step, "the divergence from the base", divergence, step));
        }
        self.metrics().append(&metrics)?;
        match limit {
            Some(limit) if divergence > limit => self.state.beyond = Some(divergence),
            Some(_) => {
                self.check_values(room)?;
                self.checkpoints.keep(Kept::Within, &self.saving, &self.adapter)?;
                self.state.within = Some(step);
            }
            None => {}
        }
        observe(Event::Measured { metrics: &metrics, time: begun.elapsed() });
        Ok(())
    }

    fn measurement_is_due(&self) -> bool {
        let State { step, stopped_early, .. } = self.state;
        let ends = stopped_early || step >= self.last;
        let due = |forgetting: Forgetting<'_>| ends || step.is_multiple_of(forgetting.every);
        step > 0 && self.forgetting.is_some_and(due)
    }

    /// Keeps the best tensors, counts evaluations without improvement, and stops early where that is wanted.
    fn judge(&mut self, room: &Room<'_>, evaluation: &EvalMetrics) -> Result<Best> {
        let state = &mut self.state;
        if let Some(best) = state.best.filter(|best| evaluation.eval_loss >= best.eval_loss) {
            state.evaluations_without_improvement += 1;
            let patience = self.settings.early_stopping_patience;
            state.stopped_early = patience.is_some_and(|most| state.evaluations_without_improvement >= most);
            return Ok(best);
        }
        let best = Best { step: evaluation.step, eval_loss: evaluation.eval_loss };
        (state.best, state.evaluations_without_improvement) = (Some(best), 0);
        self.check_values(room)?;
        self.checkpoints.keep(Kept::Best, &self.saving, &self.adapter)?;
        Ok(best)
    }
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
