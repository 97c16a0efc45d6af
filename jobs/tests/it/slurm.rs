//! A real Slurm, started for the test on ports of its own: two nodes with two pretended GPUs each.
//!
//! Where Slurm is not installed, or we are not root, the test says so and passes. The jobs are a small script
//! that does what `luthier train` does: it counts steps, saves and exits with 75 on SIGTERM, and goes on
//! where it was.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use jobs::amounts::{Resource, WHOLE};
use jobs::policy::{Policy, Queue, Said, Share};
use jobs::slurm::{Job, Slurm, SlurmError, State};
use jobs::{Class, Launch, Range, Spec, Why};

const GRACE: u64 = 20_000;
const MIB: u64 = 1 << 20;

/// What the jobs run: `worker STEPS` takes a fifth of a second for each.
const WORKER: &str = r#"#!/bin/bash
file=step-${SLURM_PROCID:-0}
step=$(cat "$file" 2> /dev/null || echo 0)
echo "rank ${SLURM_PROCID:-0} of ${SLURM_NTASKS:-1} on $SLURMD_NODENAME begins at $step with $2 cores"
saves=
trap saves=1 TERM
while ((step < $1)); do
    sleep 0.2
    ((++step))
    [[ $saves ]] || continue
    echo "$step" > "$file"
    echo "saved at $step"
    exit 75
done
echo "$step" > "$file"
echo "done at $step"
"#;

/// The daemons, which stop with it; should this process be killed, they notice.
struct Lab {
    folder: PathBuf,
    port: u16,
}

impl Lab {
    /// None where there can be none; then it says why.
    fn start() -> Option<Lab> {
        let found = |program: &str| {
            ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
                .iter()
                .any(|folder| Path::new(folder).join(program).exists())
        };
        let needed = ["slurmctld", "slurmd", "slurmdbd", "sbatch", "sacctmgr", "munged", "mariadbd"];
        if let Some(missing) = needed.into_iter().find(|program| !found(program)) {
            eprintln!("skipped: no {missing} (apt-get install slurm-wlm slurmdbd mariadb-server munge)");
            return None;
        }
        if !Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n") {
            eprintln!("skipped: a Slurm of one's own needs root");
            return None;
        }
        // Sockets' paths are short.
        let folder = PathBuf::from(format!("/tmp/luthier-slurm-{}", std::process::id()));
        let lab = Lab { folder, port: free_ports(8) };
        assert!(lab.does(&["up", "2"]), "the lab did not start; see {}", lab.folder.display());
        Some(lab)
    }

    fn does(&self, arguments: &[&str]) -> bool {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slurm/lab.sh");
        let mut command = Command::new("timeout");
        command.arg("400").arg(script).args(arguments);
        command.env("LAB", &self.folder).env("PORT", self.port.to_string());
        command
            .env("WATCH", std::process::id().to_string())
            .env("GPUS", "2")
            .env("CPUS", "8")
            .env("MEMORY", "8000");
        command.status().is_ok_and(|status| status.success())
    }

    fn slurm(&self) -> Slurm {
        Slurm::new().with_conf(self.folder.join("etc/slurm.conf"))
    }

    /// A job that counts to `steps` in a folder of its own, with so many devices for each member.
    fn job(&self, name: &str, project: &str, devices: u64, steps: u32) -> Spec {
        let folder = self.folder.join("jobs").join(name);
        fs::create_dir_all(&folder).unwrap();
        let worker = self.folder.join("worker");
        fs::write(&worker, WORKER).unwrap();
        fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).unwrap();
        Spec {
            name: name.into(),
            project: project.into(),
            user: "root".into(),
            class: Class::Train,
            priority: 50,
            members: 1,
            devices: Range::exactly(devices * WHOLE),
            cpus: Range::exactly(1),
            memory: 100 * MIB,
            takes: None,
            launch: Launch {
                arguments: vec![worker.to_str().unwrap().into(), steps.to_string(), "{cpus}".into()],
                folder,
                ..Launch::default()
            },
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What Slurm thought of it.
            for log in
                ["up.log", "mariadb.log", "slurmdbd.log", "slurmctld.log", "slurmd-n1.log", "slurmd-n2.log"]
            {
                let text = fs::read_to_string(self.folder.join("log").join(log)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {log}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
        self.does(&["wipe"]);
    }
}

/// The first of so many ports in a row that nobody listens on.
fn free_ports(count: u16) -> u16 {
    let start = 20_000 + (std::process::id() % 1000) as u16 * 20;
    let free =
        |first: &u16| (*first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    (start..start + 4000).step_by(20).find(free).expect("there are free ports")
}

fn amount(devices: u64) -> Share {
    Share { devices: Some(Said::Amount(devices * WHOLE)), ..Share::default() }
}

/// Two projects that are guaranteed half of the devices each, and one that may only borrow one.
fn policy() -> Policy {
    let queue = |name: &str| Queue {
        name: name.into(),
        department: Some("research".into()),
        members: BTreeSet::from(["root".to_owned()]),
        ..Queue::default()
    };
    Policy {
        departments: vec![Queue { name: "research".into(), quota: amount(4), ..Queue::default() }],
        projects: vec![
            Queue { quota: amount(2), over_quota_weight: 2.0, ..queue("vision") },
            Queue { quota: amount(2), ..queue("text") },
            Queue { limit: amount(1), ..queue("guests") },
        ],
        grace: GRACE,
        ..Policy::default()
    }
}

/// Looks until it is so, and says what it last saw if it never is.
fn until<T: std::fmt::Debug>(what: &str, look: impl Fn() -> T, is_so: impl Fn(&T) -> bool) -> T {
    let begin = Instant::now();
    loop {
        let seen = look();
        if is_so(&seen) {
            return seen;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}: never; last {seen:#?}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn one(slurm: &Slurm, id: &str) -> Job {
    slurm.show(id).unwrap().remove(0)
}

fn until_state(slurm: &Slurm, id: &str, state: State) -> Job {
    until(&format!("job {id} is {state:?}"), || one(slurm, id), |job| job.state == state)
}

fn until_log(job: &Job, words: &str) -> String {
    let read = || fs::read_to_string(&job.log).unwrap_or_default();
    until(&format!("{words:?} in {}", job.log.display()), read, |text| text.contains(words))
}

fn until_why(slurm: &Slurm, id: &str, rule: &str) -> Why {
    until(&format!("job {id} waits by {rule}"), || slurm.why(id).unwrap(), |why| why.rule == rule)
}

#[test]
fn a_real_slurm_does_what_the_policy_says() {
    let Some(lab) = Lab::start() else { return };
    let slurm = lab.slurm();
    a_policy_holds(&slurm);
    a_gang_runs_on_two_nodes(&lab, &slurm);
    an_array_has_a_part_in_the_quota(&lab, &slurm);
    borrowed_room_is_given_back_and_work_goes_on(&lab, &slurm);
    a_gang_gives_way_and_goes_on(&lab, &slurm);
    what_waits_says_why(&lab, &slurm);
    a_held_job_saves_and_goes_on(&lab, &slurm);
    a_cancelled_job_does_not_come_back(&lab, &slurm);
    cores_are_divided_where_there_are_no_devices(&lab, &slurm);
}

fn a_policy_holds(slurm: &Slurm) {
    let gaps = slurm.apply(&policy()).unwrap();
    assert!(gaps.iter().any(|gap| gap.contains("fair share is past use")), "{gaps:?}");
    assert!(!gaps.iter().any(|gap| gap.contains("slurm.conf")), "{gaps:?}");
    // Once more changes nothing.
    assert_eq!(slurm.apply(&policy()).unwrap(), gaps);
}

fn a_gang_runs_on_two_nodes(lab: &Lab, slurm: &Slurm) {
    let id = slurm.submit(&Spec { members: 2, ..lab.job("gang", "vision", 2, 5) }, GRACE).unwrap();
    let job = until_state(slurm, &id, State::Done);
    assert_eq!(job.qos, "over", "four devices are more than the quota of two");
    assert_eq!(job.requested.devices, 4 * WHOLE);
    let log = until_log(&job, "done");
    assert!(log.contains("rank 0 of 2 on n1 begins at 0 with 1 cores"), "{log}");
    assert!(log.contains("rank 1 of 2 on n2 begins at 0 with 1 cores"), "{log}");
}

fn an_array_has_a_part_in_the_quota(lab: &Lab, slurm: &Slurm) {
    let specs: Vec<Spec> = (0..4)
        .map(|n| {
            let mut spec = lab.job("array", "vision", 1, 20);
            spec.launch.folder = lab.job(&format!("array-{n}"), "vision", 1, 20).launch.folder;
            spec
        })
        .collect();
    let ids = slurm.submit_all(&specs, GRACE).unwrap();
    let jobs: Vec<Job> = ids.iter().flat_map(|id| slurm.show(id).unwrap()).collect();
    assert_eq!(ids.len(), 2, "{jobs:#?}");
    let counted = |qos: &str| {
        let all = ids
            .iter()
            .flat_map(|id| until("all tasks run", || slurm.show(id).unwrap(), |jobs| jobs.len() == 2));
        all.filter(|job| job.qos == qos).count()
    };
    assert_eq!((counted("vision"), counted("over")), (2, 2));
    for id in &ids {
        until(
            "the array is done",
            || slurm.show(id).unwrap(),
            |jobs| jobs.iter().all(|job| job.state == State::Done),
        );
    }
    for spec in specs {
        assert_eq!(fs::read_to_string(spec.launch.folder.join("step-0")).unwrap(), "20\n");
    }
}

fn borrowed_room_is_given_back_and_work_goes_on(lab: &Lab, slurm: &Slurm) {
    let own = slurm.submit(&lab.job("own", "vision", 2, 2000), GRACE).unwrap();
    let borrowed = slurm.submit(&lab.job("borrowed", "vision", 2, 60), GRACE).unwrap();
    assert_eq!((one(slurm, &own).qos.as_str(), one(slurm, &borrowed).qos.as_str()), ("vision", "over"));
    until_state(slurm, &own, State::Running);
    let job = until_state(slurm, &borrowed, State::Running);
    until_log(&job, "begins at 0");
    assert_eq!(slurm.why(&borrowed).unwrap().rule, "running");

    // The other project takes back what is its own: from the borrowed job, not from the other.
    let theirs = slurm.submit(&lab.job("theirs", "text", 2, 2000), GRACE).unwrap();
    until_state(slurm, &theirs, State::Running);
    assert_eq!(one(slurm, &own).restarts, 0);
    assert_eq!(one(slurm, &own).state, State::Running);
    let saved = until_log(&job, "saved at");
    until("the borrowed job is back in the queue", || one(slurm, &borrowed), |job| job.restarts == 1);
    let why = until_why(slurm, &borrowed, "paused");
    assert!(why.message.contains("put back in the queue (1 times"), "{why:?}");

    // Whoever looks spares it the two minutes; then it waits for room.
    let done = slurm.settle().unwrap();
    assert_eq!(done, [format!("job {borrowed} may start again at once")]);
    let why = until_why(slurm, &borrowed, "no-room");
    assert!(why.message.contains("2 devices"), "{why:?}");

    // Its own project's quota has room again: that is where it goes, while no machine is free.
    let mut more = policy();
    (more.departments[0].quota, more.projects[0].quota) = (amount(6), amount(4));
    slurm.apply(&more).unwrap();
    let done = slurm.settle().unwrap();
    assert_eq!(done, [format!("job {borrowed} goes into the quota of `vision`, which has room again")]);
    slurm.apply(&policy()).unwrap();
    slurm.cancel(&own).unwrap();
    let job = until_state(slurm, &borrowed, State::Done);
    assert_eq!((job.qos.as_str(), job.restarts), ("vision", 1));
    let log = until_log(&job, "done at 60");
    let step: u32 =
        saved.split("saved at ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(step > 0 && log.contains(&format!("begins at {step} with")), "{log}");
    slurm.cancel(&theirs).unwrap();
    until_state(slurm, &theirs, State::Cancelled);
}

fn a_gang_gives_way_and_goes_on(lab: &Lab, slurm: &Slurm) {
    let gang = slurm.submit(&Spec { members: 2, ..lab.job("wide", "vision", 2, 60) }, GRACE).unwrap();
    let job = until_state(slurm, &gang, State::Running);
    until_log(&job, "rank 1 of 2");
    let theirs = slurm.submit(&lab.job("narrow", "text", 1, 5), GRACE).unwrap();
    until_state(slurm, &theirs, State::Done);
    let log = until_log(&job, "saved at");
    assert_eq!(log.matches("saved at").count(), 2, "both members saved: {log}");
    until("the gang is back in the queue", || one(slurm, &gang), |job| job.restarts == 1);
    until(
        "the gang runs again",
        || {
            slurm.settle().unwrap();
            one(slurm, &gang)
        },
        |job| job.state == State::Running,
    );
    let job = until_state(slurm, &gang, State::Done);
    let log = until_log(&job, "done at 60");
    assert_eq!(log.matches("begins at 0").count(), 2, "the second start does not begin anew: {log}");
}

fn what_waits_says_why(lab: &Lab, slurm: &Slurm) {
    let own = slurm.submit(&lab.job("full", "vision", 1, 2000), GRACE).unwrap();
    until_state(slurm, &own, State::Running);

    // Two of two are guaranteed, one is taken.
    let served = Spec { class: Class::Build, priority: 100, ..lab.job("served", "vision", 2, 5) };
    let served = slurm.submit(&served, GRACE).unwrap();
    let why = until_why(slurm, &served, "quota");
    assert_eq!(
        why.message,
        "the quota of `vision` is 2 devices, of which 1 device are in use; this job asks for 2 devices"
    );
    assert_eq!(why.unblocks, "1 device of jobs in the quota to end");
    let bound = why.bound.unwrap();
    assert_eq!((bound.resource, bound.requested, bound.allocated), (Resource::Devices, 2 * WHOLE, WHOLE));
    assert_eq!((bound.queue.as_str(), bound.quota, bound.limit), ("vision", Some(2 * WHOLE), None));
    slurm.cancel(&served).unwrap();

    let never = Spec { class: Class::Inference, priority: 125, ..lab.job("never", "vision", 3, 5) };
    let error = slurm.submit(&never, GRACE).unwrap_err();
    assert!(
        error.to_string().contains("it asks for 3 devices, and the quota of `vision` is 2 devices"),
        "{error}"
    );

    let first = slurm.submit(&lab.job("guest-1", "guests", 1, 2000), GRACE).unwrap();
    until_state(slurm, &first, State::Running);
    let second = slurm.submit(&lab.job("guest-2", "guests", 1, 2000), GRACE).unwrap();
    let why = until_why(slurm, &second, "limit");
    assert_eq!(
        why.message,
        "`guests` may have 1 device at once and has 1 device; this job asks for 1 device"
    );
    assert_eq!(why.bound.unwrap().limit, Some(WHOLE));

    let ours: Vec<String> = slurm.list().unwrap().into_iter().map(|job| job.id).collect();
    for id in [&own, &first, &second] {
        assert!(ours.contains(id), "{ours:?}");
        slurm.cancel(id).unwrap();
        let job = until_state(slurm, id, State::Cancelled);
        assert_eq!(job.restarts, 0, "what is cancelled while it starts does not come back either");
    }
    let error = slurm.submit(&lab.job("lost", "visio", 1, 5), GRACE).unwrap_err();
    assert!(error.to_string().contains("no QOS `visio`"), "{error}");
    assert_eq!(slurm.show("99999").unwrap_err(), SlurmError::NoJob("99999".into()));
    assert_eq!(slurm.cancel(&own).unwrap_err().to_string(), format!("job {own} has ended"));
}

fn a_held_job_saves_and_goes_on(lab: &Lab, slurm: &Slurm) {
    let id = slurm.submit(&lab.job("held", "text", 1, 40), GRACE).unwrap();
    let job = until_state(slurm, &id, State::Running);
    until_log(&job, "begins at 0");
    slurm.hold(&id).unwrap();
    until("the job is held", || one(slurm, &id), |job| job.state == State::Held && job.restarts == 1);
    until_log(&job, "saved at");
    assert_eq!(slurm.why(&id).unwrap().unblocks, format!("luthier jobs release {id}"));
    slurm.settle().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(one(slurm, &id).state, State::Held, "nothing but its release lets it run");
    slurm.release(&id).unwrap();
    until("it may start", || slurm.settle().unwrap(), |done| !done.is_empty());
    let job = until_state(slurm, &id, State::Done);
    assert!(until_log(&job, "done at 40").matches("begins at 0").count() == 1);
}

fn a_cancelled_job_does_not_come_back(lab: &Lab, slurm: &Slurm) {
    let id = slurm.submit(&lab.job("cancelled", "text", 1, 2000), GRACE).unwrap();
    let job = until_state(slurm, &id, State::Running);
    until_log(&job, "begins at 0");
    slurm.cancel(&id).unwrap();
    until_state(slurm, &id, State::Cancelled);
    let log = until_log(&job, "saved at");
    assert_eq!(log.matches("saved at").count(), 1, "it may still save: {log}");
    std::thread::sleep(Duration::from_secs(3));
    let job = one(slurm, &id);
    assert_eq!((job.state, job.restarts), (State::Cancelled, 0));
    assert_eq!(slurm.why(&id).unwrap().rule, "ended");
}

fn cores_are_divided_where_there_are_no_devices(lab: &Lab, slurm: &Slurm) {
    let cores = |n: u64| Share { cpus: Some(Said::Amount(n)), ..Share::default() };
    let member = BTreeSet::from(["root".to_owned()]);
    let policy = Policy {
        projects: vec![Queue { name: "cores".into(), quota: cores(6), members: member, ..Queue::default() }],
        grace: GRACE,
        ..Policy::default()
    };
    slurm.apply(&policy).unwrap();
    let job = |name: &str, cpus: u64| Spec { cpus: Range::exactly(cpus), ..lab.job(name, "cores", 0, 15) };
    let first = slurm.submit(&job("cores-1", 4), GRACE).unwrap();
    let second = slurm.submit(&job("cores-2", 4), GRACE).unwrap();
    assert_eq!((one(slurm, &first).qos.as_str(), one(slurm, &second).qos.as_str()), ("cores", "over"));
    until_state(slurm, &first, State::Running);
    let served = Spec { class: Class::Build, priority: 100, ..job("cores-3", 3) };
    let served = slurm.submit(&served, GRACE).unwrap();
    let why = until_why(slurm, &served, "quota");
    assert_eq!(
        why.message,
        "the quota of `cores` is 6 cpus, of which 4 cpus are in use; this job asks for 3 cpus"
    );
    for id in [&first, &second, &served] {
        let job = until_state(slurm, id, State::Done);
        assert!(until_log(&job, "done").contains("cores\n"));
    }
    assert!(fs::read_to_string(one(slurm, &first).log).unwrap().contains("with 4 cores"));
}
