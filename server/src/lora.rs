//! POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them, with generations.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::adapters::Conditions;
use crate::app::{App, Body, Caller};
use crate::error::ApiError;
use crate::fields::Fields;

pub(crate) async fn load(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    caller.require_admin()?;
    let (name, path) = (fields.required_text("lora_name")?, fields.required_text("lora_path")?);
    let conditions = Conditions {
        replace: fields.boolean("load_inplace")?.unwrap_or(false),
        expected: expected(&fields)?,
        pinned: fields.boolean("pinned")?,
    };
    if app.is_draining() {
        return Err(ApiError::unavailable("the server is about to end"));
    }
    let made = app.adapters.load(name, path, conditions).await;
    app.audit(&caller, "adapter.load", name, &made);
    let made = made?;
    Ok(Json(json!({
        "message": format!("Success: LoRA adapter '{name}' added successfully."),
        "lora_name": name, "generation": made.number, "rank": made.loaded.rank, "bytes": made.loaded.bytes,
    })))
}

pub(crate) async fn unload(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    caller.require_admin()?;
    let name = fields.required_text("lora_name")?;
    let done = app.adapters.unload(name, expected(&fields)?);
    app.audit(&caller, "adapter.unload", name, &done);
    done?;
    Ok(Json(json!({
        "message": format!("Success: LoRA adapter '{name}' removed successfully."), "lora_name": name,
    })))
}

fn expected(fields: &Fields) -> Result<Option<u64>, ApiError> {
    Ok(fields.whole("expected_generation", 0..=i64::MAX)?.map(i64::unsigned_abs))
}
