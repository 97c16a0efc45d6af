//! Elastic jobs grow into what nobody else can use: first within their project's share, then beyond it.

use std::collections::BTreeMap;

use crate::amounts::Amounts;
use crate::job::{JobId, Phase, StopReason};
use crate::nodes::Placement;
use crate::pool::Action;
use crate::pool::order::Rank;

use super::{Cycle, Misfits};

impl Cycle<'_> {
    /// Lets jobs grow, those whose project has the smaller part of its share first.
    pub(super) fn grow(&mut self) {
        if !self.room.has_elastic {
            return;
        }
        let all = self.growing();
        let mut grown: BTreeMap<JobId, Placement> = BTreeMap::new();
        let mut nowhere = Misfits::default();
        for within_share in [true, false] {
            for (_, _, id, project) in &all {
                let now = grown.get(id).or(self.room.pool.jobs[id].placement());
                let Some(now) = now.filter(|now| self.may_grow(*id, now)).cloned() else { continue };
                if let Some(placement) = self.bigger(*id, *project, &now, within_share, &mut nowhere) {
                    // It may have left a place that fits others.
                    nowhere = Misfits::default();
                    grown.insert(*id, placement);
                }
            }
        }
        for (id, placement) in grown {
            if self.fresh.contains(&id) {
                self.begin_bigger(id, placement);
            } else {
                let reason = StopReason::Resized { steps: placement.steps, by: None };
                self.stop(id, reason, Some(placement));
            }
        }
    }

    /// Jobs that may grow: they start now, or have kept their size for long enough.
    fn growing(&self) -> Vec<(Rank, i32, JobId, usize)> {
        let room = &self.room;
        let mut all = Vec::new();
        for (&id, job) in &room.pool.jobs {
            let Phase::Running { placement, since } = &job.phase else { continue };
            let rests = since + room.pool.policy.resize_interval > room.now && !self.fresh.contains(&id);
            if placement.steps < job.spec.steps() && !rests {
                let project = job.project;
                all.push((Rank::of(room, project, &Amounts::NONE), -job.spec.priority, id, project));
            }
        }
        all.sort();
        all
    }

    /// Whether there is one more step for a job at all.
    fn may_grow(&self, id: JobId, now: &Placement) -> bool {
        let spec = &self.room.pool.jobs[&id].spec;
        let free = self.room.free_later.total().plus(&now.amounts());
        now.steps < spec.steps() && spec.total(now.steps + 1).fits_in(&free)
    }

    /// Finds a job the biggest place that it can have instead of `now`, and counts it as its own. Single
    /// members of shapes in `nowhere` have no place on a machine that their job is not on.
    fn bigger(
        &mut self,
        id: JobId,
        project: usize,
        now: &Placement,
        within_share: bool,
        nowhere: &mut Misfits,
    ) -> Option<Placement> {
        let spec = self.room.pool.jobs[&id].spec.clone();
        let is_fresh = self.fresh.contains(&id);
        self.room.vacate(project, &spec, now);
        if is_fresh {
            self.room.leave(project, now);
        }
        let room = &self.room;
        let machine = now.members[0].node;
        let mut later = |steps| {
            let member = spec.member(steps);
            let is_one = spec.members == 1;
            if is_one && nowhere.has_shape(&member, 1) && !room.free_later.fits_on(machine, &member) {
                return None;
            }
            let found = room.free_later.place(&spec, steps, None);
            if is_one && found.is_none() {
                nowhere.add_shape(member, 1);
            }
            found
        };
        let found = ((now.steps + 1)..=spec.steps()).rev().find_map(|steps| {
            let want = spec.total(steps);
            let stays = |node| room.stays_within(node, &spec, &want);
            let may = (!within_share || room.tree().path(project).all(stays))
                && room.passed(project, &spec, &want).is_none()
                && !(is_fresh && room.crowds(project, &want));
            match is_fresh {
                _ if !may => None,
                true => room.free_now.place(&spec, steps, Some(&room.free_later)),
                false => later(steps),
            }
        });
        let is = found.as_ref().unwrap_or(now);
        self.room.allot(project, &spec, is);
        if is_fresh {
            self.room.occupy(project, is);
        }
        found
    }

    /// Starts a job bigger than it was to start.
    fn begin_bigger(&mut self, id: JobId, bigger: Placement) {
        let job = self.room.pool.jobs.get_mut(&id).expect("it is in the pool");
        if let Phase::Running { placement, .. } = &mut job.phase {
            *placement = bigger.clone();
        }
        for action in &mut self.actions {
            match action {
                Action::Start { id: of, placement, .. } if *of == id => *placement = bigger.clone(),
                _ => {}
            }
        }
    }
}
