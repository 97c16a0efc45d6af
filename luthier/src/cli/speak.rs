//! `generate` and `chat`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use compute::quant::{BlockType, Format};

use crate::error::user;
use crate::run_file::{DataSection, Override, Precision, RunFile, Settings};

/// How the next token is chosen.
#[derive(Args, Debug)]
pub(crate) struct Sampling {
    /// 0: always the likeliest token; higher: more varied
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = parse_temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Sample among the likeliest tokens that make up this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = parse_top_p, allow_negative_numbers = true)]
    pub(crate) top_p: f32,
    /// Sample among this many of the likeliest tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) top_k: usize,
    /// The random numbers' seed
    #[arg(long, value_name = "S", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Precision of activations and arithmetic
    #[arg(long, value_name = "PRECISION", default_value = "bf16", value_enum)]
    pub(crate) precision: Precision,
    /// How the base is held: nf4, fp4, int4, int3, int2 or none [default: as the adapter knew it in training,
    /// or none]
    #[arg(long, value_name = "TYPE", value_parser = parse_held)]
    pub(crate) quantization: Option<Held>,
}

/// The argument of `--quantization`: a format, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held(pub(crate) Option<Format>);

pub(super) fn parse_held(text: &str) -> Result<Held, String> {
    match text {
        "none" => Ok(Held(None)),
        _ => parse_format(text)
            .map(|format| Held(Some(format)))
            .map_err(|message| format!("{message}, or none")),
    }
}

pub(super) fn parse_temperature(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|t: &f32| t.is_finite() && *t >= 0.0)
        .ok_or("expected a number of 0 or more".into())
}

fn parse_top_p(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|p| *p > 0.0 && *p <= 1.0).ok_or("expected a number above 0, up to 1".into())
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("input").required(true).args(["prompt", "messages", "data"]))]
pub(crate) struct Generate {
    /// The base model: a folder or a hub id [default: the one the adapter was trained on]
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// An adapter: a run folder, an adapter folder or a hub id
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// Text to continue, as it is
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// A JSON file with a list of {role, content}, rendered by the model's chat template
    #[arg(long, value_name = "FILE")]
    pub(crate) messages: Option<PathBuf>,
    /// Records to answer one after the other: conversations, instructions or prompts, in a file, a folder or
    /// a hub data set
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// With --data: where a line of JSON for each answer goes; -: to stdout
    #[arg(long, value_name = "FILE", requires = "data", default_value = "-")]
    pub(crate) output: String,
    /// A chat template in place of the model's own: a file or a built-in name, as data.chat_template in
    /// training
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "prompt")]
    pub(crate) chat_template: Option<String>,
    /// Stop after this many new tokens
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    /// With --data: how it is read, as a run's settings say it: data.format, data.oasst_paths or
    /// data.oasst_languages; may be repeated
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Print one JSON object; with --data, a summary
    #[arg(long)]
    pub(crate) json: bool,
}

impl Generate {
    /// Refuses settings of what is read where nothing is.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.data {
            None if !self.set.is_empty() => {
                Err(user("--set says how --data is read, and there is none; leave it out"))
            }
            _ => Ok(()),
        }
    }

    /// How the records are read.
    pub(crate) fn reading(&self) -> anyhow::Result<DataSection> {
        let overrides = Override::sets(&self.set)?;
        overrides.iter().try_for_each(|change| change.require_known("generate", &RunFile::READING))?;
        Ok(Settings::resolve(None, overrides)?.run.data)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Chat {
    /// The base model: a folder or a hub id [default: the one the adapter was trained on]
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// An adapter: a run folder, an adapter folder or a hub id
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<String>,
    /// What the model is told before the conversation begins
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// A chat template in place of the model's own: a file or a built-in name, as data.chat_template in
    /// training
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) chat_template: Option<String>,
    /// The longest answer in tokens
    #[arg(long, value_name = "N", default_value_t = 1024, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,
    /// Keep nothing of what is typed for the next time
    #[arg(long)]
    pub(crate) no_history: bool,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

/// A format that a base is brought to: four bits as bitsandbytes has them, or integers.
pub(super) fn parse_format(text: &str) -> Result<Format, String> {
    use BlockType::{Int2, Int3, Int4};
    let is_held = |format: &Format| match format {
        Format::Codebook(_) => true,
        Format::Blocks(kind) => [Int4, Int3, Int2].contains(kind),
    };
    let expected = "expected nf4, fp4, int4, int3 or int2";
    text.parse::<Format>().ok().filter(is_held).ok_or_else(|| expected.to_owned())
}

impl ValueEnum for Precision {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Bf16, Self::F32]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::Bf16 => "bf16".into(),
            Self::F32 => "f32".into(),
        })
    }
}
