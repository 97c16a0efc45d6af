//! The state of a pool, and the one function that changes it.

mod cycle;
mod order;
mod room;

pub(crate) use room::{Passed, Room};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::amounts::{Amounts, Bounds, RESOURCES, Resource, WHOLE};
use crate::job::{Exit, Job, JobId, Outcome, Phase, Range, Spec, StopReason};
use crate::nodes::{Node, Placement};
use crate::policy::{MAX_AMOUNT, Policy, PolicyError, Tree};

/// The pause after a job's first failure by itself; it doubles with each further one.
const PAUSE: Millis = 10_000;
/// Processes that one job may have.
pub const MAX_MEMBERS: u32 = 4096;
/// Machines that a pool may have, and devices of one.
pub const MAX_NODES: usize = 65_536;

/// What happens to a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// Other rules hold from now on.
    Policy {
        /// They.
        policy: Policy,
    },
    /// A machine is there, or has become another.
    NodeUp {
        /// It.
        node: Node,
    },
    /// A machine is gone, and what ran on it.
    NodeDown {
        /// Its name.
        name: String,
    },
    /// Somebody wants to run something.
    Submitted {
        /// The job's number, which no job had.
        id: JobId,
        /// What it is.
        spec: Spec,
    },
    /// A job shall end.
    Cancelled {
        /// It.
        id: JobId,
    },
    /// A job shall not run until it is released.
    Held {
        /// It.
        id: JobId,
    },
    /// A job that was held may run.
    Released {
        /// It.
        id: JobId,
    },
    /// A job goes before or behind others of its project.
    Prioritized {
        /// It.
        id: JobId,
        /// Its priority from now on.
        priority: i32,
    },
    /// A job's processes have ended.
    Exited {
        /// It.
        id: JobId,
        /// Which of its starts; one that is over is ignored.
        attempt: u32,
        /// How.
        exit: Exit,
    },
    /// It is known better how much of a job is left.
    Estimated {
        /// It.
        id: JobId,
        /// Milliseconds of work at its least size.
        remaining: Millis,
    },
    /// Nothing but that time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    /// Start a job's processes.
    Start {
        /// It.
        id: JobId,
        /// Which of its starts, from 1.
        attempt: u32,
        /// Where.
        placement: Placement,
    },
    /// Tell a job's processes to save and end.
    Stop {
        /// It.
        id: JobId,
        /// Which of its starts.
        attempt: u32,
        /// Why.
        reason: StopReason,
    },
    /// A job has left the pool.
    Ended {
        /// It.
        id: JobId,
        /// How.
        outcome: Outcome,
    },
}

/// Why an event was refused; the pool is as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// No such job is in the pool.
    #[error("there is no job {0} in the pool")]
    NoJob(JobId),
    /// The number is taken.
    #[error("there is a job {0} already")]
    Twice(JobId),
    /// No such project is in the policy.
    #[error("there is no project `{name}`{}", meant(nearest.as_deref()))]
    NoProject {
        /// The name.
        name: String,
        /// One that is like it.
        nearest: Option<String>,
    },
    /// What a job asks for makes no sense.
    #[error("{field}: {message}")]
    Spec {
        /// Which part.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// It could never start.
    #[error("it can never start: {message}")]
    NeverFits {
        /// Why, and which change would make it fit.
        message: String,
    },
    /// A project has as many jobs as it may.
    #[error(
        "project `{project}` has {count} jobs in the pool, which is as many as it may; wait, or cancel some"
    )]
    Full {
        /// The project.
        project: String,
        /// Its jobs.
        count: u32,
    },
    /// The policy is wrong.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A project is to go that has jobs.
    #[error("project `{project}` is not in the new policy, but has {count} jobs; cancel them first")]
    InUse {
        /// The project.
        project: String,
        /// Its jobs.
        count: usize,
    },
    /// It is not in the phase for that.
    #[error("job {0} is not held")]
    NotHeld(JobId),
    /// There are too many machines, or too big ones.
    #[error("node `{name}`: {message}")]
    Node {
        /// The machine.
        name: String,
        /// What is wrong.
        message: String,
    },
}

/// The end of a sentence about a name that does not exist.
fn meant(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |name| format!("; is it `{name}`?"))
}

/// What a department or project has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Of each resource, the part of the whole capacity that it had, long past counting less.
    pub usage: [f64; 3],
    /// Of each resource, units times hours since ever.
    pub hours: [f64; 3],
}

/// Everything that a scheduler knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    pub(crate) policy: Policy,
    pub(crate) tree: Tree,
    pub(crate) nodes: Vec<Node>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// Of each node of the tree.
    pub(crate) accounts: Vec<Account>,
    /// Where the search for room goes on, if there was too much of it for one decision.
    pub(crate) turn: u64,
    /// The time of the last event.
    pub(crate) at: Millis,
}

impl Pool {
    /// An empty pool under a policy.
    ///
    /// # Errors
    /// If the policy is wrong.
    pub fn new(policy: Policy, now: Millis) -> Result<Self, PolicyError> {
        let tree = policy.tree()?;
        let accounts = vec![Account::default(); tree.nodes.len()];
        Ok(Pool { policy, tree, nodes: Vec::new(), jobs: BTreeMap::new(), accounts, turn: 0, at: now })
    }

    /// Takes an event, and says what is to be done.
    ///
    /// Same state, event and time: same state and actions. A time before the last event's counts as that.
    ///
    /// # Errors
    /// If the event makes no sense; the pool is then as it was.
    pub fn step(&mut self, event: Event, now: Millis) -> Result<Vec<Action>, Refused> {
        let mut actions = self.accept(event, now)?;
        actions.extend(self.decide(now));
        Ok(actions)
    }

    /// The first half of a step: takes an event, and says what follows from it alone. Many may be taken
    /// before the pool decides once.
    ///
    /// # Errors
    /// As [`Pool::step`].
    pub fn accept(&mut self, event: Event, now: Millis) -> Result<Vec<Action>, Refused> {
        self.check(&event)?;
        let now = now.max(self.at);
        self.pass_time(now);
        let mut actions = Vec::new();
        self.take(event, now, &mut actions);
        Ok(actions)
    }

    /// The other half: who starts, and who stops for whom, as the pool stands now.
    pub fn decide(&mut self, now: Millis) -> Vec<Action> {
        let now = now.max(self.at);
        self.pass_time(now);
        cycle::run(self, now)
    }

    /// The rules that hold.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The checked tree of departments and projects.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The machines; a placement names them by number.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All jobs that have not ended.
    #[must_use]
    pub fn jobs(&self) -> &BTreeMap<JobId, Job> {
        &self.jobs
    }

    /// What each node of the tree has used.
    #[must_use]
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// The time of the last event.
    #[must_use]
    pub fn at(&self) -> Millis {
        self.at
    }

    /// All of all machines that are there.
    #[must_use]
    pub fn capacity(&self) -> Amounts {
        let up = self.nodes.iter().filter(|node| node.up);
        up.fold(Amounts::NONE, |sum, node| sum.plus(&node.capacity()))
    }

    /// The number of a job's project in the tree.
    #[must_use]
    pub fn project_of(&self, job: &Job) -> usize {
        job.project
    }

    /// When something may change though nothing happens: a pause or a protection is over.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Millis> {
        let wants = self.jobs.values().any(|job| matches!(job.phase, Phase::Waiting { .. }));
        let times = self.jobs.values().filter_map(|job| match &job.phase {
            Phase::Waiting { from } => Some(*from),
            Phase::Running { placement, since } => {
                let node = &self.tree.nodes[job.project];
                let grows =
                    (placement.steps < job.spec.steps()).then_some(since + self.policy.resize_interval);
                let protected = [node.preempt_min_runtime, node.reclaim_min_runtime];
                let ends = protected.into_iter().filter(|&p| wants && p > 0).map(|p| since + p);
                ends.chain(grows).filter(|&at| at > self.at).min()
            }
            Phase::Held | Phase::Promised { .. } | Phase::Stopping { .. } => None,
        });
        times.filter(|&at| at > self.at).min()
    }

    pub(crate) fn check(&self, event: &Event) -> Result<(), Refused> {
        match event {
            Event::Policy { policy } => self.check_policy(policy),
            Event::NodeUp { node } => self.check_node(node),
            Event::Submitted { id, spec } => self.check_submission(*id, spec),
            Event::Released { id } => match self.job(*id)?.phase {
                Phase::Held | Phase::Stopping { reason: StopReason::Held, .. } => Ok(()),
                _ => Err(Refused::NotHeld(*id)),
            },
            Event::Cancelled { id } | Event::Held { id } | Event::Prioritized { id, .. } => {
                self.job(*id).map(drop)
            }
            Event::NodeDown { .. } | Event::Exited { .. } | Event::Estimated { .. } | Event::Tick => Ok(()),
        }
    }

    fn job(&self, id: JobId) -> Result<&Job, Refused> {
        self.jobs.get(&id).ok_or(Refused::NoJob(id))
    }

    fn check_policy(&self, policy: &Policy) -> Result<(), Refused> {
        policy.tree()?;
        for job in self.jobs.values() {
            if policy.project(&job.spec.project).is_none() {
                let project = job.spec.project.clone();
                let count = self.jobs.values().filter(|other| other.spec.project == project).count();
                return Err(Refused::InUse { project, count });
            }
        }
        Ok(())
    }

    fn check_node(&self, node: &Node) -> Result<(), Refused> {
        let refused =
            |message: &str| Err(Refused::Node { name: node.name.clone(), message: message.to_owned() });
        if !crate::policy::is_name(&node.name) {
            return refused("its name has to be 1 to 63 letters, digits, `-`, `_` and `.`");
        }
        if node.devices as usize > MAX_NODES || node.cpus > MAX_NODES as u64 || node.memory > MAX_AMOUNT {
            return refused("it has more than a machine can have");
        }
        if self.nodes.len() >= MAX_NODES && self.nodes.iter().all(|other| other.name != node.name) {
            return refused("the pool has as many machines as it may");
        }
        Ok(())
    }

    fn check_submission(&self, id: JobId, spec: &Spec) -> Result<(), Refused> {
        if self.jobs.contains_key(&id) {
            return Err(Refused::Twice(id));
        }
        check_spec(spec)?;
        let Some(project) = self.tree.project(&spec.project) else {
            let names = self.tree.nodes.iter().filter(|node| node.is_project).map(|node| &node.name);
            let like = |name: &&String| name.eq_ignore_ascii_case(&spec.project);
            return Err(Refused::NoProject {
                name: spec.project.clone(),
                nearest: names.clone().find(like).cloned(),
            });
        };
        let max = self.policy.max_jobs as usize;
        // Fewer jobs than one project may have need not be counted.
        let is_full = || self.jobs.values().filter(|job| job.project == project).count() >= max;
        if self.jobs.len() >= max && is_full() {
            return Err(Refused::Full { project: spec.project.clone(), count: self.policy.max_jobs });
        }
        self.check_that_it_can_fit(spec, project)
    }

    /// What no other job's end would change is refused at once.
    fn check_that_it_can_fit(&self, spec: &Spec, project: usize) -> Result<(), Refused> {
        let never = |message: String| Err(Refused::NeverFits { message });
        let total = spec.total(0);
        for number in self.tree.path(project) {
            let node = &self.tree.nodes[number];
            let bounds: [(&Bounds, &str, bool); 2] =
                [(&node.limit, "limit", true), (&node.quota, "quota", !spec.class.is_preemptible())];
            for (bounds, which, _) in bounds.into_iter().filter(|(.., counts)| *counts) {
                let Some(resource) = bounds.passed_by(&total) else { continue };
                let bound = bounds.of(resource).unwrap_or(0);
                let hint = match which {
                    "quota" => {
                        ", which a job that is never stopped has to stay in; make it preemptible (class \
                         train), or ask for less"
                    }
                    _ => "; ask for less, or have the limit raised",
                };
                return never(format!(
                    "it asks for {}, and the {which} of `{}` is {}{hint}",
                    resource.say(total[resource]),
                    node.name,
                    resource.say(bound)
                ));
            }
        }
        if self.nodes.is_empty() {
            return Ok(()); // Machines may come.
        }
        let all = &self.nodes;
        let member = spec.member(0);
        let mut missing = u64::from(spec.members);
        for node in all {
            missing = missing.saturating_sub(node.holds(&member));
            if missing == 0 {
                return Ok(());
            }
        }
        let fits_one = |node: &&Node| member.fits_in(&node.capacity());
        let fitting = all.iter().filter(fits_one).count();
        if fitting == 0 {
            let biggest = |r: Resource| all.iter().map(|node| node.capacity()[r]).max().unwrap_or(0);
            let short = RESOURCES.into_iter().find(|&r| member[r] > biggest(r));
            return never(match short {
                Some(r) => format!(
                    "one of its processes asks for {}, and the biggest machine has {}; ask for at most that",
                    r.say(member[r]),
                    r.say(biggest(r))
                ),
                None => {
                    format!("one of its processes asks for {member}, and no machine has all of that at once")
                }
            });
        }
        never(format!(
            "it asks for {} processes with {member} each at once, and the {} machines of this pool hold \
             fewer; ask for fewer, or for less each",
            spec.members,
            all.len()
        ))
    }

    /// Counts what was used up to now.
    fn pass_time(&mut self, now: Millis) {
        let passed = now - self.at;
        self.at = now;
        if passed == 0 {
            return;
        }
        let held = self.held();
        let capacity = self.capacity();
        let stays = (-(passed as f64) / self.policy.usage.half_life as f64).exp2();
        let hours = passed as f64 / 3_600_000.0;
        for (account, held) in self.accounts.iter_mut().zip(&held) {
            for (n, resource) in RESOURCES.into_iter().enumerate() {
                let (has, all) = (resource.units(held[resource]), resource.units(capacity[resource]));
                let part = if all > 0.0 { (has / all).min(1.0) } else { 0.0 };
                account.usage[n] = account.usage[n] * stays + part * (1.0 - stays);
                account.hours[n] += has * hours;
            }
        }
    }

    /// What the processes of each node of the tree have.
    #[must_use]
    pub fn held(&self) -> Vec<Amounts> {
        let mut held = vec![Amounts::NONE; self.tree.nodes.len()];
        for job in self.jobs.values() {
            let Some(placement) = job.placement() else { continue };
            held[job.project].add(&placement.amounts());
        }
        // A parent stands before its children.
        for node in (0..held.len()).rev() {
            if let Some(above) = self.tree.nodes[node].parent {
                let amounts = held[node];
                held[above].add(&amounts);
            }
        }
        held
    }

    fn take(&mut self, event: Event, now: Millis, actions: &mut Vec<Action>) {
        match event {
            Event::Policy { policy } => self.take_policy(policy),
            Event::NodeUp { node } => self.take_node(node),
            Event::NodeDown { name } => self.lose_node(&name, now, actions),
            Event::Submitted { id, spec } => {
                let job = Job {
                    project: self.tree.project(&spec.project).expect("it was checked"),
                    submitted: now,
                    phase: Phase::Waiting { from: now },
                    attempt: 0,
                    failures: 0,
                    remaining: spec.takes,
                    evictions: 0,
                    spec,
                };
                self.jobs.insert(id, job);
            }
            Event::Cancelled { id } => self.cancel(id, now, actions),
            Event::Held { id } => self.hold(id, now, actions),
            Event::Released { id } => {
                let job = self.jobs.get_mut(&id).expect("it was checked");
                match &mut job.phase {
                    Phase::Stopping { reason, .. } => *reason = StopReason::Broken,
                    phase => *phase = Phase::Waiting { from: now },
                }
            }
            Event::Prioritized { id, priority } => {
                self.jobs.get_mut(&id).expect("it was checked").spec.priority = priority;
            }
            Event::Exited { id, attempt, exit } => self.take_exit(id, attempt, exit, now, actions),
            Event::Estimated { id, remaining } => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.remaining = Some(remaining);
                    // What has passed since the start is counted from the start on: move it here.
                    if let Phase::Running { placement, since } = &job.phase {
                        let done = (now - since) as f64 * job.spec.speed(placement.steps);
                        job.remaining = Some(remaining.saturating_add(done as u64));
                    }
                }
            }
            Event::Tick => {}
        }
    }

    fn take_policy(&mut self, policy: Policy) {
        let tree = policy.tree().expect("it was checked");
        let old = |new: &crate::policy::Node| {
            let same = |n: &crate::policy::Node| n.name == new.name && n.is_project == new.is_project;
            self.tree.nodes.iter().position(same).map(|n| self.accounts[n]).unwrap_or_default()
        };
        self.accounts = tree.nodes.iter().map(old).collect();
        let numbers: BTreeMap<&str, usize> = tree.projects().collect();
        for job in self.jobs.values_mut() {
            job.project = numbers[job.spec.project.as_str()];
        }
        self.tree = tree;
        self.policy = policy;
    }

    fn take_node(&mut self, node: Node) {
        match self.nodes.iter().position(|known| known.name == node.name) {
            // A machine that has become smaller may hold more than it has: what runs there leaves by itself.
            Some(at) => self.nodes[at] = Node { up: true, ..node },
            None => self.nodes.push(Node { up: true, ..node }),
        }
    }

    fn lose_node(&mut self, name: &str, now: Millis, actions: &mut Vec<Action>) {
        let Some(at) = self.nodes.iter().position(|node| node.name == name) else { return };
        self.nodes[at].up = false;
        let there = |placement: &Placement| placement.members.iter().any(|place| place.node == at);
        let mut gone = Vec::new();
        for (&id, job) in &mut self.jobs {
            match &mut job.phase {
                Phase::Promised { placement, .. } if there(placement) => {
                    job.phase = Phase::Waiting { from: now };
                }
                Phase::Running { placement, since } if there(placement) => {
                    let (placement, since) = (placement.clone(), *since);
                    if placement.members.iter().all(|place| place.node == at) {
                        gone.push((id, job.attempt));
                    } else {
                        let reason = StopReason::Broken;
                        actions.push(Action::Stop { id, attempt: job.attempt, reason: reason.clone() });
                        job.phase = Phase::Stopping { placement, since, told: now, reason, next: None };
                    }
                }
                Phase::Stopping { placement, next, .. } => {
                    if next.as_ref().is_some_and(there) {
                        *next = None;
                    }
                    if placement.members.iter().all(|place| place.node == at) {
                        gone.push((id, job.attempt));
                    }
                }
                _ => {}
            }
        }
        for (id, attempt) in gone {
            self.take_exit(id, attempt, Exit::Lost, now, actions);
        }
    }

    fn cancel(&mut self, id: JobId, now: Millis, actions: &mut Vec<Action>) {
        let job = self.jobs.get_mut(&id).expect("it was checked");
        match &mut job.phase {
            Phase::Running { .. } => stop(id, job, StopReason::Cancelled, None, now, actions),
            Phase::Stopping { reason, next, .. } => {
                (*reason, *next) = (StopReason::Cancelled, None);
            }
            _ => {
                self.jobs.remove(&id);
                actions.push(Action::Ended { id, outcome: Outcome::Cancelled });
            }
        }
    }

    fn hold(&mut self, id: JobId, now: Millis, actions: &mut Vec<Action>) {
        let job = self.jobs.get_mut(&id).expect("it was checked");
        match &mut job.phase {
            Phase::Running { .. } => stop(id, job, StopReason::Held, None, now, actions),
            Phase::Stopping { reason: StopReason::Cancelled, .. } => {}
            Phase::Stopping { reason, next, .. } => (*reason, *next) = (StopReason::Held, None),
            phase => *phase = Phase::Held,
        }
    }

    fn take_exit(&mut self, id: JobId, attempt: u32, exit: Exit, now: Millis, actions: &mut Vec<Action>) {
        let retries = self.policy.retries;
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.attempt == attempt) else { return };
        let (placement, since, stopped) = match &job.phase {
            Phase::Running { placement, since } => (placement, *since, None),
            Phase::Stopping { placement, since, reason, next, .. } => {
                (placement, *since, Some((reason.clone(), next.clone())))
            }
            _ => return,
        };
        if exit == Exit::Saved {
            job.failures = 0;
            let done = (now - since) as f64 * job.spec.speed(placement.steps);
            job.remaining = job.remaining.map(|left| left.saturating_sub(done as u64));
        }
        let was_told = stopped.is_some();
        let outcome = match (exit, stopped.as_ref().map(|(reason, _)| reason)) {
            (Exit::Done, _) => Some(Outcome::Done),
            (_, Some(StopReason::Cancelled)) => Some(Outcome::Cancelled),
            (Exit::Refused | Exit::OverBudget, _) => Some(Outcome::Failed(exit)),
            // Told to stop and killed: it took too long to save, which is not a failure of its own.
            (Exit::Failed(_) | Exit::Killed(_) | Exit::Lost, _)
                if !(was_told && matches!(exit, Exit::Killed(_) | Exit::Lost)) =>
            {
                job.failures += 1;
                (job.failures > retries).then_some(Outcome::Failed(exit))
            }
            _ => None,
        };
        if let Some(outcome) = outcome {
            self.jobs.remove(&id);
            actions.push(Action::Ended { id, outcome });
            return;
        }
        job.phase = match stopped {
            Some((StopReason::Held, _)) => Phase::Held,
            Some((_, Some(next))) if exit == Exit::Saved => Phase::Promised { placement: next, since: now },
            Some(_) if job.failures == 0 => Phase::Waiting { from: now },
            // Nobody here told it to stop: whoever did should not have it back at once.
            _ => Phase::Waiting { from: now + (PAUSE << job.failures.saturating_sub(1).min(6)) },
        };
    }
}

/// Tells a running job to stop.
fn stop(
    id: JobId,
    job: &mut Job,
    reason: StopReason,
    next: Option<Placement>,
    now: Millis,
    actions: &mut Vec<Action>,
) {
    let Phase::Running { placement, since } = &job.phase else {
        panic!("job {id} is told to stop, but does not run");
    };
    actions.push(Action::Stop { id, attempt: job.attempt, reason: reason.clone() });
    job.phase = Phase::Stopping { placement: placement.clone(), since: *since, told: now, reason, next };
}

fn check_spec(spec: &Spec) -> Result<(), Refused> {
    let wrong = |field, message: String| Err(Refused::Spec { field, message });
    if spec.members == 0 || spec.members > MAX_MEMBERS {
        return wrong("members", format!("{}; must be 1 to {MAX_MEMBERS}", spec.members));
    }
    for (field, range) in [("devices", spec.devices), ("cpus", spec.cpus)] {
        if range.min > range.max || range.max > MAX_AMOUNT {
            return wrong(field, format!("{} to {}: the least comes first", range.min, range.max));
        }
    }
    if spec.cpus.min == 0 {
        return wrong("cpus", "0; a process needs at least one".into());
    }
    if spec.memory > MAX_AMOUNT {
        return wrong("memory", "is too much".into());
    }
    let Range { min, max } = spec.devices;
    if (max > WHOLE || min < max) && (min % WHOLE != 0 || max % WHOLE != 0) {
        return wrong("devices", "a part of a device has to be below one; above it, only whole ones".into());
    }
    if min < max && min == 0 {
        return wrong(
            "devices",
            "a job that grows from no device has nothing to begin with; at least 1".into(),
        );
    }
    Ok(())
}
