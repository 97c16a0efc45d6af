//! Checkpoints: all that a bit-exact resume needs, in a folder that appears whole or not at all.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use model::checkpoint::{Staging, sweep, sweep_staged, write_whole};
use model::{Layout, Parameters};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::optimizer::Optimizer;
use crate::saving::Saving;

const VERSION: u32 = 1;
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) step: u64,
    pub(crate) eval_loss: f64,
}

/// Where a run stands; with the trained tensors and the optimizer's moments, everything there is to know, since order
/// and random numbers are functions of the step.
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
    /// A hash of the training data: a run goes on with what it began with.
    pub(crate) data: u64,
}

/// The checkpoints of a run folder.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
    /// The folder itself, whatever becomes of its name.
    #[cfg(unix)]
    opened: fs::File,
}

impl Checkpoints {
    /// Opens `folder`, sweeping out what an interrupted write or deletion left. No other process may be at work in it.
    pub(crate) fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(|e| TrainError::write(&folder, e))?;
        sweep(&folder);
        sweep_staged(&folder);
        Ok(Checkpoints {
            #[cfg(unix)]
            opened: fs::File::open(&folder).map_err(|e| TrainError::read(&folder, e))?,
            folder,
        })
    }

    /// Refuses to go on where the run folder was taken away: what stands under its name now may be another run's.
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

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:06}"))
    }

    /// The folder of the best evaluation's trained tensors.
    pub(crate) fn best_path(&self) -> PathBuf {
        self.folder.join("best")
    }

    /// The newest checkpoint's state and folder.
    pub(crate) fn latest(&self) -> Result<Option<(State, PathBuf)>> {
        let Some(&step) = self.steps().last() else { return Ok(None) };
        let path = self.path(step);
        let file = path.join("state.json");
        let wrong = |e: &dyn Display| damaged(&path, format!("state.json: {e}"));
        let text = fs::read_to_string(&file).map_err(|e| wrong(&e))?;
        let state: State = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
        if state.version != VERSION {
            let problem = format!(
                "is of version {}, this program reads {VERSION}; go on with the luthier that wrote it, or train into a \
                 new folder",
                state.version
            );
            return Err(TrainError::Checkpoint { path: file, problem });
        }
        if state.step != step {
            return Err(wrong(&format!("it is of step {}", state.step)));
        }
        Ok(Some((state, path)))
    }

    /// Writes a checkpoint, then removes all but the newest `keep`.
    pub(crate) fn save(
        &self,
        state: &State,
        saving: &Saving<'_>,
        layout: &Layout,
        parameters: &Parameters,
        optimizer: &mut Optimizer,
        keep: usize,
    ) -> Result<PathBuf> {
        let path = self.path(state.step);
        self.write_folder(&path, |to| {
            saving.write_trained(to, layout, parameters)?;
            optimizer.write(&to.join(OPTIMIZER_FILE), layout)?;
            let state = State { version: VERSION, ..state.clone() };
            let json = serde_json::to_vec_pretty(&state).expect("plain numbers");
            Ok(write_whole(&to.join("state.json"), &json)?)
        })?;
        let steps = self.steps();
        for &old in &steps[..steps.len().saturating_sub(keep.max(1))] {
            remove(&self.path(old));
        }
        Ok(path)
    }

    /// Writes the trained tensors of the best evaluation.
    pub(crate) fn save_best(
        &self,
        saving: &Saving<'_>,
        layout: &Layout,
        parameters: &Parameters,
    ) -> Result<()> {
        self.write_folder(&self.best_path(), |to| saving.write_trained(to, layout, parameters))
    }

    /// Fills a hidden folder and then gives it its name, replacing an older one.
    fn write_folder(&self, path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.check_in_place()?;
        let staging = Staging::replacing(path)?;
        fill(staging.path())?;
        Ok(staging.publish()?)
    }
}

/// Restores the trained tensors and moments of a checkpoint.
pub(crate) fn restore(
    path: &Path,
    saving: &Saving<'_>,
    layout: &Layout,
    parameters: &mut Parameters,
    optimizer: &mut Optimizer,
) -> Result<()> {
    saving.read_trained(path, layout, parameters).map_err(|e| damaged(path, e))?;
    optimizer.read(&path.join(OPTIMIZER_FILE), layout).map_err(|e| match e {
        TrainError::Model(e) => damaged(path, e),
        other => other,
    })
}

/// A checkpoint that cannot be gone on from. A person takes it away, not this program: it may be all there is.
fn damaged(path: &Path, why: impl Display) -> TrainError {
    let problem = format!(
        "this checkpoint is damaged ({why}); remove the folder and --resume goes on from the checkpoint before it, or \
         from the beginning if there is none"
    );
    TrainError::Checkpoint { path: path.to_owned(), problem }
}

/// Takes the name away first, so that an interrupted deletion leaves no damaged checkpoint.
fn remove(path: &Path) {
    // What cannot be removed is there the next time.
    if let Ok(hidden) = Staging::replacing(path) {
        let _ = fs::rename(path, hidden.path());
    }
}
