//! Records of JSON: an object on each line; or a list of objects, or objects that lie over several lines, cut
//! into its elements without understanding them, so that whoever parses one finds what is wrong inside it and
//! names its line.

use std::io::{self, BufRead, Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;

use super::bytes::Bytes;
use super::{MAX_RECORD_BYTES, RawContent, RawRecord, Records, utf8};
use crate::{DataError, Source};

/// The records of a file that has one object on each line, or is laid out otherwise, as its first line shows.
pub(super) fn by_layout(mut reader: Bytes, file: Arc<PathBuf>) -> Result<Records, DataError> {
    let io = |source| DataError::Io { path: file.as_ref().clone(), source };
    let mut line = 1;
    loop {
        let (mut bytes, mut indent) = (Vec::new(), 0);
        // A list may be one long line.
        if first_byte(&mut reader, &mut line, &mut indent).map_err(io)? == Some(b'[') {
            return Ok(Box::new(Values::new(reader, file, line, indent)));
        }
        let at = Source { file: file.clone(), line };
        if read_line(&mut reader, &at, &mut bytes)? == 0 {
            return Ok(Box::new(std::iter::empty()));
        }
        let text = line_of(bytes.clone(), &at)?;
        if text.trim().is_empty() {
            line += 1;
            continue;
        }
        if lies_over_lines(&text) {
            let whole = Cursor::new(bytes).chain(reader);
            return Ok(Box::new(Values::new(Box::new(whole), file, line, indent)));
        }
        let first = RawRecord { at, indent, content: RawContent::Json(text) };
        return Ok(Box::new(std::iter::once(Ok(first)).chain(Lines { file, line, reader })));
    }
}

/// The first byte that is no white space. Lines before it are counted, and bytes before it on its line.
fn first_byte(reader: &mut Bytes, line: &mut usize, indent: &mut usize) -> io::Result<Option<u8>> {
    loop {
        match reader.fill_buf()?.first() {
            Some(b'\n') => (*line, *indent) = (*line + 1, 0),
            Some(byte) if byte.is_ascii_whitespace() => *indent += 1,
            byte => return Ok(byte.copied()),
        }
        reader.consume(1);
    }
}

/// Whether a first line is not one object: it goes on after an object, or does not end what it begins. (A
/// line that ends within a string is broken, for no string goes over lines.)
fn lies_over_lines(line: &str) -> bool {
    match serde_json::from_str::<serde::de::IgnoredAny>(line) {
        Ok(_) => false,
        Err(error) => {
            let message = error.to_string();
            message.starts_with("trailing characters")
                || (error.is_eof() && !message.starts_with("EOF while parsing a string"))
        }
    }
}

/// Lines that are not blank, each a record.
struct Lines {
    file: Arc<PathBuf>,
    /// The line that was read last.
    line: usize,
    reader: Bytes,
}

impl Iterator for Lines {
    type Item = Result<RawRecord, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.line += 1;
            let at = Source { file: self.file.clone(), line: self.line };
            let mut bytes = Vec::new();
            let read = read_line(&mut self.reader, &at, &mut bytes);
            match read.and_then(|count| Ok((count, line_of(bytes, &at)?))) {
                Ok((0, _)) => return None,
                Ok((_, line)) if line.trim().is_empty() => continue,
                Ok((_, line)) => {
                    return Some(Ok(RawRecord { at, indent: 0, content: RawContent::Json(line) }));
                }
                Err(error) => {
                    self.reader = Box::new(io::empty());
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Appends the next line with its end, and says how many bytes it has.
fn read_line(reader: &mut impl BufRead, at: &Source, bytes: &mut Vec<u8>) -> Result<usize, DataError> {
    let io = |source| DataError::Io { path: at.file.as_ref().clone(), source };
    let count = reader.by_ref().take(MAX_RECORD_BYTES as u64 + 1).read_until(b'\n', bytes).map_err(io)?;
    if count > MAX_RECORD_BYTES {
        return Err(DataError::record(at, format!("a line longer than {} MiB", MAX_RECORD_BYTES >> 20)));
    }
    Ok(count)
}

/// A line's text without its end, and without a byte order mark, which also begins the second of two files
/// put together.
fn line_of(bytes: Vec<u8>, at: &Source) -> Result<String, DataError> {
    let line = utf8(bytes, at)?;
    Ok(line.trim_end_matches(['\n', '\r']).trim_start_matches('\u{feff}').to_string())
}

const CUT_OFF: &str = "the list does not end; the file seems cut off";

/// Values that are the elements of a list, or stand one after the other.
pub(super) struct Values {
    reader: Bytes,
    file: Arc<PathBuf>,
    line: usize,
    /// Bytes before the next one on its line.
    column: usize,
    state: State,
}

/// What may come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A list, or a value.
    Beginning,
    /// A value, no list being open.
    Loose,
    /// The first element of the list, or its end.
    First,
    /// A comma, or the list's end.
    After,
    /// Nothing.
    Done,
}

impl Values {
    /// The values of a stream whose next byte is on the given line, behind so many others.
    pub(super) fn new(reader: Bytes, file: Arc<PathBuf>, line: usize, column: usize) -> Self {
        Values { reader, file, line, column, state: State::Beginning }
    }

    fn error(&self, message: &str) -> DataError {
        DataError::record(&Source { file: self.file.clone(), line: self.line }, message)
    }

    fn io(&self, source: io::Error) -> DataError {
        DataError::Io { path: self.file.as_ref().clone(), source }
    }

    fn peek(&mut self) -> Result<Option<u8>, DataError> {
        match self.reader.fill_buf() {
            Ok(buffer) => Ok(buffer.first().copied()),
            Err(error) => Err(self.io(error)),
        }
    }

    /// Passes over bytes that were peeked at.
    fn pass(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.column += bytes;
    }

    /// The next byte that is no white space.
    fn next_byte(&mut self) -> Result<Option<u8>, DataError> {
        loop {
            match self.peek()? {
                Some(byte) if byte.is_ascii_whitespace() => {
                    self.pass(1);
                    if byte == b'\n' {
                        self.line += 1;
                        self.column = 0;
                    }
                }
                byte => return Ok(byte),
            }
        }
    }

    fn read(&mut self) -> Result<Option<RawRecord>, DataError> {
        match (self.state, self.next_byte()?) {
            (State::Beginning, Some(b'[')) => {
                self.pass(1);
                self.state = State::First;
                self.element()
            }
            (State::Beginning | State::Loose, Some(b',')) => Err(self.error(
                "a comma after an object; take these commas away, or write the whole as one list, [...]",
            )),
            (State::Beginning | State::Loose, Some(_)) => {
                self.state = State::Loose;
                self.value().map(Some)
            }
            (State::Beginning | State::Loose | State::Done, None) => Ok(None),
            (State::Done, Some(b'[')) => {
                Err(self.error("a second list; a file is one list of objects, or an object on each line"))
            }
            (State::Done, Some(_)) => Err(self.error("text after the end of the list")),
            (State::First, _) => self.element(),
            (State::After, Some(b',')) => {
                self.pass(1);
                self.element()
            }
            (State::After, Some(b']')) => self.end(),
            (State::After, Some(_)) => Err(self.error("expected , or ] after an element of the list")),
            (State::After, None) => Err(self.error(CUT_OFF)),
        }
    }

    /// The element that comes next, or the end of a list without one.
    fn element(&mut self) -> Result<Option<RawRecord>, DataError> {
        match self.next_byte()? {
            Some(b']') if self.state == State::First => self.end(),
            Some(b']') => Err(self.error("a comma after the last element of the list; take it away")),
            None => Err(self.error(CUT_OFF)),
            Some(_) => {
                self.state = State::After;
                self.value().map(Some)
            }
        }
    }

    /// Passes over the list's end, behind which there must be nothing.
    fn end(&mut self) -> Result<Option<RawRecord>, DataError> {
        self.pass(1);
        self.state = State::Done;
        self.read()
    }

    /// The value that begins here: up to its closing bracket, or up to what cannot be part of it.
    fn value(&mut self) -> Result<RawRecord, DataError> {
        let (at, indent) = (Source { file: self.file.clone(), line: self.line }, self.column);
        let mut bytes = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) => return Err(self.io(error)),
            };
            let (mut used, mut ended) = (0, buffer.is_empty());
            for &byte in buffer {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    b'{' | b'[' if !in_string => depth += 1,
                    b',' | b']' | b'}' if !in_string && depth == 0 => {
                        ended = true;
                        break;
                    }
                    b']' | b'}' if !in_string => depth -= 1,
                    _ => {}
                }
                used += 1;
                if byte == b'\n' {
                    self.line += 1;
                    self.column = 0;
                } else {
                    self.column += 1;
                }
                if depth == 0 && !in_string && matches!(byte, b'}' | b']') {
                    ended = true;
                    break;
                }
            }
            bytes.extend_from_slice(&buffer[..used]);
            self.reader.consume(used);
            if bytes.len() > MAX_RECORD_BYTES {
                return Err(DataError::record(
                    &at,
                    format!("a value longer than {} MiB", MAX_RECORD_BYTES >> 20),
                ));
            }
            if ended {
                break;
            }
        }
        if bytes.is_empty() {
            return Err(self.error("a value is missing"));
        }
        Ok(RawRecord { indent, content: RawContent::Json(utf8(bytes, &at)?), at })
    }
}

impl Iterator for Values {
    type Item = Result<RawRecord, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read();
        if read.is_err() {
            // What follows an error cannot be told apart.
            self.state = State::Done;
            self.reader = Box::new(io::empty());
        }
        read.transpose()
    }
}
