//! Records of a table of text, `.csv` or `.tsv`: the first row names the columns, and every other is an
//! object of strings.

use std::collections::VecDeque;
use std::io::{self, BufRead, Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;

use csv::{ByteRecord, ErrorKind, Reader, ReaderBuilder};
use serde_json::{Map, Value as Json};

use super::bytes::Bytes;
use super::{MAX_RECORD_BYTES, RawContent, RawRecord};
use crate::{DataError, Source};

/// What may separate columns, the likeliest first.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// The rows of a table.
pub(super) struct Rows {
    reader: Reader<Watched>,
    file: Arc<PathBuf>,
    columns: Vec<String>,
    /// Whether there can be another row.
    open: bool,
}

impl Rows {
    /// Reads the row that names the columns, and finds what separates them.
    pub(super) fn open(reader: Bytes, tabs: bool, file: Arc<PathBuf>) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: file.as_ref().clone(), source };
        let (separator, reader) = match tabs {
            true => (b'\t', reader),
            false => separator(reader).map_err(io)?,
        };
        let watched = Watched::new(reader, separator);
        let reader = ReaderBuilder::new().delimiter(separator).has_headers(false).from_reader(watched);
        let mut rows = Rows { reader, file, columns: Vec::new(), open: true };
        if let Some((at, names)) = rows.fields()? {
            for (i, name) in names.iter().enumerate() {
                // pandas writes the number of a row into a column without a name.
                if !name.is_empty() && names[..i].contains(name) {
                    let message =
                        format!("two columns are named {name:?}; the first row must name each column once");
                    return Err(DataError::record(&at, message));
                }
            }
            rows.columns = names;
        }
        Ok(rows)
    }

    /// The next row's fields, and where it begins.
    fn fields(&mut self) -> Result<Option<(Source, Vec<String>)>, DataError> {
        let mut record = ByteRecord::new();
        self.reader.get_mut().left = MAX_RECORD_BYTES;
        let read = self.reader.read_byte_record(&mut record);
        let watched = self.reader.get_mut();
        let line = watched.begun.pop_front().unwrap_or(watched.line);
        let at = Source { file: self.file.clone(), line };
        match read {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => return Err(self.wrong(error, at)),
        }
        if self.reader.get_ref().ended && self.reader.get_ref().state == Field::Quoted {
            let at = Source { line: self.reader.get_ref().opened, ..at };
            return Err(DataError::record(&at, "the quotation mark that opens a field here is never closed"));
        }
        let text = |(i, field): (usize, &[u8])| {
            String::from_utf8(field.to_vec()).map_err(|_| {
                let column =
                    self.columns.get(i).map_or(String::new(), |name| format!(" in the column {name:?}"));
                DataError::record(&at, format!("not UTF-8{column}; save the file as UTF-8"))
            })
        };
        let fields = record.iter().enumerate().map(text).collect::<Result<_, _>>()?;
        Ok(Some((at, fields)))
    }

    fn wrong(&self, error: csv::Error, at: Source) -> DataError {
        match error.into_kind() {
            ErrorKind::Io(source) if source.kind() == io::ErrorKind::FileTooLarge => {
                DataError::record(&at, format!("a row longer than {} MiB", MAX_RECORD_BYTES >> 20))
            }
            ErrorKind::Io(source) => DataError::Io { path: self.file.as_ref().clone(), source },
            ErrorKind::UnequalLengths { expected_len, len, .. } => {
                let message = format!(
                    "the row has {len} field{}, the first row names {expected_len} column{} ({}); a field that contains \
                     separators, quotation marks or line breaks must stand in quotation marks",
                    if len == 1 { "" } else { "s" },
                    if expected_len == 1 { "" } else { "s" },
                    self.columns.join(", ")
                );
                DataError::record(&at, message)
            }
            other => DataError::record(&at, format!("is no row of a table: {other:?}")),
        }
    }
}

impl Iterator for Rows {
    type Item = Result<RawRecord, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.open {
            return None;
        }
        let row = self.fields().transpose();
        self.open = matches!(row, Some(Ok(_)));
        Some(row?.map(|(at, fields)| {
            let named = self.columns.iter().zip(fields).filter(|(name, _)| !name.is_empty());
            let row: Map<String, Json> =
                named.map(|(name, text)| (name.clone(), Json::String(text))).collect();
            RawRecord { at, indent: 0, content: RawContent::Row(row) }
        }))
    }
}

/// What separates the columns: of what may, that which the first line has most often outside quotation marks.
fn separator(mut reader: Bytes) -> io::Result<(u8, Bytes)> {
    let mut line = Vec::new();
    reader.by_ref().take(1 << 20).read_until(b'\n', &mut line)?;
    let mut counts = [0usize; SEPARATORS.len()];
    let mut quoted = false;
    for byte in &line {
        match SEPARATORS.iter().position(|separator| separator == byte) {
            Some(i) if !quoted => counts[i] += 1,
            _ => quoted ^= *byte == b'"',
        }
    }
    let most = (0..SEPARATORS.len()).rev().max_by_key(|&i| counts[i]).unwrap_or_default();
    Ok((SEPARATORS[most], Box::new(Cursor::new(line).chain(reader))))
}

/// Where in a field a byte stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Begin,
    Plain,
    Quoted,
    /// Behind a quotation mark that ends the field, or is the first of two that mean one.
    AfterQuote,
}

/// A stream that ends where a row has taken more than its share, and knows two things that the reader of rows
/// does not tell: the line on which a row begins (it counts those of blank lines and of `\r\n` late), and
/// whether the last field was closed (it takes all that follows an open quotation mark for the field).
struct Watched {
    inner: Bytes,
    separator: u8,
    /// Bytes that may be read for this row.
    left: usize,
    ended: bool,
    state: Field,
    line: usize,
    /// Whether the next byte that ends no line begins a row.
    between: bool,
    /// The lines on which rows begin that were not handed out yet.
    begun: VecDeque<usize>,
    /// The line on which the last field in quotation marks began.
    opened: usize,
}

impl Watched {
    fn new(inner: Bytes, separator: u8) -> Self {
        Watched {
            inner,
            separator,
            left: 0,
            ended: false,
            state: Field::Begin,
            line: 1,
            between: true,
            begun: VecDeque::new(),
            opened: 1,
        }
    }

    fn watch(&mut self, byte: u8) {
        let ends_line = matches!(byte, b'\n' | b'\r');
        if self.between && !ends_line {
            self.begun.push_back(self.line);
            self.between = false;
        }
        self.state = match (self.state, byte) {
            (Field::Begin, b'"') => {
                self.opened = self.line;
                Field::Quoted
            }
            (Field::Quoted, b'"') => Field::AfterQuote,
            (Field::Quoted, _) => Field::Quoted,
            (Field::AfterQuote, b'"') => Field::Quoted,
            _ if ends_line => {
                self.between = true;
                Field::Begin
            }
            (_, byte) if byte == self.separator => Field::Begin,
            _ => Field::Plain,
        };
        self.line += usize::from(byte == b'\n');
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let count = buffer.len().min(self.left);
        let count = self.inner.read(&mut buffer[..count])?;
        self.left -= count;
        self.ended = count == 0;
        for &byte in &buffer[..count] {
            self.watch(byte);
        }
        Ok(count)
    }
}
