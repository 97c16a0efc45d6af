//! `luthier pool simulate`: traces in and a table out, with the real program.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::run;
use crate::support::succeed;

fn traces() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../jobs/tests/fixtures/traces");
    path.display().to_string()
}

fn simulate(folder: &Path, arguments: &[&str]) -> Value {
    let arguments = [&["pool", "simulate", "--json"], arguments].concat();
    serde_json::from_str(&succeed(folder, &arguments).0).unwrap()
}

#[test]
fn a_trace_of_each_kind_is_simulated_beside_other_schedulers() {
    let folder = tempdir().unwrap();
    for (file, jobs) in [("philly.json", 2), ("helios.csv", 3), ("pai_task_table.csv", 3)] {
        let file = format!("{}/{file}", traces());
        let arguments = ["--trace", &file, "--nodes", "3", "--devices-per-node", "8", "--compare"];
        let told = simulate(folder.path(), &arguments);
        assert_eq!(told, simulate(folder.path(), &arguments));
        let results = told["results"].as_array().unwrap();
        let names: Vec<&str> = results.iter().map(|result| result["scheduler"].as_str().unwrap()).collect();
        assert_eq!(names, ["pool", "fifo", "backfill", "fair share"]);
        for result in results {
            assert_eq!(result["all"]["done"], jobs, "{file}: {}", result["scheduler"]);
            assert_eq!(result["jobs"].as_array().unwrap().len(), jobs);
            assert!(result["utilization"].as_f64().unwrap() <= 1.0);
        }
    }
}

#[test]
fn generated_jobs_are_told_as_a_table() {
    let folder = tempdir().unwrap();
    let arguments =
        ["pool", "simulate", "--generate", "200", "--nodes", "4", "--devices-per-node", "8", "--compare"];
    let (table, _) = succeed(folder.path(), &arguments);
    for line in
        ["200 jobs on 32 devices (4 machines with 8)", "fairness (Jain)", "wait, p99", "evictions", "p1"]
    {
        assert!(table.contains(line), "{line}: {table}");
    }
    assert_eq!(table, succeed(folder.path(), &arguments).0);
}

#[test]
fn a_policy_decides_and_jobs_of_other_projects_are_refused() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("policy.yaml"), "projects:\n  - {name: vcRed, quota: {devices: 16}}\n")
        .unwrap();
    let file = format!("{}/helios.csv", traces());
    let arguments = ["--trace", &file, "--nodes", "2", "--devices-per-node", "8", "--policy", "policy.yaml"];
    let told = simulate(folder.path(), &arguments);
    let all = &told["results"][0]["all"];
    assert_eq!((&all["done"], &all["refused"]), (&2.into(), &1.into()));
    let why = told["results"][0]["jobs"][0]["refused"].as_str().unwrap();
    assert!(why.contains("there is no project `vcBlue`"), "{why}");
    assert_eq!(told["left_out"]["never_ran"], 1);
}

#[test]
fn what_cannot_be_read_is_told_with_file_line_and_field() {
    let folder = tempdir().unwrap();
    let log = fs::read_to_string(Path::new(&traces()).join("helios.csv")).unwrap();
    fs::write(folder.path().join("log.csv"), log.replace(",600,0", ",-600,0")).unwrap();
    let arguments = ["pool", "simulate", "--trace", "log.csv", "--nodes", "2", "--devices-per-node", "8"];
    let output = run(folder.path(), &arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(output.stdout.is_empty());
    assert!(error.contains("log.csv:2: `duration`: \"-600\"; must be 0 to"), "{error}");
    let output = run(folder.path(), &[&arguments[..], &["--skip-bad-lines"]].concat());
    let notes = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{notes}");
    assert!(notes.contains("skipped log.csv:2: `duration`"), "{notes}");
}

#[test]
fn numbers_beyond_reason_are_refused() {
    let folder = tempdir().unwrap();
    let wrong: [&[&str]; 7] = [
        &["--nodes", "2", "--devices-per-node", "8"],
        &["--generate", "10", "--trace", "x", "--nodes", "2", "--devices-per-node", "8"],
        &["--generate", "0", "--nodes", "2", "--devices-per-node", "8"],
        &["--generate", "10", "--nodes", "0", "--devices-per-node", "8"],
        &["--generate", "10", "--nodes", "2", "--devices-per-node", "-1"],
        &["--generate", "10", "--nodes", "2", "--devices-per-node", "8", "--load", "NaN"],
        &["--trace", "nowhere.csv", "--nodes", "2", "--devices-per-node", "8"],
    ];
    for arguments in wrong {
        let output = run(folder.path(), &[&["pool", "simulate"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}
