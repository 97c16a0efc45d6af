//! Schedulers to compare with: what a cluster does without quotas that are lent and taken back. None of them
//! stops a job.

use std::collections::BTreeMap;

use crate::Millis;
use crate::amounts::Resource;
use crate::job::Outcome;
use crate::nodes::{Free, Placement};
use crate::policy::Tree;
use crate::pool::{Event, Pool};

use super::report::{Meter, Report};
use super::world::Happened;
use super::{Arrival, Settings, number};

/// Jobs behind the first one that are looked at for backfilling; Slurm's `bf_max_job_test` is 500 unless set.
const LOOK_BEHIND: usize = 500;
/// What a job's age counts once it is [`MAX_AGE`].
const AGE_WEIGHT: f64 = 1000.0;
/// What a project's fair-share factor counts, which is at most one.
const FAIR_SHARE_WEIGHT: f64 = 10_000.0;
/// Seven days, Slurm's `PriorityMaxAge` unless set.
const MAX_AGE: Millis = 7 * 24 * 3_600_000;

/// Which job is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Who came first; nobody starts before somebody who came earlier.
    Fifo,
    /// Who came first; but others start before if they do not delay that one: EASY backfilling (Lifka, *The
    /// ANL/IBM SP Scheduling System*, 1995). How long jobs take is known exactly.
    FifoBackfill,
    /// As Slurm's `priority/multifactor` with the classic fair share
    /// (<https://slurm.schedmd.com/classic_fair_share.html>): the greater sum of age (1000 from seven days
    /// on) and 10000 2^(-U/S), where S is the project's part of the quotas and U its part of the decayed use;
    /// then backfilling as above. Real clusters weigh as they like: these are weights, not Slurm's.
    FairShare,
}

/// Runs a trace in the order of its times under another scheduler, on the machines of a pool without jobs.
/// Its policy says what shares are, which jobs can never fit, and how fast use is forgotten; limits and
/// priorities do not count. Jobs start with the least that they ask for, and machines do not fail.
///
/// # Panics
/// As [`super::simulate`].
#[must_use]
pub fn baseline(pool: &Pool, trace: &[Arrival], rule: Rule, settings: &Settings) -> Report {
    assert!(pool.jobs().is_empty(), "{} jobs are in the pool before the trace begins", pool.jobs().len());
    assert!(trace.is_sorted_by_key(|arrival| arrival.at), "the trace is not in the order of its times");
    let mut meter = Meter::new(pool.tree(), pool.capacity(), trace);
    let mut cluster = Cluster::new(pool, trace, rule, settings);
    let mut arrivals = trace.iter().enumerate().peekable();
    let mut decisions = 0;
    loop {
        let arrives = arrivals.peek().map(|(_, arrival)| arrival.at);
        let ends = cluster.running.first_key_value().map(|(&(at, _), _)| at);
        let Some(now) = arrives.into_iter().chain(ends).min() else { break };
        if decisions == settings.decisions {
            break;
        }
        decisions += 1;
        meter.pass_time(now);
        let mut happened = cluster.begin(now);
        while let Some((index, arrival)) = arrivals.next_if(|(_, arrival)| arrival.at == now) {
            let id = number(index);
            match pool.check(&Event::Submitted { id, spec: arrival.spec.clone() }) {
                Ok(()) => {
                    cluster.waiting.push(index);
                    happened.push(Happened::Submitted { id });
                }
                Err(refused) => happened.push(Happened::Refused { id, why: refused.to_string() }),
            }
        }
        cluster.decide(&mut happened);
        happened.into_iter().for_each(|happened| meter.take(happened));
    }
    meter.report(decisions)
}

struct Cluster<'a> {
    trace: &'a [Arrival],
    rule: Rule,
    settings: &'a Settings,
    now: Millis,
    free: Free,
    /// Jobs by their places in the trace, in its order.
    waiting: Vec<usize>,
    /// By when they end, and by their places in the trace.
    running: BTreeMap<(Millis, usize), Placement>,
    usage: Usage,
}

impl<'a> Cluster<'a> {
    fn new(pool: &Pool, trace: &'a [Arrival], rule: Rule, settings: &'a Settings) -> Self {
        let free = Free::all(pool.nodes());
        let usage = Usage::new(pool, trace);
        Cluster { trace, rule, settings, now: 0, free, waiting: Vec::new(), running: BTreeMap::new(), usage }
    }

    /// Lets jobs end that are done.
    fn begin(&mut self, now: Millis) -> Vec<Happened> {
        self.usage.pass_time(now - self.now);
        self.now = now;
        let mut happened = Vec::new();
        while let Some(entry) = self.running.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let ((_, index), placement) = entry.remove_entry();
            self.free.give(&placement);
            self.usage.count(index, &placement, -1.0);
            let id = number(index);
            happened.push(Happened::Left { id, wasted: 0 });
            happened.push(Happened::Ended { id, outcome: Outcome::Done });
        }
        happened
    }

    fn decide(&mut self, happened: &mut Vec<Happened>) {
        let mut queue = std::mem::take(&mut self.waiting);
        if self.rule == Rule::FairShare {
            let factors = self.usage.factors();
            let mut ranked: Vec<(f64, usize)> =
                queue.into_iter().map(|index| (self.priority(index, &factors), index)).collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            queue = ranked.into_iter().map(|(_, index)| index).collect();
        }
        let mut left = queue.into_iter();
        for index in left.by_ref() {
            let Some(placement) = self.free.place(&self.trace[index].spec, 0, None) else {
                self.waiting.push(index);
                break;
            };
            self.start(index, placement, happened);
        }
        if self.rule != Rule::Fifo
            && let Some(&first) = self.waiting.first()
        {
            self.backfill(first, &mut left, happened);
        }
        self.waiting.extend(left);
        self.waiting.sort_unstable();
    }

    /// Starts jobs that do not delay the first one: they end before it can start, or it does not need their
    /// places.
    fn backfill(
        &mut self,
        first: usize,
        others: &mut impl Iterator<Item = usize>,
        happened: &mut Vec<Happened>,
    ) {
        let (starts, mut then) = self.reservation(first);
        for index in others.take(LOOK_BEHIND) {
            let spec = &self.trace[index].spec;
            let ends_before = self.now + self.takes(index) <= starts;
            let both = (!ends_before).then_some(&then);
            match self.free.place(spec, 0, both) {
                Some(placement) => {
                    if !ends_before {
                        then.take(&placement);
                    }
                    self.start(index, placement, happened);
                }
                None => self.waiting.push(index),
            }
        }
    }

    /// When a job can start if no other one starts before, and what is free then beside it.
    fn reservation(&self, index: usize) -> (Millis, Free) {
        let mut free = self.free.clone();
        let mut ends = self.running.iter().peekable();
        while let Some((&(at, _), placement)) = ends.next() {
            free.give(placement);
            if ends.peek().is_some_and(|((next, _), _)| *next == at) {
                continue;
            }
            if let Some(placement) = free.place(&self.trace[index].spec, 0, None) {
                free.take(&placement);
                return (at, free);
            }
        }
        unreachable!("a job fits into an empty pool, or it is refused")
    }

    fn start(&mut self, index: usize, placement: Placement, happened: &mut Vec<Happened>) {
        self.free.take(&placement);
        self.usage.count(index, &placement, 1.0);
        happened.push(Happened::Started { id: number(index), devices: placement.amounts().devices });
        self.running.insert((self.now + self.takes(index), index), placement);
    }

    fn takes(&self, index: usize) -> Millis {
        let costs = &self.settings.costs;
        costs.start + self.trace[index].spec.takes.unwrap_or(costs.unknown)
    }

    fn priority(&self, index: usize, factors: &[f64]) -> f64 {
        let age = (self.now - self.trace[index].at).min(MAX_AGE) as f64 / MAX_AGE as f64;
        AGE_WEIGHT * age + FAIR_SHARE_WEIGHT * self.usage.projects[index].map_or(0.0, |node| factors[node])
    }
}

/// What each node of the tree uses and has used.
struct Usage {
    tree: Tree,
    half_life: Millis,
    /// The project of each job.
    projects: Vec<Option<usize>>,
    /// Its part of what its siblings were promised.
    parts: Vec<f64>,
    /// Devices that its jobs have.
    has: Vec<f64>,
    /// The same, over the past, which counts less and less.
    decayed: Vec<f64>,
}

impl Usage {
    fn new(pool: &Pool, trace: &[Arrival]) -> Self {
        let tree = pool.tree().clone();
        let count = tree.nodes.len();
        let numbers: BTreeMap<&str, usize> = tree.projects().collect();
        let projects = trace.iter().map(|a| numbers.get(a.spec.project.as_str()).copied()).collect();
        let parts = parts(&tree);
        let half_life = pool.policy().usage.half_life;
        Usage { projects, parts, half_life, has: vec![0.0; count], decayed: vec![0.0; count], tree }
    }

    fn count(&mut self, index: usize, placement: &Placement, sign: f64) {
        let has = sign * Resource::Devices.units(placement.amounts().devices);
        let Some(project) = self.projects[index] else { return };
        for node in self.tree.path(project) {
            self.has[node] += has;
        }
    }

    fn pass_time(&mut self, passed: Millis) {
        let stays = (-(passed as f64) / self.half_life as f64).exp2();
        for (decayed, has) in self.decayed.iter_mut().zip(&self.has) {
            *decayed = *decayed * stays + has * (1.0 - stays);
        }
    }

    /// The fair-share factor of each node of the tree, 0 to 1.
    fn factors(&self) -> Vec<f64> {
        let all: f64 = self.tree.tops.iter().map(|&node| self.decayed[node]).sum();
        let count = self.tree.nodes.len();
        let (mut effective, mut shares, mut factors) = (vec![0.0; count], vec![0.0; count], vec![0.0; count]);
        // A parent stands before its children.
        for node in 0..count {
            let used = if all > 0.0 { self.decayed[node] / all } else { 0.0 };
            (effective[node], shares[node]) = match self.tree.nodes[node].parent {
                // What siblings used counts in part.
                Some(above) => {
                    (used + (effective[above] - used) * self.parts[node], shares[above] * self.parts[node])
                }
                None => (used, self.parts[node]),
            };
            factors[node] = if shares[node] > 0.0 { (-effective[node] / shares[node]).exp2() } else { 0.0 };
        }
        factors
    }
}

/// The part of each node of the tree of what it and its siblings are promised: by their quotas of devices, or
/// by their weights if no quota of theirs says a number above zero.
fn parts(tree: &Tree) -> Vec<f64> {
    let mut parts = vec![0.0; tree.nodes.len()];
    for siblings in tree.children.iter().chain([&tree.tops]) {
        let quota = |node: usize| tree.nodes[node].quota.devices.unwrap_or(0) as f64;
        let by_quota = siblings.iter().any(|&node| quota(node) > 0.0);
        let says = |node: usize| if by_quota { quota(node) } else { tree.nodes[node].weight };
        let sum: f64 = siblings.iter().map(|&node| says(node)).sum();
        for &node in siblings {
            parts[node] = if sum > 0.0 { says(node) / sum } else { 1.0 / siblings.len() as f64 };
        }
    }
    parts
}
