//! POST /tokenize and /detokenize, as vLLM has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::app::{App, Body, Caller, aside};
use crate::conversation::Conversation;
use crate::error::ApiError;

/// The tokens of a `prompt`, or of `messages`.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let spells = fields.boolean("return_token_strs")?.unwrap_or(false);
    let model = fields.text("model")?.unwrap_or(&app.model).to_owned();
    let (context, words) = (app.limits.context, Arc::clone(&app.words));
    let tokens = match fields.value("messages") {
        None => {
            let text = fields.required_text("prompt")?.to_owned();
            let add_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
            require_model(&app, &caller, &model).await?;
            app.tokenizing(&fields, move || words.encode(&text, add_special, "prompt")).await?
        }
        Some(_) => {
            let conversation = Conversation::read(&fields)?;
            let prompts = fields.boolean("add_generation_prompt")?.unwrap_or(true);
            let add_special = fields.boolean("add_special_tokens")?.unwrap_or(false);
            // An adapter may have a template of its own.
            let adapter = app.adapter(&caller.0, &model).await?;
            app.tokenizing(&fields, move || {
                let own = adapter.as_ref().and_then(|adapter| adapter.loaded.chat.as_ref());
                let chat = words.chat(own)?;
                let text = chat.write(&conversation, prompts)?;
                words.encode(&text, add_special, "messages")
            })
            .await?
        }
    };
    let words = Arc::clone(&app.words);
    aside(move || {
        let spelled = spells.then(|| tokens.iter().map(|&id| words.spell(id)).collect::<Vec<_>>());
        Ok(Json(json!({
            "count": tokens.len(), "max_model_len": context, "tokens": tokens, "token_strs": spelled,
        })))
    })
    .await
}

/// The text of `tokens`.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let model = fields.text("model")?.unwrap_or(&app.model);
    require_model(&app, &caller, model).await?;
    fields.required("tokens")?;
    let tokens = fields.tokens("tokens")?.unwrap_or_default();
    let words = Arc::clone(&app.words);
    let text = aside(move || words.decode(&tokens, "tokens")).await?;
    Ok(Json(json!({"prompt": text})))
}

/// Whether there is such a model, without loading it: the tokenizer is the base's.
async fn require_model(app: &App, caller: &Caller, model: &str) -> Result<(), ApiError> {
    if model == app.model {
        return Ok(());
    }
    let (adapters, tenant, name) = (Arc::clone(&app.adapters), Arc::clone(&caller.0), model.to_owned());
    aside(move || if adapters.has(&name, &tenant) { Ok(()) } else { Err(ApiError::no_model(&name)) }).await
}
