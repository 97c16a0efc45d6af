//! Tells on stderr how the runs of a sweep come along.

use std::time::{Duration, Instant};

use train::{Event, StepMetrics};

use crate::commands::train::forgotten;
use crate::setup::{self, Company};
use crate::terminal::{Facts, Progress, bytes};

pub(super) struct Narrator {
    names: Vec<String>,
    quiet: bool,
    begun: Instant,
    progress: Option<Progress>,
    /// Steps of all runs that are to train now, those that each has done, and those done before.
    all: u64,
    done: Vec<u64>,
    before: Option<u64>,
    /// The last step of each run.
    last: Vec<Option<StepMetrics>>,
    told: Option<usize>,
}

impl Narrator {
    /// `steps`: the runs that train now, and to which step.
    pub(super) fn new(names: Vec<String>, steps: &[(usize, u64)], quiet: bool) -> Self {
        let (done, last) = (vec![0; names.len()], vec![None; names.len()]);
        let all = steps.iter().map(|(_, steps)| steps).sum();
        let progress = (!quiet && all > 0).then(|| Progress::steps("training", all, 0));
        Narrator { names, quiet, begun: Instant::now(), progress, all, done, before: None, last, told: None }
    }

    /// Which of so many runs that are left train together next.
    pub(super) fn tell_company(&mut self, company: &Company, left: usize) {
        let runs = company.runs;
        if let Some(plan) = &company.plan {
            let (total, parts) = (bytes(plan.total()), setup::parts(plan));
            self.note(&format!("memory   {runs} runs train together, {total} planned: {parts}"));
        }
        if runs < left && self.told != Some(runs) {
            self.told = Some(runs);
            let many = if runs == 1 { "one at a time" } else { &format!("{runs} at a time") };
            self.say(&format!("note: {left} runs do not fit into the memory together; they train {many}"));
        }
    }

    pub(super) fn tell(&mut self, run: usize, event: Event<'_>) {
        match event {
            Event::Started { step, .. } => self.done[run] = step,
            Event::Step(metrics) => self.step(run, metrics),
            Event::Evaluated { metrics, .. } => {
                let (step, loss) = (metrics.step, metrics.eval_loss);
                self.note(&format!("{}: step {step}: held-out loss {loss:.4}", self.names[run]));
            }
            Event::Measured { metrics, .. } => {
                let name = &self.names[run];
                self.note(&format!("{name}: step {}: {}", metrics.step, forgotten(metrics)));
            }
            Event::Forgot { divergence, step } => {
                let ended =
                    format!("ended: its divergence from the base, {divergence:.4}, is beyond the limit");
                match step {
                    Some(step) => {
                        self.note(&format!(
                            "{}: {ended}; the result is that of step {step}",
                            self.names[run]
                        ));
                    }
                    None => self.warn(run, &format!("{ended}, and no measurement before was within it")),
                }
            }
            Event::Damaged { path, why } => {
                let path = path.display();
                self.warn(run, &format!("{path} is damaged ({why}); the run goes on from the one before it"));
            }
            Event::StoppedEarly { step, eval_loss } => {
                let name = &self.names[run];
                self.note(&format!(
                    "{name}: stopped early: the best held-out loss was {eval_loss:.4} at step {step}"
                ));
            }
            Event::Unchanged => self.warn(run, "nothing was trained"),
            Event::NoEffect => self.warn(run, "every B of the adapter is zero, so it changes nothing"),
            Event::Saved(_) | Event::Stopped(_) | Event::Ended(_) => {}
        }
    }

    fn step(&mut self, run: usize, metrics: &StepMetrics) {
        let before = *self.before.get_or_insert_with(|| self.done.iter().sum());
        self.done[run] = metrics.step;
        self.last[run] = Some(metrics.clone());
        let done: u64 = self.done.iter().sum();
        let seen: Vec<&StepMetrics> = self.last.iter().flatten().collect();
        let mean = |of: fn(&StepMetrics) -> f64| {
            seen.iter().map(|step| of(step)).sum::<f64>() / seen.len().max(1) as f64
        };
        let (elapsed, new) = (self.begun.elapsed(), done.saturating_sub(before).max(1));
        let left = elapsed.mul_f64(self.all.saturating_sub(done) as f64 / new as f64);
        let facts = Facts {
            epoch: mean(|step| step.epoch),
            loss: mean(|step| step.loss),
            held_out: None,
            learning_rate: None,
            // Runs that share their passes share the time, too.
            tokens_per_second: mean(|step| step.tokens_per_second) * seen.len() as f64,
            memory_bytes: metrics.memory_bytes,
            elapsed,
            left: Some(left).filter(|left| *left > Duration::from_secs(1)),
        };
        if let Some(progress) = &mut self.progress {
            progress.set_step(done.min(self.all), &facts);
        }
    }

    /// A warning about a run.
    pub(super) fn warn(&self, run: usize, message: &str) {
        self.say(&format!("warning: {}: {message}", self.names[run]));
    }

    fn note(&self, line: &str) {
        if !self.quiet {
            self.say(line);
        }
    }

    fn say(&self, line: &str) {
        match &self.progress {
            Some(progress) => progress.note(line),
            None => eprintln!("{line}"),
        }
    }

    /// Ends the progress, however the runs ended.
    pub(super) fn finish(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish("");
        }
    }
}
