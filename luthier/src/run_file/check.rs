//! What settings must hold beyond their types: ranges, keys that a command cannot do without, keys that
//! exclude each other, and what this version does not support yet.

use compute::quant::blocks::GROUP;
use model::adapter::peft::{ALPHA, DROPOUT, MAX_GROUP, MAX_RANK};
use model::arena::SMALLEST;

use super::{
    AdapterSection, Checkpointing, DataSection, Format, Init, Method, MicroBatch, OasstPaths,
    OptimizerSection, Settings, TargetModules, TrainData, TrainingSection,
};

/// What the settings are for, which says which keys they cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `train`: a model, examples and a run folder.
    Train,
    /// `data preview`: a model (for its tokenizer) and examples.
    Preview,
    /// `plan`, `bench`, `eval`: nothing; the model comes from a flag, or a shape takes its place.
    Other,
}

/// The steps of every epoch are known before the first, so there is an end to them.
pub(crate) const MAX_EPOCHS: u64 = 1_000_000;
/// Lengths and sizes beyond this are slips of the pen, and would overflow the account of memory.
const MAX_TOKENS: usize = 1 << 32;

impl Settings {
    /// Checks everything that can be known without opening another file; the first fault found is the error.
    pub(crate) fn validate(&self, purpose: Purpose) -> anyhow::Result<()> {
        self.check_required(purpose)?;
        let run = &self.run;
        self.require(run.memory.is_none_or(|m| m.0 > 0), "memory", "must be more than 0")?;
        if let Some(quantization) = &run.quantization {
            let sizes = compute::quant::BLOCK_SIZES;
            if let Some(size) = quantization.block_size {
                let message = format!("has the block_size {size}; possible are {sizes:?}");
                self.require(sizes.contains(&size), "quantization", &message)?;
            }
            if let Some(size) = quantization.group_size {
                let message = format!("has the group_size {size}; possible is {GROUP}, as in GGUF's q4_1");
                self.require(size == GROUP, "quantization", &message)?;
            }
            let frozen = run.adapter.method != Method::Full;
            self.require(
                frozen,
                "quantization",
                "goes with a frozen base only, and adapter.method: full trains it",
            )?;
        }
        self.check_data(&run.data)?;
        self.check_adapter(&run.adapter)?;
        self.check_optimizer(&run.optimizer)?;
        let warmup = run.schedule.warmup.unwrap_or(0.0);
        self.require(warmup >= 0.0, "schedule.warmup", "must be 0 or more")?;
        self.require(
            warmup < 1.0 || warmup.fract() == 0.0,
            "schedule.warmup",
            "must be a fraction below 1 or a whole number of steps",
        )?;
        self.check_training(&run.training)
    }

    fn require(&self, holds: bool, key: &str, message: &str) -> anyhow::Result<()> {
        if holds { Ok(()) } else { Err(self.refuse(key, message)) }
    }

    fn check_required(&self, purpose: Purpose) -> anyhow::Result<()> {
        if purpose == Purpose::Other {
            return Ok(());
        }
        let run = &self.run;
        let model = "is required: a model folder or a hub id, by --model or in the run file";
        self.require(run.model.as_ref().is_some_and(|m| !m.is_empty()), "model", model)?;
        let train = "is required: a file of examples, by --data or in the run file";
        self.require(run.data.train.is_some(), "data.train", train)?;
        let output = "is required: the folder for the result, by --output or in the run file";
        let named = run.output.as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        self.require(purpose != Purpose::Train || named, "output", output)
    }

    fn check_data(&self, data: &DataSection) -> anyhow::Result<()> {
        if let Some(TrainData::Many(sources)) = &data.train {
            self.require(!sources.is_empty(), "data.train", "is an empty list")?;
            let weights = sources.iter().all(|s| s.weight > 0.0 && s.weight.is_finite());
            self.require(weights, "data.train", "has a weight that is not a finite number above 0")?;
        }
        for source in data.sources() {
            let key = if data.format == Format::Preference { "data.format" } else { "data.train" };
            let supported = source.format != Some(Format::Preference);
            self.require(
                supported,
                key,
                "has the format `preference`, which is not supported yet in this version",
            )?;
        }
        self.require(
            data.eval.is_none() || data.eval_fraction.is_none(),
            "data.eval_fraction",
            "and `data.eval` exclude each other: give one of them",
        )?;
        let formats = data.sources().into_iter().filter_map(|source| source.format).chain([data.format]);
        let has_trees = formats.into_iter().any(|format| matches!(format, Format::Auto | Format::Oasst));
        for (key, is_set) in [
            ("data.oasst_paths", data.oasst_paths != OasstPaths::Best),
            ("data.oasst_languages", !data.oasst_languages.is_empty()),
        ] {
            self.require(has_trees || !is_set, key, "belongs to data.format: oasst, or auto")?;
        }
        self.require(
            data.oasst_paths == OasstPaths::Best || data.eval_fraction.is_none(),
            "data.eval_fraction",
            "draws single examples, and with data.oasst_paths: all those of one tree begin alike: name held-out trees by \
             data.eval",
        )?;
        self.require(
            !data.group_by_length || !data.packing,
            "data.group_by_length",
            "sorts single examples by length, and packed rows are all of one: set data.packing: false, or leave it out",
        )?;
        self.require(
            !data.group_by_length || data.shuffle,
            "data.group_by_length",
            "changes the order that `data.shuffle: false` keeps: leave one of them out",
        )?;
        let inside = |x: f64| x > 0.0 && x < 1.0;
        self.require(
            data.eval_fraction.is_none_or(inside),
            "data.eval_fraction",
            "must lie between 0 and 1, both excluded",
        )?;
        self.require(
            data.max_length.is_none_or(|tokens| tokens >= 2),
            "data.max_length",
            "must be 2 or more: the first token carries no loss",
        )?;
        self.require(
            data.max_length.is_none_or(|tokens| tokens <= MAX_TOKENS),
            "data.max_length",
            "must be at most 4294967296",
        )
    }

    fn check_adapter(&self, adapter: &AdapterSection) -> anyhow::Result<()> {
        let is_qalora = adapter.method == Method::Qalora;
        for (key, is_set) in [
            ("adapter.group_size", adapter.group_size.is_some()),
            ("adapter.pooling", adapter.pooling.is_some()),
        ] {
            self.require(is_qalora || !is_set, key, "belongs to adapter.method: qalora")?;
        }
        let group = 1..=MAX_GROUP;
        let message = format!("must be from 1 to {MAX_GROUP}");
        self.require(adapter.group_size.is_none_or(|n| group.contains(&n)), "adapter.group_size", &message)?;
        self.check_init(adapter)?;
        self.require(adapter.r >= 1, "adapter.r", "must be 1 or more")?;
        self.require(adapter.r <= MAX_RANK, "adapter.r", &format!("must be at most {MAX_RANK}"))?;
        // What adapter folders are read with: a run must not write what cannot be read.
        let alpha_is_right = |alpha: f64| alpha > 0.0 && ALPHA.contains(&alpha);
        let alpha_range = format!("must be more than 0 and at most {:e}", ALPHA.end());
        self.require(alpha_is_right(adapter.alpha), "adapter.alpha", &alpha_range)?;
        self.require(
            DROPOUT.contains(&adapter.dropout),
            "adapter.dropout",
            &format!("must be from {} to {}", DROPOUT.start(), DROPOUT.end()),
        )?;
        let targets = match &adapter.target_modules {
            TargetModules::AllLinear => true,
            TargetModules::Names(names) => !names.is_empty() || !adapter.target_parameters.is_empty(),
            TargetModules::Regex(regex) => !regex.is_empty(),
        };
        self.require(targets, "adapter.target_modules", "names no module")?;
        for (pattern, r) in &adapter.rank_pattern.0 {
            self.require(*r >= 1, "adapter.rank_pattern", &format!("gives `{pattern}` a rank below 1"))?;
            self.require(
                *r <= MAX_RANK,
                "adapter.rank_pattern",
                &format!("gives `{pattern}` a rank above {MAX_RANK}"),
            )?;
        }
        for (pattern, alpha) in &adapter.alpha_pattern.0 {
            self.require(
                alpha_is_right(*alpha),
                "adapter.alpha_pattern",
                &format!("gives `{pattern}` the alpha {alpha}, which {alpha_range}"),
            )?;
        }
        let of_experts = !adapter.target_parameters.is_empty();
        self.require(
            !of_experts || adapter.method == Method::Lora,
            "adapter.method",
            "must be lora with adapter.target_parameters: PEFT has nothing else for experts",
        )?;
        self.require(
            !of_experts || adapter.dropout == 0.0,
            "adapter.dropout",
            "must be 0 with adapter.target_parameters: PEFT has no dropout before experts",
        )?;
        self.require(
            adapter.method != Method::Full || adapter.init_from.is_none(),
            "adapter.init_from",
            "is an adapter to go on training from, which `adapter.method: full` does not have",
        )
    }

    fn check_init(&self, adapter: &AdapterSection) -> anyhow::Result<()> {
        let init = adapter.init.engine();
        let drawn = matches!(adapter.init, Init::Default | Init::Gaussian);
        let name = init.name();
        self.require(
            adapter.method != Method::Full || drawn,
            "adapter.init",
            &format!("is {name}, the beginning of an adapter, and `adapter.method: full` trains none"),
        )?;
        self.require(
            adapter.method != Method::Qalora || drawn,
            "adapter.init",
            &format!("is {name}, a part of the base's weights, which sums of inputs cannot be: leave it out"),
        )?;
        self.require(
            self.run.training.quantization_aware.is_none() || drawn,
            "adapter.init",
            &format!(
                "is {name}, which changes the base that training.quantization_aware rounds: give one of them"
            ),
        )?;
        self.require(
            adapter.init_from.is_none() || !init.decomposes(),
            "adapter.init",
            &format!("is {name}, and `adapter.init_from` names an adapter to begin from: give one of them"),
        )?;
        self.require(
            adapter.init != Init::Loftq || self.run.quantization.is_some(),
            "adapter.init",
            "is loftq, which makes up for what quantizing a 16-bit base loses: set `quantization`, to nf4 or int4 \
             for example, too; a base that is stored quantized needs another beginning",
        )
    }

    fn check_optimizer(&self, optimizer: &OptimizerSection) -> anyhow::Result<()> {
        self.require(
            optimizer.memory.is_none_or(|budget| budget.0 >= SMALLEST),
            "optimizer.memory",
            &format!("must be {SMALLEST} bytes or more, or null"),
        )?;
        // Steps are computed in f32.
        let finite = |value: f64| (value as f32).is_finite();
        let positive = |value: f64| value as f32 > 0.0 && finite(value);
        let above_0 = "must be above 0 and within the range of f32";
        self.require(optimizer.learning_rate.is_none_or(positive), "optimizer.learning_rate", above_0)?;
        let betas = optimizer.betas.iter().all(|beta| (0.0..1.0).contains(beta));
        self.require(betas, "optimizer.betas", "must both be 0 or more and below 1")?;
        self.require(positive(optimizer.eps), "optimizer.eps", above_0)?;
        let decay = optimizer.weight_decay;
        self.require(
            decay >= 0.0 && finite(decay),
            "optimizer.weight_decay",
            "must be 0 or more and within the range of f32",
        )?;
        let norm = optimizer.max_grad_norm;
        self.require(
            norm >= 0.0 && finite(norm),
            "optimizer.max_grad_norm",
            "must be 0 (no clipping) or more and within the range of f32",
        )?;
        self.require(positive(optimizer.lora_plus_ratio), "optimizer.lora_plus_ratio", above_0)
    }

    fn check_training(&self, training: &TrainingSection) -> anyhow::Result<()> {
        self.require(
            (0.0..=1e3).contains(&training.router_aux_loss),
            "training.router_aux_loss",
            "must be from 0 to 1000",
        )?;
        if training.quantization_aware.is_some() {
            let key = "training.quantization_aware";
            let adapter = &self.run.adapter;
            self.require(adapter.method == Method::Lora, key, "goes with adapter.method: lora only")?;
            self.require(
                adapter.dropout == 0.0,
                key,
                "goes without adapter.dropout: weights and updates are one",
            )?;
            self.require(
                self.run.quantization.is_none(),
                key,
                "quantizes the base's weights and updates together: leave `quantization` out",
            )?;
        }
        let or_null = "must be 1 or more, or null";
        self.require(training.epochs != Some(0), "training.epochs", or_null)?;
        self.require(
            training.epochs.is_none_or(|n| n <= MAX_EPOCHS),
            "training.epochs",
            "must be at most 1000000",
        )?;
        self.require(training.max_steps != Some(0), "training.max_steps", or_null)?;
        self.require(training.batch_size != Some(0), "training.batch_size", or_null)?;
        self.require(
            training.batch_size.is_none_or(|rows| rows <= MAX_TOKENS),
            "training.batch_size",
            "must be at most 4294967296",
        )?;
        let micro = match training.micro_batch_tokens {
            MicroBatch::Auto => true,
            MicroBatch::Tokens(tokens) => (1..=MAX_TOKENS).contains(&tokens),
        };
        self.require(micro, "training.micro_batch_tokens", "must be auto, or from 1 to 4294967296")?;
        for (key, setting) in [
            ("training.activation_offloading", training.activation_offloading),
            ("training.frozen_activations", training.frozen_activations),
        ] {
            let message = format!("must be {SMALLEST} bytes or more, or auto, true or false");
            self.require(setting.memory().is_none_or(|budget| budget >= SMALLEST), key, &message)?;
        }
        for (key, set) in [
            ("training.activation_offloading", training.activation_offloading.memory().is_some()),
            ("training.activation_precision", training.activation_precision.is_some()),
        ] {
            let message = "is about the layers' inputs, which `training.checkpointing: none` does not keep apart from the \
                           other activations; set that to auto or block";
            self.require(!set || training.checkpointing != Checkpointing::None, key, message)?;
        }
        self.require(training.eval_every != Some(0), "training.eval_every", or_null)?;
        self.require(training.save_every != Some(0), "training.save_every", or_null)?;
        self.require(training.keep_checkpoints >= 1, "training.keep_checkpoints", "must be 1 or more")?;
        self.require(
            training.early_stopping_patience != Some(0),
            "training.early_stopping_patience",
            or_null,
        )?;
        self.check_forgetting(training)?;
        let evaluates = self.run.data.eval.is_some() || self.run.data.eval_fraction.is_some();
        let needs = "needs something to evaluate on: set `data.eval` or `data.eval_fraction`";
        self.require(training.eval_every.is_none() || evaluates, "training.eval_every", needs)?;
        self.require(
            training.early_stopping_patience.is_none() || evaluates,
            "training.early_stopping_patience",
            needs,
        )
    }

    fn check_forgetting(&self, training: &TrainingSection) -> anyhow::Result<()> {
        let every = "training.forgetting_every";
        self.require(training.forgetting_every != Some(0), every, "must be 1 or more, or null")?;
        let limit = training.forgetting_limit;
        self.require(
            limit.is_none_or(|limit| limit > 0.0 && limit.is_finite()),
            "training.forgetting_limit",
            "must be above 0, or null",
        )?;
        for (key, set) in [
            ("training.forgetting_data", training.forgetting_data.is_some()),
            ("training.forgetting_limit", limit.is_some()),
        ] {
            let message = "is about what `training.forgetting_every` measures; set that, too";
            self.require(!set || training.forgetting_every.is_some(), key, message)?;
        }
        // Each says which tensors are the result, and those of the best evaluation may not have been measured.
        let one = limit.is_none() || training.early_stopping_patience.is_none();
        let message =
            "and training.early_stopping_patience each end a run by its own rule: leave one of them out";
        self.require(one, "training.forgetting_limit", message)?;
        if training.forgetting_every.is_none() {
            return Ok(());
        }
        let afterwards = "compare the result with its base by `luthier eval forgetting`";
        let init = self.run.adapter.init;
        let changes_base = matches!(init, Init::Pissa | Init::Olora | Init::Loftq);
        let message = format!("measures against the base, which adapter.init changes here; {afterwards}");
        self.require(!changes_base, every, &message)?;
        let message =
            format!("goes without training.quantization_aware, which rounds the weights anew; {afterwards}");
        self.require(training.quantization_aware.is_none(), every, &message)
    }
}
