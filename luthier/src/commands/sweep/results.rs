//! What came of a sweep: a table, `sweep.json`, and the page.

use std::cmp::Ordering;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use model::checkpoint::write_whole;
use serde::Serialize;
use serde_json::{Map, Value};
use train::History;

use super::contender::{Contender, Standing, State};
use super::page::page;
use super::seeds::{OverSeeds, SEED, Told};
use crate::run_file::Method;
use crate::run_folder::OfResult;
use crate::terminal::{self, Table, quoted};

/// A run's end is its last steps: one in so many.
const END: usize = 10;

/// All that is told in the end.
#[derive(Serialize)]
pub(super) struct Results {
    output: String,
    /// The run with the lowest held-out loss, or without such losses the lowest training loss.
    best: Option<String>,
    /// The runs, the best first.
    runs: Vec<RunResult>,
    /// Runs that differ in the seed alone, taken together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    over_seeds: Vec<OverSeeds>,
    #[serde(skip)]
    folder: PathBuf,
    /// What to type next.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// What came of one run.
#[derive(Serialize)]
pub(super) struct RunResult {
    pub(super) name: String,
    pub(super) folder: String,
    /// The settings that are its own.
    settings: Map<String, Value>,
    /// The same as they were written.
    #[serde(skip)]
    pub(super) changes: Vec<(String, String)>,
    pub(super) state: &'static str,
    /// What there is to say of the state.
    pub(super) why: Option<String>,
    pub(super) steps: u64,
    #[serde(skip)]
    standing: Standing,
    /// The mean over the last tenth of the steps.
    pub(super) train_loss: Option<f64>,
    pub(super) eval_loss: Option<f64>,
    #[serde(skip)]
    pub(super) history: History,
}

/// A value as JSON has it: a number as a number.
pub(super) fn typed(text: &str) -> Value {
    let number = text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<f64>().map(Value::from));
    number.unwrap_or_else(|_| match text {
        "true" => true.into(),
        "false" => false.into(),
        "null" => Value::Null,
        text => text.into(),
    })
}

impl RunResult {
    fn of(contender: &Contender) -> anyhow::Result<Self> {
        let Contender { name, changes, folder, prepared, state, .. } = contender;
        let history = History::read(folder)?;
        let end = &history.steps[history.steps.len() - history.steps.len().div_ceil(END)..];
        let mean = end.iter().map(|step| step.loss).sum::<f64>() / end.len() as f64;
        let of_result = OfResult::of(&prepared.settings.run, &history);
        let eval_loss = of_result.evaluation.map(|evaluation| evaluation.eval_loss);
        let train_loss = (!end.is_empty()).then_some(mean);
        let steps = history.steps.last().map_or(0, |step| step.step);
        let why = match state.why() {
            Some(why) => Some(why.to_owned()),
            None if of_result.is_beyond => Some("forgot more than training.forgetting_limit".to_owned()),
            None if of_result.step < steps => Some(format!("the result is of step {}", of_result.step)),
            None => None,
        };
        Ok(RunResult {
            standing: Standing::of(&of_result, train_loss),
            name: name.clone(),
            folder: folder.display().to_string(),
            settings: changes.iter().map(|(key, value)| (key.clone(), typed(value))).collect(),
            changes: changes.clone(),
            state: state.word(),
            why,
            steps,
            train_loss,
            eval_loss,
            history,
        })
    }

    /// The order of runs, in which those that failed stand behind all others.
    fn cmp(&self, other: &Self) -> Ordering {
        let failed = |run: &Self| run.state == "failed";
        failed(self).cmp(&failed(other)).then(self.standing.cmp(&other.standing))
    }
}

impl Results {
    pub(super) fn of(
        output: &Path,
        contenders: &[Contender],
        over_seeds: Vec<OverSeeds>,
    ) -> anyhow::Result<Self> {
        let mut runs = contenders.iter().map(RunResult::of).collect::<anyhow::Result<Vec<RunResult>>>()?;
        runs.sort_by(RunResult::cmp);
        let finished = |run: &&RunResult| run.state == State::Finished.word() && !run.standing.is_beyond;
        let best = runs.iter().find(finished).map(|run| run.name.clone());
        let of_best = contenders.iter().find(|contender| Some(&contender.name) == best.as_ref());
        let next = of_best.map(|contender| {
            let full = contender.prepared.settings.run.adapter.method == Method::Full;
            let flag = if full { "--model" } else { "--adapter" };
            format!("luthier generate {flag} {} --prompt TEXT", quoted(&contender.folder))
        });
        let folder = output.to_owned();
        Ok(Results { output: output.display().to_string(), best, runs, over_seeds, folder, next })
    }

    /// The name of the best run, if one came to its end.
    pub(super) fn best(&self) -> Option<&str> {
        self.best.as_deref()
    }

    /// The numbers that are best at the edge of what was tried: a better one may lie beyond.
    fn edges(&self) -> Vec<String> {
        let Some(best) = self.runs.iter().find(|run| Some(&run.name) == self.best.as_ref()) else {
            return Vec::new();
        };
        let edge = |(key, text): &(String, String)| {
            let value = typed(text).as_f64()?;
            let mut tried: Vec<f64> =
                self.runs.iter().filter_map(|run| run.settings.get(key)?.as_f64()).collect();
            tried.sort_by(f64::total_cmp);
            tried.dedup();
            match &tried[..] {
                [] | [_] => None,
                [first, ..] if *first == value => Some(format!("{key}, {text}, is the least that was tried")),
                [.., last] if *last == value => Some(format!("{key}, {text}, is the most that was tried")),
                _ => None,
            }
        };
        // A seed is no more than a number, and none is beyond another.
        best.changes.iter().filter(|(key, _)| key != SEED).filter_map(edge).collect()
    }

    /// Writes `sweep.json` and the page into the folder of the sweep.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        write_whole(&self.folder.join("sweep.json"), json.as_bytes())?;
        Ok(write_whole(&self.folder.join("sweep.html"), page(&self.output, &self.runs).as_bytes())?)
    }
}

impl Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.runs.first().map_or(&[][..], |run| &run.changes);
        let header = ["run"].into_iter().chain(keys.iter().map(|(key, _)| key.as_str()));
        let header = header.chain(["steps", "train loss", "held-out loss", "state"]);
        let mut table = Table::new(header);
        let loss = |loss: Option<f64>| loss.map_or(String::new(), terminal::loss);
        for run in &self.runs {
            let mut cells = vec![run.name.clone()];
            cells.extend(run.changes.iter().map(|(_, value)| value.clone()));
            cells.extend([run.steps.to_string(), loss(run.train_loss), loss(run.eval_loss)]);
            cells.push(run.why.as_ref().map_or(run.state.to_owned(), |why| format!("{}: {why}", run.state)));
            table.row(cells);
        }
        write!(f, "{table}{}\ncurves: {}", Told(&self.over_seeds), self.folder.join("sweep.html").display())?;
        for edge in self.edges() {
            write!(f, "\nThe best run's {edge}: a better one may lie beyond.")?;
        }
        if let Some(next) = &self.next {
            write!(f, "\nTry next:\n  {next}")?;
        }
        Ok(())
    }
}
