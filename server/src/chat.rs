//! POST /v1/chat/completions.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use infer::Ask;
use serde_json::{Value, json};

use crate::answer::{Answer, Piece, Said, begin, together};
use crate::app::{App, Body, Caller, Head, aside};
use crate::asked::{Asked, MAX_TOP, room};
use crate::conversation::Conversation;
use crate::error::ApiError;
use crate::logprobs;
use crate::sse::{Events, Gone};
use crate::usage::Usage;

pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Response, ApiError> {
    let asked = Asked::read(&fields, app.most_answers())?;
    let conversation = Conversation::read(&fields)?;
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
    let (prompt, stops) = aside(move || {
        let own = own.as_ref().and_then(|adapter| adapter.loaded.chat.as_ref());
        let chat = words.chat(own)?;
        let text = chat.write(&conversation.messages, conversation.tools.as_ref(), true)?;
        Ok((words.encode(&text, false, "messages")?, chat.stops.clone()))
    })
    .await?;
    let param = if max_tokens.is_some() { param } else { "messages" };
    let max_tokens = room(prompt.len(), max_tokens, app.limits.context, param)?;
    let (stop, texts) = asked.ends(&stops);
    let ask = |(answer, slot)| {
        let ask = Ask {
            prompt: prompt.clone(),
            adapter: adapter.as_ref().map(|adapter| Arc::clone(&adapter.loaded.adapter)),
            max_tokens,
            stop: stop.clone(),
            sampling: asked.sampling(answer),
            logprobs,
            prompt_logprobs: None,
            owner: caller.0.owner,
        };
        app.ask(ask, texts.clone(), "messages", asked.stream, &caller.0, adapter.as_ref(), slot)
    };
    let mut answers: Vec<Answer> = slots.into_iter().enumerate().map(ask).collect();
    begin(&mut answers).await?;
    let usage = Usage::of_prompts(&answers, asked.n);
    let head = app.head("chatcmpl", &asked, adapter.as_ref());
    let tells = logprobs.is_some();
    match asked.stream {
        false => whole(&app, head, answers, usage, tells).await,
        true => {
            let (events, response) = Events::open(app.limits.write_time);
            let include_usage = asked.include_usage;
            tokio::spawn(async move {
                // Whoever went away need not be told.
                let told = tell(&app, &events, head, answers, usage, include_usage, tells);
                let _ = events.while_heard(told).await;
            });
            Ok(response)
        }
    }
}

async fn whole(
    app: &App,
    head: Head,
    answers: Vec<Answer>,
    mut usage: Usage,
    tells: bool,
) -> Result<Response, ApiError> {
    let mut choices: Vec<(String, Vec<Said>, &str)> =
        answers.iter().map(|_| (String::new(), Vec::new(), "stop")).collect();
    let mut pieces = together(answers);
    while let Some((index, piece)) = pieces.next().await {
        let Piece { text, said, tokens, end } = piece?;
        let choice = &mut choices[index];
        choice.0.push_str(&text);
        choice.1.extend(said);
        choice.2 = end.unwrap_or(choice.2);
        usage.new += tokens;
    }
    let choices = choices.into_iter().enumerate().map(|(index, (text, said, reason))| {
        json!({
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": tells.then(|| logprobs::of_chat(&app.words, &said)),
            "finish_reason": reason,
        })
    });
    let choices: Vec<Value> = choices.collect();
    let mut answer = envelope(&head, "chat.completion", choices);
    answer["usage"] = usage.value();
    Ok(Json(answer).into_response())
}

async fn tell(
    app: &App,
    events: &Events,
    head: Head,
    answers: Vec<Answer>,
    mut usage: Usage,
    include_usage: bool,
    tells: bool,
) -> Result<(), Gone> {
    let chunk = |index: usize, delta: Value, logprobs: Option<Value>, reason: Option<&str>| {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
        let mut chunk = envelope(&head, "chat.completion.chunk", vec![choice]);
        if include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    };
    for index in 0..answers.len() {
        events.send(&chunk(index, json!({"role": "assistant", "content": ""}), None, None)).await?;
    }
    let mut pieces = together(answers);
    while let Some((index, piece)) = pieces.next().await {
        let Piece { text, said, tokens, end } = match piece {
            Ok(piece) => piece,
            Err(error) => return events.send(&error.body()).await,
        };
        usage.new += tokens;
        if !text.is_empty() || (tells && !said.is_empty()) {
            let logprobs = tells.then(|| logprobs::of_chat(&app.words, &said));
            events.send(&chunk(index, json!({"content": text}), logprobs, None)).await?;
        }
        if let Some(reason) = end {
            events.send(&chunk(index, json!({}), None, Some(reason))).await?;
        }
    }
    if include_usage {
        let mut last = envelope(&head, "chat.completion.chunk", Vec::new());
        last["usage"] = usage.value();
        events.send(&last).await?;
    }
    events.done().await
}

/// What is around the choices of an answer.
pub(crate) fn envelope(head: &Head, object: &str, choices: Vec<Value>) -> Value {
    json!({
        "id": head.id, "object": object, "created": head.created, "model": head.model,
        "system_fingerprint": head.fingerprint, "choices": choices,
    })
}
