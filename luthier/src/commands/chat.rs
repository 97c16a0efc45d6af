//! `luthier chat`: a conversation in the terminal, or one read from a pipe line by line.

mod lines;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use data::{ChatTemplate, TemplateError};
use infer::{Generator, InferError, Sampling};
use model::Decoder;
use serde_json::{Map, Value, json};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::generate::{Ask, Ended, Speaker, Stops, show};
use crate::cli::{self, Global};
use crate::error::{UserError, user};
use crate::setup;
use crate::terminal::{self, bytes};
use lines::Lines;

const HELP: &str = "\
Say something. The model remembers the conversation. A line that ends in \\ goes on in the next one.
/system TEXT  tell the model what it is; without TEXT, show it; -: nothing
/regenerate   another answer to the last question
/save FILE    append the conversation to a file of examples, as a line of messages
/reset        begin anew
/help         this help
/exit         leave, as Ctrl-D and Ctrl-C twice do; Ctrl-C once ends an answer or clears the line";

/// Tokens that the first cache has room for; it doubles when a conversation outgrows it.
const FIRST_CONTEXT: usize = 2048;

pub(super) fn run(args: cli::Chat, global: &Global) -> anyhow::Result<ExitCode> {
    let speaker = Speaker::open(args.model.as_deref(), args.adapter.as_deref(), global)?;
    let template = speaker.template(args.chat_template.as_deref())?;
    let decoder = speaker.load(&args.sampling, FIRST_CONTEXT, None)?;
    let mut conversation = Conversation {
        stops: speaker.stops(Some(&template)),
        generator: Generator::new(&decoder, speaker.adapter(), FIRST_CONTEXT),
        speaker: &speaker,
        template,
        decoder: &decoder,
        system: args.system.map(|text| message("system", text)),
        messages: Vec::new(),
        max_tokens: args.max_tokens,
        sampling: args.sampling.engine(),
        attempt: 0,
        may_differ: false,
        interrupt: Interrupt::install()?,
    };
    let mut lines = Lines::open(!args.no_history)?;
    let interactive = lines.is_interactive();
    if interactive {
        eprintln!("{HELP}");
    }
    while let Some(said) = lines.next()? {
        match conversation.hear(said.trim()) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) if interactive && may_go_on(&error) => eprintln!("{error:#}"),
            Err(error) => return Err(error),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether an error ends only what was asked for, where a person can ask for something else.
fn may_go_on(error: &anyhow::Error) -> bool {
    error.is::<InferError>() || error.is::<UserError>() || error.is::<TemplateError>()
}

fn message(role: &str, content: impl Into<String>) -> Map<String, Value> {
    Map::from_iter([
        ("role".to_owned(), Value::from(role)),
        ("content".to_owned(), Value::from(content.into())),
    ])
}

struct Conversation<'a> {
    speaker: &'a Speaker,
    template: ChatTemplate,
    stops: Stops,
    decoder: &'a Decoder,
    /// Keeps the keys and values of the conversation so far.
    generator: Generator<'a>,
    system: Option<Map<String, Value>>,
    messages: Vec<Map<String, Value>>,
    max_tokens: usize,
    sampling: Sampling,
    /// How often the last question was answered before.
    attempt: u64,
    /// Whether another answer may differ even at temperature 0: the last one was stopped, or the system
    /// prompt is another.
    may_differ: bool,
    interrupt: Interrupt,
}

impl Conversation<'_> {
    /// Does what was said: a command, or an answer. False: to leave.
    fn hear(&mut self, said: &str) -> anyhow::Result<bool> {
        let (word, rest) = said.split_once(char::is_whitespace).unwrap_or((said, ""));
        match (word, rest.trim()) {
            ("", _) => {}
            ("/exit" | "/quit", "") => return Ok(false),
            ("/help", "") => eprintln!("{HELP}"),
            ("/reset" | "/clear", "") => self.messages.clear(),
            ("/system", text) => self.set_system(text),
            ("/save", file) => self.save(file)?,
            ("/regenerate", "") => self.regenerate()?,
            (command, "") if command.starts_with('/') => {
                eprintln!("no such command: {command}; /help lists them");
            }
            _ => self.answer(said)?,
        }
        Ok(true)
    }

    fn set_system(&mut self, text: &str) {
        match text {
            "" => match self.system.as_ref().and_then(|message| message.get("content")?.as_str()) {
                Some(text) => eprintln!("{}", terminal::printable(text)),
                None => eprintln!("the model is told nothing before the conversation"),
            },
            "-" => self.system = None,
            text => self.system = Some(message("system", text)),
        }
        self.may_differ |= !text.is_empty();
    }

    /// All that the model is told.
    fn all_messages(&self) -> Vec<Map<String, Value>> {
        self.system.iter().chain(&self.messages).cloned().collect()
    }

    /// Appends the conversation to a file of examples.
    fn save(&self, file: &str) -> anyhow::Result<()> {
        match (file, self.messages.len()) {
            ("", _) => return Err(user("/save needs a file, such as /save chats.jsonl")),
            (_, 0) => return Err(user("there is nothing to save yet")),
            _ => {}
        }
        let line = json!({"messages": self.all_messages()});
        append_line(Path::new(file), &line).map_err(|error| user(format!("cannot write {file}: {error}")))?;
        eprintln!("saved {} messages to {file}", self.all_messages().len());
        Ok(())
    }

    /// Says the model's answer and remembers both; what could not be answered is forgotten.
    fn answer(&mut self, said: &str) -> anyhow::Result<()> {
        self.attempt = 0;
        self.messages.push(message("user", said));
        let answer = self.speak().inspect_err(|_| drop(self.messages.pop()))?;
        self.messages.push(message("assistant", answer));
        Ok(())
    }

    /// Says another answer to the last question, which takes the first one's place.
    fn regenerate(&mut self) -> anyhow::Result<()> {
        if self.sampling.temperature == 0.0 && !self.messages.is_empty() && !self.may_differ {
            let advice = "start with --temperature 0.7 or so for another";
            return Err(user(format!("the answer would be the same: the temperature is 0; {advice}")));
        }
        let Some(before) = self.messages.pop() else {
            return Err(user("there is no answer yet"));
        };
        self.attempt += 1;
        let answer = match self.speak() {
            Ok(answer) => message("assistant", answer),
            Err(error) => {
                self.messages.push(before);
                return Err(error);
            }
        };
        self.messages.push(answer);
        Ok(())
    }

    fn speak(&mut self) -> anyhow::Result<String> {
        let prompt = self.speaker.render(&self.template, &self.all_messages(), None)?;
        self.make_room(prompt.len().saturating_add(self.max_tokens))?;
        // Each answer draws its own random numbers.
        let turn = self.messages.len() as u64;
        let seed = self.sampling.seed.wrapping_add(turn).wrapping_add(self.attempt << 32);
        let ask = Ask {
            prompt: &prompt,
            max_tokens: self.max_tokens,
            stops: &self.stops,
            sampling: Sampling { seed, ..self.sampling },
        };
        self.interrupt.arm();
        let result = self.speaker.speak(&mut self.generator, ask, &mut |piece| {
            show(piece)?;
            Ok(!self.interrupt.came())
        });
        self.interrupt.disarm();
        let spoken = result.map_err(|error| match error.downcast_ref() {
            Some(InferError::PromptTooLong { .. }) => {
                error.context("the conversation has outgrown the model's context; /reset begins anew")
            }
            _ => error,
        })?;
        terminal::print("\n")?;
        match spoken.ended {
            Ended::Stop => {}
            Ended::MaxTokens => eprintln!("(cut off by --max-tokens {})", self.max_tokens),
            Ended::Context => eprintln!(
                "(cut off: the model's context of {} tokens is full; /reset begins anew)",
                self.generator.context()
            ),
            Ended::Cancelled => eprintln!("(stopped)"),
        }
        self.may_differ = spoken.ended == Ended::Cancelled;
        Ok(spoken.text)
    }

    /// Makes the cache larger if the model has a longer context and this many tokens need it: twice as large,
    /// or just as large if there is no memory for more.
    fn make_room(&mut self, tokens: usize) -> anyhow::Result<()> {
        let longest = self.decoder.config.max_position_embeddings;
        if tokens <= self.generator.context() || self.generator.context() == longest {
            return Ok(());
        }
        // The old cache is still there while the new one is made.
        let free = setup::available_memory().unwrap_or(u64::MAX);
        let need =
            |context: usize| self.speaker.buffers(self.decoder.precision, context.min(longest)).total();
        let doubled = tokens.saturating_mul(2);
        let Some(context) = [doubled, tokens].into_iter().find(|&context| need(context) <= free) else {
            return Err(user(format!(
                "{} tokens of conversation and answer need {} of memory, but only {} is free; /reset begins anew, and a \
                 smaller --max-tokens leaves room for a longer conversation",
                tokens.min(longest),
                bytes(need(tokens)),
                bytes(free)
            )));
        };
        self.generator = Generator::new(self.decoder, self.speaker.adapter(), context);
        Ok(())
    }
}

/// Appends one line, in one piece, to a file whose last line may lack its end.
fn append_line(path: &Path, line: &Value) -> std::io::Result<()> {
    let mut file = File::options().read(true).append(true).create(true).open(path)?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    let begin = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{begin}{line}\n").as_bytes())?;
    file.sync_all()
}

/// Ctrl-C ends an answer while there is one, and the program while there is none.
struct Interrupt {
    idle: Arc<AtomicBool>,
    came: Arc<AtomicBool>,
}

impl Interrupt {
    fn install() -> anyhow::Result<Self> {
        let interrupt = Interrupt { idle: Arc::new(AtomicBool::new(true)), came: Arc::default() };
        // A second one ends the program, for a long prompt is read to its end before anything is said.
        flag::register_conditional_default(SIGINT, Arc::clone(&interrupt.idle))
            .and_then(|_| flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&interrupt.came)))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&interrupt.came)))
            .context("cannot take over SIGINT")?;
        Ok(interrupt)
    }

    fn arm(&self) {
        self.came.store(false, Ordering::Relaxed);
        self.idle.store(false, Ordering::Relaxed);
    }

    fn disarm(&self) {
        self.idle.store(true, Ordering::Relaxed);
    }

    fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }
}
