//! `luthier jobs submit`: a run, the runs of a sweep, or another command, with what it needs and how long it
//! takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use jobs::executor::OWN_PROGRAM;
use jobs::{Launch, Range, Spec};
use serde_json::{Value, json};

use super::super::pool::client::Client;
use super::super::train::{Prepared, adopt_initial_adapter};
use crate::cli::{Global, SubmitJob};
use crate::error::{fault, user};
use crate::output;
use crate::run_file::{ByteSize, Override, Purpose, Settings, Sweep};
use crate::run_folder;
use crate::setup::Base;
use crate::terminal::{self, bytes, one_line, printable, quoted, rough};

/// A run that goes on plans its memory anew, with settings that were open at first, and may need a little
/// more: it gets this part of what is planned, and so many bytes, on top.
const HEADROOM: u64 = 16;
const SPARE: u64 = 16 << 20;
/// Memory of a command of which nobody says how much it needs.
const USUAL_MEMORY: u64 = 1 << 30;

pub(super) fn run(args: SubmitJob, global: &Global) -> anyhow::Result<ExitCode> {
    args.check()?;
    let client = Client::open(&args.which)?;
    let (specs, group) = specs(&args, Some(&client), global)?;
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let answer = client.post("/pool/v1/jobs", &json!({"jobs": specs, "group": group}))?;
    let ids: Vec<u64> = answer["ids"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    if !args.wait {
        if args.which.json {
            terminal::print_json(&answer)?;
            return Ok(ExitCode::SUCCESS);
        }
        for (id, name) in ids.iter().zip(&names) {
            eprintln!("job {id}: {}", printable(name));
            told(&client, *id)?;
        }
        for id in &ids {
            terminal::print_line(id)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut ended = Vec::new();
    for id in &ids {
        ended.push(super::wait(&client, *id)?);
    }
    let failed = ended.iter().find(|job| job["phase"] != "done");
    match (args.which.json, failed) {
        (true, _) => terminal::print_json(&json!({"jobs": ended}))?,
        (false, Some(job)) => {
            let (id, phase) = (&job["id"], job["phase"].as_str().unwrap_or_default());
            return Err(fault(format!("job {id} is {phase}; `luthier jobs logs {id}` tells what it said")));
        }
        (false, None) => eprintln!("done: {}", ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
    }
    Ok(if failed.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The jobs that are meant, and the name that a sweep's have in common. Without a `client`, whose pool
/// remembers speeds, nothing is measured.
pub(super) fn specs(
    args: &SubmitJob,
    client: Option<&Client>,
    global: &Global,
) -> anyhow::Result<(Vec<Spec>, Option<String>)> {
    if let Some(sweep) = args.sweep_args() {
        return of_sweep(args, sweep.runs()?, client, global);
    }
    if !args.command.is_empty() {
        return Ok((vec![of_command(args)?], None));
    }
    let settings = Settings::resolve(args.run.run.as_deref(), overrides(args)?)?;
    settings.validate(Purpose::Train)?;
    let folder = settings.run.output.clone().expect("validated");
    Ok((vec![of_run(args, settings, &folder, client, global)?], None))
}

/// Says at once why a job waits, if it does.
fn told(client: &Client, id: u64) -> anyhow::Result<()> {
    let why = client.get(&format!("/pool/v1/jobs/{id}/why"))?;
    if let Some(message) = why["message"].as_str() {
        eprintln!("  {}", printable(message));
    }
    Ok(())
}

fn overrides(args: &SubmitJob) -> anyhow::Result<Vec<Override>> {
    let mut overrides = args.run.overrides()?;
    overrides.extend(args.output.as_ref().map(|folder| Override::flag("--output", "output", folder)));
    Ok(overrides)
}

fn of_sweep(
    args: &SubmitJob,
    sweep: Sweep,
    client: Option<&Client>,
    global: &Global,
) -> anyhow::Result<(Vec<Spec>, Option<String>)> {
    if sweep.halving.is_some() {
        return Err(user(
            "`halving` compares the runs of a sweep with each other, so they train in one process: submit it as one, \
             `luthier jobs submit ... -- luthier sweep SWEEP.yaml`, or leave `halving` out",
        ));
    }
    fs::create_dir_all(&sweep.output).with_context(|| sweep.output.display().to_string())?;
    let mut specs: Vec<Spec> = Vec::with_capacity(sweep.members.len());
    for member in sweep.members {
        member.settings.validate(Purpose::Train)?;
        let folder = sweep.output.join(&member.name);
        let mut spec = of_run(args, member.settings, &folder, client, global)?;
        spec.name = format!("{}-{}", name(args, &sweep.output), member.name);
        specs.push(spec);
    }
    Ok((specs, Some(name(args, &sweep.output))))
}

/// A run as a job: what it needs is planned, how long it takes is known from earlier or measured now.
fn of_run(
    args: &SubmitJob,
    mut settings: Settings,
    folder: &Path,
    client: Option<&Client>,
    global: &Global,
) -> anyhow::Result<Spec> {
    settings.run.output = Some(folder.to_owned());
    run_folder::holds_run(folder)?;
    let folder = std::path::absolute(folder)?;
    let model = settings.run.model.clone().expect("validated");
    let base = Base::open(&model)?;
    let initial = adopt_initial_adapter(&mut settings, &base)?;
    let mut submitted = settings.run.clone();
    submitted.make_paths_absolute();
    let (least, most) = args.cpus;
    // More threads need more room, so what a run may grow to is planned for.
    let prepared = Prepared::new(settings, base, initial, None, &global.with_threads(most))?;
    prepared.warnings().iter().for_each(|warning| eprintln!("warning: {}", one_line(warning)));
    let (steps, tokens, planned) = prepared.extent();
    let memory = planned + planned / HEADROOM + SPARE;
    let measured = || match client {
        None => Ok(None),
        Some(client) => time(&prepared, tokens, least, client, global).map(Some),
    };
    let takes = args.takes.map_or_else(measured, |takes| Ok(Some(takes)))?;
    let about = takes
        .map_or(String::new(), |takes| format!(", about {}", rough(std::time::Duration::from_millis(takes))));
    eprintln!("{}: {steps} steps, {}{about}", quoted(&folder), bytes(memory));
    let file = folder.with_added_extension("yaml");
    let above = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(above).with_context(|| above.display().to_string())?;
    output::write(&file, submitted.to_yaml()?.as_bytes())?;
    let text = |path: PathBuf| {
        path.into_os_string().into_string().map_err(|path| {
            user(format!("{}: a path that is no text cannot be submitted", Path::new(&path).display()))
        })
    };
    let arguments = [
        OWN_PROGRAM,
        "train",
        &text(file)?,
        "--quiet",
        "--threads",
        "{cpus}",
        "--memory",
        "{memory}B",
        "--resume",
    ];
    let launch = Launch {
        arguments: arguments.map(str::to_owned).to_vec(),
        folder: std::env::current_dir()?,
        output: Some(folder.clone()),
        steps: Some(steps),
    };
    Ok(Spec { takes, launch, memory, ..asked(args, name(args, &folder)) })
}

/// Milliseconds that a run takes with so many threads: its model's speed is measured once, and the pool
/// remembers it.
fn time(
    prepared: &Prepared,
    tokens: u64,
    threads: u64,
    client: &Client,
    global: &Global,
) -> anyhow::Result<u64> {
    let key = what_is_measured(prepared, threads);
    let known = client.get(&format!("/pool/v1/speed?what={}", escaped(&key)))?["rate"].as_f64();
    let rate = match known.filter(|rate| *rate > 0.0) {
        Some(rate) => rate,
        None => {
            let seconds = prepared.time(&global.with_threads(threads))?.as_secs_f64();
            let rate = tokens as f64 / seconds.max(1e-3);
            client.put("/pool/v1/speed", &json!({"what": key, "rate": rate}))?;
            rate
        }
    };
    Ok((tokens as f64 / rate * 1000.0) as u64)
}

/// Another command as a job.
fn of_command(args: &SubmitJob) -> anyhow::Result<Spec> {
    let memory = match &args.run.shortcuts.memory {
        Some(text) => text.parse::<ByteSize>().map_err(|error| user(format!("--memory {text}: {error}")))?.0,
        None => USUAL_MEMORY,
    };
    let launch = Launch {
        arguments: args.command.clone(),
        folder: std::env::current_dir()?,
        output: args.output.as_ref().map(std::path::absolute).transpose()?,
        steps: None,
    };
    let name = args.name.clone().unwrap_or_else(|| {
        let program = Path::new(&args.command[0]).file_name().unwrap_or_default();
        program.to_string_lossy().into_owned()
    });
    Ok(Spec { members: args.members, takes: args.takes, launch, memory, ..asked(args, name) })
}

/// What the flags say.
fn asked(args: &SubmitJob, name: String) -> Spec {
    let class = args.class.class();
    Spec {
        name,
        project: args.project.clone(),
        user: String::new(), // The pool knows whose token it is.
        class,
        priority: args.priority.unwrap_or(class.priority()),
        members: 1,
        devices: Range { min: args.devices.0, max: args.devices.1 },
        cpus: Range { min: args.cpus.0, max: args.cpus.1 },
        memory: 0,
        takes: None,
        launch: Launch::default(),
    }
}

fn name(args: &SubmitJob, folder: &Path) -> String {
    let of_folder = || folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    args.name.clone().unwrap_or_else(of_folder)
}

/// What a speed holds for: the same model, held alike, on the same processor with as many threads.
fn what_is_measured(prepared: &Prepared, threads: u64) -> String {
    let run = &prepared.settings.run;
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(std::env::consts::ARCH);
    format!(
        "{} {:?} {:?} {:?} r={} {} threads {}",
        prepared.base.name,
        run.precision,
        run.quantization.as_ref().map(|quantization| quantization.kind),
        run.adapter.method,
        run.adapter.r,
        threads,
        cpu.trim_start_matches([' ', '\t', ':'])
    )
}

/// A text as a part of an address.
pub(super) fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => (byte as char).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}
