//! What can go wrong in a run.

use std::io;
use std::path::{Path, PathBuf};

/// An error of a run; every message says where, what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model's or the adapter's files.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}; the last checkpoint is intact: free some space and go on with --resume", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A checkpoint is damaged or of another run.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The loss or the gradient is no longer a number.
    #[error(
        "step {step}: the {what} is {value}; the run stopped with the last checkpoint intact. Lower \
         optimizer.learning_rate, or look at the examples of this step with `data preview`"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// Loss or gradient norm.
        what: &'static str,
        /// NaN or an infinity.
        value: f64,
    },
    /// Settings that do not fit each other.
    #[error("`{field}` {problem}")]
    Setting {
        /// The key in the run file.
        field: &'static str,
        /// What is wrong and what to do, continuing "`field` ...".
        problem: String,
    },
}

/// What this crate's fallible functions return.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

impl TrainError {
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        TrainError::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        TrainError::Write { path: path.to_owned(), source }
    }

    /// An error of pages that lie in a file, which ends the run at its last checkpoint.
    pub(crate) fn of_pages(error: model::ModelError) -> Self {
        match error {
            model::ModelError::Read { path, source } => TrainError::Read { path, source },
            model::ModelError::Write { path, source } => TrainError::Write { path, source },
            other => TrainError::Model(other),
        }
    }
}
