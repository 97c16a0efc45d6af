//! /pool/v1/jobs: submitting jobs, seeing them, and what their owners do with them.

use std::sync::Arc;

use ::jobs::access::Deed;
use ::jobs::executor::OWN_PROGRAM;
use ::jobs::store::{Record, Which};
use ::jobs::{JobId, Outcome, Spec, Why};
use axum::Json;
use axum::extract::{Path as At, State};
use serde_json::{Value, json};

use super::caller::{Body, Caller, read};
use super::denied::refusal;
use super::query::Asked;
use super::{PoolApp, unreadable, view};
use crate::app::aside;
use crate::error::ApiError;

/// Jobs of a list, if nobody says how many, and at most.
const USUAL: u32 = 100;
const MOST: u32 = 1000;
/// Bytes of a group's name, and of a job's.
const NAME: usize = 200;

/// POST /pool/v1/jobs: all of them, or none.
pub(super) async fn submit(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    fields.only(&["jobs", "group"])?;
    let group = fields.text("group")?.map(str::to_owned);
    if group.as_ref().is_some_and(|group| group.is_empty() || group.len() > NAME) {
        return Err(ApiError::field("group", format!("`group` has 1 to {NAME} bytes")));
    }
    fields.required("jobs")?;
    let listed = fields.list("jobs")?.cloned().unwrap_or_default();
    let most = app.limits.jobs_per_request;
    if listed.is_empty() || listed.len() > most {
        let message = format!("`jobs` must have 1 to {most} jobs, and has {}", listed.len());
        return Err(ApiError::field("jobs", message));
    }
    // Also those that are refused: they take time, too.
    caller.take_jobs(listed.len())?;
    let specs = listed.into_iter().enumerate().map(|(number, value)| {
        let at = format!("jobs[{number}]");
        let spec = spec(&at, value, &caller)?;
        check(&at, &spec, app.any_command)?;
        Ok(spec)
    });
    let specs: Vec<Spec> = specs.collect::<Result<_, ApiError>>()?;
    let ids = aside(move || {
        let submitted = app.handle.submit(&caller.who, specs, group);
        app.status.forget();
        submitted.map_err(refusal)
    })
    .await?;
    Ok(Json(json!({"ids": ids})))
}

/// What is submitted; whatever it says of its user, that is who submits it.
fn spec(at: &str, mut value: Value, caller: &Caller) -> Result<Spec, ApiError> {
    if let Some(fields) = value.as_object_mut() {
        fields.insert("user".into(), caller.who.name.as_str().into());
    }
    read(at, value)
}

/// Refuses what no pool should start for others.
fn check(at: &str, spec: &Spec, any_command: bool) -> Result<(), ApiError> {
    let wrong = |field: &str, message: &str| {
        let field = format!("{at}.{field}");
        ApiError::field(field.clone(), format!("`{field}` {message}"))
    };
    if spec.name.is_empty() || spec.name.len() > NAME {
        return Err(wrong("name", &format!("has 1 to {NAME} bytes")));
    }
    let launch = &spec.launch;
    if !launch.folder.is_absolute() {
        return Err(wrong("launch.folder", "must be an absolute path"));
    }
    if launch.output.as_ref().is_some_and(|output| !output.is_absolute()) {
        return Err(wrong("launch.output", "must be an absolute path"));
    }
    match launch.arguments.first() {
        None => Err(wrong("launch.arguments", "must begin with the program to start")),
        Some(_) if any_command => Ok(()),
        Some(program) if program == OWN_PROGRAM => Ok(()),
        Some(_) => Err(ApiError::forbidden(format!(
            "`{at}.launch.arguments`: this pool runs only luthier's own commands, which begin with \
             `{OWN_PROGRAM}`; `luthier pool serve --any-command` makes one that runs others, too"
        ))),
    }
}

/// GET /pool/v1/jobs: the newest first, of the projects that the caller belongs to.
pub(super) async fn list(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let asked = asked.only(&["project", "user", "group", "all", "limit"])?;
    let which = Which {
        project: asked.text("project"),
        among: app.seen_by(&caller.who, &app.handle.pool()),
        user: asked.text("user"),
        group: asked.text("group"),
        ended: asked.boolean("all")?,
        limit: asked.whole("limit", 1, MOST)?.unwrap_or(USUAL),
    };
    let records = app.read(move |reader| reader.records(&which)).await?;
    aside(move || {
        let pool = app.handle.pool();
        let views: Vec<Value> = records.iter().map(|record| view::job(&app.handle, &pool, record)).collect();
        Ok(Json(json!({"jobs": views})))
    })
    .await
}

fn no_job(id: &str) -> ApiError {
    ApiError::absent("id", format!("there is no job {id}, or you have no access to it"))
}

pub(super) fn number(id: &str) -> Result<JobId, ApiError> {
    // The store counts with signs.
    let number = id.parse::<i64>().ok().and_then(|number| u64::try_from(number).ok());
    number.map(JobId).ok_or_else(|| no_job(id))
}

impl PoolApp {
    /// What is remembered of a job that the caller may see.
    pub(super) fn record(&self, caller: &Caller, id: JobId) -> Result<Record, ApiError> {
        let record = self.handle.read(|reader| reader.record(id)).map_err(|error| unreadable(&error))?;
        let sees = |record: &Record| caller.who.belongs_to(&record.spec.project, self.handle.pool().policy());
        record.filter(sees).ok_or_else(|| no_job(&id.to_string()))
    }
}

/// GET /pool/v1/jobs/{id}
pub(super) async fn retrieve(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Json<Value>, ApiError> {
    let id = number(&id)?;
    aside(move || {
        let record = app.record(&caller, id)?;
        let pool = app.handle.pool();
        let mut view = view::whole(&app.handle, &pool, &record);
        view["may"] = caller.may(&record.spec, pool.policy());
        Ok(Json(view))
    })
    .await
}

/// GET /pool/v1/jobs/{id}/why
pub(super) async fn why(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Json<Why>, ApiError> {
    let id = number(&id)?;
    aside(move || {
        let record = app.record(&caller, id)?;
        Ok(Json(app.handle.why(id).unwrap_or_else(|| ended(&record))))
    })
    .await
}

/// The answer for a job that waits for nothing any more.
fn ended(record: &Record) -> Why {
    let message = match record.outcome {
        Some(Outcome::Done) => "its work is done",
        Some(Outcome::Failed(_)) => "it failed; its log and its last exit say how",
        Some(Outcome::Cancelled) => "somebody cancelled it",
        None => "it has just ended",
    };
    Why {
        rule: "ended".into(),
        message: message.into(),
        unblocks: "nothing: a new job would have to be submitted".into(),
        expected: None,
        bound: None,
    }
}

/// Does something with a job, and tells how it is then.
async fn act(app: Arc<PoolApp>, caller: Caller, id: String, deed: Deed) -> Result<Json<Value>, ApiError> {
    let id = number(&id)?;
    aside(move || {
        let record = app.record(&caller, id)?;
        if record.ended.is_some() {
            return Err(ApiError::conflicting(format!("job {id} has ended")));
        }
        app.handle.act(&caller.who, id, deed).map_err(refusal)?;
        app.status.forget();
        let record = app.record(&caller, id)?;
        Ok(Json(view::job(&app.handle, &app.handle.pool(), &record)))
    })
    .await
}

pub(super) async fn cancel(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Json<Value>, ApiError> {
    act(app, caller, id, Deed::Cancel).await
}

pub(super) async fn hold(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Json<Value>, ApiError> {
    act(app, caller, id, Deed::Hold).await
}

pub(super) async fn release(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    At(id): At<String>,
) -> Result<Json<Value>, ApiError> {
    act(app, caller, id, Deed::Release).await
}

pub(super) async fn prioritize(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    At(id): At<String>,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    fields.only(&["priority"])?;
    fields.required("priority")?;
    let priority = fields.whole("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?.unwrap_or(0);
    act(app, caller, id, Deed::Prioritize(priority as i32)).await
}
