//! `luthier eval generate`: what models answer, against the answers of a file.

mod asked;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use data::{TextStream, Tokenizer, Until};
use eval::open::OpenForm;
use eval::paired::{Estimate, Part};
use eval::text::{ExactMatch, Metric, Pattern, PatternMatch, pass_at_k};
use infer::{Ask, Engine, Event, Extent, Finish, RequestId, Sampling, Sums};
use model::{Adapter, Decoder, PAGE};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::compare::{self, Flips, Got};
use super::items;
use super::systems::{Holder, Systems};
use crate::cli::{self, Global};
use crate::commands::generate::records::{Record, Records};
use crate::commands::generate::{Stops, stops};
use crate::error::user;
use crate::run_file::{Purpose, Settings};
use crate::setup::{self, Inference};
use crate::terminal::{self, Progress, Table, count};

/// Tokens of a step.
const STEP: usize = 512;

pub(super) fn run(args: &cli::Answers, global: &Global) -> anyhow::Result<ExitCode> {
    let mut settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    let metric = metric(args)?;
    if args.samples > 1 && args.temperature == 0.0 {
        let message = "--samples draws several answers to each record, and at temperature 0 all of them are the same; \
                       add --temperature 0.8, or another one above 0";
        return Err(user(message));
    }
    if args.max_tokens == 0 {
        return Err(user("--max-tokens 0 leaves no room for an answer; it must be 1 or more"));
    }
    args.items.iter().try_for_each(|path| items::check(path, &args.data))?;
    let form = args.form.as_deref().map(str::parse::<OpenForm>).transpose().context("--form")?;
    let device = global.device()?;
    let systems = Systems::open(&args.systems, &mut settings, &device)?;
    let tokenizer = systems.base.tokenizer()?;
    let Records { mut records, template } =
        asked::read(args, form, &settings.run.data, &systems.base, &tokenizer)?;
    if args.like_lm_eval {
        asked::cut(&mut records, args.max_tokens, systems.base.config.max_position_embeddings)?;
    }
    let references = references(&records, &metric)?;
    let extent = extent(args, &records, &systems)?;
    check_memory(&settings, &systems, extent, global.threads())?;
    let stops = [None, template.as_ref()].map(|template| stops(&systems.base.config, &tokenizer, template));
    let marks = marks(args, form, &tokenizer)?;

    let work = Work { args, records: &records, tokenizer: &tokenizer, stops: &stops, marks: &marks };
    let Systems { base, all: systems } = systems;
    let (mut holder, mut all) = (Holder::new(&base, &settings, &device), Vec::new());
    for system in systems {
        let decoder = holder.decoder(&system)?;
        let adapter = system.adapter.map(Arc::new);
        let answers = work.answers(&decoder, extent, &system.name, adapter)?;
        all.push(answers.scored(&metric, &references)?);
    }
    if let Some(path) = &args.items {
        items::write(path, items(&records, &all))?;
    }
    let report = Report::of(args, &all)?;
    match args.systems.json {
        true => terminal::print_json(&report)?,
        false => terminal::print_line(&report)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn metric(args: &cli::Answers) -> anyhow::Result<Metric> {
    let cli::Answers { ignore_case, ignore_punctuation, strip, .. } = *args;
    let remove = args.ignore.iter().map(|pattern| Pattern::new(pattern)).collect::<Result<Vec<_>, _>>()?;
    let has_options = ignore_case || ignore_punctuation || strip || !remove.is_empty();
    let exact = ExactMatch { remove, ignore_case, ignore_punctuation, strip, ..ExactMatch::default() };
    match (args.metric.as_str(), &args.pattern) {
        ("regex", Some(pattern)) => {
            let select = if args.last { -1 } else { 0 };
            Ok(Metric::Pattern(Box::new(PatternMatch {
                select,
                exact,
                ..PatternMatch::first(Pattern::new(pattern)?)
            })))
        }
        ("regex", None) => {
            Err(user("--metric regex needs --pattern, which says what is taken out of an answer"))
        }
        (_, Some(_)) => Err(user("--pattern is for --metric regex")),
        ("exact_match", None) => Ok(Metric::ExactMatch(exact)),
        (name, None) => {
            let metric = Metric::named(name).context("--metric takes `regex` with --pattern, or a name")?;
            match has_options {
                true => Err(user(format!(
                    "--ignore, --ignore-case, --ignore-punctuation and --strip are for --metric exact_match and \
                     regex; {name} says itself what is compared"
                ))),
                false => Ok(metric),
            }
        }
    }
}

/// The texts that end an answer. A model may spell out its EOS, and lm-evaluation-harness ends the answer there, too.
fn marks(args: &cli::Answers, form: Option<OpenForm>, tokenizer: &Tokenizer) -> anyhow::Result<Vec<String>> {
    let of_form = form.map_or(&[][..], OpenForm::stops).iter().map(|stop| (*stop).to_owned());
    let eos = tokenizer.eos().filter(|_| args.like_lm_eval);
    let eos = eos.map(|eos| tokenizer.decode(&[eos], false)).transpose()?;
    Ok(of_form.chain(args.stop.iter().cloned()).chain(eos).collect())
}

/// The answers that the records have, each good for the metric.
fn references<'r>(records: &'r [Record], metric: &Metric) -> anyhow::Result<Vec<&'r str>> {
    if records.is_empty() {
        return Err(user("--data: there are no records"));
    }
    let of = |record: &'r Record| {
        let reference = record.reference.as_deref();
        let reference = reference
            .ok_or_else(|| user(format!("{}: there is no answer to compare with", record.source)))?;
        // What cannot be compared with is told before anything is generated.
        metric.score("", &[reference]).with_context(|| record.source.clone())?;
        Ok(reference)
    };
    records.iter().map(of).collect()
}

/// Room for so many answers at once, each with its prompt.
fn extent(args: &cli::Answers, records: &[Record], systems: &Systems) -> anyhow::Result<Extent> {
    let most = systems.base.config.max_position_embeddings;
    let longest = records.iter().max_by_key(|record| record.prompt.len()).expect("there are records");
    let prompt = longest.prompt.len();
    if prompt > most {
        return Err(user(format!(
            "{}: the prompt has {prompt} tokens, and the model was made for {most}",
            longest.source
        )));
    }
    let context = prompt.saturating_add(args.max_tokens).min(most);
    let running = (args.running as usize).min(records.len() * args.samples as usize);
    let rank = systems.all.iter().map(|system| system.layout().max_rank()).max().unwrap_or(0);
    Ok(Extent {
        context,
        cached_tokens: running * context.next_multiple_of(PAGE),
        step_tokens: STEP,
        running,
        max_rank: rank.max(1),
        sums: Sums::Rows,
    })
}

fn check_memory(
    settings: &Settings,
    systems: &Systems,
    extent: Extent,
    threads: usize,
) -> anyhow::Result<()> {
    let need = |inference: Inference<'_>, extent: Extent| {
        inference.plan(&Engine::memory_plan(inference.config, inference.precision, extent), extent.context)
    };
    let inference = systems.inference(settings, threads);
    setup::check_memory("the evaluation", &need(inference, extent), settings.run.memory, || {
        let cached_tokens = extent.cached_tokens / extent.running.max(1);
        let one = Extent { running: 1, cached_tokens, ..extent };
        let fewer = (extent.running > 1).then(|| ("--running 1".to_owned(), need(inference, one)));
        let smaller =
            systems.smaller(inference).into_iter().map(|(words, other)| (words, need(other, extent)));
        fewer.into_iter().chain(smaller).collect()
    })
}

/// What is to be answered, and how.
struct Work<'w> {
    args: &'w cli::Answers,
    records: &'w [Record],
    tokenizer: &'w Tokenizer,
    /// Of plain texts, and of conversations.
    stops: &'w [Stops; 2],
    /// Texts that end an answer, whatever was asked.
    marks: &'w [String],
}

/// An answer that comes.
struct Coming {
    /// Which record's, and which of its samples.
    place: (usize, usize),
    stream: TextStream,
    until: Until,
    text: String,
}

/// What a system said.
struct Answers {
    name: String,
    /// Of each record its samples.
    texts: Vec<Vec<String>>,
    /// Answers that ended at the most tokens.
    cut: usize,
    tokens: usize,
    seconds: f64,
}

impl Work<'_> {
    /// Lets a system answer everything.
    fn answers(
        &self,
        decoder: &Arc<Decoder>,
        extent: Extent,
        name: &str,
        adapter: Option<Arc<Adapter>>,
    ) -> anyhow::Result<Answers> {
        let (begun, samples) = (Instant::now(), self.args.samples as usize);
        let at = |record: usize| format!("{}, {name}", self.records[record].source);
        let mut engine = Engine::new(Arc::clone(decoder), extent);
        let mut coming: BTreeMap<RequestId, Coming> = BTreeMap::new();
        for record in 0..self.records.len() {
            for place in (0..samples).map(|sample| (record, sample)) {
                let id = engine.submit(self.ask(place, adapter.clone())).with_context(|| at(record))?;
                coming.insert(id, self.coming(place));
            }
        }
        let all = coming.len();
        let texts = vec![vec![String::new(); samples]; self.records.len()];
        let mut answers = Answers { name: name.to_owned(), texts, cut: 0, tokens: 0, seconds: 0.0 };
        let mut progress = Progress::items("answering", all as u64, 0);
        while !engine.is_idle() {
            for (id, event) in engine.step() {
                let Some(of) = coming.get_mut(&id) else { continue };
                let (record, sample) = of.place;
                let has_ended = match event {
                    Event::Prompt { .. } => false,
                    Event::Token { token, .. } => {
                        answers.tokens += 1;
                        of.push(self.tokenizer, token);
                        of.until.has_ended()
                    }
                    Event::End(finish) => {
                        answers.cut += usize::from(finish == Finish::Length);
                        true
                    }
                    Event::Failed(error) => return Err(error).with_context(|| at(record)),
                };
                if has_ended && let Some(of) = coming.remove(&id) {
                    engine.cancel(id);
                    answers.texts[record][sample] = of.finish(self.tokenizer);
                }
            }
            progress.set((all - coming.len()) as u64, name);
        }
        progress.finish(name);
        answers.seconds = begun.elapsed().as_secs_f64();
        Ok(answers)
    }

    fn ask(&self, (record, sample): (usize, usize), adapter: Option<Arc<Adapter>>) -> Ask {
        let Record { prompt, is_chat, .. } = &self.records[record];
        // Each answer draws its own random numbers; the first ones are those of `generate`.
        let seed = self.args.seed.wrapping_add((sample * self.records.len() + record) as u64);
        Ask {
            prompt: prompt.clone(),
            adapter,
            max_tokens: self.args.max_tokens,
            stop: self.stops[usize::from(*is_chat)].tokens.clone(),
            sampling: Sampling { temperature: self.args.temperature, seed, ..Sampling::default() },
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
            owner: 0,
        }
    }

    fn coming(&self, place: (usize, usize)) -> Coming {
        let Record { prompt, is_chat, .. } = &self.records[place.0];
        let stream = match self.args.like_lm_eval {
            true => self.tokenizer.stream(true),
            false => self.tokenizer.stream_after(prompt),
        };
        let of_turn = self.stops[usize::from(*is_chat)].text.clone();
        let until = Until::new(of_turn.into_iter().chain(self.marks.iter().cloned()));
        Coming { place, stream, until, text: String::new() }
    }
}

impl Coming {
    fn push(&mut self, tokenizer: &Tokenizer, token: u32) {
        let piece = self.stream.push(tokenizer, token);
        self.text.push_str(&self.until.push(&piece));
    }

    fn finish(self, tokenizer: &Tokenizer) -> String {
        self.text + &self.until.finish(&self.stream.finish(tokenizer))
    }
}

/// Answers with their scores.
struct Scored {
    answers: Answers,
    /// Of each record's samples.
    scores: Vec<Vec<f64>>,
}

impl Answers {
    fn scored(self, metric: &Metric, references: &[&str]) -> anyhow::Result<Scored> {
        let of = |(texts, reference): (&Vec<String>, &&str)| {
            texts.iter().map(|text| metric.score(text, &[reference])).collect::<Result<Vec<f64>, _>>()
        };
        let scores = self.texts.iter().zip(references).map(of).collect::<Result<_, _>>()?;
        Ok(Scored { answers: self, scores })
    }
}

impl Scored {
    /// Of each record the mean over its samples.
    fn got(&self) -> Got {
        let mean = |scores: &Vec<f64>| Part::score(scores.iter().sum::<f64>() / scores.len() as f64);
        Got { name: self.answers.name.clone(), parts: self.scores.iter().map(mean).collect() }
    }

    /// The chance that of k answers one is wholly right, for k = 1, 2, 4 and so on; a mean over records.
    fn pass_at(&self, samples: u64) -> anyhow::Result<Vec<PassAt>> {
        let powers = std::iter::successors(Some(1), |k| Some(k * 2)).take_while(|k| *k < samples);
        let of = |k: u64| {
            let passed = |scores: &Vec<f64>| scores.iter().filter(|score| **score == 1.0).count() as u64;
            let chances = self.scores.iter().map(|of| pass_at_k(samples, passed(of), k));
            let sum = chances.sum::<Result<f64, _>>()?;
            Ok(PassAt { k, value: sum / self.scores.len() as f64 })
        };
        powers.chain([samples]).map(of).collect()
    }
}

#[derive(Serialize)]
struct PassAt {
    k: u64,
    value: f64,
}

#[derive(Serialize)]
struct OfSystem {
    system: String,
    score: f64,
    interval: Option<Estimate>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pass_at: Vec<PassAt>,
    /// Answers that ended at the most tokens.
    cut_off: usize,
    new_tokens: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct Report {
    metric: String,
    records: usize,
    samples: u32,
    systems: Vec<OfSystem>,
    /// From the first system's score.
    differences: Vec<Flips>,
}

impl Report {
    fn of(args: &cli::Answers, all: &[Scored]) -> anyhow::Result<Self> {
        let got: Vec<Got> = all.iter().map(Scored::got).collect();
        let systems =
            all.iter().zip(&got).zip(compare::estimates(&got, None)).map(|((of, got), interval)| {
                let samples = u64::from(args.samples);
                Ok(OfSystem {
                    system: got.name.clone(),
                    score: got.parts.iter().map(|part| part.sum).sum::<f64>() / got.parts.len() as f64,
                    interval,
                    pass_at: if samples > 1 { of.pass_at(samples)? } else { Vec::new() },
                    cut_off: of.answers.cut,
                    new_tokens: of.answers.tokens,
                    seconds: of.answers.seconds,
                })
            });
        Ok(Report {
            metric: args.metric.clone(),
            records: got[0].parts.len(),
            samples: args.samples,
            systems: systems.collect::<anyhow::Result<_>>()?,
            differences: compare::flips(&got, None),
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { metric, records, samples, systems, differences } = self;
        let passes = systems.first().map_or(&[][..], |of| &of.pass_at);
        let header = [String::new(), metric.clone(), "95 % interval".to_owned(), "cut off".to_owned()];
        let passes = passes.iter().map(|of| format!("pass@{}", of.k));
        let mut table = Table::new(header.into_iter().chain(passes));
        for of in systems {
            let cells = [
                of.system.clone(),
                format!("{:.4}", of.score),
                compare::interval(of.interval),
                of.cut_off.to_string(),
            ];
            table.row(cells.into_iter().chain(of.pass_at.iter().map(|of| format!("{:.4}", of.value))));
        }
        writeln!(f, "{table}\n")?;
        compare::tell_flips(f, metric, differences)?;
        let seconds: f64 = systems.iter().map(|of| of.seconds).sum();
        let tokens: usize = systems.iter().map(|of| of.new_tokens).sum();
        let speed = count(tokens as f64 / seconds.max(1e-9));
        writeln!(f, "records     {records}, answers to each: {samples}")?;
        write!(f, "time        {seconds:.1} s, {speed} new tokens/s")
    }
}

/// What came of each record.
fn items(records: &[Record], all: &[Scored]) -> impl Iterator<Item = Value> {
    records.iter().enumerate().map(|(number, record)| {
        let of_system = |of: &Scored| {
            let answers = json!({"answers": of.answers.texts[number], "scores": of.scores[number]});
            (of.answers.name.clone(), answers)
        };
        let systems: Map<String, Value> = all.iter().map(of_system).collect();
        let mut item = record.asked.clone();
        item.insert("number".into(), (number + 1).into());
        item.insert("source".into(), record.source.as_str().into());
        item.insert("reference".into(), record.reference.as_deref().into());
        item.insert("systems".into(), systems.into());
        item.into()
    })
}
