//! `luthier example`: a model learns something before your eyes, with nothing but this binary.
//!
//! A small base model, examples and a run file are part of the program (the repository's folder `example/`,
//! whose README says how they were made). They are written to a folder, the base answers the held-out
//! questions, `luthier train` runs as it would for anybody, and the adapted model answers again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use compute::Device;
use data::{ChatTemplate, Tokenizer};
use infer::{Finish, Generator, Request, Sampling};
use model::adapter::peft::CONFIG_FILE;
use model::checkpoint::write_whole;
use model::{Adapter, Decoder};
use serde_json::{Map, Value};

use super::train::{self, Ended};
use crate::cli::{self, Global};
use crate::error::{STOPPED, fault, user};
use crate::run_file::Settings;
use crate::setup;
use crate::setup::Base;
use crate::terminal::{self, Table, count, duration};

/// What the folder gets: the name in it and the contents.
macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../../example/", $name)).as_slice())),*]
    };
}

static FILES: [(&str, &[u8]); 8] = embedded![
    "model/config.json",
    "model/generation_config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    "train.jsonl",
    "eval.jsonl",
    "run.yaml",
];

/// Held-out questions whose answers are shown.
const SHOWN: usize = 3;
/// Tokens of the longest answer; a right one has about forty.
const MAX_TOKENS: usize = 64;
/// The accuracy above which `--check` is content, in percent.
const GOOD: usize = 90;

pub(super) fn run(args: cli::Example, global: &Global) -> anyhow::Result<ExitCode> {
    let folder = &args.folder;
    unpack(folder)?;
    let training = training(&args);
    let base = Base::open(training.run.model.as_deref().expect("given"))?;
    let questions = Question::read(&folder.join("eval.jsonl"), &base.tokenizer()?)?;
    let device = global.device()?;
    let student = Student::new(&base, &training.settings()?, &device)?;

    let before = student.answer(&questions, None, "asking the base model")?;
    let (begun, run) = (Instant::now(), folder.join("run"));
    let trained_before = run.join(CONFIG_FILE).exists();
    let summary = train::train(training, global)?.expect("it is no dry run");
    if summary.ended() == Ended::Stopped {
        return Ok(ExitCode::from(STOPPED));
    }
    let time = (!trained_before).then(|| begun.elapsed());
    let adapter = base.adapter_folder(&run)?.read(&device)?;
    let after = student.answer(&questions, Some(&adapter), "asking the adapted model")?;

    terminal::print_line(report(folder, &questions, [&before, &after], &adapter, time))?;
    let percent = 100 * right(&after) / questions.len();
    if args.check && percent <= GOOD {
        return Err(fault(format!("{percent} % of the held-out answers are right, not more than {GOOD} %")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the embedded files. What is there already must be the same: a folder of somebody else's is not
/// touched.
fn unpack(folder: &Path) -> anyhow::Result<()> {
    let missing: Vec<(PathBuf, &[u8])> = FILES
        .iter()
        .map(|(name, contents)| (folder.join(name), *contents))
        .filter_map(|(path, contents)| match fs::read(&path) {
            Ok(found) if found == contents => None,
            Ok(_) => Some(Err(user(format!(
                "{} exists and is not the example's; name another folder: luthier example FOLDER",
                path.display()
            )))),
            Err(_) => Some(Ok((path, contents))),
        })
        .collect::<anyhow::Result<_>>()?;
    for (path, contents) in missing {
        let parent = path.parent().expect("a file in a folder");
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        write_whole(&path, contents)?;
    }
    Ok(())
}

/// What would be typed to train: the example's run file, with the paths as seen from here. An interrupted run
/// goes on.
fn training(args: &cli::Example) -> cli::Train {
    let path = |name: &str| args.folder.join(name);
    let text = |name: &str| Some(path(name).display().to_string());
    let run = cli::RunArgs {
        run: Some(path("run.yaml")),
        model: text("model"),
        data: text("train.jsonl").into_iter().collect(),
        eval_data: text("eval.jsonl"),
        set: cli::Set { set: args.steps.map(|n| format!("training.max_steps={n}")).into_iter().collect() },
        ..cli::RunArgs::default()
    };
    cli::Train { run, output: text("run"), resume: Some(None), ..cli::Train::default() }
}

/// A held-out example.
struct Question {
    /// The conversation up to the answer.
    messages: Vec<Map<String, Value>>,
    /// It, as token ids that the answer continues.
    prompt: Vec<u32>,
    /// The one right answer.
    answer: String,
}

impl Question {
    fn read(path: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Self>> {
        let template =
            ChatTemplate::resolve(None, tokenizer)?.context("the example's tokenizer has a chat template")?;
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        text.lines().map(|line| Self::parse(line, &template, tokenizer)).collect()
    }

    fn parse(line: &str, template: &ChatTemplate, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let mut record: Map<String, Value> = serde_json::from_str(line)?;
        let mut messages: Vec<Map<String, Value>> = serde_json::from_value(record["messages"].take())?;
        let answer =
            messages.pop().and_then(|m| Some(m["content"].as_str()?.to_owned())).context("an answer")?;
        let rendered = template.render(&messages, None, true)?;
        Ok(Self { prompt: tokenizer.encode(&rendered.text, false)?.ids, messages, answer })
    }

    fn text(&self) -> &str {
        self.messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default()
    }
}

/// The model that is asked, with and without what it has learnt.
struct Student {
    decoder: Decoder,
    tokenizer: Tokenizer,
}

/// What was said, and whether it is the right answer to the letter.
struct Answer {
    text: String,
    right: bool,
}

impl Student {
    fn new(base: &Base, settings: &Settings, device: &Device) -> anyhow::Result<Self> {
        let decoder =
            base.load(device, settings.run.precision.engine(), setup::quantization(&settings.run))?;
        Ok(Self { decoder, tokenizer: base.tokenizer()? })
    }

    /// Answers every question, always with the likeliest token.
    fn answer(
        &self,
        questions: &[Question],
        adapter: Option<&Adapter>,
        what: &str,
    ) -> anyhow::Result<Vec<Answer>> {
        let longest = questions.iter().map(|q| q.prompt.len()).max().unwrap_or(0);
        let mut generator = Generator::new(&self.decoder, adapter, longest + MAX_TOKENS);
        let mut progress = terminal::Progress::items(what, questions.len() as u64, 0);
        let mut answers = Vec::new();
        for question in questions {
            let request = Request {
                prompt: &question.prompt,
                max_tokens: MAX_TOKENS,
                stop: self.tokenizer.ends(),
                sampling: Sampling::default(),
            };
            let generation = generator.generate(request, &mut |_| true)?;
            let text = self.tokenizer.decode(&generation.tokens, true)?;
            let right = text == question.answer && generation.finish == Finish::Stop;
            answers.push(Answer { text, right });
            progress.set(answers.len() as u64, "");
        }
        progress.finish("");
        Ok(answers)
    }
}

fn right(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.right).count()
}

/// Everything to see, and what to try next. `time`: what training took, if it was now.
fn report(
    folder: &Path,
    questions: &[Question],
    answers: [&[Answer]; 2],
    adapter: &Adapter,
    time: Option<Duration>,
) -> String {
    let mut text = String::new();
    for (i, question) in questions.iter().take(SHOWN).enumerate() {
        let [before, after] = answers.map(|answers| one_line(&answers[i].text));
        write!(text, "{}\n  before  {before}\n  after   {after}\n\n", question.text())
            .expect("writing to a string");
    }
    let share = |answers| format!("{} %", 100 * right(answers) / questions.len());
    let mut table = Table::new(["", "before", "after"]);
    let label = format!("right answers to {} held-out questions", questions.len());
    table.row([label, share(answers[0]), share(answers[1])]);
    let trained = count(adapter.layout.len() as f64);
    let when = time.map_or("by an earlier call".to_owned(), |time| format!("in {}", duration(time)));
    let [run, merged] = ["run", "merged"].map(|name| terminal::quoted(folder.join(name)));
    write!(
        text,
        "{table}\n\n\
         The adapter's {trained} parameters were trained {when}; the model was not changed. Try next:\n  \
         luthier chat --adapter {run}\n  \
         luthier inspect {run}\n  \
         luthier merge --adapter {run} --output {merged}"
    )
    .expect("writing to a string");
    text
}

/// The text in one line of a terminal.
fn one_line(text: &str) -> String {
    const WIDTH: usize = 100;
    let text = text.replace('\n', " ");
    let (beginning, _) = terminal::cut(&text, WIDTH);
    let rest = if beginning.len() < text.len() { " ..." } else { "" };
    format!("{}{rest}", terminal::printable(beginning))
}
