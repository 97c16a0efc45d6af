//! One run of a sweep: its folder, what it is made of, and how it stands.

use std::fs::File;
use std::path::{Path, PathBuf};

use train::{EvalMetrics, History};

use crate::commands::train::Prepared;
use crate::run_folder;

/// How a run stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// It has not come to an end.
    Waiting,
    Finished,
    /// Halving left it behind.
    Stopped(String),
    /// On request, after saving.
    Interrupted,
    Failed(String),
}

impl State {
    /// In a word.
    pub(super) fn word(&self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Finished => "finished",
            State::Stopped(_) => "stopped",
            State::Interrupted => "interrupted",
            State::Failed(_) => "failed",
        }
    }

    /// What there is to say beside the word.
    pub(super) fn why(&self) -> Option<&str> {
        match self {
            State::Stopped(why) | State::Failed(why) => Some(why),
            _ => None,
        }
    }
}

/// A run of a sweep.
pub(super) struct Contender {
    pub(super) name: String,
    pub(super) changes: Vec<(String, String)>,
    pub(super) folder: PathBuf,
    pub(super) prepared: Prepared,
    /// What others must have in common with it to train together, in words; none: it trains alone.
    pub(super) company: Option<String>,
    /// The time that chat templates tell.
    pub(super) begun: i64,
    /// Held by this process, of a run that is not new.
    pub(super) lock: Option<File>,
    pub(super) state: State,
}

impl Contender {
    /// Steps of the whole run.
    pub(super) fn steps(&self) -> u64 {
        self.prepared.steps
    }

    /// Why it failed, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        match &self.state {
            State::Failed(why) => Some(format!("{}: {why}", self.name)),
            _ => None,
        }
    }

    /// The held-out loss after a step, or in the end of a run that has ended before.
    pub(super) fn loss_at(&self, step: u64) -> anyhow::Result<f64> {
        let evaluations = History::read(&self.folder)?.evaluations;
        let until = |evaluation: &&EvalMetrics| evaluation.step <= step;
        // One that has none counts as the worst.
        Ok(evaluations.iter().rfind(until).map_or(f64::INFINITY, |e| e.eval_loss))
    }

    /// Halving leaves it behind.
    pub(super) fn lose(&mut self, step: u64, loss: f64, place: usize, of: usize) {
        if self.state == State::Finished {
            return;
        }
        self.state =
            State::Stopped(format!("after step {step}, {place} of {of} by a held-out loss of {loss:.4}"));
    }

    /// Whether its folder has a result.
    pub(super) fn has_result(folder: &Path) -> bool {
        ["adapter_config.json", "config.json"].iter().any(|name| folder.join(name).is_file())
    }

    /// Makes or takes over its folder, in which no other process may be at work then.
    pub(super) fn claim(&mut self) -> anyhow::Result<()> {
        if self.lock.is_none() {
            self.lock = Some(run_folder::begin(&self.folder)?);
        }
        if self.state == State::Finished {
            return Ok(());
        }
        self.prepared.claim(&self.folder, self.begun)
    }
}
