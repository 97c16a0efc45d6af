//! What would happen: a pool driven by a trace of jobs instead of by people, in simulated time.
//!
//! The scheduler is [`Pool`] itself, not a model of it. What is simulated is around it: when jobs arrive
//! ([`Arrival`]), how long they compute, and what stopping and starting costs them ([`Costs`]). Nothing here
//! has a clock or a thread: same pool, trace and settings, same result. [`forecast`] is the same simulation
//! begun at a pool as it stands.

mod baseline;
mod report;
mod world;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::amounts::{Amounts, WHOLE};
use crate::job::{JobId, Phase, Spec};
use crate::nodes::Node;
use crate::policy::{Policy, Queue, Said, Share};
use crate::pool::{Event, Pool, Refused};

pub use baseline::{Rule, baseline};
pub use report::{Figures, ProjectFigures, Record, Report, Spread};

use report::Meter;
use world::{Happened, World};

/// A job of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// When it is submitted, from the beginning of the trace.
    pub at: Millis,
    /// What is submitted; `takes` is what it really computes.
    pub spec: Spec,
}

/// What starting and stopping cost a job. In milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Costs {
    /// From its start until it computes: loading, connecting.
    pub start: Millis,
    /// From being told to stop until it has saved and ended. More than the policy's grace: it is killed then.
    pub save: Millis,
    /// It saves by itself so often; what it computed since is lost when it is killed or its node fails.
    pub save_every: Millis,
    /// How long a job computes of which nobody knows.
    pub unknown: Millis,
}

impl Default for Costs {
    fn default() -> Self {
        Costs { start: 30_000, save: 30_000, save_every: 600_000, unknown: 3_600_000 }
    }
}

/// A machine that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// When.
    pub at: Millis,
    /// Its number.
    pub node: usize,
    /// For how long it is away.
    pub lasts: Millis,
}

/// How a simulation goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What starting and stopping cost.
    pub costs: Costs,
    /// Machines that fail.
    pub failures: Vec<Failure>,
    /// Moments at which something is decided; the simulation ends after so many.
    pub decisions: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { costs: Costs::default(), failures: Vec::new(), decisions: 100_000_000 }
    }
}

/// Drives `pool`, which has its policy and its machines and no job yet, by a trace in the order of its times.
/// The jobs get the numbers 1, 2, ...
///
/// # Panics
/// If the pool has jobs, the trace is not in order, or a failure names a machine that the pool does not have.
#[must_use]
pub fn simulate(pool: Pool, trace: &[Arrival], settings: &Settings) -> Report {
    assert!(pool.jobs().is_empty(), "{} jobs are in the pool before the trace begins", pool.jobs().len());
    assert!(trace.is_sorted_by_key(|arrival| arrival.at), "the trace is not in the order of its times");
    let mut meter = Meter::new(pool.tree(), pool.capacity(), trace);
    let mut world = World::new(pool, settings.costs.clone());
    world.plan_failures(&settings.failures);
    let mut arrivals = trace.iter().enumerate().peekable();
    let mut decisions = 0;
    loop {
        let arrives = arrivals.peek().map(|(_, arrival)| arrival.at);
        let Some(now) = arrives.into_iter().chain(world.next()).min() else { break };
        if decisions == settings.decisions {
            break;
        }
        decisions += 1;
        meter.pass_time(now);
        world.begin(now);
        while let Some((index, arrival)) = arrivals.next_if(|(_, arrival)| arrival.at == now) {
            world.submit(number(index), &arrival.spec);
        }
        world.decide();
        world.happened().for_each(|happened| meter.take(happened));
    }
    meter.report(decisions)
}

/// The number that a job of a trace has in the pool.
fn number(index: usize) -> JobId {
    JobId(index as u64 + 1)
}

/// When a job is expected to start and to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// When it starts next; of one that runs, since when it does.
    pub start: Millis,
    /// When its work is done; `None` if that is further away than the forecast looks.
    pub end: Option<Millis>,
}

/// How far a forecast looks, and what it assumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Decisions that it goes through at most. One costs what one of the pool costs.
    pub decisions: u64,
    /// How far ahead it looks, in milliseconds.
    pub ahead: Millis,
    /// What starting and stopping cost.
    pub costs: Costs,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { decisions: 1000, ahead: 30 * 24 * 3_600_000, costs: Costs::default() }
    }
}

/// When the jobs of a pool start and end if nobody submits, cancels or changes anything, and all estimates
/// hold. The pool has decided since it took its last event, as after [`Pool::step`].
///
/// A job ends when what `remaining` says is done. Of one without an estimate the work is assumed to be
/// `costs.unknown`; one that has run for longer than that, or than its estimate, is assumed to need another
/// tenth of the time that it has run. Jobs that do not start within the limits, and those that are held, are
/// not in the answer.
#[must_use]
pub fn forecast(pool: &Pool, now: Millis, limits: &Limits) -> BTreeMap<JobId, Expected> {
    let now = now.max(pool.at());
    let until = now.saturating_add(limits.ahead);
    let mut expected = BTreeMap::new();
    for (&id, job) in pool.jobs() {
        if let Phase::Running { since, .. } = job.phase {
            expected.insert(id, Expected { start: since, end: None });
        }
    }
    let mut world = World::resume(pool.clone(), limits.costs.clone(), now);
    // To decide once more at once is not always the same as to have decided: it begins at the next event.
    let mut at = world.next().unwrap_or(now).max(now);
    for _ in 0..limits.decisions {
        if at > until {
            break;
        }
        world.begin(at);
        world.decide();
        for happened in world.happened() {
            match happened {
                Happened::Started { id, .. } => {
                    expected.entry(id).or_insert(Expected { start: at, end: None });
                }
                Happened::Ended { id, .. } => {
                    if let Some(expected) = expected.get_mut(&id) {
                        expected.end = Some(at);
                    }
                }
                _ => {}
            }
        }
        let Some(next) = world.next() else { break };
        at = next;
    }
    // What runs at the limit ends when it ends, if nobody stops it.
    for (id, end) in world.runs_until() {
        if let Some(expected) = expected.get_mut(&id) {
            expected.end = Some(end);
        }
    }
    expected
}

/// `count` equal machines with `devices` each, and as many cores as any job asks for: only devices are
/// scarce.
#[must_use]
pub fn machines(count: usize, devices: u32) -> Vec<Node> {
    let cpus = crate::pool::MAX_NODES as u64;
    let name = |n| format!("node-{n}");
    (0..count)
        .map(|n| Node { name: name(n), devices, device_memory: 0, cpus, memory: 1 << 40, up: true })
        .collect()
}

/// A pool without jobs that has these machines.
///
/// # Errors
/// If the policy is wrong, or there are too many machines.
pub fn empty_pool(policy: Policy, nodes: Vec<Node>) -> Result<Pool, Refused> {
    let mut pool = Pool::new(policy, 0)?;
    for node in nodes {
        pool.accept(Event::NodeUp { node }, 0)?;
    }
    Ok(pool)
}

/// Rules under which every project of a trace has the same quota: its part of all devices, rounded down to
/// whole ones, and an equal part of what is left over.
#[must_use]
pub fn equal_quotas(trace: &[Arrival], capacity: &Amounts) -> Policy {
    let mut names: Vec<&str> = trace.iter().map(|arrival| arrival.spec.project.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let part = capacity.devices / WHOLE / names.len().max(1) as u64 * WHOLE;
    let quota = Share { devices: Some(Said::Amount(part)), ..Share::default() };
    let project = |name: &str| Queue { name: name.to_owned(), quota, ..Queue::default() };
    Policy {
        projects: names.into_iter().map(project).collect(),
        max_jobs: u32::try_from(trace.len()).unwrap_or(u32::MAX).max(Policy::default().max_jobs),
        ..Policy::default()
    }
}
