//! A pool with its server, whose processes are a script's, and clients with tokens.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jobs::executor::{Attempt, Executor, Status};
use jobs::store::Store;
use jobs::supervisor::{Insight, Progress, Setup, Supervisor};
use jobs::{Exit, JobId, Node, Placement, Policy, Spec};
use serde_json::{Value, json};
use server::{Place, PoolLimits, PoolSetup, ServerError, serve_pool_within};
use tempfile::TempDir;

use crate::support::{Reply, folder, send};

pub(crate) const ROOT: &str = "pool-root";
pub(crate) const GIB: u64 = 1 << 30;

/// What processes of jobs are doing, and what they have computed.
#[derive(Default)]
pub(crate) struct Script {
    starts: BTreeMap<Attempt, Option<Exit>>,
    /// By the names of jobs.
    pub(crate) progress: BTreeMap<String, Progress>,
    /// Whether those that are told to stop go on.
    pub(crate) is_deaf: bool,
}

struct Scripted {
    script: Arc<Mutex<Script>>,
    folder: PathBuf,
}

impl Executor for Scripted {
    fn start(&mut self, attempt: Attempt, _: &Spec, _: &Placement, _: &[Node]) -> io::Result<()> {
        self.script.lock().unwrap().starts.entry(attempt).or_insert(None);
        Ok(())
    }

    fn stop(&mut self, attempt: Attempt) -> io::Result<()> {
        let mut script = self.script.lock().unwrap();
        if !script.is_deaf {
            script.starts.entry(attempt).or_default().get_or_insert(Exit::Saved);
        }
        Ok(())
    }

    fn kill(&mut self, attempt: Attempt) -> io::Result<()> {
        self.script.lock().unwrap().starts.insert(attempt, Some(Exit::Killed(9)));
        Ok(())
    }

    fn status(&mut self, attempt: Attempt) -> io::Result<Status> {
        Ok(match self.script.lock().unwrap().starts.get(&attempt) {
            None => Status::Missing,
            Some(None) => Status::Running,
            Some(Some(exit)) => Status::Exited(*exit),
        })
    }

    fn log(&self, job: JobId) -> PathBuf {
        self.folder.join("jobs").join(job.to_string()).join("log.txt")
    }
}

struct Known(Arc<Mutex<Script>>);

impl Insight for Known {
    fn progress(&self, spec: &Spec) -> Option<Progress> {
        self.0.lock().unwrap().progress.get(&spec.name).copied()
    }
}

/// A pool of two machines, of which `gpu` has four devices and eight cores, and `cpu` none and eight. Project
/// `red` has two devices of its own and eight cores, `blue` too; `ada` belongs to `red` and owns it, `bea` is
/// a member of it, `cai` is a member of `blue`, `dot` of nothing.
pub(crate) struct Pool {
    pub(crate) address: SocketAddr,
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) folder: TempDir,
    tokens: BTreeMap<&'static str, String>,
    supervisor: Option<Supervisor>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

pub(crate) fn policy() -> Value {
    let queue = |name: &str, owners: &[&str], members: &[&str]| {
        json!({
            "name": name, "department": "lab",
            "quota": {"devices": {"amount": 2000}, "cpus": {"amount": 8}},
            "owners": owners, "members": members,
        })
    };
    json!({
        "departments": [{
            "name": "lab", "quota": {"devices": {"amount": 4000}, "cpus": {"amount": 16}}, "limit": {},
        }],
        "projects": [queue("red", &["ada"], &["bea"]), queue("blue", &[], &["cai"])],
        "admins": ["eve"],
    })
}

fn nodes() -> Vec<Node> {
    let node = |name: &str, devices| Node {
        name: name.into(),
        devices,
        device_memory: 80 * GIB,
        cpus: 8,
        memory: 64 * GIB,
        up: true,
    };
    vec![node("gpu", 4), node("cpu", 0)]
}

/// A job of `red` or another project, of so many whole devices.
pub(crate) fn job(name: &str, project: &str, devices: u64) -> Value {
    json!({
        "name": name, "project": project, "class": "train", "priority": 50, "members": 1,
        "devices": {"min": devices * 1000, "max": devices * 1000}, "cpus": {"min": 1, "max": 1}, "memory": GIB,
        "takes": null, "launch": {"arguments": ["luthier", "train", "run.yaml"], "folder": "/work"},
    })
}

impl Pool {
    pub(crate) fn start() -> Self {
        Pool::with(PoolLimits::default(), false)
    }

    pub(crate) fn with(limits: PoolLimits, any_command: bool) -> Self {
        let folder = folder();
        let script = Arc::new(Mutex::new(Script::default()));
        let policy: Policy = serde_json::from_value(policy()).unwrap();
        let supervisor = Supervisor::start(Setup {
            store: Store::open(&folder.path().join("state")).unwrap(),
            policy: Some(policy),
            nodes: nodes(),
            executor: Box::new(Scripted { script: Arc::clone(&script), folder: folder.path().to_owned() }),
            insight: Box::new(Known(Arc::clone(&script))),
        });
        let supervisor = supervisor.unwrap();
        let setup =
            PoolSetup { handle: supervisor.handle(), root: ROOT.into(), name: "root".into(), any_command };
        let place = Place::bind("127.0.0.1", 0).unwrap();
        let address = place.address();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || serve_pool_within(place, setup, limits, &flag));
        let mut pool = Pool {
            address,
            script,
            folder,
            tokens: BTreeMap::from([("root", ROOT.to_owned())]),
            supervisor: Some(supervisor),
            stop,
            thread: Some(thread),
        };
        for name in ["ada", "bea", "cai", "dot", "eve"] {
            let made = pool.post("root", "/pool/v1/users", &json!({"name": name})).json(200);
            pool.tokens.insert(name, made["token"].as_str().unwrap().to_owned());
        }
        pool
    }

    pub(crate) fn token(&self, user: &str) -> &str {
        &self.tokens[user]
    }

    pub(crate) fn ask(&self, user: &str, method: &str, path: &str, body: &[u8]) -> Reply {
        let header = format!("Authorization: Bearer {}\r\n", self.token(user));
        Reply::read(send(self.address, method, path, &header, body))
    }

    pub(crate) fn raw(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
        Reply::read(send(self.address, method, path, headers, body))
    }

    pub(crate) fn get(&self, user: &str, path: &str) -> Reply {
        self.ask(user, "GET", path, b"")
    }

    pub(crate) fn post(&self, user: &str, path: &str, body: &Value) -> Reply {
        self.ask(user, "POST", path, body.to_string().as_bytes())
    }

    pub(crate) fn put(&self, user: &str, path: &str, body: &Value) -> Reply {
        self.ask(user, "PUT", path, body.to_string().as_bytes())
    }

    /// Submits one job.
    #[track_caller]
    pub(crate) fn submit(&self, user: &str, job: &Value) -> u64 {
        let reply = self.post(user, "/pool/v1/jobs", &json!({"jobs": [job]})).json(200);
        reply["ids"][0].as_u64().unwrap()
    }

    #[track_caller]
    pub(crate) fn job(&self, id: u64) -> Value {
        self.get("root", &format!("/pool/v1/jobs/{id}")).json(200)
    }

    /// Waits until a job is in a phase.
    #[track_caller]
    pub(crate) fn wait(&self, id: u64, phase: &str) -> Value {
        let begun = Instant::now();
        loop {
            let job = self.job(id);
            if job["phase"] == phase {
                return job;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "job {id} never was {phase}: {job}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the processes of a job.
    pub(crate) fn exit(&self, id: u64, exit: Exit) {
        let mut script = self.script.lock().unwrap();
        let running =
            script.starts.iter_mut().filter(|(attempt, ended)| attempt.job.0 == id && ended.is_none());
        running.for_each(|(_, ended)| *ended = Some(exit));
    }

    /// Writes what the processes of a job would.
    pub(crate) fn say(&self, id: u64, bytes: &[u8]) {
        let folder = self.folder.path().join("jobs").join(id.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("log.txt"), bytes).unwrap();
    }

    /// A run folder with a curve of so many steps.
    pub(crate) fn run_folder(&self, name: &str, steps: usize) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        write_curve(&folder, steps);
        folder
    }
}

fn write_curve(folder: &Path, steps: usize) {
    let mut text = String::new();
    for step in 1..=steps {
        let loss = 1.0 + 3.0 / (step as f64).sqrt() + 0.2 * ((step * 7919) % 13) as f64 / 13.0;
        text += &format!("{}\n", json!({"step": step, "loss": loss, "tokens": 512}));
        if step % 10 == 0 {
            text += &format!("{}\n", json!({"step": step, "eval_loss": loss + 0.1, "eval_tokens": 99}));
        }
    }
    std::fs::write(folder.join("metrics.jsonl"), text).unwrap();
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.unwrap().is_ok());
        }
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.end();
        }
    }
}
