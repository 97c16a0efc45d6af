//! Traces of real clusters as they were published, read as jobs for [`crate::simulate`].
//!
//! Only devices are read: how many a job has, from when it wants them and for how long it computes. The
//! traces say too little of cores and memory, or different things. A trace's virtual cluster, or its user
//! where it has none, becomes the project.

mod csv;
mod generate;
mod helios;
mod pai;
mod philly;
mod time;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::Millis;
use crate::amounts::WHOLE;
use crate::job::{Class, Launch, Range, Spec};
use crate::policy::is_name;
use crate::pool::MAX_MEMBERS;
use crate::simulate::Arrival;

pub use generate::Load;

/// Jobs that a trace may have.
pub const MAX_JOBS: usize = 5_000_000;
/// Bad lines that are skipped at most, if somebody wants them to be.
pub const MAX_BAD: usize = 1000;
/// Devices that a job of a trace may have.
const MAX_DEVICES: u64 = 65_536;
/// Bytes of a name.
const MAX_NAME: usize = 256;
/// The longest that a job of a trace may compute, and the latest time, in seconds.
const MAX_SECONDS: f64 = 1e10;

/// How a trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Microsoft's Philly, 2017.
    Philly,
    /// SenseTime's Helios, 2020.
    Helios,
    /// Alibaba's PAI, 2020.
    Pai,
}

/// What is wrong with a trace, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {}{message}", line.map(|l| format!(":{l}")).unwrap_or_default(),
    field.as_ref().map(|f| format!("`{f}`: ")).unwrap_or_default())]
pub struct TraceError {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1; of a job that is written over several, its first.
    pub line: Option<u64>,
    /// The field.
    pub field: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Which part of a trace is wanted, and what happens to what cannot be read.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// As many jobs as were submitted first; all if missing.
    pub limit: Option<usize>,
    /// Whether bad lines are skipped and counted, [`MAX_BAD`] at most; else the first one is an error.
    pub skip_bad: bool,
}

/// A trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Its jobs, in the order of their times, which begin at 0.
    pub jobs: Vec<Arrival>,
    /// Jobs that are left out since they have no device.
    pub without_devices: usize,
    /// Jobs that are left out since they never ran, or nobody knows for how long.
    pub never_ran: usize,
    /// Bad lines that were skipped.
    pub bad: Vec<TraceError>,
}

/// Reads a trace; without a format, that of its first line.
///
/// # Errors
/// What cannot be read, with file, line and field; a trace without a job that ran.
pub fn read(path: &Path, format: Option<Format>, options: &Options) -> Result<Trace, TraceError> {
    let mut file = open(path)?;
    let format = match format {
        Some(format) => format,
        None => recognize(&mut file, path)?,
    };
    let mut gatherer = Gatherer::new(path, options);
    match format {
        Format::Philly => philly::read(file, &mut gatherer)?,
        Format::Helios => helios::read(file, &mut gatherer)?,
        Format::Pai => {
            let beside = path.with_file_name(pai::JOBS);
            let jobs = match beside != path && beside.exists() {
                true => Some((open(&beside)?, beside)),
                false => None,
            };
            pai::read(file, jobs, &mut gatherer)?;
        }
    }
    gatherer.finish()
}

fn open(path: &Path) -> Result<BufReader<File>, TraceError> {
    let failed =
        |message: String| TraceError { file: path.display().to_string(), line: None, field: None, message };
    if path.is_dir() {
        return Err(failed("is a folder; name the file in it".into()));
    }
    File::open(path).map(BufReader::new).map_err(|error| failed(error.to_string()))
}

/// Which format a file has, by how it begins.
fn recognize(file: &mut BufReader<File>, path: &Path) -> Result<Format, TraceError> {
    let begin = file.fill_buf().unwrap_or_default();
    let line = begin.split(|&byte| byte == b'\n').next().unwrap_or_default();
    match begin.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[' | b'{') => Ok(Format::Philly),
        _ if helios::is_header(line) => Ok(Format::Helios),
        _ if line.split(|&byte| byte == b',').count() == pai::TASK.len() => Ok(Format::Pai),
        _ => Err(TraceError {
            file: path.display().to_string(),
            line: Some(1),
            field: None,
            message: "is neither Philly's JSON, nor Helios' table with its header, nor PAI's ten columns; \
                      if it is one of them, say which format it has"
                .into(),
        }),
    }
}

/// Something wrong in a line: the line, the field and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wrong {
    line: u64,
    field: Option<String>,
    message: String,
}

impl Wrong {
    fn field(line: u64, field: impl Into<String>, message: impl Into<String>) -> Wrong {
        Wrong { line, field: Some(field.into()), message: message.into() }
    }

    fn line(line: u64, message: impl Into<String>) -> Wrong {
        Wrong { line, field: None, message: message.into() }
    }

    fn at(self, file: &str) -> TraceError {
        let Wrong { line, field, message } = self;
        TraceError { file: file.to_owned(), line: Some(line), field, message }
    }
}

/// What a line says.
enum Found {
    /// A job, and when it is submitted by the trace's own clock.
    Job { at: Millis, spec: Box<Spec> },
    /// One without devices.
    WithoutDevices,
    /// One that never ran.
    NeverRan,
}

/// Gathers what the lines of a trace say.
struct Gatherer {
    file: String,
    options: Options,
    jobs: Vec<Arrival>,
    without_devices: usize,
    never_ran: usize,
    bad: Vec<TraceError>,
}

impl Gatherer {
    fn new(path: &Path, options: &Options) -> Self {
        Gatherer {
            file: path.display().to_string(),
            options: options.clone(),
            jobs: Vec::new(),
            without_devices: 0,
            never_ran: 0,
            bad: Vec::new(),
        }
    }

    /// Takes what a line says, or what is wrong with it.
    fn take(&mut self, found: Result<Found, Wrong>) -> Result<(), TraceError> {
        match found {
            Ok(Found::Job { at, spec }) => {
                if self.jobs.len() == MAX_JOBS {
                    return Err(self.whole(format!("has more than {MAX_JOBS} jobs; cut it into parts")));
                }
                self.jobs.push(Arrival { at, spec: *spec });
            }
            Ok(Found::WithoutDevices) => self.without_devices += 1,
            Ok(Found::NeverRan) => self.never_ran += 1,
            Err(wrong) => self.skip(wrong.at(&self.file))?,
        }
        Ok(())
    }

    /// Skips something bad, if that is wanted and there is not too much of it.
    fn skip(&mut self, error: TraceError) -> Result<(), TraceError> {
        if !self.options.skip_bad {
            return Err(error);
        }
        if self.bad.len() == MAX_BAD {
            let message =
                format!("{}; {MAX_BAD} bad lines were skipped before, which is enough", error.message);
            return Err(TraceError { message, ..error });
        }
        self.bad.push(error);
        Ok(())
    }

    /// What is wrong with the file as a whole.
    fn whole(&self, message: impl Into<String>) -> TraceError {
        TraceError { file: self.file.clone(), line: None, field: None, message: message.into() }
    }

    fn finish(mut self) -> Result<Trace, TraceError> {
        self.jobs.sort_by_key(|job| job.at);
        self.jobs.truncate(self.options.limit.unwrap_or(usize::MAX));
        let Some(begin) = self.jobs.first().map(|job| job.at) else {
            return Err(self.whole(format!(
                "has no job that ran on a device ({} without one, {} that never ran, {} bad lines)",
                self.without_devices,
                self.never_ran,
                self.bad.len()
            )));
        };
        self.jobs.iter_mut().for_each(|job| job.at -= begin);
        let Gatherer { jobs, without_devices, never_ran, bad, .. } = self;
        Ok(Trace { jobs, without_devices, never_ran, bad })
    }
}

/// A job of a trace: `members` with `devices` thousandths each, which computes for `takes`.
fn spec(name: &str, project: &str, user: &str, members: u32, devices: u64, takes: Millis) -> Box<Spec> {
    Box::new(Spec {
        name: name.to_owned(),
        project: project.to_owned(),
        user: user.to_owned(),
        class: Class::Train,
        priority: Class::Train.priority(),
        members,
        devices: Range::exactly(devices),
        cpus: Range::exactly(1),
        memory: 0,
        takes: Some(takes),
        launch: Launch::default(),
    })
}

/// As few equal parts of a number of whole devices as there are machines, or more if it cannot be divided so.
///
/// # Errors
/// If there are too many devices.
fn divided(devices: u64, machines: u64) -> Result<(u32, u64), String> {
    if devices > MAX_DEVICES {
        return Err(format!("{devices} devices; at most {MAX_DEVICES}"));
    }
    let parts = (machines.clamp(1, devices)..=devices).find(|parts| devices.is_multiple_of(*parts));
    let parts = parts.unwrap_or(devices);
    match u32::try_from(parts) {
        Ok(members) if members <= MAX_MEMBERS => Ok((members, devices / parts * WHOLE)),
        _ => Err(format!(
            "{devices} devices on {machines} machines are {parts} processes; at most {MAX_MEMBERS}"
        )),
    }
}

/// A text that may name a project.
fn name<'a>(line: u64, field: &str, text: &'a str) -> Result<&'a str, Wrong> {
    match is_name(text) {
        true => Ok(text),
        false => Err(Wrong::field(
            line,
            field,
            format!("{}; a project's name has 1 to 63 letters, digits, `-`, `_` and `.`", shown(text)),
        )),
    }
}

/// A text that is only shown.
fn text<'a>(line: u64, field: &str, text: &'a str) -> Result<&'a str, Wrong> {
    match text.len() <= MAX_NAME {
        true => Ok(text),
        false => Err(Wrong::field(line, field, format!("{} bytes; at most {MAX_NAME}", text.len()))),
    }
}

/// A number from 0 to `most`.
fn number(line: u64, field: &str, text: &str, most: f64) -> Result<f64, Wrong> {
    match text.trim().parse::<f64>() {
        Ok(number) if (0.0..=most).contains(&number) => Ok(number),
        Ok(_) => Err(Wrong::field(line, field, format!("{}; must be 0 to {most}", shown(text)))),
        Err(_) => Err(Wrong::field(line, field, format!("{}; must be a number", shown(text)))),
    }
}

/// A whole number from 0 to `most`; `1.0` is one.
fn whole(line: u64, field: &str, text: &str, most: u64) -> Result<u64, Wrong> {
    let number = number(line, field, text, most as f64)?;
    match number.fract() == 0.0 {
        true => Ok(number as u64),
        false => Err(Wrong::field(line, field, format!("{}; must be a whole number", shown(text)))),
    }
}

/// Seconds as milliseconds.
fn seconds(line: u64, field: &str, text: &str) -> Result<Millis, Wrong> {
    Ok((number(line, field, text, MAX_SECONDS)? * 1000.0).round() as Millis)
}

/// A text from a file, short and without control characters.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    let more = if short.len() < text.len() { "..." } else { "" };
    format!("{short:?}{more}")
}

/// A line without its end, and its number; `None` at the end of the file. Of one that is longer than `most`
/// only its begin is kept.
struct Lines<R> {
    file: R,
    number: u64,
    buffer: Vec<u8>,
}

/// A line as it was read.
struct Line<'a> {
    number: u64,
    bytes: &'a [u8],
    is_cut: bool,
}

impl<R: BufRead> Lines<R> {
    fn new(file: R) -> Self {
        Lines { file, number: 0, buffer: Vec::new() }
    }

    fn next(&mut self, most: usize) -> std::io::Result<Option<Line<'_>>> {
        self.buffer.clear();
        self.number += 1;
        let read = (&mut self.file).take(most as u64 + 1).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        let is_cut = read > most && self.buffer.last() != Some(&b'\n');
        if is_cut {
            self.file.skip_until(b'\n')?;
        }
        let end = self.buffer.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
        Ok(Some(Line { number: self.number, bytes: &self.buffer[..end], is_cut }))
    }
}
