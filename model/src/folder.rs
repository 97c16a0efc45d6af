//! A model's folder, or its GGUF file, opened once: what is judged, planned and loaded are the same files.

use std::path::{Path, PathBuf};

use compute::quant::Format;

use crate::checkpoint::{Checkpoint, StoredWeights, no_weights};
use crate::config::Config;
use crate::error::{ModelError, Result};
use crate::gguf::Gguf;

/// A model's folder, or GGUF file: its configuration, and the open files of its weights.
#[derive(Debug)]
pub struct ModelFolder {
    /// Where it is.
    pub path: PathBuf,
    /// What its `config.json` describes.
    pub config: Config,
    /// Its weights; none where it has no files of them.
    pub checkpoint: Option<Checkpoint>,
    /// The header of the GGUF file, if it is one: its tokenizer is there.
    pub gguf: Option<Gguf>,
}

impl ModelFolder {
    /// Reads the configuration and the headers of the weights, of which nothing else is read.
    ///
    /// # Errors
    /// If config.json is not that of a supported model, or a header is damaged.
    pub fn open(path: &Path) -> Result<ModelFolder> {
        if Gguf::is_named_so(path) {
            return ModelFolder::open_gguf(path);
        }
        let mut config = Config::load(path)?;
        let mut checkpoint = Checkpoint::open_if_any(path)?;
        if let Some(checkpoint) = &mut checkpoint {
            config.settle_head(checkpoint);
            if config.is_quantized_by_mlx() {
                checkpoint.take_from_mlx(&config)?;
            } else if let Some(Format::Blocks(kind)) = config.quantization {
                checkpoint.take_as_blocks(&config, kind)?;
            }
        }
        Ok(ModelFolder { path: path.to_owned(), config, checkpoint, gguf: None })
    }

    fn open_gguf(path: &Path) -> Result<ModelFolder> {
        let gguf = Gguf::open(path)?;
        let mut config = gguf.config()?;
        let checkpoint = Checkpoint::of_gguf(&gguf, &config)?;
        config.quantization = checkpoint.main_blocks(&config).map(Format::Blocks);
        Ok(ModelFolder { path: path.to_owned(), config, checkpoint: Some(checkpoint), gguf: Some(gguf) })
    }

    /// The weights.
    ///
    /// # Errors
    /// If the folder has none.
    pub fn require_weights(&self) -> Result<&Checkpoint> {
        self.checkpoint.as_ref().ok_or_else(|| no_weights(&self.path))
    }

    /// How its weights are stored; none if it has none.
    ///
    /// # Errors
    /// As [`Checkpoint::weights`].
    pub fn stored(&self) -> Result<Option<StoredWeights>> {
        self.checkpoint.as_ref().map_or(Ok(None), |checkpoint| checkpoint.weights(&self.config))
    }

    /// Says what is wrong with how the weights are quantized, where that is said.
    pub(crate) fn quantization_problem(&self, problem: String) -> ModelError {
        match self.gguf {
            Some(_) => ModelError::file(&self.path, problem),
            None => ModelError::field(&self.path.join("config.json"), "quantization_config", problem),
        }
    }

    /// Refuses to quantize in one way what the folder holds quantized in another.
    ///
    /// # Errors
    /// If the two differ.
    pub fn check_quantization(&self, asked: Option<Format>) -> Result<()> {
        match (self.config.quantization, asked) {
            (Some(stored), Some(asked)) if stored.name() != asked.name() => {
                let problem = format!(
                    "says that the weights are {stored} already, but {asked} is asked for; leave `quantization` out, or \
                     use the model's 16-bit checkpoint"
                );
                Err(self.quantization_problem(problem))
            }
            _ => Ok(()),
        }
    }
}
