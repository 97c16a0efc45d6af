//! Finding files of ratings in a folder and reading their lines, with bounds on all of it: they are foreign.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::reply::{Reading, read_scores, read_verdict};
use super::super::{Outcome, Verdict};
use super::{RatingsError, RatingsKind, Unread};

/// The most bytes of a file that are read.
const FILE_BYTES: u64 = 64 << 20;
/// The most bytes of all files together.
const ALL_BYTES: u64 = 1 << 30;
/// The longest line, and so the longest reply.
const LINE_BYTES: usize = 1 << 20;
/// The most files, and folders within folders, that are looked at.
const ENTRIES: usize = 20_000;
const DEPTH: usize = 8;
/// The longest id of a question or an answer.
const ID_BYTES: usize = 256;

/// A line of a file. Fields that nobody asks for are ignored.
#[derive(Deserialize)]
struct Record {
    question_id: Id,
    answer1_id: Option<String>,
    answer2_id: Option<String>,
    text: String,
    score: Option<Score>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Score {
    Pair([f64; 2]),
    Number(f64),
}

/// A file that was read, before it is known whose answers stand first.
pub(super) struct Opened {
    pub(super) path: PathBuf,
    pub(super) kind: RatingsKind,
    pub(super) names: [String; 2],
    pub(super) lines: Vec<Line>,
    pub(super) unread: Vec<Unread>,
    pub(super) disagreeing: Vec<usize>,
}

/// A line with its verdict, if there is one.
pub(super) struct Line {
    pub(super) number: usize,
    pub(super) question: String,
    pub(super) answers: [Option<String>; 2],
    pub(super) verdict: Option<(Reading, Verdict)>,
}

/// Reads all files of ratings in a folder, in the order of their names.
pub(super) fn open_all(folder: &Path) -> Result<Vec<Opened>, RatingsError> {
    let mut found = Vec::new();
    find(folder, DEPTH, &mut 0, &mut found)?;
    found.sort();
    let mut room = ALL_BYTES;
    let opened: Vec<Opened> =
        found.into_iter().map(|(path, name)| open(path, &name, &mut room)).collect::<Result<_, _>>()?;
    match opened.is_empty() {
        true => Err(RatingsError::NoFiles { path: folder.to_owned() }),
        false => Ok(opened),
    }
}

/// The files of ratings below a folder, with their names. Links to folders are not followed, so that there is
/// an end.
fn find(
    folder: &Path,
    depth: usize,
    entries: &mut usize,
    found: &mut Vec<(PathBuf, String)>,
) -> Result<(), RatingsError> {
    let unreadable = |source| RatingsError::Read { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        *entries += 1;
        if *entries > ENTRIES {
            let what = format!("more than {ENTRIES} files; give the folder with a judge's ratings");
            return Err(RatingsError::TooLarge { path: folder.to_owned(), what });
        }
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().map_err(unreadable)?.is_dir() {
            if depth > 0 {
                find(&path, depth - 1, entries, found)?;
            }
        } else if systems(&name).is_some() && fs::metadata(&path).is_ok_and(|file| file.is_file()) {
            found.push((path, name));
        }
    }
    Ok(())
}

/// What a file's name says: what the judge was asked for, and both systems. Of a system's name, what
/// describes how its answers were made is left out.
fn systems(name: &str) -> Option<(RatingsKind, [String; 2])> {
    let name = name.strip_suffix(".jsonl")?;
    let (name, kind) = match name.strip_suffix("-threeclass") {
        Some(name) => (name, RatingsKind::Better),
        None => (name, RatingsKind::Scores),
    };
    let name = name.strip_suffix("-reviewer")?;
    // The judge's name may have a dash of its own.
    let name = ["-gpt-4", "-gpt-3.5", "-gpt-3.5-turbo"]
        .iter()
        .find_map(|judge| name.strip_suffix(judge))
        .or_else(|| name.rsplit_once('-').map(|(name, _)| name))?;
    let (a, b) = name.split_once("-vs-")?;
    let system = |name: &str| {
        let name = name.strip_prefix("answer-").unwrap_or(name);
        name.split("-vicuna-generations").next().unwrap_or(name).to_owned()
    };
    let names = [system(a), system(b)];
    (names[0] != names[1] && names.iter().all(|name| !name.is_empty())).then_some((kind, names))
}

fn open(path: PathBuf, name: &str, room: &mut u64) -> Result<Opened, RatingsError> {
    let unreadable = |source| RatingsError::Read { path: path.clone(), source };
    let mut bytes = Vec::new();
    let most = FILE_BYTES.min(*room);
    File::open(&path).map_err(unreadable)?.take(most + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        let what = format!(
            "larger than {} MiB, or all files together are than {} MiB; no file of ratings is",
            FILE_BYTES >> 20,
            ALL_BYTES >> 20
        );
        return Err(RatingsError::TooLarge { path, what });
    }
    *room -= bytes.len() as u64;
    let Some((kind, names)) = systems(name) else {
        return Err(RatingsError::NoFiles { path });
    };
    let (mut lines, mut unread, mut disagreeing) = (Vec::new(), Vec::new(), Vec::new());
    for (number, bytes) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let record = record(bytes, kind).map_err(|problem| RatingsError::Line {
            path: path.clone(),
            line: number,
            problem,
        })?;
        let question = match record.question_id {
            Id::Number(number) => number.to_string(),
            Id::Text(text) => text,
        };
        let from_reply = match kind {
            RatingsKind::Scores => {
                read_scores(&record.text).map(|(reading, scores)| (reading, Verdict::Scores(scores)))
            }
            RatingsKind::Better => {
                read_verdict(&record.text).map(|(reading, outcome)| (reading, Verdict::Better(outcome)))
            }
        };
        let recorded = record.score.as_ref().and_then(recorded);
        if let (Some((_, verdict)), Some(recorded)) = (from_reply, recorded)
            && verdict != recorded
        {
            disagreeing.push(number);
        }
        let verdict = from_reply.or(recorded.map(|verdict| (Reading::Recorded, verdict)));
        if verdict.is_none() {
            unread.push(Unread { line: number, question: question.clone(), ending: ending(&record.text) });
        }
        lines.push(Line { number, question, answers: [record.answer1_id, record.answer2_id], verdict });
    }
    Ok(Opened { path, kind, names, lines, unread, disagreeing })
}

/// A line as a record, or what is wrong with it.
fn record(bytes: &[u8], kind: RatingsKind) -> Result<Record, String> {
    if bytes.len() > LINE_BYTES {
        return Err(format!("the line is longer than {} KiB; no reply of a judge is", LINE_BYTES >> 10));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "the line is not UTF-8".to_owned())?;
    // serde_json counts lines of its own, all of which are 1.
    let record: Record = serde_json::from_str(text).map_err(|error| {
        let error = error.to_string();
        let reason = error.split(" at line ").next().unwrap_or_default();
        format!("the line is no record of a rating: {reason}; it needs `question_id` and `text`")
    })?;
    let question = match &record.question_id {
        Id::Text(text) => Some(text),
        Id::Number(_) => None,
    };
    let ids = [question, record.answer1_id.as_ref(), record.answer2_id.as_ref()];
    if ids.into_iter().flatten().any(|id| id.len() > ID_BYTES) {
        return Err(format!("an id is longer than {ID_BYTES} bytes"));
    }
    match (&record.score, kind) {
        (Some(Score::Pair(_)), RatingsKind::Better) => {
            Err("`score` is a pair, but by its name the file says which answer is better, 1, 2 or 3"
                .to_owned())
        }
        (Some(Score::Number(_)), RatingsKind::Scores) => {
            Err("`score` is one number, but by its name the file has two scores".to_owned())
        }
        _ => Ok(record),
    }
}

/// What stands in `score`, unless it says that nothing was found.
fn recorded(score: &Score) -> Option<Verdict> {
    match *score {
        Score::Pair(scores) if scores.iter().all(|score| (0.0..=10.0).contains(score)) => {
            Some(Verdict::Scores(scores))
        }
        Score::Number(1.0) => Some(Verdict::Better(Outcome::First)),
        Score::Number(2.0) => Some(Verdict::Better(Outcome::Second)),
        Score::Number(3.0) => Some(Verdict::Better(Outcome::Tie)),
        _ => None,
    }
}

/// The end of a reply, to look at; control characters become spaces, since it goes to terminals.
fn ending(text: &str) -> String {
    let kept: Vec<char> = text.trim_end().chars().rev().take(100).collect();
    kept.into_iter().rev().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
