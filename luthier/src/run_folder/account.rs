//! What a run folder tells of its run, however far it came and whoever trains it.

use std::fmt::{self, Display};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use train::History;

use super::card::{file_name, sources};
use super::of_result::OfResult;
use super::{CHECKPOINTS, LOCK, SETTINGS, begun, last_checkpoint};
use crate::error::user;
use crate::run_file::{Method, RunFile, Settings};
use crate::terminal::loss;

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Its result is written.
    Finished,
    /// A process trains it.
    Running,
    /// Its last checkpoint has all that it did.
    Stopped,
    /// It ended after its last checkpoint, or before the first one.
    Unfinished,
}

impl State {
    /// In a word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            State::Finished => "finished",
            State::Running => "running",
            State::Stopped => "stopped",
            State::Unfinished => "unfinished",
        }
    }
}

/// A series of losses: the first, the last, and the lowest with its step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Losses {
    pub(crate) first: f64,
    pub(crate) last: f64,
    pub(crate) last_step: u64,
    pub(crate) best: f64,
    pub(crate) best_step: u64,
}

impl Losses {
    /// Of the steps of a run.
    pub(crate) fn of_steps(history: &History) -> Option<Self> {
        Losses::of(history.steps.iter().map(|step| (step.step, step.loss)))
    }

    /// Of its evaluations.
    pub(crate) fn of_evaluations(history: &History) -> Option<Self> {
        Losses::of(history.evaluations.iter().map(|of| (of.step, of.eval_loss)))
    }

    fn of(losses: impl Iterator<Item = (u64, f64)> + Clone) -> Option<Self> {
        let (_, first) = losses.clone().next()?;
        let (last_step, last) = losses.clone().last()?;
        let (best_step, best) = losses.min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(Losses { first, last, last_step, best, best_step })
    }
}

impl Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, last, best] = [self.first, self.last, self.best].map(loss);
        write!(f, "{first} first, {last} last, {best} best (step {})", self.best_step)
    }
}

/// A step and its losses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct OfStep {
    pub(crate) step: u64,
    /// Whether that is the run's last step: a rule may have taken another.
    pub(crate) is_last: bool,
    pub(crate) loss: Option<f64>,
    pub(crate) held_out_loss: Option<f64>,
}

/// A run, as its folder tells it.
pub(crate) struct Account {
    pub(crate) folder: PathBuf,
    pub(crate) settings: RunFile,
    pub(crate) history: History,
    pub(crate) state: State,
    /// Seconds since 1970 at which it first began.
    pub(crate) begun: i64,
}

impl Account {
    /// Reads a run folder.
    ///
    /// # Errors
    /// If it holds no run, or its settings cannot be read.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(SETTINGS);
        if !path.is_file() {
            let shown = folder.display();
            return Err(user(match folder.is_dir() {
                true => format!("{shown}: there is no {SETTINGS} in it, so it holds no run"),
                false => format!("{shown}: there is no such folder"),
            }));
        }
        let settings = Settings::resolve(Some(&path), Vec::new())?.run;
        let history = History::read(folder).with_context(|| folder.display().to_string())?;
        let state = state(folder, &settings, &history);
        Ok(Account { folder: folder.to_owned(), settings, history, state, begun: begun(folder, true) })
    }

    /// Reads the runs that are named: each folder is a run's, or one of folders of runs, as a sweep's is.
    ///
    /// # Errors
    /// If there is no run in a folder, or one cannot be read.
    pub(crate) fn named(folders: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        let found = folders.iter().flat_map(|folder| {
            let below = if folder.join(SETTINGS).is_file() { Vec::new() } else { Account::find(folder) };
            if below.is_empty() { vec![folder.clone()] } else { below }
        });
        Account::distinct(found).iter().map(|folder| Account::read(folder)).collect()
    }

    /// The run folders in and below a folder, in the order of their paths. What cannot be read is passed over.
    pub(crate) fn find(folder: &Path) -> Vec<PathBuf> {
        if folder.join(SETTINGS).is_file() && folder.join(CHECKPOINTS).is_dir() {
            return vec![folder.to_owned()];
        }
        let is_seen = |name: &str| !name.starts_with('.');
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        // A link could lead back up.
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let below = below.filter(|entry| is_seen(&entry.file_name().to_string_lossy()));
        let mut below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
        below.sort();
        below.iter().flat_map(|path| Account::find(path)).collect()
    }

    /// Folders without those that are named a second time, whichever way.
    pub(crate) fn distinct(folders: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
        let mut places: Vec<Option<PathBuf>> = Vec::new();
        let mut is_new = |folder: &PathBuf| {
            let place = folder.canonicalize().ok();
            let is_new = place.is_none() || !places.contains(&place);
            places.push(place);
            is_new
        };
        folders.into_iter().filter(|folder| is_new(folder)).collect()
    }

    /// The last part of its path.
    pub(crate) fn name(&self) -> String {
        let path = self.folder.canonicalize().unwrap_or_else(|_| self.folder.clone());
        path.file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// What was trained, without the folder it lies in.
    pub(crate) fn model(&self) -> String {
        let model = self.settings.model.as_deref().unwrap_or_default();
        if crate::hub::is_id(model) { model.to_owned() } else { file_name(model) }
    }

    /// How: the method, and the rank if it has one.
    pub(crate) fn method(&self) -> String {
        let adapter = &self.settings.adapter;
        match adapter.method {
            Method::Full => "full".to_owned(),
            Method::Lora => format!("lora, rank {}", adapter.r),
            Method::Dora => format!("dora, rank {}", adapter.r),
            Method::Qalora => format!("qalora, rank {}", adapter.r),
        }
    }

    /// On what: the names of the files.
    pub(crate) fn data(&self) -> String {
        sources(&self.settings).join(", ")
    }

    /// Steps done.
    pub(crate) fn steps(&self) -> u64 {
        self.history.steps.last().map_or(0, |step| step.step)
    }

    /// Steps of the whole run, as far as the epochs done tell; none before its first step.
    pub(crate) fn all_steps(&self) -> Option<u64> {
        let training = &self.settings.training;
        let last = self.history.steps.last()?;
        if self.state == State::Finished {
            return Some(last.step);
        }
        let by_epochs = training
            .epochs
            .filter(|_| last.epoch > 0.0)
            .map(|epochs| (last.step as f64 * epochs as f64 / last.epoch).round() as u64);
        let all = by_epochs.into_iter().chain(training.max_steps).min();
        all.map(|steps| steps.max(last.step))
    }

    /// What its result is of; of a run without a result, its last step.
    pub(crate) fn result(&self) -> OfStep {
        let (history, last) = (&self.history, self.steps());
        let step = match self.state {
            State::Finished => OfResult::of(&self.settings, history).step,
            _ => last,
        };
        OfStep {
            step,
            is_last: step == last,
            loss: history.steps.iter().rfind(|of| of.step <= step).map(|of| of.loss),
            held_out_loss: history.evaluations.iter().rfind(|of| of.step <= step).map(|of| of.eval_loss),
        }
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.history.steps.iter().map(|step| step.tokens).sum()
    }

    /// Of all steps, without evaluations and saving.
    pub(crate) fn time(&self) -> Duration {
        Duration::try_from_secs_f64(self.history.seconds()).unwrap_or_default()
    }

    /// Over all steps; none before the first one.
    pub(crate) fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.history.seconds();
        (seconds > 0.0).then(|| self.tokens() as f64 / seconds)
    }

    /// The most that a process of this run has held.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        self.history.steps.iter().map(|step| step.memory_bytes).max()
    }
}

fn state(folder: &Path, run: &RunFile, history: &History) -> State {
    let full = run.adapter.method == Method::Full;
    let result = if full { "config.json" } else { model::adapter::peft::CONFIG_FILE };
    if is_held(folder) {
        return State::Running;
    }
    if folder.join(result).is_file() {
        return State::Finished;
    }
    let saved = last_checkpoint(&folder.join(CHECKPOINTS), "step-", "state.json");
    match (saved, history.steps.last()) {
        (Some((step, _)), Some(last)) if step == last.step => State::Stopped,
        _ => State::Unfinished,
    }
}

/// Whether a process trains the run.
fn is_held(folder: &Path) -> bool {
    let Ok(lock) = File::open(folder.join(CHECKPOINTS).join(LOCK)) else { return false };
    matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
}
