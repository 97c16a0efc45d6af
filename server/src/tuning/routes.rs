//! The routes of /v1/fine_tuning/jobs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::asked::Asked;
use super::bench::{Bench, checkpoints};
use super::jobs::{self, Job, New, Note, Status};
use crate::app::{App, Body, Caller, aside, seconds};
use crate::asked::new_id;
use crate::error::ApiError;
use crate::files;
use crate::paging::{Paging, page};
use crate::store::Store;

/// Jobs of a tenant that have not ended.
const MOST_UNFINISHED: i64 = 100;
/// Entries of a list that are told at once.
const MOST_LISTED: usize = 100;

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let (store, bench) = app.tuning()?;
    let asked = Asked::read(&fields)?;
    if asked.model != app.model {
        let message =
            format!("`model` must be {:?}, the base of this server, and is {:?}", app.model, asked.model);
        return Err(ApiError::field("model", message));
    }
    if app.is_draining() || bench.is_ending() {
        return Err(ApiError::unavailable("the server is about to end"));
    }
    caller.0.admit(1)?;
    let (model, tenant) = (app.model.clone(), caller.0.name.clone());
    let job = aside(move || {
        let held_out = asked.validation_file.is_some();
        let checked = bench.tuner.check(&asked.settings, asked.rate, held_out);
        checked.map_err(|(field, why)| ApiError::field(field, why))?;
        if !store.has_room() {
            return Err(ApiError::full());
        }
        let id = new_id("ftjob");
        let new = New {
            id: &id,
            tenant: &tenant,
            model: &model,
            suffix: &asked.suffix,
            training_file: &asked.training_file,
            validation_file: asked.validation_file.as_deref(),
            settings: &asked.settings,
            rate: asked.rate,
            metadata: &asked.metadata,
        };
        let made = store.with(|all| insert(all, &new))??;
        bench.wake();
        Ok(made)
    });
    let job = job.await;
    app.audit(&caller, "job.create", job.as_ref().map_or("", |job| &job.id), &job);
    Ok(Json(job?.value()))
}

/// Notes a job whose files are there, or says why it is not.
fn insert(all: &rusqlite::Transaction<'_>, new: &New<'_>) -> rusqlite::Result<Result<Job, ApiError>> {
    let files = [("training_file", Some(new.training_file)), ("validation_file", new.validation_file)];
    for (field, id) in files {
        let Some(id) = id else { continue };
        let message = match files::find(all, new.tenant, id)? {
            Some(file) if file.purpose == files::FOR_TRAINING => continue,
            Some(file) => format!("the file `{id}` is for {:?}, and none of examples", file.purpose),
            None => format!("there is no file `{id}`, or you have no access to it"),
        };
        return Ok(Err(ApiError::field(field, message)));
    }
    if jobs::count_unfinished(all, new.tenant)? >= MOST_UNFINISHED {
        let message = format!(
            "you have {MOST_UNFINISHED} jobs that have not ended, as many as there may be; wait for them or \
             cancel some"
        );
        return Ok(Err(ApiError::conflicting(message)));
    }
    jobs::insert(all, new)?;
    let job = jobs::find(all, new.tenant, new.id)?;
    Ok(job.ok_or_else(|| ApiError::internal("the job was not kept")))
}

/// Does something with a tenant's job, where it holds up nobody.
async fn with_job<T: Send + 'static>(
    app: &App,
    caller: &Caller,
    id: String,
    work: impl FnOnce(&Store, &Bench, Job) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let ((store, bench), tenant) = (app.tuning()?, caller.0.name.clone());
    aside(move || {
        let job = store.with(|all| jobs::find(all, &tenant, &id))?;
        work(&store, &bench, job.ok_or_else(|| ApiError::no_such("job", &id))?)
    })
    .await
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    let (store, _) = app.tuning()?;
    let listed = aside(move || {
        let (tenant, limit) = (caller.0.name.as_str(), paging.limit(MOST_LISTED)?);
        store
            .with(|all| {
                let below = match &paging.after {
                    Some(id) => match jobs::find(all, tenant, id)? {
                        Some(job) => job.number,
                        None => return Ok(None),
                    },
                    None => i64::MAX,
                };
                let jobs = jobs::list(all, tenant, below, limit)?;
                Ok(Some(page(jobs.iter().map(Job::value).collect(), limit)))
            })?
            .ok_or_else(|| paging.lost("job"))
    });
    Ok(Json(listed.await?))
}

pub(crate) async fn retrieve(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    with_job(&app, &caller, id, |_, _, job| Ok(Json(job.value()))).await
}

pub(crate) async fn events(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    with_job(&app, &caller, id, move |store, _, job| {
        let limit = paging.limit(MOST_LISTED)?;
        let below = match &paging.after {
            Some(id) => jobs::event_number(id)
                .ok_or_else(|| ApiError::field("after", "`after` must be the id of an event"))?,
            None => i64::MAX,
        };
        Ok(Json(page(store.with(|all| jobs::events(all, &job.id, below, limit))?, limit)))
    })
    .await
}

pub(crate) async fn list_checkpoints(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    paging: Paging,
) -> Result<Json<Value>, ApiError> {
    with_job(&app, &caller, id, move |store, bench, job| {
        let limit = paging.limit(MOST_LISTED)?;
        // By the step, since the checkpoint itself may be gone by now.
        let step = |id: &str| id.strip_prefix(&format!("ftckpt-{}-", job.id))?.parse::<u64>().ok();
        let below = match &paging.after {
            Some(id) => Some(step(id).ok_or_else(|| paging.lost("checkpoint"))?),
            None => None,
        };
        let task = store.with(|all| job.task(store, all))?;
        let lines = task.and_then(|task| bench.tuner.metrics(&task).ok()).unwrap_or_default();
        let at = |step: u64, field: &str| {
            let of = |line: &&Value| line["step"] == json!(step) && line.get(field).is_some();
            lines.iter().rfind(of).map(|line| line[field].clone())
        };
        let value = |(step, path): (u64, std::path::PathBuf)| {
            let created = path.metadata().and_then(|data| data.modified()).map_or(0, seconds);
            json!({
                "id": format!("ftckpt-{}-{step}", job.id), "object": "fine_tuning.job.checkpoint",
                "created_at": created, "fine_tuned_model_checkpoint": job.checkpoint(step),
                "fine_tuning_job_id": job.id, "step_number": step,
                "metrics": {
                    "step": step, "train_loss": at(step, "loss"), "valid_loss": at(step, "eval_loss"),
                },
            })
        };
        let newest = checkpoints(&job.folder(store)).into_iter().rev();
        let part = newest.filter(|(step, _)| below.is_none_or(|below| *step < below)).take(limit + 1);
        Ok(Json(page(part.map(value).collect(), limit)))
    })
    .await
}

/// Changes how a job stands, if it stands in a way that allows it.
async fn change(
    app: &App,
    caller: &Caller,
    id: String,
    from: &'static [Status],
    to: Status,
    words: &'static str,
) -> Result<Json<Value>, ApiError> {
    let name = id.clone();
    let changed = with_job(app, caller, id, move |store, bench, job| {
        // Who ends a job may do so to make room.
        let changed = store.freeing(|all| {
            if !jobs::set_status(all, &job.id, from, to)? {
                return Ok(None);
            }
            jobs::note(all, &job.id, &Note::info(words))?;
            jobs::find(all, &job.tenant, &job.id)
        })?;
        let Some(changed) = changed else {
            let message = format!("the job is {}: it can no longer be {}", job.status.word(), done(to));
            return Err(ApiError::conflicting(message));
        };
        match to {
            // The others go on.
            Status::Cancelled | Status::Paused => bench.stop(&job.id),
            _ => bench.wake(),
        }
        Ok(Json(changed.value()))
    })
    .await;
    let action = match to {
        Status::Cancelled => "job.cancel",
        Status::Paused => "job.pause",
        _ => "job.resume",
    };
    app.audit(caller, action, &name, &changed);
    changed
}

/// What is done to a job that comes to stand so.
fn done(to: Status) -> &'static str {
    match to {
        Status::Cancelled => "cancelled",
        Status::Paused => "paused",
        _ => "resumed",
    }
}

const UNDER_WAY: &[Status] = &[Status::Validating, Status::Queued, Status::Running];

pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    change(&app, &caller, id, &Status::UNFINISHED, Status::Cancelled, "the job was cancelled").await
}

pub(crate) async fn pause(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    change(&app, &caller, id, UNDER_WAY, Status::Paused, "the job was paused").await
}

pub(crate) async fn resume(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    // Like a new one it makes all who train begin again.
    caller.0.admit(1)?;
    change(&app, &caller, id, &[Status::Paused], Status::Validating, "the job goes on").await
}

/// DELETE /v1/models/NAME, of a job of the tenant that has ended: its model, if it has come to one, and its
/// checkpoints.
pub(crate) async fn delete_model(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let ((store, bench), tenant, wanted) = (app.tuning()?, caller.0.name.clone(), name.clone());
    let deleted = aside(move || {
        let job = store.with(|all| jobs::ended(all, &tenant, &name))?;
        bench.remove(&job.ok_or_else(|| ApiError::no_model(&name))?)?;
        Ok(Json(json!({"id": name, "object": "model", "deleted": true})))
    })
    .await;
    app.audit(&caller, "model.delete", &wanted, &deleted);
    deleted
}
