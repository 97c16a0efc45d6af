//! `merge`, `export`, `quantize` and `inspect`: what stands in a folder, and a new one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use compute::quant::{BLOCK_SIZES, Format};
use model::StoredDType;
use model::gguf::TensorType;
use model::gguf::export::written_type;
use model::mlx::MlxType;

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
    /// Quantize the merged model: nf4, fp4, int4, int3 or int2, and tell what that costs. A base of integers
    /// takes up a QA-LoRA adapter exactly, and stays what it is without this
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_merged, conflicts_with = "dtype")]
    pub(crate) kind: Option<Format>,
    /// How the base is held that the adapter is added to: nf4, fp4, int4, int3, int2 or none [default: as the
    /// adapter knew it in training, or none]
    #[arg(long, value_name = "TYPE", value_parser = parse_held)]
    pub(crate) quantization: Option<Held>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Export {
    /// Write a model as llama.cpp loads it, or an adapter to be loaded beside its base
    Gguf(ExportGguf),
    /// Write a folder as mlx-lm loads it
    Mlx(ExportMlx),
    /// Write a folder from which Ollama makes a model
    Ollama(ExportOllama),
}

#[derive(Args, Debug)]
pub(crate) struct ExportGguf {
    /// The model to write whole: a folder or a hub id; an adapter is added into its weights
    #[arg(long, value_name = "M", required_unless_present = "adapter", conflicts_with = "base")]
    pub(crate) model: Option<String>,
    /// The adapter: a run folder, an adapter folder or a hub id; without --model it is written alone
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// Where the base of an adapter lies that is written alone [default: where the adapter says]
    #[arg(long, value_name = "M", requires = "adapter")]
    pub(crate) base: Option<String>,
    /// How the model's weights are stored: f32, f16, bf16, q8_0, q6_k, q5_1, q5_0, q4_k, q4_1 or q4_0 [default: as
    /// they are, or as they were trained for]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_tensor_type, requires = "model")]
    pub(crate) kind: Option<TensorType>,
    /// The most that logits on a text may change, in percent of their size [default: what the type explains]
    #[arg(long, value_name = "PERCENT", requires = "model", value_parser = parse_percent)]
    pub(crate) max_divergence: Option<f64>,
    /// The file to write; must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ExportMlx {
    /// The model: a folder or a hub id [default: the one the adapter was trained on]
    #[arg(long, value_name = "M", required_unless_present = "adapter")]
    pub(crate) model: Option<String>,
    /// An adapter to add into its weights: a run folder, an adapter folder or a hub id
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// How linear layers are stored: q4, q3 or q2, integers with a scale and a bias for each 32 weights of a row, or
    /// f16, bf16 or f32 [default: as they are in the base, or q4 if they were trained for q4_1]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_mlx_type)]
    pub(crate) kind: Option<MlxType>,
    /// The most that logits on a text may change, in percent of their size [default: what the type explains]
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub(crate) max_divergence: Option<f64>,
    /// The folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_mlx_type(text: &str) -> Result<MlxType, String> {
    let found = MlxType::ALL.into_iter().find(|kind| kind.name() == text);
    found.ok_or_else(|| "expected f32, f16, bf16, q4, q3 or q2".into())
}

#[derive(Args, Debug)]
pub(crate) struct ExportOllama {
    /// The model: a folder or a hub id [default: the one the adapter was trained on]
    #[arg(long, value_name = "M", required_unless_present = "adapter")]
    pub(crate) model: Option<String>,
    /// An adapter to add into its weights: a run folder, an adapter folder or a hub id
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// Write the adapter alone, for this model of Ollama's, such as llama3.2
    #[arg(long, value_name = "NAME", requires = "adapter", conflicts_with = "kind")]
    pub(crate) from: Option<String>,
    /// How weights are stored: f32, f16, bf16, q8_0, q6_k, q5_1, q5_0, q4_k, q4_1 or q4_0 [default: as they are, or as
    /// they were trained for]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_tensor_type)]
    pub(crate) kind: Option<TensorType>,
    /// What the model is told before every conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// The folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_tensor_type(text: &str) -> Result<TensorType, String> {
    written_type(text)
        .ok_or_else(|| "expected f32, f16, bf16, q8_0, q6_k, q5_1, q5_0, q4_k, q4_1 or q4_0".into())
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
    /// The chat template for conversations in that file: a file, or a built-in name [default: the model's]
    #[arg(long, value_name = "TEMPLATE", requires = "calibrate")]
    pub(crate) chat_template: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|p: &f64| p.is_finite() && *p >= 0.0)
        .ok_or("expected a number of 0 or more".into())
}

/// A format that a merged model can have.
fn parse_merged(text: &str) -> Result<Format, String> {
    let why = match text {
        "q4_0" | "q5_0" | "q8_0" => "has no minimum, so an update of it would be rounded away",
        "q4_k" | "q5_k" | "q6_k" => {
            "has minima or scales of few bits, so an update of it would be rounded away"
        }
        "gptq" | "awq" => {
            "has whole zero points, one step of which is a step of the codes: an update would be lost"
        }
        _ => return parse_format(text),
    };
    Err(format!(
        "{text} {why}; int4, which is GGUF's Q4_1, takes up a QA-LoRA adapter exactly, and `export gguf --type` rounds \
         whatever it writes"
    ))
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
