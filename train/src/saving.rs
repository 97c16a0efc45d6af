//! How the trained tensors are written: as a PEFT adapter, or as a model of their own.

use std::fs;
use std::path::Path;

use model::adapter::peft::files::write_parameters;
use model::adapter::peft::{CONFIG_FILE, PeftConfig, WEIGHTS_FILE};
use model::{Adapter, Decoder, ModelFolder, StoredDType};

use crate::error::{Result, TrainError};

const MODEL_FILE: &str = "model.safetensors";

/// What a run writes in the end, and in every checkpoint.
#[derive(Clone, Debug)]
pub enum Saving<'a> {
    /// An adapter folder, as PEFT reads and writes it.
    Adapter(&'a PeftConfig),
    /// A model folder: everything was trained.
    Model {
        /// The base's folder, for the names of its weights and what stands beside them.
        base: &'a ModelFolder,
        /// Where the tokenizer's files come from.
        tokenizer: &'a Path,
        /// How the result's weights are stored; checkpoints hold `f32`.
        dtype: StoredDType,
    },
}

impl Saving<'_> {
    /// Writes the trained tensors into a checkpoint's folder.
    pub(crate) fn write_trained(&self, folder: &Path, adapter: &Adapter) -> Result<()> {
        match self {
            Saving::Adapter(config) => adapter.save(folder, config)?,
            Saving::Model { .. } => {
                let tensors = [("", &adapter.parameters)];
                write_parameters(&folder.join(MODEL_FILE), &adapter.layout, &tensors)?;
            }
        }
        Ok(())
    }

    /// The file that [`Saving::write_trained`] writes the trained tensors to.
    pub(crate) fn trained_file(&self) -> &'static str {
        match self {
            Saving::Adapter(_) => WEIGHTS_FILE,
            Saving::Model { .. } => MODEL_FILE,
        }
    }

    /// Reads what [`Saving::write_trained`] wrote.
    pub(crate) fn read_trained(&self, folder: &Path, adapter: &mut Adapter) -> Result<()> {
        Ok(adapter.restore(&folder.join(self.trained_file()))?)
    }

    /// Whether a run folder holds a result.
    pub(crate) fn result_exists(&self, folder: &Path) -> bool {
        let last = match self {
            Saving::Adapter(_) => CONFIG_FILE,
            Saving::Model { .. } => "config.json",
        };
        folder.join(last).is_file()
    }

    /// Takes an older result away: what a run that goes on will write is not there yet.
    pub(crate) fn remove_result(&self, folder: &Path) -> Result<()> {
        let files: &[&str] = match self {
            Saving::Adapter(_) => &[CONFIG_FILE, WEIGHTS_FILE],
            Saving::Model { .. } => &["config.json", MODEL_FILE],
        };
        for path in files.iter().map(|name| folder.join(name)).filter(|path| path.exists()) {
            fs::remove_file(&path).map_err(|e| TrainError::write(&path, e))?;
        }
        Ok(())
    }

    /// Writes the result into the run folder; the file that makes it one comes last.
    pub(crate) fn write_result(&self, folder: &Path, decoder: &Decoder, adapter: &Adapter) -> Result<()> {
        match self {
            Saving::Adapter(config) => adapter.save(folder, config)?,
            Saving::Model { base, tokenizer, dtype } => {
                decoder.write_model_files(adapter, base, tokenizer, folder, *dtype)?
            }
        }
        Ok(())
    }
}
