//! From a run file's words to what the libraries want: the one place where the two vocabularies meet.

use std::path::{Path, PathBuf};

use anyhow::Context;
use compute::ops::matmul;
use compute::quant::{Code, Format};
use compute::{Device, Precision};
use data::{DataSpec, Dataset, OrderSpec, SourceSpec, Tokenizer};
use model::adapter::folder::AdapterFolder;
use model::adapter::init::Init;
use model::adapter::peft::{PeftConfig, Selection};
use model::adapter::targets;
use model::arena::SMALLEST;
use model::memory::{Component, MemoryPlan};
use model::{
    Adapter, Checkpoint, Checkpointing, Config, Decoder, FrozenExtent, Keeping, Layout, StoredDType,
    StoredWeights,
};
use serde_json::Value;
use train::{Decay, Demand, OptimizerSettings, Rule, Schedule};

use crate::cli;
use crate::error::user;
use crate::hub;
use crate::run_file::{
    self, AdapterSection, ByteSize, Method, MicroBatch, Offloading, Pattern, Quantization, RunFile, Settings,
    Source, TargetModules,
};
use crate::terminal::bytes;

/// What a process holds before it reads anything.
const BARE_PROCESS: u64 = 8 << 20;
/// What a tokenizer holds for each token of its vocabulary, about.
const TOKENIZER_ENTRY: u64 = 800;
/// Tokens in memory at once, where there is room: more do not make products faster.
const USUAL_MICRO_BATCH: usize = 1024;
/// What stays in memory at least of what is paged by itself.
const LEAST_PAGED: u64 = Offloading::LEAST.0;

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
        infer::Sampling { temperature, top_p, top_k, seed }
    }
}

/// A base model's folder and what its files say, before its weights are read.
pub(crate) struct Base {
    /// What the user called it.
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) config: Config,
    /// How its weights are stored; none where the folder has no weights.
    pub(crate) stored: Option<StoredWeights>,
    /// Where its tokenizer is: with the model, or with an adapter that was trained after tokens were added.
    pub(crate) tokenizer_folder: PathBuf,
    /// The adapter whose file has some weights in place of the base's own, if one does.
    changed_by: Option<AdapterFolder>,
}

impl Base {
    /// Finds the model, downloading it if need be, and reads its configuration.
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        let folder = hub::resolve_model(name)?;
        let config = Config::load(&folder)?;
        let has_weights =
            ["model.safetensors", "model.safetensors.index.json"].iter().any(|f| folder.join(f).exists());
        let stored = if has_weights { Checkpoint::open(&folder)?.weights(&config)? } else { None };
        let tokenizer_folder = folder.clone();
        Ok(Base { name: name.to_owned(), folder, config, stored, tokenizer_folder, changed_by: None })
    }

    /// The model as an adapter means it, with the adapter: where its file has weights of the base itself they take their
    /// place, and a vocabulary that was resized comes with its tokenizer. Notes go to stderr.
    pub(crate) fn open_with(name: &str, adapter: Option<&Path>) -> anyhow::Result<(Self, Option<Adapter>)> {
        let mut base = Base::open(name)?;
        let Some(folder) = adapter else { return Ok((base, None)) };
        let files = base.adapter_folder(folder)?;
        files.notes.iter().for_each(|note| eprintln!("note: {note}"));
        if files.added_tokens > 0 {
            match ["tokenizer.json", "vocab.json"].iter().any(|name| folder.join(name).is_file()) {
                true => base.tokenizer_folder = folder.to_owned(),
                false => eprintln!(
                    "note: {} has no tokenizer.json, so the added tokens have no text; put the tokenizer there that the \
                     adapter was trained with",
                    folder.display()
                ),
            }
        }
        let adapter = files.read()?;
        base.config = files.model.clone();
        base.changed_by = (!files.base_tensors.is_empty()).then_some(files);
        Ok((base, Some(adapter)))
    }

    /// Whether an adapter's file has weights in place of the base's own.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed_by.is_some()
    }

    /// Whether the adapter was trained over a vocabulary that had been made larger.
    pub(crate) fn is_resized(&self) -> bool {
        self.changed_by.as_ref().is_some_and(|files| files.added_tokens > 0)
    }

    /// The type of its weights in the files, or else in config.json.
    pub(crate) fn dtype(&self) -> Option<StoredDType> {
        self.stored.as_ref().map(|stored| stored.dtype).or(self.config.dtype)
    }

    /// Reads the weights, quantizing them on the way if that is asked for.
    pub(crate) fn load(
        &self,
        device: &Device,
        precision: Precision,
        quantization: Option<Format>,
    ) -> anyhow::Result<Decoder> {
        let adapter = self.changed_by.as_ref();
        Ok(Decoder::load_for(&self.folder, adapter, device, precision, quantization)?)
    }

    /// The tokenizer, which must not have tokens that the model does not know.
    pub(crate) fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        Ok(Tokenizer::load(&self.tokenizer_folder)?)
    }

    /// An adapter folder checked against this model, and against its weights where it has such, too.
    pub(crate) fn adapter_folder(&self, folder: &Path) -> anyhow::Result<AdapterFolder> {
        let mut files = AdapterFolder::open(folder, &self.config, Some(&self.name))?;
        if !files.base_tensors.is_empty() {
            files.compare(&Checkpoint::open(&self.folder)?, &self.config)?;
        }
        Ok(files)
    }

    /// Reads an adapter that leaves this model as it is; notes go to stderr.
    pub(crate) fn adapter(&self, folder: &Path) -> anyhow::Result<Adapter> {
        let files = self.adapter_folder(folder)?;
        files.require_unchanged_base()?;
        files.notes.iter().for_each(|note| eprintln!("note: {note}"));
        Ok(files.read()?)
    }
}

/// What to load as examples: `sources` under the settings of the `data` section.
fn data_spec(
    run: &RunFile,
    sources: Vec<Source>,
    vocab_size: Option<usize>,
    time: Option<i64>,
) -> anyhow::Result<DataSpec> {
    let section = &run.data;
    let source = |source: Source| -> anyhow::Result<SourceSpec> {
        let mut spec = SourceSpec::new(source.path);
        spec.format = source.format.map(format);
        spec.weight = source.weight;
        Ok(spec)
    };
    let sources = sources.into_iter().map(source).collect::<anyhow::Result<_>>()?;
    Ok(DataSpec {
        format: format(section.format),
        train_on: match section.train_on {
            run_file::TrainOn::Assistant => data::TrainOn::Assistant,
            run_file::TrainOn::Completion => data::TrainOn::Completion,
            run_file::TrainOn::All => data::TrainOn::All,
        },
        chat_template: section.chat_template.clone(),
        max_length: section.max_length,
        on_overflow: match section.on_overflow {
            run_file::OnOverflow::Truncate => data::OnOverflow::Truncate,
            run_file::OnOverflow::Drop => data::OnOverflow::Drop,
            run_file::OnOverflow::Error => data::OnOverflow::Error,
        },
        vocab_size,
        unix_time: time,
        ..DataSpec::new(sources)
    })
}

pub(crate) fn format(format: run_file::Format) -> data::Format {
    match format {
        run_file::Format::Auto => data::Format::Auto,
        run_file::Format::Messages => data::Format::Messages,
        run_file::Format::Sharegpt => data::Format::Sharegpt,
        run_file::Format::Alpaca => data::Format::Alpaca,
        run_file::Format::Completion => data::Format::Completion,
        run_file::Format::Text => data::Format::Text,
        run_file::Format::Preference => data::Format::Preference,
        run_file::Format::Tokenized => data::Format::Tokenized,
    }
}

/// The training examples and the held-out ones, if any are named.
pub(crate) fn datasets(
    run: &RunFile,
    config: &Config,
    tokenizer: &Tokenizer,
    time: Option<i64>,
) -> anyhow::Result<(Dataset, Option<Dataset>)> {
    let train = training_examples(run, Some(config.vocab_size), tokenizer, time)?;
    if let Some(fraction) = run.data.eval_fraction {
        let (train, eval) = train.split(fraction, run.training.seed)?;
        return Ok((train, Some(eval)));
    }
    let eval = run.data.eval.as_ref().map(|path| dataset(run, path, config, tokenizer, time)).transpose()?;
    Ok((train, eval))
}

/// All examples of `data.train`. Without a size of the vocabulary, token ids are not checked.
pub(crate) fn training_examples(
    run: &RunFile,
    vocab_size: Option<usize>,
    tokenizer: &Tokenizer,
    time: Option<i64>,
) -> anyhow::Result<Dataset> {
    Ok(Dataset::load(&data_spec(run, run.data.sources(), vocab_size, time)?, tokenizer)?)
}

/// The examples of one file or folder under the settings of the `data` section.
pub(crate) fn dataset(
    run: &RunFile,
    path: &Path,
    config: &Config,
    tokenizer: &Tokenizer,
    time: Option<i64>,
) -> anyhow::Result<Dataset> {
    let source = Source { format: Some(run.data.format), ..Source::new(path.to_owned()) };
    let spec = data_spec(run, vec![source], Some(config.vocab_size), time)?;
    Ok(Dataset::load(&spec, tokenizer)?)
}

/// The order of the training examples.
pub(crate) fn order(run: &RunFile) -> OrderSpec {
    let data = &run.data;
    OrderSpec {
        seed: run.training.seed,
        epoch: 0,
        shuffle: data.shuffle,
        packing: data.packing,
        max_length: data.max_length,
    }
}

/// How the base's linear layers are quantized.
pub(crate) fn quantization(run: &RunFile) -> Option<Format> {
    run.quantization.as_ref().map(|section| Format {
        code: match section.kind {
            run_file::QuantizationType::Nf4 => Code::Nf4,
            run_file::QuantizationType::Fp4 => Code::Fp4,
        },
        block_size: section.block_size,
        double_quant: section.double_quant,
    })
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
        learning_rate: section.learning_rate,
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

/// How low-rank matrices begin.
pub(crate) fn init(run: &RunFile) -> Init {
    match run.adapter.init {
        run_file::Init::Gaussian => Init::Gaussian,
        _ => Init::Default,
    }
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
        use_rslora: section.rslora,
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
pub(crate) const ADOPTED: [&str; 7] =
    ["r", "alpha", "rslora", "target_modules", "rank_pattern", "alpha_pattern", "modules_to_save"];

/// The adapter section with those keys as the folder has them. Targets that the folder narrows down by settings that a run
/// file does not have (`exclude_modules`, `layers_to_transform`) become the names that they come to.
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
        None => TargetModules::Names(targets::DEFAULT_TARGETS.map(str::to_owned).to_vec()),
    };
    AdapterSection {
        r: folder.r,
        alpha: folder.lora_alpha,
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
        "rslora" => to.rslora = from.rslora,
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
    let layout = Layout::of_adapter(&resolution, config);
    Ok(Trained { layout, dropout: run.adapter.dropout as f32, peft: Some(peft.settled(&resolution, config)) })
}

impl Trained {
    /// Layers that the backward pass comes to: the lowest trained one and those above it.
    pub(crate) fn layers(&self, config: &Config) -> usize {
        config.layers - self.layout.frozen_layers(config.layers)
    }
}

/// What was left to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) micro_batch_tokens: usize,
    pub(crate) checkpointing: Checkpointing,
    /// Bytes of the optimizer's state that may be in memory, the rest being in a file. None: all of it.
    pub(crate) optimizer_memory: Option<u64>,
    /// Bytes that may be in memory of what frozen layers give, the rest being in a file. None: it is not kept.
    pub(crate) frozen_memory: Option<u64>,
}

impl Sizes {
    /// Writes them into the settings that left them open.
    pub(crate) fn settle(self, run: &mut RunFile) {
        run.training.micro_batch_tokens = MicroBatch::Tokens(self.micro_batch_tokens);
        run.training.checkpointing = match self.checkpointing {
            Checkpointing::None => run_file::Checkpointing::None,
            Checkpointing::Block(_) => run_file::Checkpointing::Block,
        };
        let within = |memory| Offloading::Within(ByteSize(memory));
        run.training.activation_offloading = self.activation_memory().map_or(Offloading::Never, within);
        run.training.frozen_activations = self.frozen_memory.map_or(Offloading::Never, within);
        run.optimizer.memory = self.optimizer_memory.map(ByteSize);
    }

    /// Bytes of the layers' inputs that may be in memory, the rest being in a file. None: all of them.
    pub(crate) fn activation_memory(self) -> Option<u64> {
        match self.checkpointing {
            Checkpointing::None => None,
            Checkpointing::Block(keeping) => keeping.memory,
        }
    }

    fn with_optimizer_memory(self, memory: u64) -> Self {
        Sizes { optimizer_memory: Some(memory), ..self }
    }

    /// The same if no layer's input is kept apart from what else is.
    fn with_activation_memory(self, memory: u64) -> Self {
        let checkpointing = match self.checkpointing {
            Checkpointing::None => Checkpointing::None,
            Checkpointing::Block(keeping) => {
                Checkpointing::Block(Keeping { memory: Some(memory), ..keeping })
            }
        };
        Sizes { checkpointing, ..self }
    }

    /// Layers that the backward pass computes again, at least in part, of so many that it comes to.
    pub(crate) fn computed_again(self, layers: usize) -> usize {
        match self.checkpointing {
            Checkpointing::None => 0,
            Checkpointing::Block(keeping) => layers.saturating_sub(keeping.mlp.max(1)),
        }
    }

    /// How many layers the backward pass computes again, in words, if some but not all.
    pub(crate) fn computed_again_words(self, layers: usize) -> Option<String> {
        let partly = matches!(self.checkpointing, Checkpointing::Block(Keeping { mlp: 1.., .. }));
        let again = self.computed_again(layers);
        partly
            .then(|| format!("{again} of {layers} layers are computed again, as many as the memory asks for"))
    }

    /// What lies in a file, in words, if anything does.
    pub(crate) fn paging(self) -> Option<String> {
        let of = [
            (self.optimizer_memory, "the optimizer's state"),
            (self.activation_memory(), "the layers' inputs"),
        ];
        let part = |(memory, what): (Option<u64>, &str)| Some(format!("{} of {what}", bytes(memory?)));
        let parts: Vec<String> = of.into_iter().filter_map(part).collect();
        let memory = Some(parts.join(" and ")).filter(|parts| !parts.is_empty())?;
        Some(format!("at most {memory} in memory, the rest in a file; it changes no result"))
    }

    /// What is kept of what frozen layers give, in words, if anything is.
    pub(crate) fn kept(self) -> Option<String> {
        let memory = bytes(self.frozen_memory?);
        Some(format!(
            "what frozen layers give, for examples that come again, at most {memory} of it in memory; it changes no result"
        ))
    }
}

/// Rows of an optimizer step, unless that leaves an epoch fewer steps than [`FEWEST_STEPS`].
const USUAL_BATCH: usize = 8;
/// Steps that an epoch has at least, if its rows are enough for that.
const FEWEST_STEPS: usize = 20;

/// Rows of an optimizer step, at most if that is still open.
pub(crate) fn batch_size(run: &RunFile) -> usize {
    run.training.batch_size.unwrap_or(USUAL_BATCH)
}

/// Settles `training.batch_size` where it is open. Says why if it is less than usual.
pub(crate) fn settle_batch_size(run: &mut RunFile, train: &Dataset) -> Option<String> {
    if run.training.batch_size.is_some() {
        return None;
    }
    let rows = train.rows(&order(run)).len();
    let enough = |batch: &usize| rows.div_ceil(*batch) >= FEWEST_STEPS;
    let batch = (1..=USUAL_BATCH).rev().find(enough).unwrap_or(1);
    run.training.batch_size = Some(batch);
    let name = |n: usize| match (run.data.packing, n) {
        (true, 1) => "row",
        (true, _) => "rows",
        (false, 1) => "example",
        (false, _) => "examples",
    };
    let (usual, made) = (USUAL_BATCH, rows.div_ceil(USUAL_BATCH));
    match batch {
        USUAL_BATCH => None,
        1 if rows < FEWEST_STEPS => {
            let rather = if run.data.packing { ", or data.packing: false," } else { "" };
            let all = name(rows);
            let one = name(1);
            Some(format!(
                "1 {one} a step: an epoch has only {rows} {all}; more training.epochs{rather} make more steps"
            ))
        }
        _ => {
            let (some, all) = (name(batch), name(rows));
            Some(format!(
                "{batch} {some} a step: {usual} would make only {made} steps of an epoch's {rows} {all}"
            ))
        }
    }
}

/// What data and machine ask of the memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Tokens of the examples.
    pub(crate) demand: Demand,
    /// Tokens of the examples that come again. None: nobody has seen the data yet, there may be any number of them.
    pub(crate) repeated: Option<usize>,
    /// Bytes that the process holds beside the buffers of the plan: code, tokenizer, examples.
    pub(crate) beside: u64,
    /// Threads, each of which has scratch of its own.
    pub(crate) threads: usize,
}

impl Needs {
    /// For data that nobody has seen yet: every example as long as it may be, and a tokenizer of the usual size.
    pub(crate) fn expected(run: &RunFile, config: &Config, threads: usize) -> Self {
        let longest = run.data.max_length;
        let step = longest.saturating_mul(batch_size(run));
        let beside = BARE_PROCESS + TOKENIZER_ENTRY * config.vocab_size as u64;
        let evaluates = run.data.eval.is_some() || run.data.eval_fraction.is_some();
        let again = run.training.epochs > 1 || evaluates || run.data.sources().iter().any(|s| s.weight > 1.0);
        let demand = Demand { longest, step, total: if evaluates { usize::MAX } else { step } };
        Needs { demand, repeated: if again { None } else { Some(0) }, beside, threads }
    }
}

/// Scratch of the products and of attention over sequences of so many tokens.
fn scratch(config: &Config, precision: Precision, positions: usize, threads: usize) -> u64 {
    let of_thread = matmul::THREAD_MEMORY + model::attention_memory(config, precision, positions);
    matmul::SHARED_MEMORY.saturating_add((threads as u64).saturating_mul(of_thread))
}

/// The buffers that the loop allocates.
pub(crate) fn buffers(
    run: &RunFile,
    config: &Config,
    trained: &Trained,
    needs: Needs,
    sizes: Sizes,
) -> MemoryPlan {
    let extent = needs.demand.extent(sizes.micro_batch_tokens, sizes.checkpointing, run.precision.engine());
    let optimizer = OptimizerSettings { memory: sizes.optimizer_memory, ..optimizer(run) };
    let repeated = [needs.repeated.unwrap_or(usize::MAX)];
    let frozen = sizes.frozen_memory.map(|memory| FrozenExtent { lengths: &repeated, memory });
    train::memory_plan(config, &trained.layout, trained.dropout, optimizer, extent, frozen)
}

/// The whole memory of a run.
pub(crate) fn memory_plan(
    run: &RunFile,
    config: &Config,
    stored: Option<&StoredWeights>,
    trained: &Trained,
    needs: Needs,
    sizes: Sizes,
) -> MemoryPlan {
    let precision = run.precision.engine();
    let mut plan = Decoder::base_memory(config, stored, precision, quantization(run));
    plan.extend(&buffers(run, config, trained, needs, sizes));
    let scratch = scratch(config, precision, needs.demand.longest, needs.threads);
    plan.add(Component::Workspace, needs.beside.saturating_add(scratch));
    plan
}

/// What `auto` came to under a budget.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) sizes: Sizes,
    pub(crate) plan: MemoryPlan,
    /// Whether the plan is within the budget; if not, it is the smallest there is.
    pub(crate) fits: bool,
}

/// Settles `micro_batch_tokens` and `checkpointing` where they are `auto`: the fastest that fits into the budget, in
/// bytes, or the smallest; if that is too large, the optimizer's state is paged and then the layers' inputs, as far as their
/// settings leave it open. Without a budget everything fits.
pub(crate) fn choose(
    run: &RunFile,
    layers: usize,
    needs: Needs,
    budget: Option<u64>,
    plan: &dyn Fn(Sizes) -> MemoryPlan,
) -> Choice {
    let Demand { longest, step, .. } = needs.demand;
    let usual = USUAL_MICRO_BATCH.max(longest).min(step.max(1));
    let tokens: Vec<usize> = match run.training.micro_batch_tokens {
        MicroBatch::Tokens(n) => vec![n],
        MicroBatch::Auto => {
            let halves = std::iter::successors(Some(usual), |n| (n / 2 > longest).then_some(n / 2));
            halves.chain((usual > longest).then_some(longest)).collect()
        }
    };
    let offloading = run.training.activation_offloading;
    let bf16 = run.training.activation_precision.is_some();
    let least = Keeping { bf16, memory: offloading.memory(), ..Keeping::default() };
    // What is cheap to keep is kept, unless room is needed or less was asked for than this.
    let more = (least == Keeping::default()).then_some(Keeping { attention: true, ..least });
    let blocks = more.into_iter().chain([least]).map(Checkpointing::Block);
    let optimizer_memory = run.optimizer.memory.map(|b| b.0);
    let frozen_memory = run.training.frozen_activations.memory();
    let budget = budget.unwrap_or(u64::MAX);
    // The most tokens at once that fit, or the fewest.
    let with = |checkpointing| {
        let mut choices = tokens.iter().map(|&micro_batch_tokens| {
            let sizes = Sizes { micro_batch_tokens, checkpointing, optimizer_memory, frozen_memory };
            Choice::new(sizes, budget, plan)
        });
        let first = choices.next().expect("there is a size");
        if first.fits { first } else { choices.fold(first, |kept, next| if kept.fits { kept } else { next }) }
    };
    let policies: Vec<_> = match (run.training.checkpointing, more) {
        (run_file::Checkpointing::None, _) => vec![Checkpointing::None],
        (run_file::Checkpointing::Auto, Some(more)) => {
            // All layers, or as many as there is room for; one is kept in any case.
            let keeping = |mlp| Checkpointing::Block(Keeping { mlp, ..more });
            let counts: Vec<usize> = (2..layers).collect();
            let fitting = counts.partition_point(|&mlp| with(keeping(mlp)).fits);
            let partly = counts[..fitting].last().map(|&mlp| keeping(mlp));
            [Checkpointing::None].into_iter().chain(partly).chain(blocks).collect()
        }
        (run_file::Checkpointing::Auto | run_file::Checkpointing::Block, _) => blocks.collect(),
    };
    let mut choice = with(policies[0]);
    for policy in &policies[1..] {
        if !choice.fits {
            choice = with(*policy);
        }
    }
    if choice.fits {
        return choice.or_keeping_frozen(run, needs, budget, plan);
    }
    if optimizer_memory.is_none() {
        choice = choice.or_paged(budget, plan, Sizes::with_optimizer_memory);
    }
    if offloading == Offloading::Auto {
        choice = choice.or_paged(budget, plan, Sizes::with_activation_memory);
    }
    choice
}

impl Choice {
    fn new(sizes: Sizes, budget: u64, plan: &dyn Fn(Sizes) -> MemoryPlan) -> Self {
        let plan = plan(sizes);
        let fits = plan.total() <= budget;
        Choice { sizes, plan, fits }
    }

    /// The same with all that frozen layers give in memory, if that is left open, is known to be of use, and has room.
    fn or_keeping_frozen(
        self,
        run: &RunFile,
        needs: Needs,
        budget: u64,
        plan: &dyn Fn(Sizes) -> MemoryPlan,
    ) -> Self {
        if run.training.frozen_activations != Offloading::Auto || needs.repeated.is_none() {
            return self;
        }
        let all = Choice::new(Sizes { frozen_memory: Some(u64::MAX), ..self.sizes }, budget, plan);
        match all.plan.bytes(Component::FrozenActivations) {
            size if size > 0 && all.fits => {
                let frozen_memory = Some(size.max(SMALLEST));
                Choice { sizes: Sizes { frozen_memory, ..self.sizes }, ..all }
            }
            _ => self,
        }
    }

    /// The same with something paged, of which as much stays in memory as there is room for, if that lowers the need.
    fn or_paged(
        self,
        budget: u64,
        plan: &dyn Fn(Sizes) -> MemoryPlan,
        within: fn(Sizes, u64) -> Sizes,
    ) -> Self {
        if self.fits {
            return self;
        }
        let least = Choice::new(within(self.sizes, LEAST_PAGED), budget, plan);
        if least.plan.total() >= self.plan.total() {
            return self;
        }
        // Of the least, all but a page is held at any rate, and a page is a quarter of it at most.
        let more = LEAST_PAGED / 4 * 3;
        match budget.checked_sub(least.plan.total()) {
            Some(room) if room > LEAST_PAGED - more => {
                Choice::new(within(self.sizes, more + room), budget, plan)
            }
            _ => least,
        }
    }
}

/// Refuses to keep what frozen layers give where that is asked for and there is nothing to keep, or it would never be used.
pub(crate) fn check_frozen(
    settings: &Settings,
    config: &Config,
    layout: &Layout,
    repeated: Option<usize>,
) -> anyhow::Result<()> {
    let key = "training.frozen_activations";
    if settings.run.training.frozen_activations.memory().is_none() {
        return Ok(());
    }
    if layout.frozen_layers(config.layers) == 0 {
        let message = "is about layers below everything that is trained, and here the lowest layer or the embeddings are \
                       trained; choose higher layers by adapter.target_modules, or set it to auto";
        return Err(settings.refuse(key, message));
    }
    if repeated == Some(0) {
        let message = "is about examples that come again, and this run passes each of them once; raise training.epochs, or \
                       set it to auto";
        return Err(settings.refuse(key, message));
    }
    Ok(())
}

/// [`choose`] for a run that is to start here: within `memory`, or what is free.
///
/// # Errors
/// If nothing fits, with the smallest need and the settings that would lower it.
pub(crate) fn fit(
    run: &RunFile,
    config: &Config,
    stored: Option<&StoredWeights>,
    trained: &Trained,
    needs: Needs,
) -> anyhow::Result<(Sizes, MemoryPlan)> {
    // What is held already counts as part of the plan, so it is not free any more but ours.
    let free = || Some(available_memory()? + needs.beside);
    let budget = run.memory.map(|b| b.0).or_else(free);
    let choice = |run: &RunFile, trained: &Trained| {
        let longest = needs.demand.longest.min(run.data.max_length);
        let needs = Needs { demand: Demand { longest, ..needs.demand }, ..needs };
        let plan = |sizes| memory_plan(run, config, stored, trained, needs, sizes);
        choose(run, trained.layers(config), needs, budget, &plan)
    };
    let Choice { sizes, plan, fits } = choice(run, trained);
    if !fits {
        let smallest = |run: &RunFile| Some(choice(run, &self::trained(run, config, "").ok()?).plan);
        return Err(user(does_not_fit(run, &plan, budget.unwrap_or(0), needs, &smallest)));
    }
    Ok((sizes, plan))
}

/// Why nothing fits, with the smallest need, and what it would be under other settings, as `smallest` counts it.
pub(crate) fn does_not_fit(
    run: &RunFile,
    plan: &MemoryPlan,
    budget: u64,
    needs: Needs,
    smallest: &dyn Fn(&RunFile) -> Option<MemoryPlan>,
) -> String {
    let (mut hints, mut together) = (Vec::new(), run.clone());
    for (words, change) in savings(run, needs) {
        let mut other = run.clone();
        change(&mut other);
        let Some(saved) = smallest(&other).and_then(|less| saving(&words, plan, &less)) else { continue };
        hints.push(saved);
        change(&mut together);
    }
    if hints.len() > 1
        && let Some(all) = smallest(&together)
    {
        hints.push(format!("all of these to {}", bytes(all.total())));
    }
    refusal("the run", plan, run.memory, budget, hints)
}

/// What something needs, what there is, and what would lower the need.
fn refusal(
    what: &str,
    plan: &MemoryPlan,
    memory: Option<ByteSize>,
    budget: u64,
    mut hints: Vec<String>,
) -> String {
    let budget = bytes(budget);
    let limit = match memory {
        Some(_) => format!("`memory` allows only {budget}"),
        None => format!("only {budget} is free"),
    };
    hints.push("a smaller base model".to_owned());
    format!(
        "{what} needs {} at least ({}), but {limit}; what would lower it: {}",
        bytes(plan.total()),
        parts(plan),
        hints.join(", or ")
    )
}

/// That a change lowers the need, and to what, if it is worth a word.
fn saving(change: &str, plan: &MemoryPlan, less: &MemoryPlan) -> Option<String> {
    let (from, to) = (plan.total(), less.total());
    (to < from && bytes(to) != bytes(from)).then(|| format!("{change} to {}", bytes(to)))
}

/// The components of a plan with their sizes.
pub(crate) fn parts(plan: &MemoryPlan) -> String {
    let some = Component::ALL.iter().filter(|&&c| plan.bytes(c) > 0);
    some.map(|&c| format!("{} {}", c.name(), bytes(plan.bytes(c)))).collect::<Vec<_>>().join(", ")
}

/// A base that is used and not trained.
#[derive(Clone, Copy)]
pub(crate) struct Inference<'a> {
    pub(crate) config: &'a Config,
    pub(crate) stored: Option<&'a StoredWeights>,
    pub(crate) precision: Precision,
    pub(crate) quantization: Option<Format>,
    pub(crate) threads: usize,
}

impl Inference<'_> {
    /// The whole memory with these buffers, for sequences of so many tokens. What the process holds by now, such as an adapter, is
    /// part of it; the base's weights are not read yet.
    pub(crate) fn plan(self, buffers: &MemoryPlan, positions: usize) -> MemoryPlan {
        let Inference { config, stored, precision, quantization, threads } = self;
        let mut plan = Decoder::base_memory(config, stored, precision, quantization);
        plan.extend(buffers);
        plan.add(Component::Workspace, resident_memory() + scratch(config, precision, positions, threads));
        plan
    }

    /// The same with four bits for each weight, if it has more of them, and with 16 bits for each activation: what a person may
    /// choose, with what is to be written for it.
    pub(crate) fn smaller(self, quantization: &str, precision: &str) -> Vec<(String, Self)> {
        let mut smaller = Vec::new();
        if self.quantization.is_none() && self.config.quantization.is_none() {
            smaller.push((quantization.to_owned(), Inference { quantization: Some(Format::QLORA), ..self }));
        }
        if self.precision == Precision::F32 {
            smaller.push((precision.to_owned(), Inference { precision: Precision::Bf16, ..self }));
        }
        smaller
    }
}

/// Refuses what does not fit into `memory`, or what is free. `others`: what else could be done, in words, and its plan.
pub(crate) fn check_memory(
    what: &str,
    plan: &MemoryPlan,
    memory: Option<ByteSize>,
    others: impl FnOnce() -> Vec<(String, MemoryPlan)>,
) -> anyhow::Result<()> {
    let free = || Some(available_memory()? + resident_memory());
    match memory.map(|memory| memory.0).or_else(free) {
        Some(budget) if plan.total() > budget => {
            let hints = others().iter().filter_map(|(words, less)| saving(words, plan, less)).collect();
            Err(user(refusal(what, plan, memory, budget, hints)))
        }
        _ => Ok(()),
    }
}

type Change = Box<dyn Fn(&mut RunFile)>;

/// Settings that may need less memory, in words, with what each changes.
fn savings(run: &RunFile, needs: Needs) -> Vec<(String, Change)> {
    use run_file::OptimizerName::{Adamw, Adamw8bit, PagedAdamw, PagedAdamw8bit};
    let mut savings: Vec<(String, Change)> = Vec::new();
    let mut add = |words: String, change: Change| savings.push((words, change));
    let lora = run.adapter.method != Method::Full;
    if run.training.checkpointing == run_file::Checkpointing::None {
        let block = |run: &mut RunFile| run.training.checkpointing = run_file::Checkpointing::Block;
        add("training.checkpointing: block".into(), Box::new(block));
    }
    if let MicroBatch::Tokens(_) = run.training.micro_batch_tokens {
        let auto = |run: &mut RunFile| run.training.micro_batch_tokens = MicroBatch::Auto;
        add("training.micro_batch_tokens: auto".into(), Box::new(auto));
    }
    if run.training.activation_offloading != Offloading::Auto {
        let auto = |run: &mut RunFile| run.training.activation_offloading = Offloading::Auto;
        add("training.activation_offloading: auto".into(), Box::new(auto));
    }
    if run.training.frozen_activations.memory().is_some() {
        let auto = |run: &mut RunFile| run.training.frozen_activations = Offloading::Auto;
        add("training.frozen_activations: auto".into(), Box::new(auto));
    }
    if run.precision == run_file::Precision::F32 {
        add("precision: bf16".into(), Box::new(|run| run.precision = run_file::Precision::Bf16));
    }
    if run.quantization.is_none() && lora {
        add("quantization: nf4".into(), Box::new(|run| run.quantization = Some(Quantization::NF4)));
    }
    if needs.demand.longest > 256 {
        let half = needs.demand.longest / 2;
        add(format!("data.max_length: {half}"), Box::new(move |run| run.data.max_length = half));
    }
    if run.optimizer.memory.is_some() {
        add("optimizer.memory: null".into(), Box::new(|run| run.optimizer.memory = None));
    }
    let narrow = match run.optimizer.name {
        Adamw => Some(("adamw_8bit", Adamw8bit)),
        PagedAdamw => Some(("paged_adamw_8bit", PagedAdamw8bit)),
        _ => None,
    };
    if let Some((word, name)) = narrow {
        add(format!("optimizer.name: {word}"), Box::new(move |run| run.optimizer.name = name));
    }
    if run.adapter.r > 1 && lora {
        let half = run.adapter.r / 2;
        add(format!("adapter.r: {half}"), Box::new(move |run| run.adapter.r = half));
    }
    savings
}

/// Memory that this process holds now, in bytes; what a bare process holds where the system does not tell.
pub(crate) fn resident_memory() -> u64 {
    proc_size("/proc/self/status", "VmRSS:").unwrap_or(BARE_PROCESS)
}

/// Memory that the system could give now, in bytes.
pub(crate) fn available_memory() -> Option<u64> {
    proc_size("/proc/meminfo", "MemAvailable:")
}

/// A size that Linux tells in KiB, in bytes.
fn proc_size(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
