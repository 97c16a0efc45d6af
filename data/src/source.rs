//! Where records come from: files, folders and weighted lists of them, read as text with line numbers.
//!
//! Here a record is still text. A file of one object a line is streamed; a list, or objects that lie over several lines, is read
//! whole and cut into its elements, so that an error inside one names its line.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::error::nearest;
use crate::json;
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
    /// Bytes before the record on its line.
    pub indent: usize,
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
            "gz" | "zst" | "xz" | "bz2" | "zip" => {
                format!(".{extension} is compressed, which is not read; unpack it first")
            }
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
    if let Some(what) = no_text(reader.fill_buf().map_err(io)?) {
        return Err(DataError::Unsupported { path: path.into(), message: what.into() });
    }
    let file = Arc::new(path.to_path_buf());
    if extension == "txt" {
        return Ok(Records::whole(vec![document(reader, &file)?]));
    }
    if extension == "json" {
        return Ok(Records::whole(values(&read_text(reader, &file)?, &file)?));
    }
    let mut lines = Lines { file, line: 0, reader };
    let first = lines.next().transpose()?;
    if !first.as_ref().is_some_and(|record| lies_over_lines(&record.text)) {
        return Ok(Records { first, rest: Rest::Lines(lines) });
    }
    let Lines { file, mut reader, .. } = lines;
    reader.rewind().map_err(io)?;
    Ok(Records::whole(values(&read_text(reader, &file)?, &file)?))
}

/// What a file that begins so is instead of UTF-8 text, and what to do.
fn no_text(head: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 8] = [
        (b"\x1f\x8b", "is compressed by gzip, whatever its ending says; unpack it first"),
        (b"\x28\xb5\x2f\xfd", "is compressed by zstd, whatever its ending says; unpack it first"),
        (b"\xfd7zXZ\0", "is compressed by xz, whatever its ending says; unpack it first"),
        (b"PK\x03\x04", "is a zip archive, whatever its ending says; unpack it first"),
        (b"PAR1", "is a Parquet file, whatever its ending says; convert it to .jsonl"),
        (b"ARROW1", "is an Arrow file, whatever its ending says; convert it to .jsonl"),
        (b"\xff\xfe", UTF16),
        (b"\xfe\xff", UTF16),
    ];
    const UTF16: &str = "is UTF-16 text; save the file as UTF-8";
    match head {
        // Without a byte order mark: an ASCII character, of which the other byte is 0.
        [0, 1..=0x7f, ..] | [1..=0x7f, 0, ..] => Some(UTF16),
        _ => KINDS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, what)| *what),
    }
}

/// Whether a first line is not one object: it begins a list, goes on after an object, or does not end what it begins. (A line
/// that ends within a string is broken, for no string goes over lines.)
fn lies_over_lines(text: &RawText) -> bool {
    let RawText::Json(line) = text else { return false };
    match serde_json::from_str::<serde::de::IgnoredAny>(line) {
        Ok(_) => line.trim_start().starts_with('['),
        Err(error) => {
            let message = error.to_string();
            message.starts_with("trailing characters")
                || (error.is_eof() && !message.starts_with("EOF while parsing a string"))
        }
    }
}

/// The records of one file, in order.
pub struct Records {
    /// Read already, to see how the file is laid out.
    first: Option<RawRecord>,
    rest: Rest,
}

enum Rest {
    Lines(Lines),
    Whole(std::vec::IntoIter<RawRecord>),
}

impl Records {
    fn whole(records: Vec<RawRecord>) -> Self {
        Records { first: None, rest: Rest::Whole(records.into_iter()) }
    }
}

impl Iterator for Records {
    type Item = Result<RawRecord, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.first.take(), &mut self.rest) {
            (Some(first), _) => Some(Ok(first)),
            (None, Rest::Lines(lines)) => lines.next(),
            (None, Rest::Whole(records)) => records.next().map(Ok),
        }
    }
}

/// Lines that are not blank, each a record.
struct Lines {
    file: Arc<PathBuf>,
    line: usize,
    reader: BufReader<File>,
}

impl Iterator for Lines {
    type Item = Result<RawRecord, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.line += 1;
            let at = Source { file: self.file.clone(), line: self.line };
            match read_line(&mut self.reader, &at) {
                Ok(None) => return None,
                Ok(Some(line)) if line.trim().is_empty() => continue,
                Ok(Some(line)) => return Some(Ok(RawRecord { at, indent: 0, text: RawText::Json(line) })),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The next line without its end, and without a byte order mark, which also begins the second of two files put together.
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
    Ok(Some(line.trim_end_matches(['\n', '\r']).trim_start_matches('\u{feff}').to_string()))
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
    let text = RawText::Document(universal_newlines(&read_text(reader, file)?).into_owned());
    Ok(RawRecord { at: Source { file: file.clone(), line: 1 }, indent: 0, text })
}

/// Text whose lines end in `\n`, as Python's text mode reads it: `\r\n` and a lone `\r` end a line, too.
pub(crate) fn universal_newlines(text: &str) -> Cow<'_, str> {
    match text.contains('\r') {
        true => text.replace("\r\n", "\n").replace('\r', "\n").into(),
        false => text.into(),
    }
}

/// The records of a text that is a JSON list, or values one after the other.
fn values(text: &str, file: &Arc<PathBuf>) -> Result<Vec<RawRecord>, DataError> {
    let mut splitter = Splitter { text, at: 0, line: 1, line_start: 0, file };
    splitter.skip_space();
    if splitter.peek() == Some(b'[') {
        return splitter.list();
    }
    let mut records = Vec::new();
    while let Some(next) = splitter.peek() {
        if next == b',' {
            let message =
                "a comma after an object; take these commas away, or write the whole as one list, [...]";
            return Err(splitter.error(message));
        }
        records.push(splitter.value()?);
        splitter.skip_space();
    }
    Ok(records)
}

const CUT_OFF: &str = "the list does not end; the file seems cut off";

/// Finds where JSON values end without understanding them: whoever parses the piece finds what is wrong inside it.
struct Splitter<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    line_start: usize,
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
            if byte == b'\n' {
                self.new_line();
            }
            self.at += 1;
        }
    }

    /// Notes that the byte here ends a line.
    fn new_line(&mut self) {
        self.line += 1;
        self.line_start = self.at + 1;
    }

    /// The elements of the list that begins here and is the rest of the text.
    fn list(&mut self) -> Result<Vec<RawRecord>, DataError> {
        let mut records = Vec::new();
        self.at += 1;
        loop {
            self.skip_space();
            match self.peek() {
                Some(b']') if records.is_empty() => break,
                Some(b']') => {
                    return Err(self.error("a comma after the last element of the list; take it away"));
                }
                None => return Err(self.error(CUT_OFF)),
                Some(_) => records.push(self.value()?),
            }
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                Some(_) => return Err(self.error("expected , or ] after an element of the list")),
                None => return Err(self.error(CUT_OFF)),
            }
        }
        self.at += 1;
        self.skip_space();
        match self.peek() {
            Some(b'[') => {
                Err(self.error("a second list; a file is one list of objects, or an object on each line"))
            }
            Some(_) => Err(self.error("text after the end of the list")),
            None => Ok(records),
        }
    }

    /// The value that begins here: up to its closing bracket, or up to what cannot be part of it.
    fn value(&mut self) -> Result<RawRecord, DataError> {
        let (start, line, indent) = (self.at, self.line, self.at - self.line_start);
        let (mut depth, mut in_string) = (0usize, false);
        while let Some(byte) = self.peek() {
            match byte {
                b'\\' if in_string => self.at += 1,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b',' | b']' | b'}' if !in_string && depth == 0 => break,
                b']' | b'}' if !in_string => depth -= 1,
                b'\n' => self.new_line(),
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
        Ok(RawRecord { at: Source { file: self.file.clone(), line }, indent, text: RawText::Json(text) })
    }
}
