//! What of a pool is given, what is free and what each may have: the state that a decision works on.

use crate::Millis;
use crate::amounts::{Amounts, RESOURCES, Resource};
use crate::job::{JobId, Phase, Spec};
use crate::nodes::{Free, Placement};
use crate::policy::Tree;
use crate::share::divide_tree;

use super::Pool;

/// A pool during one decision.
pub(crate) struct Room<'a> {
    pub(super) pool: &'a mut Pool,
    pub(super) now: Millis,
    /// What nobody has, those who are leaving included among those who have.
    pub(super) free_now: Free,
    /// What nobody will have once those who are leaving have left.
    pub(crate) free_later: Free,
    /// Of each node of the tree: what its jobs have and were promised, without those who are leaving.
    pub(crate) allocated: Vec<Amounts>,
    /// The part of it that may never be taken back.
    pub(super) guaranteed: Vec<Amounts>,
    /// What its processes have, of those who are leaving, too.
    pub(super) held: Vec<Amounts>,
    /// Fair shares, in units.
    pub(crate) shares: Vec<[f64; 3]>,
    /// All of all machines that are there.
    pub(crate) capacity: Amounts,
    /// Where to look for jobs that run.
    pub(super) runs: Runs,
    /// Whether there may be jobs that were promised a place.
    pub(super) has_promised: bool,
    /// Whether there may be jobs that run and could grow.
    pub(super) has_elastic: bool,
}

/// Where to look for jobs that run: all that do are in it, and some that did when the decision began.
pub(super) struct Runs {
    /// Those of each node of the tree.
    of_project: Vec<Vec<JobId>>,
    /// Those that are on one machine alone.
    on_machine: Vec<Vec<JobId>>,
}

impl Runs {
    fn new(projects: usize, machines: usize) -> Self {
        Runs { of_project: vec![Vec::new(); projects], on_machine: vec![Vec::new(); machines] }
    }

    /// Enters a job that runs from now on.
    pub(super) fn add(&mut self, id: JobId, project: usize, placement: &Placement) {
        self.of_project[project].push(id);
        let machine = placement.members[0].node;
        if placement.members.iter().all(|place| place.node == machine) {
            self.on_machine[machine].push(id);
        }
    }

    /// Those of a project that may run, each once.
    pub(super) fn of_project(&self, project: usize) -> Vec<JobId> {
        once(&self.of_project[project])
    }

    /// Those that may be on a machine alone, each once.
    pub(super) fn on_machine(&self, machine: usize) -> Vec<JobId> {
        once(&self.on_machine[machine])
    }
}

fn once(ids: &[JobId]) -> Vec<JobId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// A bound that a job would pass.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Passed {
    /// Whose.
    pub(crate) node: usize,
    /// Of which resource.
    pub(crate) resource: Resource,
    /// Whether it is the quota, which bounds what may never be taken back; else the limit.
    pub(crate) is_quota: bool,
    /// What the job asks for.
    pub(crate) requested: u64,
    /// What counts against the bound already.
    pub(crate) allocated: u64,
    /// The bound.
    pub(crate) bound: u64,
}

impl<'a> Room<'a> {
    pub(crate) fn new(pool: &'a mut Pool, now: Millis) -> Self {
        let count = pool.tree.nodes.len();
        let all = Free::all(&pool.nodes);
        let mut room = Room {
            now,
            free_now: all.clone(),
            free_later: all,
            allocated: vec![Amounts::NONE; count],
            guaranteed: vec![Amounts::NONE; count],
            held: vec![Amounts::NONE; count],
            shares: vec![[0.0; 3]; count],
            runs: Runs::new(count, pool.nodes.len()),
            has_promised: false,
            has_elastic: false,
            capacity: pool.capacity(),
            pool,
        };
        room.count();
        room
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.pool.tree
    }

    /// Goes through all jobs once: who has what, who wants what, and what follows as shares.
    fn count(&mut self) {
        let mut requested = vec![[0.0_f64; 3]; self.allocated.len()];
        for (&id, job) in &self.pool.jobs {
            let project = job.project;
            let is_guaranteed = !job.spec.class.is_preemptible();
            let (holds, will_hold) = match &job.phase {
                Phase::Held => continue,
                Phase::Waiting { .. } => (None, None),
                Phase::Promised { placement, .. } => {
                    self.has_promised = true;
                    (None, Some(placement))
                }
                Phase::Running { placement, .. } => {
                    self.runs.add(id, project, placement);
                    self.has_elastic |= placement.steps < job.spec.steps();
                    (Some(placement), Some(placement))
                }
                Phase::Stopping { placement, next, .. } => (Some(placement), next.as_ref()),
            };
            let wants = job.spec.total(job.spec.steps());
            for (n, &r) in self.pool.tree.divided.iter().enumerate() {
                requested[project][n] += wants[r] as f64;
            }
            if let Some(placement) = holds {
                self.free_now.take(placement);
                self.held[project].add(&placement.amounts());
            }
            if let Some(placement) = will_hold {
                self.free_later.take(placement);
                let amounts = placement.amounts();
                self.allocated[project].add(&amounts);
                if is_guaranteed {
                    self.guaranteed[project].add(&amounts);
                }
            }
        }
        self.add_up(&mut requested);
        self.share_out(&requested);
    }

    /// Adds what projects have and want to the departments above them.
    fn add_up(&mut self, requested: &mut [[f64; 3]]) {
        // A parent stands before its children.
        for node in (0..requested.len()).rev() {
            let Some(above) = self.pool.tree.nodes[node].parent else { continue };
            for list in [&mut self.allocated, &mut self.guaranteed, &mut self.held] {
                let amounts = list[node];
                list[above].add(&amounts);
            }
            for n in 0..requested[node].len() {
                requested[above][n] += requested[node][n];
            }
        }
    }

    /// Computes the shares of all nodes.
    fn share_out(&mut self, requested: &[[f64; 3]]) {
        let Pool { tree, accounts, policy, .. } = &*self.pool;
        for (n, &resource) in tree.divided.iter().enumerate() {
            let total = resource.units(self.capacity[resource]);
            let wants = |node: usize| resource.units_of_sum(requested[node][n]);
            let usage = |node: usize| accounts[node].usage[resource as usize];
            let shares = divide_tree(tree, resource, total, policy.usage.weight, wants, usage);
            for (all, share) in self.shares.iter_mut().zip(shares) {
                all[resource as usize] = share;
            }
        }
    }

    /// What a node may have of a resource before it is over its share, in units: its share or its quota,
    /// whichever is more, within its limit.
    pub(crate) fn allocatable(&self, node: usize, resource: Resource) -> f64 {
        let queue = &self.tree().nodes[node];
        let limit = queue.limit.of(resource).map_or(f64::INFINITY, |limit| resource.units(limit));
        match queue.quota.of(resource) {
            None => limit,
            Some(quota) => limit.min(resource.units(quota).max(self.shares[node][resource as usize])),
        }
    }

    /// The same of every resource; of those that are not divided, nothing.
    pub(super) fn may_have(&self, node: usize) -> [f64; 3] {
        let mut all = [0.0; 3];
        for &resource in &self.tree().divided {
            all[resource as usize] = self.allocatable(node, resource);
        }
        all
    }

    pub(super) fn is_over_share(&self, node: usize, resource: Resource) -> bool {
        resource.units(self.allocated[node][resource]) > self.allocatable(node, resource)
    }

    pub(super) fn is_over_quota(&self, node: usize, resource: Resource) -> bool {
        let quota = self.tree().nodes[node].quota.of(resource);
        quota.is_some_and(|quota| self.allocated[node][resource] > quota)
    }

    /// Whether a node stays in its share with a job; in its quota, if the job is never stopped.
    pub(crate) fn stays_within(&self, node: usize, spec: &Spec, want: &Amounts) -> bool {
        if !spec.class.is_preemptible() {
            return self.stays_in_quota(node, want);
        }
        let with = self.allocated[node].plus(want);
        let stays = |&r: &Resource| want[r] == 0 || r.units(with[r]) <= self.allocatable(node, r);
        self.tree().divided.iter().all(stays)
    }

    /// Whether a node stays in its quota with what a job asks for.
    pub(super) fn stays_in_quota(&self, node: usize, want: &Amounts) -> bool {
        let with = self.allocated[node].plus(want);
        let quota = &self.tree().nodes[node].quota;
        RESOURCES.iter().all(|&r| want[r] == 0 || quota.of(r).is_none_or(|quota| with[r] <= quota))
    }

    /// The biggest of the parts that `amounts` is of what a node may have.
    pub(super) fn dominant(&self, node: usize, amounts: &Amounts) -> f64 {
        let part = |&r: &Resource| match (r.units(amounts[r]), self.allocatable(node, r)) {
            (0.0, _) => 0.0,
            (has, may) => has / may,
        };
        self.tree().divided.iter().map(part).fold(0.0, f64::max)
    }

    /// The first bound, from a project upwards, that a job would pass with what it asks for.
    pub(crate) fn passed(&self, project: usize, spec: &Spec, want: &Amounts) -> Option<Passed> {
        self.tree().path(project).find_map(|node| {
            let queue = &self.tree().nodes[node];
            let limit = (false, &queue.limit, &self.allocated[node]);
            let quota = (true, &queue.quota, &self.guaranteed[node]);
            let bounds = [Some(limit), (!spec.class.is_preemptible()).then_some(quota)];
            bounds.into_iter().flatten().find_map(|(is_quota, bounds, allocated)| {
                let resource = bounds.passed_by(&allocated.plus(want))?;
                // A job that asks for nothing of it does not pass it, whoever did.
                (want[resource] > 0).then(|| Passed {
                    node,
                    resource,
                    is_quota,
                    requested: want[resource],
                    allocated: allocated[resource],
                    bound: bounds.of(resource).unwrap_or(0),
                })
            })
        })
    }

    /// Whether processes that start now would pass a limit together with those who are still leaving.
    pub(super) fn crowds(&self, project: usize, want: &Amounts) -> bool {
        self.tree().path(project).any(|node| {
            let limit = &self.tree().nodes[node].limit;
            limit.passed_by(&self.held[node].plus(want)).is_some_and(|r| want[r] > 0)
        })
    }

    /// Counts a job as one that has a place from now on.
    pub(super) fn allot(&mut self, project: usize, spec: &Spec, placement: &Placement) {
        self.free_later.take(placement);
        self.book(project, spec, placement, Amounts::add);
    }

    /// Counts a job as one that has its place no longer.
    pub(super) fn vacate(&mut self, project: usize, spec: &Spec, placement: &Placement) {
        self.free_later.give(placement);
        self.book(project, spec, placement, Amounts::sub);
    }

    fn book(
        &mut self,
        project: usize,
        spec: &Spec,
        placement: &Placement,
        count: fn(&mut Amounts, &Amounts),
    ) {
        let amounts = placement.amounts();
        for node in self.pool.tree.path(project) {
            count(&mut self.allocated[node], &amounts);
            if !spec.class.is_preemptible() {
                count(&mut self.guaranteed[node], &amounts);
            }
        }
    }

    /// Counts a job as one whose processes run from now on.
    pub(super) fn occupy(&mut self, project: usize, placement: &Placement) {
        self.free_now.take(placement);
        let amounts = placement.amounts();
        self.pool.tree.path(project).for_each(|node| self.held[node].add(&amounts));
    }

    /// Counts a job as one whose processes do not run after all.
    pub(super) fn leave(&mut self, project: usize, placement: &Placement) {
        self.free_now.give(placement);
        let amounts = placement.amounts();
        self.pool.tree.path(project).for_each(|node| self.held[node].sub(&amounts));
    }
}
