//! Checkpoints: all that a bit-exact resume needs, in a folder that appears whole or not at all, with a hash
//! of every file.

use std::fs;
use std::path::{Path, PathBuf};

use model::Adapter;
use model::checkpoint::{Staging, sweep, sweep_staged, write_whole};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::optimizer::Optimizer;
use crate::saving::Saving;
use crate::sums;

const VERSION: u32 = 2;
/// The version before had no hashes.
const FIRST_HASHED: u32 = 2;
const STATE_FILE: &str = "state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done before it.
    pub step: u64,
    /// Its loss.
    pub eval_loss: f64,
}

/// Trained tensors that are kept beside the checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Those of the best evaluation.
    Best,
    /// Those with which no more was forgotten than is allowed, the last ones.
    Within,
}

/// Where a run stands; with the trained tensors and the optimizer's moments, everything there is to know,
/// since order and random numbers are functions of the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) version: u32,
    /// Steps done.
    pub(crate) step: u64,
    /// Whether the evaluation after this step, if one is due, is done.
    pub(crate) evaluated: bool,
    pub(crate) best: Option<Best>,
    pub(crate) evaluations_without_improvement: u64,
    /// Whether early stopping ended the run.
    pub(crate) stopped_early: bool,
    /// The last step after which no more was forgotten than is allowed.
    #[serde(default)]
    pub(crate) within: Option<u64>,
    /// The divergence from the base that ended the run.
    #[serde(default)]
    pub(crate) beyond: Option<f64>,
    /// A hash of the training data: a run goes on with what it began with.
    pub(crate) data: u64,
}

/// A checkpoint that cannot be gone on from, and what is wrong with it. A person takes it away, not this
/// program.
#[derive(Debug)]
pub(crate) struct Damaged {
    pub(crate) path: PathBuf,
    pub(crate) why: String,
}

/// A checkpoint that is gone on from.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) state: State,
    pub(crate) path: PathBuf,
    /// Newer ones, from the newest on.
    pub(crate) damaged: Vec<Damaged>,
}

/// The checkpoints of a run folder.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
    /// Steps whose checkpoints were found damaged: they stand in for no other.
    damaged: Vec<u64>,
    /// The folder itself, whatever becomes of its name.
    #[cfg(unix)]
    opened: fs::File,
}

impl Checkpoints {
    /// Opens `folder`, sweeping out what an interrupted write or deletion left. No other process may be at
    /// work in it.
    pub(crate) fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(|e| TrainError::write(&folder, e))?;
        sweep(&folder);
        sweep_staged(&folder);
        Ok(Checkpoints {
            damaged: Vec::new(),
            #[cfg(unix)]
            opened: fs::File::open(&folder).map_err(|e| TrainError::read(&folder, e))?,
            folder,
        })
    }

    /// Refuses to go on where the run folder was taken away: what stands under its name now may be another
    /// run's.
    pub(crate) fn check_in_place(&self) -> Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
            let now = fs::metadata(&self.folder).map(place).ok();
            if now.is_none() || now != self.opened.metadata().map(place).ok() {
                let problem = "was removed or replaced while this run was writing there; the run has stopped";
                return Err(TrainError::Checkpoint { path: self.folder.clone(), problem: problem.into() });
            }
        }
        Ok(())
    }

    /// The steps of the checkpoints, in order.
    fn steps(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let step = |name: &str| name.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = entries.filter_map(|e| step(&e.file_name().to_string_lossy())).collect();
        steps.sort_unstable();
        steps
    }

    /// The folder of a step's checkpoint.
    pub(crate) fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:06}"))
    }

    /// The folder of trained tensors that are kept, whatever comes after them.
    fn kept_path(&self, kept: Kept) -> PathBuf {
        self.folder.join(match kept {
            Kept::Best => "best",
            Kept::Within => "within",
        })
    }

    /// Restores the tensors and moments of the newest checkpoint that is whole; none if there is no
    /// checkpoint at all.
    ///
    /// # Errors
    /// If all are damaged, one was written by a later version, or what is not to be in memory cannot be
    /// written.
    pub(crate) fn restore(
        &mut self,
        saving: &Saving<'_>,
        adapter: &mut Adapter,
        optimizer: &mut Optimizer,
    ) -> Result<Option<Restored>> {
        let mut damaged = Vec::new();
        for step in self.steps().into_iter().rev() {
            let path = self.path(step);
            let restored = self.check(step, saving).and_then(|state| {
                let trained = saving.read_trained(&path, adapter);
                trained.map(|()| state).map_err(|e| e.to_string())
            });
            let why = match restored {
                Err(why) => why,
                Ok(State { version, .. }) if version > VERSION => {
                    let problem = format!(
                        "is of version {version}, this program reads up to {VERSION}; go on with the luthier that wrote it, \
                         or train into a new folder"
                    );
                    return Err(TrainError::Checkpoint { path: path.join(STATE_FILE), problem });
                }
                Ok(state) => match optimizer.read(&path.join(OPTIMIZER_FILE), &adapter.layout) {
                    Ok(()) => return Ok(Some(Restored { state, path, damaged })),
                    Err(TrainError::Model(e)) => e.to_string(),
                    Err(other) => return Err(other),
                },
            };
            self.damaged.push(step);
            damaged.push(Damaged { path, why });
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        let all: Vec<String> =
            damaged.iter().map(|Damaged { path, why }| format!("{} ({why})", path.display())).collect();
        let problem = format!(
            "no checkpoint is whole: {}; bring one back, or remove them all and --resume begins anew",
            all.join(", ")
        );
        Err(TrainError::Checkpoint { path: self.folder.clone(), problem })
    }

    /// The state of a checkpoint whose files are those that were written, as far as hashes tell; else what is
    /// wrong.
    fn check(&self, step: u64, saving: &Saving<'_>) -> Result<State, String> {
        let path = self.path(step);
        let hashed = path.join(sums::FILE).exists();
        if hashed {
            sums::verify(&path, &[STATE_FILE, OPTIMIZER_FILE, saving.trained_file()])?;
        }
        let text = fs::read_to_string(path.join(STATE_FILE)).map_err(|e| format!("{STATE_FILE}: {e}"))?;
        let state: State = serde_json::from_str(&text).map_err(|e| format!("{STATE_FILE}: {e}"))?;
        match state.version {
            0 => Err(format!("{STATE_FILE}: it is of version 0")),
            FIRST_HASHED.. if !hashed => Err(format!("{} is missing", sums::FILE)),
            _ if state.step != step => Err(format!("{STATE_FILE}: it is of step {}", state.step)),
            _ => Ok(state),
        }
    }

    /// Tells with an error that ends a run what there is to go on from.
    pub(crate) fn ended(&self, cause: TrainError, saving: &Saving<'_>) -> TrainError {
        let whole = |step: &&u64| self.check(**step, saving).is_ok();
        let checkpoint = self.steps().iter().rev().find(whole).map(|&step| self.path(step));
        TrainError::Ended { cause: Box::new(cause), checkpoint }
    }

    /// Writes a checkpoint, then retires old ones.
    pub(crate) fn save(
        &mut self,
        state: &State,
        saving: &Saving<'_>,
        adapter: &Adapter,
        optimizer: &mut Optimizer,
        keep: usize,
    ) -> Result<PathBuf> {
        let path = self.path(state.step);
        self.write_folder(&path, |to| {
            saving.write_trained(to, adapter)?;
            optimizer.write(&to.join(OPTIMIZER_FILE), &adapter.layout)?;
            let state = State { version: VERSION, ..state.clone() };
            let json = serde_json::to_vec_pretty(&state).expect("plain numbers");
            Ok(write_whole(&to.join(STATE_FILE), &json)?)
        })?;
        self.damaged.retain(|step| *step != state.step);
        self.retire(state.step, keep);
        Ok(path)
    }

    /// Removes all but the newest `keep` up to the one of `last`. Those that were found damaged are not counted,
    /// and stay for a person to look at.
    pub(crate) fn retire(&self, last: u64, keep: usize) {
        let mut steps = self.steps();
        steps.retain(|step| *step <= last && !self.damaged.contains(step));
        for &old in &steps[..steps.len().saturating_sub(keep.max(1))] {
            remove(&self.path(old));
        }
    }

    /// Writes trained tensors that are kept, in place of those before.
    pub(crate) fn keep(&self, kept: Kept, saving: &Saving<'_>, adapter: &Adapter) -> Result<()> {
        self.write_folder(&self.kept_path(kept), |to| saving.write_trained(to, adapter))
    }

    /// Reads what [`Checkpoints::keep`] wrote.
    ///
    /// # Errors
    /// If it is damaged: there is no other.
    pub(crate) fn read_kept(&self, kept: Kept, saving: &Saving<'_>, adapter: &mut Adapter) -> Result<()> {
        let path = self.kept_path(kept);
        // Older versions wrote no hashes.
        let hashed = path.join(sums::FILE).exists();
        let whole = if hashed { sums::verify(&path, &[saving.trained_file()]) } else { Ok(()) };
        whole.and_then(|()| saving.read_trained(&path, adapter).map_err(|e| e.to_string())).map_err(|why| {
            let what = match kept {
                Kept::Best => "the best evaluation",
                Kept::Within => "the last measurement within the limit of forgetting",
            };
            let problem = format!(
                "the tensors of {what} are damaged ({why}); bring them back, or train into a new folder"
            );
            TrainError::Checkpoint { path, problem }
        })
    }

    /// Fills a hidden folder, adds the hashes, and then gives it its name, replacing an older one.
    fn write_folder(&self, path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.check_in_place()?;
        let staging = Staging::replacing(path)?;
        fill(staging.path())?;
        sums::write(staging.path())?;
        Ok(staging.publish()?)
    }
}

/// Takes the name away first, so that an interrupted deletion leaves no damaged checkpoint.
fn remove(path: &Path) {
    // What cannot be removed is there the next time.
    if let Ok(hidden) = Staging::replacing(path) {
        let _ = fs::rename(path, hidden.path());
    }
}
