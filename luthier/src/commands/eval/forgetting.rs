//! `luthier eval forgetting`: how far adapters have moved a model from its base on text that they were not trained
//! on.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use data::Example;
use eval::paired::{Estimate, Part};
use model::memory::Allocator;
use model::{Activations, Change, Decoder, Extent};
use serde::Serialize;
use serde_json::json;

use super::compare::{self, Difference, Got, Kind};
use super::items;
use super::systems::{Holder, System, Systems};
use crate::cli::{self, Global};
use crate::error::user;
use crate::forgetting;
use crate::run_file::{Purpose, Settings};
use crate::setup::{self, Base};
use crate::terminal::{self, Progress, Table, count};

pub(super) fn run(args: &cli::Forgetting, global: &Global) -> anyhow::Result<ExitCode> {
    if args.systems.adapter.is_empty() {
        return Err(user(
            "`eval forgetting` compares adapters with their base: name one by --adapter; a model whose weights were all trained \
             is measured while it trains, by training.forgetting_every",
        ));
    }
    if args.systems.unquantized {
        let message =
            "`eval forgetting` compares adapters with the base that they stand on; leave out --unquantized";
        return Err(user(message));
    }
    let mut settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    let data = args.data.as_deref().unwrap_or_default();
    args.items.iter().try_for_each(|path| items::check(path, data.as_ref()))?;
    let device = global.device()?;
    let systems = Systems::open(&args.systems, &mut settings, &device)?;
    if systems.base.changed_by.is_some() {
        let adapter = &args.systems.adapter[0];
        let message =
            "has weights of the base itself in its file, so there is no base beside it to compare with";
        return Err(user(format!("{adapter} {message}")));
    }
    let texts = texts(&settings, &systems.base)?;
    let longest = texts.iter().map(Example::len).max().unwrap_or(0);
    // Each text passes with the adapter and without it at once.
    let extent = systems.extent(&settings, global.threads(), longest, |longest| 2 * longest)?;
    let mut holder = Holder::new(&systems.base, &settings, &device);
    let decoder = holder.decoder(&systems.all[systems.all.len() - 1])?;
    let (begun, mut all) = (Instant::now(), Vec::new());
    for system in systems.all.iter().filter(|system| system.adapter.is_some()) {
        all.push((system.name.clone(), measure(system, &decoder, &texts, extent)?));
    }
    let report = Report::of(systems.base.title(), &texts, &all, begun.elapsed().as_secs_f64());
    if let Some(path) = &args.items {
        write_items(path, &texts, &all)?;
    }
    match args.systems.json {
        true => terminal::print_json(&report)?,
        false => terminal::print_line(&report)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The examples that are named, or the passages that come with the program.
fn texts(settings: &Settings, base: &Base) -> anyhow::Result<Vec<Example>> {
    let (run, tokenizer) = (&settings.run, base.tokenizer()?);
    let Some(path) = &run.data.eval else {
        return forgetting::texts(&tokenizer, base.config.max_position_embeddings);
    };
    let data = setup::dataset(run, path, Some(&base.config), &tokenizer, None)?;
    setup::warnings(&data.report, &base.config).iter().for_each(|warning| eprintln!("warning: {warning}"));
    Ok(data.examples)
}

/// What a system changes about the tokens of each text.
fn measure(
    System { name, adapter, .. }: &System,
    decoder: &Decoder,
    texts: &[Example],
    extent: Extent,
) -> anyhow::Result<Vec<Vec<Change>>> {
    let adapter = adapter.as_ref().expect("the base is not compared with itself");
    let mut allocator = Allocator::real(&decoder.device);
    let mut buffers = Activations::new(&decoder.config, &adapter.layout, 0.0, extent, &mut allocator);
    decoder.fix(adapter);
    let run = decoder.run(Some(adapter));
    let mut progress = Progress::items("comparing", texts.len() as u64, 0);
    let mut changes = Vec::with_capacity(texts.len());
    for text in texts {
        changes.extend(train::changes(&run, decoder, std::slice::from_ref(text), &mut buffers));
        progress.set(changes.len() as u64, name);
    }
    progress.finish(name);
    if changes.iter().flatten().any(|change| !(change.loss.is_finite() && change.base_loss.is_finite())) {
        return Err(user(format!("a loss of {name} or of its base is not finite: weights are damaged")));
    }
    Ok(changes)
}

/// The sum of something over the tokens of each text.
fn parts(changes: &[Vec<Change>], of: impl Fn(&Change) -> f32) -> Vec<Part> {
    let sum = |text: &Vec<Change>| text.iter().map(|change| f64::from(of(change))).sum();
    changes.iter().map(|text| Part { sum: sum(text), count: text.len() as f64 }).collect()
}

fn mean(parts: &[Part]) -> f64 {
    let (sum, count) = parts.iter().fold((0.0, 0.0), |(s, n), part| (s + part.sum, n + part.count));
    sum / count
}

/// What a system has forgotten.
#[derive(Serialize)]
struct Forgotten {
    system: String,
    /// Mean divergence from the base over the texts' tokens, in nats, `KL(base, adapter)`, and its interval.
    kl: f64,
    interval: Option<Estimate>,
    /// Mean loss with the adapter, in nats, and how it differs from the base's.
    loss: f64,
    difference: Option<Difference>,
}

#[derive(Serialize)]
struct Report {
    base: String,
    base_loss: f64,
    texts: usize,
    /// Tokens that carry loss.
    tokens: usize,
    systems: Vec<Forgotten>,
    /// Without the time for loading.
    seconds: f64,
}

impl Report {
    fn of(base: String, texts: &[Example], all: &[(String, Vec<Vec<Change>>)], seconds: f64) -> Self {
        let first = &all.first().expect("there is an adapter").1;
        let base_losses = Got { name: base.clone(), parts: parts(first, |change| change.base_loss) };
        let (base_loss, tokens) = (mean(&base_losses.parts), first.iter().map(Vec::len).sum());
        let forgotten = |(system, changes): &(String, Vec<Vec<Change>>)| {
            let divergences = parts(changes, |change| change.divergence);
            let kl = mean(&divergences);
            let divergences = Got { name: system.clone(), parts: divergences };
            let losses = Got { name: system.clone(), parts: parts(changes, |change| change.loss) };
            let loss = mean(&losses.parts);
            let base_losses = Got { name: base.clone(), parts: base_losses.parts.clone() };
            let difference = compare::differences(&[base_losses, losses], None).pop();
            let interval = compare::estimates(&[divergences], None).pop().flatten();
            Forgotten { system: system.clone(), kl, interval, loss, difference }
        };
        let systems = all.iter().map(forgotten).collect();
        Report { base, base_loss, texts: texts.len(), tokens, systems, seconds }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { base, base_loss, texts, tokens, systems, seconds } = self;
        let mut table = Table::new(["forgetting", "KL from base", "95 % interval", "loss", "of base"]);
        for Forgotten { system, kl, interval, loss, .. } in systems {
            let (kl, loss, base_loss) = (format!("{kl:.4}"), format!("{loss:.4}"), format!("{base_loss:.4}"));
            table.row([system.clone(), kl, compare::interval(*interval), loss, base_loss]);
        }
        writeln!(f, "{table}\n")?;
        let differences: Vec<&Difference> = systems.iter().filter_map(|of| of.difference.as_ref()).collect();
        if !differences.is_empty() {
            writeln!(f, "{}\n", compare::table(Kind::Loss, "loss", &differences))?;
        }
        writeln!(f, "base        {base}")?;
        writeln!(f, "text        {tokens} tokens in {texts} pieces that were not trained on")?;
        let speed = count((*tokens * 2 * systems.len()) as f64 / seconds.max(1e-9));
        write!(f, "time        {seconds:.1} s, {speed} tokens/s")
    }
}

/// Writes what came of each text.
fn write_items(path: &Path, texts: &[Example], all: &[(String, Vec<Vec<Change>>)]) -> anyhow::Result<()> {
    let lines = texts.iter().enumerate().map(|(n, text)| {
        let of_system = |(system, changes): &(String, Vec<Vec<Change>>)| {
            let of = |of: fn(&Change) -> f32| mean(&parts(&changes[n..=n], of));
            let (kl, loss) = (of(|change| change.divergence), of(|change| change.loss));
            json!({"system": system, "kl": kl, "loss": loss, "base_loss": of(|change| change.base_loss)})
        };
        let systems: Vec<_> = all.iter().map(of_system).collect();
        json!({"source": text.source.to_string(), "tokens": text.trained_tokens(), "systems": systems})
    });
    items::write(path, lines)
}
