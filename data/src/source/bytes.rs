//! From a file to its bytes: opened, unpacked, seen to be text, and without a byte order mark.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use super::files::{is_stdin, shown};
use crate::DataError;

/// A stream of a file's bytes.
pub(super) type Bytes = Box<dyn BufRead + Send>;

const BUFFER: usize = 1 << 16;
/// Bytes that show what a stream is.
const LOOKED_AT: u64 = 8;

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Opens a file, or standard input, as text. Whether it is compressed is seen, whatever its name says:
/// browsers and servers unpack and pack as they like.
pub(super) fn open(path: &Path) -> Result<Bytes, DataError> {
    let io = |source| DataError::Io { path: shown(path), source };
    let raw: Bytes = match is_stdin(path) {
        true => Box::new(BufReader::with_capacity(BUFFER, io::stdin())),
        false => Box::new(BufReader::with_capacity(BUFFER, File::open(path).map_err(io)?)),
    };
    let (head, raw) = look(raw).map_err(io)?;
    let packed = head.starts_with(GZIP) || head.starts_with(ZSTD);
    let (head, text) = match packed {
        true => look(unpacked(&head, raw).map_err(io)?).map_err(io)?,
        false => (head, raw),
    };
    if let Some(what) = no_text(&head) {
        return Err(DataError::Unsupported { path: shown(path), message: what.into() });
    }
    let mut text = text;
    if head.starts_with(MARK) {
        text.read_exact(&mut [0; MARK.len()]).map_err(io)?;
    }
    Ok(text)
}

/// The first bytes of a stream, and the stream from its beginning.
fn look(mut stream: Bytes) -> io::Result<(Vec<u8>, Bytes)> {
    let mut head = Vec::new();
    stream.by_ref().take(LOOKED_AT).read_to_end(&mut head)?;
    Ok((head.clone(), Box::new(Cursor::new(head).chain(stream))))
}

/// What gzip or zstd packed. Files of several members or frames, as `cat` makes them, are read to their end.
fn unpacked(head: &[u8], raw: Bytes) -> io::Result<Bytes> {
    let (how, inner): (_, Box<dyn Read + Send>) = match head.starts_with(GZIP) {
        true => ("gzip", Box::new(flate2::bufread::MultiGzDecoder::new(raw))),
        false => ("zstd", Box::new(zstd::stream::read::Decoder::with_buffer(raw)?)),
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER, Unpacked { inner, how })))
}

/// A decoder whose errors say what is being unpacked.
struct Unpacked {
    inner: Box<dyn Read + Send>,
    how: &'static str,
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| {
            let message = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    format!("the {} data end too early; is the file cut off?", self.how)
                }
                _ => format!("the {} data are damaged: {error}", self.how),
            };
            io::Error::new(error.kind(), message)
        })
    }
}

/// What a stream that begins so is instead of UTF-8 text, and what to do.
fn no_text(head: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 8] = [
        (GZIP, "is compressed twice; unpack it first"),
        (ZSTD, "is compressed twice; unpack it first"),
        (b"\xfd7zXZ\0", "is compressed by xz, whatever its ending says; unpack it first"),
        (b"PK\x03\x04", "is a zip archive, whatever its ending says; unpack it first"),
        (b"PAR1", "is a Parquet file, whatever its ending says; name it .parquet"),
        (b"ARROW1", "is an Arrow file, whatever its ending says; save it as .parquet"),
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
