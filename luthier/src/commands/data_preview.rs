//! `luthier data preview`: shows examples as the model will see them.

use std::process::ExitCode;

use data::{Dataset, Example, Tokenizer, preview};
use serde_json::json;

use crate::cli::{self, Global};
use crate::run_file::Purpose;
use crate::setup;
use crate::terminal::{self, count};

pub(super) fn run(args: cli::Preview, _global: &Global) -> anyhow::Result<ExitCode> {
    let settings = args.run.settings()?;
    settings.validate(Purpose::Preview)?;
    let run = &settings.run;
    let (tokenizer, config) = setup::tokenizer_of(run.model.as_deref().expect("validated"))?;
    let data = setup::training_examples(run, config.as_ref(), &tokenizer, None)?;
    let shown = &data.examples[..args.count.min(data.examples.len())];
    if args.json {
        let examples: Vec<_> =
            shown.iter().map(|e| preview::json(e, &tokenizer)).collect::<Result<_, _>>()?;
        terminal::print_json(&json!({ "examples": examples }))?;
    } else {
        for example in shown {
            terminal::print_line(painted(example, &tokenizer))?;
        }
    }
    summarize(&data);
    let warnings = match &config {
        Some(config) => setup::warnings(&data.report, config),
        None => data.report.warnings(),
    };
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    Ok(ExitCode::SUCCESS)
}

/// Where the example stands, its sizes, and its text with what is trained marked.
fn painted(example: &Example, tokenizer: &Tokenizer) -> String {
    let runs = preview::runs(example, tokenizer);
    let runs = runs.iter().map(|(text, trained)| (text.as_str(), *trained));
    let text = terminal::paint_segments(runs, terminal::stdout_colour());
    let (tokens, trained) = (example.len(), example.trained_tokens());
    format!("--- {}: {tokens} tokens, {trained} carry loss\n{text}\n", example.source)
}

/// All examples in numbers, on stderr.
fn summarize(data: &Dataset) {
    let report = &data.report;
    for file in &report.files {
        let found = if file.found { " (found by looking)" } else { "" };
        eprintln!("{}: {} records, format {}{found}", file.path.display(), file.records, file.format);
    }
    eprintln!(
        "{} examples, {} tokens, {} of them carry loss; the longest example has {}",
        report.examples,
        count(report.tokens as f64),
        count(report.trained_tokens as f64),
        report.longest
    );
}
