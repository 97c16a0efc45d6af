//! `luthier chat`: a conversation in the terminal, or one read from a pipe line by line.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use data::ChatTemplate;
use infer::{Finish, Generator, InferError, Request, Sampling};
use model::Decoder;
use serde_json::{Map, Value};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::generate::{Speaker, show};
use crate::cli::{self, Global};
use crate::error::{UserError, user};
use crate::setup;
use crate::terminal::{self, bytes};

const HELP: &str = "\
Say something. The model remembers the conversation.
/reset  begin anew      /exit or Ctrl-D  leave
/help   this help       Ctrl-C           end an answer, or leave";

/// Tokens that the first cache has room for; it doubles when a conversation outgrows it.
const FIRST_CONTEXT: usize = 2048;

pub(super) fn run(args: cli::Chat, global: &Global) -> anyhow::Result<ExitCode> {
    let speaker = Speaker::open(args.model.as_deref(), args.adapter.as_deref())?;
    let template = speaker.template(args.chat_template.as_deref())?;
    let decoder = speaker.load(&args.sampling, global, FIRST_CONTEXT, None)?;
    let mut conversation = Conversation {
        stop: speaker.stops(Some(&template)),
        generator: Generator::new(&decoder, speaker.adapter(), FIRST_CONTEXT),
        speaker: &speaker,
        template,
        decoder: &decoder,
        system: args.system.map(|text| message("system", text)),
        messages: Vec::new(),
        max_tokens: args.max_tokens,
        sampling: args.sampling.engine(),
        interrupt: Interrupt::install()?,
    };
    let interactive = io::stdin().is_terminal();
    if interactive {
        eprintln!("{HELP}");
    }
    while let Some(line) = read_line(interactive)? {
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/reset" | "/clear" => conversation.messages.clear(),
            "/help" => eprintln!("{HELP}"),
            command if command.starts_with('/') && !command.contains(char::is_whitespace) => {
                eprintln!("no such command: {command}; /help lists them");
            }
            said => match conversation.answer(said) {
                Err(error) if interactive && (error.is::<InferError>() || error.is::<UserError>()) => {
                    eprintln!("{error:#}");
                }
                result => result?,
            },
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The next line; none at the end.
fn read_line(interactive: bool) -> anyhow::Result<Option<String>> {
    if interactive {
        eprint!("\n> ");
    }
    let mut line = String::new();
    match io::stdin().read_line(&mut line) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(line)),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(user("stdin: this line is not UTF-8 text")),
        Err(e) => Err(e).context("cannot read stdin"),
    }
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
    stop: Vec<u32>,
    decoder: &'a Decoder,
    /// Keeps the keys and values of the conversation so far.
    generator: Generator<'a>,
    system: Option<Map<String, Value>>,
    messages: Vec<Map<String, Value>>,
    max_tokens: usize,
    sampling: Sampling,
    interrupt: Interrupt,
}

impl Conversation<'_> {
    /// Says the model's answer and remembers both; what could not be answered is forgotten.
    fn answer(&mut self, said: &str) -> anyhow::Result<()> {
        self.messages.push(message("user", said));
        let answer = self.speak().inspect_err(|_| drop(self.messages.pop()))?;
        self.messages.push(message("assistant", answer));
        Ok(())
    }

    fn speak(&mut self) -> anyhow::Result<String> {
        let messages: Vec<_> = self.system.iter().chain(&self.messages).cloned().collect();
        let prompt = self.speaker.render(&self.template, &messages, None)?;
        self.make_room(prompt.len().saturating_add(self.max_tokens))?;
        // Each answer draws its own random numbers.
        let seed = self.sampling.seed.wrapping_add(self.messages.len() as u64);
        let request = Request {
            prompt: &prompt,
            max_tokens: self.max_tokens,
            stop: &self.stop,
            sampling: Sampling { seed, ..self.sampling },
        };
        self.interrupt.arm();
        let result = self.speaker.speak(&mut self.generator, request, &mut |piece| {
            show(piece)?;
            Ok(!self.interrupt.came())
        });
        self.interrupt.disarm();
        let (generation, text) = result.map_err(|error| match error.downcast_ref() {
            Some(InferError::PromptTooLong { .. }) => {
                error.context("the conversation has outgrown the model's context; /reset begins anew")
            }
            _ => error,
        })?;
        terminal::print("\n")?;
        if generation.finish == Finish::Length {
            eprintln!("(cut off after {} tokens)", generation.tokens.len());
        }
        Ok(text)
    }

    /// Makes the cache larger if the model has a longer context and this many tokens need it: twice as large, or just as large if
    /// there is no memory for more.
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

/// Ctrl-C ends an answer while there is one, and the program while there is none.
struct Interrupt {
    idle: Arc<AtomicBool>,
    came: Arc<AtomicBool>,
}

impl Interrupt {
    fn install() -> anyhow::Result<Self> {
        let interrupt = Interrupt { idle: Arc::new(AtomicBool::new(true)), came: Arc::default() };
        flag::register_conditional_default(SIGINT, Arc::clone(&interrupt.idle))
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
