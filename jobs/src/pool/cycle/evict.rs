//! Making room for a job that found none: by moving others together, by taking back what another project has
//! over its share, by taking from jobs of less priority. All of it or nothing: nobody stops unless the whole
//! job has its place then.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::Millis;
use crate::amounts::{Amounts, RESOURCES, WHOLE};
use crate::job::{JobId, Phase, Spec, StopReason};
use crate::nodes::{Place, Placement};
use crate::pool::order::Rank;

use super::{Cycle, Misfits};

/// A running job that may have to give its place up, or a part of it.
#[derive(Debug, Clone)]
struct Victim {
    id: JobId,
    project: usize,
    spec: Spec,
    placement: Placement,
    /// Where it stays, if it only gives what it has above its least.
    rest: Option<Placement>,
}

/// When a victim's turn comes, the greatest first: whether it has not begun, whether it only shrinks, how
/// little priority it has, when it started.
type Turn = (bool, bool, i32, Millis);

/// From whom room is taken.
#[derive(Clone, Copy, PartialEq)]
enum From {
    /// From other projects.
    Others,
    /// From its own project.
    Own,
}

impl Cycle<'_> {
    /// Takes back from other projects what they have over their share, if the job's own project stays within
    /// its own.
    pub(super) fn reclaim(&mut self, id: JobId, project: usize, spec: &Spec) -> bool {
        let want = spec.total(0);
        if !self.room.stays_within(project, spec, &want) {
            return false;
        }
        let mut heap: BinaryHeap<(Vec<Rank>, usize)> =
            self.lenders(project, &want).map(|other| (self.ranks(other), other)).collect();
        let mut candidates: BTreeMap<usize, Vec<Victim>> = BTreeMap::new();
        let mut chosen = Vec::new();
        // Whoever is furthest over gives first. Giving only brings a project down, so a rank that is out of
        // date is too high.
        while let Some((rank, other)) = heap.pop() {
            let now = self.ranks(other);
            if now < rank {
                heap.push((now, other));
                continue;
            }
            if !self.may_take(project, other, spec, &want) {
                continue;
            }
            let victims = candidates.entry(other).or_insert_with(|| self.candidates(From::Others, id, other));
            let Some(victim) = victims.pop() else { continue };
            heap.push((now, other));
            self.release(&victim);
            chosen.push(victim);
            if self.fits(project, spec) {
                self.commit(id, project, spec, chosen, From::Others);
                return true;
            }
        }
        self.restore(chosen);
        false
    }

    /// Takes from jobs of the same project that have less priority.
    pub(super) fn preempt(&mut self, id: JobId, project: usize, spec: &Spec) -> bool {
        let mut candidates = self.candidates(From::Own, id, project);
        let mut chosen = Vec::new();
        while let Some(victim) = candidates.pop() {
            self.release(&victim);
            chosen.push(victim);
            if self.fits(project, spec) {
                self.commit(id, project, spec, chosen, From::Own);
                return true;
            }
        }
        self.restore(chosen);
        false
    }

    /// Moves jobs away from one machine for each member that lacks a place, if every one of them has another.
    pub(super) fn consolidate(&mut self, id: JobId, project: usize, spec: &Spec) -> bool {
        let want = spec.total(0);
        let has_enough = want.fits_in(&self.room.free_later.total());
        let shape = (spec.member(0), spec.members);
        if !has_enough || self.immovable.contains(&shape) || self.room.passed(project, spec, &want).is_some()
        {
            return false;
        }
        let (mut moved, mut members) = (Vec::new(), Vec::new());
        let mut nowhere = Misfits::default();
        for _ in 0..spec.members {
            let before = moved.len();
            let Some(place) = self.member_place(spec, &mut moved, &mut nowhere) else { break };
            // What was left may have room for others.
            if moved.len() > before {
                nowhere = Misfits::default();
            }
            self.room.free_later.take(&Placement { members: vec![place.clone()], steps: 0 });
            members.push(place);
        }
        members.iter().for_each(|place| self.room.free_later.give_one(place));
        if members.len() < spec.members as usize {
            self.move_back(&mut moved, 0);
            self.immovable.push(shape);
            return false;
        }
        for (victim, place) in moved {
            self.stop(victim.id, StopReason::Moved { by: id }, Some(place));
        }
        let placement = Placement { members, steps: 0 };
        self.room.allot(project, spec, &placement);
        self.promise(id, placement);
        true
    }

    /// A place for one member: free, or made free by moving jobs from the machine where the least is missing.
    /// Jobs of shapes in `nowhere` have no other place.
    fn member_place(
        &mut self,
        spec: &Spec,
        moved: &mut Vec<(Victim, Placement)>,
        nowhere: &mut Misfits,
    ) -> Option<Place> {
        let want = spec.member(0);
        let one = Spec { members: 1, ..spec.clone() };
        if let Some(placement) = self.room.free_later.place(&one, 0, None) {
            return placement.members.into_iter().next();
        }
        let nodes = &self.room.pool.nodes;
        let could = |&n: &usize| nodes[n].up && want.fits_in(&nodes[n].capacity());
        let missing = |n: usize| {
            let missing = want.less(&self.room.free_later.of(n));
            (missing.devices, missing.cpus, n)
        };
        let mut machines: Vec<_> = (0..nodes.len()).filter(could).map(missing).collect();
        machines.sort_unstable();
        machines.into_iter().find_map(|(.., machine)| self.clear(machine, &want, moved, nowhere))
    }

    /// Moves jobs from one machine until a member fits there; if that cannot be, moves none.
    fn clear(
        &mut self,
        machine: usize,
        want: &Amounts,
        moved: &mut Vec<(Victim, Placement)>,
        nowhere: &mut Misfits,
    ) -> Option<Place> {
        let before = moved.len();
        for victim in self.movable(machine, moved) {
            let (free, steps) = (&self.room.free_later, victim.placement.steps);
            let (member, members) = (victim.spec.member(steps), victim.spec.members);
            if nowhere.has_shape(&member, members) {
                continue;
            }
            let Some(place) = free.place_elsewhere(&victim.spec, steps, machine) else {
                // Where nobody has left a machine yet, what does not fit here either does not fit anywhere.
                if moved.is_empty() && !free.fits(&victim.spec, steps) {
                    nowhere.add_shape(member, members);
                }
                continue;
            };
            self.room.vacate(victim.project, &victim.spec, &victim.placement);
            self.room.allot(victim.project, &victim.spec, &place);
            moved.push((victim, place));
            if let Some(place) = self.room.free_later.place_on(machine, want, None) {
                return Some(place);
            }
        }
        self.move_back(moved, before);
        None
    }

    fn move_back(&mut self, moved: &mut Vec<(Victim, Placement)>, upto: usize) {
        for (victim, place) in moved.drain(upto..).rev() {
            self.room.vacate(victim.project, &victim.spec, &place);
            self.room.allot(victim.project, &victim.spec, &victim.placement);
        }
    }

    /// Jobs that run on one machine alone and may move, the smallest first.
    fn movable(&self, machine: usize, moved: &[(Victim, Placement)]) -> Vec<Victim> {
        let pool = &self.room.pool;
        let mut all: Vec<Victim> = Vec::new();
        for id in self.room.runs.on_machine(machine) {
            let job = &pool.jobs[&id];
            let Phase::Running { placement, since } = &job.phase else { continue };
            let is_here = placement.members.iter().all(|place| place.node == machine);
            if !is_here || !job.spec.class.is_preemptible() || moved.iter().any(|(other, _)| other.id == id) {
                continue;
            }
            let project = pool.project_of(job);
            if since + pool.tree.nodes[project].preempt_min_runtime <= self.room.now {
                let placement = placement.clone();
                all.push(Victim { id, project, spec: job.spec.clone(), placement, rest: None });
            }
        }
        let size = |victim: &Victim| {
            let amounts = victim.placement.amounts();
            (amounts.devices, amounts.cpus, victim.id)
        };
        all.sort_by_key(size);
        all
    }

    /// Projects other than one that have more than their quota of something that is wanted: nobody else gives
    /// anything.
    fn lenders(&self, project: usize, want: &Amounts) -> impl Iterator<Item = usize> {
        let room = &self.room;
        let resources = room.tree().divided.iter().filter(|&&r| want[r] > 0);
        (0..room.tree().nodes.len()).filter(move |&other| {
            room.tree().nodes[other].is_project
                && other != project
                && resources.clone().any(|&r| room.is_over_quota(other, r))
        })
    }

    /// Running jobs of a project that may have to stop or shrink for a job, the first to go last: what has
    /// not begun yet, whoever can shrink, then less priority first, then the younger.
    fn candidates(&self, from: From, id: JobId, of: usize) -> Vec<Victim> {
        let pool = &self.room.pool;
        let spec = &pool.jobs[&id].spec;
        let mut list: Vec<(Turn, Victim)> = Vec::new();
        for other in self.room.runs.of_project(of) {
            let job = &pool.jobs[&other];
            let Phase::Running { placement, since } = &job.phase else { continue };
            if !job.spec.class.is_preemptible() {
                continue;
            }
            let node = &pool.tree.nodes[of];
            let (safe, may_shrink, may_stop) = match from {
                From::Others => (node.reclaim_min_runtime, true, true),
                From::Own => (
                    node.preempt_min_runtime,
                    job.spec.priority <= spec.priority,
                    job.spec.priority < spec.priority,
                ),
            };
            // Or else a job would go for one of its own project's that does not even start.
            let is_fresh = self.fresh.contains(&other);
            let mut push = |placement: &Placement, rest: Option<Placement>| {
                let placement = placement.clone();
                let victim = Victim { id: other, project: of, spec: job.spec.clone(), placement, rest };
                list.push(((is_fresh, victim.rest.is_some(), -job.spec.priority, *since), victim));
            };
            let mut left = placement.clone();
            if placement.steps > 0 && may_shrink {
                left = shrunk(&job.spec, placement, 0);
                push(placement, Some(left.clone()));
            }
            if may_stop && since + safe <= self.room.now && frees_something(&left, spec) {
                push(&left, None);
            }
        }
        list.sort_by_key(|(turn, victim)| (*turn, victim.id));
        list.into_iter().map(|(_, victim)| victim).collect()
    }

    /// A project's rank and those of the departments above it, from the top.
    fn ranks(&self, project: usize) -> Vec<Rank> {
        let path = self.room.tree().path(project);
        let mut ranks: Vec<Rank> = path.map(|node| Rank::of(&self.room, node, &Amounts::NONE)).collect();
        ranks.reverse();
        ranks
    }

    /// Whether a job of `project` may take from `other` as things stand: compared where their ways up part,
    /// the other side is over its share, or this side stays in its quota while the other is over its own. A
    /// project in its quota gives nothing.
    ///
    /// KAI-Scheduler refuses besides what would bring the taking side's part of its share to that of the
    /// giving side; a side that stays in its share has a part of at most one, and whoever is over it has
    /// more.
    fn may_take(&self, project: usize, other: usize, spec: &Spec, want: &Amounts) -> bool {
        let room = &self.room;
        let Some((mine, theirs)) = room.tree().parting(project, other) else { return false };
        let upto = |from: usize, end: usize| {
            let above = room.tree().nodes[end].parent;
            room.tree().path(from).take_while(move |&node| Some(node) != above)
        };
        if !upto(project, mine).all(|node| room.stays_within(node, spec, want)) {
            return false;
        }
        let in_quota = room.stays_in_quota(mine, want);
        room.tree().divided.iter().filter(|&&r| want[r] > 0).any(|&r| {
            upto(other, theirs).all(|node| room.is_over_quota(node, r))
                && (in_quota || room.is_over_share(theirs, r))
        })
    }

    /// Counts a victim as gone, or as shrunk.
    fn release(&mut self, victim: &Victim) {
        self.room.vacate(victim.project, &victim.spec, &victim.placement);
        if let Some(rest) = &victim.rest {
            self.room.allot(victim.project, &victim.spec, rest);
        }
    }

    /// Counts victims as they are.
    fn restore(&mut self, chosen: Vec<Victim>) {
        for victim in chosen.into_iter().rev() {
            if let Some(rest) = &victim.rest {
                self.room.vacate(victim.project, &victim.spec, rest);
            }
            self.room.allot(victim.project, &victim.spec, &victim.placement);
        }
    }

    fn fits(&self, project: usize, spec: &Spec) -> bool {
        self.room.passed(project, spec, &spec.total(0)).is_none() && self.room.free_later.fits(spec, 0)
    }

    /// Gives the job its place, spares every victim that it turns out not to need, and tells the others.
    fn commit(&mut self, id: JobId, project: usize, spec: &Spec, chosen: Vec<Victim>, from: From) {
        let placement = self.room.free_later.place(spec, 0, None).expect("it was just seen to fit");
        let within_quota = self.room.stays_in_quota(project, &spec.total(0));
        self.room.allot(project, spec, &placement);
        self.promise(id, placement);
        let mut gone = BTreeSet::new();
        // The last one chosen is the first to be spared. Of a job that goes, the surplus that it gave before
        // goes along.
        for victim in chosen.into_iter().rev() {
            if gone.contains(&victim.id) {
                continue;
            }
            let Some(victim) = self.spare(victim) else { continue };
            let reason = match (&victim.rest, from) {
                (Some(rest), _) => StopReason::Resized { steps: rest.steps, by: Some(id) },
                (None, From::Others) => StopReason::Reclaimed { by: id, within_quota },
                (None, From::Own) => StopReason::Preempted { by: id },
            };
            gone.insert(victim.id);
            self.stop(victim.id, reason, victim.rest);
        }
    }

    /// Gives a victim back what turns out not to be needed; nothing is left of it if that is all.
    fn spare(&mut self, victim: Victim) -> Option<Victim> {
        if let Some(rest) = &victim.rest {
            self.room.vacate(victim.project, &victim.spec, rest);
        }
        let full = victim.placement.steps;
        let least = victim.rest.as_ref().map_or(full, |rest| rest.steps + 1);
        for steps in (least..=full).rev() {
            let back = shrunk(&victim.spec, &victim.placement, steps);
            let passes = self.room.passed(victim.project, &victim.spec, &back.amounts()).is_some();
            if !passes && self.room.free_later.has(&back) {
                self.room.allot(victim.project, &victim.spec, &back);
                return (steps < full).then_some(Victim { rest: Some(back), ..victim });
            }
        }
        if let Some(rest) = &victim.rest {
            self.room.allot(victim.project, &victim.spec, rest);
        }
        Some(victim)
    }
}

/// Whether a job that stops leaves something that another asks for.
fn frees_something(placement: &Placement, spec: &Spec) -> bool {
    let (has, want) = (placement.amounts(), spec.total(0));
    RESOURCES.iter().any(|&r| has[r] > 0 && want[r] > 0)
}

/// The same place with less: the first of its devices and cores.
fn shrunk(spec: &Spec, placement: &Placement, steps: u64) -> Placement {
    let want = spec.member(steps);
    let less = |place: &Place| {
        let mut place = Place { cpus: want.cpus, ..place.clone() };
        if place.part == WHOLE {
            place.devices.truncate((want.devices / WHOLE) as usize);
        }
        place
    };
    Placement { members: placement.members.iter().map(less).collect(), steps }
}
