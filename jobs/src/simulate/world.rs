//! What surrounds a simulated pool: processes that compute, save and end, machines that fail, and time.

use std::collections::{BTreeMap, BTreeSet};

use crate::Millis;
use crate::job::{Exit, Job, JobId, Outcome, Phase, Spec, StopReason};
use crate::nodes::Placement;
use crate::pool::{Action, Event, Pool};

use super::{Costs, Failure};

/// What happened in a moment, in its order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Happened {
    /// A job was taken.
    Submitted { id: JobId },
    /// A job was refused.
    Refused { id: JobId, why: String },
    /// A job's processes were started, on so many thousandths of devices.
    Started { id: JobId, devices: u64 },
    /// A job was told to stop.
    Told { id: JobId, reason: StopReason },
    /// A job's processes have ended; `wasted` milliseconds of them did not bring its work forward.
    Left { id: JobId, wasted: Millis },
    /// A job has left the pool.
    Ended { id: JobId, outcome: Outcome },
}

/// The processes of one start of a job.
#[derive(Debug, Clone)]
struct Process {
    attempt: u32,
    since: Millis,
    /// How much faster it computes than at its least.
    speed: f64,
    /// When it ends, as things stand.
    ends: Millis,
    /// How.
    exit: Exit,
    /// The work that is left after that, in milliseconds at the least size.
    left: Millis,
    /// How long it will have run without bringing its work forward.
    wasted: Millis,
}

/// A pool and what surrounds it.
pub(super) struct World {
    pool: Pool,
    costs: Costs,
    now: Millis,
    processes: BTreeMap<JobId, Process>,
    /// When each of them ends.
    ends: BTreeSet<(Millis, JobId)>,
    /// The work of each job that is still to be done, as of its last save.
    left: BTreeMap<JobId, Millis>,
    /// Machines that fail and come back: when, which, and whether it is there then.
    machines: BTreeSet<(Millis, usize, bool)>,
    happened: Vec<Happened>,
}

impl World {
    pub(super) fn new(pool: Pool, costs: Costs) -> Self {
        World {
            now: pool.at(),
            pool,
            costs,
            processes: BTreeMap::new(),
            ends: BTreeSet::new(),
            left: BTreeMap::new(),
            machines: BTreeSet::new(),
            happened: Vec::new(),
        }
    }

    /// A world around a pool that has jobs already, some of them running.
    pub(super) fn resume(pool: Pool, costs: Costs, now: Millis) -> Self {
        let mut world = World::new(pool, costs);
        world.now = now;
        let jobs: Vec<(JobId, Job)> = world.pool.jobs().iter().map(|(&id, job)| (id, job.clone())).collect();
        for (id, job) in jobs {
            let work = job.remaining.unwrap_or(world.costs.unknown);
            world.left.insert(id, work);
            match &job.phase {
                Phase::Running { placement, since } => {
                    let mut process = world.process(job.attempt, &job.spec, placement, *since, work);
                    if process.ends <= now {
                        process.ends = now + ((now - since) / 10).max(1);
                    }
                    world.enter(id, process);
                }
                Phase::Stopping { placement, since, told, reason, .. } => {
                    let process = world.process(job.attempt, &job.spec, placement, *since, work);
                    let mut process = world.stopped(process, *told, work, reason);
                    process.ends = process.ends.max(now);
                    world.enter(id, process);
                }
                Phase::Held | Phase::Waiting { .. } | Phase::Promised { .. } => {}
            }
        }
        world
    }

    pub(super) fn plan_failures(&mut self, failures: &[Failure]) {
        for failure in failures {
            assert!(failure.node < self.pool.nodes().len(), "there is no machine {}", failure.node);
            self.machines.insert((failure.at, failure.node, false));
            self.machines.insert((failure.at.saturating_add(failure.lasts), failure.node, true));
        }
    }

    /// When something happens next by itself.
    pub(super) fn next(&self) -> Option<Millis> {
        let ends = self.ends.first().map(|&(at, _)| at);
        let machines = self.machines.first().map(|&(at, ..)| at);
        ends.into_iter().chain(machines).chain(self.pool.wakes_at()).min()
    }

    /// Lets everything happen that is due at a time: processes end, then machines fail or come back.
    pub(super) fn begin(&mut self, now: Millis) {
        self.now = now;
        while let Some(&(at, id)) = self.ends.first() {
            if at > now {
                break;
            }
            self.exit(id);
        }
        while let Some(&(at, node, is_up)) = self.machines.first() {
            if at > now {
                break;
            }
            self.machines.pop_first();
            self.switch(node, is_up);
        }
    }

    /// Submits a job.
    pub(super) fn submit(&mut self, id: JobId, spec: &Spec) {
        match self.pool.accept(Event::Submitted { id, spec: spec.clone() }, self.now) {
            Ok(actions) => {
                self.left.insert(id, spec.takes.unwrap_or(self.costs.unknown));
                self.happened.push(Happened::Submitted { id });
                self.act(actions);
            }
            Err(refused) => self.happened.push(Happened::Refused { id, why: refused.to_string() }),
        }
    }

    /// Lets the pool decide, and does what it says.
    pub(super) fn decide(&mut self) {
        let actions = self.pool.decide(self.now);
        self.act(actions);
    }

    /// What has happened since this was asked last.
    pub(super) fn happened(&mut self) -> impl Iterator<Item = Happened> {
        std::mem::take(&mut self.happened).into_iter()
    }

    /// The jobs that run and will be done if nobody stops them, and when.
    pub(super) fn runs_until(&self) -> impl Iterator<Item = (JobId, Millis)> {
        self.processes.iter().filter(|(_, p)| p.exit == Exit::Done).map(|(&id, p)| (id, p.ends))
    }

    /// The processes of a start, if nobody stops them.
    fn process(
        &self,
        attempt: u32,
        spec: &Spec,
        placement: &Placement,
        since: Millis,
        work: Millis,
    ) -> Process {
        let speed = spec.speed(placement.steps);
        let takes = (work as f64 / speed).ceil() as Millis;
        let ends = since.saturating_add(self.costs.start).saturating_add(takes);
        // Without its first start no job can do.
        let wasted = if attempt > 1 { self.costs.start } else { 0 };
        Process { attempt, since, speed, ends, exit: Exit::Done, left: 0, wasted }
    }

    /// The same processes when they are told to stop.
    fn stopped(&self, process: Process, told: Millis, work: Millis, reason: &StopReason) -> Process {
        if process.ends <= told {
            return process;
        }
        let computed = (told - process.since).saturating_sub(self.costs.start);
        let grace = self.pool.policy().grace;
        let (exit, after, kept) = match reason {
            StopReason::Broken => (Exit::Lost, 0, self.saved_of(computed)),
            _ if self.costs.save > grace => (Exit::Killed(9), grace, self.saved_of(computed)),
            _ => (Exit::Saved, self.costs.save, computed),
        };
        let first_start = if process.attempt > 1 { 0 } else { self.costs.start };
        let done = (kept as f64 * process.speed) as Millis;
        Process {
            ends: told + after,
            exit,
            left: work.saturating_sub(done),
            wasted: (told + after - process.since).saturating_sub(kept + first_start),
            ..process
        }
    }

    /// How much of the time that a job has computed it has saved by itself.
    fn saved_of(&self, computed: Millis) -> Millis {
        computed - computed % self.costs.save_every.max(1)
    }

    fn enter(&mut self, id: JobId, process: Process) {
        self.ends.insert((process.ends, id));
        self.processes.insert(id, process);
    }

    fn remove(&mut self, id: JobId) -> Option<Process> {
        let process = self.processes.remove(&id)?;
        self.ends.remove(&(process.ends, id));
        Some(process)
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start { id, attempt, placement } => {
                    let spec = &self.pool.jobs()[&id].spec;
                    let process = self.process(attempt, spec, &placement, self.now, self.left[&id]);
                    self.enter(id, process);
                    let devices = placement.amounts().devices;
                    self.happened.push(Happened::Started { id, devices });
                }
                Action::Stop { id, reason, .. } => {
                    let process = self.remove(id).expect("who is told to stop runs");
                    let process = self.stopped(process, self.now, self.left[&id], &reason);
                    self.enter(id, process);
                    self.happened.push(Happened::Told { id, reason });
                }
                Action::Ended { id, outcome } => {
                    self.left.remove(&id);
                    self.happened.push(Happened::Ended { id, outcome });
                }
            }
        }
    }

    /// A job's processes end.
    fn exit(&mut self, id: JobId) {
        let process = self.remove(id).expect("it was to end now");
        self.left.insert(id, process.left);
        self.happened.push(Happened::Left { id, wasted: process.wasted });
        let exited = Event::Exited { id, attempt: process.attempt, exit: process.exit };
        self.tell(exited);
        // A job says with its exit how far it has come.
        self.tell(Event::Estimated { id, remaining: process.left });
    }

    /// A machine fails, or comes back.
    fn switch(&mut self, node: usize, is_up: bool) {
        let machine = self.pool.nodes()[node].clone();
        if is_up {
            self.tell(Event::NodeUp { node: machine });
            return;
        }
        // Jobs that were there alone are gone without a word; of others the rest is told to stop.
        let is_there = |placement: &Placement| placement.members.iter().all(|place| place.node == node);
        let runs = self.processes.keys().copied();
        let gone: Vec<JobId> =
            runs.filter(|id| self.pool.jobs()[id].placement().is_some_and(is_there)).collect();
        for id in gone {
            let process = self.remove(id).expect("it runs");
            let process = self.stopped(process, self.now, self.left[&id], &StopReason::Broken);
            self.left.insert(id, process.left);
            self.happened.push(Happened::Left { id, wasted: process.wasted });
        }
        self.tell(Event::NodeDown { name: machine.name });
    }

    fn tell(&mut self, event: Event) {
        let actions = self.pool.accept(event, self.now).expect("it is about what is in the pool");
        self.act(actions);
    }
}
