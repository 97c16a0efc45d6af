//! What runs that train together over one base need of the memory, and how many of them fit.

use model::memory::{Component, MemoryPlan};
use model::{Checkpointing, Config, Decoder, Keeping, StoredWeights};
use train::{OptimizerSettings, Planned, Together};

use super::memory::{Needs, Sizes, USUAL_MICRO_BATCH, scratch};
use super::{Trained, available_memory, optimizer, quantization};
use crate::run_file::{self, Method, RunFile};

/// A run that may train with others, as far as memory is concerned.
#[derive(Clone, Copy)]
pub(crate) struct Beside<'a> {
    pub(crate) run: &'a RunFile,
    pub(crate) trained: &'a Trained,
    pub(crate) needs: Needs,
    /// What it came to alone: how its own examples are cut does not change in company.
    pub(crate) sizes: Sizes,
}

/// Runs that fit into the memory together.
#[derive(Clone, Debug)]
pub(crate) struct Company {
    /// How many, from the first on.
    pub(crate) runs: usize,
    pub(crate) together: Together,
    /// None of a run alone, which was planned before.
    pub(crate) plan: Option<MemoryPlan>,
}

/// The memory that a run may have, in bytes; none if nobody knows.
pub(crate) fn budget(run: &RunFile, beside: u64) -> Option<u64> {
    run.memory.map(|memory| memory.0).or_else(|| Some(available_memory()? + beside))
}

/// What runs over a base must have in common to train together, in words.
pub(crate) fn company_of(run: &RunFile) -> String {
    let training = &run.training;
    let base = (run.precision, &run.quantization, run.memory);
    let how = (training.checkpointing, training.activation_offloading, training.activation_precision);
    serde_json::to_string(&(base, how, training.quantization_aware)).expect("settings are plain data")
}

/// Whether a run leaves the base as others have it, and begins apart from it.
pub(crate) fn leaves_base(run: &RunFile) -> bool {
    run.adapter.method != Method::Full && !run.adapter.init.engine().decomposes()
}

impl Company {
    /// As many of these runs, from the first on, as fit into the budget together: one at least.
    pub(crate) fn fitting(
        config: &Config,
        stored: Option<&StoredWeights>,
        runs: &[Beside<'_>],
        budget: Option<u64>,
    ) -> Self {
        let budget = budget.unwrap_or(u64::MAX);
        let of = |count: usize| {
            let mut plans = choices(&runs[..count])
                .into_iter()
                .map(|together| (together, plan(config, stored, &runs[..count], together)));
            plans.find(|(_, plan)| plan.total() <= budget)
        };
        // Each run more needs more.
        let counts: Vec<usize> = (2..=runs.len()).collect();
        let most = counts.partition_point(|&count| of(count).is_some()) + 1;
        if let Some((together, plan)) = Some(most).filter(|most| *most > 1).and_then(of) {
            return Company { runs: most, together, plan: Some(plan) };
        }
        let Sizes { micro_batch_tokens, checkpointing, .. } = runs[0].sizes;
        Company { runs: 1, together: Together { tokens: micro_batch_tokens, checkpointing }, plan: None }
    }
}

/// The buffers that runs may have together, the fastest first.
fn choices(runs: &[Beside<'_>]) -> Vec<Together> {
    let Beside { run, sizes, .. } = runs[0];
    let alone = runs.iter().map(|beside| beside.sizes.micro_batch_tokens).max().unwrap_or(1);
    let mut policies = vec![sizes.checkpointing];
    if run.training.checkpointing != run_file::Checkpointing::None {
        // What is rounded and what is paged stays so.
        let least = match sizes.checkpointing {
            Checkpointing::None => Keeping::default(),
            Checkpointing::Block(keeping) => Keeping { attention: false, mlp: 0, ..keeping },
        };
        let more = Keeping { attention: least == Keeping::default(), ..least };
        policies.extend([more, least].map(Checkpointing::Block));
    }
    let tokens = [USUAL_MICRO_BATCH.max(alone), alone];
    let with = |checkpointing| tokens.map(|tokens| Together { tokens, checkpointing });
    policies.into_iter().flat_map(with).collect()
}

/// The whole memory of these runs: one base, and the adapter, the gradients and the moments of each.
fn plan(
    config: &Config,
    stored: Option<&StoredWeights>,
    runs: &[Beside<'_>],
    together: Together,
) -> MemoryPlan {
    let (run, precision) = (runs[0].run, runs[0].run.precision.engine());
    let alone = |beside: &Beside<'_>| {
        let Sizes { micro_batch_tokens, checkpointing, .. } = beside.sizes;
        beside.needs.demand.extent(micro_batch_tokens, checkpointing, precision)
    };
    let planned: Vec<Planned<'_>> = runs
        .iter()
        .map(|&Beside { run, trained, sizes, .. }| {
            let optimizer = OptimizerSettings { memory: sizes.optimizer_memory, ..optimizer(run) };
            Planned { layout: &trained.layout, dropout: trained.dropout, optimizer }
        })
        .collect();
    let extent = together.extent(runs.iter().map(alone));
    let mut plan = Decoder::base_memory(config, stored, precision, quantization(run));
    plan.extend(&train::memory_plan(config, &planned, extent, None));
    let beside = runs.iter().map(|beside| beside.needs.beside).max().unwrap_or(0);
    let scratch = scratch(config, precision, extent.positions, runs[0].needs.threads);
    plan.add(Component::Workspace, beside.saturating_add(scratch));
    plan
}

/// What decides a run's examples, in words.
pub(crate) fn data_of(run: &RunFile) -> String {
    let seed = run.data.eval_fraction.map(|_| run.training.seed);
    serde_json::to_string(&(&run.model, &run.data, seed)).expect("settings are plain data")
}
