//! What a run or a base that is used needs of the memory, and the settings that were left open so that it
//! fits.

use compute::Precision;
use compute::ops::matmul;
use compute::quant::Format;
use model::arena::SMALLEST;
use model::memory::{Component, MemoryPlan};
use model::{
    Checkpointing, Config, Decoder, FrozenActivations, FrozenExtent, Keeping, Layout, StoredWeights,
};
use train::{Demand, OptimizerSettings, Planned};

use super::{Trained, batch_size, epochs, max_length, optimizer, quantization, trained as trained_by};
use crate::error::user;
use crate::forgetting;
use crate::run_file::{self, ByteSize, Method, MicroBatch, Offloading, Quantization, RunFile, Settings};
use crate::terminal::bytes;

/// What a process holds before it reads anything.
const BARE_PROCESS: u64 = 8 << 20;
/// What a tokenizer holds for each token of its vocabulary, about.
const TOKENIZER_ENTRY: u64 = 800;
/// Tokens in memory at once, where there is room: more do not make products faster.
pub(super) const USUAL_MICRO_BATCH: usize = 1024;
/// What stays in memory at least of what is paged by itself.
const LEAST_PAGED: u64 = Offloading::LEAST.0;

/// What was left to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) micro_batch_tokens: usize,
    pub(crate) checkpointing: Checkpointing,
    /// Bytes of the optimizer's state that may be in memory, the rest being in a file. None: all of it.
    pub(crate) optimizer_memory: Option<u64>,
    /// Bytes that may be in memory of what frozen layers give, the rest being in a file. None: it is not
    /// kept.
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

/// What data and machine ask of the memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Tokens of the examples.
    pub(crate) demand: Demand,
    /// Tokens of the examples that come again. None: nobody has seen the data yet, there may be any number of
    /// them.
    pub(crate) repeated: Option<usize>,
    /// Bytes that the process holds beside the buffers of the plan: code, tokenizer, examples.
    pub(crate) beside: u64,
    /// Threads, each of which has scratch of its own.
    pub(crate) threads: usize,
}

impl Needs {
    /// For data that nobody has seen yet: every example as long as it may be, and a tokenizer of the usual
    /// size.
    pub(crate) fn expected(run: &RunFile, config: &Config, threads: usize) -> Self {
        let longest = max_length(run, Some(config));
        let step = longest.saturating_mul(batch_size(run));
        let beside = BARE_PROCESS + TOKENIZER_ENTRY * config.vocab_size as u64;
        let evaluates = run.data.eval.is_some() || run.data.eval_fraction.is_some();
        let again = epochs(run) > 1 || evaluates || run.data.sources().iter().any(|s| s.weight > 1.0);
        let compared = match (&run.training.forgetting_every, &run.training.forgetting_data) {
            (None, _) => 0,
            (Some(_), None) => forgetting::longest(config.max_position_embeddings),
            (Some(_), Some(_)) => longest,
        };
        let demand = Demand { longest, step, total: if evaluates { usize::MAX } else { step }, compared };
        Needs { demand, repeated: if again { None } else { Some(0) }, beside, threads }
    }
}

/// Scratch of the products and of attention over sequences of so many tokens.
pub(super) fn scratch(config: &Config, precision: Precision, positions: usize, threads: usize) -> u64 {
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
    let run = Planned { layout: &trained.layout, dropout: trained.dropout, optimizer };
    train::memory_plan(config, &[run], extent, frozen)
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
    let changed = Decoder::changed_memory(config, &trained.layout, stored, precision, quantization(run));
    plan.add(Component::Base, changed);
    plan.extend(&buffers(run, config, trained, needs, sizes));
    let scratch = scratch(config, precision, needs.demand.positions(), needs.threads);
    plan.add(Component::Workspace, needs.beside.saturating_add(scratch));
    // The loop's buffers are not there yet while weights are decomposed.
    let first = plan.bytes(Component::Base) + plan.bytes(Component::Adapter);
    let later = plan.total().saturating_sub(first);
    let decomposing = run.adapter.init.engine().memory(&trained.layout);
    plan.add(Component::Workspace, decomposing.saturating_sub(later));
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

/// Settles `micro_batch_tokens` and `checkpointing` where they are `auto`: the fastest that fits into the
/// budget, in bytes, or the smallest; if that is too large, the optimizer's state is paged and then the
/// layers' inputs, as far as their settings leave it open. Without a budget everything fits.
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

    /// The same with all that frozen layers give in memory, if that is left open, is known to be of use, and
    /// has room.
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

    /// The same with something paged, of which as much stays in memory as there is room for, if that lowers
    /// the need.
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

/// Refuses to keep what frozen layers give where that is asked for and there is nothing to keep, or it would
/// never be used.
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
    if FrozenActivations::layers_of(config, layout) == 0 {
        let message = "is not for layers with experts: what they give for an example depends, in its last \
                       bits, on what else is in the batch; set it to auto";
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
        let longest = needs.demand.longest.min(max_length(run, Some(config)));
        let needs = Needs { demand: Demand { longest, ..needs.demand }, ..needs };
        let plan = |sizes| memory_plan(run, config, stored, trained, needs, sizes);
        choose(run, trained.layers(config), needs, budget, &plan)
    };
    let Choice { sizes, plan, fits } = choice(run, trained);
    if !fits {
        let smallest = |run: &RunFile| Some(choice(run, &trained_by(run, config, "").ok()?).plan);
        return Err(user(does_not_fit(run, &plan, budget.unwrap_or(0), needs, &smallest)));
    }
    Ok((sizes, plan))
}

/// Why nothing fits, with the smallest need, and what it would be under other settings, as `smallest` counts
/// it.
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
    /// The whole memory with these buffers, for sequences of so many tokens. What the process holds by now,
    /// such as an adapter, is part of it; the base's weights are not read yet.
    pub(crate) fn plan(self, buffers: &MemoryPlan, positions: usize) -> MemoryPlan {
        let Inference { config, stored, precision, quantization, threads } = self;
        let mut plan = Decoder::base_memory(config, stored, precision, quantization);
        plan.extend(buffers);
        plan.add(Component::Workspace, resident_memory() + scratch(config, precision, positions, threads));
        plan
    }

    /// The same with four bits for each weight, if it has more of them, and with 16 bits for each activation:
    /// what a person may choose, with what is to be written for it.
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

/// Refuses what does not fit into `memory`, or what is free. `others`: what else could be done, in words, and
/// its plan.
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
        add(format!("data.max_length: {half}"), Box::new(move |run| run.data.max_length = Some(half)));
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
