//! Why a job is where it is: the rule, its numbers, and what would change it.

use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::amounts::{RESOURCES, Resource};
use crate::job::{Job, JobId, Phase, StopReason};
use crate::nodes::Free;
use crate::pool::{Passed, Pool, Room};

/// The answer to "why is it not running", the same on every engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// The rule that holds it, in one word: `held`, `paused`, `limit`, `quota`, `promised`, `no-room`,
    /// `not-its-turn`, `running`, `stopping`.
    pub rule: String,
    /// What the rule says of this job, with its numbers.
    pub message: String,
    /// What would change it.
    pub unblocks: String,
    /// When it is expected to start; of a running job, to end. Milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Millis>,
    /// The bound in numbers, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
}

/// A bound that a job would pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The department or project whose it is.
    pub queue: String,
    /// Of which resource; devices are counted in thousandths, memory in bytes.
    pub resource: Resource,
    /// What the job asks for.
    pub requested: u64,
    /// What counts against the bound already.
    pub allocated: u64,
    /// What is guaranteed.
    pub quota: Option<u64>,
    /// What is never passed.
    pub limit: Option<u64>,
}

impl Why {
    fn new(rule: &str, message: impl Into<String>, unblocks: impl Into<String>) -> Why {
        let (message, unblocks) = (message.into(), unblocks.into());
        Why { rule: rule.to_owned(), message, unblocks, expected: None, bound: None }
    }
}

impl Pool {
    /// Why a job is where it is; nothing if it is not in the pool.
    #[must_use]
    pub fn why(&self, id: JobId) -> Option<Why> {
        let job = self.jobs.get(&id)?;
        Some(match &job.phase {
            Phase::Held => Why::new("held", "somebody holds it back", format!("luthier jobs release {id}")),
            Phase::Promised { placement, .. } => self.why_promised(placement),
            Phase::Running { .. } => Why::new(
                "running",
                "it runs",
                "nothing: it goes on until it is done or others need its place",
            ),
            Phase::Stopping { reason, told, .. } => Why::new(
                "stopping",
                format!(
                    "{} since {} s: it finishes its step and saves",
                    self.say(reason),
                    (self.at - told) / 1000
                ),
                format!("its end, at most {} s after it was told", self.policy.grace / 1000),
            ),
            Phase::Waiting { from } if *from > self.at => Why::new(
                "paused",
                match job.failures {
                    // It saved, though the pool had not asked for it.
                    0 => "somebody else than the pool told it to stop, and it has saved".to_owned(),
                    failures => {
                        format!("its last start failed ({failures} of {} tries)", self.policy.retries + 1)
                    }
                },
                format!("the end of a pause in {} s", (from - self.at).div_ceil(1000)),
            ),
            Phase::Waiting { .. } => self.why_waiting(id, job),
        })
    }

    /// Why a job was told to stop, in words.
    #[must_use]
    pub fn say(&self, reason: &StopReason) -> String {
        match reason {
            StopReason::Preempted { by } => format!("job {by} of the same project has more priority"),
            StopReason::Reclaimed { by, within_quota: true } => {
                format!("job {by} takes back what its project is guaranteed")
            }
            StopReason::Reclaimed { by, within_quota: false } => {
                format!("job {by} takes what is its project's fair share")
            }
            StopReason::Moved { by } => format!("it goes on elsewhere, so that job {by} fits"),
            StopReason::Resized { by: Some(by), .. } => {
                format!("it goes on with less, so that job {by} fits")
            }
            StopReason::Resized { by: None, .. } => "it goes on with more, which nobody else can use".into(),
            StopReason::Cancelled => "somebody cancelled it".into(),
            StopReason::Held => "somebody holds it back".into(),
            StopReason::Broken => "a part of it was lost".into(),
        }
    }

    fn why_promised(&self, placement: &crate::Placement) -> Why {
        let shares = |other: &Job| {
            other.placement().is_some_and(|theirs| {
                theirs.members.iter().any(|a| placement.members.iter().any(|b| a.node == b.node))
            })
        };
        let leaving = |(_, job): &(&JobId, &Job)| matches!(job.phase, Phase::Stopping { .. }) && shares(job);
        let ids: Vec<String> = self.jobs.iter().filter(leaving).map(|(id, _)| id.to_string()).collect();
        let who = match ids.len() {
            0 => "the others there have".to_owned(),
            1 => format!("job {} has", ids[0]),
            _ => format!("jobs {} have", ids.join(", ")),
        };
        Why::new(
            "promised",
            format!("it starts on {} as soon as {who} saved and left", self.names(placement)),
            "their end; nothing else is needed",
        )
    }

    fn names(&self, placement: &crate::Placement) -> String {
        let mut names: Vec<&str> =
            placement.members.iter().map(|place| self.nodes[place.node].name.as_str()).collect();
        names.dedup();
        names.join(", ")
    }

    fn why_waiting(&self, id: JobId, job: &Job) -> Why {
        let mut copy = self.clone();
        let now = self.at;
        let room = Room::new(&mut copy, now);
        let project = self.project_of(job);
        let want = job.spec.total(0);
        if let Some(passed) = room.passed(project, &job.spec, &want) {
            return self.why_bound(&passed);
        }
        let free = room.free_later.total();
        let name = &self.tree.nodes[project].name;
        if room.free_later.place(&job.spec, 0, None).is_some() {
            return Why::new(
                "not-its-turn",
                "there is room for it; it starts with the next decision",
                "the next decision",
            );
        }
        let mut why = match want.fits_in(&free) {
            true => Why::new(
                "no-room",
                format!(
                    "it asks for {} in one piece, and though {free} are free in all, no machines have that together",
                    job.spec.member(0)
                ),
                "the end of a job on one of the machines",
            ),
            false => {
                let short = RESOURCES.into_iter().filter(|&r| want[r] > free[r]).map(|r| {
                    let (asks, of) = (r.say(want[r]), r.say(room.capacity[r]));
                    match free[r] {
                        0 => format!("it asks for {asks}, and of {of} nothing is free"),
                        left => format!("it asks for {asks}, and of {of} only {} is free", r.say(left)),
                    }
                });
                let short: Vec<String> = short.collect();
                Why::new("no-room", short.join("; "), "the end of jobs that run")
            }
        };
        let stays = room.stays_within(project, &job.spec, &want);
        why.message += &match stays {
            true => self.why_not_taken(&room, project),
            false => {
                let shares = self.tree.divided.iter().filter(|&&r| want[r] > 0).map(|&r| {
                    let of = room.allocatable(project, r);
                    let of = if of.is_finite() { format!("{of:.6}") } else { "all".into() };
                    let of = of.trim_end_matches('0').trim_end_matches('.').to_owned();
                    format!("{} of {of} {}", r.units(room.allocated[project][r]), r.name())
                });
                let shares: Vec<String> = shares.collect();
                format!(
                    "; `{name}` has its fair share ({}), so nobody has to leave for it",
                    shares.join(", ")
                )
            }
        };
        let ahead = self.ahead_of(id, job);
        if ahead > 0 {
            why.message += &format!("; {ahead} of its project's jobs go first");
        }
        why
    }

    /// Why a project that has less than its share cannot take the rest now.
    fn why_not_taken(&self, room: &Room<'_>, project: usize) -> String {
        let protected = self.jobs.values().filter_map(|other| {
            let Phase::Running { since, .. } = other.phase else { return None };
            let of = self.project_of(other);
            let until = since + self.tree.nodes[of].reclaim_min_runtime;
            (of != project && other.spec.class.is_preemptible() && until > self.at).then_some(until)
        });
        match protected.min() {
            Some(until) => format!(
                "; its project is below its fair share, but those above theirs are safe for another {} s",
                (until - self.at).div_ceil(1000)
            ),
            None if room.tree().nodes.len() > 1 => {
                "; its project is below its fair share, but nobody who may be stopped has enough to give"
                    .into()
            }
            None => String::new(),
        }
    }

    fn why_bound(&self, passed: &Passed) -> Why {
        let node = &self.tree.nodes[passed.node];
        let (resource, which) = (passed.resource, if passed.is_quota { "quota" } else { "limit" });
        let counted = if passed.is_quota { "has in work that is never stopped" } else { "has" };
        let mut why = Why::new(
            which,
            format!(
                "it asks for {}, and `{}` {counted} {} of its {which} of {}",
                resource.say(passed.requested),
                node.name,
                resource.say(passed.allocated),
                resource.say(passed.bound)
            ),
            match passed.is_quota {
                true => format!(
                    "the end of such a job in `{}`, a bigger quota, or class train, which may borrow",
                    node.name
                ),
                false => format!("the end of a job in `{}`, or a higher limit", node.name),
            },
        );
        why.bound = Some(Bound {
            queue: node.name.clone(),
            resource,
            requested: passed.requested,
            allocated: passed.allocated,
            quota: node.quota.of(resource),
            limit: node.limit.of(resource),
        });
        why
    }

    /// How many waiting jobs of its project go before a job.
    fn ahead_of(&self, id: JobId, job: &Job) -> usize {
        let order = |id: JobId, job: &Job| (-job.spec.priority, job.submitted, id);
        let mine = order(id, job);
        let waiting = self.jobs.iter().filter(|(_, other)| {
            other.spec.project == job.spec.project && matches!(other.phase, Phase::Waiting { .. })
        });
        waiting.filter(|(other_id, other)| order(**other_id, other) < mine).count()
    }

    /// What is free of all machines, by number: now, those who are leaving counted as there.
    #[must_use]
    pub fn free(&self) -> Vec<crate::Amounts> {
        let mut free = Free::all(&self.nodes);
        self.jobs.values().filter_map(Job::placement).for_each(|placement| free.take(placement));
        (0..self.nodes.len()).map(|node| free.of(node)).collect()
    }

    /// The present fair share of each node of the tree, by resource, in units: devices, cores, bytes.
    #[must_use]
    pub fn shares(&self) -> Vec<[f64; 3]> {
        let mut copy = self.clone();
        let now = self.at;
        Room::new(&mut copy, now).shares
    }
}
