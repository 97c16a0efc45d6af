//! POST /v1/chat/completions.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use infer::{Ask, Constraint};
use serde_json::{Map, Value, json};

use crate::answer::{Answer, Piece, Said, begin, together};
use crate::app::{App, Body, Caller, Head};
use crate::asked::{Asked, MAX_TOP, room};
use crate::conversation::Conversation;
use crate::error::ApiError;
use crate::form::Formed;
use crate::logprobs;
use crate::outline::Outline;
use crate::reader::{Delta, Reader, Thoughts};
use crate::sse::{Events, Gone};
use crate::usage::Usage;
use crate::words::{Chat, Stops, Words};

/// A conversation as the engine takes it, and how its answer is read.
struct Read {
    prompt: Vec<u32>,
    stops: Stops,
    /// For each answer.
    constraints: Vec<Option<Box<dyn Constraint>>>,
    reader: Reader,
    /// Special tokens that the reader looks for.
    marks: Vec<u32>,
    thinks: bool,
}

/// What is told of an answer beside its words.
#[derive(Clone, Copy)]
struct Telling {
    logprobs: bool,
    token_ids: bool,
    include_usage: bool,
}

pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let asked = Asked::read(&fields, app.most_answers())?;
    let conversation = Conversation::read(&fields)?;
    let formed = Formed::read(&fields)?;
    let (param, max_tokens) = match fields.count("max_completion_tokens", 1)? {
        Some(tokens) => ("max_completion_tokens", Some(tokens)),
        None => ("max_tokens", fields.count("max_tokens", 1)?),
    };
    let top = fields.whole("top_logprobs", 0..=MAX_TOP)?;
    let logprobs = match (fields.boolean("logprobs")?.unwrap_or(false), top) {
        (true, top) => Some(top.unwrap_or(0) as usize),
        (false, Some(1..)) => {
            return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
        (false, _) => None,
    };
    let slots = app.admit(&caller.0, asked.n)?;
    let adapter = app.adapter(&caller.0, &asked.model).await?;
    let (words, own) = (Arc::clone(&app.words), adapter.clone());
    let read = app.tokenizing(&fields, move || {
        let own = own.as_ref().and_then(|adapter| adapter.loaded.chat.as_ref());
        read(&words, words.chat(own)?, conversation, formed, asked.n)
    });
    let Read { prompt, stops, constraints, reader, marks, thinks } = read.await?;
    let param = if max_tokens.is_some() { param } else { "messages" };
    let max_tokens = room(prompt.len(), max_tokens, app.limits.context, param)?;
    let (stop, texts) = asked.ends(&stops);
    let ask = |(answer, (slot, constraint))| {
        let ask = Ask {
            prompt: prompt.clone(),
            adapter: adapter.as_ref().map(|adapter| Arc::clone(&adapter.loaded.adapter)),
            max_tokens,
            stop: stop.clone(),
            sampling: asked.sampling(answer),
            constraint,
            logprobs,
            prompt_logprobs: None,
            owner: caller.0.owner,
        };
        let answer = app.ask(ask, texts.clone(), "messages", asked.stream, &caller.0, adapter.as_ref(), slot);
        answer.telling(marks.clone())
    };
    let mut answers: Vec<Answer> = slots.into_iter().zip(constraints).enumerate().map(ask).collect();
    begin(&mut answers).await?;
    let mut usage = Usage::of_prompts(&answers, asked.n);
    usage.thought = thinks.then_some(0);
    let head = app.head("chatcmpl", &asked, adapter.as_ref());
    let Asked { token_ids, include_usage, .. } = asked;
    let telling = Telling { logprobs: logprobs.is_some(), token_ids, include_usage };
    let work = Work { answers, usage, telling, reader, prompt };
    match asked.stream {
        false => work.whole(&app, &head).await,
        true => {
            let (events, response) = Events::open(app.limits.write_time);
            tokio::spawn(async move {
                // Whoever went away need not be told.
                let _ = events.while_heard(work.tell(&app, &events, &head)).await;
            });
            Ok(response)
        }
    }
}

fn read(
    words: &Words,
    chat: &Chat,
    conversation: Conversation,
    formed: Option<Formed>,
    answers: usize,
) -> Result<Read, ApiError> {
    let text = chat.write(&conversation, true)?;
    let (style, tokenizer) = (chat.style(), words.tokenizer());
    let thoughts = Thoughts::behind(&text, style);
    let outline = Outline::of_answer(&conversation, formed, style, thoughts, tokenizer)?;
    let names = conversation.functions.iter().map(|function| function.name.clone()).collect();
    Ok(Read {
        prompt: words.encode(&text, false, "messages")?,
        stops: chat.stops().clone(),
        constraints: words.constraints(outline, answers)?,
        reader: Reader::new(style, thoughts, names, conversation.parallel),
        marks: style.marks(!conversation.functions.is_empty(), tokenizer),
        thinks: style.thinks,
    })
}

/// A request whose prompt is computed.
struct Work {
    answers: Vec<Answer>,
    usage: Usage,
    telling: Telling,
    /// As it reads the beginning of each answer.
    reader: Reader,
    prompt: Vec<u32>,
}

/// A message, as far as it has come.
#[derive(Default)]
struct Message {
    said: String,
    thought: String,
    /// `tool_calls`.
    calls: Vec<Value>,
}

impl Message {
    fn push(&mut self, delta: Delta) {
        match delta {
            Delta::Said(text) => self.said.push_str(&text),
            Delta::Thought(text) => self.thought.push_str(&text),
            Delta::Call { id, name } => {
                let function = json!({"name": name, "arguments": ""});
                self.calls.push(json!({"id": id, "type": "function", "function": function}));
            }
            Delta::Arguments(text) => {
                let last = self.calls.last_mut().map(|call| &mut call["function"]["arguments"]);
                if let Some(Value::String(arguments)) = last {
                    arguments.push_str(&text);
                }
            }
        }
    }

    fn value(self) -> Value {
        let Message { said, thought, calls } = self;
        // Who calls says nothing, unless it does.
        let said = if said.is_empty() && !calls.is_empty() { Value::Null } else { said.into() };
        let mut message = json!({"role": "assistant", "content": said, "refusal": null});
        if !thought.is_empty() {
            message.as_object_mut().into_iter().for_each(|message| message.extend(thoughts(&thought)));
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        message
    }
}

/// Thoughts, by the name that vLLM gives them and the one that it and others gave.
fn thoughts(text: &str) -> Map<String, Value> {
    ["reasoning", "reasoning_content"].map(|name| (name.to_owned(), text.into())).into_iter().collect()
}

/// A delta in OpenAI's shape; `call` is the number of the call that began last.
fn told(delta: Delta, call: usize) -> Value {
    match delta {
        Delta::Said(text) => json!({"content": text}),
        Delta::Thought(text) => thoughts(&text).into(),
        Delta::Call { id, name } => {
            let function = json!({"name": name, "arguments": ""});
            json!({"tool_calls": [{"index": call, "id": id, "type": "function", "function": function}]})
        }
        Delta::Arguments(text) => {
            json!({"tool_calls": [{"index": call, "function": {"arguments": text}}]})
        }
    }
}

/// An answer that is being read.
struct Choice {
    reader: Reader,
    calls: usize,
}

impl Choice {
    /// Reads a piece; counts tokens of thoughts.
    fn read(&mut self, piece: &Piece, usage: &mut Usage) -> Vec<Delta> {
        let was_thinking = self.reader.is_thinking();
        let mut deltas = self.reader.push(&piece.text);
        if piece.end.is_some() {
            deltas.extend(self.reader.finish());
        }
        usage.new += piece.tokens;
        if was_thinking || self.reader.is_thinking() {
            usage.thought = usage.thought.map(|thought| thought + piece.tokens);
        }
        deltas
    }

    /// `finish_reason`: an answer that calls waits for what its functions say.
    fn reason(&self, end: &'static str) -> &'static str {
        if end == "stop" && self.reader.has_called() { "tool_calls" } else { end }
    }
}

fn token_ids(said: &[Said]) -> Value {
    said.iter().map(|said| said.token).collect()
}

impl Work {
    async fn whole(self, app: &App, head: &Head) -> Result<Response, ApiError> {
        let Work { answers, mut usage, telling, reader, prompt } = self;
        let choice = || (Choice { reader: reader.clone(), calls: 0 }, Message::default(), Vec::new(), "stop");
        let mut choices: Vec<(Choice, Message, Vec<Said>, &str)> = answers.iter().map(|_| choice()).collect();
        let mut pieces = together(answers);
        while let Some((index, piece)) = pieces.next().await {
            let piece = piece?;
            let (choice, message, said, reason) = &mut choices[index];
            choice.read(&piece, &mut usage).into_iter().for_each(|delta| message.push(delta));
            *reason = piece.end.map_or(*reason, |end| choice.reason(end));
            said.extend(piece.said);
        }
        let choices = choices.into_iter().enumerate().map(|(index, (_, message, said, reason))| {
            let mut choice = json!({
                "index": index,
                "message": message.value(),
                "logprobs": telling.logprobs.then(|| logprobs::of_chat(&app.words, &said)),
                "finish_reason": reason,
            });
            if telling.token_ids {
                choice["token_ids"] = token_ids(&said);
            }
            choice
        });
        let mut answer = envelope(head, "chat.completion", choices.collect());
        if telling.token_ids {
            answer["prompt_token_ids"] = prompt.into();
        }
        answer["usage"] = usage.value();
        Ok(Json(answer).into_response())
    }

    async fn tell(self, app: &App, events: &Events, head: &Head) -> Result<(), Gone> {
        let Work { answers, mut usage, telling, reader, prompt } = self;
        let chunk = |index: usize, delta: Value, said: &[Said], reason: Option<&str>| {
            let logprobs =
                (telling.logprobs && !said.is_empty()).then(|| logprobs::of_chat(&app.words, said));
            let mut choice =
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
            if telling.token_ids && !said.is_empty() {
                choice["token_ids"] = token_ids(said);
            }
            let mut chunk = envelope(head, "chat.completion.chunk", vec![choice]);
            if telling.include_usage {
                chunk["usage"] = Value::Null;
            }
            chunk
        };
        let choice = |_| Choice { reader: reader.clone(), calls: 0 };
        let mut choices: Vec<Choice> = (0..answers.len()).map(choice).collect();
        for index in 0..answers.len() {
            let mut first = chunk(index, json!({"role": "assistant", "content": ""}), &[], None);
            if telling.token_ids && index == 0 {
                first["prompt_token_ids"] = prompt.as_slice().into();
            }
            events.send(&first).await?;
        }
        let mut pieces = together(answers);
        while let Some((index, piece)) = pieces.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return events.send(&error.body()).await,
            };
            let choice = &mut choices[index];
            let deltas = choice.read(&piece, &mut usage);
            // What is told of tokens is told with the first thing that they say.
            let mut said = &piece.said[..];
            if deltas.is_empty() && !said.is_empty() && (telling.logprobs || telling.token_ids) {
                events.send(&chunk(index, json!({"content": ""}), said, None)).await?;
            }
            for delta in deltas {
                choice.calls += usize::from(matches!(delta, Delta::Call { .. }));
                let delta = told(delta, choice.calls.saturating_sub(1));
                events.send(&chunk(index, delta, said, None)).await?;
                said = &[];
            }
            if let Some(end) = piece.end {
                events.send(&chunk(index, json!({}), &[], Some(choice.reason(end)))).await?;
            }
        }
        if telling.include_usage {
            let mut last = envelope(head, "chat.completion.chunk", Vec::new());
            last["usage"] = usage.value();
            events.send(&last).await?;
        }
        events.done().await
    }
}

/// What is around the choices of an answer.
pub(crate) fn envelope(head: &Head, object: &str, choices: Vec<Value>) -> Value {
    json!({
        "id": head.id, "object": object, "created": head.created, "model": head.model,
        "system_fingerprint": head.fingerprint, "choices": choices,
    })
}
