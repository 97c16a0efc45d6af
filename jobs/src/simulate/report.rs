//! What a simulation comes to: for each job, for each project, and in all.

use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::amounts::{Amounts, Resource, WHOLE};
use crate::job::{JobId, Outcome, StopReason};
use crate::policy::Tree;
use crate::share::divide_tree;

use super::world::Happened;
use super::{Arrival, number};

/// Work below this does not make a job's slowdown bigger, in milliseconds.
const SHORT: Millis = 10_000;

/// What became of a job. Times count from the beginning of the trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number; its place in the trace, from 1.
    pub id: JobId,
    /// What people call it.
    pub name: String,
    /// The project that it belongs to.
    pub project: String,
    /// Thousandths of a device that it asks for at least.
    pub devices: u64,
    /// Its work at that size, in milliseconds.
    pub work: Option<Millis>,
    /// When it was submitted.
    pub submitted: Millis,
    /// When it started first.
    pub start: Option<Millis>,
    /// When it ended.
    pub end: Option<Millis>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it was not taken.
    pub refused: Option<String>,
    /// How often it was stopped so that another job got its place.
    pub evictions: u32,
    /// How often it was stopped to go on on another machine.
    pub moves: u32,
    /// How often it was stopped to go on with more or less.
    pub resizes: u32,
    /// Milliseconds that it ran without bringing its work forward: saving, starting again, computing what was
    /// lost.
    pub lost: Millis,
    /// Milliseconds without processes, from its submission to its end, those after an eviction included.
    pub waited: Millis,
}

/// A distribution in a few numbers; percentiles are by nearest rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// Half have at most this.
    pub median: f64,
    /// Nine of ten have at most this.
    pub p90: f64,
    /// 99 of a hundred have at most this.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these values; zeros if there are none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Spread {
        if values.is_empty() {
            return Spread::default();
        }
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let rank = |percent: usize| values[(count * percent).div_ceil(100).max(1) - 1];
        let mean = values.iter().sum::<f64>() / count as f64;
        Spread { mean, median: rank(50), p90: rank(90), p99: rank(99), max: values[count - 1] }
    }
}

/// What became of many jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Jobs of the trace.
    pub jobs: usize,
    /// Jobs whose work was done.
    pub done: usize,
    /// Jobs that failed, as often as they may.
    pub failed: usize,
    /// Jobs that were not taken.
    pub refused: usize,
    /// Jobs that had not ended when the simulation did.
    pub unfinished: usize,
    /// How long those that ended were without processes, in seconds.
    pub wait_seconds: Spread,
    /// The mean over those that were done: from submission to end, as many times as long as the work, which
    /// counts as ten seconds at least; never below one (Feitelson and Rudolph, *Metrics and Benchmarking for
    /// Parallel Job Scheduling*, 1998).
    pub bounded_slowdown: f64,
    /// Devices times hours that jobs had.
    pub device_hours: f64,
    /// Stops for other jobs.
    pub evictions: u64,
    /// Stops to go on on another machine.
    pub moves: u64,
    /// Stops to go on with more or less.
    pub resizes: u64,
    /// Seconds of jobs that did not bring work forward.
    pub lost_seconds: f64,
    /// The same times devices, in hours.
    pub lost_device_hours: f64,
}

/// What became of a project's jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectFigures {
    /// The project.
    pub project: String,
    /// Devices that are guaranteed to it; `None` is all of them, or that devices are not divided.
    pub quota: Option<f64>,
    /// What became of its jobs.
    #[serde(flatten)]
    pub figures: Figures,
}

/// What a simulation comes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// All jobs.
    pub all: Figures,
    /// Devices of the pool.
    pub devices: f64,
    /// From the first submission to the last end, in seconds.
    pub makespan_seconds: f64,
    /// The part of all devices, over the makespan, that jobs had.
    pub utilization: f64,
    /// The same without what did not bring work forward.
    pub useful: f64,
    /// Jain's index of fairness, 1 for equal and 1/n for one of n having all (Jain, Chiu and Hawe,
    /// DEC-TR-301, 1984): over the projects that have jobs, of the devices that they have divided by their
    /// fair share of the moment, which is what [`crate::share`] gives without past use; its mean over the
    /// time in which a job waits. `None` if none ever did.
    pub fairness: Option<f64>,
    /// Moments at which something was decided.
    pub decisions: u64,
    /// Each project that has jobs in the trace.
    pub projects: Vec<ProjectFigures>,
    /// Each job, in the order of the trace.
    pub jobs: Vec<Record>,
}

/// Watches a simulation.
pub(super) struct Meter {
    tree: Tree,
    devices: f64,
    now: Millis,
    records: Vec<Record>,
    /// Of each job: its project's number, if there is such a project.
    projects: Vec<Option<usize>>,
    /// Of each job: devices that it asks for at most.
    wants: Vec<f64>,
    /// Of each job: since when it waits or runs, and on how many thousandths of devices; none while it waits.
    states: Vec<(Millis, u64)>,
    waiting: usize,
    /// Of each node of the tree, in devices: what its jobs have, and what they have and want.
    allocated: Vec<f64>,
    requested: Vec<f64>,
    /// Of each node of the tree: devices times milliseconds.
    used: Vec<f64>,
    /// Of each node of the tree: the same, of what did not bring work forward.
    lost: Vec<f64>,
    /// The sum of the index times its duration, and all durations.
    fairness: (f64, f64),
    last_end: Millis,
}

impl Meter {
    pub(super) fn new(tree: &Tree, capacity: Amounts, trace: &[Arrival]) -> Self {
        let numbers: std::collections::BTreeMap<&str, usize> = tree.projects().collect();
        let record = |(index, arrival): (usize, &Arrival)| Record {
            id: number(index),
            name: arrival.spec.name.clone(),
            project: arrival.spec.project.clone(),
            devices: arrival.spec.total(0).devices,
            work: arrival.spec.takes,
            submitted: arrival.at,
            start: None,
            end: None,
            outcome: None,
            refused: None,
            evictions: 0,
            moves: 0,
            resizes: 0,
            lost: 0,
            waited: 0,
        };
        let most =
            |arrival: &Arrival| Resource::Devices.units(arrival.spec.total(arrival.spec.steps()).devices);
        let count = tree.nodes.len();
        Meter {
            tree: tree.clone(),
            devices: Resource::Devices.units(capacity.devices),
            now: trace.first().map_or(0, |arrival| arrival.at),
            records: trace.iter().enumerate().map(record).collect(),
            projects: trace.iter().map(|a| numbers.get(a.spec.project.as_str()).copied()).collect(),
            wants: trace.iter().map(most).collect(),
            states: trace.iter().map(|arrival| (arrival.at, 0)).collect(),
            waiting: 0,
            allocated: vec![0.0; count],
            requested: vec![0.0; count],
            used: vec![0.0; count],
            lost: vec![0.0; count],
            fairness: (0.0, 0.0),
            last_end: 0,
        }
    }

    /// Counts the time up to `now`, in which everything was as it stands.
    pub(super) fn pass_time(&mut self, now: Millis) {
        let passed = now.saturating_sub(self.now) as f64;
        self.now = self.now.max(now);
        if passed == 0.0 {
            return;
        }
        for (used, has) in self.used.iter_mut().zip(&self.allocated) {
            *used += has * passed;
        }
        if self.waiting > 0
            && let Some(index) = self.fairness_now()
        {
            self.fairness.0 += index * passed;
            self.fairness.1 += passed;
        }
    }

    /// Jain's index over the projects that have jobs.
    fn fairness_now(&self) -> Option<f64> {
        let wants = |node: usize| self.requested[node];
        let shares = divide_tree(&self.tree, Resource::Devices, self.devices, 0.0, wants, |_| 0.0);
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for (node, share) in shares.into_iter().enumerate() {
            if self.tree.nodes[node].is_project && share > 0.0 {
                let part = self.allocated[node] / share;
                count += 1.0;
                sum += part;
                squares += part * part;
            }
        }
        (squares > 0.0).then(|| sum * sum / (count * squares))
    }

    pub(super) fn take(&mut self, happened: Happened) {
        let now = self.now;
        match happened {
            Happened::Submitted { id } => {
                let index = self.index(id);
                self.waiting += 1;
                self.states[index] = (now, 0);
                self.add(index, |meter, node| meter.requested[node] += meter.wants[index]);
            }
            Happened::Refused { id, why } => {
                let index = self.index(id);
                self.records[index].refused = Some(why);
            }
            Happened::Started { id, devices } => {
                let index = self.index(id);
                let (since, _) = std::mem::replace(&mut self.states[index], (now, devices));
                let record = &mut self.records[index];
                record.start.get_or_insert(now);
                record.waited += now - since;
                self.waiting -= 1;
                let has = Resource::Devices.units(devices);
                self.add(index, |meter, node| meter.allocated[node] += has);
            }
            Happened::Told { id, reason } => {
                let index = self.index(id);
                let record = &mut self.records[index];
                match reason {
                    StopReason::Preempted { .. } | StopReason::Reclaimed { .. } => record.evictions += 1,
                    StopReason::Moved { .. } => record.moves += 1,
                    StopReason::Resized { .. } => record.resizes += 1,
                    StopReason::Cancelled | StopReason::Held | StopReason::Broken => {}
                }
            }
            Happened::Left { id, wasted } => {
                let index = self.index(id);
                let (_, devices) = std::mem::replace(&mut self.states[index], (now, 0));
                self.records[index].lost += wasted;
                self.waiting += 1;
                let has = Resource::Devices.units(devices);
                self.add(index, |meter, node| {
                    meter.allocated[node] -= has;
                    meter.lost[node] += has * wasted as f64;
                });
            }
            Happened::Ended { id, outcome } => {
                let index = self.index(id);
                let (since, _) = self.states[index];
                let record = &mut self.records[index];
                record.waited += now - since;
                (record.end, record.outcome) = (Some(now), Some(outcome));
                self.waiting -= 1;
                self.last_end = now;
                self.add(index, |meter, node| meter.requested[node] -= meter.wants[index]);
            }
        }
    }

    fn index(&self, id: JobId) -> usize {
        usize::try_from(id.0 - 1).expect("it is a place in a list")
    }

    fn add(&mut self, index: usize, change: impl Fn(&mut Meter, usize)) {
        let mut next = self.projects[index];
        while let Some(node) = next {
            change(self, node);
            next = self.tree.nodes[node].parent;
        }
    }

    pub(super) fn report(self, decisions: u64) -> Report {
        let hours = |device_ms: f64| device_ms / 3_600_000.0;
        let mut by_project: std::collections::BTreeMap<usize, Vec<&Record>> = Default::default();
        for (record, project) in self.records.iter().zip(&self.projects) {
            if let Some(project) = project {
                by_project.entry(*project).or_default().push(record);
            }
        }
        let project = |(node, records): (usize, Vec<&Record>)| {
            let queue = &self.tree.nodes[node];
            let is_divided = self.tree.divided.contains(&Resource::Devices);
            let quota = queue.quota.devices.filter(|_| is_divided).map(|q| q as f64 / WHOLE as f64);
            let figures = figures(&records, hours(self.used[node]), hours(self.lost[node]));
            ProjectFigures { project: queue.name.clone(), quota, figures }
        };
        let sum = |of: &[f64]| self.tree.tops.iter().map(|&node| of[node]).sum::<f64>();
        let (used, lost) = (sum(&self.used), sum(&self.lost));
        let begin = self.records.first().map_or(0, |record| record.submitted);
        let makespan = self.last_end.saturating_sub(begin) as f64;
        let part = |of: f64| if makespan > 0.0 { of / (self.devices * makespan) } else { 0.0 };
        let (fair, while_waiting) = self.fairness;
        Report {
            all: figures(&self.records.iter().collect::<Vec<_>>(), hours(used), hours(lost)),
            devices: self.devices,
            makespan_seconds: makespan / 1000.0,
            utilization: part(used),
            useful: part(used - lost),
            fairness: (while_waiting > 0.0).then(|| fair / while_waiting),
            decisions,
            projects: by_project.into_iter().map(project).collect(),
            jobs: self.records,
        }
    }
}

fn figures(records: &[&Record], device_hours: f64, lost_device_hours: f64) -> Figures {
    let seconds = |ms: Millis| ms as f64 / 1000.0;
    let is_done = |record: &&&Record| record.outcome == Some(Outcome::Done);
    let ended = records.iter().filter(|record| record.end.is_some());
    let slowdown = |record: &&Record| {
        let took = record.end.unwrap_or(0) - record.submitted;
        (took as f64 / record.work.unwrap_or(took).max(SHORT) as f64).max(1.0)
    };
    let done: Vec<f64> = records.iter().filter(is_done).map(slowdown).collect();
    let refused = records.iter().filter(|record| record.refused.is_some()).count();
    let ended: Vec<f64> = ended.map(|record| seconds(record.waited)).collect();
    Figures {
        jobs: records.len(),
        done: done.len(),
        failed: ended.len() - done.len(),
        refused,
        unfinished: records.len() - refused - ended.len(),
        wait_seconds: Spread::of(ended),
        bounded_slowdown: Spread::of(done).mean,
        device_hours,
        evictions: records.iter().map(|record| u64::from(record.evictions)).sum(),
        moves: records.iter().map(|record| u64::from(record.moves)).sum(),
        resizes: records.iter().map(|record| u64::from(record.resizes)).sum(),
        lost_seconds: records.iter().map(|record| seconds(record.lost)).sum(),
        lost_device_hours,
    }
}
