//! What a studio refuses, and what can go wrong in it.

use crate::error::TrainError;

/// Why a request for a model came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum StudioError {
    /// There is no model of this name.
    #[error("there is no model `{0}`; create it, or load it from a checkpoint")]
    Unknown(String),
    /// There is no memory for another model.
    #[error(
        "a model of rank {rank} needs {needed} bytes for its adapter, gradients and moments, and the models here \
         have {used} of {memory} bytes; unload one, ask for a lower rank, or raise --training-memory"
    )]
    NoRoom {
        /// The rank that was asked for.
        rank: usize,
        /// What the model would take.
        needed: u64,
        /// What the others have.
        used: u64,
        /// What all may have.
        memory: u64,
    },
    /// The rank or the modules cannot be.
    #[error("{0}")]
    Settings(String),
    /// An example cannot be computed.
    #[error("example {index}: {problem}")]
    Example {
        /// Its place in the request, from 0.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A loss, a gradient or a value is no longer a number.
    #[error("{what} is {value}; the gradients that had been added up are gone, the weights are as they were")]
    NotFinite {
        /// Of what.
        what: String,
        /// NaN or an infinity.
        value: f64,
    },
    /// Weights that are no numbers are of no use to anybody.
    #[error(
        "the weights are no longer finite numbers; load the last checkpoint, and lower the learning rate"
    )]
    Diverged,
    /// Files.
    #[error(transparent)]
    Train(#[from] TrainError),
}

impl StudioError {
    /// Whether the request is to blame, and not this program or its machine.
    pub fn is_of_request(&self) -> bool {
        !matches!(self, StudioError::Train(_))
    }
}

impl From<model::ModelError> for StudioError {
    fn from(error: model::ModelError) -> Self {
        StudioError::Train(TrainError::of_pages(error))
    }
}
