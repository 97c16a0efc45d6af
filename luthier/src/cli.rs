//! What can be typed: every command with its flags. What the settings mean is said in `run_file`.
//!
//! The names in this file are an interface that scripts rely on.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use compute::quant::{BLOCK_SIZES, Code};
use model::StoredDType;

use crate::error::user;
use crate::run_file::{ByteSize, Override, Precision, Settings};

const AFTER_HELP: &str = "\
M is a folder in the Hugging Face layout or a hub id, owner/name[@revision], which is downloaded once into the cache
that huggingface_hub uses (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured).

Results go to stdout, progress and logs to stderr. Exit codes: 0 done, 1 a fault of this program, 2 wrong input,
75 stopped on request after saving (go on with --resume).";

/// Fine-tunes large language models by low-rank adaptation.
#[derive(Debug, Parser)]
#[command(name = "luthier", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Processor threads to use; the results are the same whatever the number [default: all]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), allow_negative_numbers = true)]
    threads: Option<u16>,
}

impl Global {
    /// Refuses a device that this build cannot drive. Called before any command starts its work.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.device {
            DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
            DeviceChoice::Cuda(_) => {
                Err(user("--device cuda: this build has no GPU support yet; use --device cpu"))
            }
        }
    }

    /// The device that was asked for, its threads started.
    pub(crate) fn device(&self) -> anyhow::Result<compute::Device> {
        self.check()?;
        Ok(compute::Device::cpu(self.threads()))
    }

    /// The threads that this device has.
    pub(crate) fn threads(&self) -> usize {
        let available = || std::thread::available_parallelism().map_or(1, |n| n.get());
        self.threads.map_or_else(available, usize::from)
    }
}

/// The argument of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceChoice {
    /// The best device that this build can drive.
    Auto,
    Cpu,
    /// A GPU by its number.
    Cuda(u32),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Ok(Self::Cuda(index)),
                _ => Err("expected auto, cpu, cuda or cuda:N".into()),
            },
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fine-tune a model as a run file says
    Train(Train),
    /// Measure a model, with or without an adapter
    #[command(subcommand)]
    Eval(Eval),
    /// Continue a prompt or answer a conversation
    Generate(Generate),
    /// Talk with a model in the terminal
    Chat(Chat),
    /// Write a model with an adapter added into its weights
    Merge(Merge),
    /// Write a model in four bits, as bitsandbytes and transformers read it
    Quantize(Quantize),
    /// Tell what a model, adapter or run folder holds, in one screen
    Inspect(Inspect),
    /// Count the parameters and the memory of a run before it starts
    Plan(Plan),
    /// Measure speed and memory
    #[command(subcommand)]
    Bench(Bench),
    /// Look at training data as the model will see it
    #[command(subcommand)]
    Data(Data),
    /// See a small model learn: everything needed is part of this program
    Example(Example),
}

/// The settings of a run: a file, and what wins over it.
#[derive(Args, Debug, Default)]
pub(crate) struct Set {
    /// A setting that wins over the run file, such as optimizer.learning_rate=1e-4; may be repeated
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Train {
    /// The run file; its flags and --set win over it
    #[arg(value_name = "RUN.yaml")]
    pub(crate) run: Option<PathBuf>,
    /// The base model: a folder or a hub id (`model`)
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// The examples to train on (`data.train`)
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,
    /// The examples to evaluate on (`data.eval`)
    #[arg(long, value_name = "FILE")]
    pub(crate) eval_data: Option<String>,
    /// The run folder (`output`)
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<String>,
    #[command(flatten)]
    pub(crate) set: Set,
    /// Go on from the run folder's last checkpoint
    #[arg(long)]
    pub(crate) resume: bool,
    /// Check the settings, the data and the memory, and stop before the first step
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Eval {
    /// The mean loss over a file's trained tokens, and its exponential
    Perplexity(Perplexity),
}

#[derive(Args, Debug)]
pub(crate) struct Perplexity {
    /// The base model: a folder or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    /// An adapter folder
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// The examples
    #[arg(long, value_name = "FILE")]
    pub(crate) data: String,
    #[command(flatten)]
    pub(crate) set: Set,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

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
    /// Hold the base in four bits, as an adapter knew it that was trained so: nf4 or fp4
    #[arg(long, value_name = "TYPE", value_parser = parse_code)]
    pub(crate) quantization: Option<Code>,
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|t: &f32| t.is_finite() && *t >= 0.0)
        .ok_or("expected a number of 0 or more".into())
}

fn parse_top_p(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|p| *p > 0.0 && *p <= 1.0).ok_or("expected a number above 0, up to 1".into())
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
#[command(group = ArgGroup::new("input").required(true).args(["prompt", "messages"]))]
pub(crate) struct Generate {
    /// The base model: a folder or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    /// An adapter folder
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Text to continue, as it is
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// A JSON file with a list of {role, content}, rendered by the model's chat template
    #[arg(long, value_name = "FILE")]
    pub(crate) messages: Option<PathBuf>,
    /// A chat template in place of the model's own: a file or a built-in name, as data.chat_template in training
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "prompt")]
    pub(crate) chat_template: Option<String>,
    /// Stop after this many new tokens
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Chat {
    /// The base model: a folder or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    /// An adapter folder
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// What the model is told before the conversation begins
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// A chat template in place of the model's own: a file or a built-in name, as data.chat_template in training
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) chat_template: Option<String>,
    /// The longest answer in tokens
    #[arg(long, value_name = "N", default_value_t = 1024, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

#[derive(Args, Debug)]
pub(crate) struct Merge {
    /// The base model: a folder or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) model: String,
    /// The adapter folder
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// The model folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// How the merged weights are stored: f32, f16 or bf16 [default: as the base's are]
    #[arg(long, value_name = "TYPE", value_parser = parse_stored)]
    pub(crate) dtype: Option<StoredDType>,
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
    /// The sixteen values: nf4 or fp4
    #[arg(long = "type", value_name = "TYPE", default_value = "nf4", value_parser = parse_code)]
    pub(crate) code: Code,
    /// Keep the blocks' scales in f32: 4.5 bits a weight in place of 4.127
    #[arg(long)]
    pub(crate) no_double_quant: bool,
    /// Weights that share a scale
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_block_size, allow_negative_numbers = true)]
    pub(crate) block_size: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_code(text: &str) -> Result<Code, String> {
    match text.parse() {
        Ok(Code::Int4) => Err("int4 is not supported yet in this version; expected nf4 or fp4".into()),
        Ok(code) => Ok(code),
        Err(_) => Err("expected nf4 or fp4".into()),
    }
}

fn parse_block_size(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| BLOCK_SIZES.contains(n))
        .ok_or_else(|| format!("expected one of {BLOCK_SIZES:?}"))
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

#[derive(Args, Debug)]
pub(crate) struct Plan {
    /// The run file; its flags and --set win over it
    #[arg(value_name = "RUN.yaml")]
    pub(crate) run: Option<PathBuf>,
    /// The base model: a folder or a hub id (`model`)
    #[arg(long, value_name = "M", conflicts_with = "shape")]
    pub(crate) model: Option<String>,
    /// A known shape in place of a model, such as llama-3.1-8b
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: Option<String>,
    /// The memory to fit into (`memory`)
    #[arg(long, value_name = "48GB", allow_hyphen_values = true)]
    pub(crate) memory: Option<ByteSize>,
    #[command(flatten)]
    pub(crate) set: Set,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Training steps on random tokens
    Train(BenchArgs),
    /// Token by token generation
    Generate(BenchArgs),
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("what").required(true).args(["model", "shape"]))]
pub(crate) struct BenchArgs {
    /// The base model: a folder or a hub id
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// A known shape with random weights made in memory, such as llama-3.2-1b
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: Option<String>,
    #[command(flatten)]
    pub(crate) set: Set,
    /// Measured steps (bench train) or tokens (bench generate)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    pub(crate) steps: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Show rendered examples, the trained tokens marked by colour
    Preview(Preview),
}

#[derive(Args, Debug)]
pub(crate) struct Preview {
    /// The run file; its flags and --set win over it
    #[arg(value_name = "RUN.yaml")]
    pub(crate) run: Option<PathBuf>,
    /// The base model: a folder or a hub id (`model`)
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<String>,
    /// The examples (`data.train`)
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,
    /// How many examples
    #[arg(long, value_name = "N", default_value_t = 3, allow_negative_numbers = true)]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) set: Set,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Example {
    /// The folder that the model, the data and the run are written to; run again, it goes on from there
    #[arg(value_name = "FOLDER", default_value = "luthier-example")]
    pub(crate) folder: PathBuf,
    /// Stop after this many optimizer steps (`training.max_steps`)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    pub(crate) steps: Option<u32>,
    /// Exit with 1 unless more than nine in ten held-out answers are right in the end
    #[arg(long)]
    pub(crate) check: bool,
}

impl Train {
    /// The run file with the flags and `--set` laid over it.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let flags = [
            ("--model", "model", &self.model),
            ("--data", "data.train", &self.data),
            ("--eval-data", "data.eval", &self.eval_data),
            ("--output", "output", &self.output),
        ];
        resolve(self.run.as_deref(), &flags, &self.set)
    }
}

impl Preview {
    /// The run file with the flags and `--set` laid over it.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let flags = [("--model", "model", &self.model), ("--data", "data.train", &self.data)];
        resolve(self.run.as_deref(), &flags, &self.set)
    }
}

impl Plan {
    /// The run file with the flags and `--set` laid over it.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let memory = self.memory.map(|size| size.to_string());
        resolve(
            self.run.as_deref(),
            &[("--model", "model", &self.model), ("--memory", "memory", &memory)],
            &self.set,
        )
    }
}

impl BenchArgs {
    /// The default settings with the flags and `--set` laid over them.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        resolve(None, &[("--model", "model", &self.model)], &self.set)
    }
}

impl Perplexity {
    /// The default settings with `--set` laid over them, as far as it is about data and precision; the file of
    /// examples stands in `data.eval`.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        for change in Override::sets(&self.set.set)? {
            if !["data", "precision", "quantization", "memory"].contains(&change.section()) {
                return Err(user(format!(
                    "--set {}: `eval perplexity` takes data.*, precision, quantization and memory only",
                    change.section()
                )));
            }
        }
        let (model, data) = (Some(self.model.clone()), Some(self.data.clone()));
        resolve(None, &[("--model", "model", &model), ("--data", "data.eval", &data)], &self.set)
    }
}

/// Lays `--set` over the run file, and flags that were given over both.
fn resolve(
    run: Option<&Path>,
    flags: &[(&str, &str, &Option<String>)],
    set: &Set,
) -> anyhow::Result<Settings> {
    let mut overrides = Override::sets(&set.set)?;
    for (flag, key, value) in flags {
        overrides.extend(value.as_ref().map(|value| Override::flag(flag, key, value)));
    }
    Settings::resolve(run, overrides)
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
