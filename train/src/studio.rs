//! Models over one base that are trained a request at a time: gradients add up until a step is asked for,
//! with the step's own settings.
//!
//! A model is an adapter, its gradients and its moments, all in memory. Requests of several models pass
//! through the base together, a group each, and come to what they come to alone, to the byte: how a request's
//! examples are cut into micro-batches does not depend on who else passes. Products go by tiles
//! ([`Run::by_tiles`]), so a token's log-probability is the one that an engine with `Sums::Tiles` sampled it
//! with, to the bit.

mod error;
mod objective;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use compute::Precision;
use compute::ops::{copy, reduce};
use model::adapter::init::Init;
use model::adapter::peft::targets;
use model::adapter::peft::{PeftConfig, Selection};
use model::checkpoint::{Staging, write_whole};
use model::config::Mlp;
use model::memory::{Allocator, Component, MemoryPlan};
use model::{
    Activations, Adapter, Batch, Checkpointing, Config, Decoder, Extent, Group, Keeping, Layout, ModuleId,
    Parameters, Part, Purpose, Run, Target,
};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::optimizer::{Optimizer, OptimizerSettings, Rule};
use crate::saving::Saving;
use crate::sums;

pub use error::StudioError;
pub use objective::Objective;

/// The numerator of an update's scale, whatever the rank: the services that clients of this kind know have it
/// so, and one learning rate then fits all ranks.
const ALPHA: f64 = 32.0;
/// Beside the tensors and the moments: the number of steps.
const STATE_FILE: &str = "state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

type Result<T, E = StudioError> = std::result::Result<T, E>;

/// The sizes of a studio.
#[derive(Clone, Copy, Debug)]
pub struct StudioExtent {
    /// The most tokens of a pass, and of an example.
    pub tokens: usize,
    /// The largest rank of a model.
    pub max_rank: usize,
    /// Bytes that adapters, gradients and moments of all models may take.
    pub memory: u64,
}

/// What a model is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSettings {
    /// Its rank.
    pub rank: usize,
    /// Decides how it begins.
    pub seed: u64,
    /// Whether the layers of attention are trained,
    pub attention: bool,
    /// those of the MLP, experts included,
    pub mlp: bool,
    /// and the output head.
    pub head: bool,
}

/// One example: `targets[i]` is what is to follow `ids[i]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sequence {
    /// Tokens that are read.
    pub ids: Vec<u32>,
    /// A target for each.
    pub targets: Vec<u32>,
    /// What each target counts.
    pub weights: Vec<f32>,
    /// Of a policy's objective: log-probabilities of the targets when they were sampled.
    pub sampled: Vec<f32>,
    /// The same: their advantages.
    pub advantages: Vec<f32>,
}

/// A request for a pass.
#[derive(Clone, Debug)]
pub struct Work {
    /// Of which model.
    pub model: String,
    /// Its examples.
    pub examples: Vec<Sequence>,
    /// What is minimized.
    pub objective: Objective,
    /// Whether gradients are added up; else only losses are computed.
    pub backward: bool,
}

/// What a pass came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passed {
    /// The sum of the losses of all targets.
    pub loss: f64,
    /// Log-probabilities of each example's targets.
    pub logprobs: Vec<Vec<f32>>,
}

/// How a step is made, by AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// The learning rate.
    pub learning_rate: f64,
    /// Decays of the moments, from 0 to below 1.
    pub betas: [f64; 2],
    /// Above 0.
    pub eps: f64,
    /// Decoupled decay of the weights.
    pub weight_decay: f64,
    /// Gradients longer than this are scaled down to it; 0: never.
    pub clip: f64,
}

impl StepSettings {
    fn optimizer(self) -> OptimizerSettings {
        OptimizerSettings {
            rule: Rule::AdamW { betas: self.betas, eps: self.eps },
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            max_grad_norm: self.clip,
            lora_plus_ratio: 1.0,
            memory: None,
        }
    }
}

/// Any settings: the moments are the same whatever they are.
const ANY_STEP: StepSettings =
    StepSettings { learning_rate: 0.0, betas: [0.9, 0.95], eps: 1e-12, weight_decay: 0.0, clip: 0.0 };

/// What a checkpoint says beside its tensors.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Steps done.
    step: u64,
}

/// A model in training.
#[derive(Debug)]
struct Model {
    adapter: Adapter,
    peft: PeftConfig,
    gradients: Parameters,
    optimizer: Optimizer,
    step: u64,
    bytes: u64,
}

/// Models in training over one base.
#[derive(Debug)]
pub struct Studio {
    decoder: Arc<Decoder>,
    /// What the base is called in what is saved.
    base: String,
    extent: StudioExtent,
    buffers: Activations,
    models: BTreeMap<String, Model>,
}

/// A request on its way through passes.
struct Underway {
    place: usize,
    work: Work,
    model: Model,
    /// Micro-batches that are still to pass, each with the examples in it.
    batches: VecDeque<(Batch, std::ops::Range<usize>)>,
    passed: Passed,
    failed: Option<StudioError>,
}

impl Studio {
    /// A studio without models, with the buffers of its passes.
    ///
    /// # Errors
    /// If nothing of the base can be trained.
    pub fn new(decoder: Arc<Decoder>, base: &str, extent: StudioExtent) -> Result<Self> {
        let mut allocator = Allocator::real(&decoder.device);
        let buffers = buffers(&decoder.config, decoder.precision, extent, &mut allocator)?;
        Ok(Studio { decoder, base: base.to_owned(), extent, buffers, models: BTreeMap::new() })
    }

    /// The memory that [`Studio::new`] asks for, and what its models may take.
    ///
    /// # Errors
    /// As [`Studio::new`].
    pub fn memory_plan(config: &Config, precision: Precision, extent: StudioExtent) -> Result<MemoryPlan> {
        let mut planning = Allocator::planning();
        buffers(config, precision, extent, &mut planning)?;
        planning.count(Component::Optimizer, extent.memory);
        Ok(planning.into_plan())
    }

    /// Makes a model that begins as the base.
    ///
    /// # Errors
    /// If the base has none of the modules, the rank is 0 or above [`StudioExtent::max_rank`], or there is no
    /// memory for it.
    pub fn create(&mut self, id: &str, settings: ModelSettings) -> Result<()> {
        let rank = settings.rank;
        if rank == 0 || rank > self.extent.max_rank {
            let most = self.extent.max_rank;
            return Err(StudioError::Settings(format!("the rank may be 1 to {most} here, and is {rank}")));
        }
        let config = &self.decoder.config;
        let (layout, peft) = settled(config, settings, &self.base)?;
        let mut planning = Allocator::planning();
        Adapter::count(&layout, &mut planning);
        Parameters::zeros(&layout, Component::Gradients, &mut planning);
        Optimizer::new(ANY_STEP.optimizer(), &layout, &mut planning);
        let (needed, memory) = (planning.into_plan().total(), self.extent.memory);
        let used = self.used();
        if needed > memory.saturating_sub(used) {
            return Err(StudioError::NoRoom { rank, needed, used, memory });
        }
        let mut allocator = Allocator::real(&self.decoder.device);
        let gradients = Parameters::zeros(&layout, Component::Gradients, &mut allocator);
        let optimizer = Optimizer::new(ANY_STEP.optimizer(), &layout, &mut allocator);
        let mut adapter = Adapter::zeros(layout, 0.0, &self.decoder.device);
        adapter.initialize(Init::Default, settings.seed, &self.decoder);
        let model = Model { adapter, peft, gradients, optimizer, step: 0, bytes: needed };
        self.models.insert(id.to_owned(), model);
        Ok(())
    }

    /// Lets go of a model, if it is there.
    pub fn remove(&mut self, id: &str) {
        self.models.remove(id);
    }

    /// Bytes that the models take.
    pub fn used(&self) -> u64 {
        self.models.values().map(|model| model.bytes).sum()
    }

    fn model(&mut self, id: &str) -> Result<&mut Model> {
        self.models.get_mut(id).ok_or_else(|| StudioError::Unknown(id.to_owned()))
    }

    /// Passes for several requests at once, of one model each; the results in their order. What comes of a
    /// request does not depend on those beside it. One that fails midway drops its model's gradients.
    ///
    /// # Panics
    /// If two requests are of the same model.
    pub fn pass(&mut self, works: Vec<Work>) -> Vec<Result<Passed>> {
        let mut results: Vec<Option<Result<Passed>>> = works.iter().map(|_| None).collect();
        let mut underway = Vec::new();
        for (place, work) in works.into_iter().enumerate() {
            match self.begin(place, work) {
                Ok(begun) => underway.push(begun),
                Err(error) => results[place] = Some(Err(error)),
            }
        }
        for backward in [false, true] {
            while self.pass_some(&mut underway, backward) {}
        }
        for Underway { place, work, mut model, passed, failed, .. } in underway {
            if failed.is_some() && work.backward {
                copy::fill(&self.decoder.device, model.gradients.values_mut(), 0.0);
            }
            self.models.insert(work.model, model);
            results[place] = Some(failed.map_or(Ok(passed), Err));
        }
        results.into_iter().map(|result| result.expect("every request has ended")).collect()
    }

    /// Takes up a request whose examples can be computed; its model is out of the list until it has ended.
    fn begin(&mut self, place: usize, work: Work) -> Result<Underway> {
        if let Objective::Ppo { clip: [low, high] } | Objective::Cispo { clip: [low, high] } = work.objective
        {
            let is_range = low <= high;
            if !is_range {
                let problem =
                    format!("ratios are clipped to a range from low to high, not from {low} to {high}");
                return Err(StudioError::Settings(problem));
            }
        }
        for (index, example) in work.examples.iter().enumerate() {
            self.check(example, work.objective).map_err(|problem| StudioError::Example { index, problem })?;
        }
        let model =
            self.models.remove(&work.model).ok_or_else(|| StudioError::Unknown(work.model.clone()))?;
        let batches = micro_batches(&work.examples, self.extent.tokens);
        Ok(Underway { place, work, model, batches, passed: Passed::default(), failed: None })
    }

    fn check(&self, example: &Sequence, objective: Objective) -> Result<(), String> {
        let Sequence { ids, targets, weights, sampled, advantages } = example;
        let (most, vocabulary) = (self.extent.tokens, self.decoder.config.vocab_size);
        if ids.is_empty() || ids.len() > most {
            return Err(format!("it may have 1 to {most} tokens here, and has {}", ids.len()));
        }
        let unknown = |token: &&u32| **token as usize >= vocabulary;
        if let Some(token) = ids.iter().chain(targets).find(unknown) {
            return Err(format!("there is no token {token} in a vocabulary of {vocabulary}"));
        }
        let of_policy = if objective.is_of_policy() { ids.len() } else { 0 };
        for (what, found, needed) in [
            ("targets", targets.len(), ids.len()),
            ("weights", weights.len(), ids.len()),
            ("log-probabilities", sampled.len(), of_policy),
            ("advantages", advantages.len(), of_policy),
        ] {
            if found != needed {
                return Err(format!("it has {} tokens and {found} {what}", ids.len()));
            }
        }
        match weights.iter().chain(sampled).chain(advantages).find(|number| !number.is_finite()) {
            Some(number) => Err(format!("a weight, log-probability or advantage is {number}")),
            None => Ok(()),
        }
    }

    /// One pass of as many requests as there is room for, all with gradients or all without. Whether there
    /// was anything to do.
    fn pass_some(&mut self, underway: &mut [Underway], backward: bool) -> bool {
        let (mut members, mut tokens) = (Vec::new(), 0);
        for request in underway.iter_mut().filter(|request| request.work.backward == backward) {
            let Some((next, _)) = request.batches.front() else { continue };
            if request.failed.is_none() && tokens + next.tokens() <= self.extent.tokens {
                tokens += next.tokens();
                members.push(request);
            }
        }
        if members.is_empty() {
            return false;
        }
        if let Err(error) = self.pass_together(&mut members) {
            let told = error.to_string();
            for request in members {
                let failed = TrainError::Beside { cause: told.clone() };
                request.failed.get_or_insert(failed.into());
            }
        }
        true
    }

    /// The next micro-batch of each of these requests.
    fn pass_together(&mut self, members: &mut [&mut Underway]) -> Result<()> {
        let Studio { decoder, buffers, .. } = self;
        let (mut batch, mut rows, mut examples) = (Batch::new(), Vec::new(), Vec::new());
        for request in members.iter_mut() {
            let (next, range) = request.batches.pop_front().expect("it was looked at");
            let start = batch.tokens();
            batch.append(&next);
            rows.push(start..batch.tokens());
            examples.push(range);
        }
        let backward = members[0].work.backward;
        let mut losses = vec![0.0; batch.targets.len()];
        let mut gradients: Vec<Parameters> = Vec::new();
        if backward {
            for request in members.iter_mut() {
                let none =
                    Parameters::zeros(&Layout::default(), Component::Gradients, &mut Allocator::planning());
                gradients.push(std::mem::replace(&mut request.model.gradients, none));
            }
        }
        let groups: Vec<Group<'_>> = members
            .iter()
            .zip(&rows)
            .map(|(request, rows)| {
                let run = Run { by_tiles: true, ..decoder.run(Some(&request.model.adapter)) };
                Group { rows: rows.clone(), run }
            })
            .collect();
        let passed = (|| {
            if !backward {
                decoder.forward_groups(&groups, &batch, None, buffers);
                decoder.losses_of_groups(&groups, &batch, buffers, &mut losses);
                return Ok(());
            }
            decoder.forward_groups_to_train(&groups, &batch, buffers)?;
            if members.iter().any(|request| request.work.objective.is_of_policy()) {
                decoder.losses_of_groups(&groups, &batch, buffers, &mut losses);
            }
            let mut weights = Vec::with_capacity(losses.len());
            for (request, range) in members.iter().zip(&examples) {
                let Work { examples, objective, .. } = &request.work;
                weights.extend(derivatives(&examples[range.clone()], *objective, &losses[weights.len()..]));
            }
            // What is no number here is told below, by its loss.
            decoder.backward_groups(&groups, &batch, &weights, buffers, &mut losses, &mut gradients)
        })();
        drop(groups);
        for (request, gradients) in members.iter_mut().zip(gradients) {
            request.model.gradients = gradients;
        }
        passed?;
        let mut rest = &losses[..];
        for (request, range) in members.iter_mut().zip(examples) {
            for index in range {
                let own;
                (own, rest) = rest.split_at(request.work.examples[index].ids.len());
                request.hear(index, own);
            }
        }
        Ok(())
    }

    /// Updates a model by the gradients that were added up, which begin at zero again. The norm before
    /// clipping.
    ///
    /// # Errors
    /// If there is no such model, or the gradient is not finite: then nothing was changed.
    pub fn step(&mut self, id: &str, settings: StepSettings) -> Result<f64> {
        let device = self.decoder.device.clone();
        let Model { adapter, gradients, optimizer, step, .. } = self.model(id)?;
        optimizer.retune(settings.optimizer());
        let parameters = &mut adapter.parameters;
        let stepped = optimizer.step(&device, *step + 1, settings.learning_rate, parameters, gradients);
        copy::fill(&device, gradients.values_mut(), 0.0);
        match stepped {
            Ok(norm) => {
                *step += 1;
                Ok(norm)
            }
            Err(TrainError::NotFinite { what, value, .. }) => Err(StudioError::NotFinite { what, value }),
            Err(other) => Err(other.into()),
        }
    }

    /// Writes a model as an adapter folder that PEFT reads, in the place of what is there; with the moments,
    /// if training is to go on from it.
    ///
    /// # Errors
    /// If there is no such model, its values are not finite, or a file cannot be written.
    pub fn save(&mut self, id: &str, folder: &Path, with_optimizer: bool) -> Result<()> {
        let device = self.decoder.device.clone();
        let Model { adapter, peft, optimizer, step, .. } = self.model(id)?;
        if !reduce::sum_of_squares(&device, adapter.parameters.values()).is_finite() {
            return Err(StudioError::Diverged);
        }
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).map_err(|error| TrainError::write(parent, error))?;
        }
        let staging = Staging::replacing(folder)?;
        let to = staging.path();
        Saving::Adapter(peft).write_trained(to, adapter)?;
        if with_optimizer {
            optimizer.write(&to.join(OPTIMIZER_FILE), &adapter.layout)?;
            let state = serde_json::to_vec_pretty(&State { version: 1, step: *step }).expect("plain numbers");
            write_whole(&to.join(STATE_FILE), &state)?;
        }
        sums::write(to)?;
        Ok(staging.publish()?)
    }

    /// Reads what [`Studio::save`] wrote into a model of the same settings; without the moments it begins to
    /// count steps anew. Gradients that were added up are gone.
    ///
    /// # Errors
    /// If there is no such model, or the folder is not whole or of another rank or other modules. A model
    /// whose files could be read in part only is removed.
    pub fn load(&mut self, id: &str, folder: &Path, with_optimizer: bool) -> Result<()> {
        self.model(id)?;
        let mut model = self.models.remove(id).expect("it is there");
        let saving = Saving::Adapter(&model.peft);
        let mut needed = vec![saving.trained_file()];
        needed.extend(with_optimizer.then_some([OPTIMIZER_FILE, STATE_FILE]).into_iter().flatten());
        let damaged = |problem: String| TrainError::Checkpoint { path: folder.to_owned(), problem };
        if let Err(problem) = sums::verify(folder, &needed) {
            self.models.insert(id.to_owned(), model);
            return Err(damaged(problem).into());
        }
        saving.read_trained(folder, &mut model.adapter)?;
        if with_optimizer {
            let path = folder.join(STATE_FILE);
            let text = fs::read_to_string(&path).map_err(|error| TrainError::read(&path, error))?;
            let state: State = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
            model.optimizer.read(&folder.join(OPTIMIZER_FILE), &model.adapter.layout)?;
            model.step = state.step;
        } else {
            let mut allocator = Allocator::real(&self.decoder.device);
            model.optimizer = Optimizer::new(ANY_STEP.optimizer(), &model.adapter.layout, &mut allocator);
            model.step = 0;
        }
        copy::fill(&self.decoder.device, model.gradients.values_mut(), 0.0);
        self.models.insert(id.to_owned(), model);
        Ok(())
    }
}

impl Underway {
    /// Takes up the losses of an example's targets.
    fn hear(&mut self, index: usize, losses: &[f32]) {
        let example = &self.work.examples[index];
        let sum: f64 = terms(example, self.work.objective, losses).map(|(loss, _)| loss).sum();
        if !sum.is_finite() && self.failed.is_none() {
            let what = format!("the loss of example {index}");
            self.failed = Some(StudioError::NotFinite { what, value: sum });
        }
        self.passed.loss += sum;
        self.passed.logprobs.push(losses.iter().map(|loss| -loss).collect());
    }
}

/// Each target's loss times its weight, and the derivative of that by the target's log-probability, where
/// `losses` are the negative log-probabilities.
fn terms(example: &Sequence, objective: Objective, losses: &[f32]) -> impl Iterator<Item = (f64, f64)> {
    let at = |numbers: &[f32], i: usize| numbers.get(i).map_or(0.0, |number| f64::from(*number));
    losses.iter().enumerate().map(move |(i, &loss)| {
        // What counts nothing is nothing, however unlikely it was.
        let weight = at(&example.weights, i);
        if weight == 0.0 {
            return (0.0, 0.0);
        }
        let (q, advantage) = (at(&example.sampled, i), at(&example.advantages, i));
        let (loss, derivative) = objective.of_token(-f64::from(loss), q, advantage);
        (weight * loss, weight * derivative)
    })
}

/// What the backward pass begins with: the derivative by each target's negative log-probability.
fn derivatives(examples: &[Sequence], objective: Objective, losses: &[f32]) -> Vec<f32> {
    let (mut weights, mut rest) = (Vec::new(), losses);
    for example in examples {
        let own;
        (own, rest) = rest.split_at(example.ids.len());
        weights.extend(terms(example, objective, own).map(|(_, derivative)| -derivative as f32));
    }
    weights
}

/// Cuts examples, in order, into batches of at most `most` tokens, each with the examples in it.
fn micro_batches(examples: &[Sequence], most: usize) -> VecDeque<(Batch, std::ops::Range<usize>)> {
    let mut batches: VecDeque<(Batch, std::ops::Range<usize>)> = VecDeque::new();
    for (index, example) in examples.iter().enumerate() {
        if batches.back().is_none_or(|(batch, _)| batch.tokens() + example.ids.len() > most) {
            batches.push_back((Batch::new(), index..index));
        }
        let (batch, range) = batches.back_mut().expect("there is a batch");
        let start = batch.push_unlabelled(&example.ids);
        let targets = example.targets.iter().enumerate();
        batch.targets.extend(targets.map(|(i, &token)| Target { row: start + i, token }));
        range.end = index + 1;
    }
    batches
}

/// The buffers of passes, for any model that a studio can have.
fn buffers(
    config: &Config,
    precision: Precision,
    extent: StudioExtent,
    allocator: &mut Allocator,
) -> Result<Activations> {
    let StudioExtent { tokens, max_rank, .. } = extent;
    let largest = ModelSettings { rank: max_rank, seed: 0, attention: true, mlp: true, head: true };
    let (layout, _) = settled(config, largest, "")?;
    let purpose = Purpose::Train(Checkpointing::Block(Keeping::default()));
    let extent = Extent { tokens, positions: tokens, purpose, precision };
    Ok(Activations::new(config, &layout, 0.0, extent, allocator))
}

/// What a model's settings come to on a base: the tensors, and the adapter in PEFT's words.
fn settled(config: &Config, settings: ModelSettings, base: &str) -> Result<(Layout, PeftConfig)> {
    let ModelSettings { rank, attention, mlp, head, .. } = settings;
    let of_mlp = |part: Part| matches!(part, Part::Gate | Part::Up | Part::GateUp | Part::Down);
    let wanted = |id: ModuleId| match id {
        // Beside experts PEFT takes the names of such layers for theirs.
        ModuleId::Linear { part, .. } if of_mlp(part) => mlp && config.experts.is_none(),
        ModuleId::Linear { part, .. } => attention && part != Part::Router,
        _ => false,
    };
    let modules = config.modules().into_iter().map(|module| module.id).filter(|&id| wanted(id));
    let modules = modules.chain(head.then_some(ModuleId::Head));
    let paths: Vec<String> = modules.map(|id| config.path(id)).collect();
    let experts = (0..config.layers).filter(|&layer| mlp && config.blocks[layer].mlp == Mlp::Experts);
    let experts = experts.flat_map(|layer| config.names.parameters_of_experts(layer));
    let parameters: Vec<String> =
        experts.filter(|(part, _)| *part != Part::Router).map(|(_, name)| name).collect();
    if paths.is_empty() && parameters.is_empty() {
        return Err(StudioError::Settings("none of the modules to be trained is in this model".into()));
    }
    let mut peft = PeftConfig {
        r: rank,
        lora_alpha: ALPHA,
        target_modules: Some(Selection::List(paths)),
        target_parameters: parameters,
        base_model_name_or_path: Some(base.to_owned()),
        ..PeftConfig::default()
    };
    let resolution = targets::resolve(&peft, config).map_err(|e| StudioError::Settings(e.to_string()))?;
    peft.target_modules = Some(Selection::List(targets::names(&resolution, config)));
    let layout = Layout::of_adapter(&resolution, config);
    Ok((layout, peft.settled(&resolution, config)))
}
