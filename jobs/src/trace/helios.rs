//! SenseTime's Helios: `cluster_log.csv`, one line a job.
//!
//! Columns, from the README of <https://github.com/S-Lab-System-Group/HeliosData> (Hu et al., SC '21):
//! `job_id, user, vc, gpu_num, cpu_num, node_num, state, submit_time, start_time, end_time, duration, queue`,
//! with a header; times as `2020-06-09 18:41:01`, `duration` and `queue` in seconds. Columns are found by
//! their names; `vc` is the project.

use std::io::BufRead;

use super::csv::{Row, header, rows};
use super::time::date;
use super::{
    Found, Gatherer, Lines, MAX_DEVICES, TraceError, Wrong, divided, name, seconds, spec, text, whole,
};

/// The columns that are read.
const READ: [&str; 7] = ["job_id", "user", "vc", "gpu_num", "node_num", "submit_time", "duration"];

/// Whether a line is the header of such a table.
pub(super) fn is_header(line: &[u8]) -> bool {
    let has = |name: &str| line.split(|&b| b == b',').any(|field| field.trim_ascii() == name.as_bytes());
    ["vc", "gpu_num", "submit_time"].into_iter().all(has)
}

pub(super) fn read(file: impl BufRead, gatherer: &mut Gatherer) -> Result<(), TraceError> {
    let mut lines = Lines::new(file);
    let names = header(&mut lines, gatherer)?;
    let mut places = [0; READ.len()];
    for (place, column) in places.iter_mut().zip(READ) {
        let Some(at) = names.iter().position(|name| name == column) else {
            let message = "is no column of this table, but Helios' tables have it";
            return Err(Wrong::field(1, column, message).at(&gatherer.file));
        };
        *place = at;
    }
    let columns: Vec<&str> = names.iter().map(String::as_str).collect();
    rows(&mut lines, &columns, gatherer, |gatherer, row| gatherer.take(job(&row, &places)))
}

fn job(row: &Row<'_>, places: &[usize; READ.len()]) -> Result<Found, Wrong> {
    let line = row.line;
    let [id, user, vc, gpus, nodes, submitted, duration] = places.map(|place| row.at(place));
    let devices = whole(line, "gpu_num", gpus, MAX_DEVICES)?;
    let at = date(line, "submit_time", submitted)?;
    let takes = seconds(line, "duration", duration)?;
    let machines = whole(line, "node_num", nodes, MAX_DEVICES)?;
    let (vc, user) = (name(line, "vc", vc)?, text(line, "user", user)?);
    let id = text(line, "job_id", id)?;
    if devices == 0 {
        return Ok(Found::WithoutDevices);
    }
    if takes == 0 {
        return Ok(Found::NeverRan);
    }
    let (members, each) = divided(devices, machines).map_err(|wrong| Wrong::field(line, "gpu_num", wrong))?;
    Ok(Found::Job { at, spec: spec(id, vc, user, members, each, takes) })
}
