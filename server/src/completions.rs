//! POST /v1/completions.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use infer::{Ask, Logprobs};
use serde_json::{Value, json};

use crate::answer::{Answer, Piece, Said, begin, together};
use crate::app::{App, Body, Caller, Head};
use crate::asked::{Asked, MAX_TOP, Prompt, room};
use crate::chat::envelope;
use crate::error::ApiError;
use crate::form::Formed;
use crate::logprobs::OfCompletion;
use crate::outline::Outline;
use crate::sse::{Events, Gone};
use crate::usage::Usage;
use crate::words::Words;

/// New tokens where nobody says how many.
const DEFAULT_TOKENS: usize = 16;

/// A prompt with its text, if that is to be told again.
struct Begun {
    tokens: Vec<u32>,
    text: String,
    /// Characters of the text before each token.
    offsets: Vec<usize>,
}

/// What is told of an answer beside its text.
#[derive(Clone, Copy)]
struct Telling {
    /// The prompt, before it.
    echo: bool,
    logprobs: bool,
    token_ids: bool,
}

pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let most = app.most_answers();
    let asked = Asked::read(&fields, most)?;
    let prompts = Prompt::read(&fields, most / asked.n)?;
    let max_tokens = fields.count("max_tokens", 0)?.unwrap_or(DEFAULT_TOKENS);
    let top = fields.whole("logprobs", 0..=MAX_TOP)?.map(|top| top as usize);
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let telling = Telling { echo, logprobs: top.is_some(), token_ids: asked.token_ids };
    let formed = Formed::read(&fields)?;
    let add_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
    fields.refuse("suffix", |suffix| suffix.as_str() == Some(""))?;
    let slots = app.admit(&caller.0, prompts.len() * asked.n)?;
    let adapter = app.adapter(&caller.0, &asked.model).await?;
    let words = Arc::clone(&app.words);
    let answers = slots.len();
    let (begun, constraints) = app
        .tokenizing(&fields, move || {
            let begun = prompts.into_iter().map(|prompt| read(&words, prompt, add_special, telling.echo));
            let begun: Vec<Begun> = begun.collect::<Result<_, _>>()?;
            let outline = formed.map(Outline::of_form).transpose()?;
            Ok((begun, words.constraints(outline, answers)?))
        })
        .await?;
    let (stop, texts) = asked.ends(app.words.stops());
    let mut answers = Vec::with_capacity(slots.len());
    for (place, (slot, constraint)) in slots.into_iter().zip(constraints).enumerate() {
        let prompt = &begun[place / asked.n].tokens;
        let ask = Ask {
            prompt: prompt.clone(),
            adapter: adapter.as_ref().map(|adapter| Arc::clone(&adapter.loaded.adapter)),
            max_tokens: room(prompt.len(), Some(max_tokens), app.limits.context, "max_tokens")?,
            stop: stop.clone(),
            sampling: asked.sampling(place % asked.n),
            constraint,
            logprobs: top,
            prompt_logprobs: top.filter(|_| telling.echo),
            owner: caller.0.owner,
        };
        answers.push(app.ask(ask, texts.clone(), "prompt", asked.stream, &caller.0, adapter.as_ref(), slot));
    }
    begin(&mut answers).await?;
    let usage = Usage::of_prompts(&answers, asked.n);
    let head = app.head("cmpl", &asked, adapter.as_ref());
    let work = Work { begun, answers, usage, telling, n: asked.n };
    match asked.stream {
        false => work.whole(&app.words, &head).await,
        true => {
            let (events, response) = Events::open(app.limits.write_time);
            let include_usage = asked.include_usage;
            tokio::spawn(async move {
                // Whoever went away need not be told.
                let told = work.tell(&app.words, &events, &head, include_usage);
                let _ = events.while_heard(told).await;
            });
            Ok(response)
        }
    }
}

/// Reads a prompt; its text and where its tokens stand in it only if that is told again.
fn read(words: &Words, prompt: Prompt, add_special: bool, echo: bool) -> Result<Begun, ApiError> {
    match prompt {
        Prompt::Text(text) => {
            let encoded = words.tokenizer().encode(&text, add_special);
            let encoded = encoded.map_err(|error| ApiError::field("prompt", error.to_string()))?;
            // Tokens follow each other in the text, so it is gone through once.
            let (mut bytes, mut characters) = (0, 0);
            let offsets = encoded.begins.iter().map(|&begin| {
                if let Some(passed) = text.get(bytes..begin) {
                    (bytes, characters) = (begin, characters + passed.chars().count());
                }
                characters
            });
            let offsets = if echo { offsets.collect() } else { Vec::new() };
            Ok(Begun { tokens: encoded.ids, text, offsets })
        }
        Prompt::Tokens(tokens) if echo => {
            let mut stream = words.tokenizer().stream(false);
            let (mut text, mut characters, mut offsets) = (String::new(), 0, Vec::new());
            for &token in &tokens {
                offsets.push(characters);
                let piece = stream.push(words.tokenizer(), token);
                characters += piece.chars().count();
                text.push_str(&piece);
            }
            text.push_str(&stream.finish(words.tokenizer()));
            Ok(Begun { tokens, text, offsets })
        }
        Prompt::Tokens(tokens) => Ok(Begun { tokens, text: String::new(), offsets: Vec::new() }),
    }
}

/// A request whose prompts are computed.
struct Work {
    begun: Vec<Begun>,
    answers: Vec<Answer>,
    usage: Usage,
    telling: Telling,
    /// Answers to each prompt.
    n: usize,
}

/// A choice, as far as it has come.
#[derive(Default)]
struct Choice {
    text: String,
    logprobs: OfCompletion,
    /// Ids of the prompt's tokens, until they are told, and of new ones.
    prompt: Option<Vec<u32>>,
    tokens: Vec<u32>,
    /// Characters of the prompt that stand before the answer.
    before: usize,
    reason: Option<&'static str>,
}

impl Choice {
    /// What a choice begins with: the prompt, if it is told again.
    fn new(words: &Words, begun: &Begun, logprobs: &[Logprobs], telling: Telling) -> Self {
        let prompt = telling.token_ids.then(|| begun.tokens.clone());
        let mut choice = Choice { prompt, ..Choice::default() };
        if telling.echo {
            choice.text = begun.text.clone();
            choice.before = begun.text.chars().count();
            let logprobs = [None].into_iter().chain(logprobs.iter().map(Some));
            for ((&token, &offset), logprobs) in begun.tokens.iter().zip(&begun.offsets).zip(logprobs) {
                if telling.logprobs {
                    choice.logprobs.push(words, token, logprobs, offset);
                }
            }
        }
        choice
    }

    fn push(&mut self, words: &Words, text: &str, said: &[Said], end: Option<&'static str>) {
        self.text.push_str(text);
        for said in said {
            self.tokens.push(said.token);
            self.logprobs.push(words, said.token, said.logprobs.as_ref(), self.before + said.offset);
        }
        self.reason = end;
    }

    /// What there is to tell since the last time.
    fn take(&mut self, index: usize, telling: Telling) -> Value {
        let logprobs = std::mem::take(&mut self.logprobs);
        let tokens = std::mem::take(&mut self.tokens);
        let mut choice = json!({
            "index": index,
            "text": std::mem::take(&mut self.text),
            "logprobs": telling.logprobs.then(|| logprobs.value()),
            "finish_reason": self.reason,
        });
        if telling.token_ids {
            choice["token_ids"] = tokens.into();
            if let Some(prompt) = self.prompt.take() {
                choice["prompt_token_ids"] = prompt.into();
            }
        }
        choice
    }
}

impl Work {
    /// The choices as they begin.
    fn choices(&self, words: &Words) -> Vec<Choice> {
        let begin = |(place, answer): (usize, &Answer)| {
            Choice::new(words, &self.begun[place / self.n], &answer.prompt_logprobs, self.telling)
        };
        self.answers.iter().enumerate().map(begin).collect()
    }

    async fn whole(self, words: &Words, head: &Head) -> Result<Response, ApiError> {
        let mut choices = self.choices(words);
        let Work { answers, mut usage, telling, .. } = self;
        let mut pieces = together(answers);
        while let Some((index, piece)) = pieces.next().await {
            let Piece { text, said, tokens, end } = piece?;
            choices[index].push(words, &text, &said, end);
            usage.new += tokens;
        }
        let choices = choices.iter_mut().enumerate().map(|(index, choice)| choice.take(index, telling));
        let mut answer = envelope(head, "text_completion", choices.collect());
        answer["usage"] = usage.value();
        Ok(Json(answer).into_response())
    }

    async fn tell(
        self,
        words: &Words,
        events: &Events,
        head: &Head,
        include_usage: bool,
    ) -> Result<(), Gone> {
        let mut choices = self.choices(words);
        let Work { answers, mut usage, telling, .. } = self;
        let chunk = |choices: Vec<Value>| {
            let mut chunk = envelope(head, "text_completion", choices);
            if include_usage {
                chunk["usage"] = Value::Null;
            }
            chunk
        };
        for (index, choice) in choices.iter_mut().enumerate() {
            if telling.echo {
                events.send(&chunk(vec![choice.take(index, telling)])).await?;
            }
        }
        let mut pieces = together(answers);
        while let Some((index, piece)) = pieces.next().await {
            let Piece { text, said, tokens, end } = match piece {
                Ok(piece) => piece,
                Err(error) => return events.send(&error.body()).await,
            };
            usage.new += tokens;
            choices[index].push(words, &text, &said, end);
            let tells = telling.logprobs || telling.token_ids;
            if !text.is_empty() || end.is_some() || (tells && !said.is_empty()) {
                events.send(&chunk(vec![choices[index].take(index, telling)])).await?;
            }
        }
        if include_usage {
            let mut last = chunk(Vec::new());
            last["usage"] = usage.value();
            events.send(&last).await?;
        }
        events.done().await
    }
}
