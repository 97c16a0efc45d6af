//! GET /pool/v1/status and /pool/v1/samples: how the pool stands, and how it stood. Everybody with a token
//! sees what each project may have and has; of jobs nothing but their numbers stands there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use jobs::pool::Event;
use jobs::store::Forecast;
use jobs::supervisor::{QueueSample, Sample, now, sample};
use jobs::{Amounts, Bounds, JobId, Phase, Pool, RESOURCES, Resource};
use serde_json::{Map, Value, json};

use super::PoolApp;
use super::caller::Caller;
use super::lending::{above, loans};
use super::query::Asked;
use crate::app::aside;
use crate::error::ApiError;

/// How old what is told may be: computing shares takes a while, and many look.
const FRESH: Duration = Duration::from_millis(250);
/// Jobs by which forecasts are judged, the newest.
const FORECASTS: u32 = 200;
/// Samples of an answer.
const SAMPLES: u32 = 500;
/// Samples of projects in an answer: of many projects there are fewer samples.
const CELLS: usize = 50_000;

/// What was computed last, as JSON, and when.
#[derive(Default)]
pub(super) struct Kept(Mutex<Option<(Instant, Bytes)>>);

impl Kept {
    /// Forgets it: whoever changes something sees that.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// One computes, and others wait for that.
    fn get(&self, compute: impl FnOnce() -> Value) -> Bytes {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, value)) = &*kept
            && at.elapsed() < FRESH
        {
            return value.clone();
        }
        let value = Bytes::from(compute().to_string());
        *kept = Some((Instant::now(), value.clone()));
        value
    }
}

pub(super) async fn status(
    State(kept): State<Arc<PoolApp>>,
    _: Caller,
    asked: Asked,
) -> Result<Response, ApiError> {
    asked.only(&[])?;
    let app = Arc::clone(&kept);
    let look = move || {
        // A copy of the pool, so that it can go on deciding.
        let mut pool = app.handle.pool().clone();
        // Hours are counted up to now; of nothing but time nothing is refused.
        let _ = pool.accept(Event::Tick, now());
        let forecasts = app.handle.read(|reader| reader.forecasts(FORECASTS)).unwrap_or_default();
        whole(&pool, &forecasts)
    };
    let whole = aside(move || Ok(kept.status.get(look))).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], whole).into_response())
}

/// Amounts of each resource by its name.
fn by_resource(of: impl Fn(Resource) -> Value) -> Value {
    let named = RESOURCES.into_iter().map(|resource| (resource.name().to_owned(), of(resource)));
    Value::Object(named.collect::<Map<_, _>>())
}

/// What is computed, in units: devices, cores, bytes.
fn units(units: &[f64; 3]) -> Value {
    by_resource(|resource| json!(units[resource as usize]))
}

fn bounds(bounds: &Bounds) -> Value {
    by_resource(|resource| json!(bounds.of(resource)))
}

fn whole(pool: &Pool, forecasts: &[Forecast]) -> Value {
    let Sample { at, capacity, queues } = sample(pool);
    let held: Vec<Amounts> = queues.iter().map(|queue| queue.held).collect();
    let lending: Vec<Value> = loans(pool, &held).iter().map(|loan| loan.value(pool)).collect();
    let queues: Vec<Value> = queues.iter().enumerate().map(|(number, of)| queue(pool, number, of)).collect();
    let (start, end) = Forecast::median_errors(forecasts);
    let forecasts = json!({"jobs": forecasts.len(), "start_error": start, "end_error": end});
    json!({
        "at": at, "capacity": capacity, "nodes": nodes(pool), "queues": queues, "lending": lending,
        "forecasts": forecasts,
    })
}

fn kind(is_project: bool) -> &'static str {
    if is_project { "project" } else { "department" }
}

fn queue(pool: &Pool, number: usize, stands: &QueueSample) -> Value {
    let node = &pool.tree().nodes[number];
    let account = &pool.accounts()[number];
    json!({
        "name": node.name, "kind": kind(node.is_project),
        "department": node.parent.map(|above| &pool.tree().nodes[above].name),
        "quota": bounds(&node.quota), "limit": bounds(&node.limit), "over_quota_weight": node.weight,
        "priority": node.priority, "share": units(&stands.share), "held": stands.held,
        "over_quota": above(pool, number, &stands.held), "running": stands.running, "waiting": stands.waiting,
        "hours": units(&account.hours),
        "usage": units(&account.usage),
    })
}

/// What one job has of one machine.
struct There<'a> {
    id: JobId,
    project: &'a str,
    stops: bool,
    place: &'a jobs::Place,
}

fn nodes(pool: &Pool) -> Vec<Value> {
    let mut there: Vec<Vec<There<'_>>> = pool.nodes().iter().map(|_| Vec::new()).collect();
    for (&id, job) in pool.jobs() {
        let Some(placement) = job.placement() else { continue };
        let stops = matches!(job.phase, Phase::Stopping { .. });
        for place in &placement.members {
            there[place.node].push(There { id, project: &job.spec.project, stops, place });
        }
    }
    let free = pool.free();
    let node = |(number, node): (usize, &jobs::Node)| {
        let mut ids: Vec<JobId> = there[number].iter().map(|there| there.id).collect();
        ids.dedup();
        let places = there[number].iter().map(|There { id, project, stops, place }| {
            json!({
                "job": id, "project": project, "stopping": stops, "devices": place.devices, "part": place.part,
                "cpus": place.cpus, "memory": place.memory,
            })
        });
        json!({
            "name": node.name, "up": node.up, "devices": node.devices, "device_memory": node.device_memory,
            "cpus": node.cpus, "memory": node.memory, "free": free[number], "jobs": ids,
            "places": places.collect::<Vec<_>>(),
        })
    };
    pool.nodes().iter().enumerate().map(node).collect()
}

pub(super) async fn samples(
    State(app): State<Arc<PoolApp>>,
    _: Caller,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let asked = asked.only(&["since"])?;
    let since = asked.whole("since", 0, i64::MAX as u64)?.unwrap_or(0);
    let queues = app.handle.pool().tree().nodes.len();
    let most = SAMPLES.min((CELLS / queues.max(1)).max(2) as u32);
    let texts = app.read(move |reader| reader.samples_apart(since, most)).await?;
    aside(move || {
        let read = |text: &String| serde_json::from_str::<Sample>(text).ok();
        let told = |Sample { at, capacity, queues }: Sample| {
            let queue = |queue: &QueueSample| {
                json!({
                    "name": queue.name, "kind": kind(queue.is_project), "held": queue.held,
                    "share": units(&queue.share), "running": queue.running, "waiting": queue.waiting,
                })
            };
            json!({"at": at, "capacity": capacity, "queues": queues.iter().map(queue).collect::<Vec<_>>()})
        };
        let samples: Vec<Value> = texts.iter().filter_map(read).map(told).collect();
        Ok(Json(json!({"samples": samples})))
    })
    .await
}
