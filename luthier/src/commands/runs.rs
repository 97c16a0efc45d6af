//! `luthier runs`: which runs there are, and what differs between some of them.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::compared::{self, Named};
use crate::cli;
use crate::error::user;
use crate::run_folder::{Account, Losses, State};
use crate::terminal::{self, Table, bytes, count, date, duration, one_line};

/// A run in numbers.
#[derive(Serialize)]
struct Told {
    name: String,
    folder: String,
    model: String,
    method: String,
    data: String,
    state: State,
    steps: u64,
    /// Of the whole run, as far as its epochs tell.
    all_steps: Option<u64>,
    epochs: f64,
    loss: Option<Losses>,
    held_out_loss: Option<Losses>,
    /// The step that the result is of, and its losses; of a run without a result, of the last step.
    result_step: u64,
    result_loss: Option<f64>,
    result_held_out_loss: Option<f64>,
    tokens: u64,
    tokens_per_second: Option<f64>,
    memory_bytes: Option<u64>,
    /// Of all steps, without evaluations and saving.
    seconds: f64,
    /// Seconds since 1970.
    begun: i64,
}

impl Told {
    fn of(name: &str, account: &Account) -> Self {
        let (history, result) = (&account.history, account.result());
        Told {
            name: name.to_owned(),
            folder: account.folder.display().to_string(),
            model: account.model(),
            method: account.method(),
            data: account.data(),
            state: account.state,
            steps: account.steps(),
            all_steps: account.all_steps(),
            epochs: history.steps.last().map_or(0.0, |step| step.epoch),
            loss: Losses::of_steps(history),
            held_out_loss: Losses::of_evaluations(history),
            result_step: result.step,
            result_loss: result.loss,
            result_held_out_loss: result.held_out_loss,
            tokens: account.tokens(),
            tokens_per_second: account.tokens_per_second(),
            memory_bytes: account.memory_bytes(),
            seconds: account.time().as_secs_f64(),
            begun: account.begun,
        }
    }

    fn steps(&self) -> String {
        match self.all_steps {
            _ if self.result_step < self.steps => format!("{}, result of {}", self.steps, self.result_step),
            Some(all) if all > self.steps => format!("{}/{all}", self.steps),
            _ => self.steps.to_string(),
        }
    }
}

/// Lists the runs in and below some folders. One that cannot be read is a note.
pub(super) fn list(args: cli::ListRuns) -> anyhow::Result<ExitCode> {
    if let Some(folder) = args.folders.iter().find(|folder| !folder.is_dir()) {
        return Err(user(format!("{}: there is no such folder", folder.display())));
    }
    let mut runs: Vec<Account> = Vec::new();
    for folder in Account::distinct(args.folders.iter().flat_map(|folder| Account::find(folder))) {
        match Account::read(&folder) {
            Ok(run) => runs.push(run),
            Err(error) => eprintln!("note: {} is left out: {error:#}", folder.display()),
        }
    }
    runs.sort_by(|a, b| b.begun.cmp(&a.begun).then(a.folder.cmp(&b.folder)));
    let told: Vec<Told> = runs.iter().map(|run| Told::of(&path(&run.folder), run)).collect();
    if args.json {
        terminal::print_json(&json!({ "runs": told }))?;
    } else if told.is_empty() {
        eprintln!("there are no runs in these folders");
    } else {
        terminal::print_line(table(&told))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A path as people write it, without the folder they are in.
fn path(folder: &Path) -> String {
    folder.strip_prefix(".").unwrap_or(folder).display().to_string()
}

/// A loss as a cell.
fn loss(of: Option<f64>) -> String {
    of.map_or(String::new(), terminal::loss)
}

fn table(runs: &[Told]) -> Table {
    let header = [
        "run", "state", "steps", "loss", "best", "held out", "best", "time", "began", "model", "method",
        "data",
    ];
    let mut table = Table::new(header);
    for run in runs {
        table.row([
            one_line(&run.name),
            run.state.word().to_owned(),
            run.steps(),
            loss(run.result_loss),
            loss(run.loss.map(|of| of.best)),
            loss(run.result_held_out_loss),
            loss(run.held_out_loss.map(|of| of.best)),
            duration(Duration::from_secs_f64(run.seconds)),
            date(run.begun).chars().take(16).collect::<String>().replace('T', " "),
            one_line(&run.model),
            run.method.clone(),
            one_line(&run.data),
        ]);
    }
    table
}

/// Puts runs beside each other.
pub(super) fn compare(args: cli::CompareRuns) -> anyhow::Result<ExitCode> {
    let runs = Named::all(Account::named(&args.runs)?);
    let told: Vec<Told> = runs.iter().map(|run| Told::of(&run.name, &run.account)).collect();
    if args.json {
        let differing = compared::differing(&runs).into_iter();
        let settings: Map<String, Value> = differing.map(|(key, values)| (key, values.into())).collect();
        terminal::print_json(&json!({ "runs": told, "settings": settings }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut parts = vec![results(&told).to_string()];
    match compared::table_of_settings(&runs) {
        Some(table) => parts.push(format!("settings that differ\n{table}")),
        None if runs.len() > 1 => parts.push("the settings are the same".to_owned()),
        None => {}
    }
    let (columns, colour) = (terminal::stdout_columns(), terminal::stdout_colour());
    let plots = [compared::losses(&runs), compared::held_out(&runs)];
    parts.extend(plots.iter().map(|plot| plot.text(columns, colour)).filter(|text| !text.is_empty()));
    terminal::print_line(parts.iter().map(|part| part.trim_end()).collect::<Vec<_>>().join("\n\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn results(runs: &[Told]) -> Table {
    let header = [
        "run",
        "state",
        "steps",
        "first loss",
        "result",
        "best",
        "held out",
        "best",
        "time",
        "tokens/s",
        "memory",
    ];
    let mut table = Table::new(header);
    for run in runs {
        table.row([
            one_line(&run.name),
            run.state.word().to_owned(),
            run.steps(),
            loss(run.loss.map(|of| of.first)),
            loss(run.result_loss),
            loss(run.loss.map(|of| of.best)),
            loss(run.result_held_out_loss),
            loss(run.held_out_loss.map(|of| of.best)),
            duration(Duration::from_secs_f64(run.seconds)),
            run.tokens_per_second.map_or(String::new(), count),
            run.memory_bytes.map_or(String::new(), bytes),
        ]);
    }
    table
}
