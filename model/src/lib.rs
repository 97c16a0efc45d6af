//! A decoder with adapters: load, forward, backward, save.
//!
//! Knows nothing of text, optimizers, HTTP or threads.

pub mod checkpoint;
pub mod config;
mod error;
pub mod names;

pub use checkpoint::{Checkpoint, StoredDType};
pub use config::{Config, Family};
pub use error::{ModelError, Result};
pub use names::{Module, ModuleId, NormPart, Parameter, Part};
