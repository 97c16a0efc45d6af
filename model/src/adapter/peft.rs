//! Adapters as PEFT has them on disk: the settings, which of a model's layers they mean, the tensors and
//! their keys, and folders of both, also of other programs and releases.

pub use super::method::qalora::Pooling;

pub mod files;
pub mod folder;
mod mlx;
mod per_expert;
pub mod resize;
mod settings;
pub mod targets;
mod tensors;

pub use settings::{
    ALPHA, CONFIG_FILE, DROPOUT, MAX_GROUP, MAX_RANK, PeftConfig, QaLora, Selection, scaling,
};
use settings::{read_settings, texts};
pub use tensors::{
    AdapterTensor, Update, WEIGHTS_FILE, a_key, b_key, key_prefix, updates, whole_module, write_adapter,
};
use tensors::{PREFIX, open_weights};
