//! `luthier jobs ... --pool slurm`: the same commands, answered by a Slurm cluster.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use jobs::Spec;
use jobs::slurm::{Job, Slurm};
use serde_json::json;

use super::submit;
use crate::cli::{Global, Jobs, ListJobs, OneJob, SubmitJob, WhichPool};
use crate::error::user;
use crate::terminal::{self, Table, printable, rough};

/// What `--pool` says where it is a cluster.
const NAME: &str = "slurm";
/// How long before its end a job is told to save, where the policy does not say.
const GRACE: jobs::Millis = 10 * 60_000;

/// Runs one of the commands, if it is for Slurm.
pub(super) fn run(args: &Jobs, global: &Global) -> anyhow::Result<Option<ExitCode>> {
    let which = match args {
        Jobs::Submit(args) => &args.which,
        Jobs::List(args) => &args.which,
        Jobs::Logs(args) => &args.which,
        Jobs::Prioritize(args) => &args.which,
        Jobs::Show(args) | Jobs::Why(args) | Jobs::Cancel(args) | Jobs::Hold(args) | Jobs::Release(args) => {
            &args.which
        }
    };
    if which.pool != NAME {
        return Ok(None);
    }
    let slurm = slurm()?;
    match args {
        Jobs::Submit(args) => submit(&slurm, args, global)?,
        Jobs::List(args) => list(&slurm, args)?,
        Jobs::Show(args) => show(&slurm, args)?,
        Jobs::Why(args) => why(&slurm, args)?,
        Jobs::Logs(args) if args.follow => {
            return Err(user("--follow: of Slurm's jobs it is `tail -f` of the file that `jobs show` names"));
        }
        Jobs::Logs(args) => logs(&slurm, args.job, &args.which)?,
        Jobs::Cancel(args) => act(args, "ends; what it has saved stays", |id| slurm.cancel(id))?,
        Jobs::Hold(args) => act(args, "does not run until it is released", |id| slurm.hold(id))?,
        Jobs::Release(args) => act(args, "may run", |id| slurm.release(id))?,
        Jobs::Prioritize(_) => {
            return Err(user(
                "prioritize: Slurm lets nobody but its operators do that: scontrol update JobId=N Priority=P",
            ));
        }
    }
    Ok(Some(ExitCode::SUCCESS))
}

/// The cluster of this machine; its jobs start this very program.
pub(in super::super) fn slurm() -> anyhow::Result<Slurm> {
    let own = std::env::current_exe().context("where this program is")?;
    Ok(match own.to_str() {
        Some(own) => Slurm::new().with_own_program(own),
        None => Slurm::new(),
    })
}

/// What Slurm does not do by itself is done by whoever looks.
fn settle(slurm: &Slurm) -> anyhow::Result<()> {
    slurm.settle()?.iter().for_each(|done| eprintln!("note: {}", printable(done)));
    Ok(())
}

fn submit(slurm: &Slurm, args: &SubmitJob, global: &Global) -> anyhow::Result<()> {
    args.check()?;
    if args.wait {
        return Err(user("--wait: Slurm's own `sbatch --wait` does that; leave it out here"));
    }
    let (specs, _) = submit::specs(args, None, global)?;
    let ids = batches(slurm, &specs)?;
    if args.which.json {
        return terminal::print_json(&json!({"ids": ids}));
    }
    for id in &ids {
        if let Ok(why) = slurm.why(id) {
            eprintln!("job {id}: {}", printable(&why.message));
        }
    }
    ids.iter().try_for_each(terminal::print_line)
}

/// Those that ask for the same become arrays.
fn batches(slurm: &Slurm, specs: &[Spec]) -> anyhow::Result<Vec<String>> {
    let asks = |a: &Spec, b: &Spec| {
        (a.memory, a.devices, a.cpus, a.members) == (b.memory, b.devices, b.cpus, b.members)
    };
    let mut ids = Vec::new();
    for like in specs.chunk_by(asks) {
        ids.extend(slurm.submit_all(like, GRACE)?);
    }
    Ok(ids)
}

fn list(slurm: &Slurm, args: &ListJobs) -> anyhow::Result<()> {
    settle(slurm)?;
    let wanted = |job: &Job| {
        (args.all || !job.state.is_over())
            && args.project.as_ref().is_none_or(|project| *project == job.project)
            && args.user.as_ref().is_none_or(|user| *user == job.user)
    };
    let mut jobs = slurm.list()?;
    jobs.retain(wanted);
    jobs.sort_by_key(|job| std::cmp::Reverse(job.number));
    jobs.truncate(args.limit as usize);
    if args.which.json {
        return terminal::print_json(&json!({"jobs": jobs}));
    }
    let mut table = Table::new(["job", "name", "project", "user", "phase", "quota", "asks for", "stopped"]);
    for job in &jobs {
        table.row([
            job.id.clone(),
            printable(&job.name),
            printable(&job.project),
            printable(&job.user),
            phase(job),
            quota(job).to_owned(),
            job.requested.to_string(),
            job.restarts.to_string(),
        ]);
    }
    terminal::print_line(table)
}

fn quota(job: &Job) -> &'static str {
    if job.qos == "over" { "borrowed" } else { "own" }
}

fn phase(job: &Job) -> String {
    format!("{:?}", job.state).to_lowercase()
}

fn show(slurm: &Slurm, args: &OneJob) -> anyhow::Result<()> {
    let jobs = slurm.show(&args.job.to_string())?;
    if args.which.json {
        return terminal::print_json(&json!({"jobs": jobs}));
    }
    for job in &jobs {
        terminal::print_line(format!("job {}: {}", job.id, printable(&job.name)))?;
        terminal::print_line(format!(
            "{} of {}, {} ({}), asks for {}, {} room, stopped {} times",
            printable(&job.user),
            printable(&job.project),
            phase(job),
            printable(&job.slurm_state),
            job.requested,
            quota(job),
            job.restarts
        ))?;
        terminal::print_line(printable(&job.log.to_string_lossy()))?;
    }
    Ok(())
}

fn why(slurm: &Slurm, args: &OneJob) -> anyhow::Result<()> {
    settle(slurm)?;
    let why = slurm.why(&args.job.to_string())?;
    if args.which.json {
        return terminal::print_json(&why);
    }
    terminal::print_line(format!("{}: {}", printable(&why.rule), printable(&why.message)))?;
    terminal::print_line(format!("waits for: {}", printable(&why.unblocks)))?;
    let now = jobs::supervisor::now();
    match why.expected {
        Some(at) if at > now => {
            terminal::print_line(format!("expected in {}", rough(Duration::from_millis(at - now))))
        }
        _ => Ok(()),
    }
}

fn logs(slurm: &Slurm, job: u64, which: &WhichPool) -> anyhow::Result<()> {
    let mut texts = Vec::new();
    for path in slurm.logs(&job.to_string())? {
        let text = fs::read(&path)
            .with_context(|| format!("{}: a job that has not run yet has no log", path.display()))?;
        texts.push(String::from_utf8_lossy(&text).into_owned());
    }
    let text = texts.concat();
    if which.json {
        return terminal::print_json(&json!({"job": job, "text": text}));
    }
    let lines = text.lines().map(|line| printable(line) + "\n");
    terminal::print(&lines.collect::<String>())
}

fn act<E>(args: &OneJob, done: &str, deed: impl Fn(&str) -> Result<(), E>) -> anyhow::Result<()>
where
    anyhow::Error: From<E>,
{
    deed(&args.job.to_string())?;
    match args.which.json {
        true => terminal::print_json(&json!({"job": args.job})),
        false => {
            eprintln!("job {} {done}", args.job);
            Ok(())
        }
    }
}
