//! POST /api/v1/save_weights, /save_weights_for_sampler and /load_weights: models in training become folders,
//! and folders models.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use rusqlite::Transaction;
use serde_json::{Value, json};

use super::futures::Answer;
use super::path::{CheckpointPath, Kind};
use super::trainer::{Job, Lora};
use super::training::{absent, check_base, check_optimizer, make, outcome};
use super::{Tinker, inputs, now, records, sessions};
use crate::app::{App, Body, Caller, aside};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::tenants::Tenant;

/// Checkpoints for sampling that clients gave no name, of each run: a loop of reinforcement learning makes
/// one for every step, and samples from the last ones.
pub(super) const KEPT_PASSING: i64 = 8;
/// What a checkpoint's life may be, in seconds: an hour to ten years.
const LIFE: std::ops::RangeInclusive<i64> = 3600..=315_360_000;

/// When a checkpoint is to go, in seconds since 1970.
pub(super) fn expiry(fields: &Fields) -> Result<Option<i64>, ApiError> {
    Ok(fields.whole("ttl_seconds", LIFE)?.map(|seconds| now() + seconds))
}

/// Bytes of the files in a folder.
fn size(folder: &Path) -> i64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len() as i64).sum()
}

/// Remembers a checkpoint that was written.
async fn remember(
    app: &App,
    caller: &Caller,
    path: &CheckpointPath,
    about: records::About,
) -> Result<(), ApiError> {
    let tinker = app.tinker()?;
    // What was of this name before is not what is of it now.
    app.adapters.forget(&path.to_string());
    let (folder, at, tenant) = (tinker.folder(path), path.clone(), caller.0.name.clone());
    let bytes = aside(move || Ok(size(&folder))).await?;
    let about = records::About { bytes, ..about };
    let add = move |all: &Transaction<'_>| records::add_checkpoint(all, &at, &tenant, now(), &about);
    let added = tinker.records(add).await;
    app.audit(caller, "checkpoint.create", &path.to_string(), &added);
    added?;
    tinker.sweep(app).await
}

pub(super) async fn save(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let done = line_up_save(&app, &caller, &fields).await;
    app.tinker()?.in_order(&caller.0, inputs::place_of(&fields), done).await
}

async fn line_up_save(app: &Arc<App>, caller: &Caller, fields: &Fields) -> Result<Json<Value>, ApiError> {
    let (tinker, tenant) = (app.tinker()?, &caller.0);
    let (model, seq) = (fields.required_text("model_id")?, inputs::read_seq(fields)?);
    let usual = format!("checkpoint-{seq}");
    let path = CheckpointPath::new(model, Kind::Training, fields.text("path")?.unwrap_or(&usual))?;
    let about = records::About {
        expires: expiry(fields)?,
        metadata: sessions::metadata(fields)?,
        ..records::About::default()
    };
    tinker.lora_of(model, tenant).await?;
    if !fields.boolean("overwrite")?.unwrap_or(false) {
        tinker.require_free(&path, tenant, (model, seq)).await?;
    }
    let job = Job::Save(tinker.folder(&path), true);
    tinker.require_disk().await?;
    let (app, caller) = (Arc::clone(app), caller.clone());
    tinker.line_up(tenant, (model, seq), job, |answer| async move {
        outcome(answer).await?;
        remember(&app, &caller, &path, about).await?;
        Ok(Answer::Json(json!({"type": "save_weights", "path": path.to_string()})))
    })
}

pub(super) async fn save_for_sampler(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let done = line_up_save_for_sampler(&app, &caller, &fields).await;
    app.tinker()?.in_order(&caller.0, inputs::place_of(&fields), done).await
}

async fn line_up_save_for_sampler(
    app: &Arc<App>,
    caller: &Caller,
    fields: &Fields,
) -> Result<Json<Value>, ApiError> {
    let (tinker, tenant) = (app.tinker()?, &caller.0);
    let (model, seq) = (fields.required_text("model_id")?, inputs::read_seq(fields)?);
    let number = fields.whole("sampling_session_seq_id", 0..=i64::from(u32::MAX))?;
    let named = fields.text("path")?;
    let usual = format!("passing-{seq}");
    let path = CheckpointPath::new(model, Kind::Sampler, named.unwrap_or(&usual))?;
    let about = records::About {
        expires: expiry(fields)?,
        metadata: sessions::metadata(fields)?,
        is_passing: named.is_none(),
        ..records::About::default()
    };
    tinker.lora_of(model, tenant).await?;
    tinker.require_free(&path, tenant, (model, seq)).await?;
    let session = model.split(':').next().unwrap_or_default().to_owned();
    // The client knows by it whether it gets a sampler at once, or a path to make one of.
    let sampler = match (named, number) {
        (None, Some(number)) => Some(format!("{session}:sample:{number}")),
        (None, None) => {
            return Err(ApiError::field(
                "path",
                "`path` or `sampling_session_seq_id` must say what it is for",
            ));
        }
        _ => None,
    };
    let job = Job::Save(tinker.folder(&path), false);
    tinker.require_disk().await?;
    let (app, caller) = (Arc::clone(app), caller.clone());
    tinker.line_up(tenant, (model, seq), job, |answer| async move {
        outcome(answer).await?;
        let (tinker, tenant) = (app.tinker()?, &caller.0);
        remember(&app, &caller, &path, about).await?;
        // In memory before the first sample asks for it; that it cannot be sampled from is told now.
        tinker.snapshot(&app, &path, tenant).await?;
        if let Some(id) = &sampler {
            let (id, at, name) = (id.clone(), path.clone(), tenant.name.clone());
            tinker.records(move |all| records::add_sampler(all, (&id, &session, &name), Some(&at))).await?;
        }
        Ok(Answer::Json(json!({
            "type": "save_weights_for_sampler", "path": path.to_string(), "sampling_session_id": sampler,
        })))
    })
}

impl Tinker {
    /// Makes sure that what is to be kept finds room on the disk.
    async fn require_disk(&self) -> Result<(), ApiError> {
        let store = Arc::clone(&self.store);
        if aside(move || Ok(store.has_room())).await? { Ok(()) } else { Err(ApiError::full()) }
    }

    /// A checkpoint that a tenant names, which must be there.
    pub(super) async fn checkpoint(
        &self,
        text: &str,
        field: &str,
        tenant: &Tenant,
    ) -> Result<CheckpointPath, ApiError> {
        let absent = || ApiError::absent(field, format!("there is no checkpoint `{text}`"));
        let path = CheckpointPath::parse(text).ok_or_else(absent)?;
        let (asked, name) = (path.clone(), tenant.name.clone());
        match self.records(move |all| records::has_checkpoint(all, &asked, &name, now())).await? {
            true => Ok(path),
            false => Err(absent()),
        }
    }

    /// Makes sure that a checkpoint's name is not taken, unless by this very request.
    async fn require_free(
        &self,
        path: &CheckpointPath,
        tenant: &Tenant,
        (model, seq): (&str, u64),
    ) -> Result<(), ApiError> {
        if self.futures.is_begun(&format!("{model}:{seq}"), &tenant.name) {
            return Ok(());
        }
        let (asked, name) = (path.clone(), tenant.name.clone());
        match self.records(move |all| records::has_checkpoint(all, &asked, &name, now())).await? {
            true => Err(ApiError::field(
                "path",
                format!("there is a checkpoint `{path}` already; choose another name, or delete it"),
            )),
            false => Ok(()),
        }
    }
}

pub(super) async fn load(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let done = line_up_load(&app, &caller, &fields).await;
    app.tinker()?.in_order(&caller.0, inputs::place_of(&fields), done).await
}

async fn line_up_load(app: &Arc<App>, caller: &Caller, fields: &Fields) -> Result<Json<Value>, ApiError> {
    let (tinker, tenant) = (app.tinker()?, &caller.0);
    fields.refuse("weights_access_token", |_| false)?;
    let path = tinker.checkpoint(fields.required_text("path")?, "path", tenant).await?;
    fields.required("optimizer")?;
    let with_optimizer = fields.boolean("optimizer")?.unwrap_or(false);
    if with_optimizer && path.kind == Kind::Sampler {
        let message =
            "a checkpoint for sampling has no optimizer's state; load it without, or name one of weights/";
        return Err(ApiError::field("optimizer", message));
    }
    let (run, name) = (path.run.clone(), tenant.name.clone());
    let found = tinker.records(move |all| records::run(all, &run, &name)).await?;
    let lora = found.ok_or_else(|| absent(&path.run))?.lora;
    if fields.value("session_id").is_some() {
        if let Some(base) = fields.text("base_model")? {
            check_base(app, base)?;
        }
        check_optimizer(fields)?;
        let notes = sessions::metadata(fields)?;
        let place = tinker.place(fields, tenant).await?;
        return make(app, caller, place, lora, Some((path, with_optimizer)), notes);
    }
    let (model, seq) = (fields.required_text("model_id")?, inputs::read_seq(fields)?);
    let own = tinker.lora_of(model, tenant).await?;
    if (Lora { seed: 0, ..own }) != (Lora { seed: 0, ..lora }) {
        return Err(ApiError::field(
            "path",
            format!(
                "the checkpoint has rank {} and the model {}, or they train other modules",
                lora.rank, own.rank
            ),
        ));
    }
    let job = Job::Load(tinker.folder(&path), with_optimizer);
    let id = model.to_owned();
    tinker.line_up(tenant, (model, seq), job, |answer| async move {
        outcome(answer).await?;
        Ok(Answer::Json(json!({"type": "load_weights", "model_id": id, "path": path.to_string()})))
    })
}
