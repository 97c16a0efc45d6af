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
    #[error("cannot write {}: {source}{}", path.display(), space_hint(source))]
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
    /// A loss, a gradient or a trained value is no longer a finite number.
    #[error("step {step}: {what} is {value}; {advice}")]
    NotFinite {
        /// The step, 0 before the first.
        step: u64,
        /// What it is of, such as "the loss".
        what: String,
        /// NaN or an infinity, or what is as good as one.
        value: f64,
        /// What to do.
        advice: &'static str,
    },
    /// What ended a run under way, and what there is to go on from.
    #[error("{cause}; {}", remaining(cause, checkpoint.as_deref()))]
    Ended {
        /// Why.
        #[source]
        cause: Box<TrainError>,
        /// The newest checkpoint that is whole.
        checkpoint: Option<PathBuf>,
    },
    /// What ended a pass that this run was in with others: nobody knows which of them it is about.
    #[error("a pass together with other runs ended: {cause}")]
    Beside {
        /// What went wrong in the pass.
        cause: String,
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
    /// Whether a run that goes on would meet this again, as it would the same numbers or the same damaged
    /// file, but not the same full disk.
    pub fn comes_again(&self) -> bool {
        match self {
            TrainError::NotFinite { .. } | TrainError::Checkpoint { .. } => true,
            TrainError::Ended { cause, .. } => cause.comes_again(),
            _ => false,
        }
    }

    /// Whether it need not be about this run, but may be about one that was in a pass with it. Alone the run
    /// may go on.
    pub fn is_of_company(&self) -> bool {
        match self {
            TrainError::Beside { .. } => true,
            TrainError::Ended { cause, .. } => cause.is_of_company(),
            _ => false,
        }
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        TrainError::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        TrainError::Write { path: path.to_owned(), source }
    }

    /// A number that is not finite, found when `updates` updates had been made.
    pub(crate) fn not_finite(step: u64, what: impl Into<String>, value: f64, updates: u64) -> Self {
        let advice = match updates {
            0 => {
                "nothing had been trained yet: the weights of the base model or of the initial adapter are damaged or too \
                 large, or the examples of this step are to blame, which `data preview` shows"
            }
            _ => "lower optimizer.learning_rate, or look at the examples of this step with `data preview`",
        };
        TrainError::NotFinite { step, what: what.into(), value, advice }
    }

    /// An error of pages that lie in a file.
    pub(crate) fn of_pages(error: model::ModelError) -> Self {
        match error {
            model::ModelError::Read { path, source } => TrainError::Read { path, source },
            model::ModelError::Write { path, source } => TrainError::Write { path, source },
            other => TrainError::Model(other),
        }
    }
}

fn space_hint(source: &io::Error) -> &'static str {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => "; free some space",
        _ => "",
    }
}

/// What is left of a run that ended so.
fn remaining(cause: &TrainError, checkpoint: Option<&Path>) -> String {
    match checkpoint {
        Some(path) if cause.comes_again() => {
            format!("the last checkpoint, {}, is from before that", path.display())
        }
        Some(path) => format!("the last checkpoint, {}, is intact", path.display()),
        None => "no checkpoint had been saved yet".to_owned(),
    }
}
