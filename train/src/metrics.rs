//! `metrics.jsonl`: a line for each step, each evaluation and each measurement of what is forgotten, each step once,
//! whatever was interrupted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::tensorboard::EventFile;

/// One optimizer step.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct StepMetrics {
    /// From 1.
    pub step: u64,
    /// Epochs done after this step.
    pub epoch: f64,
    /// Mean loss over the tokens that carry loss in the whole step, in nats.
    pub loss: f64,
    /// The loss of an uneven load of experts before its coefficient, where it is trained: the mean over
    /// micro-batches, by their tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_aux_loss: Option<f64>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The rate this step used.
    pub learning_rate: f64,
    /// All tokens of the step.
    pub tokens: u64,
    /// Those that carry loss.
    pub trained_tokens: u64,
    /// All tokens over the step's time.
    pub tokens_per_second: f64,
    /// The most memory the process has held so far.
    pub memory_bytes: u64,
}

impl StepMetrics {
    /// Seconds that the step took.
    pub fn seconds(&self) -> f64 {
        self.tokens as f64 / self.tokens_per_second
    }
}

/// One evaluation.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct EvalMetrics {
    /// Steps done before it.
    pub step: u64,
    /// Mean loss over the held-out tokens that carry loss, in nats.
    pub eval_loss: f64,
    /// Their number.
    pub eval_tokens: u64,
}

/// What the model with its adapter has forgotten of its base, by texts that it is not trained on.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ForgettingMetrics {
    /// Steps done before.
    pub step: u64,
    /// Mean divergence from the base over the texts' tokens, in nats: `KL(base, adapter)`.
    pub forgetting_kl: f64,
    /// Mean loss over them with the adapter, in nats.
    pub forgetting_loss: f64,
    /// Mean loss over them by the base, in nats.
    pub forgetting_base_loss: f64,
    /// Their number.
    pub forgetting_tokens: u64,
}

/// A line of the file.
pub(crate) trait Line: Serialize {
    /// The step that it is about.
    fn step(&self) -> u64;
    /// What TensorBoard shows of it, by the names that transformers' runs have there.
    fn scalars(&self) -> Vec<(&'static str, f64)>;
}

impl Line for StepMetrics {
    fn step(&self) -> u64 {
        self.step
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        let router = self.router_aux_loss.map(|loss| ("train/router_aux_loss", loss));
        let all = [
            ("train/loss", self.loss),
            ("train/grad_norm", self.grad_norm),
            ("train/learning_rate", self.learning_rate),
            ("train/tokens_per_second", self.tokens_per_second),
            ("train/memory_bytes", self.memory_bytes as f64),
            ("train/epoch", self.epoch),
        ];
        all.into_iter().chain(router).collect()
    }
}

impl Line for EvalMetrics {
    fn step(&self) -> u64 {
        self.step
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        vec![("eval/loss", self.eval_loss)]
    }
}

impl Line for ForgettingMetrics {
    fn step(&self) -> u64 {
        self.step
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("eval/forgetting_kl", self.forgetting_kl),
            ("eval/forgetting_loss", self.forgetting_loss),
            ("eval/forgetting_base_loss", self.forgetting_base_loss),
        ]
    }
}

/// All lines of a run so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The steps, in order.
    pub steps: Vec<StepMetrics>,
    /// The evaluations, in order.
    pub evaluations: Vec<EvalMetrics>,
    /// What was forgotten, in order.
    pub forgetting: Vec<ForgettingMetrics>,
}

impl History {
    /// Reads a run folder's `metrics.jsonl`; nothing where there is none.
    pub fn read(folder: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Line {
            Step(StepMetrics),
            Evaluation(EvalMetrics),
            Forgetting(ForgettingMetrics),
        }
        let path = folder.join("metrics.jsonl");
        let mut history = History::default();
        // A pipe would be waited for.
        if fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(TrainError::read(&path, io::Error::other("is not a regular file")));
        }
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(history),
            Err(e) => return Err(TrainError::read(&path, e)),
        };
        let mut broken = None;
        for (number, line) in (1..).zip(BufReader::new(file).split(b'\n')) {
            if let Some(number) = broken {
                let problem = format!("line {number} is none of metrics; put the file back as it was");
                return Err(TrainError::read(&path, io::Error::other(problem)));
            }
            match serde_json::from_slice(&line.map_err(|e| TrainError::read(&path, e))?) {
                Ok(Line::Step(step)) => history.steps.push(step),
                Ok(Line::Evaluation(evaluation)) => history.evaluations.push(evaluation),
                Ok(Line::Forgetting(forgetting)) => history.forgetting.push(forgetting),
                // The last one may have been cut off by a crash.
                Err(_) => broken = Some(number),
            }
        }
        Ok(history)
    }

    /// The lines up to a step.
    pub fn until(mut self, step: u64) -> Self {
        self.steps.retain(|of| of.step <= step);
        self.evaluations.retain(|of| of.step <= step);
        self.forgetting.retain(|of| of.step <= step);
        self
    }

    /// The measurement whose tensors are the result of a run with this limit of divergence, where it is not the
    /// last one: that was beyond the limit.
    pub fn within(&self, limit: f64) -> Option<&ForgettingMetrics> {
        let beyond = |of: &ForgettingMetrics| of.forgetting_kl > limit;
        let (last, before) = self.forgetting.split_last()?;
        if beyond(last) { before.iter().rev().find(|of| !beyond(of)) } else { None }
    }

    /// Seconds that the steps took, without evaluations and saving.
    pub fn seconds(&self) -> f64 {
        self.steps.iter().map(StepMetrics::seconds).sum()
    }
}

/// The file, open for appending, and the event file that says the same, if there is to be one.
#[derive(Debug)]
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: File,
    events: Option<EventFile>,
}

#[derive(Deserialize)]
struct AnyLine {
    step: u64,
    eval_loss: Option<f64>,
    forgetting_kl: Option<f64>,
}

impl AnyLine {
    /// Whether it is of what follows a step, not of the step.
    fn is_of_evaluation(&self) -> bool {
        self.eval_loss.is_some() || self.forgetting_kl.is_some()
    }
}

impl MetricsFile {
    /// Opens the file of a run that has done `step` steps, without the lines of later ones: they will come
    /// again. `evaluated` tells whether the evaluation after that step is done; `tensorboard`, whether the
    /// lines go to an event file, too.
    pub(crate) fn open(path: &Path, step: u64, evaluated: bool, tensorboard: bool) -> Result<Self> {
        let mut kept = Vec::new();
        if let Ok(file) = File::open(path) {
            for line in BufReader::new(file).split(b'\n') {
                let line = line.map_err(|e| TrainError::read(path, e))?;
                // A line cut off by a crash does not parse; all behind it comes again.
                let Ok(of) = serde_json::from_slice::<AnyLine>(&line) else { break };
                if of.step < step || (of.step == step && (!of.is_of_evaluation() || evaluated)) {
                    kept.extend_from_slice(&line);
                    kept.push(b'\n');
                }
            }
        }
        model::checkpoint::write_whole(path, &kept)?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| TrainError::write(path, e))?;
        let folder = path.parent().expect("the file lies in the run folder");
        let begin = || EventFile::begin(folder, &History::read(folder)?);
        let events = tensorboard.then(begin).transpose()?;
        Ok(MetricsFile { path: path.to_owned(), file, events })
    }

    /// Appends a line.
    pub(crate) fn append(&mut self, metrics: &impl Line) -> Result<()> {
        let mut line = serde_json::to_vec(metrics).expect("metrics are plain numbers");
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| TrainError::write(&self.path, e))?;
        self.events.iter_mut().try_for_each(|events| events.append(metrics))
    }

    /// Waits for the disk: a checkpoint must not outlast the lines of its steps.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| TrainError::write(&self.path, e))
    }
}

/// The most memory this process has held, in bytes; 0 where the system does not tell.
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
