//! Writing files so that a crash leaves the old one or the new one, never half of one.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::error::{Result, TrainError};

/// Writes beside the file, then renames.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("partial");
    let written = File::create(&beside).and_then(|mut f| {
        f.write_all(bytes)?;
        f.sync_all()
    });
    written.and_then(|()| fs::rename(&beside, path)).map_err(|e| {
        let _ = fs::remove_file(&beside);
        TrainError::write(path, e)
    })
}

/// Makes the entries of a folder durable after a rename.
pub(crate) fn sync_folder(path: &Path) {
    // Some file systems refuse to sync a folder; the rename itself is still atomic there.
    if let Ok(folder) = File::open(path) {
        let _ = folder.sync_all();
    }
}
