//! `train` and `example`.

use std::path::PathBuf;

use clap::Args;

use super::RunArgs;
use crate::error::user;
use crate::run_file::{Override, Settings};
use crate::run_folder::SETTINGS as RUN_FILE;

#[derive(Args, Debug, Default)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// The run folder (`output`)
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<String>,
    /// Go on from the run folder's last checkpoint; --resume RUN takes all else from that folder
    #[arg(long, value_name = "RUN", num_args = 0..=1)]
    pub(crate) resume: Option<Option<PathBuf>>,
    /// Check the settings, the data, the memory and the time, and stop before the first step
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Watch the run: curves, speed, memory and notes over the whole terminal; q stops it and saves
    #[arg(long, conflicts_with_all = ["quiet", "dry_run"])]
    pub(crate) tui: bool,
    /// Say nothing on stderr but warnings and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Example {
    /// The folder that the model, the data and the run are written to; run again, it goes on from there
    #[arg(value_name = "FOLDER", default_value = "luthier-example")]
    pub(crate) folder: PathBuf,
    /// Stop after this many optimizer steps (`training.max_steps`)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    pub(crate) steps: Option<u32>,
    /// Exit with 1 unless more than nine in ten held-out answers are right in the end
    #[arg(long)]
    pub(crate) check: bool,
}

impl Train {
    /// The run file with the flags and `--set` laid over it. With `--resume RUN` it is that folder's own,
    /// unless another is named.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let mut overrides = self.run.overrides()?;
        overrides.extend(self.output.as_ref().map(|folder| Override::flag("--output", "output", folder)));
        let output = self.output.as_ref().map(PathBuf::from).filter(|folder| folder.join(RUN_FILE).is_file());
        let alone = self.run.run.is_none() && self.run.model.is_none();
        let path = match &self.resume {
            None => None,
            Some(Some(path)) => Some(path.clone()),
            // `--resume --output RUN` names the run as well.
            Some(None) if alone && output.is_some() => output,
            Some(None) if alone => {
                return Err(user("--resume: which run? name its folder: luthier train --resume RUN"));
            }
            Some(None) => None,
        };
        let Some(path) = &path else {
            return Settings::resolve(self.run.run.as_deref(), overrides);
        };
        if path.is_file() && self.run.run.is_none() {
            // `--resume RUN.yaml`: the flag without a value, and the run file.
            return Settings::resolve(Some(path), overrides);
        }
        if self.output.is_none() {
            overrides.push(Override::flag("--resume", "output", &path.display().to_string()));
        }
        let saved = path.join(RUN_FILE);
        Settings::resolve(Some(self.run.run.as_deref().unwrap_or(&saved)), overrides)
    }
}
