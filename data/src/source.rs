//! Where records come from: files, folders and weighted lists of them, read as text with line numbers.
//!
//! Here a record is still text. Files are streamed line by line where their kind allows it; a `.json` array is read whole
//! and cut into its elements, so that an error inside one names its line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::error::nearest;
use crate::{DataError, Format, Source};

/// The longest record that is read, in bytes: a file without line breaks must not fill the memory.
const MAX_RECORD_BYTES: usize = 256 << 20;

/// The kinds of file that can be read.
const EXTENSIONS: &[&str] = &["jsonl", "ndjson", "json", "txt"];

/// A file or folder of examples, as `data.train` lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// A file, or a folder whose supported files are read in the order of their names.
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

/// A record's text and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRecord {
    /// The file and line.
    pub at: Source,
    /// JSON, or the text of a whole document.
    pub text: RawText,
}

/// What a record's text is.
#[derive(Clone, Debug, PartialEq)]
pub enum RawText {
    /// A JSON value, not yet parsed.
    Json(String),
    /// A plain text document.
    Document(String),
}

impl RawRecord {
    /// Parses the record as a JSON object; a document is an object with `text`.
    pub fn parse(&self) -> Result<serde_json::Map<String, Json>, DataError> {
        let json = match &self.text {
            RawText::Document(text) => {
                return Ok([("text".to_string(), Json::String(text.clone()))].into_iter().collect());
            }
            RawText::Json(json) => json,
        };
        match serde_json::from_str(json) {
            Ok(Json::Object(object)) => Ok(object),
            Ok(other) => Err(DataError::record(
                &self.at,
                format!("a record must be a JSON object, this is {}", kind(&other)),
            )),
            Err(error) => {
                let at = Source {
                    file: self.at.file.clone(),
                    line: self.at.line + error.line().saturating_sub(1),
                };
                let text = error.to_string();
                let what = text.split(" at line ").next().unwrap_or_default();
                Err(DataError::record(&at, format!("invalid JSON at column {}: {what}", error.column())))
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

/// The files behind a path: itself, or a folder's supported files (not those in folders below) sorted by name.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let io = |source| DataError::Io { path: path.into(), source };
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.is_file() && EXTENSIONS.contains(&extension(&file).as_str()) {
            found.push(file);
        }
    }
    found.sort();
    if found.is_empty() {
        let message = format!("the folder holds no file ending in {}", EXTENSIONS.join(", "));
        return Err(DataError::Unsupported { path: path.into(), message });
    }
    Ok(found)
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// Opens a file as a stream of records.
pub fn records(path: &Path) -> Result<Records, DataError> {
    let extension = extension(path);
    if !EXTENSIONS.contains(&extension.as_str()) {
        let message = match extension.as_str() {
            "" => format!(
                "without an ending its kind is unknown; name it with one of {}",
                EXTENSIONS.join(", ")
            ),
            "csv" | "tsv" | "parquet" | "arrow" => {
                format!(".{extension} is not read yet; convert it to .jsonl")
            }
            _ => match nearest(&extension, EXTENSIONS) {
                Some(near) => format!(".{extension} is not a supported kind of file, did you mean .{near}?"),
                None => format!(
                    ".{extension} is not a supported kind of file; supported are {}",
                    EXTENSIONS.join(", ")
                ),
            },
        };
        return Err(DataError::Unsupported { path: path.into(), message });
    }
    let io = |source| DataError::Io { path: path.into(), source };
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).map_err(io)?);
    let file = Arc::new(path.to_path_buf());
    if extension == "txt" {
        return Ok(Records::whole(file.clone(), vec![document(reader, &file)?]));
    }
    if extension == "json" && first_char(&mut reader).map_err(io)? == Some(b'[') {
        let text = read_text(reader, &file)?;
        return Ok(Records::whole(file.clone(), split_array(&text, &file)?));
    }
    if extension == "json" {
        return json_values(reader, file);
    }
    Ok(Records { file, line: 0, inner: Inner::Lines(reader) })
}

/// The records of one file, in order.
pub struct Records {
    file: Arc<PathBuf>,
    line: usize,
    inner: Inner,
}

enum Inner {
    Lines(BufReader<File>),
    Whole(std::vec::IntoIter<RawRecord>),
}

impl Records {
    fn whole(file: Arc<PathBuf>, records: Vec<RawRecord>) -> Self {
        Records { file, line: 0, inner: Inner::Whole(records.into_iter()) }
    }
}

impl Iterator for Records {
    type Item = Result<RawRecord, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = match &mut self.inner {
            Inner::Lines(reader) => reader,
            Inner::Whole(records) => return records.next().map(Ok),
        };
        loop {
            self.line += 1;
            let at = Source { file: self.file.clone(), line: self.line };
            match read_line(reader, &at) {
                Ok(None) => return None,
                Ok(Some(line)) if line.trim().is_empty() => continue,
                Ok(Some(line)) => return Some(Ok(RawRecord { at, text: RawText::Json(line) })),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The next line without its end, without a byte order mark at the beginning of the file.
fn read_line(reader: &mut impl BufRead, at: &Source) -> Result<Option<String>, DataError> {
    let io = |source| DataError::Io { path: at.file.as_ref().clone(), source };
    let mut bytes = Vec::new();
    let limit = MAX_RECORD_BYTES as u64 + 1;
    if reader.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(io)? == 0 {
        return Ok(None);
    }
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(DataError::record(at, format!("a line longer than {} MiB", MAX_RECORD_BYTES >> 20)));
    }
    let line = utf8(bytes, at)?;
    let line = line.trim_end_matches(['\n', '\r']);
    Ok(Some(if at.line == 1 { line.trim_start_matches('\u{feff}') } else { line }.to_string()))
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

/// A whole file as text, without a byte order mark.
fn read_text(mut reader: impl Read, file: &Arc<PathBuf>) -> Result<String, DataError> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|source| DataError::Io { path: file.as_ref().clone(), source })?;
    let text = utf8(bytes, &Source { file: file.clone(), line: 1 })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

fn document(reader: impl Read, file: &Arc<PathBuf>) -> Result<RawRecord, DataError> {
    let text = RawText::Document(read_text(reader, file)?);
    Ok(RawRecord { at: Source { file: file.clone(), line: 1 }, text })
}

/// The first byte that is neither white space nor part of a byte order mark.
fn first_char(reader: &mut impl BufRead) -> std::io::Result<Option<u8>> {
    let buffer = reader.fill_buf()?;
    let text = buffer.strip_prefix("\u{feff}".as_bytes()).unwrap_or(buffer);
    Ok(text.iter().copied().find(|byte| !byte.is_ascii_whitespace()))
}

/// A `.json` file that is no list: one object over several lines, or JSON lines by another name.
fn json_values(reader: impl Read, file: Arc<PathBuf>) -> Result<Records, DataError> {
    let text = read_text(reader, &file)?;
    let mut records = Vec::new();
    let mut splitter = Splitter { text: &text, at: 0, line: 1, file: &file };
    loop {
        splitter.skip_space();
        if splitter.at == text.len() {
            return Ok(Records::whole(file.clone(), records));
        }
        records.push(splitter.value()?);
    }
}

/// Cuts the elements out of a JSON list.
fn split_array(text: &str, file: &Arc<PathBuf>) -> Result<Vec<RawRecord>, DataError> {
    let mut splitter = Splitter { text, at: 0, line: 1, file };
    let mut records = Vec::new();
    splitter.skip_space();
    splitter.at += 1;
    loop {
        splitter.skip_space();
        match splitter.peek() {
            Some(b']') if records.is_empty() => break,
            _ => records.push(splitter.value()?),
        }
        splitter.skip_space();
        match splitter.peek() {
            Some(b',') => splitter.at += 1,
            Some(b']') => break,
            Some(_) => return Err(splitter.error("expected , or ] after an element of the list")),
            None => return Err(splitter.error("the list does not end; the file seems cut off")),
        }
    }
    splitter.at += 1;
    splitter.skip_space();
    if splitter.at < text.len() {
        return Err(splitter.error("text after the end of the list"));
    }
    Ok(records)
}

/// Finds where JSON values end without understanding them: whoever parses the piece finds what is wrong inside it.
struct Splitter<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    file: &'a Arc<PathBuf>,
}

impl Splitter<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn error(&self, message: &str) -> DataError {
        DataError::record(&Source { file: self.file.clone(), line: self.line }, message)
    }

    fn skip_space(&mut self) {
        while let Some(byte) = self.peek().filter(u8::is_ascii_whitespace) {
            self.line += usize::from(byte == b'\n');
            self.at += 1;
        }
    }

    /// The value that begins here: up to its closing bracket, or up to what cannot be part of it.
    fn value(&mut self) -> Result<RawRecord, DataError> {
        let (start, line) = (self.at, self.line);
        let (mut depth, mut in_string) = (0usize, false);
        while let Some(byte) = self.peek() {
            match byte {
                b'\\' if in_string => self.at += 1,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b',' | b']' | b'}' if !in_string && depth == 0 => break,
                b']' | b'}' if !in_string => depth -= 1,
                b'\n' => self.line += 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 && !in_string && matches!(byte, b'}' | b']') {
                break;
            }
        }
        if self.at == start {
            return Err(self.error("a value is missing"));
        }
        let end = self.at.min(self.text.len());
        let text = self.text.get(start..end).unwrap_or_default().to_string();
        Ok(RawRecord { at: Source { file: self.file.clone(), line }, text: RawText::Json(text) })
    }
}
