//! GET /pool/v1/jobs/{id}/log and /metrics: what a job's processes say, a piece at a time.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path as At, State};
use serde_json::{Value, json};

use super::PoolApp;
use super::caller::Caller;
use super::jobs::number;
use super::query::Asked;
use crate::app::aside;
use crate::error::ApiError;

/// Bytes of a log in an answer.
const CHUNK: u64 = 256 << 10;
/// Bytes of a file of metrics that are read.
const MOST_BYTES: u64 = 64 << 20;
/// Lines of it in an answer, and those among them that are no steps.
const LINES: usize = 1000;
const OTHERS: usize = 250;
/// Where a run folder has them.
const METRICS: &str = "metrics.jsonl";

/// From `offset` on; below zero it counts from the end.
pub(super) async fn log(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    At(id): At<String>,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let asked = asked.only(&["offset"])?;
    let (id, offset) = (number(&id)?, asked.whole("offset", i64::MIN, i64::MAX)?.unwrap_or(0));
    aside(move || {
        // Whether it has ended is asked first: nothing is written after that.
        let has_ended = app.record(&caller, id)?.ended.is_some();
        let path = app.handle.log(id);
        let piece = piece(&path, offset, has_ended);
        let Piece { text, offset, is_last } =
            piece.map_err(|error| ApiError::internal(format!("its log cannot be read: {error}")))?;
        Ok(Json(json!({"text": text, "offset": offset, "ended": has_ended && is_last})))
    })
    .await
}

struct Piece {
    text: String,
    /// Where the next one begins.
    offset: u64,
    is_last: bool,
}

/// Opens what is an ordinary file; nothing where there is none.
fn open(path: &Path) -> io::Result<Option<File>> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => File::open(path).map(Some),
        Ok(_) => Err(io::Error::other("it is no file")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn piece(path: &Path, offset: i64, has_ended: bool) -> io::Result<Piece> {
    let Some(mut file) = open(path)? else {
        return Ok(Piece { text: String::new(), offset: 0, is_last: true });
    };
    let length = file.metadata()?.len();
    let begin = match u64::try_from(offset) {
        Ok(offset) => offset.min(length),
        Err(_) => length.saturating_sub(offset.unsigned_abs()),
    };
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(CHUNK).read_to_end(&mut bytes)?;
    let is_last = begin + bytes.len() as u64 >= length;
    if !(is_last && has_ended) {
        // The rest of a letter that is cut off comes with the next piece.
        bytes.truncate(whole_letters(&bytes));
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Piece { text, offset: begin + bytes.len() as u64, is_last })
}

/// How many bytes there are before the beginning of a letter that is cut off at the end.
fn whole_letters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => {
            // Something before is no text; only the last letter is of interest.
            let last = bytes.len().saturating_sub(3)..bytes.len();
            let is_cut = |&at: &usize| {
                std::str::from_utf8(&bytes[at..])
                    .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
            };
            last.into_iter().find(is_cut).unwrap_or(bytes.len())
        }
        Ok(_) => bytes.len(),
    }
}

/// The lines of the run folder's metrics.jsonl, at most so many, evenly apart.
pub(super) async fn metrics(
    State(app): State<Arc<PoolApp>>,
    caller: Caller,
    At(id): At<String>,
    asked: Asked,
) -> Result<Json<Vec<Value>>, ApiError> {
    asked.only(&[])?;
    let id = number(&id)?;
    aside(move || {
        let record = app.record(&caller, id)?;
        let Some(folder) = record.spec.launch.output else { return Ok(Json(Vec::new())) };
        let lines = lines(&folder.join(METRICS));
        let lines =
            lines.map_err(|error| ApiError::internal(format!("{METRICS} cannot be read: {error}")))?;
        Ok(Json(thinned(lines)))
    })
    .await
}

fn lines(path: &Path) -> io::Result<Vec<String>> {
    let Some(file) = open(path)? else { return Ok(Vec::new()) };
    let mut lines = Vec::new();
    for line in BufReader::new(file.take(MOST_BYTES)).split(b'\n') {
        // What is no text is no line of ours.
        lines.extend(String::from_utf8(line?).ok().filter(|line| line.starts_with('{')));
    }
    Ok(lines)
}

/// Of each kind as many as there is room for, in their order, with the last of each.
fn thinned(lines: Vec<String>) -> Vec<Value> {
    let is_step = |line: &String| line.contains("\"loss\"");
    let (mut steps, mut others) = (lines.iter().filter(|line| is_step(line)).count(), 0);
    others += lines.len() - steps;
    let (each_step, each_other) =
        (steps.div_ceil(LINES - OTHERS.min(others)).max(1), others.div_ceil(OTHERS).max(1));
    let keeps = |line: &String| {
        let (left, each) = if is_step(line) { (&mut steps, each_step) } else { (&mut others, each_other) };
        *left -= 1;
        // Counted from the end, so that the last one stays.
        left.is_multiple_of(each)
    };
    let kept: Vec<String> = lines.into_iter().filter(keeps).collect();
    kept.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_not_cut() {
        for (bytes, whole) in [
            (&b"abc"[..], 3),
            ("aä".as_bytes(), 3),
            (&"aä".as_bytes()[..2], 1),
            (&"a\u{1F600}".as_bytes()[..4], 1),
            (&[b'a', 0xff, 0xe2, 0x82], 2),
            (&[b'a', 0xff, b'b'], 3),
            (&[], 0),
        ] {
            assert_eq!(whole_letters(bytes), whole, "{bytes:?}");
        }
    }

    #[test]
    fn long_curves_keep_their_ends_and_some_of_each_kind() {
        let line = |step: usize| match step % 10 {
            0 => format!("{{\"step\":{step},\"eval_loss\":1.0}}"),
            _ => format!("{{\"step\":{step},\"loss\":2.0}}"),
        };
        for count in [1, 999, 1001, 20_000] {
            let kept = thinned((1..=count).map(line).collect());
            assert!(kept.len() <= LINES && kept.len() >= count.min(LINES / 3), "{} of {count}", kept.len());
            assert!(kept.iter().any(|line| line["step"] == count || line["step"] == count - 1));
            assert_eq!(kept.iter().any(|line| line["eval_loss"] == 1.0), count >= 10);
            assert!(kept.is_sorted_by_key(|line| line["step"].as_u64()));
        }
        assert_eq!(thinned(vec!["{\"loss\": nonsense}".into()]), Vec::<Value>::new());
    }
}
