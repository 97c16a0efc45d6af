//! A job as it is told: what the pool remembers of it, and where it stands.

use jobs::store::{AttemptRecord, Record, word};
use jobs::supervisor::Handle;
use jobs::{Job, Outcome, Phase, Placement, Pool, StopReason};
use serde_json::{Value, json};

/// A job in a list.
pub(super) fn job(handle: &Handle, pool: &Pool, record: &Record) -> Value {
    let Record { id, spec, submitted, ended, outcome, expected_start, expected_end, group, attempts, .. } =
        record;
    let now = pool.jobs().get(id);
    let expected = handle.expected(*id).filter(|_| ended.is_none());
    let first = attempts.first().map(|attempt| attempt.started);
    let lost: u64 = attempts.iter().filter_map(|attempt| attempt.lost_steps).sum();
    let exit = attempts.last().and_then(|attempt| attempt.exit);
    json!({
        "id": id, "name": spec.name, "project": spec.project, "user": spec.user, "class": spec.class,
        "priority": now.map_or(spec.priority, |job| job.spec.priority),
        "phase": phase(now, outcome.as_ref()),
        "request": {
            "members": spec.members, "devices": spec.devices, "cpus": spec.cpus, "memory": spec.memory,
        },
        "submitted": submitted, "started": first, "ended": ended, "attempts": attempts.len(),
        "evictions": now.map_or(record.evictions, |job| job.evictions), "lost_steps": lost,
        // What it was first thought to be is what remains once it has ended.
        "expected_start": expected.map(|expected| expected.start).or(*expected_start),
        "expected_end": expected.map_or(*expected_end, |expected| expected.end),
        "exit": exit, "group": group,
    })
}

/// Where it stands, in one word.
fn phase(now: Option<&Job>, outcome: Option<&Outcome>) -> &'static str {
    match (outcome, now) {
        (Some(Outcome::Done), _) => "done",
        (Some(Outcome::Failed(_)), _) => "failed",
        (Some(Outcome::Cancelled), _) => "cancelled",
        (None, Some(job)) => word(&job.phase),
        // It has left the pool, and that is being written down.
        (None, None) => "stopping",
    }
}

/// A job by itself, with what became of each of its starts.
pub(super) fn whole(handle: &Handle, pool: &Pool, record: &Record) -> Value {
    let mut view = job(handle, pool, record);
    let now = pool.jobs().get(&record.id);
    let here = now.and_then(|job| match &job.phase {
        Phase::Promised { placement, .. } => Some(placement),
        _ => job.placement(),
    });
    view["placement"] = here.map_or(Value::Null, |here| placement(pool, here));
    view["history"] = record.attempts.iter().map(|attempt| history(pool, attempt)).collect();
    view["spec"] = json!(record.spec);
    view
}

/// The places of a job's members, with the names of their machines.
fn placement(pool: &Pool, placement: &Placement) -> Value {
    let places = placement.members.iter().map(|place| {
        json!({
            "node": pool.nodes().get(place.node).map(|node| node.name.as_str()), "devices": place.devices,
            "part": place.part, "cpus": place.cpus, "memory": place.memory,
        })
    });
    places.collect()
}

fn history(pool: &Pool, attempt: &AttemptRecord) -> Value {
    let AttemptRecord { number, started, placement: there, told, reason, ended, exit, lost_steps } = attempt;
    json!({
        "number": number, "started": started, "placement": placement(pool, there), "told": told,
        "reason": reason.as_ref().map(|reason| pool.say(reason)), "by": reason.as_ref().and_then(by),
        "ended": ended, "exit": exit, "lost_steps": lost_steps,
    })
}

/// The job that another one was stopped for.
pub(super) fn by(reason: &StopReason) -> Option<jobs::JobId> {
    match reason {
        StopReason::Preempted { by } | StopReason::Reclaimed { by, .. } | StopReason::Moved { by } => {
            Some(*by)
        }
        StopReason::Resized { by, .. } => *by,
        StopReason::Cancelled | StopReason::Held | StopReason::Broken => None,
    }
}
