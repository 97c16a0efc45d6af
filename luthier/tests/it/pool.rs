//! A pool on this machine with the real program: projects lend and take back, the pool is killed again and
//! again, and every run ends in the bytes that it has alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::run;
use crate::support::{succeed, tiny_model, write_lines};

const POLICY: &str = "\
resize_interval: 1s
projects:
  - {name: vision, quota: {cpus: 1}}
  - {name: speech, quota: {cpus: 1}}
  - {name: students, quota: {cpus: 0}}
";

/// A pool of two cores, in a folder with a model and data.
struct Pool {
    folder: TempDir,
    process: Child,
}

impl Pool {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        tiny_model(folder.path());
        let words = ["red", "green", "blue", "white", "black", "grey"];
        let texts: Vec<Value> = (0..60)
            .map(
                |n| json!({"text": format!("the {} fox and the {} dog {n}", words[n % 6], words[n * 5 % 6])}),
            )
            .collect();
        write_lines(folder.path().join("data.jsonl"), &texts);
        fs::write(folder.path().join("policy.yaml"), POLICY).unwrap();
        let process = serve(folder.path(), &["--policy", "policy.yaml"]);
        Pool { folder, process }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Kills it as a power failure would, and starts it again.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = serve(self.path(), &[]);
    }

    /// Submits a run of so many steps, and gives its number.
    fn submit(&self, name: &str, project: &str, steps: u32, more: &[&str]) -> u64 {
        let steps = format!("training.max_steps={steps}");
        let output = format!("runs/{name}");
        let arguments = [
            "jobs",
            "submit",
            "--model",
            "model",
            "--data",
            "data.jsonl",
            "--project",
            project,
            "--output",
            &output,
            "--set",
            &steps,
            "--set",
            "training.epochs=1000",
            "--set",
            "training.batch_size=8",
            "--set",
            "data.max_length=64",
            "--set",
            "adapter.dropout=0.1",
            "--json",
        ];
        let (told, _) = succeed(self.path(), &[&arguments, more].concat());
        serde_json::from_str::<Value>(&told).unwrap()["ids"][0].as_u64().unwrap()
    }

    fn show(&self, id: u64) -> Value {
        let (told, _) = succeed(self.path(), &["jobs", "show", &id.to_string(), "--json"]);
        serde_json::from_str(&told).unwrap()
    }

    #[track_caller]
    fn until(&self, id: u64, phase: &str) -> Value {
        let begun = Instant::now();
        loop {
            let job = self.show(id);
            if job["phase"] == phase {
                return job;
            }
            let waits = begun.elapsed() < Duration::from_secs(120) && job["phase"] != "failed";
            if !waits {
                let (log, _) = succeed(self.path(), &["jobs", "logs", &id.to_string()]);
                panic!("it should be {phase}: {job:#}\n{log}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The steps of a run, each of which has to stand there once.
    fn steps(&self, name: &str) -> Vec<u64> {
        let metrics = fs::read_to_string(self.path().join("runs").join(name).join("metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["loss"].is_number()).map(|line| line["step"].as_u64().unwrap()).collect()
    }

    /// What a run comes to that nobody disturbs.
    fn alone(&self, name: &str) -> Vec<u8> {
        let (file, output) = (format!("runs/{name}.yaml"), format!("alone/{name}"));
        succeed(self.path(), &["train", &file, "--output", &output, "--quiet", "--threads", "2"]);
        fs::read(self.path().join(output).join("adapter_model.safetensors")).unwrap()
    }

    fn result(&self, name: &str) -> Vec<u8> {
        fs::read(self.path().join("runs").join(name).join("adapter_model.safetensors")).unwrap()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Processes of jobs outlive their pool; those of a test that failed should not.
        let files = walk(&self.path().join("luthier-pool/jobs"));
        for member in files.iter().filter(|path| path.file_name().is_some_and(|name| name == "launch.json")) {
            let _ = fs::write(member.with_file_name("kill"), "");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// Starts a pool and waits until it listens.
fn serve(folder: &Path, more: &[&str]) -> Child {
    let address = folder.join("luthier-pool/address");
    let _ = fs::remove_file(&address);
    let child = Command::new(env!("CARGO_BIN_EXE_luthier"))
        .args(["pool", "serve", "--port", "0", "--cpus", "2", "--memory", "4GiB"])
        .args(more)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !address.is_file() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the pool does not start");
        thread::sleep(Duration::from_millis(20));
    }
    child
}

#[test]
fn projects_take_their_slots_back_and_no_work_is_lost_though_the_pool_is_killed() {
    let mut pool = Pool::new();
    let students: Vec<u64> =
        (1..4).map(|n| pool.submit(&format!("student-{n}"), "students", 150, &[])).collect();
    pool.until(students[0], "running");
    pool.until(students[1], "running");
    let (why, _) = succeed(pool.path(), &["jobs", "why", &students[2].to_string()]);
    assert!(why.contains("it asks for 1 cpu, and of 2 cpus nothing is free"), "{why}");

    // Both projects come back to their quotas: what was lent is theirs within two seconds.
    let vision = pool.submit("vision", "vision", 40, &[]);
    let speech = pool.submit("speech", "speech", 40, &[]);
    for id in [vision, speech] {
        let job = pool.until(id, "done");
        let (asked, given) = (job["submitted"].as_u64().unwrap(), job["started"].as_u64().unwrap());
        assert!(given - asked < 2000, "job {id} waited {} ms", given - asked);
    }

    for n in 0..10 {
        thread::sleep(Duration::from_millis(30 + 40 * (n * 7 % 10)));
        pool.kill();
    }
    let evictions: u64 =
        students.iter().map(|id| pool.until(*id, "done")["evictions"].as_u64().unwrap()).sum();
    assert!(evictions >= 2, "two of them gave way: {evictions}");
    for name in ["student-1", "student-2", "student-3"] {
        assert_eq!(pool.steps(name), (1..=150).collect::<Vec<_>>(), "{name}");
        assert!(pool.result(name) == pool.alone(name), "{name} ends in other bytes than alone");
    }
    for id in students {
        let lost: u64 = pool.show(id)["history"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|a| a["lost_steps"].as_u64())
            .sum();
        assert_eq!(lost, 0, "job {id} lost work");
    }
}

#[test]
fn an_elastic_job_grows_and_shrinks_and_ends_in_the_same_bytes() {
    let pool = Pool::new();
    let elastic = pool.submit("elastic", "students", 200, &["--cpus", "1-2"]);
    pool.until(elastic, "running");
    let small = pool.submit("small", "vision", 40, &[]);
    pool.until(small, "done");
    let job = pool.until(elastic, "done");
    let history = job["history"].as_array().unwrap();
    let cpus = |attempt: &Value| attempt["placement"][0]["cpus"].as_u64().unwrap();
    let sizes: Vec<u64> = history.iter().map(cpus).collect();
    assert!(sizes.starts_with(&[2, 1]), "it has both, gives one, and may have it again: {sizes:?}");
    assert_eq!(pool.steps("elastic"), (1..=200).collect::<Vec<_>>());
    assert!(pool.result("elastic") == pool.alone("elastic"), "it ends in other bytes than alone");
}

#[test]
fn what_cannot_be_is_refused_with_what_would_help() {
    let pool = Pool::new();
    let refused = |arguments: &[&str]| {
        let output = run(pool.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let submit = ["jobs", "submit", "--model", "model", "--data", "data.jsonl", "--output", "runs/x"];
    let with = |more: &[&'static str]| [&submit[..], more].concat();
    assert!(refused(&with(&["--project", "visoin"])).contains("there is no project `visoin`"));
    let never = refused(&with(&["--project", "vision", "--cpus", "3"]));
    assert!(
        never.contains("it can never start") && never.contains("the biggest machine has 2 cpus"),
        "{never}"
    );
    let quota = refused(&with(&["--project", "students", "--class", "build"]));
    assert!(quota.contains("quota of `students` is 0 cpus"), "{quota}");
    let command = refused(&["jobs", "submit", "--project", "vision", "--", "rm", "-rf", "x"]);
    assert!(command.contains("--any-command"), "{command}");
    assert!(refused(&["jobs", "why", "77"]).contains("there is no job 77"));
    assert!(refused(&["jobs", "submit", "--project", "vision"]).contains("nothing to submit"));
    assert!(refused(&["jobs", "list", "--token", "wrong"]).contains("--token"));
    fs::write(pool.path().join("bad.yaml"), "projects:\n  - {name: vision, quota: {cpus: -3}}\n").unwrap();
    assert!(refused(&["pool", "apply", "bad.yaml"]).contains("bad.yaml:2"));
    fs::write(pool.path().join("none.yaml"), "projects: [{name: vision}]\n").unwrap();
    let hold = pool.submit("held", "speech", 400, &[]);
    succeed(pool.path(), &["jobs", "hold", &hold.to_string()]);
    assert!(refused(&["pool", "apply", "none.yaml"]).contains("`speech` is not in the new policy"));
    let (why, _) = succeed(pool.path(), &["jobs", "why", &hold.to_string()]);
    assert!(why.contains("held") || why.contains("stopping"), "{why}");
    succeed(pool.path(), &["jobs", "cancel", &hold.to_string()]);
    pool.until(hold, "cancelled");
    let (status, _) = succeed(pool.path(), &["pool", "status"]);
    assert!(status.contains("vision") && status.contains("students"), "{status}");
    let second = run(pool.path(), &["pool", "serve", "--port", "0"]);
    assert_eq!(second.status.code(), Some(2));
    assert!(String::from_utf8(second.stderr).unwrap().contains("another pool uses it"));
    let nowhere = refused(&["jobs", "list", "--pool", "nowhere"]);
    assert!(nowhere.contains("pool serve --state nowhere"), "{nowhere}");
}

#[test]
fn users_have_tokens_and_see_what_is_theirs() {
    let pool = Pool::new();
    let rules = POLICY.replace("{name: vision, ", "{name: vision, members: [bob], owners: [ann], ");
    fs::write(pool.path().join("rules.yaml"), rules).unwrap();
    succeed(pool.path(), &["pool", "apply", "rules.yaml"]);
    let token = |name: &str| succeed(pool.path(), &["pool", "users", "add", name]).0.trim().to_owned();
    let (ann, bob, eve) = (token("ann"), token("bob"), token("eve"));
    let id = pool.submit("mine", "vision", 400, &["--token", &bob]);
    let seen = |token: &str| {
        let (told, _) = succeed(pool.path(), &["jobs", "list", "--all", "--json", "--token", token]);
        serde_json::from_str::<Value>(&told).unwrap()["jobs"].as_array().unwrap().len()
    };
    assert_eq!((seen(&ann), seen(&bob), seen(&eve)), (1, 1, 0));
    let refused = |arguments: &[&str]| {
        let output = run(pool.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let number = id.to_string();
    assert!(refused(&["jobs", "cancel", &number, "--token", &eve]).contains("there is no job"));
    assert!(refused(&["jobs", "prioritize", &number, "90", "--token", &bob]).contains("owner"));
    assert!(refused(&["pool", "apply", "rules.yaml", "--token", &ann]).contains("admin"));
    succeed(pool.path(), &["jobs", "prioritize", &number, "90", "--token", &ann]);
    succeed(pool.path(), &["jobs", "cancel", &number, "--token", &bob]);
    pool.until(id, "cancelled");
    succeed(pool.path(), &["pool", "users", "remove", "bob"]);
    assert!(refused(&["jobs", "list", "--token", &bob]).contains("--token"));
}

#[test]
fn a_sweep_is_submitted_as_many_jobs() {
    let pool = Pool::new();
    let sweep = "run: {model: model, data: {train: data.jsonl, max_length: 64}, training: {max_steps: 5}}\n\
                 grid: {optimizer.learning_rate: [1.0e-3, 1.0e-4]}\noutput: swept\n";
    fs::write(pool.path().join("sweep.yaml"), sweep).unwrap();
    let arguments = ["jobs", "submit", "--sweep", "sweep.yaml", "--project", "vision", "--wait", "--json"];
    let (told, _) = succeed(pool.path(), &arguments);
    let told: Value = serde_json::from_str(&told).unwrap();
    let jobs = told["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 2);
    assert!(jobs.iter().all(|job| job["phase"] == "done" && job["group"] == "swept"), "{told:#}");
}
