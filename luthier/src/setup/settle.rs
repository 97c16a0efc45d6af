//! Settings that were left open and decide the result, settled by the model and the data before the first
//! step.

use data::Dataset;
use model::Config;
use model::config::Positions;

use super::order;
use crate::run_file::{MAX_EPOCHS, Method, RunFile, Settings};

/// What an open setting became, where that is not the usual: a word for it, and the value with its reason.
pub(crate) type Settled = (&'static str, String);

/// Tokens of the longest example, where model and data allow as many.
const USUAL_LENGTH: usize = 2048;
/// Rows of an optimizer step, unless that leaves an epoch fewer steps than [`FEWEST_STEPS`].
const USUAL_BATCH: usize = 8;
/// Steps that an epoch has at least, if its rows are enough for that.
const FEWEST_STEPS: usize = 20;
/// Steps below which a run seldom learns much: small sets are passed more than once.
pub(crate) const ENOUGH_STEPS: u64 = 50;
/// Passes over a small set that are made without being asked for. More of them are learnt by heart.
const MOST_EPOCHS: u64 = 3;
/// The learning rate of models of [`USUAL_WIDTH`] and more, as QLoRA's for 7B and 13B (Dettmers et al. 2023,
/// table 9).
const USUAL_RATE: f64 = 2.0e-4;
/// The width C below which models take higher rates.
const USUAL_WIDTH: f64 = 2048.0;
/// How the best rate of LoRA falls with the width: (1 / C)^0.781, as measured on Llama models (Schulman et
/// al. 2025, "LoRA Without Regret"; `get_lora_lr` of tinker-cookbook).
const RATE_EXPONENT: f64 = 0.781;
/// No model takes more than so many times the usual rate.
const MOST_RATES: f64 = 10.0;

/// Tokens of the longest example, at most if that is still open.
pub(crate) fn max_length(run: &RunFile, config: Option<&Config>) -> usize {
    let context = config.map_or(usize::MAX, |config| config.max_position_embeddings);
    run.data.max_length.unwrap_or(USUAL_LENGTH.min(context))
}

/// Refuses settings that the model has nothing for: texts beyond its table of positions, a loss of experts
/// without experts.
pub(crate) fn check_model(settings: &Settings, config: &Config) -> anyhow::Result<()> {
    let (run, most) = (&settings.run, config.max_position_embeddings);
    let longest = max_length(run, Some(config));
    if config.positions == Positions::Learned && longest > most {
        let model = config.family.model_type();
        let message = format!(
            "is {longest}, and this {model} model has learned {most} positions, beyond which it cannot read; \
             set it to {most} or less"
        );
        return Err(settings.refuse("data.max_length", message));
    }
    if run.training.router_aux_loss != 0.0 && config.experts.is_none() {
        let message = "is for models with experts, and this one has none; leave it out";
        return Err(settings.refuse("training.router_aux_loss", message));
    }
    Ok(())
}

/// Rows of an optimizer step, at most if that is still open.
pub(crate) fn batch_size(run: &RunFile) -> usize {
    run.training.batch_size.unwrap_or(USUAL_BATCH)
}

/// Passes over the examples: as many as `max_steps` needs if they are left open, else at least so many.
pub(crate) fn epochs(run: &RunFile) -> u64 {
    let open = if run.training.max_steps.is_some() { MAX_EPOCHS } else { 1 };
    run.training.epochs.unwrap_or(open)
}

/// The learning rate at its peak.
pub(crate) fn learning_rate(run: &RunFile) -> f64 {
    run.optimizer.learning_rate.unwrap_or(USUAL_RATE)
}

/// Settles what the model decides. Says what is not as usual.
pub(crate) fn settle_by_model(run: &mut RunFile, config: &Config) -> Vec<Settled> {
    if run.optimizer.learning_rate.is_some() {
        return Vec::new();
    }
    let width = config.hidden_size as f64;
    let low_rank = run.adapter.method != Method::Full;
    let factor =
        if low_rank { (USUAL_WIDTH / width).powf(RATE_EXPONENT).clamp(1.0, MOST_RATES) } else { 1.0 };
    // Two digits: it is a rule of thumb, and a person reads it.
    let rate: f64 = format!("{:.1e}", USUAL_RATE * factor).parse().expect("a number");
    run.optimizer.learning_rate = Some(rate);
    let said = format!("{rate:e}: a model of width {width} takes more than the usual {USUAL_RATE:e}");
    (rate != USUAL_RATE).then_some(("rate", said)).into_iter().collect()
}

/// Settles what the examples decide, which were read under [`max_length`]. Says what is not as usual.
pub(crate) fn settle_by_data(
    run: &mut RunFile,
    config: &Config,
    train: &Dataset,
    eval: Option<&Dataset>,
) -> Vec<Settled> {
    if run.data.max_length.is_none() {
        let longest = train.report.longest.max(eval.map_or(0, |eval| eval.report.longest));
        run.data.max_length = Some(max_length(run, Some(config)).min(longest).max(2));
    }
    let rows = train.rows(&order(run)).len();
    let batch = settle_batch_size(run, rows);
    let epochs = settle_epochs(run, rows);
    batch.into_iter().chain(epochs).collect()
}

fn settle_batch_size(run: &mut RunFile, rows: usize) -> Option<Settled> {
    if run.training.batch_size.is_some() {
        return None;
    }
    let enough = |batch: &usize| rows.div_ceil(*batch) >= FEWEST_STEPS;
    let batch = (1..=USUAL_BATCH).rev().find(enough).unwrap_or(1);
    run.training.batch_size = Some(batch);
    (batch != USUAL_BATCH).then(|| {
        let (some, all) = (rows_in_words(run, batch), rows_in_words(run, rows));
        let made = rows.div_ceil(USUAL_BATCH);
        let s = if made == 1 { "" } else { "s" };
        ("batch", format!("{some} a step: {USUAL_BATCH} would make only {made} step{s} of an epoch's {all}"))
    })
}

fn settle_epochs(run: &mut RunFile, rows: usize) -> Option<Settled> {
    // A number of steps says by itself how many epochs it needs, and may grow when the run goes on.
    if run.training.epochs.is_some() || run.training.max_steps.is_some() {
        return None;
    }
    let steps = rows.div_ceil(batch_size(run)) as u64;
    let epochs = ENOUGH_STEPS.div_ceil(steps.max(1)).clamp(1, MOST_EPOCHS);
    run.training.epochs = Some(epochs);
    let s = if steps == 1 { "" } else { "s" };
    (epochs > 1).then(|| ("epochs", format!("{epochs}: one would be only {steps} step{s}")))
}

/// So many rows, or examples where nothing is packed.
pub(crate) fn rows_in_words(run: &RunFile, rows: usize) -> String {
    let what = if run.data.packing { "row" } else { "example" };
    format!("{rows} {what}{}", if rows == 1 { "" } else { "s" })
}
