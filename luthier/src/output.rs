//! Files that a person names for what a command gives.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use model::checkpoint::write_whole;

use crate::error::user;

/// Refuses, before there is anything to write, a file that a person named in a folder that is not there, or that is
/// itself a folder.
pub(crate) fn check(flag: &str, path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shown = path.display();
    if path.is_dir() {
        return Err(user(format!("{flag} {shown}: it is a folder; name a file")));
    }
    if path.is_symlink() && !path.exists() {
        return Err(user(format!("{flag} {shown}: it is a link to what is not there; name a file")));
    }
    match folder.is_dir() {
        true => Ok(()),
        false => Err(user(format!("{flag} {shown}: there is no folder {}", folder.display()))),
    }
}

/// Writes a file that a person named: whole or not at all, where a link points, and into what is no regular file,
/// such as a pipe or `/dev/stdout`, as into a stream.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match fs::metadata(&target) {
        Ok(there) if !there.is_file() => {
            let written =
                File::options().write(true).open(&target).and_then(|mut file| file.write_all(bytes));
            written.with_context(|| format!("cannot write {}", path.display()))
        }
        _ => Ok(write_whole(&target, bytes)?),
    }
}
