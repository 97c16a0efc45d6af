//! A run's settings: `RUN.yaml`, its defaults, and what wins over it.
//!
//! The file is read into a tree whose every node knows where it was written (`yaml`), `--set` and flags are
//! laid over that tree, and the tree is decoded into [`RunFile`] (`decode`). So each complaint, from a
//! misspelt key to a rank of 0 (`check`), points at the line or the flag that caused it. The resolved file is
//! written in full into the run folder, and [`check_resume`] compares it with the settings of a run that goes
//! on.
//!
//! The sentences above the keys here are what a person reads of them: in the JSON schema (`schema`), in the
//! comments of a new run file (`commented`) and in the guide.

mod check;
mod commented;
mod decode;
mod foreign;
mod judge;
mod policy;
mod schema;
mod sweep;
#[cfg(test)]
mod tests;
mod values;
mod yaml;

use compute::quant;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use check::{MAX_EPOCHS, Purpose};
pub(crate) use commented::{Entry, Line, commented, keys, yaml_value};
pub(crate) use foreign::{Foreign, Setting};
pub(crate) use judge::{Budget, JudgeFile, JudgeSection, Judging, Kind, Pairs};
pub(crate) use policy::{Span, read_policy};
pub(crate) use schema::schema;
pub(crate) use sweep::{Halving, Member, Rates, Sweep};
pub(crate) use values::{
    ByteSize, MicroBatch, Offloading, Pattern, Quantization, Source, TargetModules, TrainData,
};

use crate::error::{Excerpt, user};
use decode::Problem;
use yaml::{Key, Node, Origin, Value};

/// A run file larger than this is none.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The settings of a fine-tuning run. Every key may be left out; `model`, `data.train` and `output` must be
/// given here or as flags.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RunFile {
    /// Required. The base model: a folder in the Hugging Face layout, or a hub id, owner/name or
    /// owner/name@revision.
    pub(crate) model: Option<String>,
    /// The memory that the run must fit into, such as 12GiB; null: what is free.
    pub(crate) memory: Option<ByteSize>,
    /// Activations and products; adapters, gradients, optimizer and losses are always f32.
    pub(crate) precision: Precision,
    /// Holds the frozen base in few bits: nf4 or fp4 (QLoRA), int4, int3 or int2 (groups of 32), or {type: nf4,
    /// double_quant: true, block_size: 64}; null: as it is stored.
    pub(crate) quantization: Option<Quantization>,
    pub(crate) data: DataSection,
    pub(crate) adapter: AdapterSection,
    pub(crate) optimizer: OptimizerSection,
    pub(crate) schedule: ScheduleSection,
    pub(crate) training: TrainingSection,
    /// Required. The run folder, which the result is written to.
    pub(crate) output: Option<PathBuf>,
}

/// Where examples come from and which of their tokens are trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DataSection {
    /// Required. The examples to train on: a file, a folder, or a list of files or {path, format, weight}.
    pub(crate) train: Option<TrainData>,
    /// Held-out examples that the loss is measured on: a file; excludes eval_fraction.
    pub(crate) eval: Option<PathBuf>,
    /// The part of the training examples that is held out instead, between 0 and 1, such as 0.05.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub(crate) eval_fraction: Option<f64>,
    /// How the files hold examples; auto: found by looking at the first ones.
    pub(crate) format: Format,
    /// Of format oasst: one conversation a tree, which takes the reply that was ranked first at each level
    /// (best), or every one (all).
    pub(crate) oasst_paths: OasstPaths,
    /// Of format oasst: the languages of the trees that are taken, such as [en, de]; none named: all.
    pub(crate) oasst_languages: Vec<String>,
    /// Which tokens carry loss: all turns of the assistant, the last one (a completion), or all tokens.
    pub(crate) train_on: TrainOn,
    /// How a conversation becomes text: a built-in name such as chatml, or a file; null: the tokenizer's own
    /// template.
    pub(crate) chat_template: Option<String>,
    /// Tokens of the longest example, and of a packed row; null: 2048, or the model's context, or the longest
    /// example if that is less.
    #[schemars(range(min = 2, max = 4_294_967_296_u64))]
    pub(crate) max_length: Option<usize>,
    /// What becomes of longer examples; they are counted either way.
    pub(crate) on_overflow: OnOverflow,
    /// Fills rows of max_length with several examples; attention never crosses an example's border.
    pub(crate) packing: bool,
    /// Without packing: gives a step examples of similar length, as group_by_length of transformers.
    pub(crate) group_by_length: bool,
    /// Visits the examples in another order in every epoch.
    pub(crate) shuffle: bool,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            train: None,
            eval: None,
            eval_fraction: None,
            format: Format::Auto,
            oasst_paths: OasstPaths::Best,
            oasst_languages: Vec::new(),
            train_on: TrainOn::Assistant,
            chat_template: None,
            max_length: None,
            on_overflow: OnOverflow::Truncate,
            packing: true,
            group_by_length: false,
            shuffle: true,
        }
    }
}

impl DataSection {
    /// The sources of training examples with the format of each settled: its own, or the section's.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let sources = match &self.train {
            None => Vec::new(),
            Some(TrainData::One(path)) => vec![Source::new(path.clone())],
            Some(TrainData::Many(sources)) => sources.clone(),
        };
        sources.into_iter().map(|s| Source { format: Some(s.format.unwrap_or(self.format)), ..s }).collect()
    }
}

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AdapterSection {
    /// What is trained: an adapter (the result is an adapter folder), or all weights (a model folder).
    pub(crate) method: Method,
    /// The rank of the adapter: more can learn more, and takes more memory.
    #[schemars(range(min = 1, max = 65_536))]
    pub(crate) r: usize,
    /// The adapter's update is scaled by alpha / r.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1e9))]
    pub(crate) alpha: f64,
    /// The part of the adapter's input that is dropped at random, which works against overfitting.
    #[schemars(range(min = 0, max = 0.99))]
    pub(crate) dropout: f64,
    /// The layers that get an adapter: all-linear, a list of names such as [q_proj, v_proj], or a regular
    /// expression, as in PEFT.
    pub(crate) target_modules: TargetModules,
    /// Parameters of experts that get an adapter, such as [mlp.experts.gate_up_proj, mlp.experts.down_proj],
    /// as in PEFT.
    pub(crate) target_parameters: Vec<String>,
    /// Scales by alpha / sqrt(r) in place of alpha / r.
    pub(crate) rslora: bool,
    /// How an adapter begins: pissa and olora as a part of the base's weights, loftq (over quantization) as
    /// what those few bits lose; gaussian with method: full begins from random weights where the model folder has
    /// none.
    pub(crate) init: Init,
    /// An adapter folder to go on training from; its own configuration gives rank, alpha and targets.
    pub(crate) init_from: Option<PathBuf>,
    /// Other ranks for modules whose name matches a pattern, such as {q_proj: 8}; the first match counts.
    pub(crate) rank_pattern: Pattern<usize>,
    /// Other alphas for modules whose name matches a pattern; the first match counts.
    pub(crate) alpha_pattern: Pattern<f64>,
    /// Modules that are trained whole and saved with the adapter, such as lm_head.
    pub(crate) modules_to_save: Vec<String>,
    /// Of method: qalora: inputs whose sum the adapter reads; 32 unless said, as integer bases have groups.
    #[schemars(range(min = 1, max = 65_536))]
    pub(crate) group_size: Option<usize>,
    /// Of method: qalora: what the adapter reads of a group, sum unless said.
    pub(crate) pooling: Option<Pooling>,
}

impl Default for AdapterSection {
    fn default() -> Self {
        Self {
            method: Method::Lora,
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            target_parameters: Vec::new(),
            rslora: false,
            init: Init::Default,
            init_from: None,
            rank_pattern: Pattern::default(),
            alpha_pattern: Pattern::default(),
            modules_to_save: Vec::new(),
            group_size: None,
            pooling: None,
        }
    }
}

/// How gradients become steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OptimizerSection {
    /// The memory for the optimizer's state, such as 64MiB, the rest lies in a file; null: all of it, or what
    /// fits.
    pub(crate) memory: Option<ByteSize>,
    /// The update rule; _8bit: moments in eight bits, as in bitsandbytes.
    pub(crate) name: OptimizerName,
    /// The learning rate at its peak, for all weights (method: full) some ten times less; null: 2e-4, and
    /// more for adapters of models narrower than 2048.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) learning_rate: Option<f64>,
    /// How long the moments of AdamW and Lion remember.
    pub(crate) betas: [f64; 2],
    /// What AdamW adds to the denominator.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) eps: f64,
    /// Decoupled, on all trained tensors.
    #[schemars(range(min = 0))]
    pub(crate) weight_decay: f64,
    /// Longer gradients are scaled down to this norm; 0: no clipping.
    #[schemars(range(min = 0))]
    pub(crate) max_grad_norm: f64,
    /// The learning rate of B over that of A (LoRA+).
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) lora_plus_ratio: f64,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        Self {
            memory: None,
            name: OptimizerName::Adamw,
            learning_rate: None,
            betas: [0.9, 0.999],
            eps: 1.0e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            lora_plus_ratio: 1.0,
        }
    }
}

/// How the learning rate moves over the steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ScheduleSection {
    /// The learning rate after the warm-up, as transformers' schedules.
    pub(crate) name: ScheduleName,
    /// A fraction of the steps, or a number of steps if 1 or more; null: 0.03, and none in a run of fewer
    /// than ten steps.
    #[schemars(range(min = 0))]
    pub(crate) warmup: Option<f64>,
}

impl Default for ScheduleSection {
    fn default() -> Self {
        Self { name: ScheduleName::Linear, warmup: None }
    }
}

/// How long, in which portions, and what is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TrainingSection {
    /// Passes over the examples; null: as many as max_steps needs, or 1, up to 3 where that would be fewer
    /// than about fifty steps.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) epochs: Option<u64>,
    /// Optimizer steps; ends the run early if reached, and is then the schedule's length.
    #[schemars(range(min = 1))]
    pub(crate) max_steps: Option<u64>,
    /// Rows of max_length (packing) or examples in an optimizer step; null: 8, fewer where an epoch would
    /// have fewer than twenty steps.
    #[schemars(range(min = 1, max = 4_294_967_296_u64))]
    pub(crate) batch_size: Option<usize>,
    /// Tokens in memory at once; auto: what fits. It changes no result but by rounding.
    pub(crate) micro_batch_tokens: MicroBatch,
    /// Keeps activations, or computes them again in the backward pass (gradient checkpointing); auto: as the
    /// memory asks for.
    pub(crate) checkpointing: Checkpointing,
    /// Keeps layers' inputs partly in a file: auto, true, false, or a size such as 512MiB that stays in
    /// memory.
    pub(crate) activation_offloading: Offloading,
    /// How layers' inputs are stored until the backward pass; null: as all activations.
    pub(crate) activation_precision: Option<ActivationPrecision>,
    /// Keeps what frozen layers give for the next epoch: auto, true, false, or a size such as 512MiB that
    /// stays in memory.
    pub(crate) frozen_activations: Offloading,
    /// Steps between evaluations; null: one after each epoch. One also stands before the first step and after
    /// the last.
    #[schemars(range(min = 1))]
    pub(crate) eval_every: Option<u64>,
    /// Steps between checkpoints; null: about every ten minutes. One also stands at the end.
    #[schemars(range(min = 1))]
    pub(crate) save_every: Option<u64>,
    /// How many checkpoints are kept, beside the best evaluation's tensors.
    #[schemars(range(min = 1))]
    pub(crate) keep_checkpoints: usize,
    /// Also writes the metrics as an event file for TensorBoard, into the run folder.
    pub(crate) tensorboard: bool,
    /// Ends the run after so many evaluations without a better loss; the result is then the best one's.
    #[schemars(range(min = 1))]
    pub(crate) early_stopping_patience: Option<u64>,
    /// Steps between two measurements of what the model forgets: how far it has moved from its base on a text
    /// that it is not trained on; null: none.
    #[schemars(range(min = 1))]
    pub(crate) forgetting_every: Option<u64>,
    /// Examples by which forgetting is measured; null: ten passages of old books, three languages, that come
    /// with luthier.
    pub(crate) forgetting_data: Option<PathBuf>,
    /// Ends the run when the mean divergence from the base, in nats a token, is larger; the result is then the
    /// adapter of the last measurement that was not.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) forgetting_limit: Option<f64>,
    /// How much the spread of tokens over experts counts beside the loss, as router_aux_loss_coef of
    /// transformers; 0: not at all. It is evened out among the tokens in memory at once.
    #[schemars(range(min = 0, max = 1e3))]
    pub(crate) router_aux_loss: f64,
    /// Trains for an export in this type: layers compute with weights, updates included, as the file will
    /// hold them; null: not.
    pub(crate) quantization_aware: Option<QuantizationAware>,
    /// Of all that is random: the same seed and settings give the same bytes.
    pub(crate) seed: u64,
}

impl Default for TrainingSection {
    fn default() -> Self {
        Self {
            epochs: None,
            max_steps: None,
            batch_size: None,
            micro_batch_tokens: MicroBatch::Auto,
            checkpointing: Checkpointing::Auto,
            activation_offloading: Offloading::Auto,
            activation_precision: None,
            frozen_activations: Offloading::Auto,
            eval_every: None,
            save_every: None,
            keep_checkpoints: 2,
            tensorboard: false,
            early_stopping_patience: None,
            forgetting_every: None,
            forgetting_data: None,
            forgetting_limit: None,
            router_aux_loss: 0.0,
            quantization_aware: None,
            seed: 42,
        }
    }
}

/// Precision of activations and arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Precision {
    /// 16 bits.
    #[default]
    Bf16,
    /// 32 bits.
    F32,
}

/// How layers' inputs are stored where that is not as all activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ActivationPrecision {
    /// 16 bits.
    Bf16,
}

/// How a file holds examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    /// Found by looking at the first records.
    #[default]
    Auto,
    /// {"messages": [{"role", "content"}]}
    Messages,
    /// {"conversations": [{"from", "value"}]}
    Sharegpt,
    /// {"instruction", "input", "output"}
    Alpaca,
    /// {"prompt", "completion"}
    Completion,
    /// {"text"}, or a text file.
    Text,
    /// Trees of messages as OpenAssistant exports them, or {"text": "### Human: ...### Assistant: ..."}
    Oasst,
    #[schemars(skip)] // not supported yet
    Preference,
    /// {"input_ids", "labels"}
    Tokenized,
}

/// Which conversations a tree of messages gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OasstPaths {
    /// At each level the reply that was ranked first.
    Best,
    /// One for each answer that no later answer follows.
    All,
}

/// Which tokens carry loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TrainOn {
    /// Every turn of the assistant; of a completion, the completion.
    Assistant,
    /// The last turn of the assistant; of a completion, the completion.
    Completion,
    /// Every token.
    All,
}

/// What becomes of an example longer than `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnOverflow {
    /// Cut off.
    Truncate,
    /// Left out.
    Drop,
    /// Refused.
    Error,
}

/// What is trained on the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Method {
    /// A low-rank adapter.
    Lora,
    /// A low-rank adapter whose layers' rows have trained magnitudes.
    Dora,
    /// A low-rank adapter that merges into integers exactly: A reads sums of groups of inputs.
    Qalora,
    /// All weights.
    Full,
}

/// A type of weights that is trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QuantizationAware {
    /// GGUF's Q4_0.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// GGUF's Q4_1.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// GGUF's Q8_0.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4-bit NormalFloat, as bitsandbytes has it.
    Nf4,
}

impl QuantizationAware {
    /// The format that it stands for.
    pub(crate) fn format(self) -> quant::Format {
        match self {
            Self::Q4_0 => quant::Format::Blocks(quant::BlockType::Q4_0),
            Self::Q4_1 => quant::Format::Blocks(quant::BlockType::Int4),
            Self::Q8_0 => quant::Format::Blocks(quant::BlockType::Q8_0),
            Self::Nf4 => quant::Format::QLORA,
        }
    }
}

/// What a QA-LoRA adapter reads of a group of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pooling {
    /// Their sum.
    Sum,
    /// Their mean, as the paper's code has it.
    Mean,
    /// Their mean times the number of groups, as PEFT has it.
    Peft,
}

/// How an adapter's matrices begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Init {
    /// As PEFT: A uniform, B zero.
    Default,
    /// A from a normal distribution, B zero.
    Gaussian,
    /// The leading singular values and vectors of each weight, which are taken out of the base.
    Pissa,
    /// The leading part of each weight's orthogonal and triangular factors, taken out of the base.
    Olora,
    /// The leading singular values and vectors of what quantization loses of each weight.
    Loftq,
    /// Random in orthogonal subspaces, so that the update begins as zero.
    Orthogonal,
}

impl Init {
    /// As the engine calls it.
    pub(crate) fn engine(self) -> model::adapter::init::Init {
        use model::adapter::init::Init as Engine;
        match self {
            Init::Default => Engine::Default,
            Init::Gaussian => Engine::Gaussian,
            Init::Pissa => Engine::Pissa,
            Init::Olora => Engine::Olora,
            Init::Loftq => Engine::Loftq,
            Init::Orthogonal => Engine::Orthogonal,
        }
    }
}

/// The optimizer's rule and how its state is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OptimizerName {
    /// AdamW, moments in f32.
    Adamw,
    /// AdamW, moments in eight bits.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    /// The same as adamw.
    PagedAdamw,
    /// The same as adamw_8bit.
    #[serde(rename = "paged_adamw_8bit")]
    PagedAdamw8bit,
    /// Lion.
    Lion,
    /// Gradient descent without momentum.
    Sgd,
}

/// The learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScheduleName {
    /// Falls to 0 in a straight line.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
    /// Stays.
    Constant,
}

/// Whether the backward pass computes activations again in place of keeping them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Checkpointing {
    /// As the memory asks for.
    Auto,
    /// All activations are kept.
    None,
    /// Each layer is computed again.
    Block,
}

impl RunFile {
    /// Takes over from the saved settings of a run that goes on what was left open and decides its result.
    pub(crate) fn adopt_settled(&mut self, saved: &Self) {
        self.schedule.warmup = self.schedule.warmup.or(saved.schedule.warmup);
        self.optimizer.learning_rate = self.optimizer.learning_rate.or(saved.optimizer.learning_rate);
        self.data.max_length = self.data.max_length.or(saved.data.max_length);
        let (training, saved) = (&mut self.training, &saved.training);
        training.batch_size = training.batch_size.or(saved.batch_size);
        training.epochs = training.epochs.or(saved.epochs);
        if training.micro_batch_tokens == MicroBatch::Auto {
            training.micro_batch_tokens = saved.micro_batch_tokens;
        }
    }

    /// The value of a key of those that an adapter's user takes over, as YAML has it in a line.
    pub(crate) fn value(&self, key: &str) -> String {
        let text = |text: &Option<String>| text.clone().unwrap_or("null".into());
        match key {
            "data.chat_template" => text(&self.data.chat_template),
            "data.max_length" => self.data.max_length.map_or("null".into(), |tokens| tokens.to_string()),
            "data.train_on" => word(&self.data.train_on),
            "quantization" => self.quantization.as_ref().map_or("null".into(), |q| word(&q.kind)),
            other => panic!("{other} is not taken over"),
        }
    }

    /// The keys of the settings that say how a file of examples is read.
    pub(crate) const READING: [&str; 3] = ["data.format", "data.oasst_paths", "data.oasst_languages"];

    /// These settings where they are not the usual ones: `key=value`.
    pub(crate) fn reading_of_data(&self) -> Vec<String> {
        let DataSection { format, oasst_paths, oasst_languages, .. } = &self.data;
        let mut set = Vec::new();
        if *format != Format::Auto {
            set.push(format!("data.format={}", word(format)));
        }
        if *oasst_paths != OasstPaths::Best {
            set.push(format!("data.oasst_paths={}", word(oasst_paths)));
        }
        if !oasst_languages.is_empty() {
            set.push(format!("data.oasst_languages=[{}]", oasst_languages.join(", ")));
        }
        set
    }

    /// Takes one of those keys over from other settings.
    pub(crate) fn take(&mut self, key: &str, from: &Self) {
        match key {
            "data.chat_template" => self.data.chat_template = from.data.chat_template.clone(),
            "data.max_length" => self.data.max_length = from.data.max_length,
            "data.train_on" => self.data.train_on = from.data.train_on,
            "quantization" => self.quantization = from.quantization,
            other => panic!("{other} is not taken over"),
        }
    }

    /// Makes the paths that are relative to the current folder absolute. Names that are no paths stay: hub
    /// ids, built-in templates, `-` for stdin.
    pub(crate) fn make_paths_absolute(&mut self) {
        let full = |path: &mut PathBuf| {
            let here = path.exists() || path.to_string_lossy().contains(['*', '?', '[']);
            if here && path.as_os_str() != "-" {
                *path = std::path::absolute(&*path).unwrap_or(path.clone());
            }
        };
        let full_text = |text: &mut String| {
            let mut path = PathBuf::from(&*text);
            full(&mut path);
            *text = path.display().to_string();
        };
        let template = self.data.chat_template.iter_mut();
        let file = template.filter(|name| !data::template::BUILTIN.contains(&name.as_str()));
        self.model.iter_mut().chain(file).for_each(full_text);
        match &mut self.data.train {
            None => {}
            Some(TrainData::One(path)) => full(path),
            Some(TrainData::Many(sources)) => sources.iter_mut().for_each(|source| full(&mut source.path)),
        }
        let of_forgetting = &mut self.training.forgetting_data;
        self.data.eval.iter_mut().chain(&mut self.adapter.init_from).chain(of_forgetting).for_each(full);
        self.output.iter_mut().for_each(full);
    }

    /// The file in full, in the order of this type; reading it gives the same settings.
    pub(crate) fn to_yaml(&self) -> anyhow::Result<String> {
        yaml::write(self).context("cannot write the settings as YAML")
    }
}

/// A word of a closed set as the run file spells it.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).expect("a word");
    value.as_str().expect("a word").to_owned()
}

/// A setting from the command line, which wins over the file.
#[derive(Clone, Debug)]
pub(crate) struct Override {
    path: Vec<String>,
    value: Node,
    origin: Origin,
}

impl Override {
    /// The argument of `--set`: `key.path=value`, the value in YAML.
    pub(crate) fn set(argument: &str) -> anyhow::Result<Self> {
        let origin = Origin::Flag(format!("--set {argument}").into());
        let (path, text) = argument
            .split_once('=')
            .filter(|(path, _)| path.split('.').all(|key| !key.trim().is_empty()))
            .ok_or_else(|| user(format!("{origin}: expected key.path=value, such as training.epochs=3")))?;
        let value = yaml::parse_flag(text, &origin).map_err(|problem| problem.report(None))?;
        Ok(Self { path: path.split('.').map(|key| key.trim().to_owned()).collect(), value, origin })
    }

    /// All of a command's `--set` arguments.
    pub(crate) fn sets(arguments: &[String]) -> anyhow::Result<Vec<Self>> {
        arguments.iter().map(|argument| Self::set(argument)).collect()
    }

    /// Refuses what a command does not take: `known` has sections and single keys.
    pub(crate) fn require_known(&self, command: &str, known: &[&str]) -> anyhow::Result<()> {
        let (section, key) = (&self.path[0], self.path.join("."));
        if known.iter().any(|known| known == section || *known == key) {
            return Ok(());
        }
        // Of a section that is taken in part it is the key that is wrong.
        let is_part = known.iter().any(|known| known.starts_with(&format!("{section}.")));
        let (wrong, (last, others)) =
            (if is_part { &key } else { section }, known.split_last().expect("a command takes some"));
        let others = others.iter().map(|of| if *of == "data" { "data.*" } else { *of }).collect::<Vec<_>>();
        Err(user(format!("--set {wrong}: `{command}` takes {} and {last} only", others.join(", "))))
    }

    /// A flag that stands for a key, such as `--model` for `model`; its value is taken as it is.
    pub(crate) fn flag(flag: &str, key: &str, value: &str) -> Self {
        let origin = Origin::Flag(format!("{flag} {value}").into());
        Self::at(key, Node::new(Value::String(value.to_owned()), origin.clone()), origin)
    }

    /// A flag that stands for a key with a list of texts, such as `--data` given more than once.
    pub(crate) fn list(flag: &str, key: &str, values: &[String]) -> Self {
        let origin = Origin::Flag(
            values.iter().map(|value| format!("{flag} {value}")).collect::<Vec<_>>().join(" ").into(),
        );
        let node = |value: &String| Node::new(Value::String(value.clone()), origin.clone());
        let list = Value::List(values.iter().map(node).collect());
        Self::at(key, Node::new(list, origin.clone()), origin)
    }

    /// A flag that stands for a key, such as `--rank` for `adapter.r`; its value is YAML, as that of `--set`.
    pub(crate) fn parsed(flag: &str, key: &str, value: &str) -> anyhow::Result<Self> {
        let origin = Origin::Flag(format!("{flag} {value}").into());
        let node = yaml::parse_flag(value, &origin).map_err(|problem| problem.report(None))?;
        Ok(Self::at(key, node, origin))
    }

    fn at(key: &str, value: Node, origin: Origin) -> Self {
        Self { path: key.split('.').map(str::to_owned).collect(), value, origin }
    }
}

/// Resolved settings that still know where each of them was written.
#[derive(Debug)]
pub(crate) struct Settings {
    /// What the settings are.
    pub(crate) run: RunFile,
    tree: Node,
    file: Option<FileText>,
}

/// A run file's text, for messages that point into it.
#[derive(Clone, Debug)]
struct FileText {
    path: String,
    text: String,
}

impl Settings {
    /// Reads the file (none: the defaults), lays the overrides over it in order, and decodes the result.
    ///
    /// Unknown keys, wrong types and values outside a closed set are refused here; ranges, required keys and
    /// what this version does not support are the concern of [`Settings::validate`].
    pub(crate) fn resolve(file: Option<&Path>, overrides: Vec<Override>) -> anyhow::Result<Self> {
        let file = file.map(|path| FileText::read(path, "run file")).transpose()?;
        let tree = match &file {
            Some(file) => yaml::parse(&file.text).map_err(|problem| problem.report(Some(file)))?,
            None => Node::new(Value::Null, Origin::Default),
        };
        Self::of(tree, file, overrides)
    }

    /// The same of a tree that was read from a file, if from any.
    fn of(mut tree: Node, file: Option<FileText>, overrides: Vec<Override>) -> anyhow::Result<Self> {
        let report = |problem: Problem| problem.report(file.as_ref());
        for change in overrides {
            tree.put(&change.path, change.value, &change.origin).map_err(report)?;
        }
        let run = decode::decode(&tree).map_err(report)?;
        Ok(Self { run, tree, file })
    }

    /// Whether a key, such as `adapter.r`, was written in the file or on the command line.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.tree.has(key)
    }

    /// An error about a key, such as `data.train`, that points at where it was set.
    pub(crate) fn refuse(&self, key: &str, message: impl Into<String>) -> anyhow::Error {
        Problem::about(key, message, self.tree.origin_of(key)).report(self.file.as_ref())
    }
}

impl FileText {
    /// `what` it should be, for messages.
    fn read(path: &Path, what: &str) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let size = std::fs::metadata(path).with_context(|| format!("cannot read the {what} {name}"))?;
        if size.is_dir() {
            return Err(user(format!("{name} is a folder; a {what} such as RUN.yaml is expected")));
        }
        if size.len() > MAX_FILE_BYTES {
            return Err(user(format!("{name} has {} bytes; that is no {what}", size.len())));
        }
        let bytes = std::fs::read(path).with_context(|| format!("cannot read the {what} {name}"))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let offset = error.utf8_error().valid_up_to();
            user(format!("{name} is not UTF-8 text: byte {offset} is no character"))
        })?;
        Ok(Self { path: name, text })
    }

    fn excerpt(&self, span: Range<usize>, help: Option<String>) -> Excerpt {
        let end = span.end.min(self.text.len());
        let span = if self.text.is_char_boundary(span.start) && self.text.is_char_boundary(end) {
            span.start.min(end)..end
        } else {
            0..0
        };
        Excerpt { path: self.path.clone(), text: self.text.clone(), span, help }
    }
}

/// A setting that is not what it was when the run began.
#[derive(Debug, PartialEq)]
pub(crate) struct Difference {
    /// The key's path.
    pub(crate) key: String,
    /// The value in the run folder, as YAML would have it.
    pub(crate) saved: String,
    /// The value now.
    pub(crate) now: String,
}

/// The settings in which a run that goes on may not differ from its saved ones, but does.
///
/// `training.max_steps` and `training.epochs` may grow. What only says where things are kept changes no
/// result: the size on which it depends is settled in `saved`. `output` is not compared: it is where `saved`
/// was read from.
pub(crate) fn differences(saved: &RunFile, now: &RunFile) -> Vec<Difference> {
    let (saved_keys, now_keys) = (flatten(saved), flatten(now));
    let may_differ = |key: &str| match key {
        "output" | "memory" | "optimizer.memory" => true,
        "training.checkpointing" | "training.activation_offloading" | "training.frozen_activations" => true,
        "training.tensorboard" => true,
        "training.epochs" => now.training.epochs >= saved.training.epochs,
        "training.max_steps" => match (saved.training.max_steps, now.training.max_steps) {
            (Some(saved), Some(now)) => now >= saved,
            (Some(_), None) => true,
            (None, _) => false,
        },
        _ => false,
    };
    let value = |keys: &[(String, String)], key: &str| {
        keys.iter().find(|(k, _)| k == key).map_or("not set".to_owned(), |(_, value)| value.clone())
    };
    let removed = saved_keys.iter().filter(|(key, _)| !now_keys.iter().any(|(k, _)| k == key));
    now_keys
        .iter()
        .chain(removed)
        .map(|(key, _)| Difference {
            key: key.clone(),
            saved: value(&saved_keys, key),
            now: value(&now_keys, key),
        })
        .filter(|d| d.saved != d.now && !may_differ(&d.key))
        .collect()
}

/// The keys that name files and folders.
const PLACES: [&str; 6] = [
    "model",
    "data.train",
    "data.eval",
    "data.chat_template",
    "adapter.init_from",
    "training.forgetting_data",
];

/// Refuses to go on with a run under other settings than it began with, naming each of them with both values.
pub(crate) fn check_resume(saved: &RunFile, now: &RunFile) -> anyhow::Result<()> {
    let mut differences = differences(saved, now);
    // What was moved is named anew; that the training data are the same is seen by their tokens.
    let moved = |d: &Difference| PLACES.contains(&&*d.key) && !Path::new(d.saved.trim_matches('"')).exists();
    differences.retain(|difference| !moved(difference));
    if differences.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = differences
        .iter()
        .map(|d| format!("{}: {} when the run began, {} now", d.key, d.saved, d.now))
        .collect();
    Err(user(format!(
        "this run cannot go on with other settings than it began with:\n{}\nput them back, or choose another output \
         folder (training.max_steps and training.epochs may grow)",
        lines.join("\n")
    )))
}

/// Every leaf with its key's path, as YAML has it in a line.
fn flatten(run: &RunFile) -> Vec<(String, String)> {
    leaves(run).into_iter().map(|(key, value)| (key, value.to_string())).collect()
}

/// Every leaf with its key's path, in the file's order. Lists and patterns are leaves.
pub(crate) fn leaves(run: &RunFile) -> Vec<(String, serde_json::Value)> {
    fn walk(path: &str, value: serde_json::Value, leaves: &mut Vec<(String, serde_json::Value)>) {
        match value {
            serde_json::Value::Object(map) if !path.ends_with("_pattern") && path != "quantization" => {
                for (key, value) in map {
                    let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                    walk(&path, value, leaves);
                }
            }
            leaf => leaves.push((path.to_owned(), leaf)),
        }
    }
    let mut leaves = Vec::new();
    walk("", serde_json::to_value(run).expect("settings are plain data"), &mut leaves);
    leaves
}
