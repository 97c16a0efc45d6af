//! From a run file's words to what the libraries want: the one place where the two vocabularies meet.

mod base;
pub(crate) mod files;
pub(crate) mod gguf;
mod memory;
mod settle;
mod together;

use std::path::Path;

use anyhow::Context;
use compute::Precision;
use compute::quant::Format;
use compute::quant::blocks::GROUP;
use data::{DataSpec, Dataset, Oasst, OrderSpec, Paths, SourceSpec, Tokenizer};
use model::adapter::peft::folder::AdapterFolder;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Pooling, QaLora, Selection};
use model::gguf::Gguf;
use model::{Config, Layout};
use serde_json::Value;
use train::{Decay, OptimizerSettings, Rule, Schedule};

pub(crate) use base::{Base, Subject};
pub(crate) use memory::*;
pub(crate) use settle::*;
pub(crate) use together::{Beside, Company, budget, company_of, data_of, leaves_base};

use crate::cli;
use crate::error::user;
use crate::hub;
use crate::run_file::{self, AdapterSection, DataSection, Method, Pattern, RunFile, Source, TargetModules};

impl run_file::Precision {
    /// As the engine calls it.
    pub(crate) fn engine(self) -> Precision {
        match self {
            Self::Bf16 => Precision::Bf16,
            Self::F32 => Precision::F32,
        }
    }
}

impl cli::Sampling {
    /// As the engine calls it.
    pub(crate) fn engine(&self) -> infer::Sampling {
        let &cli::Sampling { temperature, top_p, top_k, seed, .. } = self;
        infer::Sampling { temperature, top_p, top_k, seed, ..infer::Sampling::default() }
    }
}

/// The files of sources, those of a hub data set among them, with their formats and weights.
pub(crate) fn source_specs(sources: Vec<Source>) -> anyhow::Result<Vec<SourceSpec>> {
    let mut specs = Vec::new();
    for source in sources {
        for path in hub::resolve_data(&source.path)? {
            let mut spec = SourceSpec::new(path);
            spec.format = source.format.map(format);
            spec.weight = source.weight;
            specs.push(spec);
        }
    }
    Ok(specs)
}

/// What to load as examples: `sources` under the settings of the `data` section.
fn data_spec(
    run: &RunFile,
    sources: Vec<Source>,
    config: Option<&Config>,
    time: Option<i64>,
) -> anyhow::Result<DataSpec> {
    let section = &run.data;
    let specs = source_specs(sources)?;
    Ok(DataSpec {
        format: format(section.format),
        oasst: oasst(section),
        train_on: match section.train_on {
            run_file::TrainOn::Assistant => data::TrainOn::Assistant,
            run_file::TrainOn::Completion => data::TrainOn::Completion,
            run_file::TrainOn::All => data::TrainOn::All,
        },
        chat_template: section.chat_template.clone(),
        max_length: max_length(run, config),
        on_overflow: on_overflow(section.on_overflow),
        vocab_size: config.map(|config| config.vocab_size),
        unix_time: time,
        ..DataSpec::new(specs)
    })
}

/// What becomes of long examples, as the data room calls it.
pub(crate) fn on_overflow(what: run_file::OnOverflow) -> data::OnOverflow {
    match what {
        run_file::OnOverflow::Truncate => data::OnOverflow::Truncate,
        run_file::OnOverflow::Drop => data::OnOverflow::Drop,
        run_file::OnOverflow::Error => data::OnOverflow::Error,
    }
}

/// The tokenizer of a model, which is enough to look at data, and its configuration if there is one.
pub(crate) fn tokenizer_of(model: &str) -> anyhow::Result<(Tokenizer, Option<Config>)> {
    let folder = hub::resolve_model(model)?;
    if Gguf::is_named_so(&folder) {
        let file = Gguf::open(&folder)?;
        return Ok((gguf::tokenizer(&file)?, Some(file.config()?)));
    }
    let config = folder.join("config.json").exists().then(|| Config::load(&folder)).transpose()?;
    Ok((Tokenizer::load(&folder)?, config))
}

/// A format of records, as the data room calls it.
pub(crate) fn format(format: run_file::Format) -> data::Format {
    match format {
        run_file::Format::Auto => data::Format::Auto,
        run_file::Format::Messages => data::Format::Messages,
        run_file::Format::Sharegpt => data::Format::Sharegpt,
        run_file::Format::Alpaca => data::Format::Alpaca,
        run_file::Format::Completion => data::Format::Completion,
        run_file::Format::Text => data::Format::Text,
        run_file::Format::Oasst => data::Format::Oasst,
        run_file::Format::Preference => data::Format::Preference,
        run_file::Format::Tokenized => data::Format::Tokenized,
    }
}

/// What is taken out of trees of messages, as the data room calls it.
pub(crate) fn oasst(section: &DataSection) -> Oasst {
    let paths = match section.oasst_paths {
        run_file::OasstPaths::Best => Paths::Best,
        run_file::OasstPaths::All => Paths::All,
    };
    Oasst { paths, languages: section.oasst_languages.clone() }
}

/// The training examples and the held-out ones, if any are named.
pub(crate) fn datasets(
    run: &RunFile,
    config: Option<&Config>,
    tokenizer: &Tokenizer,
    time: Option<i64>,
) -> anyhow::Result<(Dataset, Option<Dataset>)> {
    let train = training_examples(run, config, tokenizer, time)?;
    if let Some(fraction) = run.data.eval_fraction {
        let (train, eval) = train.split(fraction, run.training.seed)?;
        return Ok((train, Some(eval)));
    }
    let eval = run.data.eval.as_ref().map(|path| dataset(run, path, config, tokenizer, time)).transpose()?;
    Ok((train, eval))
}

/// All examples of `data.train`. Without the model's configuration, token ids are not checked.
pub(crate) fn training_examples(
    run: &RunFile,
    config: Option<&Config>,
    tokenizer: &Tokenizer,
    time: Option<i64>,
) -> anyhow::Result<Dataset> {
    Ok(Dataset::load(&data_spec(run, run.data.sources(), config, time)?, tokenizer)?)
}

/// The examples of one file or folder under the settings of the `data` section.
pub(crate) fn dataset(
    run: &RunFile,
    path: &Path,
    config: Option<&Config>,
    tokenizer: &Tokenizer,
    time: Option<i64>,
) -> anyhow::Result<Dataset> {
    let source = Source { format: Some(run.data.format), ..Source::new(path.to_owned()) };
    let spec = data_spec(run, vec![source], config, time)?;
    Ok(Dataset::load(&spec, tokenizer)?)
}

/// What was noticed in examples, and what of them the model was not made for. Every command that reads
/// examples says the same.
pub(crate) fn warnings(report: &data::Report, config: &Config) -> Vec<String> {
    let (longest, context) = (report.longest, config.max_position_embeddings);
    let beyond = (longest > context).then(|| {
        format!(
            "The longest example has {longest} tokens, more than the {context} the model was made for; set \
             data.max_length={context} to cut there."
        )
    });
    report.warnings().into_iter().chain(beyond).collect()
}

/// The order of the training examples.
pub(crate) fn order(run: &RunFile) -> OrderSpec {
    let data = &run.data;
    OrderSpec {
        seed: run.training.seed,
        epoch: 0,
        shuffle: data.shuffle,
        packing: data.packing,
        group: data.group_by_length.then(|| batch_size(run)),
        max_length: max_length(run, None),
    }
}

/// How the base's linear layers are quantized.
pub(crate) fn quantization(run: &RunFile) -> Option<Format> {
    run.quantization.map(run_file::Quantization::format)
}

/// The optimizer's settings.
pub(crate) fn optimizer(run: &RunFile) -> OptimizerSettings {
    let section = &run.optimizer;
    OptimizerSettings {
        rule: match section.name {
            run_file::OptimizerName::Lion => Rule::Lion { betas: section.betas },
            run_file::OptimizerName::Sgd => Rule::Sgd,
            run_file::OptimizerName::Adamw | run_file::OptimizerName::PagedAdamw => {
                Rule::AdamW { betas: section.betas, eps: section.eps }
            }
            run_file::OptimizerName::Adamw8bit | run_file::OptimizerName::PagedAdamw8bit => {
                Rule::AdamW8bit { betas: section.betas, eps: section.eps }
            }
        },
        learning_rate: learning_rate(run),
        weight_decay: section.weight_decay,
        max_grad_norm: section.max_grad_norm,
        lora_plus_ratio: section.lora_plus_ratio,
        memory: section.memory.map(|budget| budget.0),
    }
}

/// The learning rate's course.
pub(crate) fn schedule(run: &RunFile) -> Schedule {
    let decay = match run.schedule.name {
        run_file::ScheduleName::Linear => Decay::Linear,
        run_file::ScheduleName::Cosine => Decay::Cosine,
        run_file::ScheduleName::Constant => Decay::Constant,
    };
    Schedule { decay, warmup: run.schedule.warmup }
}

/// How the base is held by those who use a run's result: as in training, but as it is stored where the run
/// quantized what was left of it.
pub(crate) fn quantization_of_result(run: &RunFile) -> Option<Format> {
    quantization(run).filter(|_| !run.adapter.init.engine().changes_base())
}

/// The adapter section in PEFT's words. `base` is what the user calls the model.
pub(crate) fn peft_config(run: &RunFile, base: &str) -> PeftConfig {
    let section = &run.adapter;
    let init = match section.init {
        run_file::Init::Gaussian => Value::from("gaussian"),
        _ => Value::Bool(true),
    };
    PeftConfig {
        r: section.r,
        lora_alpha: section.alpha,
        lora_dropout: section.dropout,
        target_parameters: section.target_parameters.clone(),
        use_rslora: section.rslora,
        use_dora: section.method == run_file::Method::Dora,
        qalora: (section.method == run_file::Method::Qalora).then(|| QaLora {
            group: section.group_size.unwrap_or(GROUP),
            pooling: match section.pooling {
                None | Some(run_file::Pooling::Sum) => Pooling::Sum,
                Some(run_file::Pooling::Mean) => Pooling::Mean,
                Some(run_file::Pooling::Peft) => Pooling::Peft,
            },
        }),
        target_modules: Some(match &section.target_modules {
            TargetModules::AllLinear => Selection::Expression(targets::ALL_LINEAR.to_owned()),
            TargetModules::Names(names) => Selection::List(names.clone()),
            TargetModules::Regex(expression) => Selection::Expression(expression.clone()),
        }),
        rank_pattern: section.rank_pattern.0.clone(),
        alpha_pattern: section.alpha_pattern.0.clone(),
        modules_to_save: section.modules_to_save.clone(),
        init_lora_weights: init,
        base_model_name_or_path: Some(base.to_owned()),
        ..PeftConfig::default()
    }
}

/// The keys of the adapter section that an adapter folder's own configuration decides.
pub(crate) const ADOPTED: [&str; 11] = [
    "method",
    "r",
    "alpha",
    "rslora",
    "target_modules",
    "target_parameters",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "group_size",
    "pooling",
];

/// The adapter section with those keys as the folder has them. Targets that the folder narrows down by
/// settings that a run file does not have (`exclude_modules`, `layers_to_transform`) become the names that
/// they come to.
pub(crate) fn adopt(section: &AdapterSection, files: &AdapterFolder) -> AdapterSection {
    let folder = &files.config;
    let narrowed = folder.exclude_modules.is_some() || folder.layers_to_transform.is_some();
    let target_modules = match &folder.target_modules {
        _ if narrowed => TargetModules::Names(targets::names(&files.resolution, &files.model)),
        Some(Selection::Expression(all)) if all.eq_ignore_ascii_case(targets::ALL_LINEAR) => {
            TargetModules::AllLinear
        }
        Some(Selection::Expression(expression)) => TargetModules::Regex(expression.clone()),
        Some(Selection::List(names)) => TargetModules::Names(names.clone()),
        // PEFT's default for the family, which is nothing for some if parameters are named.
        None => TargetModules::Names(targets::names(&files.resolution, &files.model)),
    };
    AdapterSection {
        r: folder.r,
        alpha: folder.lora_alpha,
        method: match folder.qalora {
            Some(_) => run_file::Method::Qalora,
            None if folder.use_dora => run_file::Method::Dora,
            None => run_file::Method::Lora,
        },
        group_size: folder.qalora.map(|qalora| qalora.group),
        pooling: folder.qalora.map(|qalora| match qalora.pooling {
            Pooling::Sum => run_file::Pooling::Sum,
            Pooling::Mean => run_file::Pooling::Mean,
            Pooling::Peft => run_file::Pooling::Peft,
        }),
        target_parameters: folder.target_parameters.clone(),
        rslora: folder.use_rslora,
        target_modules,
        rank_pattern: Pattern(folder.rank_pattern.clone()),
        alpha_pattern: Pattern(folder.alpha_pattern.clone()),
        modules_to_save: folder.modules_to_save.clone(),
        ..section.clone()
    }
}

/// Takes one of the [`ADOPTED`] keys over from another section.
pub(crate) fn take(to: &mut AdapterSection, from: &AdapterSection, key: &str) {
    match key {
        "r" => to.r = from.r,
        "alpha" => to.alpha = from.alpha,
        "method" => to.method = from.method,
        "group_size" => to.group_size = from.group_size,
        "pooling" => to.pooling = from.pooling,
        "rslora" => to.rslora = from.rslora,
        "target_parameters" => to.target_parameters = from.target_parameters.clone(),
        "target_modules" => to.target_modules = from.target_modules.clone(),
        "rank_pattern" => to.rank_pattern = from.rank_pattern.clone(),
        "alpha_pattern" => to.alpha_pattern = from.alpha_pattern.clone(),
        "modules_to_save" => to.modules_to_save = from.modules_to_save.clone(),
        other => panic!("{other} is not a key that an adapter folder decides"),
    }
}

/// What a run trains: the tensors, and for an adapter its settings in PEFT's words.
pub(crate) struct Trained {
    pub(crate) layout: Layout,
    pub(crate) dropout: f32,
    /// None: all weights are trained.
    pub(crate) peft: Option<PeftConfig>,
}

/// What the adapter section comes to on a model.
pub(crate) fn trained(run: &RunFile, config: &Config, base: &str) -> anyhow::Result<Trained> {
    if run.adapter.method == Method::Full {
        return Ok(Trained { layout: Layout::full(config), dropout: 0.0, peft: None });
    }
    let peft = peft_config(run, base);
    let resolution = targets::resolve(&peft, config).context("adapter")?;
    let init = run.adapter.init.engine();
    init.check(&resolution, config).context("adapter")?;
    let mut layout = Layout::of_adapter(&resolution, config);
    if init.changes_base() {
        layout.take_out_of_base();
    }
    layout.quantization_aware = run.training.quantization_aware.map(run_file::QuantizationAware::format);
    if layout.quantization_aware.is_some() && config.experts.is_some() {
        return Err(user("training.quantization_aware is not supported for mixtures of experts"));
    }
    if let (Some(_), Some(stored)) = (layout.quantization_aware, config.quantization) {
        return Err(user(format!(
            "training.quantization_aware rounds weights that are not rounded yet, and the model's are {stored} already; \
             name its 16-bit checkpoint, or leave the setting out"
        )));
    }
    Ok(Trained { layout, dropout: run.adapter.dropout as f32, peft: Some(peft.settled(&resolution, config)) })
}

impl Trained {
    /// Layers that the backward pass comes to: the lowest trained one and those above it.
    pub(crate) fn layers(&self, config: &Config) -> usize {
        config.layers - self.layout.frozen_layers(config.layers)
    }
}
