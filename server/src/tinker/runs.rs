//! Lists and deletion: GET /api/v1/training_runs, /training_runs/ID, /training_runs/ID/checkpoints and
//! /checkpoints, DELETE /training_runs/ID/checkpoints/KIND/NAME and PUT .../ttl, POST /weights_info.

use std::fs;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::path::{CheckpointPath, Kind};
use super::records::{Page, Span};
use super::{Tinker, checkpoints, records};
use crate::app::{App, Body, Caller, aside};
use crate::error::ApiError;

/// Items of a page at most.
const MOST_ITEMS: i64 = 1000;

/// `limit` and `offset` of a query.
pub(super) fn span(query: Option<&str>, usual: i64) -> Result<Span, ApiError> {
    let mut span = Span { offset: 0, limit: usual };
    for (name, value) in query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
        let (to, range) = match name {
            "limit" => (&mut span.limit, 1..=MOST_ITEMS),
            "offset" => (&mut span.offset, 0..=i64::MAX),
            _ => continue,
        };
        *to = value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            ApiError::field(name, format!("`{name}` must be a whole number from {least} to {most}"))
        })?;
    }
    Ok(span)
}

fn cursor(page: &Page, span: Span) -> Value {
    json!({"offset": span.offset, "limit": span.limit, "total_count": page.total})
}

fn no_run(run: &str) -> ApiError {
    ApiError::absent("training_run_id", format!("there is no training run `{run}`"))
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let span = span(query.as_deref(), 20)?;
    let page = app.tinker()?.records(move |all| records::runs(all, &tenant.name, span)).await?;
    Ok(Json(json!({"cursor": cursor(&page, span), "training_runs": page.items})))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Path(run): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = run.clone();
    let found = app.tinker()?.records(move |all| records::shown_run(all, &id, &tenant.name)).await?;
    found.map(Json).ok_or_else(|| no_run(&run))
}

pub(super) async fn checkpoints(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Path(run): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    tinker.sweep(&app).await?;
    let id = run.clone();
    let all_of_it = Span { offset: 0, limit: MOST_ITEMS };
    let found = tinker
        .records(move |all| {
            let known = records::run(all, &id, &tenant.name)?.is_some();
            let page = records::checkpoints(all, &tenant.name, Some(&id), all_of_it)?;
            Ok(known.then_some(page))
        })
        .await?;
    let page = found.ok_or_else(|| no_run(&run))?;
    Ok(Json(json!({"checkpoints": page.items, "cursor": null})))
}

pub(super) async fn all_checkpoints(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let (tinker, span) = (app.tinker()?, span(query.as_deref(), 100)?);
    tinker.sweep(&app).await?;
    let page = tinker.records(move |all| records::checkpoints(all, &tenant.name, None, span)).await?;
    Ok(Json(json!({"cursor": cursor(&page, span), "checkpoints": page.items})))
}

/// A checkpoint named by the parts of a route.
fn named((run, segment, name): (String, String, String)) -> Result<CheckpointPath, ApiError> {
    let path = Kind::of_segment(&segment).map(|kind| CheckpointPath { run, kind, name });
    // As if it were written out: what is no name is nothing that exists.
    let path = path.and_then(|path| CheckpointPath::parse(&path.to_string()));
    path.ok_or_else(|| ApiError::absent("checkpoint_id", "there is no such checkpoint"))
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(parts): Path<(String, String, String)>,
) -> Result<StatusCode, ApiError> {
    let tinker = app.tinker()?;
    let path = named(parts)?;
    let (asked, tenant) = (path.clone(), caller.0.name.clone());
    if !tinker.free(move |all| records::remove_checkpoint(all, &asked, &tenant)).await? {
        return Err(ApiError::absent("checkpoint_id", "there is no such checkpoint"));
    }
    let deleted = delete_files(&app, tinker, &path).await;
    app.audit(&caller, "checkpoint.delete", &path.to_string(), &deleted);
    deleted.map(|()| StatusCode::NO_CONTENT)
}

/// Takes a checkpoint's files away that is not remembered any more. Samples that use it go on.
pub(super) async fn delete_files(app: &App, tinker: &Tinker, path: &CheckpointPath) -> Result<(), ApiError> {
    app.adapters.forget(&path.to_string());
    let folder = tinker.folder(path);
    aside(move || match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ApiError::internal(format!("a checkpoint cannot be deleted: {error}")))
        }
        _ => Ok(()),
    })
    .await
}

pub(super) async fn set_ttl(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Path(parts): Path<(String, String, String)>,
    Body(fields): Body,
) -> Result<StatusCode, ApiError> {
    let (path, expires) = (named(parts)?, checkpoints::expiry(&fields)?);
    let set = move |all: &rusqlite::Transaction<'_>| records::set_expiry(all, &path, &tenant.name, expires);
    match app.tinker()?.records(set).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::absent("checkpoint_id", "there is no such checkpoint")),
    }
}

pub(super) async fn weights_info(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    let path = tinker.checkpoint(fields.required_text("tinker_path")?, "tinker_path", &tenant).await?;
    let run = path.run.clone();
    let found = tinker.records(move |all| records::run(all, &run, &tenant.name)).await?;
    let run = found.ok_or_else(|| no_run(&path.run))?;
    Ok(Json(json!({
        "base_model": run.base, "is_lora": true, "lora_rank": run.lora.rank, "train_attn": run.lora.attention,
        "train_mlp": run.lora.mlp, "train_unembed": run.lora.head,
    })))
}
