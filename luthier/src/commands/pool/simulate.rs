//! `luthier pool simulate`: what a policy would have made of a trace of jobs, and what other schedulers would
//! have.

use std::time::Duration;

use anyhow::Context;
use jobs::simulate::{
    Arrival, Costs, ProjectFigures, Report, Rule, Settings, baseline, empty_pool, equal_quotas, machines,
    simulate,
};
use jobs::trace::{self, Load, Options};
use serde_json::{Value, json};

use crate::cli::{PoolSimulate, TraceFormat};
use crate::error::user;
use crate::run_file::read_policy;
use crate::terminal::{self, Table, digits, duration, one_line};

/// Bad lines that are told one by one.
const TOLD: usize = 3;
/// Projects that have a line of their own.
const SHOWN: usize = 40;

pub(super) fn run(args: &PoolSimulate) -> anyhow::Result<()> {
    let (trace, left_out) = jobs(args)?;
    let nodes = machines(args.nodes as usize, args.devices_per_node);
    let capacity = nodes[0].capacity().times(u64::from(args.nodes));
    let policy = match &args.policy {
        Some(path) => read_policy(path)?,
        None => equal_quotas(&trace, &capacity),
    };
    let pool = empty_pool(policy, nodes)?;
    let milliseconds = |seconds: u32| u64::from(seconds) * 1000;
    let costs = Costs {
        start: milliseconds(args.start_seconds),
        save: milliseconds(args.save_seconds),
        ..Costs::default()
    };
    let settings = Settings { costs, ..Settings::default() };
    let mut reports = vec![("pool", simulate(pool.clone(), &trace, &settings))];
    if args.compare {
        for (name, rule) in
            [("fifo", Rule::Fifo), ("backfill", Rule::FifoBackfill), ("fair share", Rule::FairShare)]
        {
            reports.push((name, baseline(&pool, &trace, rule, &settings)));
        }
    }
    if args.json {
        return terminal::print_json(&as_json(args, &left_out, &reports)?);
    }
    terminal::print_line(format!(
        "{} jobs on {} devices ({} machines with {})\n\n{}",
        trace.len(),
        args.nodes * args.devices_per_node,
        args.nodes,
        args.devices_per_node,
        comparison(&reports)
    ))?;
    terminal::print_line(format!("\n{}", projects(&reports[0].1.projects)))?;
    tell_refusals(&reports[0].1);
    Ok(())
}

/// What of a trace is not simulated.
#[derive(Default, serde::Serialize)]
struct LeftOut {
    without_devices: usize,
    never_ran: usize,
    bad_lines: usize,
}

/// The jobs of the file, or of the distribution.
fn jobs(args: &PoolSimulate) -> anyhow::Result<(Vec<Arrival>, LeftOut)> {
    let Some(path) = &args.trace else {
        let load = Load {
            seed: args.seed,
            jobs: args.generate.context("there is neither a trace nor a number of jobs")? as usize,
            projects: args.projects as usize,
            devices: u64::from(args.nodes) * u64::from(args.devices_per_node),
            load: args.load,
        };
        let mut jobs = load.arrivals();
        jobs.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
        return Ok((jobs, LeftOut::default()));
    };
    let format = match args.format {
        TraceFormat::Auto => None,
        TraceFormat::Philly => Some(trace::Format::Philly),
        TraceFormat::Helios => Some(trace::Format::Helios),
        TraceFormat::Pai => Some(trace::Format::Pai),
    };
    let options = Options { limit: args.limit.map(|limit| limit as usize), skip_bad: args.skip_bad_lines };
    let trace = trace::read(path, format, &options).map_err(|error| user(one_line(&error.to_string())))?;
    for bad in trace.bad.iter().take(TOLD) {
        eprintln!("note: skipped {}", one_line(&bad.to_string()));
    }
    if trace.bad.len() > TOLD {
        eprintln!("note: skipped {} bad lines in all", trace.bad.len());
    }
    if trace.without_devices + trace.never_ran > 0 {
        eprintln!(
            "note: jobs that are left out: {} without devices, {} that never ran",
            trace.without_devices, trace.never_ran
        );
    }
    let left_out = LeftOut {
        without_devices: trace.without_devices,
        never_ran: trace.never_ran,
        bad_lines: trace.bad.len(),
    };
    Ok((trace.jobs, left_out))
}

fn as_json(args: &PoolSimulate, left_out: &LeftOut, reports: &[(&str, Report)]) -> anyhow::Result<Value> {
    let result = |(name, report): &(&str, Report)| -> anyhow::Result<Value> {
        let mut value = serde_json::to_value(report)?;
        value["scheduler"] = json!(name);
        Ok(value)
    };
    Ok(json!({
        "nodes": args.nodes,
        "devices_per_node": args.devices_per_node,
        "left_out": left_out,
        "results": reports.iter().map(result).collect::<anyhow::Result<Vec<Value>>>()?,
    }))
}

fn seconds(seconds: f64) -> String {
    match seconds == 0.0 {
        true => "0 s".to_owned(),
        false => duration(Duration::from_secs_f64(seconds)),
    }
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

/// A line for each measure, a column for each scheduler.
fn comparison(reports: &[(&str, Report)]) -> Table {
    let mut table = Table::new([""].into_iter().chain(reports.iter().map(|(name, _)| *name)));
    let mut line = |name: &str, cell: &dyn Fn(&Report) -> String| {
        table.row([name.to_owned()].into_iter().chain(reports.iter().map(|(_, report)| cell(report))));
    };
    line("done", &|report| report.all.done.to_string());
    line("refused", &|report| report.all.refused.to_string());
    line("unfinished", &|report| report.all.unfinished.to_string());
    line("wait, mean", &|report| seconds(report.all.wait_seconds.mean));
    line("wait, median", &|report| seconds(report.all.wait_seconds.median));
    line("wait, p90", &|report| seconds(report.all.wait_seconds.p90));
    line("wait, p99", &|report| seconds(report.all.wait_seconds.p99));
    line("wait, longest", &|report| seconds(report.all.wait_seconds.max));
    line("bounded slowdown", &|report| digits(report.all.bounded_slowdown));
    line("devices used", &|report| percent(report.utilization));
    line("of use", &|report| percent(report.useful));
    line("device hours", &|report| digits(report.all.device_hours));
    line("fairness (Jain)", &|report| report.fairness.map_or("-".into(), |index| format!("{index:.3}")));
    line("evictions", &|report| report.all.evictions.to_string());
    line("moves", &|report| report.all.moves.to_string());
    line("resizes", &|report| report.all.resizes.to_string());
    line("lost device hours", &|report| digits(report.all.lost_device_hours));
    line("makespan", &|report| seconds(report.makespan_seconds));
    table
}

/// The projects with the most device hours.
fn projects(all: &[ProjectFigures]) -> String {
    let mut all: Vec<&ProjectFigures> = all.iter().collect();
    all.sort_by(|a, b| b.figures.device_hours.total_cmp(&a.figures.device_hours));
    let mut table = Table::new([
        "project",
        "quota",
        "jobs",
        "device hours",
        "wait, mean",
        "p99",
        "slowdown",
        "evictions",
    ]);
    for project in all.iter().take(SHOWN) {
        let figures = &project.figures;
        table.row([
            project.project.clone(),
            project.quota.map_or("-".to_owned(), digits),
            figures.jobs.to_string(),
            digits(figures.device_hours),
            seconds(figures.wait_seconds.mean),
            seconds(figures.wait_seconds.p99),
            digits(figures.bounded_slowdown),
            figures.evictions.to_string(),
        ]);
    }
    match all.len() > SHOWN {
        true => format!("{table}\n({} more projects: --json has them)", all.len() - SHOWN),
        false => table.to_string(),
    }
}

/// Why jobs were not taken, for the first of them.
fn tell_refusals(report: &Report) {
    let refused = report.jobs.iter().filter_map(|job| Some((&job.name, job.refused.as_ref()?)));
    for (name, why) in refused.take(TOLD) {
        eprintln!("note: job {} was refused: {}", one_line(name), one_line(why));
    }
    if report.all.refused > TOLD {
        eprintln!("note: {} jobs were refused in all", report.all.refused);
    }
}
