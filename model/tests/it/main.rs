//! Tests of the crate from the outside.

mod checkpoint;
mod common;
mod config;
mod experts;
mod families;
mod folder;
mod frozen;
mod gguf;
mod gguf_model;
mod gguf_quantized;
mod groups;
mod init;
mod inputs;
mod merge;
mod names;
mod objectives;
mod parity;
mod peft;
mod qalora;
mod quantization_aware;
mod quantized;
mod ranks;
mod shapes;
mod staging;
mod targets;
mod whole_tensors;
