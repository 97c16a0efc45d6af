//! Microsoft's Philly: `cluster_job_log`, a JSON array of jobs.
//!
//! Keys, from the README of <https://github.com/msr-fiddle/philly-traces> (Jeon et al., ATC '19) and the
//! notebook there: `jobid`, `vc`, `user`, `submitted_time` as `2017-10-07 01:11:39`, `status`, and
//! `attempts`, each with `start_time` and `end_time`, which may be missing (`null`, `"None"` or empty), and
//! `detail`: for each server its `ip` and the list of its `gpus`. `vc` is the project. The work is the time
//! of all attempts together, the size that of the first one; servers with different numbers of devices become
//! equal processes of their greatest common divisor. Objects without the array around them are read, too.

use std::io::BufRead;

use serde_json::Value;

use super::time::date;
use super::{Found, Gatherer, MAX_DEVICES, TraceError, Wrong, name, shown, spec, text};
use crate::Millis;
use crate::amounts::WHOLE;
use crate::pool::MAX_MEMBERS;

/// Bytes of a job.
const MAX_ENTRY: usize = 4 << 20;

pub(super) fn read(file: impl BufRead, gatherer: &mut Gatherer) -> Result<(), TraceError> {
    let mut entries = Entries { file, line: 1, buffer: Vec::new(), is_array: None, is_over: false };
    loop {
        match entries.next() {
            Ok(Some(line)) => {
                let found = entry(line, &entries.buffer);
                gatherer.take(found)?;
            }
            Ok(None) => return Ok(()),
            // Where one job ends nobody knows where the next begins.
            Err(Broken::Syntax(wrong)) => return Err(wrong.at(&gatherer.file)),
            Err(Broken::Io(error)) => return Err(gatherer.whole(error.to_string())),
        }
    }
}

/// Why there is no next job.
enum Broken {
    Syntax(Wrong),
    Io(std::io::Error),
}

/// Cuts a file into the texts of its objects, one at a time, so that the file need not fit into memory.
struct Entries<R> {
    file: R,
    line: u64,
    buffer: Vec<u8>,
    is_array: Option<bool>,
    is_over: bool,
}

impl<R: BufRead> Entries<R> {
    /// Puts the next object into the buffer, and tells the line where it begins.
    fn next(&mut self) -> Result<Option<u64>, Broken> {
        self.buffer.clear();
        let (mut depth, mut in_text, mut escaped, mut begin) = (0_u64, false, false, 0);
        loop {
            let bytes = self.file.fill_buf().map_err(Broken::Io)?;
            if bytes.is_empty() {
                return self.end(depth, begin);
            }
            let mut used = 0;
            for &byte in bytes {
                used += 1;
                self.line += u64::from(byte == b'\n');
                if depth == 0 {
                    match byte {
                        b'{' if !self.is_over => {
                            self.is_array.get_or_insert(false);
                            begin = self.line;
                        }
                        b'[' if self.is_array.is_none() => {
                            self.is_array = Some(true);
                            continue;
                        }
                        b']' if self.is_array == Some(true) && !self.is_over => {
                            self.is_over = true;
                            continue;
                        }
                        b',' if !self.is_over => continue,
                        _ if byte.is_ascii_whitespace() => continue,
                        _ => {
                            let message = "a job has to begin here, with `{`";
                            return Err(Broken::Syntax(Wrong::line(self.line, message)));
                        }
                    }
                }
                self.buffer.push(byte);
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_text => escaped = true,
                    b'"' => in_text = !in_text,
                    b'{' | b'[' if !in_text => depth += 1,
                    b'}' | b']' if !in_text => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    self.file.consume(used);
                    return Ok(Some(begin));
                }
                if self.buffer.len() > MAX_ENTRY {
                    let message = format!("the job that begins here has more than {MAX_ENTRY} bytes");
                    return Err(Broken::Syntax(Wrong::line(begin, message)));
                }
            }
            self.file.consume(used);
        }
    }

    fn end(&self, depth: u64, begin: u64) -> Result<Option<u64>, Broken> {
        if depth > 0 {
            let message = "the file ends within the job that begins here; it is cut off";
            return Err(Broken::Syntax(Wrong::line(begin, message)));
        }
        if self.is_array == Some(true) && !self.is_over {
            let message = "the file ends, but its list of jobs does not: `]` is missing; it is cut off";
            return Err(Broken::Syntax(Wrong::line(self.line, message)));
        }
        Ok(None)
    }
}

fn entry(line: u64, json: &[u8]) -> Result<Found, Wrong> {
    let job: Value = serde_json::from_slice(json).map_err(|error| {
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(said, _)| said);
        Wrong::line(line + (error.line() as u64).saturating_sub(1), message)
    })?;
    let id = text(line, "jobid", string(line, "jobid", &job["jobid"])?)?;
    let vc = name(line, "vc", string(line, "vc", &job["vc"])?)?;
    let at = date(line, "submitted_time", string(line, "submitted_time", &job["submitted_time"])?)?;
    let user = match &job["user"] {
        Value::Null => "",
        user => text(line, "user", string(line, "user", user)?)?,
    };
    let attempts = list(line, "attempts", &job["attempts"])?;
    let Some(first) = attempts.first() else { return Ok(Found::NeverRan) };
    let takes = worked(line, attempts)?;
    let (members, each) = size(line, &first["detail"])?;
    if members == 0 {
        return Ok(Found::WithoutDevices);
    }
    if takes == 0 {
        return Ok(Found::NeverRan);
    }
    Ok(Found::Job { at, spec: spec(id, vc, user, members, each, takes) })
}

/// How long all attempts ran of which it is known.
fn worked(line: u64, attempts: &[Value]) -> Result<Millis, Wrong> {
    let mut sum: Millis = 0;
    for (n, attempt) in attempts.iter().enumerate() {
        let time = |key: &str| {
            let field = format!("attempts[{n}].{key}");
            match &attempt[key] {
                Value::Null => Ok(None),
                Value::String(none) if none.is_empty() || none == "None" => Ok(None),
                said => date(line, &field, string(line, &field, said)?).map(Some),
            }
        };
        let (Some(start), Some(end)) = (time("start_time")?, time("end_time")?) else { continue };
        let Some(ran) = end.checked_sub(start) else {
            return Err(Wrong::field(line, format!("attempts[{n}].end_time"), "is before `start_time`"));
        };
        sum = sum.saturating_add(ran);
    }
    Ok(sum)
}

/// How many processes there are, and thousandths of a device of each.
fn size(line: u64, detail: &Value) -> Result<(u32, u64), Wrong> {
    let field = "attempts[0].detail";
    let mut counts = Vec::new();
    for (n, server) in list(line, field, detail)?.iter().enumerate() {
        counts.push(list(line, &format!("{field}[{n}].gpus"), &server["gpus"])?.len() as u64);
    }
    let all: u64 = counts.iter().sum();
    let each = counts.iter().fold(0, |a, &b| greatest_common_divisor(a, b));
    let members = all.checked_div(each).unwrap_or(0);
    match u32::try_from(members) {
        Ok(members) if members <= MAX_MEMBERS && all <= MAX_DEVICES => Ok((members, each * WHOLE)),
        _ => Err(Wrong::field(line, field, format!("{all} devices as {members} processes are too many"))),
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

fn string<'a>(line: u64, field: &str, value: &'a Value) -> Result<&'a str, Wrong> {
    match value {
        Value::Null => Err(Wrong::field(line, field, "is missing")),
        _ => value.as_str().ok_or_else(|| {
            Wrong::field(line, field, format!("{}; must be a text", shown(&value.to_string())))
        }),
    }
}

fn list<'a>(line: u64, field: &str, value: &'a Value) -> Result<&'a [Value], Wrong> {
    match value {
        Value::Null => Err(Wrong::field(line, field, "is missing")),
        Value::Array(list) => Ok(list),
        _ => Err(Wrong::field(line, field, format!("{}; must be a list", shown(&value.to_string())))),
    }
}
