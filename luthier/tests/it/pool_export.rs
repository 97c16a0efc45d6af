//! `pool export`: a policy and a job for other engines, by the real program.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::run;
use crate::support::{succeed, tiny_model, write_lines};

const POLICY: &str = "\
projects:
  - {name: vision, quota: {devices: 2, cpus: 8}, limit: {devices: 4}, members: [bob]}
  - {name: text, quota: {devices: 2}}
";

fn folder() -> tempfile::TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    write_lines(folder.path().join("data.jsonl"), &[json!({"text": "a fox"})]);
    fs::write(folder.path().join("policy.yaml"), POLICY).unwrap();
    let run = "model: model\ndata: {train: data.jsonl}\nmemory: 2GiB\noutput: runs/first\n";
    fs::write(folder.path().join("run.yaml"), run).unwrap();
    folder
}

fn exported(folder: &Path, engine: &str, more: &[&str]) -> Value {
    let arguments =
        ["pool", "export", "--to", engine, "--policy", "policy.yaml", "--output", engine, "--json"];
    serde_json::from_str(&succeed(folder, &[&arguments[..], more].concat()).0).unwrap()
}

#[test]
fn a_policy_and_a_run_become_files() {
    let folder = folder();
    let job = [
        "--job",
        "run.yaml",
        "--project",
        "vision",
        "--devices",
        "1",
        "--cpus",
        "4",
        "--accelerator",
        "H100",
    ];
    for (engine, files) in [
        ("slurm", &["policy.sh", "job.sbatch"][..]),
        ("kai", &["queues.yaml", "job.yaml"]),
        ("kueue", &["queues.yaml", "job.yaml"]),
        ("skypilot", &["task.yaml"]),
    ] {
        let told = exported(folder.path(), engine, &job);
        let paths: Vec<String> = files.iter().map(|file| format!("{engine}/{file}")).collect();
        assert_eq!(told["files"], json!(paths));
        assert!(!told["gaps"].as_array().unwrap().is_empty());
        let last = fs::read_to_string(folder.path().join(paths.last().unwrap())).unwrap();
        for word in ["train", "run.yaml", "--resume", "2147483648B"] {
            assert!(last.contains(word), "{engine}: {word}: {last}");
        }
    }
    let script = fs::read_to_string(folder.path().join("slurm/job.sbatch")).unwrap();
    assert!(script.contains("#SBATCH --gres=gpu:1\n") && script.contains("--threads \"$cpus\""), "{script}");
    let policy = fs::read_to_string(folder.path().join("slurm/policy.sh")).unwrap();
    assert!(policy.contains("GrpTRES=gres/gpu=2,cpu=8,mem=-1 Preempt=over"), "{policy}");
}

#[test]
fn a_job_that_was_submitted_once_is_exported() {
    let folder = folder();
    let spec = json!({
        "name": "other", "project": "text", "user": "bob", "class": "build", "priority": 100, "members": 2,
        "devices": {"min": 1000, "max": 1000}, "cpus": {"min": 2, "max": 2}, "memory": 0, "takes": null,
        "launch": {"arguments": ["python3", "/data/train.py"], "folder": "/data"}});
    fs::write(folder.path().join("job.json"), json!({"id": 3, "spec": spec}).to_string()).unwrap();
    exported(folder.path(), "kai", &["--job", "job.json"]);
    let job = fs::read_to_string(folder.path().join("kai/job.yaml")).unwrap();
    assert!(
        job.contains("kai.scheduler/batch-min-member: \"2\"") && job.contains("priorityClassName: build"),
        "{job}"
    );
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_written() {
    let folder = folder();
    fs::write(folder.path().join("job.json"), "{\"spec\": 3}").unwrap();
    fs::write(folder.path().join("typo.yaml"), "projects:\n  - {name: a, qouta: {cpus: 1}}\n").unwrap();
    fs::write(folder.path().join("two.yaml"), "projects:\n  - {name: a.b}\n  - {name: a-b}\n").unwrap();
    for (policy, more, said) in [
        ("policy.yaml", &["--job", "run.yaml"][..], "say --project"),
        ("policy.yaml", &["--job", "run.yaml", "--project", "visio"], "no project `visio`"),
        ("policy.yaml", &["--job", "job.json"], "job.json: it is no job"),
        ("policy.yaml", &["--to", "skypilot"], "without a job"),
        ("typo.yaml", &[], "quota"),
        ("two.yaml", &[], "`a.b` and `a-b` would both be called `a-b`"),
        ("policy.yaml", &["--capacity", "1,2"], "such as 16,128,512GiB"),
    ] {
        let engine = if more.contains(&"skypilot") { &[][..] } else { &["--to", "kai"] };
        let arguments =
            [&["pool", "export", "--policy", policy, "--output", "out"][..], engine, more].concat();
        let output = run(folder.path(), &arguments);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(complaint.contains(said), "{said}: {complaint}");
        assert!(!folder.path().join("out").exists());
    }
}
