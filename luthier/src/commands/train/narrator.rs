//! Tells on stderr what the loop does.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::Adapter;
use train::{Event, ForgettingMetrics, StepMetrics};

use super::answering::Answering;
use crate::plot::Smoothed;
use crate::run_folder;
use crate::terminal::live::Live;
use crate::terminal::{Facts, Progress, rough};

/// A run that is shorter is not worth a line about its time.
const WORTH_TELLING: Duration = Duration::from_secs(10);
/// What is measured before the time of a run is told.
const MEASURED: Duration = Duration::from_secs(2);
/// Evaluations without a better loss after which a person is warned.
const RISING: u64 = 2;
/// A loss that is higher than the best one by less is level.
const RISEN: f64 = 1.001;

/// Where it is told.
pub(super) enum Shown<'a> {
    /// Nothing but warnings.
    Quiet,
    /// Line by line, with progress from the loop's beginning on.
    Lines(Option<Progress>),
    /// In a view over the whole terminal, with what the model answers if that is known.
    Live(Live, Option<Answering<'a>>),
}

pub(super) struct Narrator<'a> {
    shown: Shown<'a>,
    /// The run folder.
    folder: PathBuf,
    begun: Instant,
    steps: u64,
    facts: Facts,
    loss: Smoothed,
    pace: Pace,
    /// Evaluations that are still to come.
    evaluations: u64,
    /// Measurements of what is forgotten that are still to come.
    measurements: u64,
    told_time: bool,
    told_rising: bool,
    /// Whether the result is what the run began with, or changes nothing.
    pub(super) unchanged: bool,
    pub(super) without_effect: bool,
    /// What a run that was stopped on request goes on from.
    pub(super) stopped_at: Option<PathBuf>,
}

/// What steps and evaluations take, as far as this process has seen them.
#[derive(Default)]
struct Pace {
    steps: u64,
    step: Smoothed,
    evaluation: Option<Duration>,
    /// Of what is forgotten.
    measurement: Option<Duration>,
}

impl Pace {
    fn add(&mut self, metrics: &StepMetrics) {
        // The first step touches every page for the first time.
        if self.steps < 2 {
            self.step = Smoothed::default();
        }
        self.steps += 1;
        self.step.add(metrics.seconds());
    }

    /// The time of so many steps, evaluations and measurements of what is forgotten.
    fn time(&self, steps: u64, evaluations: u64, measurements: u64) -> Option<Duration> {
        let step = self.step.mean()?;
        let evaluations = self.evaluation.unwrap_or_default().mul_f64(evaluations as f64);
        let measurements = self.measurement.unwrap_or_default().mul_f64(measurements as f64);
        Some(Duration::from_secs_f64(step * steps as f64) + evaluations + measurements)
    }
}

impl<'a> Narrator<'a> {
    pub(super) fn new(folder: &Path, shown: Shown<'a>) -> Self {
        Narrator {
            shown,
            folder: folder.to_owned(),
            begun: Instant::now(),
            steps: 0,
            facts: Facts::default(),
            loss: Smoothed::default(),
            pace: Pace::default(),
            evaluations: 0,
            measurements: 0,
            told_time: false,
            told_rising: false,
            unchanged: false,
            without_effect: false,
            stopped_at: None,
        }
    }

    pub(super) fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Damaged { path, why } => {
                let path = path.display();
                self.warn(&format!(
                    "{path} is damaged ({why}); the run goes on from the checkpoint before it"
                ));
            }
            Event::Started { step, steps, evaluations, measurements } => {
                if step > 0 {
                    self.note(&format!("going on after step {step}"));
                }
                (self.steps, self.begun) = (steps, Instant::now());
                (self.evaluations, self.measurements) = (evaluations, measurements);
                match &mut self.shown {
                    Shown::Quiet => {}
                    Shown::Lines(progress) => *progress = Some(Progress::steps("training", steps, step)),
                    Shown::Live(live, _) => live.change(|view| view.begin(step, steps)),
                }
            }
            Event::Step(metrics) => self.step(metrics),
            Event::Evaluated { metrics, best, since_best, time, adapter } => {
                self.facts.held_out = Some(metrics.eval_loss);
                if let Shown::Live(live, _) = &self.shown {
                    live.change(|view| view.held_out.push((metrics.step, metrics.eval_loss)));
                }
                self.evaluations = self.evaluations.saturating_sub(1);
                self.note(&format!("step {}: held-out loss {:.4}", metrics.step, metrics.eval_loss));
                let begun = Instant::now();
                self.let_answer(metrics.step, adapter);
                self.pace.evaluation = Some(time + begun.elapsed());
                let risen = metrics.eval_loss > RISEN * best.eval_loss;
                if risen && since_best >= RISING && best.step > 0 && !self.told_rising {
                    self.told_rising = true;
                    self.warn(&format!(
                        "the held-out loss has risen since step {} (from {:.4} to {:.4}): the model begins to learn the examples \
                         by heart; the best adapter is kept in {}",
                        best.step,
                        best.eval_loss,
                        metrics.eval_loss,
                        run_folder::best(&self.folder).display()
                    ));
                }
            }
            Event::Measured { metrics, time } => {
                self.pace.measurement = Some(time);
                self.measurements = self.measurements.saturating_sub(1);
                self.note(&format!("step {}: {}", metrics.step, forgotten(metrics)));
            }
            Event::Forgot { divergence, step } => {
                let limit = "training.forgetting_limit";
                let ended = format!(
                    "the run ended since its divergence from the base, {divergence:.4}, is beyond {limit}"
                );
                match step {
                    Some(step) => self.note(&format!("{ended}; the result is that of step {step}")),
                    None => self.warn(&format!(
                        "{ended}, and no measurement before was within it: the result is that of the last step; measure more often \
                         (training.forgetting_every), or train with a lower --lr"
                    )),
                }
            }
            Event::Saved(path) => self.note(&format!("saved {}", path.display())),
            Event::Stopped(path) => self.stopped_at = Some(path.to_owned()),
            Event::StoppedEarly { step, eval_loss } => {
                self.note(&format!(
                    "stopped early: the best held-out loss was {eval_loss:.4} at step {step}"
                ));
            }
            Event::Unchanged => self.unchanged = true,
            Event::NoEffect => self.without_effect = true,
            // A run alone says how it ended when it returns.
            Event::Ended(_) => {}
        }
    }

    fn step(&mut self, metrics: &StepMetrics) {
        self.pace.add(metrics);
        let left = self.pace.time(self.steps - metrics.step, self.evaluations, self.measurements);
        self.facts = Facts {
            epoch: metrics.epoch,
            loss: self.loss.add(metrics.loss),
            held_out: self.facts.held_out,
            learning_rate: Some(metrics.learning_rate),
            tokens_per_second: metrics.tokens_per_second,
            memory_bytes: metrics.memory_bytes,
            elapsed: self.begun.elapsed(),
            left: left.filter(|_| metrics.step < self.steps),
        };
        if let Some(left) = left.filter(|_| !self.told_time && self.pace.steps > 1) {
            let elapsed = self.begun.elapsed();
            if elapsed >= MEASURED {
                self.told_time = true;
                if elapsed + left >= WORTH_TELLING {
                    self.note(&format!("time     about {}, evaluations counted in", rough(elapsed + left)));
                }
            }
        }
        match &mut self.shown {
            Shown::Lines(Some(progress)) => progress.set_step(metrics.step, &self.facts),
            Shown::Live(live, _) => live.change(|view| view.go_on(metrics, &self.facts)),
            Shown::Quiet | Shown::Lines(None) => {}
        }
    }

    /// Shows what the model answers after a step, where that is wanted.
    fn let_answer(&self, step: u64, adapter: &Adapter) {
        let Shown::Live(live, Some(answering)) = &self.shown else { return };
        match answering.answers(adapter) {
            Ok(answers) => live.change(|view| view.answer(step, answers)),
            Err(error) => self.note(&format!("step {step}: the model gives no answer: {error:#}")),
        }
    }

    fn warn(&self, message: &str) {
        let line = format!("warning: {message}");
        match &self.shown {
            Shown::Quiet => eprintln!("{line}"),
            _ => self.note(&line),
        }
    }

    /// A line of its own, above the progress if there is any.
    fn note(&self, line: &str) {
        match &self.shown {
            Shown::Quiet => {}
            Shown::Lines(None) => eprintln!("{line}"),
            Shown::Lines(Some(progress)) => progress.note(line),
            Shown::Live(live, _) => live.change(|view| view.note(line)),
        }
    }

    /// Ends the progress, however the run ended.
    pub(super) fn finish(&mut self) {
        match std::mem::replace(&mut self.shown, Shown::Lines(None)) {
            Shown::Lines(Some(progress)) if self.pace.steps == 0 => progress.finish(""),
            Shown::Lines(Some(progress)) => progress.finish_steps(&self.facts),
            Shown::Live(live, _) => drop(live),
            Shown::Quiet | Shown::Lines(None) => {}
        }
    }
}

/// What a model has forgotten, in words.
pub(in crate::commands) fn forgotten(metrics: &ForgettingMetrics) -> String {
    let ForgettingMetrics { forgetting_kl, forgetting_loss, forgetting_base_loss, .. } = metrics;
    format!(
        "divergence from the base {forgetting_kl:.4}, its loss on other text {forgetting_base_loss:.4} -> {forgetting_loss:.4}"
    )
}
