//! Simulations against what comes out on paper, and forecasts against what then happens.

use std::collections::{BTreeMap, BTreeSet};

use jobs::amounts::WHOLE;
use jobs::policy::{Queue, Said, Share};
use jobs::simulate::{
    Arrival, Costs, Failure, Limits, Record, Report, Rule, Settings, baseline, empty_pool, forecast,
    machines, simulate,
};
use jobs::{
    Action, Class, Event, Exit, JobId, Launch, Millis, Outcome, Phase, Policy, Pool, Range, Spec, StopReason,
};
use proptest::prelude::*;

const SECOND: Millis = 1000;

/// Jobs begin at once, and save in ten seconds.
fn settings() -> Settings {
    let costs = Costs { start: 0, save: 10 * SECOND, save_every: 600 * SECOND, unknown: 3600 * SECOND };
    Settings { costs, ..Settings::default() }
}

/// A pool of one machine; each project with its quota of devices.
fn pool(devices: u32, quotas: &[(&str, u64)]) -> Pool {
    let project = |&(name, quota): &(&str, u64)| Queue {
        name: name.into(),
        quota: Share { devices: Some(Said::Amount(quota * WHOLE)), ..Share::default() },
        ..Queue::default()
    };
    let policy = Policy { projects: quotas.iter().map(project).collect(), ..Policy::default() };
    empty_pool(policy, machines(1, devices)).unwrap()
}

fn job(at: u64, project: &str, devices: u64, takes: u64) -> Arrival {
    let spec = Spec {
        name: format!("{project}-{at}"),
        project: project.into(),
        user: "somebody".into(),
        class: Class::Train,
        priority: Class::Train.priority(),
        members: 1,
        devices: Range::exactly(devices * WHOLE),
        cpus: Range::exactly(1),
        memory: 0,
        takes: Some(takes * SECOND),
        launch: Launch::default(),
    };
    Arrival { at: at * SECOND, spec }
}

/// First starts and ends, in seconds.
fn times(report: &Report) -> Vec<(u64, u64)> {
    let times = |record: &Record| (record.start.unwrap() / SECOND, record.end.unwrap() / SECOND);
    report.jobs.iter().map(times).collect()
}

#[test]
fn idle_quota_is_lent_and_taken_back() {
    let mut trace: Vec<Arrival> = (0..4).map(|_| job(0, "a", 1, 1000)).collect();
    trace.extend([job(100, "b", 1, 1000), job(100, "b", 1, 1000)]);
    let report = simulate(pool(4, &[("a", 2), ("b", 2)]), &trace, &settings());
    // At 100 the two youngest of a are told to stop, and have saved at 110. They go on when the others of a
    // are done.
    let expected = vec![(0, 1000), (0, 1000), (0, 1900), (0, 1900), (110, 1110), (110, 1110)];
    assert_eq!(times(&report), expected);
    for (n, record) in report.jobs.iter().enumerate() {
        let evicted = n == 2 || n == 3;
        assert_eq!(record.evictions, u32::from(evicted), "job {n}");
        assert_eq!(record.lost, if evicted { 10 * SECOND } else { 0 }, "job {n}");
        let waited = [0, 0, 890, 890, 10, 10][n];
        assert_eq!(record.waited, waited * SECOND, "job {n}");
    }
    let all = &report.all;
    assert_eq!((all.jobs, all.done, all.evictions), (6, 6, 2));
    assert_eq!(all.lost_seconds, 20.0);
    assert_eq!(report.makespan_seconds, 1900.0);
    assert!((report.utilization - 6020.0 / 7600.0).abs() < 1e-12, "{}", report.utilization);
    assert!((report.useful - 6000.0 / 7600.0).abs() < 1e-12, "{}", report.useful);
    assert!((all.device_hours - 6020.0 / 3600.0).abs() < 1e-9);
    let wait = &all.wait_seconds;
    assert_eq!((wait.mean, wait.median, wait.p90, wait.max), (300.0, 10.0, 890.0, 890.0));
    let slowdown = (2.0 + 2.0 * 1.9 + 2.0 * 1.01) / 6.0;
    assert!((all.bounded_slowdown - slowdown).abs() < 1e-12, "{}", all.bounded_slowdown);
    // Jobs wait from 100 to 1000. In the first ten seconds a has four of its two and b none of its two: one
    // of two has all. Then each has what is its own.
    let fairness = (10.0 * 0.5 + 890.0) / 900.0;
    assert!((report.fairness.unwrap() - fairness).abs() < 1e-12, "{:?}", report.fairness);
    let b = &report.projects[1];
    assert_eq!((b.project.as_str(), b.quota, b.figures.jobs), ("b", Some(2.0), 2));
}

#[test]
fn starting_again_and_saving_count_as_lost() {
    let mut settings = settings();
    settings.costs.start = 5 * SECOND;
    let trace = [job(0, "a", 2, 100), job(50, "b", 2, 100)];
    let report = simulate(pool(2, &[("a", 0), ("b", 2)]), &trace, &settings);
    // a computes from 5 to 50, saves until 60, begins again at 165 and computes 55 seconds from 170.
    assert_eq!(times(&report), vec![(0, 225), (60, 165)]);
    assert_eq!(report.jobs[0].lost, 15 * SECOND);
    assert_eq!(report.jobs[1].lost, 0);
}

#[test]
fn whoever_saves_for_longer_than_the_grace_loses_what_it_had_not_saved() {
    let mut settings = settings();
    settings.costs.save = 700 * SECOND; // The grace is 600 s.
    settings.costs.save_every = 40 * SECOND;
    let trace = [job(0, "a", 2, 1000), job(50, "b", 2, 100)];
    let report = simulate(pool(2, &[("a", 0), ("b", 2)]), &trace, &settings);
    // a has saved at 40 by itself, is told at 50 and killed at 650; 960 seconds are left.
    assert_eq!(times(&report), vec![(0, 750 + 960), (650, 750)]);
    assert_eq!(report.jobs[0].lost, 610 * SECOND);
}

#[test]
fn a_failed_machine_costs_what_was_not_saved() {
    let policy = pool(1, &[("a", 2)]).policy().clone();
    let pool = empty_pool(policy, machines(2, 1)).unwrap();
    let failure = Failure { at: 700 * SECOND, node: 0, lasts: 100 * SECOND };
    let settings = Settings { failures: vec![failure], ..settings() };
    let report = simulate(pool, &[job(0, "a", 1, 1000)], &settings);
    // It runs on node 0, has saved at 600, and starts on node 1 ten seconds after the failure.
    assert_eq!(times(&report), vec![(0, 1110)]);
    assert_eq!(report.jobs[0].lost, 100 * SECOND);
    assert_eq!(report.jobs[0].evictions, 0);
}

#[test]
fn an_elastic_job_runs_as_fast_as_it_is_big() {
    let mut big = job(0, "a", 1, 1000);
    big.spec.devices.max = 4 * WHOLE;
    let report = simulate(pool(4, &[("a", 4)]), &[big], &settings());
    assert_eq!(times(&report), vec![(0, 250)]);
    assert_eq!(report.utilization, 1.0);
}

#[test]
fn first_come_first_served_waits_for_the_first() {
    let pool = pool(4, &[("a", 4)]);
    let trace = [job(0, "a", 3, 100), job(1, "a", 4, 100), job(2, "a", 1, 50), job(3, "a", 1, 200)];
    let fifo = baseline(&pool, &trace, Rule::Fifo, &settings());
    assert_eq!(times(&fifo), vec![(0, 100), (100, 200), (200, 250), (200, 400)]);
    // The third ends before the second can start; the fourth would not.
    let easy = baseline(&pool, &trace, Rule::FifoBackfill, &settings());
    assert_eq!(times(&easy), vec![(0, 100), (100, 200), (2, 52), (200, 400)]);
    assert_eq!(easy.jobs[1].waited, 99 * SECOND);
}

#[test]
fn backfilling_uses_what_the_first_does_not_need() {
    let pool = pool(4, &[("a", 4)]);
    // Of four devices, two are left beside the second job: the third may take one for as long as it likes.
    let trace = [job(0, "a", 3, 100), job(1, "a", 2, 100), job(2, "a", 1, 1000)];
    let easy = baseline(&pool, &trace, Rule::FifoBackfill, &settings());
    assert_eq!(times(&easy), vec![(0, 100), (100, 200), (2, 1002)]);
}

#[test]
fn fair_share_prefers_who_used_less() {
    let pool = pool(1, &[("a", 1), ("b", 0)]);
    // Equal shares: b has used nothing when the device is free, though it came later.
    let policy = Policy {
        projects: vec![
            Queue { name: "a".into(), ..Queue::default() },
            Queue { name: "b".into(), ..Queue::default() },
        ],
        ..pool.policy().clone()
    };
    let pool = empty_pool(policy, machines(1, 1)).unwrap();
    let trace = [job(0, "a", 1, 100), job(1, "a", 1, 100), job(2, "b", 1, 100)];
    let fair = baseline(&pool, &trace, Rule::FairShare, &settings());
    assert_eq!(times(&fair), vec![(0, 100), (200, 300), (100, 200)]);
    let fifo = baseline(&pool, &trace, Rule::Fifo, &settings());
    assert_eq!(times(&fifo), vec![(0, 100), (100, 200), (200, 300)]);
}

#[test]
fn what_can_never_start_is_refused_and_counted() {
    let trace = [job(0, "a", 5, 100), job(0, "nobody", 1, 100), job(0, "a", 1, 100)];
    let report = simulate(pool(4, &[("a", 4)]), &trace, &settings());
    assert_eq!((report.all.jobs, report.all.refused, report.all.done, report.all.unfinished), (3, 2, 1, 0));
    let why = report.jobs[0].refused.as_ref().unwrap();
    assert!(why.contains("5 devices") && why.contains("4 devices"), "{why}");
    let compared = baseline(&pool(4, &[("a", 4)]), &trace, Rule::Fifo, &settings());
    assert_eq!(compared.jobs[0].refused, report.jobs[0].refused);
}

#[test]
fn a_simulation_ends_after_as_many_decisions_as_it_may_make() {
    let trace: Vec<Arrival> = (0..10).map(|at| job(at, "a", 1, 100)).collect();
    let settings = Settings { decisions: 5, ..settings() };
    let report = simulate(pool(1, &[("a", 1)]), &trace, &settings);
    assert_eq!((report.decisions, report.all.unfinished), (5, 10));
}

/// Executors written apart from those of the crate: a job's processes end when its work is done, or ten
/// seconds after they are told to stop.
struct Executors {
    pool: Pool,
    ends: BTreeSet<(Millis, JobId)>,
    runs: BTreeMap<JobId, (u32, Millis, f64, Exit)>,
    left: BTreeMap<JobId, f64>,
    starts: BTreeMap<JobId, Vec<Millis>>,
    ended: BTreeMap<JobId, Millis>,
}

impl Executors {
    fn step(&mut self, event: Event, now: Millis) {
        let actions = self.pool.step(event, now).unwrap();
        self.act(actions, now);
    }

    fn act(&mut self, actions: Vec<Action>, now: Millis) {
        for action in actions {
            match action {
                Action::Start { id, attempt, placement } => {
                    let spec = &self.pool.jobs()[&id].spec;
                    let speed = spec.speed(placement.steps);
                    let left = *self.left.entry(id).or_insert(spec.takes.unwrap() as f64);
                    self.runs.insert(id, (attempt, now, speed, Exit::Done));
                    self.ends.insert((now + (left / speed).ceil() as Millis, id));
                    self.starts.entry(id).or_default().push(now);
                }
                Action::Stop { id, reason, .. } => {
                    assert_ne!(reason, StopReason::Broken);
                    let (attempt, since, speed, _) = self.runs[&id];
                    if self.ends.contains(&(now, id)) {
                        continue; // It is done at this moment.
                    }
                    self.ends.retain(|(_, other)| *other != id);
                    self.ends.insert((now + 10 * SECOND, id));
                    let left = self.left[&id] - ((now - since) as f64 * speed).floor();
                    self.left.insert(id, left.max(0.0));
                    self.runs.insert(id, (attempt, since, speed, Exit::Saved));
                }
                Action::Ended { id, outcome } => {
                    assert_eq!(outcome, Outcome::Done);
                    self.ended.insert(id, now);
                }
            }
        }
    }

    /// Lets everything happen up to a time.
    fn run_until(&mut self, until: Millis) {
        loop {
            let end = self.ends.first().map(|&(at, _)| at);
            let next = end.into_iter().chain(self.pool.wakes_at()).min();
            let Some(now) = next.filter(|&now| now <= until) else { return };
            while let Some(&(at, id)) = self.ends.first()
                && at == now
            {
                self.ends.pop_first();
                let (attempt, _, _, exit) = self.runs.remove(&id).unwrap();
                let left = self.left[&id] as Millis;
                let actions = self.pool.accept(Event::Exited { id, attempt, exit }, now).unwrap();
                self.act(actions, now);
                self.pool.accept(Event::Estimated { id, remaining: left }, now).unwrap();
            }
            let actions = self.pool.decide(now);
            self.act(actions, now);
        }
    }
}

/// A job of the property tests: project, devices at least and at most, members, priority, seconds.
type Small = (u8, u64, u64, u32, i32, u64);

fn small() -> impl Strategy<Value = Small> {
    (0..3u8, 1..4u64, 0..3u64, 1..3u32, 50..53i32, 1..5000u64)
}

fn arrival(at: u64, &(project, devices, more, members, priority, takes): &Small) -> Arrival {
    let mut arrival = job(at, ["a", "b", "c"][usize::from(project)], devices, takes);
    arrival.spec.devices.max += more * WHOLE;
    arrival.spec.members = members;
    arrival.spec.priority = priority;
    arrival
}

fn small_pool() -> Pool {
    let policy = pool(1, &[("a", 4), ("b", 3), ("c", 1)]).policy().clone();
    empty_pool(policy, machines(3, 4)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// After the last submission, what is expected is what happens, at whatever moment it is asked for.
    #[test]
    fn a_forecast_with_exact_estimates_comes_true(
        jobs in proptest::collection::vec((0..400u64, small()), 1..24),
        looks in proptest::collection::vec(0..20_000u64, 1..4),
    ) {
        let mut executors = Executors {
            pool: small_pool(),
            ends: BTreeSet::new(),
            runs: BTreeMap::new(),
            left: BTreeMap::new(),
            starts: BTreeMap::new(),
            ended: BTreeMap::new(),
        };
        let mut jobs = jobs;
        jobs.sort_by_key(|&(at, _)| at);
        for (index, (at, small)) in jobs.iter().enumerate() {
            executors.run_until(at * SECOND);
            let Arrival { spec, .. } = arrival(*at, small);
            executors.step(Event::Submitted { id: JobId(index as u64 + 1), spec }, at * SECOND);
        }
        let mut looks: Vec<Millis> = looks.iter().map(|at| (400 + at) * SECOND).collect();
        looks.sort_unstable();
        looks.insert(0, executors.pool.at());
        let limits = Limits { costs: settings().costs, ..Limits::default() };
        let mut forecasts = Vec::new();
        for at in looks {
            executors.run_until(at);
            let starts = executors.starts.clone();
            let now = executors.pool.at();
            forecasts.push((now, starts, forecast(&executors.pool, now, &limits), executors.pool.clone()));
        }
        executors.run_until(Millis::MAX);
        for (at, starts, expected, pool) in forecasts {
            prop_assert_eq!(expected.len(), pool.jobs().len());
            for (id, expected) in expected {
                prop_assert_eq!(expected.end, Some(executors.ended[&id]), "job {} at {}", id, at);
                let before = starts.get(&id).map_or(0, Vec::len);
                let running = matches!(pool.jobs()[&id].phase, Phase::Running { .. });
                let start = executors.starts[&id][if running { before - 1 } else { before }];
                prop_assert_eq!(expected.start, start, "job {} at {}", id, at);
            }
        }
    }

    /// Same trace, same result; all work is done, and no job takes less time than its work.
    #[test]
    fn a_simulation_repeats_itself(
        jobs in proptest::collection::vec((0..4000u64, small()), 1..60),
        failures in proptest::collection::vec((0..9000u64, 0..3usize, 1..900u64), 0..3),
    ) {
        let mut trace: Vec<Arrival> = jobs.iter().map(|(at, small)| arrival(*at, small)).collect();
        trace.sort_by_key(|arrival| arrival.at);
        let failure = |&(at, node, lasts): &(u64, usize, u64)| {
            Failure { at: at * SECOND, node, lasts: lasts * SECOND }
        };
        let settings = Settings { failures: failures.iter().map(failure).collect(), ..settings() };
        let report = simulate(small_pool(), &trace, &settings);
        prop_assert_eq!(&report, &simulate(small_pool(), &trace, &settings));
        prop_assert_eq!(report.all.done, trace.len());
        for (record, arrival) in report.jobs.iter().zip(&trace) {
            let (start, end) = (record.start.unwrap(), record.end.unwrap());
            let fastest = arrival.spec.takes.unwrap() as f64 / arrival.spec.speed(arrival.spec.steps());
            prop_assert!((end - start) as f64 >= fastest.floor());
            prop_assert_eq!(record.submitted, arrival.at);
            prop_assert!(record.waited + record.lost <= end - arrival.at);
        }
        for rule in [Rule::Fifo, Rule::FifoBackfill, Rule::FairShare] {
            let report = baseline(&small_pool(), &trace, rule, &settings);
            prop_assert_eq!(report.all.done, trace.len());
            prop_assert!(report.utilization <= 1.0 + 1e-9);
        }
    }
}
