//! Alibaba's PAI of 2020: `pai_task_table.csv`, one line a task, and beside it `pai_job_table.csv`, one line
//! a job.
//!
//! Columns, from the README and the `.header` files of <https://github.com/alibaba/clusterdata>,
//! `cluster-trace-gpu-v2020` (Weng et al., NSDI '22); the tables have no header. Numbers are written like
//! `50.0` and may be missing. Times are seconds from an unknown beginning; `plan_gpu` is for each instance,
//! in hundredths of a device. A task's instances start together, so a task is a job here, and the tasks of
//! one job are several that come at the same time. The project is the job's user, and the time of submission
//! the job's `start_time`; without the table of jobs, all tasks belong to the project `all`, and come when
//! they started.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use super::csv::{Row, rows};
use super::{
    Found, Gatherer, Lines, MAX_DEVICES, TraceError, Wrong, name, number, seconds, spec, text, whole,
};
use crate::Millis;
use crate::amounts::WHOLE;
use crate::pool::MAX_MEMBERS;

/// The table of jobs.
pub(super) const JOBS: &str = "pai_job_table.csv";
/// The columns of the table of tasks.
pub(super) const TASK: [&str; 10] = [
    "job_name",
    "task_name",
    "inst_num",
    "status",
    "start_time",
    "end_time",
    "plan_cpu",
    "plan_mem",
    "plan_gpu",
    "gpu_type",
];
/// Those of the table of jobs.
const JOB: [&str; 6] = ["job_name", "inst_id", "user", "status", "start_time", "end_time"];

/// Of each job: its user, and when it was submitted.
type Jobs = HashMap<String, (String, Option<Millis>)>;

pub(super) fn read(
    tasks: impl BufRead,
    jobs: Option<(BufReader<File>, PathBuf)>,
    gatherer: &mut Gatherer,
) -> Result<(), TraceError> {
    let jobs = match jobs {
        Some((file, path)) => {
            // What is wrong there is wrong in that file.
            let of_tasks = std::mem::replace(&mut gatherer.file, path.display().to_string());
            let jobs = read_jobs(file, gatherer);
            gatherer.file = of_tasks;
            Some(jobs?)
        }
        None => None,
    };
    rows(&mut Lines::new(tasks), &TASK, gatherer, |gatherer, row| match is_header(&row) {
        true => Ok(()),
        false => gatherer.take(task(&row, jobs.as_ref())),
    })
}

/// Whether somebody has put the header on top.
fn is_header(row: &Row<'_>) -> bool {
    row.line == 1 && row.at(0) == "job_name"
}

fn read_jobs(file: impl BufRead, gatherer: &mut Gatherer) -> Result<Jobs, TraceError> {
    let mut jobs = Jobs::new();
    rows(&mut Lines::new(file), &JOB, gatherer, |gatherer, row| {
        if is_header(&row) {
            return Ok(());
        }
        match user(&row) {
            Ok((id, of)) => {
                jobs.insert(id, of);
                Ok(())
            }
            Err(wrong) => gatherer.take(Err(wrong)),
        }
    })?;
    Ok(jobs)
}

fn user(row: &Row<'_>) -> Result<(String, (String, Option<Millis>)), Wrong> {
    let line = row.line;
    let id = text(line, "job_name", row.at(0))?;
    let user = name(line, "user", row.at(2))?;
    let at = optional(row.at(4)).map(|at| seconds(line, "start_time", at)).transpose()?;
    Ok((id.to_owned(), (user.to_owned(), at)))
}

fn task(row: &Row<'_>, jobs: Option<&Jobs>) -> Result<Found, Wrong> {
    let line = row.line;
    let column = |name: &str| row.at(TASK.iter().position(|column| *column == name).unwrap_or(TASK.len()));
    let id = text(line, "job_name", column("job_name"))?;
    let part = text(line, "task_name", column("task_name"))?;
    let time = |name| optional(column(name)).map(|at| seconds(line, name, at)).transpose();
    let (start, end) = (time("start_time")?, time("end_time")?);
    let hundredths = match optional(column("plan_gpu")) {
        Some(plan) => number(line, "plan_gpu", plan, MAX_DEVICES as f64 * 100.0)?,
        None => 0.0,
    };
    let members = match optional(column("inst_num")) {
        Some(count) => whole(line, "inst_num", count, u64::from(MAX_MEMBERS))? as u32,
        None => 1,
    };
    if hundredths == 0.0 || members == 0 {
        return Ok(Found::WithoutDevices);
    }
    let (Some(start), Some(end)) = (start, end) else { return Ok(Found::NeverRan) };
    if end < start {
        return Err(Wrong::field(line, "end_time", "is before `start_time`"));
    }
    if start == 0 || end == start {
        return Ok(Found::NeverRan);
    }
    let (user, at) = match jobs.map(|jobs| jobs.get(id)) {
        Some(Some((user, at))) => (user.as_str(), at.filter(|&at| at > 0 && at <= start).unwrap_or(start)),
        Some(None) => {
            return Err(Wrong::field(line, "job_name", format!("no such job is in {JOBS} beside this file")));
        }
        None => ("all", start),
    };
    // Above a device, whole ones.
    let thousandths = ((hundredths * 10.0).ceil() as u64).max(1);
    let each = if thousandths > WHOLE { thousandths.next_multiple_of(WHOLE) } else { thousandths };
    let label = if part.is_empty() { id.to_owned() } else { format!("{id}/{part}") };
    Ok(Found::Job { at, spec: spec(&label, user, user, members, each, end - start) })
}

/// A field that may be missing.
fn optional(field: &str) -> Option<&str> {
    (!field.is_empty() && !field.eq_ignore_ascii_case("nan")).then_some(field)
}
