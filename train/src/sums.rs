//! `SHA256SUMS`: a hash of every other file of a checkpoint, by which a turned byte is noticed. `sha256sum
//! -c` reads it too.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use model::checkpoint::write_whole;
use sha2::{Digest, Sha256};

use crate::error::{Result, TrainError};

/// The file's name.
pub(crate) const FILE: &str = "SHA256SUMS";

/// Bytes that are read at once.
const BUFFER: usize = 1 << 16;

/// Writes the hashes of all files that a folder holds.
pub(crate) fn write(folder: &Path) -> Result<()> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .map_err(|e| TrainError::read(folder, e))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    let mut lines = String::new();
    for name in names {
        let path = folder.join(&name);
        let hash = hash(&path).map_err(|e| TrainError::read(&path, e))?;
        lines += &format!("{hash}  {name}\n");
    }
    Ok(write_whole(&folder.join(FILE), lines.as_bytes())?)
}

/// Whether the files of a folder, `needed` ones among them, are those whose hashes were written; if not, what
/// is wrong.
pub(crate) fn verify(folder: &Path, needed: &[&str]) -> Result<(), String> {
    let text = fs::read_to_string(folder.join(FILE)).map_err(|e| format!("{FILE}: {e}"))?;
    let mut listed = Vec::new();
    for line in text.lines() {
        let (expected, name) = line
            .split_once("  ")
            .filter(|(_, name)| Path::new(name).file_name().is_some_and(|file| file == *name))
            .ok_or_else(|| format!("{FILE}: a line is no hash and name"))?;
        if hash(&folder.join(name)).map_err(|e| format!("{name}: {e}"))? != expected {
            return Err(format!("{name}: its bytes are not those that were written"));
        }
        listed.push(name);
    }
    match needed.iter().find(|name| !listed.contains(name)) {
        Some(name) => Err(format!("{FILE}: {name} does not stand there")),
        None => Ok(()),
    }
}

/// The hash of a file's bytes in hexadecimal digits.
fn hash(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hasher.update(&buffer[..n]),
        }
    }
}
