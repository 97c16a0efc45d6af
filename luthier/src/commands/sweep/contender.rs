//! One run of a sweep: its folder, what it is made of, and how it stands.

use std::cmp::Ordering;
use std::fs::File;
use std::path::{Path, PathBuf};

use train::History;

use crate::commands::train::Prepared;
use crate::run_folder::{self, OfResult};
use crate::terminal::loss;

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

/// By what runs are ordered, those that halving compares and those that have ended: the ones that forgot more
/// than is allowed stand behind all others, and the lower loss before the higher one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) is_beyond: bool,
    /// Infinite where there is none.
    loss: f64,
}

impl Standing {
    /// By the held-out loss of what is, or would be, the run's result; `other`: what stands for it where there is
    /// none.
    pub(super) fn of(result: &OfResult<'_>, other: Option<f64>) -> Self {
        let loss = result.evaluation.map(|evaluation| evaluation.eval_loss).or(other);
        Standing { is_beyond: result.is_beyond, loss: loss.unwrap_or(f64::INFINITY) }
    }

    pub(super) fn cmp(&self, other: &Self) -> Ordering {
        self.is_beyond.cmp(&other.is_beyond).then(self.loss.total_cmp(&other.loss))
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

    /// How it stands after a step, or in the end if it has ended before.
    pub(super) fn standing_at(&self, step: u64) -> anyhow::Result<Standing> {
        let history = History::read(&self.folder)?.until(step);
        Ok(Standing::of(&OfResult::of(&self.prepared.settings.run, &history), None))
    }

    /// Halving leaves it behind.
    pub(super) fn lose(&mut self, step: u64, standing: Standing, place: usize, of: usize) {
        if self.state == State::Finished {
            return;
        }
        let loss = loss(standing.loss);
        self.state =
            State::Stopped(format!("after step {step}, {place} of {of} by a held-out loss of {loss}"));
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
