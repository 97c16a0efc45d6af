//! `luthier generate --data`: an answer to every record of a file, as a line of another.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use infer::{Generator, Sampling};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::records::{Record, Records, files};
use super::{Ask, Ended, Speaker, Stops, context};
use crate::cli::{self, Global};
use crate::error::{Advised, STOPPED, user};
use crate::signal;
use crate::terminal::{self, Progress, duration};

/// Records whose place is told of those that could not be answered.
const TOLD: usize = 3;

pub(super) fn run(args: cli::Generate, global: &Global) -> anyhow::Result<ExitCode> {
    let data = args.data.as_deref().expect("the command was asked for data");
    let reading = args.reading()?;
    let files = files(data)?;
    let mut output = Output::open(&args.output)?;
    if args.json && output.is_stdout() {
        return Err(user("--json prints a summary: name a file for the answers by --output"));
    }
    let speaker = Speaker::open(args.model.as_deref(), args.adapter.as_deref(), global)?;
    let named = args.chat_template.as_deref();
    let Records { records, template } =
        Records::read(&files, &reading, named, &speaker.subject.base, &speaker.tokenizer)?;
    if records.is_empty() {
        return Err(user(format!("{} has no records", data.display())));
    }
    let stops = [None, template.as_ref()].map(|template| speaker.stops(template));
    let longest = speaker.subject.base.config.max_position_embeddings;
    let fitting = records.iter().map(|record| record.prompt.len()).filter(|tokens| *tokens <= longest).max();
    let Some(prompt) = fitting else {
        return Err(user(format!(
            "{}: every prompt is longer than the model's context of {longest} tokens",
            data.display()
        )));
    };
    let decoder = speaker.load_for(&args, prompt)?;
    let mut generator = Generator::new(&decoder, speaker.adapter(), context(prompt, args.max_tokens));
    let stop = signal::stop_on_request()?;
    let stopped = || stop.load(Ordering::Relaxed);

    let sampling = args.sampling.engine();
    let mut told = Tally::default();
    let mut progress = Progress::items("answering", records.len() as u64, 0);
    let mut failed = None;
    for (number, record) in (0..).zip(&records) {
        let line = match record.prompt.len() <= longest {
            true => {
                let stops: &Stops = &stops[usize::from(record.is_chat)];
                let ask = Ask {
                    prompt: &record.prompt,
                    max_tokens: args.max_tokens,
                    stops,
                    // Each answer draws its own random numbers.
                    sampling: Sampling { seed: sampling.seed.wrapping_add(number), ..sampling },
                };
                let spoken = speaker.speak(&mut generator, ask, &mut |_| Ok(!stopped()));
                let spoken = match spoken.with_context(|| record.source.clone()) {
                    Ok(spoken) => spoken,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                };
                if spoken.ended == Ended::Cancelled {
                    break;
                }
                told.count(record, spoken.tokens().len(), spoken.ended);
                record.line(Some(&spoken.text), spoken.ended.reason(), spoken.tokens().len())
            }
            false => {
                told.too_long.push(record.source.clone());
                record.line(None, "prompt_too_long", 0)
            }
        };
        if let Err(error) = output.write(&line) {
            failed = Some(error);
            break;
        }
        told.records += 1;
        progress.set(told.records, &format!("{:.1} tokens/s", told.tokens_per_second()));
        if stopped() {
            break;
        }
    }
    let (all, done) = (records.len(), told.records as usize);
    progress.finish("");
    if done < all {
        let kept = output.keep_partial()?;
        let words = format!("stopped after {done} of {all} records{kept}");
        if let Some(error) = failed {
            return Err(Advised::new(error, words).into());
        }
        eprintln!("{words}");
        return Ok(ExitCode::from(STOPPED));
    }
    output.publish()?;
    told.tell(&args, longest);
    if args.json {
        terminal::print_json(&told.json(&args.output))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Record {
    /// The record's line in the output: with the answer, if there is one.
    fn line(&self, text: Option<&str>, finish_reason: &str, tokens: usize) -> Value {
        let mut line = self.asked.clone();
        if let (Some(Value::Array(messages)), Some(text)) = (line.get_mut("messages"), text) {
            messages.push(json!({"role": "assistant", "content": text}));
        }
        line.insert("text".into(), text.into());
        line.insert("finish_reason".into(), finish_reason.into());
        line.insert("prompt_tokens".into(), self.prompt.len().into());
        line.insert("completion_tokens".into(), tokens.into());
        line.extend(self.reference.as_ref().map(|text| ("reference".to_owned(), text.as_str().into())));
        line.insert("source".into(), self.source.as_str().into());
        line.into()
    }
}

/// What came of the records so far.
struct Tally {
    begun: Instant,
    records: u64,
    prompt_tokens: usize,
    completion_tokens: usize,
    /// Answers that ended at --max-tokens, and at the end of the context.
    at_max_tokens: usize,
    at_context: usize,
    /// The places of records whose prompts are longer than the context.
    too_long: Vec<String>,
}

impl Default for Tally {
    fn default() -> Self {
        let too_long = Vec::new();
        Tally {
            begun: Instant::now(),
            records: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            at_max_tokens: 0,
            at_context: 0,
            too_long,
        }
    }
}

impl Tally {
    fn count(&mut self, record: &Record, tokens: usize, ended: Ended) {
        self.prompt_tokens += record.prompt.len();
        self.completion_tokens += tokens;
        self.at_max_tokens += usize::from(ended == Ended::MaxTokens);
        self.at_context += usize::from(ended == Ended::Context);
    }

    fn tokens_per_second(&self) -> f64 {
        self.completion_tokens as f64 / self.begun.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
    }

    /// For people, on stderr.
    fn tell(&self, args: &cli::Generate, longest: usize) {
        let answered = self.records as usize - self.too_long.len();
        let place = if args.output == "-" { String::new() } else { format!(" into {}", args.output) };
        eprintln!(
            "{answered} of {} records answered{place}, {} new tokens in {}",
            self.records,
            self.completion_tokens,
            duration(self.begun.elapsed())
        );
        if self.at_max_tokens > 0 {
            let max_tokens = args.max_tokens;
            eprintln!("note: answers cut off by --max-tokens {max_tokens}: {}", self.at_max_tokens);
        }
        if self.at_context > 0 {
            eprintln!(
                "note: answers that end where the model's context of {longest} tokens does: {}",
                self.at_context
            );
        }
        if !self.too_long.is_empty() {
            let more = self.too_long.len().saturating_sub(TOLD);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            eprintln!(
                "warning: prompts longer than the model's context of {longest} tokens, which have no answer: {} ({}{more})",
                self.too_long.len(),
                self.too_long[..self.too_long.len().min(TOLD)].join(", ")
            );
        }
    }

    fn json(&self, output: &str) -> Value {
        json!({
            "output": output,
            "records": self.records,
            "answered": self.records as usize - self.too_long.len(),
            "too_long": self.too_long.len(),
            "cut_off": self.at_max_tokens + self.at_context,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": self.begun.elapsed().as_secs_f64(),
            "tokens_per_second": self.tokens_per_second(),
        })
    }
}

/// Where the lines go: to stdout as they come, or into a hidden file that takes its name when it is whole.
enum Output {
    Stdout,
    File { hidden: NamedTempFile, path: PathBuf },
}

impl Output {
    fn open(name: &str) -> anyhow::Result<Self> {
        if name == "-" {
            return Ok(Output::Stdout);
        }
        let path = PathBuf::from(name);
        if path.symlink_metadata().is_ok() {
            return Err(taken(name));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hidden = tempfile::Builder::new()
            .prefix(&format!(".{file_name}."))
            .suffix(".luthier-partial")
            // Made as any file is: a temporary one would be its owner's alone to read.
            .make_in(folder, |path| File::create_new(path))
            .with_context(|| format!("cannot write {name}"))?;
        Ok(Output::File { hidden, path })
    }

    fn is_stdout(&self) -> bool {
        matches!(self, Output::Stdout)
    }

    fn write(&mut self, line: &Value) -> anyhow::Result<()> {
        match self {
            Output::Stdout => terminal::print_line(line),
            Output::File { hidden, path } => {
                writeln!(hidden, "{line}").with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }

    fn publish(self) -> anyhow::Result<()> {
        match self {
            Output::Stdout => Ok(()),
            Output::File { hidden, path } => publish(hidden, &path),
        }
    }

    /// Keeps what was written before a stop under a name that says that it is not all, and tells so.
    fn keep_partial(self) -> anyhow::Result<String> {
        match self {
            Output::Stdout => Ok(String::new()),
            Output::File { hidden, path } => {
                let partial = path.with_added_extension("partial");
                publish(hidden, &partial)?;
                Ok(format!("; their answers are in {}", partial.display()))
            }
        }
    }
}

fn publish(hidden: NamedTempFile, path: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    hidden.as_file().sync_all().with_context(cannot)?;
    match hidden.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
            Err(taken(&path.display().to_string()))
        }
        Err(error) => Err(error.error).with_context(cannot),
    }
}

fn taken(name: &str) -> anyhow::Error {
    user(format!("{name} is there already; name a new file, so that nothing is overwritten"))
}
