//! GET /v1/models and /v1/models/NAME: the base and the adapters that a tenant may use.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::adapters::Listed;
use crate::app::{App, Caller, aside, seconds};
use crate::error::ApiError;

pub(crate) async fn models(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"object": "list", "data": cards(&app, &caller).await?})))
}

pub(crate) async fn model(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let mut cards = cards(&app, &caller).await?.into_iter();
    cards.find(|card| card["id"] == json!(name)).map(Json).ok_or_else(|| ApiError::no_model(&name))
}

/// The adapters that a tenant may use.
pub(crate) async fn adapters(app: &App, caller: &Caller) -> Result<Vec<Listed>, ApiError> {
    let store = Arc::clone(&app.adapters);
    let tenant = Arc::clone(&caller.0);
    aside(move || Ok(store.list(&tenant))).await
}

async fn cards(app: &App, caller: &Caller) -> Result<Vec<Value>, ApiError> {
    let begun = seconds(SystemTime::now()).saturating_sub(app.begun.elapsed().as_secs());
    let base = json!({
        "id": app.model, "object": "model", "created": begun, "owned_by": "luthier", "root": app.model,
        "parent": null, "max_model_len": app.limits.context,
    });
    let card = |adapter: &Listed| {
        let created = adapter.ready.map_or(begun, |ready| seconds(ready.created));
        // Where something lies on the server's disk is the business of those who may load it.
        let root = if caller.0.admin { json!(adapter.path) } else { json!(adapter.name) };
        json!({
            "id": adapter.name, "object": "model", "created": created,
            "owned_by": adapter.owner.as_deref().unwrap_or("luthier"),
            "root": root, "parent": app.model, "max_model_len": app.limits.context,
            "generation": adapter.generation, "pinned": adapter.pinned,
        })
    };
    let adapters = adapters(app, caller).await?;
    Ok([base].into_iter().chain(adapters.iter().map(card)).collect())
}
