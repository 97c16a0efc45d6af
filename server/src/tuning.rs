//! Fine-tuning jobs on the base that is served: /v1/fine_tuning/jobs, as OpenAI has it.
//!
//! A job is a row of a table and a run's folder. All jobs that can go on train together, on one thread
//! (`bench`), and yield to requests. What has become of one is noted, and its model is served, the moment it
//! ends. When a job is to join them, or one that ended left room for others, those that train save and stop,
//! and the new list goes on from there: a run that is resumed ends in the bytes of one that was never stopped,
//! and so a restart of the server is nothing special.

mod asked;
mod bench;
mod jobs;
pub(crate) mod routes;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;

pub(crate) use bench::Bench;
pub(crate) use jobs::{TABLES, is_waited_for};

/// A setting of a run that a client chose.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where the client wrote it, such as `hyperparameters.n_epochs`.
    pub field: String,
    /// The run file's key, such as `training.epochs`.
    pub key: String,
    /// Its value.
    pub value: Value,
}

/// A job, as far as training is concerned.
#[derive(Clone, Debug)]
pub struct Task {
    /// The run's folder, which exists once it has begun.
    pub folder: PathBuf,
    /// The examples.
    pub training: PathBuf,
    /// Held-out examples.
    pub validation: Option<PathBuf>,
    /// What the client calls these files.
    pub names: Vec<(PathBuf, String)>,
    /// What differs from the server's own settings.
    pub settings: Vec<Setting>,
    /// A factor to the learning rate that is usual.
    pub rate: f64,
    /// Set from outside to end the run after the step at hand.
    pub stop: Arc<AtomicBool>,
}

/// What a job comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Passes over the examples.
    pub epochs: u64,
    /// Rows of an optimizer step.
    pub batch_size: usize,
    /// The learning rate at its peak.
    pub learning_rate: f64,
    /// Optimizer steps.
    pub steps: u64,
    /// Its seed.
    pub seed: u64,
}

/// What is told while jobs train.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// It begins, or goes on, after `step` of `steps`.
    Started {
        /// Steps done before.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
    },
    /// A step is done.
    Step {
        /// Its number, from 1.
        step: u64,
        /// The mean over its trained tokens.
        loss: f64,
        /// Before clipping.
        grad_norm: f64,
        /// Of this step.
        learning_rate: f64,
    },
    /// The held-out examples were evaluated.
    Evaluated {
        /// After which step.
        step: u64,
        /// The mean over their trained tokens.
        loss: f64,
    },
    /// A checkpoint stands, a folder that can be served.
    Saved(PathBuf),
    /// Something that a person should know.
    Warning(String),
    /// It has ended so, and nothing more is told of it. Others may go on for long.
    Ended(Ended),
}

/// How a job's time on the bench ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// The result is in its folder.
    Finished {
        /// All tokens that were trained on.
        tokens: u64,
    },
    /// It was asked to stop, and all that it has done is saved.
    Interrupted,
    /// There is no room on the disk: it goes on from what is saved when there is.
    Full,
    /// It cannot go on, and why.
    Failed(String),
}

/// Who trains: the binary's, or in tests a script.
pub trait Tuner: Send + Sync {
    /// Checks settings, without files. `held_out`: whether there is a file of held-out examples.
    ///
    /// # Errors
    /// Which field is wrong, and why.
    fn check(&self, settings: &[Setting], rate: f64, held_out: bool) -> Result<(), (String, String)>;

    /// Reads all of a job's input, and says what it comes to. Nothing is written.
    ///
    /// # Errors
    /// What is wrong with it.
    fn plan(&self, task: &Task) -> Result<Plan, String>;

    /// Trains these jobs, together as far as they fit, until each has ended or was asked to stop. What
    /// happens, also how a job ends, is told as it happens, with the job's place in the list. Of those that
    /// there was no room for nothing is told.
    ///
    /// # Errors
    /// If something went wrong that may be about any of those that had not ended.
    fn train(&self, tasks: &[Task], tell: &mut dyn FnMut(usize, Told)) -> Result<(), String>;

    /// The steps of a job that its folder remembers, a line each with its fields: what `train` told, and
    /// more.
    ///
    /// # Errors
    /// If they cannot be read.
    fn metrics(&self, task: &Task) -> Result<Vec<Value>, String>;
}
