//! An event file for TensorBoard: what the lines of `metrics.jsonl` say, as scalars by step, with wall time.
//!
//! A file is a row of records, each a length, a masked CRC-32C of the length, an `Event` of TensorFlow's
//! `event.proto`, and a masked CRC-32C of it (TFRecord). It is written anew from the metrics whenever a
//! process takes up the run: each step stands once, whatever was interrupted, for whoever reads it. A session
//! that starts at step 0 stands at its head, by which a TensorBoard that has read the file before lets go of
//! what it read.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use model::checkpoint::write_whole;
use prost::Message;

use crate::error::{Result, TrainError};
use crate::metrics::{History, Line};

/// How the names of such files begin, by which TensorBoard finds them.
const PREFIX: &str = "events.out.tfevents.";
/// How ours end: other programs may write such files beside them, which are not ours to replace.
const OURS: &str = ".luthier.v2";
/// The version of the format, which the first record says.
const VERSION: &str = "brain.Event:2";
/// Bytes before and behind the data of a record.
const HEAD: usize = 12;
const TAIL: usize = 4;

/// The fields that are used of `tensorflow.Event`.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// `Summary.Value`, of which the value is one of several: it is written also where it is 0.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    /// 1: a session starts.
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Event {
    /// A line of metrics.
    fn of(line: &impl Line, wall_time: f64) -> Self {
        let scalar = |(tag, value): (&str, f64)| Scalar { tag: tag.into(), simple_value: Some(value as f32) };
        let summary = Summary { value: line.scalars().into_iter().map(scalar).collect() };
        Event { wall_time, step: line.step() as i64, what: Some(What::Summary(summary)) }
    }

    /// The event in a frame, as it stands in the file.
    fn record(&self) -> Vec<u8> {
        let data = self.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        [&length[..], &masked_crc(&length), &data, &masked_crc(&data)].concat()
    }
}

/// A checksum that is told apart from one of data which holds such checksums, as TensorFlow masks it.
fn masked_crc(bytes: &[u8]) -> [u8; TAIL] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Writes the file of a run with all that there is of it, in place of those of earlier processes.
    pub(crate) fn begin(folder: &Path, history: &History) -> Result<Self> {
        let old = files(folder)?;
        let now = now();
        let name = format!("{PREFIX}{}.{}.{}{OURS}", now as u64, host(), std::process::id());
        let path = folder.join(name);
        let mut events = vec![
            Event { wall_time: now, step: 0, what: Some(What::FileVersion(VERSION.into())) },
            Event { wall_time: now, step: 0, what: Some(What::SessionLog(SessionLog { status: 1 })) },
        ];
        let told = old.iter().map(|path| times(path)).collect::<Result<Vec<_>>>()?;
        events.extend(events_of(history, &told.into_iter().flatten().collect(), now));
        let records: Vec<u8> = events.iter().flat_map(Event::record).collect();
        write_whole(&path, &records)?;
        for other in old.iter().filter(|other| **other != path) {
            fs::remove_file(other).map_err(|e| TrainError::write(other, e))?;
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| TrainError::write(&path, e))?;
        Ok(EventFile { path, file })
    }

    /// Appends a line of metrics, in one write: a process that is killed leaves whole records.
    pub(crate) fn append(&mut self, line: &impl Line) -> Result<()> {
        let record = Event::of(line, now()).record();
        self.file.write_all(&record).map_err(|e| TrainError::write(&self.path, e))
    }
}

/// Steps, and whether it is the evaluation behind it.
type Place = (i64, bool);

/// The events of all lines in their order. Those whose time is not known, since an earlier process wrote no
/// event file, stand as long before the next one as that took.
fn events_of(history: &History, times: &BTreeMap<Place, f64>, now: f64) -> Vec<Event> {
    let steps = history.steps.iter().map(|line| (Event::of(line, now), line.seconds()));
    let evaluations = history.evaluations.iter().map(|line| (Event::of(line, now), 0.0));
    let forgetting = history.forgetting.iter().map(|line| (Event::of(line, now), 0.0));
    let mut lines: Vec<(Event, f64)> = steps.chain(evaluations).chain(forgetting).collect();
    lines.sort_by_key(|(event, _)| place(event));
    let mut next = now;
    for (event, seconds) in lines.iter_mut().rev() {
        event.wall_time = times.get(&place(event)).copied().unwrap_or(next).min(next);
        next = event.wall_time - *seconds;
    }
    lines.into_iter().map(|(event, _)| event).collect()
}

fn place(event: &Event) -> Place {
    let is_evaluation =
        |summary: &Summary| summary.value.iter().all(|scalar| scalar.tag.starts_with("eval/"));
    (event.step, matches!(&event.what, Some(What::Summary(summary)) if is_evaluation(summary)))
}

/// When each line was written that an event file has, as far as it is whole.
fn times(path: &Path) -> Result<BTreeMap<Place, f64>> {
    let bytes = fs::read(path).map_err(|e| TrainError::read(path, e))?;
    let summaries = events(&bytes).filter(|event| matches!(event.what, Some(What::Summary(_))));
    Ok(summaries.map(|event| (place(&event), event.wall_time)).collect())
}

/// The events of a file up to its end, or to the first record that is not whole.
fn events(mut bytes: &[u8]) -> impl Iterator<Item = Event> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_at_checked(HEAD - TAIL)?;
        let (checksum, rest) = rest.split_at_checked(TAIL)?;
        let size = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
        let (data, rest) = rest.split_at_checked(size)?;
        let (of_data, rest) = rest.split_at_checked(TAIL)?;
        bytes = rest;
        let whole = checksum == masked_crc(length) && of_data == masked_crc(data);
        Event::decode(data).ok().filter(|event| whole && event.wall_time.is_finite())
    })
}

/// The event files of a run folder that runs wrote.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| TrainError::read(folder, e))?.flatten();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(PREFIX) && name.ends_with(OURS)
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_ours).collect();
    files.sort();
    Ok(files)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// What the machine is called, in characters that a file's name may have.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let name: String = name.trim().chars().map(|c| if plain(c) { c } else { '-' }).take(64).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::EvalMetrics;

    /// `tests/fixtures/make_events.py` writes it by TensorBoard's own writer.
    const FIXTURE: &[u8] = include_bytes!("../tests/fixtures/events.tfevents");

    struct Some0;

    impl serde::Serialize for Some0 {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_unit()
        }
    }

    impl Line for Some0 {
        fn step(&self) -> u64 {
            300
        }

        fn scalars(&self) -> Vec<(&'static str, f64)> {
            vec![("train/loss", 1.25), ("train/learning_rate", 0.0)]
        }
    }

    #[test]
    fn the_bytes_are_those_of_tensorboard() {
        let evaluation = EvalMetrics { step: 7, eval_loss: 0.1, eval_tokens: 3 };
        let written = [
            Event { wall_time: 1e9, step: 0, what: Some(What::FileVersion(VERSION.into())) },
            Event { wall_time: 1e9, step: 0, what: Some(What::SessionLog(SessionLog { status: 1 })) },
            Event::of(&Some0, 1.5e9),
            Event::of(&evaluation, 1.5e9 + 0.125),
        ];
        let bytes: Vec<u8> = written.iter().flat_map(Event::record).collect();
        assert_eq!(bytes, FIXTURE);
        assert_eq!(events(FIXTURE).collect::<Vec<_>>(), written);
    }

    #[test]
    fn a_file_is_read_up_to_what_is_damaged() {
        let whole = events(FIXTURE).count();
        for cut in [1, HEAD, HEAD + 5] {
            assert_eq!(events(&FIXTURE[..FIXTURE.len() - cut]).count(), whole - 1);
        }
        let mut bytes = FIXTURE.to_vec();
        let last = bytes.len() - TAIL - 1;
        bytes[last] ^= 1;
        assert_eq!(events(&bytes).count(), whole - 1);
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(events(&bytes).count(), 0);
    }
}
