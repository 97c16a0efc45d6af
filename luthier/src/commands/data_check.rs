//! `luthier data check`: examines a set of examples for a tokenizer.

use std::fmt::Write as _;
use std::process::ExitCode;

use data::audit::{Audit, Finding, Summary};

use crate::cli::{self, Global};
use crate::run_file::{self, Purpose};
use crate::setup;
use crate::terminal::{self, count};

/// Exit code under `--strict` if there is a serious finding.
const FOUND: u8 = 2;
/// The longest bar of the histogram, in columns.
const BAR: usize = 40;
/// Longer than any example.
const UNCUT: usize = usize::MAX / 2;

pub(super) fn run(args: cli::Check, _global: &Global) -> anyhow::Result<ExitCode> {
    let settings = args.run.settings()?;
    settings.validate(Purpose::Preview)?;
    let run = &settings.run;
    let (tokenizer, config) = setup::tokenizer_of(run.model.as_deref().expect("validated"))?;
    // As a run would have them but for the limit on lengths.
    let mut uncut = run.clone();
    uncut.data.max_length = Some(UNCUT);
    uncut.data.on_overflow = run_file::OnOverflow::Truncate;
    let (train, eval) = setup::datasets(&uncut, config.as_ref(), &tokenizer, None)?;
    let (max_length, on_overflow) =
        (setup::max_length(run, config.as_ref()), setup::on_overflow(run.data.on_overflow));
    let audit = Audit::new(&train, eval.as_ref(), max_length, on_overflow, &tokenizer)?;
    match args.json {
        true => terminal::print_json(&audit)?,
        false => terminal::print(&terminal::printable(&told(&audit)))?,
    }
    let serious = audit.findings.iter().any(|finding| finding.serious);
    Ok(if args.strict && serious { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

/// The audit for a person.
fn told(audit: &Audit) -> String {
    let mut text = summary("training", &audit.train);
    if let Some(eval) = &audit.eval {
        text += &format!("\n{}", summary("held-out", eval));
    }
    let findings = |serious: bool| audit.findings.iter().filter(move |finding| finding.serious == serious);
    for (heading, serious) in [("Serious", true), ("To look at", false)] {
        if findings(serious).next().is_some() {
            text += &format!("\n{heading}:\n");
            text.extend(findings(serious).map(finding));
        }
    }
    if audit.findings.is_empty() {
        text += "\nNothing was found.\n";
    }
    text
}

fn summary(name: &str, set: &Summary) -> String {
    let mut text = String::new();
    let share = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    let lengths = &set.lengths;
    let number = |n: usize| count(n as f64);
    let mut line = |words: String| writeln!(text, "{words}").expect("writing to a string");
    line(format!(
        "{} {name} examples, {} tokens, {} of them carry loss ({:.0} %)",
        set.examples,
        number(set.tokens),
        number(set.trained_tokens),
        share(set.trained_tokens, set.tokens)
    ));
    line(format!(
        "tokens of an example: shortest {}, median {}, 90 % up to {}, 99 % up to {}, longest {}",
        lengths.min, lengths.median, lengths.p90, lengths.p99, lengths.max
    ));
    let most = set.histogram.iter().map(|bin| bin.examples).max().unwrap_or(0).max(1);
    for bin in &set.histogram {
        let bar = "█".repeat((bin.examples * BAR).div_ceil(most));
        line(format!("  up to {:>7}  {:>8}  {bar}", bin.up_to, bin.examples).trim_end().to_owned());
    }
    let [most, nearly_all, all] = set.fitting;
    line(format!("whole examples: 95 % at data.max_length {most}, 99 % at {nearly_all}, all at {all}"));
    line(format!(
        "at {}: {} beyond, {} of the tokens that carry loss are lost ({:.1} %)",
        set.max_length,
        set.beyond,
        number(set.lost_tokens),
        share(set.lost_tokens, set.trained_tokens)
    ));
    line("longest:".to_owned());
    set.longest.iter().for_each(|(at, tokens)| line(format!("    {at} ({tokens} tokens)")));
    text
}

fn finding(finding: &Finding) -> String {
    let Finding { count, what, places, advice, .. } = finding;
    let examples = if *count == 1 { "example" } else { "examples" };
    let mut text = format!("- {what}: {count} {examples}\n");
    text.extend(places.iter().map(|place| format!("    {place}\n")));
    if *count > places.len() {
        text += &format!("    ... and {} more\n", count - places.len());
    }
    text + &format!("  -> {advice}\n")
}
