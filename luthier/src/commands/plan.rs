//! `luthier plan`: counts parameters and memory before anything is loaded.
//!
//! The numbers are those that `train` allocates by, for examples as long as `data.max_length` allows. With
//! `--data` they are those of the examples themselves, and steps and time are told too.

use std::fmt::Write as _;
use std::process::ExitCode;

use model::adapter::parameters::{Dora, Trained as Part};
use model::adapter::peft::folder::AdapterFolder;
use model::memory::Component;
use model::shapes::{ModuleKind, ModuleShape, Shape};
use model::{Checkpointing, Config, ModuleId, StoredDType, StoredWeights};
use serde_json::{Map, Value, json};

use super::train::{Prepared, adopt_initial_adapter, line_of_time};
use crate::cli::{self, Global};
use crate::error::user;
use crate::run_file::{Purpose, RunFile, Settings};
use crate::setup::{self, Base, Choice, Needs};
use crate::terminal::{self, Table, bytes, count, times, times_fewer};

pub(super) fn run(args: cli::Plan, global: &Global) -> anyhow::Result<ExitCode> {
    let mut settings = args.run.settings()?;
    settings.validate(Purpose::Other)?;
    if let (Some(shape), Some(_)) = (&args.shape, &settings.run.adapter.init_from) {
        let problem =
            "an adapter is of one model, which a shape is not; leave it out, or name the model by --model";
        return Err(user(format!("`adapter.init_from` and --shape {shape}: {problem}")));
    }
    let model = settings.run.model.clone().filter(|_| args.shape.is_none());
    let base = model.map(|model| Base::open(&model)).transpose()?;
    let initial = match &base {
        Some(base) => adopt_initial_adapter(&mut settings, base)?,
        None => None,
    };
    if !args.run.data.is_empty() {
        return with_data(args, settings, base, initial, global);
    }
    let (run, threads) = (&settings.run, global.threads());
    let check = |config: &Config, name: &str| {
        setup::check_model(&settings, config)?;
        let (trained, needs) = (setup::trained(run, config, name)?, Needs::expected(run, config, threads));
        setup::check_frozen(&settings, config, &trained.layout, needs.repeated)
    };
    let look: Look<'_> = match (&args.shape, base) {
        // A shape is no model of this machine: without a budget it is planned without a limit.
        (Some(shape), _) => {
            let (config, budget) = (Config::named(shape)?, run.memory.map(|m| m.0));
            check(&config, shape)?;
            Box::new(move |run| {
                let needs = Needs::expected(run, &config, threads);
                Outlook::of_model(run, shape, &config, Some(&StoredDType::Bf16.into()), budget, needs)
            })
        }
        (None, Some(base)) => {
            base.files.check_quantization(setup::quantization(run))?;
            if let Some(weights) = &base.files.checkpoint {
                weights.check(&base.config)?;
            }
            check(&base.config, &base.name)?;
            let budget = run.memory.map(|m| m.0).or_else(setup::available_memory);
            Box::new(move |run| {
                let needs = Needs::expected(run, &base.config, threads);
                Outlook::of_model(run, &base.name, &base.config, base.stored.as_ref(), budget, needs)
            })
        }
        (None, None) => {
            let message = "nothing to plan: name a model by --model or in the run file, or a known shape by --shape, such \
                           as --shape llama-3.1-8b";
            return Err(user(message));
        }
    };
    let outlook = look(run)?;
    match args.json {
        true => terminal::print_json(&outlook.json(run))?,
        false => terminal::print_line(outlook.text(run))?,
    }
    match outlook.budget {
        Some(budget) if !outlook.choice.fits => {
            let smallest = |run: &RunFile| Some(look(run).ok()?.choice.plan);
            Err(user(setup::does_not_fit(run, &outlook.choice.plan, budget, outlook.needs, &smallest)))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Plans a run whose examples are at hand, and measures its time.
fn with_data(
    args: cli::Plan,
    settings: Settings,
    base: Option<Base>,
    initial: Option<AdapterFolder>,
    global: &Global,
) -> anyhow::Result<ExitCode> {
    let Some(base) = base else {
        let message =
            "--data: steps and time need a model, by --model or in the run file; a shape has no tokenizer";
        return Err(user(message));
    };
    let prepared = Prepared::new(settings, base, initial, None, global)?;
    prepared.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    let (run, base) = (&prepared.settings.run, &prepared.base);
    let budget = run.memory.map(|m| m.0).or_else(setup::available_memory);
    let outlook =
        Outlook::of_model(run, &base.name, &base.config, base.stored.as_ref(), budget, prepared.needs)?;
    let time = prepared.time(global)?;
    if args.json {
        let mut all = outlook.json(run);
        all["run"] = prepared.json(time);
        terminal::print_json(&all)?;
    } else {
        terminal::print_line(outlook.text(run))?;
        terminal::print_line("")?;
        prepared.lines_of_data().iter().try_for_each(terminal::print_line)?;
        terminal::print_line(line_of_time(time))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of the model at hand under these settings.
type Look<'a> = Box<dyn Fn(&RunFile) -> anyhow::Result<Outlook> + 'a>;

/// What is trained on a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Update {
    Frozen,
    /// A low-rank update of this rank.
    LowRank(usize),
    /// The same, and a magnitude for each row.
    LowRankAndMagnitudes(usize),
    Whole,
}

/// All that is known before a run.
struct Outlook {
    shape: Shape,
    /// What is trained on each of the shape's modules.
    updates: Vec<Update>,
    family: &'static str,
    parameters: u64,
    trainable: u64,
    /// That the backward pass comes to.
    layers: usize,
    needs: Needs,
    choice: Choice,
    budget: Option<u64>,
}

impl Outlook {
    fn of_model(
        run: &RunFile,
        name: &str,
        config: &Config,
        stored: Option<&StoredWeights>,
        budget: Option<u64>,
        needs: Needs,
    ) -> anyhow::Result<Self> {
        let trained = setup::trained(run, config, name)?;
        let plan = |sizes| setup::memory_plan(run, config, stored, &trained, needs, sizes);
        let choice = setup::choose(run, trained.layers(config), needs, budget, &plan);
        let mut shape = Shape::of(name, config);
        if trained.layout.rank(ModuleId::Head) > 0 && config.tie_word_embeddings {
            // A tied head has no weight of its own, but an update of its own.
            let (path, kind) = (config.path(ModuleId::Head), ModuleKind::Head);
            let (rows, cols) = (config.vocab_size, config.hidden_size);
            shape.modules.push(ModuleShape { path, kind, rows, cols, bias: 0 });
        }
        let update = |module: &ModuleShape| match config
            .names
            .parse(&module.path)
            .and_then(|id| trained.layout.get(id))
        {
            None => Update::Frozen,
            Some(Part::Lora(lora)) => Update::LowRank(lora.rank),
            Some(Part::Dora(Dora { lora, .. })) => Update::LowRankAndMagnitudes(lora.rank),
            Some(Part::Full(_)) => Update::Whole,
        };
        Ok(Outlook {
            updates: shape.modules.iter().map(update).collect(),
            shape,
            family: config.family.model_type(),
            parameters: config.parameter_count(),
            trainable: trained.layout.len() as u64,
            layers: trained.layers(config),
            needs,
            choice,
            budget,
        })
    }

    fn json(&self, run: &RunFile) -> Value {
        let plan = &self.choice.plan;
        let components: Map<String, Value> =
            COMPONENTS.into_iter().map(|c| (c.name().to_owned(), plan.bytes(c).into())).collect();
        json!({
            "name": self.shape.name,
            "family": self.family,
            "parameters": self.parameters,
            "trainable_parameters": self.trainable,
            "trainable_percent": 100.0 * self.trainable as f64 / self.parameters as f64,
            "times_fewer": self.parameters as f64 / self.trainable as f64,
            "bytes": components,
            "total_bytes": plan.total(),
            "budget_bytes": self.budget,
            "fits": self.choice.fits,
            "micro_batch_tokens": self.choice.sizes.micro_batch_tokens,
            "checkpointing": checkpointing_name(self.choice.sizes.checkpointing),
            "layers_computed_again": self.choice.sizes.computed_again(self.layers),
            "optimizer_memory_bytes": self.choice.sizes.optimizer_memory,
            "activation_memory_bytes": self.choice.sizes.activation_memory(),
            "frozen_activation_memory_bytes": self.choice.sizes.frozen_memory,
            "max_length": self.needs.demand.longest,
            "batch_size": setup::batch_size(run),
            "modules": module_rows(&self.shape, &self.updates).iter().map(ModuleRow::json).collect::<Vec<_>>(),
        })
    }

    fn text(&self, run: &RunFile) -> String {
        let (all, plan) = (self.parameters, &self.choice.plan);
        let mut text = format!(
            "{}: {}, {} parameters; trained {} ({}), {}\n\n{}\n\n{LORA_ARITHMETIC}\n\n",
            self.shape.name,
            self.family,
            count(all as f64),
            count(self.trainable as f64),
            percent(self.trainable, all),
            times_fewer(all as f64, self.trainable.max(1) as f64),
            module_table(&self.shape, &self.updates),
        );
        let mut table = Table::new(["memory", "", "bytes"]);
        for component in COMPONENTS.into_iter().filter(|&c| plan.bytes(c) > 0) {
            let size = plan.bytes(component);
            table.row([component.name().to_owned(), bytes(size), size.to_string()]);
        }
        table.row(["total".to_owned(), bytes(plan.total()), plan.total().to_string()]);
        let sizes = self.choice.sizes;
        write!(
            text,
            "{table}\n\na step of {}{} x {} tokens, {} in memory at once, checkpointing {}{}{}",
            if run.training.batch_size.is_none() { "at most " } else { "" },
            setup::batch_size(run),
            self.needs.demand.longest,
            sizes.micro_batch_tokens,
            checkpointing_name(sizes.checkpointing),
            sizes.computed_again_words(self.layers).map_or(String::new(), |words| format!(" ({words})")),
            self.budget_words(run)
        )
        .expect("writing to a string");
        if let Some(paging) = sizes.paging() {
            write!(text, "\n{paging}").expect("writing to a string");
        }
        if let Some(kept) = sizes.kept() {
            write!(text, "\nkept: {kept}").expect("writing to a string");
        }
        text
    }

    fn budget_words(&self, run: &RunFile) -> String {
        let Some(budget) = self.budget else { return String::new() };
        let whose = if run.memory.is_some() { "allowed" } else { "free here" };
        let verdict = if self.choice.fits { "fits" } else { "does not fit" };
        format!(": {verdict} into the {} that are {whose}", bytes(budget))
    }
}

/// What a plan of training has; a cache belongs to generation.
const COMPONENTS: [Component; 7] = [
    Component::Base,
    Component::Adapter,
    Component::Gradients,
    Component::Optimizer,
    Component::Activations,
    Component::FrozenActivations,
    Component::Workspace,
];

/// How few parameters a low-rank update has, with the example of the paper's readers.
pub(super) const LORA_ARITHMETIC: &str = "\
An update of rank r of an out x in layer trains r x (out + in) values in place of out x in:
a 200 x 200 layer at r = 2 trains 800 instead of 40,000, 50 times fewer.";

pub(super) fn checkpointing_name(checkpointing: Checkpointing) -> &'static str {
    match checkpointing {
        Checkpointing::None => "none",
        Checkpointing::Block(_) => "block",
    }
}

fn trained_parameters(module: &ModuleShape, update: Update) -> u64 {
    match update {
        Update::Frozen => 0,
        Update::LowRank(rank) => module.lora_parameters(rank),
        Update::LowRankAndMagnitudes(rank) => module.lora_parameters(rank) + module.rows as u64,
        Update::Whole => module.parameters(),
    }
}

/// Modules of one name, size and update.
pub(super) struct ModuleRow<'a> {
    name: String,
    of: &'a ModuleShape,
    update: Update,
    number: usize,
}

impl ModuleRow<'_> {
    fn trained(&self) -> u64 {
        trained_parameters(self.of, self.update)
    }

    fn rank(&self) -> Option<usize> {
        match self.update {
            Update::LowRank(rank) | Update::LowRankAndMagnitudes(rank) => Some(rank),
            Update::Frozen | Update::Whole => None,
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.name,
            "count": self.number,
            "out": self.of.rows,
            "in": self.of.cols,
            "parameters": self.of.parameters(),
            "r": self.rank(),
            "trainable_parameters": self.trained(),
        })
    }
}

/// The shape's modules, those alike in one row.
pub(super) fn module_rows<'a>(shape: &'a Shape, updates: &[Update]) -> Vec<ModuleRow<'a>> {
    let mut rows: Vec<ModuleRow<'_>> = Vec::new();
    for (name, indices) in shape.groups() {
        let first = rows.len();
        for index in indices {
            let update = updates[index];
            match rows[first..].iter_mut().find(|row| row.update == update) {
                Some(row) => row.number += 1,
                None => {
                    rows.push(ModuleRow { name: name.clone(), of: &shape.modules[index], update, number: 1 })
                }
            }
        }
    }
    rows
}

/// A row for modules that are alike; the numbers are those of one of them, the last column of all.
pub(super) fn module_table(shape: &Shape, updates: &[Update]) -> Table {
    let header = ["module", "number", "out x in", "parameters", "r", "trained", "times fewer", "all trained"];
    let mut table = Table::new(header);
    for row in module_rows(shape, updates) {
        let (full, trained) = (row.of.parameters(), row.trained());
        let or_empty = |text: String| if trained > 0 { text } else { String::new() };
        let size = match row.of.kind {
            ModuleKind::Vector => row.of.cols.to_string(),
            _ => format!("{} x {}", row.of.rows, row.of.cols),
        };
        table.row([
            row.name.clone(),
            row.number.to_string(),
            size,
            count(full as f64),
            row.rank().map_or(String::new(), |r| r.to_string()),
            or_empty(count(trained as f64)),
            or_empty(times(full as f64, trained as f64)),
            or_empty(count((trained * row.number as u64) as f64)),
        ]);
    }
    table
}

fn percent(some: u64, all: u64) -> String {
    let percent = 100.0 * some as f64 / all as f64;
    if percent < 0.1 { format!("{percent:.4} %") } else { format!("{percent:.2} %") }
}
