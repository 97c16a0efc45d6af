//! Real processes under a real pool: they give way, go on, are found again, and nothing of them is done
//! twice.

use std::fs;
use std::time::{Duration, Instant};

use jobs::access::{Deed, Who};
use jobs::executor::Local;
use jobs::policy::{Queue, Said, Share};
use jobs::store::{Store, Which};
use jobs::supervisor::{Denied, NoInsight, Setup, Supervisor};
use jobs::{Class, Exit, JobId, Launch, Node, Outcome, Phase, Policy, Range, Spec};

/// Counts to a number, a step at a time; saves on request and goes on from there. Every step is a line of a
/// file, so one that is done twice, or not at all, is seen.
const COUNTS: &str = r#"
step=$(cat saved 2>/dev/null || echo 0)
trap 'echo $step > saved; exit 75' TERM
while [ "$step" -lt "$1" ]; do
    step=$((step + 1)); echo $step >> steps
    sleep 0.02 & wait $!
done
echo $step > saved
"#;

fn queue(name: &str, cpus: u64) -> Queue {
    Queue {
        name: name.into(),
        quota: Share { cpus: Some(Said::Amount(cpus)), ..Share::default() },
        members: ["ann".to_owned()].into(),
        ..Queue::default()
    }
}

fn policy() -> Policy {
    Policy { projects: vec![queue("lender", 2), queue("borrower", 0)], ..Policy::default() }
}

struct Machine {
    folder: tempfile::TempDir,
    cpus: u64,
    devices: u32,
}

impl Machine {
    fn new(cpus: u64) -> Self {
        Machine { folder: tempfile::tempdir().unwrap(), cpus, devices: 0 }
    }

    fn start(&self, policy: Option<Policy>) -> Supervisor {
        let attempt = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/attempt");
        let attempt = attempt.to_str().unwrap().to_owned();
        let local = Local::new(self.folder.path().join("jobs"), "luthier".into(), vec![attempt]).unwrap();
        let node = Node {
            name: "here".into(),
            devices: self.devices,
            device_memory: 0,
            cpus: self.cpus,
            memory: 1 << 30,
            up: true,
        };
        Supervisor::start(Setup {
            store: Store::open(self.folder.path()).unwrap(),
            policy,
            nodes: vec![node],
            executor: Box::new(local),
            insight: Box::new(NoInsight),
        })
        .unwrap()
    }

    fn spec(&self, name: &str, project: &str, arguments: &[&str]) -> Spec {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Spec {
            name: name.into(),
            project: project.into(),
            user: String::new(),
            class: Class::Train,
            priority: Class::Train.priority(),
            members: 1,
            devices: Range::exactly(0),
            cpus: Range::exactly(1),
            memory: 1 << 20,
            takes: None,
            launch: Launch { arguments, folder, ..Launch::default() },
        }
    }

    fn counts(&self, name: &str, project: &str, steps: u32) -> Spec {
        self.spec(name, project, &["sh", "-c", COUNTS, "sh", &steps.to_string()])
    }

    fn steps(&self, name: &str) -> Vec<u32> {
        let text = fs::read_to_string(self.folder.path().join(name).join("steps")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

fn ann() -> Who {
    Who { name: "ann".into(), is_root: false }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_running(pool: &Supervisor, id: JobId) -> bool {
    matches!(pool.handle().pool().jobs().get(&id).map(|job| &job.phase), Some(Phase::Running { .. }))
}

fn outcome(pool: &Supervisor, id: JobId) -> Option<Outcome> {
    pool.handle().read(|reader| reader.record(id)).unwrap().unwrap().outcome
}

#[test]
fn borrowed_slots_come_back_within_two_seconds_and_no_step_is_lost() {
    let machine = Machine::new(2);
    let pool = machine.start(Some(policy()));
    let handle = pool.handle();
    let borrowed = vec![machine.counts("a", "borrower", 150), machine.counts("b", "borrower", 150)];
    let borrowed = handle.submit(&ann(), borrowed, Some("both".into())).unwrap();
    until("the borrower's jobs", || {
        borrowed.iter().all(|id| is_running(&pool, *id)) && machine.steps("b").len() > 5
    });
    let claim = Instant::now();
    let own = handle.submit(&ann(), vec![machine.counts("c", "lender", 20)], None).unwrap()[0];
    until("the lender's job", || is_running(&pool, own));
    assert!(claim.elapsed() < Duration::from_secs(2), "{:?}", claim.elapsed());
    let waits = borrowed.iter().copied().find(|id| !is_running(&pool, *id)).unwrap();
    let why = handle.pool().why(waits).unwrap();
    assert_eq!(why.rule, "no-room", "{why:?}");
    assert!(why.message.contains("it asks for 1 cpu, and of 2 cpus nothing is free"), "{why:?}");
    until("all of them", || handle.pool().jobs().is_empty());
    for name in ["a", "b"] {
        assert_eq!(machine.steps(name), (1..=150).collect::<Vec<_>>(), "each step of {name} once");
    }
    assert_eq!(outcome(&pool, own), Some(Outcome::Done));
    let both = Which { group: Some("both".into()), ended: true, limit: 9, ..Which::default() };
    let records = handle.read(|reader| reader.records(&both)).unwrap();
    assert_eq!(records.iter().map(|record| record.evictions).sum::<u32>(), 1);
    let stopped = records.iter().flat_map(|record| &record.attempts).find(|attempt| attempt.reason.is_some());
    assert_eq!(stopped.unwrap().exit, Some(Exit::Saved));
}

#[test]
fn a_pool_that_comes_back_finds_what_runs_and_what_has_ended() {
    let machine = Machine::new(2);
    let mut pool = machine.start(Some(policy()));
    let ids = pool
        .handle()
        .submit(
            &ann(),
            vec![
                machine.counts("a", "lender", 120),
                machine.counts("b", "lender", 30),
                machine.counts("c", "borrower", 60),
            ],
            None,
        )
        .unwrap();
    for pause in [0, 300, 10, 700, 50, 120] {
        std::thread::sleep(Duration::from_millis(pause));
        pool.end();
        std::thread::sleep(Duration::from_millis(200));
        pool = machine.start(None);
    }
    until("all of them", || pool.handle().pool().jobs().is_empty());
    for (name, count) in [("a", 120), ("b", 30), ("c", 60)] {
        assert_eq!(machine.steps(name), (1..=count).collect::<Vec<_>>(), "each step of {name} once");
    }
    for id in ids {
        let record = pool.handle().read(|reader| reader.record(id)).unwrap().unwrap();
        assert_eq!((record.outcome, record.attempts.len()), (Some(Outcome::Done), 1), "{record:?}");
    }
}

#[test]
fn what_fails_is_tried_again_and_what_is_wrong_is_not() {
    let machine = Machine::new(4);
    let rules = Policy { retries: 1, ..policy() };
    let pool = machine.start(Some(rules));
    let handle = pool.handle();
    let refused = machine.spec("refused", "lender", &["sh", "-c", "echo no such model; exit 2"]);
    let missing = machine.spec("missing", "lender", &["./no-such-program"]);
    let ids = handle.submit(&ann(), vec![refused, missing], None).unwrap();
    until("both", || ids.iter().all(|id| outcome(&pool, *id).is_some()));
    assert!(ids.iter().all(|id| outcome(&pool, *id) == Some(Outcome::Failed(Exit::Refused))));
    assert!(fs::read_to_string(handle.log(ids[0])).unwrap().contains("no such model"));
    assert!(fs::read_to_string(handle.log(ids[1])).unwrap().contains("cannot start ./no-such-program"));
    let fails = handle.submit(&ann(), vec![machine.spec("fails", "lender", &["false"])], None).unwrap()[0];
    until("a pause", || matches!(handle.pool().why(fails), Some(why) if why.rule == "paused"));
    let why = handle.pool().why(fails).unwrap();
    assert!(why.message.contains("1 of 2 tries"), "{why:?}");
    handle.act(&ann(), fails, Deed::Cancel).unwrap();
    assert_eq!(outcome(&pool, fails), Some(Outcome::Cancelled));
}

#[test]
fn a_job_that_does_not_listen_is_ended_after_its_grace() {
    let machine = Machine::new(1);
    let pool = machine.start(Some(Policy { grace: 300, ..policy() }));
    let handle = pool.handle();
    let deaf = machine.spec("deaf", "lender", &["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]);
    let id = handle.submit(&ann(), vec![deaf], None).unwrap()[0];
    until("it", || is_running(&pool, id));
    std::thread::sleep(Duration::from_millis(300));
    handle.act(&ann(), id, Deed::Cancel).unwrap();
    until("its end", || outcome(&pool, id).is_some());
    let record = handle.read(|reader| reader.record(id)).unwrap().unwrap();
    assert_eq!(record.attempts[0].exit, Some(Exit::Killed(9)));
}

#[test]
fn a_gang_ends_together_when_one_of_it_fails() {
    let machine = Machine::new(2);
    let pool = machine.start(Some(Policy { retries: 0, ..policy() }));
    let script = "test $RANK = 1 && exit 3; trap 'exit 75' TERM; sleep 30 & wait $!";
    let gang = Spec { members: 2, ..machine.spec("gang", "lender", &["sh", "-c", script]) };
    let id = pool.handle().submit(&ann(), vec![gang], None).unwrap()[0];
    until("its end", || outcome(&pool, id).is_some());
    assert_eq!(outcome(&pool, id), Some(Outcome::Failed(Exit::Failed(3))));
}

#[test]
fn a_process_learns_which_devices_it_may_see_and_what_it_was_given() {
    let machine = Machine { devices: 2, ..Machine::new(2) };
    let pool = machine.start(Some(policy()));
    let handle = pool.handle();
    let tell = "echo $CUDA_VISIBLE_DEVICES $LUTHIER_DEVICE_PART $LUTHIER_JOB $1 $2";
    let arguments = ["sh", "-c", tell, "sh", "{cpus}", "{memory}"];
    let half = Spec { devices: Range::exactly(500), ..machine.spec("half", "lender", &arguments) };
    let both = Spec { devices: Range::exactly(2000), ..machine.spec("both", "lender", &arguments) };
    let none = machine.spec("none", "lender", &arguments);
    let ids = handle.submit(&ann(), vec![half, both, none], None).unwrap();
    until("all of them", || handle.pool().jobs().is_empty());
    let said: Vec<String> = ids.iter().map(|id| fs::read_to_string(handle.log(*id)).unwrap()).collect();
    assert_eq!(said, ["0 0.5 1 1 1048576\n", "0,1 2 1 1048576\n", "3 1 1048576\n"]);
}

#[test]
fn who_does_not_belong_to_it_may_do_nothing() {
    let machine = Machine::new(1);
    let pool = machine.start(Some(policy()));
    let handle = pool.handle();
    let eve = Who { name: "eve".into(), is_root: false };
    let denied = handle.submit(&eve, vec![machine.counts("a", "lender", 1)], None).unwrap_err();
    assert!(denied.to_string().contains("eve is not a member"), "{denied}");
    let id = handle.submit(&ann(), vec![machine.counts("b", "lender", 500)], None).unwrap()[0];
    assert!(handle.act(&eve, id, Deed::Cancel).unwrap_err().to_string().contains("there is no job"));
    assert!(matches!(handle.apply(&ann(), Policy::default()), Err(Denied::Forbidden(_))));
    let above = Spec { priority: 90, ..machine.counts("c", "lender", 1) };
    let denied = handle.submit(&ann(), vec![above], None).unwrap_err();
    assert!(denied.to_string().contains("only owners"), "{denied}");
    let root = Who { name: "root".into(), is_root: true };
    assert!(handle.apply(&root, Policy::default()).unwrap_err().to_string().contains("has 1 jobs"));
    handle.act(&root, id, Deed::Cancel).unwrap();
    until("its end", || handle.pool().jobs().is_empty());
    let audit = handle.read(|reader| reader.audit(10)).unwrap();
    assert_eq!(audit[0].deed, format!("cancel job {id}"));
}

#[test]
fn two_pools_do_not_share_a_folder() {
    let machine = Machine::new(1);
    let _pool = machine.start(Some(policy()));
    let second = Store::open(machine.folder.path()).unwrap_err();
    assert!(second.to_string().contains("another pool uses it"));
}
