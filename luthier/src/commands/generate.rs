//! `luthier generate`: continues a prompt or answers a conversation.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use compute::{Precision, quant};
use data::{Chat, ChatTemplate, Tokenizer};
use infer::{Finish, Generation, Generator, Request};
use model::memory::MemoryPlan;
use model::{Adapter, Decoder};
use serde_json::{Map, Value, json};

use crate::cli::{self, Global, Held};
use crate::error::user;
use crate::setup::{self, Base, Inference, Subject};
use crate::terminal;

/// What `--max-tokens` could be where the memory is not enough.
const FEW_TOKENS: usize = 256;
/// Tokens before a text that decide how its first token reads: whether a space is put before it.
const LEAD: usize = 32;

pub(super) fn run(args: cli::Generate, global: &Global) -> anyhow::Result<ExitCode> {
    let speaker = Speaker::open(args.model.as_deref(), args.adapter.as_deref())?;
    let (prompt, stop) = match &args.messages {
        None => {
            let text = args.prompt.as_deref().expect("one of the two is required");
            (speaker.tokenizer.encode(text, true)?.ids, speaker.stops(None))
        }
        Some(path) => {
            let chat = read_messages(path)?;
            let template = speaker.template(args.chat_template.as_deref())?;
            let prompt = speaker.render(&template, &chat.messages, chat.tools.as_ref())?;
            (prompt, speaker.stops(Some(&template)))
        }
    };
    let sampling = args.sampling.engine();
    let context = |max_tokens: usize| prompt.len().saturating_add(max_tokens.max(1) - 1);
    let fewer = (FEW_TOKENS, context(FEW_TOKENS));
    let decoder = speaker.load(&args.sampling, global, context(args.max_tokens), Some(fewer))?;
    let context = context(args.max_tokens);
    let mut generator = Generator::new(&decoder, speaker.adapter(), context);
    let request = Request { prompt: &prompt, max_tokens: args.max_tokens, stop: &stop, sampling };
    let (generation, text) = speaker.speak(&mut generator, request, &mut |piece| {
        if !args.json {
            show(piece)?;
        }
        Ok(true)
    })?;
    match args.json {
        true => terminal::print_json(&json!({
            "text": text,
            "token_ids": generation.tokens,
            "prompt_tokens": prompt.len(),
            "finish_reason": finish_reason(&generation),
            "tokens_per_second": generation.tokens_per_second(),
            "prompt_seconds": generation.prompt_time.as_secs_f64(),
        }))?,
        false => {
            terminal::print("\n")?;
            tell(&generation, &prompt, &decoder, args.max_tokens);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A model's words and what belongs to them; its weights come last, when all else is known to be right.
pub(super) struct Speaker {
    pub(super) subject: Subject,
    pub(super) tokenizer: Tokenizer,
}

impl Speaker {
    pub(super) fn open(model: Option<&str>, adapter: Option<&str>) -> anyhow::Result<Self> {
        let subject = Subject::open(model, adapter)?;
        let tokenizer = subject.base.tokenizer()?;
        Ok(Speaker { subject, tokenizer })
    }

    pub(super) fn adapter(&self) -> Option<&Adapter> {
        self.subject.adapter.as_ref()
    }

    /// The base's weights, if they fit into what is free with all that sequences of `context` tokens need. `fewer`: another
    /// `--max-tokens`, and the context that it makes.
    pub(super) fn load(
        &self,
        sampling: &cli::Sampling,
        global: &Global,
        context: usize,
        fewer: Option<(usize, usize)>,
    ) -> anyhow::Result<Decoder> {
        let held = sampling
            .quantization
            .map(|Held(code)| code.map(|code| quant::Format { code, ..quant::Format::QLORA }));
        let quantization = self.subject.quantization(held);
        let precision = sampling.precision.engine();
        let Base { config, stored, .. } = &self.subject.base;
        let stored = stored.as_ref();
        let inference = Inference { config, stored, precision, quantization, threads: global.threads() };
        let need = |inference: Inference<'_>, context: usize| {
            let context = context.min(config.max_position_embeddings);
            inference.plan(&self.buffers(inference.precision, context), context)
        };
        setup::check_memory("generating", &need(inference, context), None, || {
            let smaller = inference.smaller("--quantization nf4", "--precision bf16");
            let smaller = smaller.into_iter().map(|(words, other)| (words, need(other, context)));
            let fewer =
                fewer.map(|(tokens, context)| (format!("--max-tokens {tokens}"), need(inference, context)));
            fewer.into_iter().chain(smaller).collect()
        })?;
        self.subject.base.load(&global.device()?, precision, quantization)
    }

    /// What a generator for sequences of `context` tokens allocates.
    pub(super) fn buffers(&self, precision: Precision, context: usize) -> MemoryPlan {
        let layout = self.adapter().map(|adapter| adapter.layout.clone()).unwrap_or_default();
        Generator::memory_plan(&self.subject.base.config, &layout, precision, context)
    }

    /// The template that was named, or the model's own.
    pub(super) fn template(&self, named: Option<&str>) -> anyhow::Result<ChatTemplate> {
        ChatTemplate::resolve(named, &self.tokenizer)?.ok_or_else(|| {
            user(format!(
                "{} has no chat template: continue plain text with `luthier generate --prompt`, or name a template \
                 with --chat-template (a file, or one of {})",
                self.subject.base.name,
                data::template::BUILTIN.join(", ")
            ))
        })
    }

    /// The tokens of a conversation up to where the assistant begins to speak.
    pub(super) fn render(
        &self,
        template: &ChatTemplate,
        messages: &[Map<String, Value>],
        tools: Option<&Value>,
    ) -> anyhow::Result<Vec<u32>> {
        let prompt = template.prompt(messages, tools)?;
        Ok(self.tokenizer.encode(&prompt, false)?.ids)
    }

    /// The tokens that end what the model says: those of the tokenizer's and the model's configuration, and the one with
    /// which the template ends a turn.
    pub(super) fn stops(&self, template: Option<&ChatTemplate>) -> Vec<u32> {
        let configured = self.subject.base.config.raw.get("eos_token_id");
        let ids = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        let configured = configured.map(ids).unwrap_or_default();
        let configured = configured.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
        let turn = template.and_then(|template| template.end_of_turn(&self.tokenizer));
        self.tokenizer.ends().iter().copied().chain(configured).chain(turn).collect()
    }

    /// Generates, giving each piece of text to `say` as soon as its characters are whole, until `say` returns false.
    pub(super) fn speak(
        &self,
        generator: &mut Generator<'_>,
        request: Request<'_>,
        say: &mut dyn FnMut(&str) -> anyhow::Result<bool>,
    ) -> anyhow::Result<(Generation, String)> {
        let mut stream = self.tokenizer.stream(true);
        for &id in &request.prompt[request.prompt.len().saturating_sub(LEAD)..] {
            stream.push(&self.tokenizer, id);
        }
        let (mut text, mut said) = (String::new(), Ok(true));
        let generation = generator.generate(request, &mut |id| {
            let piece = stream.push(&self.tokenizer, id);
            text.push_str(&piece);
            said = if piece.is_empty() { Ok(true) } else { say(&piece) };
            matches!(said, Ok(true))
        })?;
        said?;
        let rest = stream.finish(&self.tokenizer);
        if !rest.is_empty() {
            say(&rest)?;
        }
        Ok((generation, text + &rest))
    }
}

/// Text to stdout as it comes. A terminal obeys control characters, so there they are shown escaped.
pub(super) fn show(piece: &str) -> anyhow::Result<()> {
    match io::stdout().is_terminal() {
        true => terminal::print(&terminal::printable(piece)),
        false => terminal::print(piece),
    }
}

fn finish_reason(generation: &Generation) -> &'static str {
    match generation.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
    }
}

/// What came of it, on stderr.
fn tell(generation: &Generation, prompt: &[u32], decoder: &Decoder, max_tokens: usize) {
    let new = generation.tokens.len();
    let why = match generation.finish {
        Finish::Stop => "ended by itself",
        Finish::Length if new == max_tokens => "reached --max-tokens",
        _ => "the model's context is full",
    };
    eprintln!(
        "{} prompt tokens, {new} new ({why}), {:.1} tokens/s, {}",
        prompt.len(),
        generation.tokens_per_second(),
        match decoder.precision {
            compute::Precision::Bf16 => "bf16",
            compute::Precision::F32 => "f32",
        }
    );
}

/// A list of messages, or an object with `messages` and `tools`.
fn read_messages(path: &Path) -> anyhow::Result<Chat> {
    let shown = path.display();
    let chat = Chat::read(path)?;
    let last = chat.messages.last().and_then(|m| m.get("role")).and_then(Value::as_str);
    if last == Some("assistant") {
        return Err(user(format!(
            "{shown}: messages[{}] is the assistant's: the last message must be one to answer, a user's or a tool's",
            chat.messages.len() - 1
        )));
    }
    Ok(chat)
}
