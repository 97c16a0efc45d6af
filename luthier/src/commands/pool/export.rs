//! `luthier pool export`: the same policy, and a job, as files for Slurm, KAI-Scheduler, Kueue or SkyPilot.

use std::fs;
use std::path::Path;

use anyhow::Context;
use jobs::amounts::{Amounts, WHOLE};
use jobs::executor::OWN_PROGRAM;
use jobs::export::{Site, export};
use jobs::{Launch, Range, Spec};
use serde_json::{Value, json};

use crate::cli::PoolExport;
use crate::error::user;
use crate::output;
use crate::run_file::{Purpose, Settings, read_policy};
use crate::terminal::{self, one_line, quoted};

pub(super) fn run(args: &PoolExport) -> anyhow::Result<()> {
    let policy = read_policy(&args.policy)?;
    let job = args.job.as_deref().map(|path| job(args, path)).transpose()?;
    let site = Site {
        image: args.image.clone(),
        claim: args.claim.clone(),
        accelerator: args.accelerator.clone(),
        bucket: args.bucket.clone(),
        capacity: args.capacity.map(|(devices, cpus, memory)| Amounts {
            devices: devices * WHOLE,
            cpus,
            memory,
        }),
    };
    let made = export(args.to.into(), &policy, job.as_ref(), &site)?;
    if args.output.exists() && !args.output.is_dir() {
        return Err(user(format!("--output {}: it is no folder", args.output.display())));
    }
    fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
    let mut paths = Vec::new();
    for file in &made.files {
        let path = args.output.join(&file.name);
        output::write(&path, file.text.as_bytes())?;
        paths.push(path);
    }
    made.gaps.iter().for_each(|gap| eprintln!("note: {}", one_line(gap)));
    if args.json {
        return terminal::print_json(&json!({"files": paths, "gaps": made.gaps}));
    }
    paths.iter().try_for_each(|path| terminal::print_line(quoted(path)))
}

/// A job as it was submitted once, or a run file with what the flags say.
fn job(args: &PoolExport, path: &Path) -> anyhow::Result<Spec> {
    if path.extension().is_some_and(|ending| ending == "json") {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| shown.to_string())?;
        let mut told: Value =
            serde_json::from_str(&text).map_err(|error| user(format!("{shown}: {error}")))?;
        let spec = match told.get_mut("spec") {
            Some(spec) => spec.take(),
            None => told,
        };
        return serde_json::from_value(spec).map_err(|error| {
            user(format!("{shown}: it is no job as `jobs show --json` prints it: {error}"))
        });
    }
    let settings = Settings::resolve(Some(path), Vec::new())?;
    settings.validate(Purpose::Train)?;
    let Some(project) = args.project.clone() else {
        return Err(user(format!("--job {}: whose job is it? say --project NAME", path.display())));
    };
    let memory = args.memory.or(settings.run.memory).ok_or_else(|| {
        user(format!(
            "--job {}: how much memory does it get? say --memory, or set `memory` in the run file; `luthier \
             plan` tells what it needs",
            path.display()
        ))
    })?;
    let file = std::path::absolute(path)?;
    let output = std::path::absolute(settings.run.output.as_deref().expect("validated"))?;
    let text = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| user(format!("{}: a path that is no text cannot be exported", path.display())))
    };
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words =
        ["train", &text(&file)?, "--quiet", "--threads", "{cpus}", "--memory", "{memory}B", "--resume"];
    let arguments = std::iter::once(OWN_PROGRAM).chain(words).map(str::to_owned).collect();
    let class = args.class.class();
    Ok(Spec {
        name,
        project,
        user: String::new(),
        class,
        priority: class.priority(),
        members: 1,
        devices: Range { min: args.devices.0, max: args.devices.1 },
        cpus: Range { min: args.cpus.0, max: args.cpus.1 },
        memory: memory.0,
        takes: None,
        launch: Launch { arguments, folder: std::env::current_dir()?, output: Some(output), steps: None },
    })
}
