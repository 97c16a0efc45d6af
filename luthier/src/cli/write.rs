//! `merge`, `export`, `quantize` and `inspect`: what stands in a folder, and a new one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use compute::quant::{BLOCK_SIZES, Format};
use model::StoredDType;

use super::speak::{Held, parse_format, parse_held};

#[derive(Args, Debug)]
pub(crate) struct Merge {
    /// The base model: a folder or a hub id [default: the one the adapter was trained on]
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// The adapter: a run folder, an adapter folder or a hub id
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: String,
    /// The model folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// How the merged weights are stored: f32, f16 or bf16 [default: as the base's are]
    #[arg(long, value_name = "TYPE", value_parser = parse_stored)]
    pub(crate) dtype: Option<StoredDType>,
    /// How the base is held that the adapter is added to: nf4, fp4, int4, int3, int2 or none [default: as the adapter knew it
    /// in training, or none]
    #[arg(long, value_name = "TYPE", value_parser = parse_held)]
    pub(crate) quantization: Option<Held>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Export {
    /// Write an adapter as llama.cpp and Ollama load it beside their GGUF file of the base
    Gguf(ExportGguf),
}

#[derive(Args, Debug)]
pub(crate) struct ExportGguf {
    /// The adapter: a run folder, an adapter folder or a hub id
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: String,
    /// Where its base lies, a folder or a hub id [default: where the adapter says]
    #[arg(long, value_name = "M")]
    pub(crate) base: Option<String>,
    /// The file to write; must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Quantize {
    /// The model: a folder or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    /// The model folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// What codes stand for: nf4 or fp4, as bitsandbytes has them; or int4, int3 or int2, integers with a scale
    /// and a minimum for each 32 weights of a row
    #[arg(long = "type", value_name = "TYPE", default_value = "nf4", value_parser = parse_format)]
    pub(crate) format: Format,
    /// Keep the blocks' scales in f32: 4.5 bits a weight in place of 4.127 (nf4, fp4)
    #[arg(long)]
    pub(crate) no_double_quant: bool,
    /// Weights that share a scale (nf4, fp4) [default: 64]
    #[arg(long, value_name = "N", value_parser = parse_block_size, allow_negative_numbers = true)]
    pub(crate) block_size: Option<usize>,
    /// Texts by which integers are chosen, layer by layer, so that its outputs change least (GPTQ): a file of
    /// examples, of which the first 128 are used; the whole model is in memory then
    #[arg(long, value_name = "FILE")]
    pub(crate) calibrate: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_block_size(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| BLOCK_SIZES.contains(n))
        .ok_or_else(|| format!("expected one of {BLOCK_SIZES:?}"))
}

fn parse_stored(text: &str) -> Result<StoredDType, String> {
    match text {
        "f32" => Ok(StoredDType::F32),
        "f16" => Ok(StoredDType::F16),
        "bf16" => Ok(StoredDType::Bf16),
        _ => Err("expected f32, f16 or bf16".into()),
    }
}

#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// A model folder, a hub id, an adapter folder or a run folder
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
