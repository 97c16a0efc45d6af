//! What other engines get: against their schemas, strictly, and in full as snapshots.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jobs::amounts::{Amounts, WHOLE};
use jobs::export::{Engine, Export, ExportError, Site, export};
use jobs::policy::{Policy, Queue, Said, Share};
use jobs::{Class, Launch, Range, Spec};
use serde_json::Value;

use crate::schema::errors;

const GIB: u64 = 1 << 30;

/// A policy that uses every setting.
pub(crate) fn policy() -> Policy {
    let devices = |n: u64| Some(Said::Amount(n * WHOLE));
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let share = |d: u64, cpus: u64, gib: u64| Share {
        devices: devices(d),
        cpus: Some(Said::Amount(cpus)),
        memory: Some(Said::Amount(gib * GIB)),
    };
    Policy {
        departments: vec![
            Queue { name: "Research".into(), quota: share(8, 64, 256), ..Queue::default() },
            Queue {
                name: "vision".into(),
                department: Some("Research".into()),
                quota: share(6, 48, 192),
                limit: share(12, 96, 384),
                reclaim_min_runtime: Some(300_000),
                ..Queue::default()
            },
        ],
        projects: vec![
            Queue {
                name: "vision".into(),
                department: Some("vision".into()),
                quota: share(4, 32, 128),
                limit: share(8, 64, 256),
                over_quota_weight: 2.5,
                priority: 10,
                members: names(&["bob"]),
                owners: names(&["ann"]),
                ..Queue::default()
            },
            Queue {
                name: "OCR_team".into(),
                department: Some("vision".into()),
                quota: Share { devices: Some(Said::Amount(1500)), ..share(0, 8, 32) },
                over_quota_weight: 0.0,
                preempt_min_runtime: Some(90_500),
                ..Queue::default()
            },
            Queue { name: "lab".into(), ..Queue::default() },
        ],
        admins: names(&["root"]),
        grace: 120_000,
        ..Policy::default()
    }
}

/// A gang that may grow.
pub(crate) fn gang() -> Spec {
    Spec {
        name: "8B, rank 64".into(),
        project: "vision".into(),
        user: "bob".into(),
        class: Class::Train,
        priority: 60,
        members: 2,
        devices: Range { min: 2000, max: 4000 },
        cpus: Range::exactly(8),
        memory: 32 * GIB,
        takes: None,
        launch: launch(),
    }
}

fn launch() -> Launch {
    let words = [
        "/opt/bin/luthier",
        "train",
        "it's $HOME.yaml",
        "--resume",
        "--threads",
        "{cpus}",
        "--memory",
        "{memory}",
    ];
    Launch {
        arguments: words.map(String::from).to_vec(),
        folder: PathBuf::from("/runs/8b r64"),
        ..Launch::default()
    }
}

/// A job of half a device that is never stopped.
fn half() -> Spec {
    Spec {
        name: "no".into(),
        class: Class::Inference,
        priority: 125,
        members: 1,
        devices: Range::exactly(500),
        cpus: Range::exactly(1),
        memory: 0,
        ..gang()
    }
}

fn site() -> Site {
    let capacity = Amounts { devices: 16 * WHOLE, cpus: 128, memory: 512 * GIB };
    Site { accelerator: Some("H100".into()), capacity: Some(capacity), ..Site::default() }
}

fn made(engine: Engine, job: &Spec) -> Export {
    export(engine, &policy(), Some(job), &site()).unwrap()
}

/// All of an export, as one text.
fn told(export: &Export) -> String {
    let files = export.files.iter().map(|file| format!("==> {} <==\n{}\n", file.name, file.text));
    let gaps = export.gaps.iter().map(|gap| format!("- {gap}\n"));
    files.chain(gaps).collect()
}

fn schemas() -> Value {
    serde_json::from_str(include_str!("../fixtures/schemas/objects.json")).unwrap()
}

fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

/// What is wrong with the objects of a file.
fn wrong_in(text: &str) -> Vec<String> {
    let schemas = schemas();
    let check = |object: Value| {
        let kind = format!(
            "{} {}",
            object["apiVersion"].as_str().unwrap_or_default(),
            object["kind"].as_str().unwrap_or_default()
        );
        match schemas["kinds"].get(&kind) {
            Some(schema) => errors(schema, &schemas, &object, &kind),
            None => vec![format!("{kind}: no such kind")],
        }
    };
    objects(text).into_iter().flat_map(check).collect()
}

#[test]
fn kubernetes_objects_are_as_their_schemas_say() {
    for engine in [Engine::Kai, Engine::Kueue] {
        for job in [gang(), half()] {
            let made = made(engine, &job);
            assert_eq!(
                made.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(),
                ["queues.yaml", "job.yaml"]
            );
            for file in made.files {
                assert_eq!(wrong_in(&file.text), Vec::<String>::new(), "{}", file.text);
            }
        }
    }
}

#[test]
fn a_misspelt_field_is_found() {
    for (engine, file, right, misspelt) in [
        (Engine::Kai, 0, "priority:", "priorty:"),
        (Engine::Kueue, 0, "nominalQuota:", "nominalQouta:"),
        (Engine::Kai, 1, "backoffLimit:", "backofLimit:"),
        (Engine::Kueue, 1, "onExitCodes:", "onExitCode:"),
    ] {
        let text = &made(engine, &gang()).files[file].text;
        assert!(text.contains(right), "{text}");
        let wrong = wrong_in(&text.replace(right, misspelt));
        assert!(wrong.iter().any(|error| error.contains("no such field")), "{wrong:?}");
    }
}

#[test]
fn a_task_of_skypilot_is_as_its_schema_says() {
    let schemas = schemas();
    let text = &made(Engine::Skypilot, &gang()).files[0].text;
    let task = &objects(text)[0];
    assert_eq!(errors(&schemas["kinds"]["task"], &schemas, task, "task"), Vec::<String>::new(), "{text}");
    let misspelt = objects(&text.replace("num_nodes", "num_node"));
    assert!(!errors(&schemas["kinds"]["task"], &schemas, &misspelt[0], "task").is_empty());
    let bare = export(Engine::Skypilot, &policy(), Some(&gang()), &Site::default());
    assert!(matches!(bare, Err(ExportError::Job { field: "devices", .. })));
    let nothing = export(Engine::Skypilot, &policy(), None, &site());
    assert_eq!(nothing, Err(ExportError::NoJob));
}

#[test]
fn kai_gets_this() {
    insta::assert_snapshot!(told(&made(Engine::Kai, &gang())));
}

#[test]
fn kai_gets_this_for_a_part_of_a_device() {
    insta::assert_snapshot!(told(&made(Engine::Kai, &half())));
}

#[test]
fn kueue_gets_this() {
    insta::assert_snapshot!(told(&made(Engine::Kueue, &gang())));
}

#[test]
fn kueue_gets_this_for_a_part_of_a_device() {
    insta::assert_snapshot!(told(&made(Engine::Kueue, &half())));
}

#[test]
fn skypilot_gets_this() {
    insta::assert_snapshot!(told(&made(Engine::Skypilot, &gang())));
}

#[test]
fn slurm_gets_this() {
    insta::assert_snapshot!(told(&made(Engine::Slurm, &gang())));
}

#[test]
fn a_bound_that_nobody_set_is_said_to_be_none() {
    let made = made(Engine::Kai, &gang());
    let queues = objects(&made.files[0].text);
    let lab = queues.iter().find(|queue| queue["metadata"]["name"] == "lab").unwrap();
    assert_eq!(lab["spec"]["resources"]["gpu"]["limit"], -1.0);
    assert_eq!(lab["spec"]["resources"]["gpu"]["quota"], 0.0);
    // KAI-Scheduler places nothing of a queue without a parent.
    let roots: Vec<&Value> =
        queues.iter().filter(|q| q["kind"] == "Queue" && q["spec"]["parentQueue"].is_null()).collect();
    assert_eq!(roots.len(), 1);
    assert_eq!(roots[0]["metadata"]["name"], "pool");
}

#[test]
fn what_no_quota_gives_away_is_kueues_shared_pool() {
    let queues = objects(&made(Engine::Kueue, &gang()).files[0].text);
    let cohort =
        |name: &str| queues.iter().find(|q| q["kind"] == "Cohort" && q["metadata"]["name"] == name).unwrap();
    let nominal = |queue: &Value, n: usize| {
        queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][n]["nominalQuota"].clone()
    };
    // 16 devices, of which 8 are Research's; of those 6 are vision's, of those 4 and 1.5 the two projects'.
    assert_eq!(nominal(cohort("pool"), 0), "8");
    assert_eq!(nominal(cohort("research"), 0), "2");
    assert_eq!(nominal(cohort("vision-2"), 0), "0");
    let borrowing =
        &cohort("vision-2")["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]["borrowingLimit"];
    assert_eq!(borrowing, "6");
}

#[test]
fn names_that_would_be_one_are_refused() {
    let mut policy = policy();
    policy.projects.push(Queue { name: "ocr-team".into(), ..Queue::default() });
    for engine in [Engine::Slurm, Engine::Kai, Engine::Kueue] {
        let error = export(engine, &policy, None, &Site::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "projects `OCR_team` and `ocr-team` would both be called `ocr-team` there; rename one"
        );
    }
}

#[test]
fn a_job_that_cannot_run_there_is_refused() {
    let refused = |change: fn(&mut Spec), said: &str| {
        let mut spec = gang();
        change(&mut spec);
        let error = export(Engine::Kai, &policy(), Some(&spec), &Site::default()).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    };
    refused(|spec| spec.project = "visio".into(), "no project `visio`");
    refused(|spec| spec.launch.folder = "runs".into(), "absolute");
    refused(|spec| spec.launch.arguments.clear(), "no program");
    refused(|spec| spec.launch.arguments.push("a\n#SBATCH --uid=0".into()), "line break");
    refused(|spec| spec.launch.output = Some("/elsewhere/run".into()), "no folder in common");
    refused(|spec| spec.devices = Range::exactly(1500), "whole ones");
}

#[test]
fn a_volume_holds_all_that_a_job_names() {
    let mut spec = gang();
    spec.launch.folder = "/home/ann/work".into();
    spec.launch.output = Some("/home/ann/runs/a".into());
    spec.launch.arguments[2] = "/home/ann/runs/a.yaml".into();
    let objects = objects(&made(Engine::Kai, &spec).files[1].text);
    let container = &objects[1]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/home/ann");
    assert_eq!(container["workingDir"], "/home/ann/work");
}

#[test]
fn a_script_is_what_bash_can_read() {
    for job in [gang(), half()] {
        for file in made(Engine::Slurm, &job).files {
            let mut child = std::process::Command::new("bash")
                .arg("-n")
                .stdin(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), file.text.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}{}", file.text, String::from_utf8_lossy(&output.stderr));
        }
    }
}
