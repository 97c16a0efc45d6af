//! `luthier eval perplexity`: the loss of a model on a file of examples.

use std::process::ExitCode;
use std::time::Instant;

use data::{Dataset, Example};
use model::memory::Allocator;
use model::{Activations, Decoder, Extent, Layout, Purpose as Pass};
use serde::Serialize;

use crate::cli::{self, Global};
use crate::error::user;
use crate::run_file::{Purpose, RunFile};
use crate::setup::{self, Base, Inference, Subject};
use crate::terminal::{self, Progress, count};

/// Tokens in one pass, where no example is longer.
const TOKENS_PER_PASS: usize = 1024;
/// Half of the longest example is proposed where the memory is not enough, but no less than this.
const SHORTEST: usize = 128;

pub(super) fn run(args: cli::Eval, global: &Global) -> anyhow::Result<ExitCode> {
    let cli::Eval::Perplexity(args) = args;
    let mut settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    let device = global.device()?;
    let subject = Subject::open(args.model.as_deref(), args.adapter.as_deref(), &device)?;
    subject.lend(&mut settings);
    let run = &settings.run;
    let Subject { base, adapter, .. } = subject;
    setup::check_model(&settings, &base.config)?;
    let tokenizer = base.tokenizer()?;
    let path = run.data.eval.as_ref().expect("--data is required and stands here");
    let data = setup::dataset(run, path, Some(&base.config), &tokenizer, None)?;
    let layout = adapter.as_ref().map(|a| a.layout.clone()).unwrap_or_default();
    setup::warnings(&data.report, &base.config).iter().for_each(|warning| eprintln!("warning: {warning}"));
    let extent = extent(run, &data, &base, &layout, global.threads())?;

    let decoder = base.load(&device, extent.precision, setup::quantization(run))?;
    let mut buffers = Activations::new(&base.config, &layout, 0.0, extent, &mut Allocator::real(&device));
    adapter.iter().for_each(|adapter| decoder.fix(adapter));
    let begun = Instant::now();
    let (sum, tokens) = evaluate(&decoder.run(adapter.as_ref()), &decoder, &data.examples, &mut buffers)?;
    let loss = sum / tokens as f64;
    if !loss.is_finite() {
        let whose =
            if adapter.is_some() { "the model's weights or the adapter's" } else { "the model's weights" };
        return Err(user(format!("the loss is {loss}: {whose} are damaged or too large")));
    }
    let result = Perplexity {
        loss,
        perplexity: loss.exp(),
        tokens,
        examples: data.report.examples,
        all_tokens: data.report.tokens,
        seconds: begun.elapsed().as_secs_f64(),
    };
    match args.json {
        true => terminal::print_json(&result)?,
        false => terminal::print_line(result)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What is printed.
#[derive(Serialize)]
struct Perplexity {
    /// Mean over the tokens that carry loss, in nats.
    loss: f64,
    perplexity: f64,
    /// Those tokens.
    tokens: u64,
    examples: usize,
    /// With the tokens that carry no loss.
    all_tokens: usize,
    /// Without the time for loading.
    seconds: f64,
}

impl std::fmt::Display for Perplexity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Perplexity { loss, perplexity, tokens, examples, all_tokens, seconds } = self;
        let speed = count(*all_tokens as f64 / seconds.max(1e-9));
        writeln!(f, "loss        {loss:.6}")?;
        writeln!(f, "perplexity  {perplexity:.4}")?;
        writeln!(f, "tokens      {tokens} that carry loss, of {all_tokens} in {examples} examples")?;
        write!(f, "time        {seconds:.1} s, {speed} tokens/s")
    }
}

/// The sizes of a pass, if they fit into the memory.
fn extent(
    run: &RunFile,
    data: &Dataset,
    base: &Base,
    layout: &Layout,
    threads: usize,
) -> anyhow::Result<Extent> {
    let (config, stored) = (&base.config, base.stored.as_ref());
    let (precision, quantization) = (run.precision.engine(), setup::quantization(run));
    let longest = data.report.longest;
    let extent = |longest: usize, precision| {
        let tokens = TOKENS_PER_PASS.min(data.report.tokens).max(longest);
        Extent { tokens, positions: longest, purpose: Pass::Infer, precision }
    };
    let inference = Inference { config, stored, precision, quantization, threads };
    let need = |inference: Inference<'_>, longest: usize| {
        let mut planning = Allocator::planning();
        Activations::new(config, layout, 0.0, extent(longest, inference.precision), &mut planning);
        inference.plan(&planning.into_plan(), longest)
    };
    setup::check_memory("the evaluation", &need(inference, longest), run.memory, || {
        let half = longest / 2;
        let shorter = (longest > 2 * SHORTEST)
            .then(|| (format!("--set data.max_length={half}"), need(inference, half)));
        let smaller = inference.smaller("--set quantization=nf4", "--set precision=bf16");
        let smaller = smaller.into_iter().map(|(words, other)| (words, need(other, longest)));
        shorter.into_iter().chain(smaller).collect()
    })?;
    Ok(extent(longest, precision))
}

/// [`train::evaluate`] with progress on stderr.
fn evaluate(
    run: &model::Run<'_>,
    decoder: &Decoder,
    examples: &[Example],
    buffers: &mut Activations,
) -> train::Result<(f64, u64)> {
    let tokens: usize = examples.iter().map(Example::len).sum();
    // Some passes between two reports, so that few of them are cut short.
    let at_once = (16 * buffers.extent().tokens * examples.len() / tokens.max(1)).max(1);
    let mut progress = Progress::items("evaluating", examples.len() as u64, 0);
    let (mut sum, mut count, mut done, mut facts) = (0.0, 0, 0, String::new());
    for examples in examples.chunks(at_once) {
        let (more, tokens) = train::evaluate(run, decoder, (done, examples), buffers)?;
        (sum, count, done) = (sum + more, count + tokens, done + examples.len());
        facts = format!("loss {:.4}", sum / count.max(1) as f64);
        progress.set(done as u64, &facts);
    }
    progress.finish(&facts);
    Ok((sum, count))
}
