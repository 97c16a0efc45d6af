//! How the server is: for load balancers, for Prometheus, and for its own page.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::{App, Caller};
use crate::error::ApiError;
use crate::models;

/// GET /health: whether it works at all.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    match app.engine.is_alive() {
        true => Ok(StatusCode::OK),
        false => Err(ApiError::unavailable("the engine has stopped")),
    }
}

/// GET /ready: whether it takes requests.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    match app.is_draining() {
        true => Err(ApiError::unavailable("the server is about to end")),
        false => health(State(app)).await,
    }
}

/// GET /metrics. Names of tenants and adapters stand in it, so with keys it takes an admin's.
pub(crate) async fn metrics(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, ApiError> {
    caller.require_admin()?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], app.metrics.text(app.engine.load())).into_response())
}

/// GET /api/state: what the page shows.
pub(crate) async fn state(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Value>, ApiError> {
    let load = app.engine.load();
    let sees = |tenant: &str| caller.0.admin || tenant == caller.0.name;
    let traffic = |name: &str| {
        let traffic = app.metrics.traffic(name, sees);
        json!({"prompt_tokens": traffic.prompt_tokens, "new_tokens": traffic.new_tokens})
    };
    let adapters = models::adapters(&app, &caller).await?.into_iter().map(|adapter| {
        json!({
            "name": adapter.name,
            "state": adapter.state,
            "owner": adapter.owner,
            "generation": adapter.generation,
            "rank": adapter.ready.map(|ready| ready.rank),
            "bytes": adapter.ready.map(|ready| ready.bytes),
            "pinned": adapter.pinned,
            "requests": adapter.requests,
            "idle_seconds": adapter.idle,
            "traffic": traffic(&adapter.name),
        })
    });
    let adapters: Vec<Value> = adapters.collect();
    let [first_token, between, whole] = app.metrics.latencies();
    Ok(Json(json!({
        "model": app.model,
        "context": app.limits.context,
        "seconds": app.begun.elapsed().as_secs(),
        "draining": app.is_draining(),
        "has_jobs": app.bench.is_some(),
        "load": {
            "running": load.running, "waiting": load.waiting, "used_pages": load.used_pages,
            "kept_pages": load.kept_pages, "pages": load.pages,
        },
        "seconds_to_first_token": first_token,
        "seconds_between_tokens": between,
        "seconds_of_request": whole,
        "base": traffic(""),
        "adapters": adapters,
    })))
}
