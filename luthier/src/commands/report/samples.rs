//! What the base and the results of runs answer to the same prompts. The base is in memory once for all runs
//! that hold it in the same way. What cannot be answered is a note on the page, and no error.

use std::path::PathBuf;

use anyhow::{Context, bail};
use compute::Precision;
use compute::quant::Format;
use data::ChatTemplate;
use infer::{Generator, Sampling};
use model::{Adapter, Decoder};
use serde::Serialize;

use super::material::Material;
use crate::cli::Global;
use crate::commands::compared::Named;
use crate::commands::generate::{Ask, Ended, speak, stops};
use crate::commands::questions::Question;
use crate::hub;
use crate::plot::class;
use crate::run_file::Method;
use crate::run_folder::{self, Account, State};
use crate::setup::{self, Base, Inference, Subject};
use crate::terminal::{Progress, printable};

/// How many prompts, and how long an answer may be.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) count: usize,
    pub(super) max_tokens: usize,
}

/// A prompt with its answers.
#[derive(Serialize)]
pub(super) struct Sample {
    source: String,
    prompt: String,
    answers: Vec<Answer>,
}

#[derive(Clone, Serialize)]
struct Answer {
    who: String,
    /// Of the run's colour; empty for others.
    class: String,
    text: String,
    /// Whether it ended at the most tokens.
    cut: bool,
}

/// All prompts with their answers, as they come.
pub(super) struct Samples<'g> {
    pub(super) samples: Vec<Sample>,
    pub(super) notes: Vec<String>,
    asked: Asked,
    global: &'g Global,
    resident: Option<Resident>,
}

/// How a model is held: which, in which format and precision.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    model: String,
    quantization: Option<Format>,
    precision: Precision,
}

/// A model in memory.
struct Resident {
    held: Held,
    decoder: Decoder,
}

/// Words and whether they were cut off.
type Said = Vec<(String, bool)>;

impl<'g> Samples<'g> {
    pub(super) fn new(asked: Asked, global: &'g Global) -> Self {
        Samples { samples: Vec::new(), notes: Vec::new(), asked, global, resident: None }
    }

    /// Lets the base and some of the runs, whose examples these are, answer.
    pub(super) fn ask(&mut self, members: &[usize], runs: &[Named], material: &Material) {
        let questions = material.questions(self.asked.count);
        if questions.is_empty() {
            return;
        }
        let mut samples: Vec<Sample> = questions.iter().map(|question| sample(question, material)).collect();
        let mut add = |who: &str, class: String, said: Said| {
            for (sample, (text, cut)) in samples.iter_mut().zip(said) {
                sample.answers.push(Answer { who: who.to_owned(), class: class.clone(), text, cut });
            }
        };
        let mut bases: Vec<Held> = Vec::new();
        for &n in members {
            let Named { name, account } = &runs[n];
            match self.answer(account, &questions, &mut bases) {
                Ok((of_base, (whence, said))) => {
                    let base = if bases.len() > 1 {
                        format!("base ({})", words(&bases[bases.len() - 1]))
                    } else {
                        "base".to_owned()
                    };
                    of_base.into_iter().for_each(|said| add(&base, String::new(), said));
                    add(&format!("{name}{whence}"), class(n), said);
                }
                Err(error) => {
                    eprintln!("note: {name} gives no answers: {error:#}");
                    self.notes.push(format!("{name} gives no answers: {error:#}"));
                }
            }
        }
        if samples[0].answers.len() > 1 {
            self.samples.extend(samples);
        }
    }

    /// What a run answers, and what its base does, unless that is among those that have answered.
    fn answer(
        &mut self,
        run: &Account,
        questions: &[Question],
        bases: &mut Vec<Held>,
    ) -> anyhow::Result<(Option<Said>, (String, Said))> {
        let device = self.global.device()?;
        let precision = run.settings.precision.engine();
        let model = run.settings.model.clone().unwrap_or_default();
        if !hub::is_here(&model) {
            bail!("the model {model} is no longer there");
        }
        if run.settings.adapter.method == Method::Full {
            if run.state != State::Finished {
                bail!("all weights are trained, and the result is not written yet");
            }
            let held = Held { model: model.clone(), quantization: None, precision };
            let mut before = None;
            if !bases.contains(&held) {
                let subject = Subject { base: Base::open(&model)?, adapter: None, remembered: None };
                bases.push(held.clone());
                before = Some(self.speak(run, &subject, held, None, questions)?);
            }
            let folder = run.folder.display().to_string();
            let subject = Subject { base: Base::open(&folder)?, adapter: None, remembered: None };
            let held = Held { model: folder, quantization: None, precision };
            let after = self.speak(run, &subject, held, None, questions)?;
            return Ok((before, (String::new(), after)));
        }
        let (place, whence) = adapter_of(run)?;
        let subject = Subject::open(None, place.to_str(), &device)?;
        let quantization = subject.quantization(None);
        let held = Held { model, quantization, precision };
        let adapter = subject.adapter.as_ref().context("an adapter was opened")?;
        // A base that the adapter changes is another one.
        let is_changed = subject.base.changed_by.is_some();
        if is_changed {
            self.resident = None;
            self.notes.push(format!(
                "{} has weights of the base in its file; the base itself is left out",
                run.name()
            ));
        }
        let mut before = None;
        if !is_changed && !bases.contains(&held) {
            bases.push(held.clone());
            before = Some(self.speak(run, &subject, held.clone(), None, questions)?);
        }
        let after = self.speak(run, &subject, held, Some(adapter), questions)?;
        if is_changed {
            self.resident = None;
        }
        Ok((before, (whence, after)))
    }

    /// The greedy answers of a model, which is loaded if it is not the one in memory.
    fn speak(
        &mut self,
        run: &Account,
        subject: &Subject,
        held: Held,
        adapter: Option<&Adapter>,
        questions: &[Question],
    ) -> anyhow::Result<Said> {
        let Base { config, stored, .. } = &subject.base;
        let longest = questions.iter().map(|question| question.prompt.len()).max().unwrap_or(0);
        let context = longest.saturating_add(self.asked.max_tokens).min(config.max_position_embeddings);
        if self.resident.as_ref().is_none_or(|resident| resident.held != held) {
            self.resident = None;
            let Held { quantization, precision, .. } = held;
            let stored = stored.as_ref();
            let inference =
                Inference { config, stored, precision, quantization, threads: self.global.threads() };
            let layout = subject.adapter.as_ref().map(|adapter| adapter.layout.clone()).unwrap_or_default();
            let buffers = Generator::memory_plan(config, &layout, precision, context);
            setup::check_memory("answering", &inference.plan(&buffers, context), None, Vec::new)?;
            let decoder = subject.base.load(&self.global.device()?, precision, quantization)?;
            self.resident = Some(Resident { held, decoder });
        }
        let Resident { decoder, .. } = self.resident.as_ref().expect("it was just loaded");
        let tokenizer = subject.base.tokenizer()?;
        let template = ChatTemplate::resolve(None, &tokenizer).ok().flatten();
        let stops = stops(config, &tokenizer, template.as_ref());
        let mut generator = Generator::new(decoder, adapter, context);
        let mut progress = Progress::items("answering", questions.len() as u64, 0);
        let mut said = Said::new();
        for (n, Question { source, prompt, .. }) in questions.iter().enumerate() {
            let ask = Ask {
                prompt,
                max_tokens: self.asked.max_tokens,
                stops: &stops,
                sampling: Sampling::default(),
            };
            let spoken =
                speak(&tokenizer, &mut generator, ask, &mut |_| Ok(true)).with_context(|| source.clone())?;
            said.push((printable(&spoken.text), spoken.ended != Ended::Stop));
            progress.set(n as u64 + 1, &run.name());
        }
        progress.finish(&run.name());
        Ok(said)
    }
}

/// A prompt as it stands in the example, and what the example goes on with.
fn sample(question: &Question, material: &Material) -> Sample {
    let text = |ids: &[u32]| material.tokenizer.decode(ids, false).unwrap_or_default();
    let expected = Answer {
        who: "the example".to_owned(),
        class: String::new(),
        text: printable(&text(&question.expected)),
        cut: false,
    };
    let (source, prompt) = (question.source.clone(), printable(&text(&question.prompt)));
    Sample { source, prompt, answers: vec![expected] }
}

/// Where a run's adapter is: the result, or else its last checkpoint, which is said.
fn adapter_of(run: &Account) -> anyhow::Result<(PathBuf, String)> {
    if run.state == State::Finished {
        return Ok((run.folder.clone(), String::new()));
    }
    let Some(place) = run_folder::last_adapter(&run.folder) else { bail!("it has saved no checkpoint yet") };
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let whence = format!(" ({name})");
    Ok((place, whence))
}

/// How a base is held, in words.
fn words(held: &Held) -> String {
    let precision = match held.precision {
        Precision::Bf16 => "bf16",
        Precision::F32 => "f32",
    };
    match held.quantization {
        Some(format) => format!("{format}, {precision}"),
        None => precision.to_owned(),
    }
}
