//! From a path to files, and what kind of file each is.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::DataError;
use crate::error::nearest;

/// Standard input, as a path.
const STDIN: &str = "-";

/// The endings of the files that can be read.
const KINDS: &[(&str, Kind)] = &[
    ("jsonl", Kind::JsonLines),
    ("ndjson", Kind::JsonLines),
    ("json", Kind::Json),
    ("csv", Kind::Table { tabs: false }),
    ("tsv", Kind::Table { tabs: true }),
    ("parquet", Kind::Parquet),
    ("txt", Kind::Document),
];

/// The endings of compressed files, which stand behind the others.
const COMPRESSED: &[&str] = &["gz", "zst"];

/// What a file's records are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON object on each line, or what a `.json` file may be.
    JsonLines,
    /// A list of JSON objects, or objects one after the other.
    Json,
    /// Rows of text, the first of which names the columns.
    Table {
        /// Whether columns are separated by tabs; otherwise the first row shows by what.
        tabs: bool,
    },
    /// Columns, each compressed.
    Parquet,
    /// One text.
    Document,
}

impl Kind {
    /// The kind of a file by its name. Standard input is JSON.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        if is_stdin(path) {
            return Ok(Kind::JsonLines);
        }
        let refuse = |message: String| Err(DataError::Unsupported { path: path.into(), message });
        let mut ending = ending(path);
        let compressed = COMPRESSED.contains(&ending.as_str());
        if compressed {
            ending = self::ending(Path::new(path.file_stem().unwrap_or_default()));
        }
        match KINDS.iter().find(|(name, _)| *name == ending) {
            Some((_, Kind::Parquet)) if compressed => {
                refuse("a Parquet file is compressed within and read from its end; unpack it first".into())
            }
            Some(&(_, kind)) => Ok(kind),
            None if ending.is_empty() && compressed => refuse(format!(
                "what is compressed is unknown; name it in front of the ending, as in .jsonl{}",
                path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default()
            )),
            None if ending.is_empty() => {
                refuse(format!("without an ending its kind is unknown; name it with one of {}", endings()))
            }
            None => refuse(match ending.as_str() {
                "xz" | "bz2" | "zip" | "7z" => {
                    format!(
                        ".{ending} is compressed in a way that is not read; unpack it, or pack it as .gz or .zst"
                    )
                }
                "arrow" | "feather" => format!(".{ending} is not read; save it as .parquet"),
                "xls" | "xlsx" | "ods" => format!(".{ending} is not read; save the sheet as .csv"),
                _ => {
                    let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
                    match nearest(&ending, &names) {
                        Some(near) => {
                            format!(".{ending} is not a supported kind of file, did you mean .{near}?")
                        }
                        None => {
                            format!(".{ending} is not a supported kind of file; supported are {}", endings())
                        }
                    }
                }
            }),
        }
    }
}

/// The endings that can be read, for messages.
fn endings() -> String {
    let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
    format!("{} (compressed: .gz, .zst)", names.join(", "))
}

fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// Whether the path means standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == STDIN
}

/// How messages name the file.
pub fn shown(path: &Path) -> PathBuf {
    if is_stdin(path) { "<stdin>".into() } else { path.into() }
}

/// The files behind a path: itself; a folder's supported files (not those in folders below); or those that a
/// pattern with `*`, `?`, `[...]` or `**` fits. Sorted by name.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    if is_stdin(path) {
        claim_stdin()?;
        return Ok(vec![path.into()]);
    }
    let io = |source| DataError::Io { path: path.into(), source };
    let unsupported = |message: String| DataError::Unsupported { path: path.into(), message };
    let is_folder = match std::fs::metadata(path) {
        Ok(metadata) => metadata.is_dir(),
        // A file may have such a name itself, and then it is meant.
        Err(error) => match path.to_str().filter(|text| text.contains(['*', '?', '['])) {
            Some(pattern) => return matching(pattern).map_err(unsupported),
            None => return Err(io(error)),
        },
    };
    if !is_folder {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.is_file() && Kind::of(&file).is_ok() {
            found.push(file);
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(unsupported(format!("the folder holds no file ending in {}", endings())));
    }
    Ok(found)
}

fn matching(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let paths = glob::glob_with(pattern, options).map_err(|error| format!("is no pattern: {error}"))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.map_err(|error| error.to_string())?;
        if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() {
        return Err("no file has a name that fits this pattern".into());
    }
    Ok(found)
}

/// Standard input can be read once in a process.
fn claim_stdin() -> Result<(), DataError> {
    static CLAIMED: AtomicBool = AtomicBool::new(false);
    if CLAIMED.swap(true, Ordering::Relaxed) {
        let message =
            "standard input can be read only once, and it is asked for twice; give the other as a file";
        return Err(DataError::Unsupported { path: STDIN.into(), message: message.into() });
    }
    Ok(())
}
