//! What came of each item, as lines of JSON.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use tempfile::NamedTempFile;

/// Writes a line for each item aside, and puts the file in its place when all stand in it.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(path: &Path, items: impl Iterator<Item = Value>) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = || -> anyhow::Result<()> {
        let mut file = BufWriter::new(NamedTempFile::new_in(folder)?);
        for item in items {
            writeln!(file, "{item}")?;
        }
        file.into_inner().map_err(|error| error.into_error())?.persist(path)?;
        Ok(())
    };
    written().with_context(|| format!("--items {}", path.display()))
}
