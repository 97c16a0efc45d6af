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
    let mut listed = aside(move || Ok(store.list())).await?;
    listed.retain(|adapter| caller.0.may_use(&adapter.name));
    Ok(listed)
}

async fn cards(app: &App, caller: &Caller) -> Result<Vec<Value>, ApiError> {
    let begun = seconds(SystemTime::now()).saturating_sub(app.begun.elapsed().as_secs());
    let base = json!({
        "id": app.model, "object": "model", "created": begun, "owned_by": "luthier", "root": app.model,
        "parent": null, "max_model_len": app.limits.context,
    });
    let card = |adapter: &Listed| {
        let created = adapter.ready.map_or(begun, |ready| seconds(ready.created));
        json!({
            "id": adapter.name, "object": "model", "created": created, "owned_by": "luthier",
            "root": adapter.path, "parent": app.model, "max_model_len": app.limits.context,
            "generation": adapter.ready.map(|ready| ready.number), "pinned": adapter.pinned,
        })
    };
    let adapters = adapters(app, caller).await?;
    Ok([base].into_iter().chain(adapters.iter().map(card)).collect())
}
