//! What came of each item, as lines of JSON.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::error::user;
use crate::output;

/// Refuses, before anything is computed, a file that cannot be written or that the items are read from.
///
/// # Errors
/// If its folder is not there, or it is `data`.
pub(super) fn check(path: &Path, data: &Path) -> anyhow::Result<()> {
    output::check("--items", path)?;
    let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
    match same(path, data) {
        Some(true) => {
            Err(user(format!("--items {}: it is what --data names; choose another file", path.display())))
        }
        _ => Ok(()),
    }
}

/// Writes a line for each item aside, and puts the file in its place when all stand in it.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(path: &Path, items: impl Iterator<Item = Value>) -> anyhow::Result<()> {
    let lines: String = items.map(|item| format!("{item}\n")).collect();
    output::write(path, lines.as_bytes()).with_context(|| format!("--items {}", path.display()))
}
