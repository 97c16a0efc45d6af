//! One decision: who starts, and who stops for whom.
//!
//! The order is KAI-Scheduler's: give what is free, move jobs together, take back from other projects, take
//! from jobs with less priority; then let elastic jobs grow into what nobody else can use.

mod evict;
mod grow;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::Millis;
use crate::amounts::Amounts;
use crate::job::{JobId, Phase, Spec, StopReason};
use crate::nodes::Placement;

use super::order::Queueing;
use super::room::Room;
use super::{Action, Pool, stop};

/// Jobs for which others may be stopped or moved in one decision; more wait for the next.
const EVICTORS: usize = 64;

/// Decides what is to be done now.
pub(super) fn run(pool: &mut Pool, now: Millis) -> Vec<Action> {
    let mut cycle = Cycle {
        room: Room::new(pool, now),
        actions: Vec::new(),
        fresh: BTreeSet::new(),
        immovable: Vec::new(),
    };
    cycle.keep_promises();
    let unplaced = cycle.allocate();
    cycle.make_room(unplaced);
    cycle.keep_promises();
    cycle.grow();
    cycle.actions
}

struct Cycle<'a> {
    room: Room<'a>,
    actions: Vec<Action>,
    /// Jobs that start in this decision: they have no process yet, so they can still become bigger without
    /// stopping.
    fresh: BTreeSet<JobId>,
    /// Shapes of jobs for which moving others together was of no use, as long as nothing changes.
    immovable: Vec<(Amounts, u32)>,
}

/// Shapes of jobs that found no place: what asks for as much or more finds none, either.
#[derive(Default)]
struct Misfits(Vec<(Amounts, u32)>);

impl Misfits {
    fn has(&self, spec: &Spec) -> bool {
        self.has_shape(&spec.member(0), spec.members)
    }

    fn add(&mut self, spec: &Spec) {
        self.add_shape(spec.member(0), spec.members);
    }

    fn has_shape(&self, member: &Amounts, count: u32) -> bool {
        self.0.iter().any(|(small, members)| small.fits_in(member) && *members <= count)
    }

    fn add_shape(&mut self, member: Amounts, count: u32) {
        self.0.retain(|(big, members)| !(member.fits_in(big) && count <= *members));
        self.0.push((member, count));
    }
}

impl Cycle<'_> {
    /// Starts jobs whose place has been left by all whom they waited for.
    fn keep_promises(&mut self) {
        if !self.room.has_promised {
            return;
        }
        let promised = |(&id, job): (&JobId, &crate::Job)| match &job.phase {
            Phase::Promised { placement, since } => Some((*since, id, placement.clone())),
            _ => None,
        };
        let mut all: Vec<_> = self.room.pool.jobs.iter().filter_map(promised).collect();
        all.sort_unstable_by_key(|(since, id, _)| (*since, *id));
        for (_, id, placement) in all {
            let project = self.room.pool.project_of(&self.room.pool.jobs[&id]);
            if self.room.free_now.has(&placement) && !self.room.crowds(project, &placement.amounts()) {
                self.start(id, project, placement);
            }
        }
    }

    /// Gives what is free, in order. Tells which jobs found no place, in the order in which they were looked
    /// at.
    fn allocate(&mut self) -> Vec<JobId> {
        let (lists, least) = self.waiting();
        let mut queueing = Queueing::new(&self.room, lists);
        let (mut misfits, mut unplaced) = (Misfits::default(), Vec::new());
        let mut is_full = !least.fits_in(&self.room.free_later.total());
        let mut placed = false;
        while let Some((id, project)) = queueing.next(&self.room, placed) {
            placed = !is_full && self.try_place(id, project, &mut misfits);
            if !placed {
                unplaced.push(id);
            } else {
                is_full = !least.fits_in(&self.room.free_later.total());
            }
        }
        unplaced
    }

    /// Gives a job a place if no bound forbids it and there is one.
    fn try_place(&mut self, id: JobId, project: usize, misfits: &mut Misfits) -> bool {
        let spec = &self.room.pool.jobs[&id].spec;
        if misfits.has(spec) || self.room.passed(project, spec, &spec.total(0)).is_some() {
            return false;
        }
        let spec = spec.clone();
        self.place(id, project, &spec, misfits)
    }

    /// The waiting jobs of each project in order, and the least of each resource that any of them asks for.
    fn waiting(&self) -> (Vec<VecDeque<(JobId, Amounts)>>, Amounts) {
        let pool = &self.room.pool;
        let mut lists: Vec<Vec<(i32, Millis, JobId, Amounts)>> = vec![Vec::new(); pool.tree.nodes.len()];
        let mut least: Option<Amounts> = None;
        for (&id, job) in &pool.jobs {
            if !matches!(job.phase, Phase::Waiting { from } if from <= self.room.now) {
                continue;
            }
            let want = job.spec.total(0);
            least = Some(least.map_or(want, |least| least.least(&want)));
            lists[job.project].push((-job.spec.priority, job.submitted, id, want));
        }
        let in_order = |mut list: Vec<(i32, Millis, JobId, Amounts)>| {
            list.sort_unstable_by_key(|&(priority, submitted, id, _)| (priority, submitted, id));
            list.into_iter().map(|(_, _, id, want)| (id, want)).collect()
        };
        (lists.into_iter().map(in_order).collect(), least.unwrap_or_default())
    }

    /// Gives a job a place: one that is free now, or one that will be soon and is promised to nobody.
    fn place(&mut self, id: JobId, project: usize, spec: &Spec, misfits: &mut Misfits) -> bool {
        let room = &mut self.room;
        if let Some(placement) = room.free_now.place(spec, 0, Some(&room.free_later))
            && !room.crowds(project, &placement.amounts())
        {
            room.allot(project, spec, &placement);
            self.start(id, project, placement);
            return true;
        }
        if let Some(placement) = room.free_later.place(spec, 0, None) {
            room.allot(project, spec, &placement);
            self.promise(id, placement);
            return true;
        }
        misfits.add(spec);
        false
    }

    /// Starts a job in a place that is counted as its own already.
    fn start(&mut self, id: JobId, project: usize, placement: Placement) {
        self.room.occupy(project, &placement);
        self.room.runs.add(id, project, &placement);
        let now = self.room.now;
        let job = self.room.pool.jobs.get_mut(&id).expect("it is in the pool");
        self.room.has_elastic |= placement.steps < job.spec.steps();
        job.attempt += 1;
        job.phase = Phase::Running { placement: placement.clone(), since: now };
        self.fresh.insert(id);
        self.actions.push(Action::Start { id, attempt: job.attempt, placement });
    }

    fn promise(&mut self, id: JobId, placement: Placement) {
        let since = self.room.now;
        self.room.has_promised = true;
        self.room.pool.jobs.get_mut(&id).expect("it is in the pool").phase =
            Phase::Promised { placement, since };
    }

    /// Tells a job to stop; what it gives up is counted as given up already. One that was to start in this
    /// decision does not.
    fn stop(&mut self, id: JobId, reason: StopReason, next: Option<Placement>) {
        let now = self.room.now;
        let project = self.room.pool.project_of(&self.room.pool.jobs[&id]);
        let job = self.room.pool.jobs.get_mut(&id).expect("it is in the pool");
        if !self.fresh.remove(&id) {
            job.evictions += u32::from(!matches!(reason, StopReason::Resized { .. }));
            stop(id, job, reason, next, now, &mut self.actions);
            return;
        }
        let Phase::Running { placement, .. } = &job.phase else { unreachable!("it was just started") };
        let placement = placement.clone();
        job.attempt -= 1;
        self.room.has_promised |= next.is_some();
        job.phase = match next {
            Some(placement) => Phase::Promised { placement, since: now },
            None => Phase::Waiting { from: now },
        };
        self.actions.retain(|action| !matches!(action, Action::Start { id: of, .. } if *of == id));
        self.room.leave(project, &placement);
    }

    /// For jobs that found no place: moves others together, or stops some.
    fn make_room(&mut self, mut unplaced: Vec<JobId>) {
        // Where there are more than one decision looks at, the next one begins behind them.
        let turn = &mut self.room.pool.turn;
        let many = unplaced.len().max(1);
        unplaced.rotate_left((*turn % many as u64) as usize);
        let mut misfits: BTreeMap<usize, Misfits> = BTreeMap::new();
        let (mut tried, mut seen) = (0, 0);
        for id in unplaced {
            seen += 1;
            let job = &self.room.pool.jobs[&id];
            let project = self.room.pool.project_of(job);
            if misfits.get(&project).is_some_and(|misfits| misfits.has(&job.spec)) {
                continue;
            }
            let spec = job.spec.clone();
            let placed = self.consolidate(id, project, &spec)
                || self.reclaim(id, project, &spec)
                || self.preempt(id, project, &spec);
            if !placed {
                misfits.entry(project).or_default().add(&spec);
                tried += 1;
            } else {
                self.immovable.clear();
            }
            if tried == EVICTORS {
                self.room.pool.turn += seen;
                return;
            }
        }
        self.room.pool.turn = 0;
    }
}
