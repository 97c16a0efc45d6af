//! What commands of `eval` printed with `--json`, as tables.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::user;
use crate::terminal::Table;

/// Where a run's folder has them.
const FOLDER: &str = "evaluations";
/// A larger file is none.
const MAX_BYTES: u64 = 64 << 20;

/// An evaluation on the page.
#[derive(Serialize)]
pub(super) struct Evaluation {
    title: String,
    /// The file.
    pub(super) source: String,
    /// The run in whose folder it is, where there are several.
    of: Option<String>,
    tables: Vec<Table>,
}

/// A number with its interval, of 95 %.
#[derive(Clone, Copy, Deserialize)]
struct Estimate {
    value: f64,
    low: f64,
    high: f64,
}

#[derive(Deserialize)]
struct Perplexity {
    #[serde(flatten)]
    last: Losses,
    tokens: u64,
    examples: u64,
    #[serde(default)]
    beside: Vec<Losses>,
    #[serde(default)]
    differences: Vec<Difference>,
}

#[derive(Deserialize)]
struct Losses {
    system: String,
    loss: f64,
    perplexity: f64,
    bits_per_byte: Option<f64>,
    interval: Option<Estimate>,
}

#[derive(Deserialize)]
struct Choice {
    form: String,
    items: u64,
    shots: u64,
    systems: Vec<Chosen>,
    differences: Vec<Difference>,
}

#[derive(Deserialize)]
struct Chosen {
    system: String,
    accuracy: Share,
    accuracy_norm: Share,
}

#[derive(Deserialize)]
struct Share {
    value: f64,
    interval: Option<Estimate>,
}

#[derive(Deserialize)]
struct Answers {
    metric: String,
    records: u64,
    systems: Vec<Answered>,
    differences: Vec<Difference>,
}

#[derive(Deserialize)]
struct Answered {
    system: String,
    score: f64,
    interval: Option<Estimate>,
    #[serde(default)]
    pass_at: Vec<PassAt>,
}

#[derive(Deserialize)]
struct PassAt {
    k: u64,
    value: f64,
}

#[derive(Deserialize)]
struct Forgetting {
    base_loss: f64,
    tokens: u64,
    systems: Vec<Forgotten>,
}

#[derive(Deserialize)]
struct Forgotten {
    system: String,
    kl: f64,
    interval: Option<Estimate>,
    loss: f64,
    difference: Option<Difference>,
}

#[derive(Clone, Deserialize)]
struct Difference {
    system: String,
    than: String,
    difference: Estimate,
    p_value: f64,
}

#[derive(Deserialize)]
struct Judged {
    scores: Option<Judgements>,
    better: Option<Judgements>,
}

#[derive(Deserialize)]
struct Judgements {
    reference: Option<String>,
    percent: Option<Vec<Percent>>,
    bradley_terry: Option<Vec<Rating>>,
    elo: Option<Vec<Rating>>,
    rates: Option<Vec<Rates>>,
}

#[derive(Deserialize)]
struct Percent {
    system: String,
    percent: Estimate,
}

#[derive(Deserialize)]
struct Rating {
    system: String,
    rating: Estimate,
}

#[derive(Deserialize)]
struct Rates {
    system: String,
    win: Estimate,
    tie: Estimate,
    loss: Estimate,
}

/// The evaluations in a run's folder, in the order of their names.
pub(super) fn files(run: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = run.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let is_json = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "json");
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_json).collect();
    files.sort();
    Ok(files)
}

impl Evaluation {
    /// Reads a file. `of`: the run that it belongs to, if that is to be said.
    ///
    /// # Errors
    /// If it is not what a command of `eval` prints.
    pub(super) fn read(path: &Path, of: Option<&str>) -> anyhow::Result<Self> {
        let shown = path.display();
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
        if !metadata.is_file() {
            return Err(user(format!(
                "{shown} is not a regular file; redirect there what `luthier eval` prints"
            )));
        }
        let size = metadata.len();
        if size > MAX_BYTES {
            return Err(user(format!(
                "{shown} has {size} bytes; that is nothing that `luthier eval` printed"
            )));
        }
        let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
            user(format!("{shown} is no JSON: {error}; redirect there what `luthier eval ... --json` prints"))
        })?;
        let has = |key: &str| value.get(key).is_some();
        let (title, tables) = match () {
            () if has("perplexity") => perplexity(read("perplexity", path, &value)?),
            () if has("metric") => answers(read("generate", path, &value)?),
            () if has("base_loss") => forgetting(read("forgetting", path, &value)?),
            () if has("form") => choice(read("choice", path, &value)?),
            () if has("statistics") => judged(path, read("judge", path, &value)?)?,
            () => {
                return Err(user(format!(
                    "{shown} is not what `luthier eval perplexity`, `forgetting`, `choice`, `generate` or `judge` prints \
                     with --json"
                )));
            }
        };
        Ok(Evaluation { title, source: shown.to_string(), of: of.map(str::to_owned), tables })
    }
}

fn read<T: DeserializeOwned>(command: &str, path: &Path, value: &Value) -> anyhow::Result<T> {
    T::deserialize(value).map_err(|error| refusal(command, path, &error.to_string()))
}

fn refusal(command: &str, path: &Path, why: &str) -> anyhow::Error {
    user(format!("{} is not what `luthier eval {command} --json` prints: {why}", path.display()))
}

fn perplexity(of: Perplexity) -> (String, Vec<Table>) {
    let mut table = Table::new(["system", "loss", "95 % interval", "perplexity", "bits per byte"]);
    for of in of.beside.iter().chain([&of.last]) {
        let bits = of.bits_per_byte.map_or(String::new(), number);
        table.row([of.system.clone(), number(of.loss), interval(of.interval), number(of.perplexity), bits]);
    }
    let title = format!("Perplexity over {} tokens of {} examples", of.tokens, of.examples);
    (title, with_differences(table, "loss", &of.differences))
}

fn forgetting(of: Forgetting) -> (String, Vec<Table>) {
    let mut table = Table::new(["system", "divergence from base", "95 % interval", "loss", "of base"]);
    for Forgotten { system, kl, interval: range, loss, .. } in &of.systems {
        table.row([system.clone(), number(*kl), interval(*range), number(*loss), number(of.base_loss)]);
    }
    let title = format!("Forgetting, by {} tokens of other text", of.tokens);
    let differences: Vec<Difference> = of.systems.into_iter().filter_map(|of| of.difference).collect();
    (title, with_differences(table, "loss", &differences))
}

fn choice(of: Choice) -> (String, Vec<Table>) {
    let mut table =
        Table::new(["system", "accuracy", "95 % interval", "accuracy by characters", "95 % interval"]);
    for Chosen { system, accuracy, accuracy_norm } in of.systems {
        table.row([
            system,
            number(accuracy.value),
            interval(accuracy.interval),
            number(accuracy_norm.value),
            interval(accuracy_norm.interval),
        ]);
    }
    let title = format!("Multiple choice: {} questions of {}, {} shots", of.items, of.form, of.shots);
    (title, with_differences(table, "accuracy", &of.differences))
}

fn answers(of: Answers) -> (String, Vec<Table>) {
    let passes = of.systems.first().map_or(&[][..], |of| &of.pass_at);
    let header = ["system".to_owned(), of.metric.clone(), "95 % interval".to_owned()];
    let mut table = Table::new(header.into_iter().chain(passes.iter().map(|of| format!("pass@{}", of.k))));
    let width = passes.len();
    for Answered { system, score, interval: of, pass_at } in &of.systems {
        let mut passes: Vec<String> = pass_at.iter().map(|of| number(of.value)).collect();
        passes.resize(width, String::new());
        table.row([system.clone(), number(*score), interval(*of)].into_iter().chain(passes));
    }
    let title = format!("Generated answers: {} over {} records", of.metric, of.records);
    (title, with_differences(table, &of.metric, &of.differences))
}

fn judged(path: &Path, of: Judged) -> anyhow::Result<(String, Vec<Table>)> {
    let mut tables = Vec::new();
    for (field, judgements) in [("scores", of.scores), ("better", of.better)] {
        let Some(judgements) = judgements else { continue };
        let made = judgements.tables();
        if made.is_empty() {
            let why = format!("`{field}` has none of the tables percent, bradley_terry, elo and rates");
            return Err(refusal("judge", path, &why));
        }
        tables.extend(made);
    }
    match tables.is_empty() {
        true => Err(refusal("judge", path, "it has neither `scores` nor `better`")),
        false => Ok(("Judged answers".to_owned(), tables)),
    }
}

impl Judgements {
    /// Those that have a row.
    fn tables(self) -> Vec<Table> {
        fn rows<T>(all: Option<Vec<T>>) -> Option<Vec<T>> {
            all.filter(|all| !all.is_empty())
        }
        let mut tables = Vec::new();
        if let Some(all) = rows(self.percent) {
            let of = self
                .reference
                .map_or("percent of the reference".to_owned(), |name| format!("percent of {name}"));
            let rows = all.into_iter().map(|of| (of.system, of.percent));
            tables.push(estimates(&of, rows));
        }
        for (what, ratings) in [("Bradley-Terry rating", self.bradley_terry), ("Elo rating", self.elo)] {
            let rows = rows(ratings).map(|all| all.into_iter().map(|of| (of.system, of.rating)));
            tables.extend(rows.map(|rows| estimates(what, rows)));
        }
        if let Some(all) = rows(self.rates) {
            let mut table = Table::new(["system", "wins", "95 % interval", "ties", "losses"]);
            for Rates { system, win, tie, loss } in all {
                table.row([
                    system,
                    number(win.value),
                    interval(Some(win)),
                    number(tie.value),
                    number(loss.value),
                ]);
            }
            tables.push(table);
        }
        tables
    }
}

fn estimates(what: &str, rows: impl Iterator<Item = (String, Estimate)>) -> Table {
    let mut table = Table::new(["system", what, "95 % interval"]);
    rows.for_each(|(system, of)| {
        table.row([system, format!("{:.1}", of.value), format!("{:.1} to {:.1}", of.low, of.high)])
    });
    table
}

/// The table of systems, and that of how they differ from the first one, if there are others.
fn with_differences(systems: Table, what: &str, differences: &[Difference]) -> Vec<Table> {
    let mut tables = vec![systems];
    if !differences.is_empty() {
        let mut table = Table::new([what, "difference", "95 % interval", "p"]);
        for Difference { system, than, difference, p_value } in differences {
            let p = if *p_value < 0.001 { "< 0.001".to_owned() } else { format!("{p_value:.3}") };
            let Estimate { value, low, high } = difference;
            table.row([
                format!("{system} less {than}"),
                format!("{value:+.4}"),
                format!("{low:+.4} to {high:+.4}"),
                p,
            ]);
        }
        tables.push(table);
    }
    tables
}

fn number(value: f64) -> String {
    format!("{value:.4}")
}

fn interval(of: Option<Estimate>) -> String {
    of.map_or("too few items".to_owned(), |Estimate { low, high, .. }| format!("{low:.4} to {high:.4}"))
}
