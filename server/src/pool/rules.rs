//! The rules of a pool and who it knows: the policy, users, the log of who did what, who had to give way to
//! whom, and how fast things were measured to be.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path as At, State};
use jobs::policy::is_name;
use jobs::{Policy, Spec};
use serde_json::{Value, json};

use super::caller::{Body, Caller, read};
use super::denied::refusal;
use super::query::Asked;
use super::{PREFIX, PoolApp, view};
use crate::app::aside;
use crate::error::ApiError;
use crate::tenants::key;

/// Entries of a list, if nobody says how many, and at most.
const USUAL: u32 = 100;
const MOST: u32 = 1000;
/// Bytes of the name of something that is measured.
const KEY: usize = 500;

/// GET /pool/v1/policy: of other projects without their people.
pub(super) async fn policy(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    asked: Asked,
) -> Result<Json<Policy>, ApiError> {
    asked.only(&[])?;
    let mut policy = app.handle.pool().policy().clone();
    if !caller.who.is_admin(&policy) {
        let whole = policy.clone();
        let others = |name: &str| !caller.who.belongs_to(name, &whole);
        for project in policy.projects.iter_mut().filter(|project| others(&project.name)) {
            project.members.clear();
            project.owners.clear();
        }
    }
    Ok(Json(policy))
}

/// PUT /pool/v1/policy
pub(super) async fn apply(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    caller.require_admin(&app, "change the policy")?;
    let policy: Policy = read("", Value::Object(fields.into_map()))?;
    aside(move || {
        app.handle.apply(&caller.who, policy).map_err(refusal)?;
        app.status.forget();
        Ok(Json(json!({"applied": true})))
    })
    .await
}

/// GET /pool/v1/me: who the token says that one is, and what that means.
pub(super) async fn me(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.only(&[])?;
    let pool = app.handle.pool();
    let (who, policy) = (&caller.who, pool.policy());
    let names = |is: &dyn Fn(&str) -> bool| {
        let names = policy.projects.iter().map(|project| project.name.as_str());
        names.filter(|name| is(name)).collect::<Vec<_>>()
    };
    Ok(Json(json!({
        "name": who.name, "admin": who.is_admin(policy), "any_command": app.any_command,
        "projects": names(&|name| who.belongs_to(name, policy)), "owns": names(&|name| who.owns(name, policy)),
    })))
}

impl Caller {
    /// What it may do with a job, as the pool would decide.
    pub(super) fn may(&self, spec: &Spec, policy: &Policy) -> Value {
        let owns = self.who.owns(&spec.project, policy);
        json!({"change": owns || spec.user == self.who.name, "raise": owns})
    }
}

/// GET /pool/v1/evictions: of those projects alone that the caller belongs to, on either side.
pub(super) async fn evictions(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let asked = asked.only(&["limit"])?;
    let limit = asked.whole("limit", 1, MOST)?.unwrap_or(USUAL);
    let among = app.seen_by(&caller.who, &app.handle.pool());
    let of = among.clone();
    let records = app.read(move |reader| reader.evictions(of.as_deref(), limit)).await?;
    let pool = app.handle.pool();
    let evictions = records.iter().map(|record| {
        let sees = among.as_ref().is_none_or(|among| among.contains(&record.project));
        json!({
            "job": record.job, "name": sees.then_some(&record.name), "project": record.project,
            "at": record.at, "reason": pool.say(&record.reason), "by": view::by(&record.reason),
            "by_project": record.by_project, "lost_steps": record.lost_steps,
        })
    });
    Ok(Json(json!({"evictions": evictions.collect::<Vec<_>>()})))
}

/// GET /pool/v1/audit
pub(super) async fn audit(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    caller.require_admin(&app, "read the log")?;
    let asked = asked.only(&["limit"])?;
    let limit = asked.whole("limit", 1, MOST)?.unwrap_or(USUAL);
    let records = app.read(move |reader| reader.audit(limit)).await?;
    Ok(Json(json!({"audit": records})))
}

/// GET /pool/v1/users
pub(super) async fn users(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    caller.require_admin(&app, "see all users")?;
    asked.only(&[])?;
    let users = app.read(jobs::store::Reader::users).await?;
    Ok(Json(json!({"users": users})))
}

/// POST /pool/v1/users: a new user, or a new token for one, in the place of the old one. The token is told
/// once.
pub(super) async fn add_user(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    caller.require_admin(&app, "add users")?;
    fields.only(&["name"])?;
    let name = fields.required_text("name")?.to_owned();
    if !is_name(&name) {
        let message =
            "`name` must be 1 to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit";
        return Err(ApiError::field("name", message));
    }
    if name == app.root_name {
        let message = format!("`{name}` is what the owner of the pool's own token is called");
        return Err(ApiError::field("name", message));
    }
    let token = key::secret(PREFIX).map_err(ApiError::internal)?;
    let hash = key::hash(token.as_bytes());
    aside(move || {
        app.handle.set_user(&caller.who, &name, Some(hash.to_vec())).map_err(refusal)?;
        Ok(Json(json!({"name": name, "token": token})))
    })
    .await
}

/// DELETE /pool/v1/users/{name}: takes the token back.
pub(super) async fn remove_user(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    At(name): At<String>,
) -> Result<Json<Value>, ApiError> {
    caller.require_admin(&app, "remove users")?;
    let users = app.read(jobs::store::Reader::users).await?;
    if !users.iter().any(|user| user.name == name && user.revoked.is_none()) {
        return Err(ApiError::absent("name", format!("there is no user `{name}` with a token")));
    }
    aside(move || {
        app.handle.set_user(&caller.who, &name, None).map_err(refusal)?;
        Ok(Json(json!({"removed": name})))
    })
    .await
}

/// What is measured, by a name that those who measure agree on.
fn measured(what: Option<String>) -> Result<String, ApiError> {
    let what = what.filter(|what| (1..=KEY).contains(&what.len()));
    what.ok_or_else(|| ApiError::field("what", format!("`what` must be a text of 1 to {KEY} bytes")))
}

/// GET /pool/v1/speed
pub(super) async fn speed(
    State(app): State<Arc<PoolApp>>,
    _: Caller,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let what = measured(asked.only(&["what"])?.text("what"))?;
    let rate = app.read(move |reader| reader.speed(&what)).await?;
    Ok(Json(json!({"rate": rate})))
}

/// PUT /pool/v1/speed
pub(super) async fn learn(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let projects = app.seen_by(&caller.who, &app.handle.pool());
    if projects.is_some_and(|projects| projects.is_empty()) {
        return Err(ApiError::forbidden("only members of a project may say how fast something is"));
    }
    fields.only(&["what", "rate"])?;
    let what = measured(Some(fields.required_text("what")?.to_owned()))?;
    fields.required("rate")?;
    let rate = fields.number("rate", f64::MIN_POSITIVE..=f64::MAX)?.unwrap_or_default();
    aside(move || {
        app.handle.learn(&caller.who, &what, rate).map_err(refusal)?;
        Ok(Json(json!({"what": what, "rate": rate})))
    })
    .await
}
