//! What a client asks before all else, and its sessions: GET /api/v1/healthz, /get_server_capabilities and
//! /sessions, POST /client/config, /client/dynamic_config, /create_session, /session_heartbeat, /telemetry
//! and /sessions/ID/finish.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{inputs, now, records};
use crate::app::{App, Body, Caller};
use crate::asked::random;
use crate::error::ApiError;
use crate::fields::Fields;

/// Bytes of what a client notes of a session or a run.
const MOST_METADATA: usize = 16 << 10;
/// Bytes of a pass that clients send at once, as they count.
const CHUNK_BYTES: usize = 5_000_000;

pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    match app.engine.is_alive() && app.tinker()?.trainer.is_alive() {
        true => Ok(Json(json!({"status": "ok"}))),
        false => Err(ApiError::internal("the engine or the thread that trains has stopped")),
    }
}

/// POST /api/v1/client/config: what this server can do of what clients can.
pub(super) async fn config(
    State(app): State<Arc<App>>,
    _: Caller,
    Body(_): Body,
) -> Result<Json<Value>, ApiError> {
    app.tinker()?;
    Ok(Json(json!({
        "pjwt_auth_enabled": false, "credential_default_source": "api_key", "parallel_fwdbwd_chunks": true,
        "proto_compress_fwdbwd": false, "fwdbwd_max_chunk_len": inputs::MOST_EXAMPLES,
        "fwdbwd_max_chunk_bytes_count": CHUNK_BYTES, "sample_use_retrieve_futures": false,
        "custom_loss_server_side": false, "sample_join_sampling_session": false,
        "sample_max_concurrent_requests": app.most_answers(),
    })))
}

pub(super) async fn dynamic_config(
    State(app): State<Arc<App>>,
    _: Caller,
    Body(_): Body,
) -> Result<Json<Value>, ApiError> {
    app.tinker()?;
    Ok(Json(json!({"refresh_interval_sec": 300, "sample_cancel_enabled": true})))
}

pub(super) async fn capabilities(State(app): State<Arc<App>>, _: Caller) -> Result<Json<Value>, ApiError> {
    app.tinker()?;
    Ok(Json(json!({"supported_models": [{
        "model_name": app.model, "max_context_length": app.limits.context, "trainable": true, "sampleable": true,
    }]})))
}

/// What a client notes of something: an object, kept as it is.
pub(super) fn metadata(fields: &Fields) -> Result<Option<String>, ApiError> {
    const NAME: &str = "user_metadata";
    let Some(value) = fields.value(NAME) else { return Ok(None) };
    let text = value.to_string();
    match value.is_object() && text.len() <= MOST_METADATA {
        true => Ok(Some(text)),
        false => {
            Err(ApiError::field(NAME, format!("`{NAME}` must be an object of {MOST_METADATA} bytes at most")))
        }
    }
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    let id = format!("{:016x}{:016x}", random(), random());
    let name = fields.text("display_name")?.map(str::to_owned);
    if name.as_ref().is_some_and(|name| name.len() > 256) {
        return Err(ApiError::field("display_name", "`display_name` has 256 bytes at most"));
    }
    let (session, notes) = (id.clone(), metadata(&fields)?);
    let owner = tenant.name.clone();
    tinker
        .records(move |all| {
            records::add_session(all, &session, &owner, now(), name.as_deref(), notes.as_deref())
        })
        .await?;
    tinker.hear(&id);
    Ok(Json(json!({"type": "create_session", "session_id": id})))
}

pub(super) async fn heartbeat(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    app.tinker()?.require_session(fields.required_text("session_id")?, &tenant).await?;
    Ok(Json(json!({"type": "session_heartbeat"})))
}

/// POST /api/v1/telemetry: what clients would tell their maker of is told to nobody.
pub(super) async fn telemetry(
    State(app): State<Arc<App>>,
    _: Caller,
    Body(_): Body,
) -> Result<Json<Value>, ApiError> {
    app.tinker()?;
    Ok(Json(json!({"status": "accepted"})))
}

pub(super) async fn finish(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Path(session): Path<String>,
    Body(fields): Body,
) -> Result<StatusCode, ApiError> {
    let tinker = app.tinker()?;
    let reason = fields.object("reason")?;
    let how = reason.as_ref().and_then(|reason| reason.text("type").ok().flatten()).unwrap_or("success");
    let how = match how {
        "success" | "errored" | "interrupted" => how.to_owned(),
        _ => return Err(ApiError::field("reason", "a session ends by success, errored or interrupted")),
    };
    let (id, name) = (session.clone(), tenant.name.clone());
    let known = tinker
        .free(move |all| {
            records::end_session(all, &id, &name, &how)?;
            records::session_ended(all, &id, &name)
        })
        .await?;
    if known.is_none() {
        return Err(ApiError::absent("session_id", format!("there is no session `{session}`")));
    }
    let of_session: Vec<String> = {
        let models = tinker.models();
        models.iter().filter(|(_, model)| model.session == session).map(|(id, _)| id.clone()).collect()
    };
    of_session.iter().for_each(|model| tinker.unload(model));
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Path(session): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (id, name) = (session.clone(), tenant.name.clone());
    let found = app.tinker()?.records(move |all| records::session(all, &id, &name)).await?;
    let absent = || ApiError::absent("session_id", format!("there is no session `{session}`"));
    found.map(Json).ok_or_else(absent)
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let span = super::runs::span(query.as_deref(), 20)?;
    let page = app.tinker()?.records(move |all| records::sessions(all, &tenant.name, span)).await?;
    Ok(Json(json!({"sessions": page.items})))
}
