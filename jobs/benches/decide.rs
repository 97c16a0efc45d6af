//! How much of a processor's time one decision takes: `Pool::step` with one submission, and with one exit.
//!
//! `cargo bench -p luthier-jobs --bench decide`. A thousand projects in fifty departments, on machines of
//! eight devices. Of the jobs, about half have a place and half wait. `saturated`: every project has its
//! share, and nobody gives anything up. `reclaim`: one project comes back to its quota, which others have on
//! loan. `mixed`: parts of devices, machines, gangs over several machines, jobs that grow, and jobs that are
//! never stopped. Times are those of the thread, so that what else a machine does counts little.

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use jobs::amounts::WHOLE;
use jobs::policy::{Queue, Said, Share};
use jobs::simulate::{empty_pool, machines};
use jobs::{Action, Class, Event, Exit, JobId, Launch, Millis, Phase, Policy, Pool, Range, Spec};
use rustix::time::{ClockId, clock_gettime};

const PROJECTS: u64 = 1000;
const DEPARTMENTS: u64 = 50;
const PER_NODE: u64 = 8;
const NOW: Millis = 3_600_000;

fn devices(amount: u64) -> Share {
    Share { devices: Some(Said::Amount(amount)), ..Share::default() }
}

/// Equal quotas of all devices.
fn policy(devices_in_all: u64) -> Policy {
    let part = devices_in_all * WHOLE / PROJECTS;
    let department = |n| Queue {
        name: format!("d{n}"),
        quota: devices(part * PROJECTS / DEPARTMENTS),
        ..Queue::default()
    };
    let project = |n| Queue {
        name: format!("p{n}"),
        department: Some(format!("d{}", n % DEPARTMENTS)),
        quota: devices(part),
        ..Queue::default()
    };
    Policy {
        departments: (0..DEPARTMENTS).map(department).collect(),
        projects: (0..PROJECTS).map(project).collect(),
        ..Policy::default()
    }
}

fn spec(project: u64, class: Class, members: u32, least: u64, most: u64) -> Spec {
    Spec {
        name: "job".into(),
        project: format!("p{project}"),
        user: "somebody".into(),
        class,
        priority: class.priority(),
        members,
        devices: Range { min: least, max: most },
        cpus: Range::exactly(1),
        memory: 1 << 30,
        takes: Some(NOW),
        launch: Launch::default(),
    }
}

/// The `n`th job of a project: always one device, or of mixed shapes.
fn job(project: u64, n: u64, mixed: bool) -> Spec {
    if !mixed {
        return spec(project, Class::Train, 1, WHOLE, WHOLE);
    }
    match (project * 7 + n) % 10 {
        0 => spec(project, Class::Train, 1, WHOLE / 4, WHOLE / 4),
        1 => spec(project, Class::BuildPreemptible, 1, WHOLE / 2, WHOLE / 2),
        2 => spec(project, Class::Train, 1, WHOLE, 4 * WHOLE),
        3 => spec(project, Class::Train, 1, 2 * WHOLE, 2 * WHOLE),
        4 => spec(project, Class::Train, 2, 4 * WHOLE, 4 * WHOLE),
        5 => spec(project, Class::Train, 1, 8 * WHOLE, 8 * WHOLE),
        6 => spec(project, Class::Build, 1, WHOLE / 4, WHOLE / 4),
        _ => spec(project, Class::Train, 1, WHOLE, WHOLE),
    }
}

/// A pool with `count` jobs of the projects from `first` on that has nothing more to do.
fn pool(count: u64, first: u64, mixed: bool) -> Pool {
    let machine_count = (count / 2).div_ceil(PER_NODE) * if mixed { 2 } else { 1 };
    let nodes = machines(machine_count as usize, PER_NODE as u32);
    let mut pool = empty_pool(policy(machine_count * PER_NODE), nodes).unwrap();
    for n in 0..count {
        let project = first + n % (PROJECTS - first);
        let spec = job(project, n / PROJECTS, mixed);
        // What is never stopped does not fit into a small quota.
        let _ = pool.accept(Event::Submitted { id: JobId(n + 1), spec }, 0);
    }
    pool.decide(0);
    settle(&mut pool, NOW);
    pool
}

/// Decides until nothing is left to be done; who is told to stop has saved at once.
fn settle(pool: &mut Pool, now: Millis) {
    for _ in 0..1000 {
        let actions = pool.decide(now);
        if actions.is_empty() {
            return;
        }
        for action in actions {
            if let Action::Stop { id, attempt, .. } = action {
                pool.accept(Event::Exited { id, attempt, exit: Exit::Saved }, now).unwrap();
            }
        }
    }
}

fn running(pool: &Pool) -> (JobId, u32) {
    let runs = pool.jobs().iter().filter(|(_, job)| matches!(job.phase, Phase::Running { .. }));
    let runs: Vec<_> = runs.collect();
    let (&id, job) = runs[runs.len() / 2];
    (id, job.attempt)
}

/// The time that this thread has had of a processor.
struct ThreadTime;

impl Measurement for ThreadTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    fn end(&self, begin: Duration) -> Duration {
        self.start() - begin
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn decide(c: &mut Criterion<ThreadTime>) {
    for (name, first, mixed) in [("saturated", 0, false), ("reclaim", 1, false), ("mixed", 0, true)] {
        let mut group = c.benchmark_group(name);
        group.sample_size(10).warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(3));
        for count in [1_000, 10_000, 100_000] {
            let pool = pool(count, first, mixed);
            let submitted = Event::Submitted { id: JobId(count + 1), spec: job(0, 0, false) };
            let (id, attempt) = running(&pool);
            let exited = Event::Exited { id, attempt, exit: Exit::Done };
            for (what, event) in [("submission", submitted), ("exit", exited)] {
                group.bench_function(format!("{what}/{count}"), |b| {
                    b.iter_batched_ref(
                        || (pool.clone(), event.clone()),
                        |(pool, event)| pool.step(event.clone(), NOW + 1).unwrap(),
                        BatchSize::PerIteration,
                    );
                });
            }
        }
        group.finish();
    }
}

criterion_group!(name = benches; config = Criterion::default().with_measurement(ThreadTime); targets = decide);
criterion_main!(benches);
