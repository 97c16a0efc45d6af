//! Runs that differ in their seed alone, taken together: what a setting comes to whatever the chance, and how
//! it compares with the first one.
//!
//! Losses are measured again, example by example, for what was trained. An example counts with its mean over
//! the seeds, and settings are compared on the same examples: so an interval says how much it matters which
//! examples were held out, and the losses by seed beside it how much the seed does.

use std::fmt;

use data::Example;
use eval::paired::{Bootstrap, Comparison, Estimate, Part};
use model::memory::Allocator;
use model::{Activations, Extent, Purpose};
use serde::Serialize;
use serde_json::{Map, Value};

use super::contender::{Contender, State};
use super::field::Field;
use super::results::typed;
use crate::commands::train::Prepared;
use crate::run_file::Method;
use crate::setup;
use crate::terminal::{Progress, Table, p_value};

/// The setting that runs of a group differ in.
pub(super) const SEED: &str = "training.seed";

/// Runs of the same settings but for the seed.
#[derive(Serialize)]
pub(super) struct OverSeeds {
    /// What all of them have, of what differs between runs of the sweep.
    settings: Map<String, Value>,
    #[serde(skip)]
    name: String,
    seeds: Vec<Value>,
    /// The mean held-out loss, with the interval by drawing examples anew.
    eval_loss: Estimate,
    /// Of the runs, one by one.
    by_seed: Vec<f64>,
    /// How the loss differs from that of the first settings, over the seeds that both have.
    #[serde(skip_serializing_if = "Option::is_none")]
    less_first: Option<Comparison>,
}

/// Runs of a group: what they have in common, and their places.
struct Group {
    settings: Vec<(String, String)>,
    runs: Vec<usize>,
}

/// A run's held-out losses: of each example the sum and the tokens that it is of.
type Losses = Vec<(f64, u64)>;

/// What the finished runs come to over their seeds; nothing where none differ in the seed alone.
///
/// # Errors
/// If a result cannot be read again.
pub(super) fn compare(field: &mut Field<'_>) -> anyhow::Result<Vec<OverSeeds>> {
    let groups = groups(&field.contenders);
    if groups.iter().all(|group| group.runs.len() < 2) {
        return Ok(Vec::new());
    }
    let runs: Vec<usize> = groups.iter().flat_map(|group| group.runs.iter().copied()).collect();
    let held_out = |n: usize| field.contenders[n].prepared.data.held_out();
    if held_out(runs[0]).is_empty() {
        return Ok(Vec::new());
    }
    if runs.iter().any(|&n| held_out(n) != held_out(runs[0])) {
        let why = why_held_out_differ(&field.contenders, &runs);
        eprintln!(
            "note: runs that differ in the seed are not compared, since their held-out examples differ too{why}"
        );
        return Ok(Vec::new());
    }
    let mut losses = vec![Losses::new(); field.contenders.len()];
    let mut progress = Progress::items("comparing", runs.len() as u64, 0);
    for (done, &n) in (1..).zip(&in_order_of_bases(field, &runs)) {
        losses[n] = measure(field, n)?;
        progress.set(done, &field.contenders[n].name);
    }
    progress.finish("");
    Ok(groups.iter().filter_map(|group| of_group(group, &groups[0], &field.contenders, &losses)).collect())
}

/// By which settings the held-out examples of runs differ, with what to do.
fn why_held_out_differ(contenders: &[Contender], runs: &[usize]) -> String {
    let is_drawn = |n: &usize| contenders[*n].prepared.settings.run.data.eval_fraction.is_some();
    if runs.iter().any(is_drawn) {
        return "; name a file of them by data.eval, for data.eval_fraction draws them by the seed"
            .to_owned();
    }
    // Examples are made of the data by the model's tokenizer and template.
    let decides = |(key, _): &&(String, String)| key == "model" || key.starts_with("data.");
    let changes = contenders[runs[0]].changes.iter().filter(decides);
    let keys: Vec<&str> = changes.map(|(key, _)| key.as_str()).collect();
    match keys.as_slice() {
        [] => String::new(),
        keys => format!(" by {}; make a sweep for each of its values", keys.join(" and ")),
    }
}

/// Finished runs by their settings but the seed, in the order of the sweep. What changes its base in training
/// has a base of its own, and is left out.
fn groups(contenders: &[Contender]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (n, contender) in contenders.iter().enumerate() {
        let run = &contender.prepared.settings.run;
        let is_adapter = run.adapter.method != Method::Full && setup::leaves_base(run);
        if contender.state != State::Finished || !is_adapter || seed(contender).is_none() {
            continue;
        }
        let settings: Vec<(String, String)> =
            contender.changes.iter().filter(|(key, _)| key != SEED).cloned().collect();
        match groups.iter_mut().find(|group| group.settings == settings) {
            Some(group) => group.runs.push(n),
            None => groups.push(Group { settings, runs: vec![n] }),
        }
    }
    groups
}

/// The seed, if it is what the sweep changes.
fn seed(contender: &Contender) -> Option<&str> {
    contender.changes.iter().find(|(key, _)| key == SEED).map(|(_, seed)| seed.as_str())
}

/// The runs so that those over the same base stand together, for it is loaded once.
fn in_order_of_bases(field: &Field<'_>, runs: &[usize]) -> Vec<usize> {
    let mut runs = runs.to_vec();
    runs.sort_by_key(|&n| field.group(n));
    runs
}

/// The held-out losses of a run's result.
fn measure(field: &mut Field<'_>, n: usize) -> anyhow::Result<Losses> {
    let Prepared { settings, data, sizes, .. } = &field.contenders[n].prepared;
    let (precision, data, most) = (settings.run.precision.engine(), data.clone(), sizes.micro_batch_tokens);
    let examples = data.held_out();
    let (decoder, adapter) = field.result(n)?;
    let longest = examples.iter().map(Example::len).max().unwrap_or(1);
    let extent = Extent { tokens: most.max(longest), positions: longest, purpose: Purpose::Infer, precision };
    let memory = &mut Allocator::real(&decoder.device);
    let mut buffers = Activations::new(&decoder.config, &adapter.layout, 0.0, extent, memory);
    decoder.fix(&adapter);
    Ok(train::evaluate(&decoder.run(Some(&adapter)), decoder, (0, examples), &mut buffers)?)
}

fn of_group(group: &Group, first: &Group, contenders: &[Contender], losses: &[Losses]) -> Option<OverSeeds> {
    let seed = |n: &usize| seed(&contenders[*n]);
    let parts = |of: &Group, others: &Group| {
        let is_common = |n: &&usize| others.runs.iter().any(|other| seed(other) == seed(n));
        mean(&of.runs.iter().filter(is_common).map(|&n| &losses[n]).collect::<Vec<_>>())
    };
    let bootstrap = Bootstrap::default();
    let compared = || bootstrap.ratio_difference(&parts(group, first), &parts(first, group), None).ok();
    let loss = |n: &usize| {
        let (sum, tokens) = losses[*n].iter().fold((0.0, 0), |(s, t), (sum, tokens)| (s + sum, t + tokens));
        sum / tokens.max(1) as f64
    };
    let value = |(key, value): &(String, String)| (key.clone(), typed(value));
    let words = group.settings.iter().map(|(key, value)| format!("{key}={value}"));
    Some(OverSeeds {
        settings: group.settings.iter().map(value).collect(),
        name: if group.settings.is_empty() { "all".into() } else { words.collect::<Vec<_>>().join(" ") },
        seeds: group.runs.iter().filter_map(|n| seed(n).map(typed)).collect(),
        eval_loss: bootstrap.ratio(&parts(group, group), None).ok()?,
        by_seed: group.runs.iter().map(loss).collect(),
        less_first: if std::ptr::eq(group, first) { None } else { compared() },
    })
}

/// Of each example the mean over runs.
fn mean(runs: &[&Losses]) -> Vec<Part> {
    let Some((first, _)) = runs.split_first() else { return Vec::new() };
    let part = |i: usize| Part {
        sum: runs.iter().map(|losses| losses[i].0).sum::<f64>() / runs.len() as f64,
        count: first[i].1 as f64,
    };
    (0..first.len()).map(part).collect()
}

/// The groups as a table.
pub(super) struct Told<'a>(pub(super) &'a [OverSeeds]);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told(groups) = self;
        let [first, ..] = groups else { return Ok(()) };
        let header = ["over seeds", "seeds", "held-out loss", "95 % interval", "by seed", "less the first"];
        let mut table = Table::new(header.into_iter().chain(["95 % interval", "p"]));
        let range = |low: f64, high: f64| format!("{low:.4} to {high:.4}");
        for OverSeeds { name, seeds, eval_loss, by_seed, less_first, .. } in *groups {
            let ends = |f: fn(f64, f64) -> f64, from: f64| by_seed.iter().copied().fold(from, f);
            let mut cells = vec![
                name.clone(),
                seeds.len().to_string(),
                format!("{:.4}", eval_loss.value),
                range(eval_loss.low, eval_loss.high),
                range(ends(f64::min, f64::INFINITY), ends(f64::max, f64::NEG_INFINITY)),
            ];
            cells.extend(match less_first {
                None => [const { String::new() }; 3],
                Some(Comparison { difference: Estimate { value, low, high }, p_value: p, .. }) => {
                    [format!("{value:+.4}"), format!("{low:+.4} to {high:+.4}"), p_value(*p)]
                }
            });
            table.row(cells);
        }
        write!(f, "\n\n{table}")?;
        match groups.len() {
            1 => Ok(()),
            _ => write!(f, "\nLess the first: than {}, on the same held-out examples.", first.name),
        }
    }
}
