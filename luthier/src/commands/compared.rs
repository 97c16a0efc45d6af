//! Runs beside each other, as `report` and `runs compare` tell them: what they are called, the settings that
//! differ, the curves.

use serde_json::Value;
use train::{History, StepMetrics};

use crate::plot::{Curve, Kind, Plot, Unit, smoothed};
use crate::run_file::{leaves, yaml_value};
use crate::run_folder::Account;
use crate::terminal::Table;

/// Norms that differ by more stand at their logarithms.
const WIDE: f64 = 100.0;

/// A run with its name among those it is shown with; its place there is its colour.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) account: Account,
}

impl Named {
    /// Calls runs by the last parts of their paths, or by their paths where that is not enough.
    pub(super) fn all(accounts: Vec<Account>) -> Vec<Named> {
        let short: Vec<String> = accounts.iter().map(Account::name).collect();
        let is_alone = |name: &String| short.iter().filter(|other| *other == name).count() == 1;
        let name = |account: &Account| {
            Some(account.name()).filter(is_alone).unwrap_or_else(|| account.folder.display().to_string())
        };
        accounts.into_iter().map(|account| Named { name: name(&account), account }).collect()
    }
}

/// The settings that are not the same in all runs, but for their folders, each with the runs' values.
pub(super) fn differing(runs: &[Named]) -> Vec<(String, Vec<Value>)> {
    let all: Vec<Vec<(String, Value)>> = runs.iter().map(|run| leaves(&run.account.settings)).collect();
    let value = |settings: &[(String, Value)], key: &str| {
        settings.iter().find(|(of, _)| of == key).map_or(Value::Null, |(_, value)| value.clone())
    };
    let mut differing: Vec<(String, Vec<Value>)> = Vec::new();
    for (key, _) in all.iter().flatten().filter(|(key, _)| key != "output") {
        let values: Vec<Value> = all.iter().map(|settings| value(settings, key)).collect();
        let is_new = differing.iter().all(|(known, _)| known != key);
        if is_new && values.iter().any(|value| *value != values[0]) {
            differing.push((key.clone(), values));
        }
    }
    differing
}

/// The same as a table, a row a run; none where the settings are the same.
pub(super) fn table_of_settings(runs: &[Named]) -> Option<Table> {
    let differing = differing(runs);
    if differing.is_empty() {
        return None;
    }
    let mut table = Table::new(["run"].into_iter().chain(differing.iter().map(|(key, _)| key.as_str())));
    for (n, run) in runs.iter().enumerate() {
        let values = differing.iter().map(|(_, values)| yaml_value(&values[n]));
        table.row([run.name.clone()].into_iter().chain(values));
    }
    Some(table)
}

/// The training losses, smoothed, over the single ones.
pub(super) fn losses(runs: &[Named]) -> Plot {
    let losses = |history: &History| -> Vec<(u64, f64)> {
        history.steps.iter().map(|step| (step.step, step.loss)).collect()
    };
    let mut curves = Vec::new();
    for (n, Named { name, account }) in runs.iter().enumerate() {
        let losses = losses(&account.history);
        curves.push(Curve::new(name, n, Kind::Line, smoothed(losses.iter().copied())));
        curves.push(Curve::new(name, n, Kind::Faint, losses));
    }
    Plot::new("Training loss, smoothed", Unit::Plain, curves)
}

/// The held-out losses.
pub(super) fn held_out(runs: &[Named]) -> Plot {
    let curve = |(n, Named { name, account }): (usize, &Named)| {
        let evaluations = account.history.evaluations.iter();
        Curve::new(name, n, Kind::Marked, evaluations.map(|of| (of.step, of.eval_loss)))
    };
    Plot::new("Held-out loss", Unit::Plain, runs.iter().enumerate().map(curve).collect())
}

/// What was forgotten.
fn forgotten(runs: &[Named]) -> Plot {
    let curve = |(n, Named { name, account }): (usize, &Named)| {
        let measured = account.history.forgetting.iter();
        Curve::new(name, n, Kind::Marked, measured.map(|of| (of.step, of.forgetting_kl)))
    };
    let curves = runs.iter().enumerate().map(curve).collect();
    Plot { from_zero: true, ..Plot::new("Divergence from the base", Unit::Plain, curves) }
}

/// All plots of runs in which there is something to see.
pub(super) fn plots(runs: &[Named]) -> Vec<Plot> {
    let norms = || runs.iter().flat_map(|run| &run.account.history.steps).map(|step| step.grad_norm);
    let (least, most) = (norms().fold(f64::INFINITY, f64::min), norms().fold(0.0, f64::max));
    let plots = [
        losses(runs),
        held_out(runs),
        forgotten(runs),
        Plot { from_zero: true, ..of(runs, "Learning rate", Unit::Plain, |step| step.learning_rate) },
        Plot {
            logarithmic: most > WIDE * least,
            from_zero: true,
            ..of(runs, "Gradient norm", Unit::Plain, |step| step.grad_norm)
        },
        Plot { from_zero: true, ..of(runs, "Tokens per second", Unit::Count, |step| step.tokens_per_second) },
        Plot { from_zero: true, ..of(runs, "Memory", Unit::Bytes, |step| step.memory_bytes as f64) },
    ];
    plots.into_iter().filter(|plot| !plot.is_empty()).collect()
}

fn of(runs: &[Named], title: &str, unit: Unit, value: fn(&StepMetrics) -> f64) -> Plot {
    let curve = |(n, Named { name, account }): (usize, &Named)| {
        Curve::new(name, n, Kind::Line, account.history.steps.iter().map(|step| (step.step, value(step))))
    };
    Plot::new(title, unit, runs.iter().enumerate().map(curve).collect())
}
