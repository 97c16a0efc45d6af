//! `luthier report`: one page that tells of one or several runs: what was trained on what, what came of it, the
//! curves, the settings, the examples, what the model answers before and after, and evaluations.

mod evaluations;
mod material;
mod page;
mod samples;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::json;

use super::compared::{self, Named};
use crate::cli::{self, Global};
use crate::error::user;
use crate::output;
use crate::plot::class;
use crate::run_file::{leaves, yaml_value};
use crate::run_folder::{Account, Losses};
use crate::setup;
use crate::terminal::{self, bytes, count, date, duration, quoted};
use evaluations::Evaluation;
use material::Material;
use page::{Drawing, Page, Run};
use samples::{Asked, Samples};

/// Examples that are shown.
const EXAMPLES: usize = 3;

/// What a report says of itself, by which it may be written again.
const MARK: &str = "<meta name=\"generator\" content=\"luthier ";
/// The part of a file that it is looked for in.
const HEAD: u64 = 4096;

pub(super) fn run(args: cli::Report, global: &Global) -> anyhow::Result<ExitCode> {
    check_place(&args.output)?;
    let runs = Named::all(Account::named(&args.runs)?);
    // What is wrong with a file is told before anything is generated.
    let evaluations = evaluations(&runs, &args)?;
    let mut page = Page {
        title: title(&runs),
        version: env!("CARGO_PKG_VERSION"),
        written: written(),
        style: super::page::style(),
        runs: runs.iter().enumerate().map(|(n, run)| described(n, run)).collect(),
        facts: FACTS.to_vec(),
        plots: compared::plots(&runs).iter().map(Drawing::of).collect(),
        evaluations,
        differing: compared::table_of_settings(&runs),
        ..Page::default()
    };
    tell_examples(&mut page, &runs, &args, global);
    output::write(&args.output, page.render()?.as_bytes())?;
    let output = args.output.display().to_string();
    match args.json {
        true => terminal::print_json(&json!({
            "output": output,
            "runs": runs.iter().map(|run| json!({"name": run.name, "folder": run.account.folder})).collect::<Vec<_>>(),
            "plots": page.plots.iter().map(|plot| &plot.title).collect::<Vec<_>>(),
            "examples": page.examples.len(),
            "samples": page.samples.len(),
            "evaluations": page.evaluations.iter().map(|of| &of.source).collect::<Vec<_>>(),
            "notes": page.examples_notes.iter().chain(&page.samples_notes).collect::<Vec<_>>(),
        }))?,
        false => terminal::print_line(format!("the report is in {}", quoted(&args.output)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses to write over what is no report, such as a run's own settings.
fn check_place(path: &Path) -> anyhow::Result<()> {
    output::check("--output", path)?;
    // Pipes and the like are written to, not over.
    if !path.is_file() {
        return Ok(());
    }
    let mut head = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    file.take(HEAD).read_to_end(&mut head).with_context(|| format!("cannot read {}", path.display()))?;
    match head.is_empty() || String::from_utf8_lossy(&head).contains(MARK) {
        true => Ok(()),
        false => {
            let message = "is there already and is no report; choose another name, or remove it";
            Err(user(format!("--output {} {message}", path.display())))
        }
    }
}

/// The evaluations of all runs, and those that were named.
fn evaluations(runs: &[Named], args: &cli::Report) -> anyhow::Result<Vec<Evaluation>> {
    let mut all = Vec::new();
    for Named { name, account } in runs {
        let of = (runs.len() > 1).then_some(name.as_str());
        for path in evaluations::files(&account.folder)? {
            all.push(Evaluation::read(&path, of)?);
        }
    }
    for path in &args.evaluation {
        all.push(Evaluation::read(path, None)?);
    }
    Ok(all)
}

/// Reads the examples of the runs again, shows the first ones, and lets the models answer. What is no longer
/// there is a note.
fn tell_examples(page: &mut Page, runs: &[Named], args: &cli::Report, global: &Global) {
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for (n, run) in runs.iter().enumerate() {
        let data = setup::data_of(&run.account.settings);
        match groups.iter_mut().find(|(of, _)| *of == data) {
            Some((_, members)) => members.push(n),
            None => groups.push((data, vec![n])),
        }
    }
    let mut samples =
        Samples::new(Asked { count: args.samples, max_tokens: args.max_tokens as usize }, global);
    for (_, members) in groups {
        let names: Vec<&str> = members.iter().map(|n| runs[*n].name.as_str()).collect();
        let whose = if runs.len() > 1 { format!("{}: ", names.join(", ")) } else { String::new() };
        let material = match Material::of(&runs[members[0]].account) {
            Ok(material) => material,
            Err(error) => {
                page.examples_notes.push(format!("{whose}the examples cannot be read again: {error:#}"));
                if args.samples > 0 {
                    page.samples_notes.push(format!("{whose}there are no answers without the examples"));
                }
                continue;
            }
        };
        page.examples.extend(material.shown(EXAMPLES));
        samples.ask(&members, runs, &material);
    }
    page.samples = samples.samples;
    page.samples_notes.extend(samples.notes);
    if args.samples == 0 {
        page.samples_notes.push("No answers were asked for (--samples 0).".to_owned());
    }
}

fn title(runs: &[Named]) -> String {
    match runs {
        [run] => run.name.clone(),
        runs if runs.len() <= 4 => runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(", "),
        runs => format!("{} runs", runs.len()),
    }
}

fn written() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    format!("written {} by luthier {}", date(now), env!("CARGO_PKG_VERSION"))
}

/// What is told of each run in the head.
const FACTS: [&str; 12] = [
    "model",
    "method",
    "data",
    "state",
    "steps",
    "epochs",
    "training loss",
    "held-out loss",
    "time",
    "tokens",
    "memory",
    "began",
];

fn described(n: usize, Named { name, account }: &Named) -> Run {
    let history = &account.history;
    let steps = match account.all_steps() {
        Some(all) if all > account.steps() => format!("{} of {all}", account.steps()),
        _ => account.steps().to_string(),
    };
    let result = account.result();
    let losses = |losses: Option<Losses>, of_result: Option<f64>| {
        losses.map_or("none".to_owned(), |losses| match of_result.filter(|_| !result.is_last) {
            Some(loss) => format!("{losses}; {} of the result (step {})", terminal::loss(loss), result.step),
            None => losses.to_string(),
        })
    };
    let speed =
        account.tokens_per_second().map_or(String::new(), |speed| format!(" ({} tokens/s)", count(speed)));
    let facts = [
        account.model(),
        account.method(),
        account.data(),
        account.state.word().to_owned(),
        steps,
        history.steps.last().map_or("0".to_owned(), |step| format!("{:.2}", step.epoch)),
        losses(Losses::of_steps(history), result.loss),
        losses(Losses::of_evaluations(history), result.held_out_loss),
        duration(account.time()),
        format!("{}{speed}", count(account.tokens() as f64)),
        account.memory_bytes().map_or("none".to_owned(), |most| format!("{} at most", bytes(most))),
        date(account.begun),
    ];
    Run {
        name: name.clone(),
        class: class(n),
        facts: facts.to_vec(),
        settings: leaves(&account.settings)
            .into_iter()
            .map(|(key, value)| (key, yaml_value(&value)))
            .collect(),
    }
}
