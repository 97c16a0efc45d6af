//! Adapters: what is trained beside the frozen base, how it begins, how files say it, how it merges.

pub(crate) mod dora;
pub mod files;
pub mod folder;
pub(crate) mod full;
pub mod init;
pub(crate) mod lora;
pub mod merge;
mod mlx;
pub mod parameters;
pub mod peft;
mod per_expert;
pub mod targets;
