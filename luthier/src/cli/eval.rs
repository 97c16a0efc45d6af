//! `eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use eval::choice::ShotOrder;

use super::Set;
use super::settings::resolve;
use super::speak::parse_temperature;
use crate::run_file::{RunFile, Settings};

#[derive(Debug, Subcommand)]
pub(crate) enum Eval {
    /// The mean loss over a file's trained tokens, and its exponential
    Perplexity(Perplexity),
    /// Multiple-choice questions: accuracy by log-likelihood, as lm-evaluation-harness has it
    Choice(Choice),
    /// How far adapters have moved a model from its base on other text
    Forgetting(Forgetting),
    /// Answers that are generated, against those of the file: exact match, numbers, JSON, ROUGE, BLEU
    Generate(Answers),
    /// Systems compared by a model that judges their answers, or by ratings that there are
    Judge(Judge),
}

/// What is evaluated, and beside what.
#[derive(Args, Debug)]
pub(crate) struct Systems {
    /// The base model: a folder or a hub id [default: the one the adapter was trained on]
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// An adapter: a run folder, an adapter folder or a hub id; may be repeated
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Vec<String>,
    /// Leave out the base, beside which adapters are put else
    #[arg(long, requires = "adapter")]
    pub(crate) no_base: bool,
    /// Put the base as its files hold it in front, beside what `--set quantization` or the adapter's run make of it
    #[arg(long)]
    pub(crate) unquantized: bool,
    #[command(flatten)]
    pub(crate) set: Set,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl Systems {
    /// The default settings with `--set` laid over them, as far as it is about these sections and keys; `data`:
    /// what stands in `data.eval`.
    fn settings(&self, command: &str, known: &[&str], data: Option<String>) -> anyhow::Result<Settings> {
        for change in self.set.overrides()? {
            change.require_known(&format!("eval {command}"), known)?;
        }
        resolve(None, &[("--model", "model", &self.model), ("--data", "data.eval", &data)], &self.set)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Perplexity {
    #[command(flatten)]
    pub(crate) systems: Systems,
    /// The examples
    #[arg(long, value_name = "FILE")]
    pub(crate) data: String,
}

impl Perplexity {
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let sections = ["data", "precision", "quantization", "memory"];
        self.systems.settings("perplexity", &sections, Some(self.data.clone()))
    }
}

#[derive(Args, Debug)]
pub(crate) struct Forgetting {
    #[command(flatten)]
    pub(crate) systems: Systems,
    /// Examples that the adapters were not trained for [default: ten passages of old books]
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,
    /// Write what came of each text, a line each
    #[arg(long, value_name = "FILE")]
    pub(crate) items: Option<PathBuf>,
}

impl Forgetting {
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let sections = ["data", "precision", "quantization", "memory"];
        self.systems.settings("forgetting", &sections, self.data.clone())
    }
}

/// Worked examples before each question.
#[derive(Args, Debug)]
pub(crate) struct Shots {
    /// Worked examples before each question
    #[arg(id = "shots", long = "shots", value_name = "N", default_value_t = 0)]
    pub(crate) count: usize,
    /// Where the worked examples are taken from [default: the other questions]
    #[arg(id = "shots_from", long = "shots-from", value_name = "FILE", requires = "shots")]
    pub(crate) from: Option<PathBuf>,
    /// Put the first ones before every question, instead of drawing some for each
    #[arg(id = "shots_first", long = "shots-first", requires = "shots")]
    pub(crate) first: bool,
}

impl Shots {
    /// Which ones are taken.
    pub(crate) fn order(&self, seed: u64) -> ShotOrder {
        match self.first {
            true => ShotOrder::First,
            false => ShotOrder::Drawn { seed },
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Choice {
    #[command(flatten)]
    pub(crate) systems: Systems,
    /// The questions: {context, choices, gold}, or rows of MMLU, ARC, HellaSwag, WinoGrande and others
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Whose rows they are, where their fields do not say
    #[arg(long, value_name = "NAME")]
    pub(crate) form: Option<String>,
    #[command(flatten)]
    pub(crate) shots: Shots,
    /// Which worked examples are drawn
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Write what came of each question, a line each
    #[arg(long, value_name = "FILE")]
    pub(crate) items: Option<PathBuf>,
}

impl Choice {
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        self.systems.settings("choice", &["precision", "quantization", "memory"], None)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Answers {
    #[command(flatten)]
    pub(crate) systems: Systems,
    /// Records with their answers, as for training: conversations, instructions, or prompts
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// How answers are compared: exact_match, regex, number, gsm8k_strict, gsm8k_flexible, json, rouge1, rouge2,
    /// rougeL, rougeLsum, bleu or f1
    #[arg(long, value_name = "NAME")]
    pub(crate) metric: String,
    /// With --metric regex: what is taken out of an answer, the first group if it has one
    #[arg(long, value_name = "REGEX")]
    pub(crate) pattern: Option<String>,
    /// With --metric regex: take the last match, not the first
    #[arg(long, requires = "pattern")]
    pub(crate) last: bool,
    /// With --metric exact_match or regex: leave out what this matches, on both sides; may be repeated
    #[arg(long, value_name = "REGEX")]
    pub(crate) ignore: Vec<String>,
    /// With --metric exact_match or regex: compare lower case
    #[arg(long)]
    pub(crate) ignore_case: bool,
    /// With --metric exact_match or regex: leave out punctuation, on both sides
    #[arg(long)]
    pub(crate) ignore_punctuation: bool,
    /// With --metric exact_match or regex: leave out spaces and line ends around both sides
    #[arg(long)]
    pub(crate) strip: bool,
    /// Whose rows they are, where they are asked as a benchmark asks them: gsm8k
    #[arg(long, value_name = "NAME", conflicts_with = "chat_template")]
    pub(crate) form: Option<String>,
    #[command(flatten)]
    pub(crate) shots: Shots,
    /// A chat template in place of the model's own: a file or a built-in name
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) chat_template: Option<String>,
    /// Stop an answer after this many tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Stop an answer before this text; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
    /// Cut prompts and read answers as lm-evaluation-harness does
    #[arg(long)]
    pub(crate) like_lm_eval: bool,
    /// Answers to each record, for pass@k
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) samples: u32,
    /// 0: always the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = parse_temperature)]
    pub(crate) temperature: f32,
    /// The random numbers' seed, also of which worked examples are drawn
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Answers that are generated at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) running: u32,
    /// Write every answer with its score, a line each record
    #[arg(long, value_name = "FILE")]
    pub(crate) items: Option<PathBuf>,
}

impl Answers {
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let known = [&RunFile::READING[..], &["precision", "quantization", "memory"]].concat();
        self.systems.settings("generate", &known, None)
    }
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["file", "ratings"]))]
pub(crate) struct Judge {
    /// Whose answers are judged, and by whom; also the limits: seconds for a request (`timeout`, 120), further tries
    /// (`retries`, 5, after `backoff` seconds), requests or tokens in all (`budget`)
    #[arg(value_name = "JUDGE.yaml")]
    pub(crate) file: Option<PathBuf>,
    /// Reads ratings as QLoRA's authors released theirs, and asks nobody
    #[arg(long, value_name = "DIR")]
    pub(crate) ratings: Option<PathBuf>,
    /// The system whose scores are 100 % [default: the one beside which all others were rated]
    #[arg(long, value_name = "SYSTEM", conflicts_with = "file")]
    pub(crate) reference: Option<String>,
    /// Another judge's output or ratings: how far both agree
    #[arg(long, value_name = "DIR")]
    pub(crate) beside: Option<PathBuf>,
    /// Count the replies that there are, and ask nobody
    #[arg(long, conflicts_with = "ratings")]
    pub(crate) partial: bool,
    /// Write the answers as mt-bench, alpaca-eval or arena-hard reads them into a new folder, and ask nobody
    #[arg(long, num_args = 2, value_names = ["FORM", "DIR"])]
    #[arg(conflicts_with_all = ["ratings", "partial", "beside", "json"])]
    pub(crate) export: Option<Vec<String>>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
