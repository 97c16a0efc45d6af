//! Traces in their published forms, and every way in which such a file can be wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jobs::Millis;
use jobs::simulate::{Settings, empty_pool, equal_quotas, machines, simulate};
use jobs::trace::{Format, Load, MAX_BAD, Options, Trace, TraceError, read};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/traces").join(name)
}

/// Of each job: name, project, when in seconds, members, thousandths of each, seconds of work.
fn told(trace: &Trace) -> Vec<(&str, &str, f64, u32, u64, f64)> {
    let seconds = |ms: Millis| ms as f64 / 1000.0;
    let jobs = trace.jobs.iter().map(|job| {
        let spec = &job.spec;
        let takes = seconds(spec.takes.unwrap());
        (spec.name.as_str(), spec.project.as_str(), seconds(job.at), spec.members, spec.devices.min, takes)
    });
    jobs.collect()
}

fn fixture_read(name: &str) -> Trace {
    read(&fixture(name), None, &Options::default()).unwrap()
}

#[test]
fn phillys_jobs_are_sized_by_their_first_attempt_and_work_in_all() {
    let trace = fixture_read("philly.json");
    let expected = vec![
        ("application_1_0001", "speech", 0.0, 1, 1000, 3600.0),
        // Eight devices and four: three processes of four. A minute and two; the third attempt did not end.
        ("application_1_0002", "vision", 10.0, 3, 4000, 180.0),
    ];
    assert_eq!(told(&trace), expected);
    assert_eq!((trace.never_ran, trace.without_devices, trace.bad.len()), (2, 1, 0));
    assert_eq!(trace.jobs[1].spec.user, "anna");
}

#[test]
fn phillys_jobs_may_stand_without_an_array() {
    let text = fs::read_to_string(fixture("philly.json")).unwrap();
    let inside = text.trim().trim_start_matches('[').trim_end_matches(']');
    let lines = inside.replace("\n    },", "\n    }").replace("\"ben\"},", "\"ben\"}");
    assert_eq!(read_text("jobs.jsonl", &lines).unwrap(), fixture_read("philly.json"));
}

#[test]
fn helios_jobs_are_divided_among_their_machines() {
    let trace = fixture_read("helios.csv");
    let expected = vec![
        ("101", "vcBlue", 0.0, 1, 1000, 10.0),
        ("102", "vcRed", 40.0, 2, 8000, 600.0),
        // Nine devices on two machines: three processes of three.
        ("105", "vcRed", 120.0, 3, 3000, 3600.0),
    ];
    assert_eq!(told(&trace), expected);
    assert_eq!((trace.never_ran, trace.without_devices), (1, 1));
}

#[test]
fn pais_tasks_belong_to_the_users_of_their_jobs() {
    let trace = fixture_read("pai_task_table.csv");
    let expected = vec![
        ("j1/worker", "ursula", 0.0, 3, 1000, 500.0),
        ("j2/tensorflow", "viktor", 20.0, 1, 500, 100.0),
        // One and a half devices are two; nobody knows when its job was submitted, so it came when it
        // started.
        ("j4/worker", "ursula", 200.5, 2, 2000, 99.5),
    ];
    assert_eq!(told(&trace), expected);
    assert_eq!((trace.never_ran, trace.without_devices), (2, 1));
}

#[test]
fn pais_tasks_without_the_table_of_jobs_belong_to_one_project() {
    let tasks = fs::read_to_string(fixture("pai_task_table.csv")).unwrap();
    let trace = read_text("tasks.csv", &tasks).unwrap();
    assert!(trace.jobs.iter().all(|job| job.spec.project == "all"));
    assert_eq!(trace.jobs[0].at, 0);
    assert_eq!(trace.jobs[1].at, 24_000);
}

#[test]
fn the_first_jobs_are_those_that_were_submitted_first() {
    let options = Options { limit: Some(2), ..Options::default() };
    let trace = read(&fixture("helios.csv"), Some(Format::Helios), &options).unwrap();
    let names: Vec<&str> = trace.jobs.iter().map(|job| job.spec.name.as_str()).collect();
    assert_eq!(names, ["101", "102"]);
}

fn read_with(name: &str, text: impl AsRef<[u8]>, options: &Options) -> Result<Trace, TraceError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    read(&path, None, options).map_err(|mut error| {
        error.file = Path::new(&error.file).file_name().unwrap().to_str().unwrap().to_owned();
        error
    })
}

fn read_text(name: &str, text: impl AsRef<[u8]>) -> Result<Trace, TraceError> {
    read_with(name, text, &Options::default())
}

const HEADER: &str =
    "job_id,user,vc,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,queue\n";
const GOOD: &str = "1,u,v,1,1,1,COMPLETED,2020-04-01 00:00:00,,,10,0\n";

/// One bad line of each kind, the field that has to be named, and what has to be said.
fn bad_lines() -> Vec<(String, &'static str, &'static str)> {
    let line = |gpus: &str, nodes: &str, submitted: &str, duration: &str| {
        format!("2,u,v,{gpus},1,{nodes},COMPLETED,{submitted},,,{duration},0")
    };
    let date = "2020-04-01 00:00:00";
    let long = "x".repeat(1 << 20);
    vec![
        (line("-1", "1", date, "10"), "gpu_num", "must be 0 to"),
        (line("1e308", "1", date, "10"), "gpu_num", "must be 0 to"),
        (line("NaN", "1", date, "10"), "gpu_num", "must be 0 to"),
        (line("inf", "1", date, "10"), "gpu_num", "must be 0 to"),
        (line("1.5", "1", date, "10"), "gpu_num", "whole number"),
        (line("", "1", date, "10"), "gpu_num", "must be a number"),
        (line("99999999999999999999999999", "1", date, "10"), "gpu_num", "must be 0 to"),
        (line("65521", "1", date, "10").replace(",1,1,", ",1,65521,"), "gpu_num", "processes"),
        (line("1", "many", date, "10"), "node_num", "must be a number"),
        (line("1", "1", "2020-13-01 00:00:00", "10"), "submit_time", "2017-10-07 01:11:39"),
        (line("1", "1", "1585699200", "10"), "submit_time", "2017-10-07 01:11:39"),
        (line("1", "1", date, "-5"), "duration", "must be 0 to"),
        (line("1", "1", date, "1e308"), "duration", "must be 0 to"),
        (line("1", "1", date, "nan"), "duration", "must be 0 to"),
        (line("1", "1", date, "10").replace(",v,", ",../v,"), "vc", "project's name"),
        (line("1", "1", date, "10").replace(",v,", ",,"), "vc", "project's name"),
        (line("1", "1", date, "10").replace(",v,", &format!(",{long},")), "vc", "more than 65536 bytes"),
        (line("1", "1", date, "10").replace(",u,", &format!(",{},", "x".repeat(300))), "user", "at most 256"),
        ("2,u,v".to_owned(), "gpu_num", "is missing"),
    ]
}

#[test]
fn a_bad_line_of_a_table_is_refused_with_line_and_field() {
    for (bad, field, said) in bad_lines() {
        let error = read_text("log.csv", format!("{HEADER}{GOOD}{bad}\n{GOOD}")).unwrap_err();
        let shown: String = bad.chars().take(80).collect();
        assert_eq!(error.line, Some(3), "{shown}: {error}");
        assert_eq!(error.field.as_deref(), Some(field), "{shown}: {error}");
        assert!(error.message.contains(said), "{shown}: {error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("log.csv:3: `{field}`: ")) && text.len() < 300, "{text}");
    }
    let error = read_text("log.csv", format!("{HEADER}{GOOD}1,{}", GOOD.trim())).unwrap_err();
    assert_eq!(error.to_string(), "log.csv:3: 13 fields; 12 are expected");
    let mut bytes = format!("{HEADER}{GOOD}").into_bytes();
    bytes.extend(b"2,\xff\xfe,v,1,1,1,COMPLETED,2020-04-01 00:00:00,,,10,0\n");
    let error = read_text("log.csv", bytes).unwrap_err();
    assert_eq!(error.to_string(), "log.csv:3: `user`: is not UTF-8");
}

#[test]
fn bad_lines_are_skipped_and_counted_if_asked_for() {
    let skip = Options { skip_bad: true, ..Options::default() };
    let bad = bad_lines();
    let lines: Vec<String> = bad.iter().map(|(line, ..)| format!("{line}\n{GOOD}")).collect();
    let trace = read_with("log.csv", format!("{HEADER}{}", lines.concat()), &skip).unwrap();
    assert_eq!((trace.jobs.len(), trace.bad.len()), (bad.len(), bad.len()));
    assert_eq!(trace.bad[0].line, Some(2));
    let too_many = format!("{HEADER}{}", "2,u,v\n".repeat(MAX_BAD + 1));
    let error = read_with("log.csv", too_many, &skip).unwrap_err();
    assert_eq!(error.line, Some(MAX_BAD as u64 + 2));
    assert!(error.message.contains("1000 bad lines were skipped before"), "{error}");
}

#[test]
fn a_bad_line_of_pai_is_refused_with_line_and_field() {
    let good = "j1,w,1.0,Terminated,1.0,2.0,1,1,100.0,T4\n";
    for (bad, field, said) in [
        ("j2,w,1.0,Terminated,-1.0,2.0,1,1,100.0,T4", "start_time", "must be 0 to"),
        ("j2,w,1.0,Terminated,5.0,2.0,1,1,100.0,T4", "end_time", "before `start_time`"),
        ("j2,w,1.0,Terminated,5.0,1e308,1,1,100.0,T4", "end_time", "must be 0 to"),
        ("j2,w,1e9,Terminated,5.0,6.0,1,1,100.0,T4", "inst_num", "must be 0 to"),
        ("j2,w,0.5,Terminated,5.0,6.0,1,1,100.0,T4", "inst_num", "whole number"),
        ("j2,w,1.0,Terminated,5.0,6.0,1,1,1e308,T4", "plan_gpu", "must be 0 to"),
        ("j2,w,1.0,Terminated,5.0,6.0,1,1,many,T4", "plan_gpu", "must be a number"),
    ] {
        let error = read_text("tasks.csv", format!("{good}{bad}\n")).unwrap_err();
        assert_eq!((error.line, error.field.as_deref()), (Some(2), Some(field)), "{error}");
        assert!(error.message.contains(said), "{error}");
    }
}

#[test]
fn what_is_wrong_in_pais_table_of_jobs_is_told_of_that_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pai_task_table.csv");
    fs::write(&path, "j1,w,1.0,Terminated,1.0,2.0,1,1,100.0,T4\n").unwrap();
    let jobs = folder.path().join("pai_job_table.csv");
    fs::write(&jobs, "j0,i0,u,Terminated,0.0,2.0\nj1,i1,,Terminated,0.0,2.0\n").unwrap();
    let error = read(&path, None, &Options::default()).unwrap_err();
    assert_eq!(error.file, jobs.display().to_string());
    assert_eq!((error.line, error.field.as_deref()), (Some(2), Some("user")));
    fs::write(&jobs, "j0,i0,u,Terminated,0.0,2.0\n").unwrap();
    let error = read(&path, None, &Options::default()).unwrap_err();
    assert_eq!(error.file, path.display().to_string());
    assert_eq!((error.line, error.field.as_deref()), (Some(1), Some("job_name")));
}

#[test]
fn a_bad_job_of_philly_is_refused_with_line_and_field() {
    let job = |change: (&str, &str)| {
        let job = r#"{"vc":"v","jobid":"a","user":"u","submitted_time":"2017-03-01 10:00:00","attempts":[
{"start_time":"2017-03-01 10:00:00","end_time":"2017-03-01 11:00:00","detail":[{"ip":"m","gpus":["g"]}]}]}"#;
        let changed = job.replace(change.0, change.1);
        assert_ne!(job, changed);
        format!("[\n{job},\n{changed}\n]")
    };
    let many = format!("\"gpus\":[{}\"g\"]", "\"g\",".repeat(70_000));
    for (change, field, said) in [
        (("\"vc\":\"v\",", ""), "vc", "is missing"),
        (("\"vc\":\"v\"", "\"vc\":7"), "vc", "must be a text"),
        (("\"vc\":\"v\"", "\"vc\":\"a b\""), "vc", "project's name"),
        (("\"jobid\":\"a\",", ""), "jobid", "is missing"),
        (("2017-03-01 10:00:00\",\"att", "1e308\",\"att"), "submitted_time", "must be like"),
        (("\"attempts\":[", "\"attempts\":7,\"x\":["), "attempts", "must be a list"),
        (("end_time\":\"2017-03-01 11", "end_time\":\"2017-03-01 09"), "attempts[0].end_time", "before"),
        (("start_time\":\"2017", "start_time\":\"-017"), "attempts[0].start_time", "must be like"),
        (("\"gpus\":[\"g\"]", "\"gpus\":-1"), "attempts[0].detail[0].gpus", "must be a list"),
        (("\"gpus\":[\"g\"]", many.as_str()), "attempts[0].detail", "too many"),
    ] {
        let error = read_text("log.json", job(change)).unwrap_err();
        assert_eq!((error.line, error.field.as_deref()), (Some(4), Some(field)), "{error}");
        assert!(error.message.contains(said), "{error}");
        assert!(error.to_string().len() < 300, "{error}");
        let skip = Options { skip_bad: true, ..Options::default() };
        let trace = read_with("log.json", job(change), &skip).unwrap();
        assert_eq!((trace.jobs.len(), trace.bad.len()), (1, 1));
    }
}

#[test]
fn broken_json_is_refused_with_its_line() {
    let good = fs::read_to_string(fixture("philly.json")).unwrap();
    let cut = good.find("\"ip\": \"m3\"").unwrap();
    let cases = [
        (good[..cut].to_owned(), "log.json:2: the file ends within the job that begins here"),
        (good.trim_end().trim_end_matches(']').to_owned(), "log.json:47: the file ends, but its list"),
        (format!("{good}x"), "log.json:48: a job has to begin here"),
        (good.replacen("\"status\": \"Pass\",", "\"status\": Pass,", 1), "log.json:3: expected value"),
        (format!("[{{\"a\":\"{}\"}}]", "x".repeat(5 << 20)), "log.json:1: the job that begins here has more"),
        (format!("[{{\"a\":{}", "[".repeat(5 << 20)), "log.json:1: the job that begins here has more"),
        (format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000)), "log.json:1: recursion limit"),
    ];
    for (text, said) in cases {
        let error = read_text("log.json", &text).unwrap_err().to_string();
        assert!(error.starts_with(said), "{error} is not {said}");
        assert!(error.len() < 300, "{error}");
    }
}

#[test]
fn what_is_no_trace_is_refused() {
    for (text, said) in [
        ("", "log: is neither Philly's JSON"),
        ("hello\n", "log:1: is neither Philly's JSON"),
        ("[]", "log: has no job that ran on a device"),
        ("vc,gpu_num,submit_time\n", "log:1: `job_id`: is no column of this table"),
        (HEADER, "log: has no job that ran on a device (0 without one, 0 that never ran, 0 bad lines)"),
    ] {
        let error = read_text("log", text).unwrap_err().to_string();
        let said = said.replacen("log: is neither", "log:1: is neither", 1);
        assert!(error.starts_with(&said), "{error} is not {said}");
    }
    let error = read(Path::new("/nowhere/at/all"), None, &Options::default()).unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/at/all: "), "{error}");
    let error = read(&fixture("."), None, &Options::default()).unwrap_err();
    assert!(error.message.contains("is a folder"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Bytes changed anywhere: read or refused, never a panic.
    #[test]
    fn damaged_traces_do_not_panic(
        file in 0..3usize,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<proptest::sample::Index>(),
        skip_bad in any::<bool>(),
    ) {
        let name = ["philly.json", "helios.csv", "pai_task_table.csv"][file];
        let mut bytes = fs::read(fixture(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() * 2).max(1));
        let _ = read_with(name, bytes, &Options { skip_bad, limit: None });
    }
}

#[test]
fn generated_jobs_have_the_distribution_that_is_told() {
    let load = Load { seed: 1, jobs: 20_000, projects: 4, devices: 512, load: 0.8 };
    let jobs = load.arrivals();
    assert_eq!(jobs, load.arrivals());
    assert!(jobs.is_sorted_by_key(|job| job.at) && jobs[0].at == 0);
    let part = |count: usize| count as f64 / jobs.len() as f64;
    let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
    jobs.iter().for_each(|job| *sizes.entry(job.spec.total(0).devices / 1000).or_default() += 1);
    for (devices, expected) in [(1, 0.5), (2, 0.15), (4, 0.12), (8, 0.12), (16, 0.06), (32, 0.03), (64, 0.02)]
    {
        assert!((part(sizes[&devices]) - expected).abs() < 0.01, "{devices}: {}", sizes[&devices]);
    }
    let mut works: Vec<f64> = jobs.iter().map(|job| job.spec.takes.unwrap() as f64 / 60_000.0).collect();
    works.sort_by(f64::total_cmp);
    let median = works[works.len() / 2];
    assert!((median / 20.0 - 1.0).abs() < 0.05, "{median} minutes");
    let logs: Vec<f64> = works.iter().map(|minutes| minutes.ln()).collect();
    let mean = logs.iter().sum::<f64>() / logs.len() as f64;
    let deviation = (logs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / logs.len() as f64).sqrt();
    assert!((deviation - 1.6).abs() < 0.05, "{deviation}");
    // Gaps of a Poisson process: the deviation is the mean.
    let gaps: Vec<f64> = jobs.windows(2).map(|pair| (pair[1].at - pair[0].at) as f64).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
    assert!((deviation / mean - 1.0).abs() < 0.05, "{deviation} and {mean}");
    let asked: f64 = jobs
        .iter()
        .map(|job| job.spec.takes.unwrap() as f64 * job.spec.total(0).devices as f64 / 1000.0)
        .sum();
    let load = asked / (512.0 * jobs.last().unwrap().at as f64);
    assert!((load - 0.8).abs() < 0.15, "{load}");
    let first = jobs.iter().filter(|job| job.spec.project == "p1").count();
    assert!((part(first) - 0.48).abs() < 0.02, "{first}");
}

#[test]
fn the_traces_can_be_simulated_under_equal_quotas() {
    for (name, projects) in [("philly.json", 2), ("helios.csv", 2), ("pai_task_table.csv", 2)] {
        let trace = fixture_read(name);
        let nodes = machines(3, 8);
        let capacity = nodes[0].capacity().times(3);
        let policy = equal_quotas(&trace.jobs, &capacity);
        assert_eq!(policy.projects.len(), projects);
        let report = simulate(empty_pool(policy, nodes).unwrap(), &trace.jobs, &Settings::default());
        assert_eq!(report.all.done, trace.jobs.len(), "{name}");
        assert!(report.projects.iter().all(|project| project.quota == Some(12.0)));
    }
}
