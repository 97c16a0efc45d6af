//! What came of each item, as lines of JSON.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::terminal::write_output;

/// Writes a line for each item aside, and puts the file in its place when all stand in it.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(path: &Path, items: impl Iterator<Item = Value>) -> anyhow::Result<()> {
    let lines: String = items.map(|item| format!("{item}\n")).collect();
    write_output(path, lines.as_bytes()).with_context(|| format!("--items {}", path.display()))
}
