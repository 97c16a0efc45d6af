//! `luthier eval perplexity`: the loss of a model, and of adapters beside it, on a file of examples.

use std::process::ExitCode;
use std::time::Instant;

use data::{Dataset, Example, IGNORE, Tokenizer};
use eval::paired::{Estimate, Part};
use model::memory::Allocator;
use model::{Activations, Decoder, Extent};
use serde::Serialize;

use super::compare::{self, Difference, Got, Kind};
use super::systems::{Holder, System, Systems};
use crate::cli::{self, Global};
use crate::error::user;
use crate::run_file::Purpose;
use crate::setup;
use crate::terminal::{self, Progress, Table, count};

/// Tokens in one pass, where no example is longer.
const TOKENS_PER_PASS: usize = 1024;

pub(super) fn run(args: &cli::Perplexity, global: &Global) -> anyhow::Result<ExitCode> {
    let mut settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    let device = global.device()?;
    let systems = Systems::open(&args.systems, &mut settings, &device)?;
    let (run, base) = (&settings.run, &systems.base);
    let tokenizer = base.tokenizer()?;
    let path = run.data.eval.as_ref().expect("--data is required and stands here");
    let data = setup::dataset(run, path, Some(&base.config), &tokenizer, None)?;
    setup::warnings(&data.report, &base.config).iter().for_each(|warning| eprintln!("warning: {warning}"));
    let tokens = |longest: usize| TOKENS_PER_PASS.min(data.report.tokens).max(longest);
    let extent = systems.extent(&settings, global.threads(), data.report.longest, tokens)?;
    let bytes = bytes(&data.examples, &tokenizer)?;

    let (mut holder, mut all) = (Holder::new(base, &settings, &device), Vec::new());
    for system in &systems.all {
        let decoder = holder.decoder(system)?;
        all.push(evaluate(system, &decoder, &data.examples, extent)?);
    }
    let report = Report::of(&all, &data, bytes);
    match args.systems.json {
        true => terminal::print_json(&report)?,
        false => terminal::print_line(&report)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A system's losses: of each example the sum and how many tokens carry loss.
struct Losses {
    name: String,
    of_examples: Vec<(f64, u64)>,
    seconds: f64,
}

/// What a system comes to.
#[derive(Serialize)]
struct Perplexity {
    system: String,
    /// Mean over the tokens that carry loss, in nats.
    loss: f64,
    perplexity: f64,
    /// Bits for each byte of the text that carries loss, so that tokenizers compare.
    bits_per_byte: f64,
    /// The interval of the loss, by drawing examples anew.
    interval: Option<Estimate>,
    /// Without the time for loading.
    seconds: f64,
}

/// What is printed: the numbers of the last system, and of all of them if there are several.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    last: Perplexity,
    /// Tokens that carry loss.
    tokens: u64,
    examples: usize,
    /// With the tokens that carry no loss.
    all_tokens: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    beside: Vec<Perplexity>,
    /// How the losses differ from the first system's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Difference>,
}

impl Report {
    fn of(all: &[Losses], data: &Dataset, bytes: usize) -> Self {
        let part = |&(sum, tokens): &(f64, u64)| Part { sum, count: tokens as f64 };
        let got: Vec<Got> = all
            .iter()
            .map(|of| Got { name: of.name.clone(), parts: of.of_examples.iter().map(part).collect() })
            .collect();
        let mut tokens = 0;
        let numbers = all.iter().zip(compare::estimates(&got, None)).map(|(of, interval)| {
            let sum: f64 = of.of_examples.iter().map(|(sum, _)| sum).sum();
            tokens = of.of_examples.iter().map(|(_, tokens)| tokens).sum();
            let loss = sum / tokens as f64;
            let bits_per_byte = sum / std::f64::consts::LN_2 / bytes.max(1) as f64;
            let (system, seconds) = (of.name.clone(), of.seconds);
            Perplexity { system, loss, perplexity: loss.exp(), bits_per_byte, interval, seconds }
        });
        let mut numbers: Vec<Perplexity> = numbers.collect();
        let last = numbers.pop().expect("there is a system");
        let differences = compare::differences(&got, None);
        let (examples, all_tokens) = (data.report.examples, data.report.tokens);
        Report { last, tokens, examples, all_tokens, beside: numbers, differences }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { last, tokens, examples, all_tokens, beside, differences } = self;
        if beside.is_empty() {
            writeln!(f, "loss        {:.6}, {}", last.loss, compare::interval(last.interval))?;
            writeln!(f, "perplexity  {:.4}", last.perplexity)?;
            writeln!(f, "bits/byte   {:.4}", last.bits_per_byte)?;
        } else {
            let mut table = Table::new(["", "loss", "95 % interval", "perplexity", "bits/byte"]);
            for of in beside.iter().chain([last]) {
                let Perplexity { system, loss, perplexity, bits_per_byte, interval, .. } = of;
                table.row([
                    system.clone(),
                    format!("{loss:.6}"),
                    compare::interval(*interval),
                    format!("{perplexity:.4}"),
                    format!("{bits_per_byte:.4}"),
                ]);
            }
            writeln!(
                f,
                "{table}\n\n{}\n",
                compare::table(Kind::Loss, "loss", &differences.iter().collect::<Vec<_>>())
            )?;
        }
        let seconds: f64 = beside.iter().chain([last]).map(|of| of.seconds).sum();
        let speed = count((*all_tokens * (beside.len() + 1)) as f64 / seconds.max(1e-9));
        writeln!(f, "tokens      {tokens} that carry loss, of {all_tokens} in {examples} examples")?;
        write!(f, "time        {seconds:.1} s, {speed} tokens/s")
    }
}

/// Bytes of the text that carries loss. Special tokens are no text: their loss counts, and they have no bytes.
fn bytes(examples: &[Example], tokenizer: &Tokenizer) -> anyhow::Result<usize> {
    let mut bytes = 0;
    for example in examples {
        let ids = example.input_ids.iter().zip(&example.labels).skip(1);
        let labelled: Vec<u32> = ids.filter(|(_, label)| **label != IGNORE).map(|(id, _)| *id).collect();
        bytes += tokenizer.decode(&labelled, true)?.len();
    }
    Ok(bytes)
}

/// The losses of a system, with progress on stderr.
fn evaluate(
    system: &System,
    decoder: &Decoder,
    examples: &[Example],
    extent: Extent,
) -> anyhow::Result<Losses> {
    let System { name, adapter, .. } = system;
    let mut buffers = Activations::new(
        &decoder.config,
        &system.layout(),
        0.0,
        extent,
        &mut Allocator::real(&decoder.device),
    );
    adapter.iter().for_each(|adapter| decoder.fix(adapter));
    let (begun, run) = (Instant::now(), decoder.run(adapter.as_ref()));
    let tokens: usize = examples.iter().map(Example::len).sum();
    // Some passes between two reports, so that few of them are cut short.
    let at_once = (16 * extent.tokens * examples.len() / tokens.max(1)).max(1);
    let mut progress = Progress::items("evaluating", examples.len() as u64, 0);
    let (mut of_examples, mut facts) = (Vec::new(), String::new());
    for examples in examples.chunks(at_once) {
        of_examples.extend(train::evaluate(&run, decoder, (of_examples.len(), examples), &mut buffers)?);
        facts = format!("{name}: loss {:.4}", mean(&of_examples));
        progress.set(of_examples.len() as u64, &facts);
    }
    progress.finish(&facts);
    let loss = mean(&of_examples);
    if !loss.is_finite() {
        let whose =
            if adapter.is_some() { "the model's weights or the adapter's" } else { "the model's weights" };
        return Err(user(format!("the loss of {name} is {loss}: {whose} are damaged or too large")));
    }
    Ok(Losses { name: name.clone(), of_examples, seconds: begun.elapsed().as_secs_f64() })
}

/// The mean over tokens.
fn mean(of_examples: &[(f64, u64)]) -> f64 {
    let tokens: u64 = of_examples.iter().map(|(_, tokens)| tokens).sum();
    of_examples.iter().map(|(sum, _)| sum).sum::<f64>() / tokens.max(1) as f64
}
