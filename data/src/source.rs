//! Where records come from: files, folders, patterns and weighted lists of them, read as records that say
//! where they stand.
//!
//! One way: a path becomes files (`source/files.rs`), a file its bytes, unpacked (`source/bytes.rs`), and
//! these become records: of JSON (`source/lines.rs`), of a table with separators (`source/table.rs`), or one
//! document. Only Parquet, whose columns are compressed one by one, is read from the file itself
//! (`source/columns.rs`). Everything is streamed but a document.

mod bytes;
mod columns;
mod files;
mod lines;
mod table;

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::json;
use crate::{DataError, Format, Source};

pub use files::{Kind, files, shown};

/// The longest record that is read, in bytes: a file without line breaks must not fill the memory.
const MAX_RECORD_BYTES: usize = 256 << 20;
/// The longest document that is read, in bytes, unpacked.
const MAX_DOCUMENT_BYTES: usize = 1 << 30;

/// Examples in a file, a folder or the files of a pattern, as `data.train` lists them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// A file, a folder or a pattern, whose files are read in the order of their names, or `-`, standard
    /// input.
    pub path: PathBuf,
    /// The format of its records; `None`: `data.format`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// How many times each example is seen per epoch: 2 twice, 0.5 every other epoch on average.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

impl SourceSpec {
    /// The source at `path` with the data set's format and weight 1.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        SourceSpec { path: path.into(), format: None, weight: 1.0 }
    }
}

/// The value of `data.train` or `data.eval`: a path, or a list of paths and `{path, format, weight}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Sources(pub Vec<SourceSpec>);

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Path(PathBuf),
            Map(std::collections::BTreeMap<String, Json>),
            List(Vec<Value>),
        }
        fn collect<E: serde::de::Error>(value: Value, out: &mut Vec<SourceSpec>) -> Result<(), E> {
            match value {
                Value::Path(path) => out.push(SourceSpec::new(path)),
                Value::Map(map) => {
                    let object = Json::Object(map.into_iter().collect());
                    out.push(serde_json::from_value(object).map_err(E::custom)?);
                }
                Value::List(list) => list.into_iter().try_for_each(|value| collect(value, out))?,
            }
            Ok(())
        }
        let value = Value::deserialize(deserializer)
            .map_err(|_| D::Error::custom("must be a path, or a list of paths and {path, format, weight}"))?;
        let mut sources = Vec::new();
        collect(value, &mut sources)?;
        Ok(Sources(sources))
    }
}

/// A record and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRecord {
    /// The file and line.
    pub at: Source,
    /// Bytes before the record on its line.
    pub indent: usize,
    /// What was read.
    pub content: RawContent,
}

/// What was read as a record.
#[derive(Clone, Debug, PartialEq)]
pub enum RawContent {
    /// A JSON value, not yet parsed.
    Json(String),
    /// A plain text document.
    Document(String),
    /// The row of a table: a value for each column.
    Row(Map<String, Json>),
}

impl RawRecord {
    /// The record as a JSON object; a document is an object with `text`.
    pub fn parse(&self) -> Result<Map<String, Json>, DataError> {
        let json = match &self.content {
            RawContent::Document(text) => {
                return Ok([("text".to_string(), Json::String(text.clone()))].into_iter().collect());
            }
            RawContent::Row(row) => return Ok(row.clone()),
            RawContent::Json(json) => json,
        };
        match json::parse(json) {
            Ok(Json::Object(object)) => Ok(object),
            Ok(other) => Err(DataError::record(
                &self.at,
                format!("a record must be a JSON object, this is {}", kind(&other)),
            )),
            Err(error) => {
                let at = Source { file: self.at.file.clone(), line: self.at.line + error.lines_before };
                let begun = match error.lines_before {
                    0 => String::new(),
                    _ => format!(" (in the value that begins on line {})", self.at.line),
                };
                let ends = if error.cut_off { "; the value does not end, is the file cut off?" } else { "" };
                Err(DataError::record(&at, format!("{}{begun}{ends}", error.message(self.indent))))
            }
        }
    }
}

/// What a JSON value is, in words.
pub(crate) fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

/// The records of one file, in order.
pub type Records = Box<dyn Iterator<Item = Result<RawRecord, DataError>> + Send>;

/// Opens a file as a stream of records; what a file is, its name says, but for its compression.
pub fn records(path: &Path) -> Result<Records, DataError> {
    let kind = Kind::of(path)?;
    let file = Arc::new(shown(path));
    if kind == Kind::Parquet {
        return Ok(Box::new(columns::Rows::open(path, file)?));
    }
    let reader = bytes::open(path)?;
    Ok(match kind {
        Kind::JsonLines => lines::by_layout(reader, file)?,
        Kind::Json => Box::new(lines::Values::new(reader, file, 1, 0)),
        Kind::Table { tabs } => Box::new(table::Rows::open(reader, tabs, file)?),
        Kind::Document | Kind::Parquet => Box::new(std::iter::once(document(reader, file))),
    })
}

fn utf8(bytes: Vec<u8>, at: &Source) -> Result<String, DataError> {
    String::from_utf8(bytes).map_err(|error| {
        let start = error.utf8_error().valid_up_to();
        let line = at.line + error.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count();
        let at = Source { file: at.file.clone(), line };
        DataError::record(
            &at,
            format!("not UTF-8 (byte {:#04x}); save the file as UTF-8", error.as_bytes()[start]),
        )
    })
}

/// A whole file as one record.
fn document(reader: impl Read, file: Arc<PathBuf>) -> Result<RawRecord, DataError> {
    let at = Source { file, line: 1 };
    let mut bytes = Vec::new();
    let io = |source| DataError::Io { path: at.file.as_ref().clone(), source };
    reader.take(MAX_DOCUMENT_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        let message =
            format!("a document longer than {} MiB; split it into several files", MAX_DOCUMENT_BYTES >> 20);
        return Err(DataError::record(&at, message));
    }
    let text = RawContent::Document(universal_newlines(&utf8(bytes, &at)?).into_owned());
    Ok(RawRecord { at, indent: 0, content: text })
}

/// Text whose lines end in `\n`, as Python's text mode reads it: `\r\n` and a lone `\r` end a line, too.
pub(crate) fn universal_newlines(text: &str) -> Cow<'_, str> {
    match text.contains('\r') {
        true => text.replace("\r\n", "\n").replace('\r', "\n").into(),
        false => text.into(),
    }
}
