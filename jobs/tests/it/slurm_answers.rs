//! What Slurm's programs say, where they say nonsense, or nothing, or what later versions say.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use jobs::amounts::Amounts;
use jobs::slurm::{Slurm, SlurmError, State};

/// A Slurm whose programs print these texts.
fn slurm(folder: &Path, programs: &[(&str, &str)]) -> Slurm {
    for (name, text) in programs {
        fs::write(folder.join(format!("{name}.txt")), text).unwrap();
        let path = folder.join(name);
        fs::write(&path, "#!/bin/sh\nexec cat \"$0.txt\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    Slurm::new().with_programs(folder)
}

#[test]
fn nonsense_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    for (text, said) in [
        ("", "no JSON"),
        ("slurm_load_jobs error: Unable to contact slurm controller", "no JSON"),
        ("[]", "no list `jobs`"),
        ("{\"jobs\": 3}", "no list `jobs`"),
        ("{\"errors\": [{\"error\": \"down\\u001b[2J\"}], \"jobs\": []}", "reports an error: down [2J"),
        ("{\"jobs\": [{}]}", "jobs[0]: there is no `job_id`"),
        ("{\"jobs\": [{\"job_id\": 1}, 7]}", "jobs[1]: there is no `job_id`"),
        ("{\"jobs\": [{\"job_id\": -1}]}", "jobs[0].job_id: -1 is no count"),
        ("{\"jobs\": [{\"job_id\": 1.5}]}", "jobs[0].job_id: 1.5 is no count"),
        ("{\"jobs\": [{\"job_id\": \"1\"}]}", "jobs[0].job_id: \"1\" is no number"),
        ("{\"jobs\": [{\"job_id\": 1, \"name\": 5}]}", "jobs[0].name: 5 is no text"),
        (
            "{\"jobs\": [{\"job_id\": 1, \"tres_req_str\": \"cpu=many\"}]}",
            "jobs[0].tres_req_str: \"cpu=many\"",
        ),
    ] {
        let error = slurm(folder.path(), &[("squeue", text)]).list().unwrap_err();
        assert!(matches!(error, SlurmError::Answer { .. }), "{text}: {error:?}");
        assert!(error.to_string().contains(said), "{text}: {error}");
    }
}

#[test]
fn numbers_beyond_measure_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let most = u64::MAX;
    let job = format!(
        "{{\"job_id\": {most}, \"array_job_id\": {most}, \"array_task_string\": \"0-{most}\",
          \"job_state\": \"PENDING\",
          \"state_reason\": \"QOSGrpGRES\", \"qos\": \"a\", \"account\": \"a\", \"comment\": \"luthier:train\",
          \"submit_time\": {most}, \"start_time\": {most}, \"restart_cnt\": {most},
          \"tres_req_str\": \"cpu=1000000000000000,mem=800P,gres/gpu=900000000000000\"}}"
    );
    let text = format!("{{\"jobs\": [{job}, {job}, {job}]}}");
    let slurm = slurm(
        folder.path(),
        &[
            ("squeue", &text),
            ("sacctmgr", "a|cpu=1,gres/gpu=1|over\n"),
            ("scontrol", ""),
            ("sacct", "{\"jobs\": []}"),
        ],
    );
    assert_eq!(slurm.list().unwrap().len(), 3);
    assert!(slurm.settle().unwrap().is_empty());
    assert!(matches!(slurm.why("1"), Err(SlurmError::NoJob(_))));
}

#[test]
fn later_versions_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"{"jobs": [{"job_id": 7, "array_job_id": {"set": true, "infinite": false, "number": 5},
        "array_task_id": {"set": true, "infinite": false, "number": 2}, "array_task_string": "",
        "job_state": ["COMPLETED"], "state_reason": "None", "user_name": "ann", "account": "vision", "qos": "over",
        "name": "sweep", "comment": "luthier:train", "tres_req_str": "cpu=2,mem=2G,node=1,gres/gpu=1",
        "start_time": {"set": true, "infinite": false, "number": 1700000000}, "restart_cnt": 1,
        "exit_code": {"status": ["SUCCESS"], "return_code": {"set": true, "infinite": false, "number": 0}},
        "standard_output": "/runs/a/slurm-%A_%a.out", "current_working_directory": "/runs/a"}]}"#;
    let jobs = slurm(folder.path(), &[("squeue", text)]).show("5").unwrap();
    let job = &jobs[0];
    assert_eq!((job.id.as_str(), job.state, job.exit), ("5_2", State::Done, Some(0)));
    assert_eq!(job.requested, Amounts { devices: 1000, cpus: 2, memory: 2 << 30 });
    assert_eq!(job.log, Path::new("/runs/a/slurm-5_2.out"));
    assert_eq!(job.started, Some(1_700_000_000_000));
}

#[test]
fn where_there_is_no_slurm_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let error = Slurm::new().with_programs(folder.path()).list().unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot start `squeue`: it is not there; is this a machine of a Slurm cluster?"
    );
    fs::write(folder.path().join("squeue"), "#!/bin/sh\necho 'no controller' >&2\nexit 1\n").unwrap();
    fs::set_permissions(folder.path().join("squeue"), fs::Permissions::from_mode(0o755)).unwrap();
    let error = Slurm::new().with_programs(folder.path()).list().unwrap_err();
    assert_eq!(error.to_string(), "`squeue --json` failed: no controller");
}

#[test]
fn what_is_no_number_of_a_job_never_reaches_slurm() {
    let slurm = Slurm::new().with_programs("/nowhere");
    for id in ["", "--help", "12;id", "a", "12_", "_3", "1_2_3", "99999999999"] {
        assert!(matches!(slurm.show(id), Err(SlurmError::NoNumber(_))), "{id}");
        assert!(matches!(slurm.cancel(id), Err(SlurmError::NoNumber(_))), "{id}");
    }
}
