//! What trains for clients of Tinker's API: a studio over the base that is served.

use std::path::Path;
use std::sync::Arc;

use infer::Extent;
use model::memory::MemoryPlan;
use model::{Config, Decoder};
use server::{Adam, Example, Lora, Objective, Pass, Passed, Refused, Trainer, Training};
use train::{ModelSettings, Sequence, StepSettings, Studio, StudioError, StudioExtent, Work};

use crate::cli;
use crate::hub;
use crate::setup::Base;

/// Tokens of a pass where nobody says how many: more do not make products faster.
const USUAL_TOKENS: usize = 1024;
/// Models that a tenant may have in training at once.
const MODELS: usize = 16;

/// The sizes of the studio that these settings ask for; none without a folder for checkpoints, or without
/// memory.
pub(super) fn extent(args: &cli::Serve, serving: Extent) -> Option<StudioExtent> {
    let memory = args.training_memory.0;
    let tokens = args.training_tokens.unwrap_or(USUAL_TOKENS).min(serving.context);
    (args.state.is_some() && memory > 0).then_some(StudioExtent {
        tokens,
        max_rank: serving.max_rank,
        memory,
    })
}

/// The memory of a studio of these sizes.
pub(super) fn memory_plan(
    config: &Config,
    args: &cli::Serve,
    extent: StudioExtent,
) -> anyhow::Result<MemoryPlan> {
    Ok(Studio::memory_plan(config, args.precision.engine(), extent)?)
}

/// What the server needs to train. The studio is made when a client asks for its first model.
pub(super) fn training(
    decoder: Arc<Decoder>,
    base: &Base,
    model: &str,
    extent: StudioExtent,
    share: f64,
) -> Training {
    let name = model.to_owned();
    // The folder's name is of use to clients on this machine.
    let folder = std::fs::canonicalize(&base.name).ok().filter(|path| path.is_dir());
    let tokenizer = match hub::is_id(&base.name) {
        true => None,
        false => folder.and_then(|path| path.to_str().map(str::to_owned)),
    };
    Training {
        // On the thread that trains, before all else.
        begin: Box::new(move || {
            let yielding = compute::yielding(share);
            let studio = Studio::new(decoder, &name, extent).map_err(|error| error.to_string())?;
            Ok(Box::new(Teacher { studio, _yielding: yielding }) as Box<dyn Trainer>)
        }),
        models: MODELS,
        tokenizer,
    }
}

/// A studio, in the server's words.
struct Teacher {
    studio: Studio,
    /// Requests go first.
    _yielding: compute::Yielding,
}

fn refused(error: StudioError) -> Refused {
    Refused { is_of_request: error.is_of_request(), message: error.to_string() }
}

impl Trainer for Teacher {
    fn create(&mut self, model: &str, lora: Lora) -> Result<(), Refused> {
        let Lora { rank, seed, attention, mlp, head } = lora;
        self.studio.create(model, ModelSettings { rank, seed, attention, mlp, head }).map_err(refused)
    }

    fn remove(&mut self, model: &str) {
        self.studio.remove(model);
    }

    fn pass(&mut self, passes: Vec<Pass>) -> Vec<Result<Passed, Refused>> {
        let passed = self.studio.pass(passes.into_iter().map(work).collect());
        let told = |passed: train::Passed| Passed { loss: passed.loss, logprobs: passed.logprobs };
        passed.into_iter().map(|passed| passed.map(told).map_err(refused)).collect()
    }

    fn step(&mut self, model: &str, adam: Adam) -> Result<f64, Refused> {
        let Adam { learning_rate, betas, eps, weight_decay, clip } = adam;
        let settings = StepSettings { learning_rate, betas, eps, weight_decay, clip };
        self.studio.step(model, settings).map_err(refused)
    }

    fn save(&mut self, model: &str, folder: &Path, with_optimizer: bool) -> Result<(), Refused> {
        self.studio.save(model, folder, with_optimizer).map_err(refused)
    }

    fn load(&mut self, model: &str, folder: &Path, with_optimizer: bool) -> Result<(), Refused> {
        self.studio.load(model, folder, with_optimizer).map_err(refused)
    }
}

/// A pass as a studio has it.
fn work(pass: Pass) -> Work {
    let sequence = |example: Example| {
        let Example { ids, targets, weights, sampled, advantages } = example;
        Sequence { ids, targets, weights, sampled, advantages }
    };
    Work {
        model: pass.model,
        examples: pass.examples.into_iter().map(sequence).collect(),
        objective: match pass.objective {
            Objective::CrossEntropy => train::Objective::CrossEntropy,
            Objective::ImportanceSampling => train::Objective::ImportanceSampling,
            Objective::Ppo { clip } => train::Objective::Ppo { clip },
            Objective::Cispo { clip } => train::Objective::Cispo { clip },
            Objective::Dro { beta } => train::Objective::Dro { beta },
        },
        backward: pass.backward,
    }
}
