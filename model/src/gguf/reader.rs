//! Numbers and texts of a header, one after the other, none beyond the file's end.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::error::{ModelError, Result};

/// The longest header that is read, in bytes: ten times that of a large vocabulary with its merges.
const MAX_HEADER: u64 = 100_000_000;

/// A file's bytes from its beginning on.
pub(super) struct Reader<'a> {
    file: BufReader<File>,
    position: u64,
    length: u64,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: BufReader<File>, length: u64, path: &'a Path) -> Self {
        Reader { file, position: 0, length, path }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Makes sure that so many things, of so many bytes each at least, can be in what is left of the file.
    pub(super) fn check_room(&self, count: u64, least: u64, what: &str) -> Result<()> {
        let end = count.checked_mul(least).and_then(|bytes| bytes.checked_add(self.position));
        match end {
            Some(end) if end <= self.length.min(MAX_HEADER) => Ok(()),
            Some(end) if end <= self.length => {
                let problem = format!(
                    "claims {count} of {what}, with which its header is longer than {MAX_HEADER} bytes"
                );
                Err(self.file(&problem))
            }
            _ => {
                let left = self.length - self.position;
                Err(self.file(&format!("claims {count} {what}, and has {left} bytes more; {BROKEN_OFF}")))
            }
        }
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        self.check_room(length, 1, &format!("bytes in {what}"))?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|_| self.file(&format!("has {what} that is no UTF-8")))
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Result<()> {
        let end = self.position + bytes.len() as u64;
        if end > self.length {
            return Err(self.file(&format!("ends within {what}; {BROKEN_OFF}")));
        }
        if end > MAX_HEADER {
            return Err(self.file(&format!("has a header of more than {MAX_HEADER} bytes")));
        }
        self.file.read_exact(bytes).map_err(|e| ModelError::read(self.path, e))?;
        self.position = end;
        Ok(())
    }

    pub(super) fn file(&self, problem: &str) -> ModelError {
        ModelError::file(self.path, problem)
    }

    pub(super) fn field(&self, key: &str, problem: &str) -> ModelError {
        ModelError::field(self.path, key, problem)
    }

    pub(super) fn tensor(&self, name: &str, problem: &str) -> ModelError {
        ModelError::tensor(self.path, name, problem)
    }
}

const BROKEN_OFF: &str = "was the download broken off?";
