//! A decoder with adapters: load, forward, backward, save.
//!
//! Knows nothing of text, optimizers, HTTP or threads.

mod activations;
pub mod adapter;
pub mod arena;
mod attention;
mod batch;
mod block;
mod cache;
pub mod calibration;
pub mod checkpoint;
pub mod config;
mod decoder;
mod decompose;
mod error;
mod exit;
mod experts;
mod folder;
mod frozen;
pub mod gguf;
mod head;
mod inputs;
mod linear;
pub mod memory;
mod mlp;
pub mod mlx;
pub mod names;
mod norm;
mod positions;
pub mod quantize;
mod run;
pub mod shapes;
mod staged;
mod weights;

pub use activations::{Activations, Checkpointing, Extent, Keeping, Purpose};
pub use adapter::parameters::{Adapter, Layout, Parameters};
pub use attention::attention_memory;
pub use batch::{Batch, IGNORE, Target};
pub use cache::Cache;
pub use checkpoint::{Checkpoint, StoredDType, StoredWeights};
pub use compute::ops::attention::PAGE;
pub use config::{Config, Family};
pub use decoder::Decoder;
pub use error::{ModelError, Result};
pub use folder::ModelFolder;
pub use frozen::{FrozenActivations, FrozenExtent};
pub use head::Change;
pub use linear::BaseWeight;
pub use names::{Module, ModuleId, NormPart, Parameter, Part};
pub use run::{Group, Run};
pub use weights::OnLoading;
