//! What can be wrong with a model's or an adapter's files and settings, said so that a person can mend it.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// An error a user can cause. Every message says where (file, field or tensor), what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}{}", path.display(), read_hint(path, source))]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why, as the system says it.
        source: io::Error,
    },
    /// A file could not be written; nothing half-written stays behind.
    #[error("cannot write {}: {source}{}", path.display(), write_hint(source))]
    Write {
        /// The file that was to appear.
        path: PathBuf,
        /// Why, as the system says it.
        source: io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{}:{line}:{column}: {problem}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser found.
        problem: String,
    },
    /// A field of a JSON file is missing, malformed, inconsistent or not supported.
    #[error("{}: `{}` {problem}", path.display(), shown(field))]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dots between levels.
        field: String,
        /// What is wrong and what to do, continuing "`field` ...".
        problem: String,
    },
    /// A file or folder as a whole is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A tensor of a file is missing, unknown, misshapen or has unusable values.
    #[error("{}: tensor `{}` {problem}", path.display(), shown(name))]
    Tensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name in it.
        name: String,
        /// What is wrong and what to do, continuing "tensor `name` ...".
        problem: String,
    },
    /// A setting does not fit the model.
    #[error("`{field}` {problem}")]
    Setting {
        /// The setting.
        field: String,
        /// What is wrong and what to do, continuing "`field` ...".
        problem: String,
    },
}

/// What this crate's fallible functions return.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

impl ModelError {
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        ModelError::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        ModelError::Write { path: path.to_owned(), source }
    }

    pub(crate) fn json(path: &Path, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        // serde_json appends the position, which this error says in front.
        let problem = text.split(" at line ").next().unwrap_or(&text).to_owned();
        ModelError::Json { path: path.to_owned(), line: error.line(), column: error.column(), problem }
    }

    pub(crate) fn field(path: &Path, field: impl Into<String>, problem: impl Into<String>) -> Self {
        ModelError::Field { path: path.to_owned(), field: field.into(), problem: problem.into() }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        ModelError::File { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn tensor(path: &Path, name: impl Into<String>, problem: impl Into<String>) -> Self {
        ModelError::Tensor { path: path.to_owned(), name: name.into(), problem: problem.into() }
    }

    /// A weight whose blocks would need a scale beyond half precision's range. `instead`: what would do.
    pub(crate) fn scale_too_large(path: &Path, name: &str, format: impl Display, instead: &str) -> Self {
        let problem = format!(
            "has values so large that {format} cannot hold their scale, which has half precision; use {instead}"
        );
        ModelError::tensor(path, name, problem)
    }

    pub(crate) fn setting(field: impl Into<String>, problem: impl Into<String>) -> Self {
        ModelError::Setting { field: field.into(), problem: problem.into() }
    }
}

/// A name from a foreign file, safe to print: cut, and without control characters.
pub(crate) fn shown(name: &str) -> String {
    let mut shown = String::new();
    for c in name.chars().take(200) {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    if name.chars().nth(200).is_some() {
        shown.push_str("...");
    }
    shown
}

/// What may be meant instead, if what makes a folder a model or an adapter is not there.
fn read_hint(path: &Path, source: &io::Error) -> &'static str {
    let beside = |name: &str| path.with_file_name(name).is_file();
    match path.file_name().and_then(|name| name.to_str()) {
        _ if source.kind() != io::ErrorKind::NotFound => "",
        Some("config.json") if beside("adapter_config.json") => {
            "; this folder holds an adapter: name the folder of its base model here"
        }
        Some("config.json") => {
            "; a model is a folder with config.json, tokenizer.json and .safetensors files"
        }
        Some("adapter_config.json") if beside("config.json") => {
            "; this folder holds a model: name the folder of an adapter here"
        }
        Some("adapter_config.json" | "adapter_model.safetensors") => {
            "; an adapter is a folder with adapter_config.json and adapter_model.safetensors"
        }
        _ => "",
    }
}

fn write_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space or choose another folder (nothing was left half-written)"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a folder you may write to"
        }
        _ => "",
    }
}

/// The `count` candidates nearest to `word` by edit distance, nearest first; ties in the candidates' order.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    count: usize,
) -> Vec<&'a str> {
    let mut ranked: Vec<(usize, &str)> =
        candidates.into_iter().map(|c| (edit_distance(word, c), c)).collect();
    ranked.sort_by_key(|&(distance, _)| distance);
    ranked.dedup_by_key(|&mut (_, c)| c);
    ranked.into_iter().take(count).map(|(_, c)| c).collect()
}

/// Levenshtein's distance in bytes; both words are cut at 256 bytes, since one of them may be hostile.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (&a.as_bytes()[..a.len().min(256)], &b.as_bytes()[..b.len().min(256)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Names joined for a message: "`a`, `b` and `c`".
pub(crate) fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| format!("`{}`", shown(n))).collect();
    match names.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
