//! Histories from seeds: random policies, machines and jobs, executors that fail, machines that go and come
//! back, the scheduler's state written and read again in between. In every state the invariants hold, and
//! every job ends.

use std::collections::{BTreeMap, BTreeSet};

use jobs::amounts::{RESOURCES, WHOLE};
use jobs::policy::{Queue, Said, Share};
use jobs::{
    Action, Amounts, Class, Event, Exit, JobId, Launch, Millis, Node, Outcome, Phase, Policy, Pool, Range,
    Refused, Spec, StopReason,
};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// A pool with executors that do what a seed says.
struct World {
    pool: Pool,
    rng: Pcg64,
    now: Millis,
    /// What will happen, by time; of one time in order of the number.
    agenda: BTreeMap<(Millis, u64), Event>,
    number: u64,
    /// Processes that run: of each job which start, and what of its work is left.
    processes: BTreeMap<JobId, Process>,
    ended: BTreeMap<JobId, Outcome>,
    submitted: BTreeSet<JobId>,
    faulty: bool,
    evictions: u64,
}

struct Process {
    attempt: u32,
    since: Millis,
    left: Millis,
    exit: (Millis, u64),
}

impl World {
    fn new(policy: Policy, seed: u64, faulty: bool) -> Self {
        World {
            pool: Pool::new(policy, 0).unwrap(),
            rng: Pcg64::seed_from_u64(seed),
            now: 0,
            agenda: BTreeMap::new(),
            number: 0,
            processes: BTreeMap::new(),
            ended: BTreeMap::new(),
            submitted: BTreeSet::new(),
            faulty,
            evictions: 0,
        }
    }

    fn at(&mut self, time: Millis, event: Event) -> (Millis, u64) {
        self.number += 1;
        self.agenda.insert((time, self.number), event);
        (time, self.number)
    }

    fn step(&mut self, event: Event) {
        let before = self.pool.clone();
        let submitted = match &event {
            Event::Submitted { id, .. } => Some(*id),
            _ => None,
        };
        // What happened is computed again from a copy that was written and read: it comes to the same.
        let mut copy: Pool = serde_json::from_str(&serde_json::to_string(&self.pool).unwrap()).unwrap();
        let result = self.pool.step(event.clone(), self.now);
        assert_eq!(copy.step(event, self.now), result);
        assert_eq!(copy, self.pool, "the same state follows from the same history");
        match result {
            Ok(actions) => {
                if let Some(id) = submitted {
                    self.submitted.insert(id);
                }
                self.check_reclaims(&actions, &before);
                for action in actions {
                    self.act(action, &before);
                }
            }
            Err(_) => assert_eq!(self.pool, before, "what is refused changes nothing"),
        }
        self.check();
    }

    /// Whoever has to give jobs back has more than its quota with them.
    fn check_reclaims(&self, actions: &[Action], before: &Pool) {
        let mut has: BTreeMap<&str, Amounts> = BTreeMap::new();
        for job in self.pool.jobs().values() {
            let placement = match &job.phase {
                Phase::Promised { placement, .. } | Phase::Running { placement, .. } => Some(placement),
                Phase::Stopping { next, .. } => next.as_ref(),
                _ => None,
            };
            let sum = has.entry(&job.spec.project).or_default();
            placement.iter().for_each(|placement| sum.add(&placement.amounts()));
        }
        let mut robbed = BTreeSet::new();
        for action in actions {
            let Action::Stop { id, reason: StopReason::Reclaimed { .. }, .. } = action else { continue };
            let job = &before.jobs()[id];
            has.get_mut(job.spec.project.as_str()).unwrap().add(&job.placement().unwrap().amounts());
            robbed.insert(job.spec.project.as_str());
        }
        let tree = self.pool.tree();
        for project in robbed {
            let quota = &tree.nodes[tree.project(project).unwrap()].quota;
            assert!(quota.passed_by(&has[project]).is_some(), "{project} is in its quota and is robbed");
        }
    }

    fn act(&mut self, action: Action, before: &Pool) {
        match action {
            Action::Start { id, attempt, .. } => self.start(id, attempt),
            Action::Stop { id, attempt, reason } => {
                let job = &before.jobs()[&id];
                let is_for_others = matches!(
                    reason,
                    StopReason::Preempted { .. } | StopReason::Reclaimed { .. } | StopReason::Moved { .. }
                );
                if is_for_others || matches!(reason, StopReason::Resized { by: Some(_), .. }) {
                    assert!(job.spec.class.is_preemptible(), "guaranteed work is stopped: {reason:?}");
                    self.evictions += 1;
                }
                self.stop(id, attempt);
            }
            Action::Ended { id, outcome } => {
                assert!(self.ended.insert(id, outcome).is_none(), "job {id} ends twice");
            }
        }
    }

    fn start(&mut self, id: JobId, attempt: u32) {
        let job = &self.pool.jobs()[&id];
        let Phase::Running { placement, .. } = &job.phase else { panic!("job {id} starts in no place") };
        let left = job.remaining.unwrap();
        let takes = (left as f64 / job.spec.speed(placement.steps)) as u64 + 1;
        let exit = match self.rng.random_range(0..100) {
            0..3 if self.faulty => (takes / 2, Exit::Failed(1)),
            3..5 if self.faulty => (takes / 3, Exit::Killed(9)),
            5 if self.faulty => (1, Exit::Lost),
            6 if self.faulty => (takes / 2, Exit::Saved),
            7 if self.faulty => (takes / 2, Exit::OverBudget),
            _ => (takes, Exit::Done),
        };
        let exit = self.at(self.now + exit.0, Event::Exited { id, attempt, exit: exit.1 });
        let process = Process { attempt, since: self.now, left, exit };
        assert!(self.processes.insert(id, process).is_none(), "job {id} runs twice");
    }

    fn stop(&mut self, id: JobId, attempt: u32) {
        let process = &self.processes[&id];
        assert_eq!(process.attempt, attempt, "another start of job {id} is told to stop");
        // It may be done at that very moment, or never answer and be killed.
        let saves = self.now + self.rng.random_range(0..3000);
        if process.exit.0 > saves {
            self.agenda.remove(&process.exit);
            let exit = match self.rng.random_range(0..10) {
                0 if self.faulty => Exit::Killed(9),
                1 if self.faulty => Exit::Failed(1),
                _ => Exit::Saved,
            };
            let exit = self.at(saves, Event::Exited { id, attempt, exit });
            self.processes.get_mut(&id).unwrap().exit = exit;
        }
    }

    /// Lets everything happen that will.
    fn run(&mut self) {
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 200_000, "it goes on for ever: {:#?}", self.pool.jobs().values().next());
            let next = self.agenda.keys().next().map(|(time, _)| *time);
            match (next, self.pool.wakes_at()) {
                (Some(time), wake) if wake.is_none_or(|wake| time <= wake) => {
                    let (_, event) = self.agenda.pop_first().unwrap();
                    self.now = time;
                    if let Event::Exited { id, attempt, .. } = &event
                        && self.processes.get(id).is_some_and(|process| process.attempt == *attempt)
                    {
                        let process = self.processes.remove(id).unwrap();
                        assert!(process.since <= self.now && process.left > 0);
                    }
                    if let Event::NodeDown { name } = &event {
                        self.lose(name);
                    }
                    self.step(event);
                }
                (_, Some(wake)) => {
                    self.now = wake;
                    self.step(Event::Tick);
                }
                (None, None) => break,
                (Some(_), None) => unreachable!(),
            }
        }
    }

    /// The processes of a machine that goes are gone with it.
    fn lose(&mut self, name: &str) {
        let Some(at) = self.pool.nodes().iter().position(|node| node.name == name) else { return };
        for (id, job) in self.pool.jobs() {
            let wholly = job.placement().is_some_and(|p| p.members.iter().all(|place| place.node == at));
            if wholly {
                let process = self.processes.remove(id).unwrap();
                self.agenda.remove(&process.exit);
            }
        }
    }

    fn check(&self) {
        let tree = self.pool.tree();
        let none = vec![Amounts::NONE; tree.nodes.len()];
        let (mut held, mut allocated, mut guaranteed) = (none.clone(), none.clone(), none);
        let mut devices: BTreeMap<(usize, u32), u64> = BTreeMap::new();
        let mut cpus: BTreeMap<usize, u64> = BTreeMap::new();
        for (id, job) in self.pool.jobs() {
            let project = tree.project(&job.spec.project).unwrap();
            if let Some(placement) = job.placement() {
                assert!(self.processes.contains_key(id), "job {id} is said to run");
                for place in &placement.members {
                    place.devices.iter().for_each(|&d| {
                        *devices.entry((place.node, d)).or_default() += place.part;
                    });
                    *cpus.entry(place.node).or_default() += place.cpus;
                }
                assert_eq!(placement.members.len(), job.spec.members as usize, "a gang is whole");
                assert_eq!(placement.amounts(), job.spec.total(placement.steps), "it has what it asks for");
                tree.path(project).for_each(|n| held[n].add(&placement.amounts()));
            }
            let keeps = match &job.phase {
                Phase::Promised { placement, .. } | Phase::Running { placement, .. } => Some(placement),
                Phase::Stopping { next, .. } => next.as_ref(),
                _ => None,
            };
            if let Some(placement) = keeps {
                tree.path(project).for_each(|n| allocated[n].add(&placement.amounts()));
                if !job.spec.class.is_preemptible() {
                    tree.path(project).for_each(|n| guaranteed[n].add(&placement.amounts()));
                }
            }
        }
        assert!(devices.values().all(|&taken| taken <= WHOLE), "a device is given twice");
        for (&node, &taken) in &cpus {
            assert!(taken <= self.pool.nodes()[node].cpus, "more cpus than node {node} has");
        }
        for (n, node) in tree.nodes.iter().enumerate() {
            assert_eq!(node.limit.passed_by(&held[n]), None, "{} holds more than its limit", node.name);
            assert_eq!(node.limit.passed_by(&allocated[n]), None, "{} has more than its limit", node.name);
            let over = RESOURCES.iter().find(|&&r| node.quota.of(r).is_some_and(|q| guaranteed[n][r] > q));
            assert_eq!(over, None, "{} has guaranteed work beyond its quota", node.name);
        }
        let running = self.pool.jobs().values().filter(|job| job.placement().is_some()).count();
        assert_eq!(running, self.processes.len(), "a process belongs to no job");
    }
}

fn amount(n: u64) -> Option<Said> {
    Some(Said::Amount(n))
}

fn random_policy(rng: &mut Pcg64, devices: u64) -> Policy {
    let usage = jobs::policy::Usage { half_life: 3_600_000, weight: 1.0 };
    let mut policy = Policy { resize_interval: rng.random_range(0..60_000), usage, ..Policy::default() };
    let departments = rng.random_range(0..3);
    let projects = rng.random_range(1..6);
    for d in 0..departments {
        policy.departments.push(Queue {
            name: format!("d{d}"),
            quota: Share { devices: Some(Said::Unlimited), cpus: Some(Said::Unlimited), memory: None },
            ..Queue::default()
        });
        let quota = Share { devices: amount(devices * WHOLE), cpus: amount(1 << 20), memory: None };
        policy.departments.last_mut().unwrap().quota = quota;
    }
    for p in 0..projects {
        let quota = rng.random_range(0..=devices / projects.min(3)) * WHOLE;
        let limit = rng.random_bool(0.3).then(|| quota + rng.random_range(1..=devices) * WHOLE);
        policy.projects.push(Queue {
            name: format!("p{p}"),
            department: (departments > 0 && rng.random_bool(0.7))
                .then(|| format!("d{}", rng.random_range(0..departments))),
            quota: Share { devices: amount(quota), cpus: amount(64), memory: None },
            limit: Share { devices: limit.map(Said::Amount), cpus: None, memory: None },
            over_quota_weight: [0.0, 1.0, 1.0, 2.0][rng.random_range(0..4)],
            priority: rng.random_range(0..2),
            preempt_min_runtime: rng.random_bool(0.3).then_some(20_000),
            reclaim_min_runtime: rng.random_bool(0.3).then_some(30_000),
            ..Queue::default()
        });
    }
    for d in 0..departments {
        // Quotas of what belongs to a department have to stand in its own.
        let name = format!("d{d}");
        let mine = policy.projects.iter().filter(|p| p.department.as_ref() == Some(&name));
        let sum = |of: fn(&Share) -> Option<Said>| {
            let amounts = mine.clone().map(|p| match of(&p.quota) {
                Some(Said::Amount(n)) => n,
                _ => 0,
            });
            amount(amounts.sum())
        };
        let quota = Share { devices: sum(|q| q.devices), cpus: sum(|q| q.cpus), memory: None };
        policy.departments[d].quota = quota;
    }
    policy
}

fn random_spec(rng: &mut Pcg64, projects: usize) -> Spec {
    let class =
        [Class::Train, Class::Train, Class::Train, Class::BuildPreemptible, Class::Build, Class::Inference]
            [rng.random_range(0..6)];
    let devices = match rng.random_range(0..10) {
        0 => Range::exactly(0),
        1 => Range::exactly(500),
        2 => Range::exactly(250),
        3 | 4 => Range { min: WHOLE, max: WHOLE * rng.random_range(1..=8) },
        _ => Range::exactly(WHOLE * [1, 1, 2, 4][rng.random_range(0..4)]),
    };
    Spec {
        name: "job".into(),
        project: format!("p{}", rng.random_range(0..projects)),
        user: "u".into(),
        class,
        priority: class.priority() + rng.random_range(-5..5),
        members: [1, 1, 1, 1, 2, 3][rng.random_range(0..6)],
        devices,
        cpus: Range { min: 1, max: 1 + rng.random_range(0..3) },
        memory: 1 << 20,
        takes: Some(rng.random_range(1..200_000)),
        launch: Launch::default(),
    }
}

fn node(name: &str, devices: u32, cpus: u64) -> Node {
    Node { name: name.into(), devices, device_memory: 1 << 34, cpus, memory: 1 << 36, up: true }
}

fn history(seed: u64, faulty: bool) -> World {
    let mut rng = Pcg64::seed_from_u64(seed);
    let machines = rng.random_range(1..4_u32);
    let each = [2, 4, 8][rng.random_range(0..3)];
    let policy = random_policy(&mut rng, u64::from(machines * each));
    let projects = policy.projects.len();
    let mut world = World::new(policy, seed, faulty);
    for n in 0..machines {
        world.step(Event::NodeUp { node: node(&format!("n{n}"), each, 16) });
    }
    let count = rng.random_range(1..60);
    for n in 0..count {
        let time = rng.random_range(0..300_000);
        world.at(time, Event::Submitted { id: JobId(n), spec: random_spec(&mut rng, projects) });
        let later = time + rng.random_range(0..200_000);
        match rng.random_range(0..20) {
            0 => {
                world.at(later, Event::Cancelled { id: JobId(n) });
            }
            1 => {
                world.at(later, Event::Held { id: JobId(n) });
                world.at(later + rng.random_range(0..60_000), Event::Released { id: JobId(n) });
            }
            2 => {
                world.at(later, Event::Prioritized { id: JobId(n), priority: rng.random_range(0..120) });
            }
            _ => {}
        }
    }
    if faulty && machines > 1 {
        let time = rng.random_range(0..300_000);
        world.at(time, Event::NodeDown { name: "n0".into() });
        world.at(time + 50_000, Event::NodeUp { node: node("n0", each, 16) });
    }
    world.run();
    world
}

#[test]
fn in_every_state_the_rules_hold_and_every_job_ends() {
    let seeds = std::env::var("LUTHIER_HISTORIES").map_or(150, |n| n.parse().unwrap());
    let mut evictions = 0;
    for seed in 0..seeds {
        let world = history(seed, seed % 2 == 1);
        let left: Vec<_> = world.pool.jobs().values().map(|job| &job.phase).collect();
        assert!(world.pool.jobs().is_empty(), "seed {seed}: jobs never end: {left:?}");
        let ended: BTreeSet<JobId> = world.ended.keys().copied().collect();
        assert_eq!(ended, world.submitted, "seed {seed}: every job that was taken ends");
        evictions += world.evictions;
    }
    assert!(evictions > seeds, "jobs were stopped for others: {evictions}");
}

#[test]
fn what_is_refused_says_why() {
    let policy = Policy {
        projects: vec![Queue {
            name: "p0".into(),
            quota: Share { devices: amount(WHOLE), cpus: amount(8), memory: None },
            limit: Share { devices: amount(4 * WHOLE), cpus: None, memory: None },
            ..Queue::default()
        }],
        ..Policy::default()
    };
    let mut pool = Pool::new(policy, 0).unwrap();
    pool.step(Event::NodeUp { node: node("n0", 2, 8) }, 0).unwrap();
    let spec = |devices: u64, members, class: Class| Spec {
        name: "job".into(),
        project: "p0".into(),
        user: "u".into(),
        class,
        priority: class.priority(),
        members,
        devices: Range::exactly(devices),
        cpus: Range::exactly(1),
        memory: 0,
        takes: None,
        launch: Launch::default(),
    };
    let mut refused =
        |spec: Spec| pool.step(Event::Submitted { id: JobId(1), spec }, 1).unwrap_err().to_string();
    assert!(refused(spec(5 * WHOLE, 1, Class::Train)).contains("the limit of `p0` is 4 devices"));
    assert!(refused(spec(2 * WHOLE, 1, Class::Build)).contains("the quota of `p0` is 1 device"));
    assert!(refused(spec(3 * WHOLE, 1, Class::Train)).contains("the biggest machine has 2 devices"));
    assert!(refused(spec(WHOLE, 3, Class::Train)).contains("3 processes"));
    assert!(refused(spec(1500, 1, Class::Train)).contains("only whole ones"));
    assert!(refused(Spec { project: "P0".into(), ..spec(0, 1, Class::Train) }).contains("is it `p0`?"));
    assert!(matches!(pool.step(Event::Cancelled { id: JobId(9) }, 1), Err(Refused::NoJob(JobId(9)))));
}
