//! `luthier generate`: continues a prompt, answers a conversation, or does so for every record of a file.

mod many;
pub(super) mod records;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use compute::{Device, Precision};
use data::{Chat, ChatTemplate, Tokenizer, Until};
use infer::{Finish, Generation, Generator, Request, Sampling};
use model::memory::MemoryPlan;
use model::{Adapter, Config, Decoder};
use serde_json::{Map, Value, json};

use crate::cli::{self, Global};
use crate::error::user;
use crate::setup::{self, Base, Inference, Subject};
use crate::terminal;

/// What `--max-tokens` could be where the memory is not enough.
const FEW_TOKENS: usize = 256;

pub(super) fn run(args: cli::Generate, global: &Global) -> anyhow::Result<ExitCode> {
    args.check()?;
    if args.data.is_some() {
        return many::run(args, global);
    }
    let speaker = Speaker::open(args.model.as_deref(), args.adapter.as_deref(), global)?;
    let (prompt, stops) = match &args.messages {
        None => {
            let text = args.prompt.as_deref().expect("one of the three is required");
            (speaker.tokenizer.encode(text, true)?.ids, speaker.stops(None))
        }
        Some(path) => {
            let chat = read_messages(path)?;
            let template = speaker.template(args.chat_template.as_deref())?;
            let prompt = speaker.render(&template, &chat.messages, chat.tools.as_ref())?;
            (prompt, speaker.stops(Some(&template)))
        }
    };
    let decoder = speaker.load_for(&args, prompt.len())?;
    let mut generator = Generator::new(&decoder, speaker.adapter(), context(prompt.len(), args.max_tokens));
    let sampling = args.sampling.engine();
    let ask = Ask { prompt: &prompt, max_tokens: args.max_tokens, stops: &stops, sampling };
    let spoken = speaker.speak(&mut generator, ask, &mut |piece| {
        if !args.json {
            show(piece)?;
        }
        Ok(true)
    })?;
    match args.json {
        true => terminal::print_json(&json!({
            "text": spoken.text,
            "token_ids": spoken.tokens(),
            "prompt_tokens": prompt.len(),
            "finish_reason": spoken.ended.reason(),
            "tokens_per_second": spoken.generation.tokens_per_second(),
            "prompt_seconds": spoken.generation.prompt_time.as_secs_f64(),
        }))?,
        false => {
            terminal::print("\n")?;
            tell(&spoken, &prompt, &decoder);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tokens of the longest sequence that a prompt and its answer make: the last token needs no room.
fn context(prompt: usize, max_tokens: usize) -> usize {
    prompt.saturating_add(max_tokens.max(1) - 1)
}

/// What is to be said: to which prompt, how much, until what.
pub(super) struct Ask<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) max_tokens: usize,
    pub(super) stops: &'a Stops,
    pub(super) sampling: Sampling,
}

/// What ends the model's words, none of it said.
pub(super) struct Stops {
    pub(super) tokens: Vec<u32>,
    /// A template's end of turn that is no token of the tokenizer.
    pub(super) text: Option<String>,
}

/// What was said.
pub(super) struct Spoken {
    pub(super) text: String,
    pub(super) ended: Ended,
    pub(super) generation: Generation,
    /// The first of the generated tokens: those of the text.
    said: usize,
}

impl Spoken {
    /// The tokens of the text.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.generation.tokens[..self.said]
    }
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself.
    Stop,
    /// At the most tokens that were asked for.
    MaxTokens,
    /// At the end of the model's context.
    Context,
    /// The listener asked for it.
    Cancelled,
}

impl Ended {
    /// As `finish_reason` says it.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Ended::Stop => "stop",
            Ended::MaxTokens | Ended::Context => "length",
            Ended::Cancelled => "cancelled",
        }
    }
}

/// A model's words and what belongs to them; its weights come last, when all else is known to be right.
pub(super) struct Speaker {
    pub(super) subject: Subject,
    pub(super) tokenizer: Tokenizer,
    /// Where model and adapter live.
    device: Device,
}

impl Speaker {
    pub(super) fn open(model: Option<&str>, adapter: Option<&str>, global: &Global) -> anyhow::Result<Self> {
        let device = global.device()?;
        let subject = Subject::open(model, adapter, &device)?;
        let tokenizer = subject.base.tokenizer()?;
        Ok(Speaker { subject, tokenizer, device })
    }

    pub(super) fn adapter(&self) -> Option<&Adapter> {
        self.subject.adapter.as_ref()
    }

    /// The base's weights, if they fit into what is free with all that sequences of `context` tokens need.
    /// `fewer`: another `--max-tokens`, and the context that it makes.
    pub(super) fn load(
        &self,
        sampling: &cli::Sampling,
        context: usize,
        fewer: Option<(usize, usize)>,
    ) -> anyhow::Result<Decoder> {
        self.subject.tell_of_rounding();
        let quantization = self.subject.quantization(sampling.quantization.map(|held| held.0));
        let precision = sampling.precision.engine();
        let Base { config, stored, .. } = &self.subject.base;
        let stored = stored.as_ref();
        let inference = Inference { config, stored, precision, quantization, threads: self.device.threads() };
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
        self.subject.base.load(&self.device, precision, quantization)
    }

    /// The same for one answer of `generate` to a prompt of so many tokens.
    fn load_for(&self, args: &cli::Generate, prompt: usize) -> anyhow::Result<Decoder> {
        let fewer = (FEW_TOKENS, context(prompt, FEW_TOKENS));
        self.load(&args.sampling, context(prompt, args.max_tokens), Some(fewer))
    }

    /// What a generator for sequences of `context` tokens allocates.
    pub(super) fn buffers(&self, precision: Precision, context: usize) -> MemoryPlan {
        let layout = self.adapter().map(|adapter| adapter.layout.clone()).unwrap_or_default();
        Generator::memory_plan(&self.subject.base.config, &layout, precision, context)
    }

    /// The template that was named, or the model's own.
    pub(super) fn template(&self, named: Option<&str>) -> anyhow::Result<ChatTemplate> {
        template(&self.subject.base, &self.tokenizer, named)
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

    /// What ends the model's words.
    pub(super) fn stops(&self, template: Option<&ChatTemplate>) -> Stops {
        stops(&self.subject.base.config, &self.tokenizer, template)
    }

    /// [`speak`] by this tokenizer.
    pub(super) fn speak(
        &self,
        generator: &mut Generator<'_>,
        ask: Ask<'_>,
        say: &mut dyn FnMut(&str) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Spoken> {
        speak(&self.tokenizer, generator, ask, say)
    }
}

/// Generates, giving each piece of text to `say` as soon as its characters are whole (and an empty one until
/// then), until `say` returns false.
pub(super) fn speak(
    tokenizer: &Tokenizer,
    generator: &mut Generator<'_>,
    ask: Ask<'_>,
    say: &mut dyn FnMut(&str) -> anyhow::Result<bool>,
) -> anyhow::Result<Spoken> {
    let Ask { prompt, max_tokens, stops, sampling } = ask;
    let mut stream = tokenizer.stream_after(prompt);
    let mut until = Until::new(stops.text.clone());
    let (mut text, mut said) = (String::new(), Ok(true));
    // How much text there is after each token, with what is held back.
    let (mut length, mut lengths) = (0, Vec::new());
    let request = Request { prompt, max_tokens, stop: &stops.tokens, sampling };
    let generation = generator.generate(request, &mut |id| {
        let piece = stream.push(tokenizer, id);
        length += piece.len();
        lengths.push(length);
        let piece = until.push(&piece);
        text.push_str(&piece);
        // Also where there is nothing to show yet: whoever listens may want an end.
        said = say(&piece);
        matches!(said, Ok(true)) && !until.has_ended()
    })?;
    said?;
    let ended = match generation.finish {
        _ if until.has_ended() => Ended::Stop,
        Finish::Stop => Ended::Stop,
        Finish::Length if generation.tokens.len() >= max_tokens => Ended::MaxTokens,
        Finish::Length => Ended::Context,
        Finish::Cancelled => Ended::Cancelled,
    };
    let said = match until.has_ended() {
        true => lengths.iter().take_while(|length| **length <= text.len()).count(),
        false => generation.tokens.len(),
    };
    let rest = until.finish(&stream.finish(tokenizer));
    if !rest.is_empty() {
        say(&rest)?;
    }
    text.push_str(&rest);
    Ok(Spoken { text, ended, generation, said })
}

/// The template that was named, or the model's own.
fn template(base: &Base, tokenizer: &Tokenizer, named: Option<&str>) -> anyhow::Result<ChatTemplate> {
    ChatTemplate::resolve(named, tokenizer)?.ok_or_else(|| {
        user(format!(
            "{} has no chat template: continue plain text with `luthier generate --prompt`, or name a template \
             with --chat-template (a file, or one of {})",
            base.name,
            data::template::BUILTIN.join(", ")
        ))
    })
}

/// What ends a model's words: the end tokens of the tokenizer's and the model's configuration, and that with which
/// the template ends a turn, a token or a text.
pub(super) fn stops(config: &Config, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Stops {
    // Of a model that sees images, it may stand with the part for texts.
    let (raw, field) = (&config.raw, "eos_token_id");
    let configured = raw.get(field).or_else(|| raw.get("text_config")?.get(field));
    let ids = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let configured = configured.map(ids).unwrap_or_default();
    let configured = configured.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
    let turn = template.and_then(|template| template.end_of_turn(tokenizer));
    Stops {
        text: template.filter(|_| turn.is_none()).and_then(ChatTemplate::end_text),
        tokens: tokenizer.ends().iter().copied().chain(configured).chain(turn).collect(),
    }
}

/// Text to stdout as it comes. A terminal obeys control characters, so there they are shown escaped.
pub(super) fn show(piece: &str) -> anyhow::Result<()> {
    match io::stdout().is_terminal() {
        true => terminal::print(&terminal::printable(piece)),
        false => terminal::print(piece),
    }
}

/// What came of it, on stderr.
fn tell(spoken: &Spoken, prompt: &[u32], decoder: &Decoder) {
    let why = match spoken.ended {
        Ended::Stop => "ended by itself",
        Ended::MaxTokens => "reached --max-tokens",
        Ended::Context | Ended::Cancelled => "the model's context is full",
    };
    eprintln!(
        "{} prompt tokens, {} new ({why}), {:.1} tokens/s, {}",
        prompt.len(),
        spoken.tokens().len(),
        spoken.generation.tokens_per_second(),
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
