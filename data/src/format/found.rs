//! A file opened: its records, and the one format that they have.

use std::path::Path;

use super::oasst::{Conversations, LeftOut, Oasst, Trees};
use super::{Format, detect};
use crate::source::{RawContent, RawRecord, Records, records};
use crate::{DataError, Source};

/// Records that are looked at to find a file's format.
const LOOKED_AT: usize = 64;

/// A file's records and their format.
pub(crate) struct Opened {
    pub(crate) records: Records,
    /// Not `Auto`.
    pub(crate) format: Format,
    /// Whether the format was found by looking rather than named.
    pub(crate) found: bool,
    /// What of the file is no record, known when all records were read.
    pub(crate) left_out: LeftOut,
}

/// Opens a file whose records have the named format, or one that is found. `oasst`: what is taken out of trees;
/// `trees`: those of the files that are read with it.
pub(crate) fn open(path: &Path, named: Format, oasst: &Oasst, trees: &Trees) -> Result<Opened, DataError> {
    let mut records = records(path)?;
    let first: Vec<RawRecord> = records.by_ref().take(LOOKED_AT).collect::<Result<_, _>>()?;
    let found = named == Format::Auto;
    let format = if found { find(&first)? } else { named };
    check_document(path, &first, format)?;
    let (mut records, left_out): (Records, _) =
        (Box::new(first.into_iter().map(Ok).chain(records)), LeftOut::default());
    if format == Format::Oasst {
        records = Box::new(Conversations::new(records, oasst.clone(), left_out.clone(), trees.clone()));
    }
    Ok(Opened { records, format, found, left_out })
}

/// The one format of the records that were looked at.
fn find(first: &[RawRecord]) -> Result<Format, DataError> {
    let mut found: Option<(Format, &Source)> = None;
    for record in first {
        let format = detect(&record.parse()?, &record.at)?;
        match found {
            None => found = Some((format, &record.at)),
            Some((earlier, _)) if earlier == format => {}
            Some((earlier, at)) => {
                let message = format!(
                    "looks like format {format}, but {} like {earlier}; a file has one format (name it with data.format)",
                    at.place()
                );
                return Err(DataError::record(&record.at, message));
            }
        }
    }
    Ok(found.map_or(Format::Text, |(format, _)| format))
}

fn check_document(path: &Path, first: &[RawRecord], format: Format) -> Result<(), DataError> {
    let is_document = first.iter().any(|record| matches!(record.content, RawContent::Document(_)));
    if is_document && format != Format::Text {
        let message = format!("a .txt file is plain text, not {format}; data.format must be auto or text");
        return Err(DataError::Unsupported { path: path.into(), message });
    }
    Ok(())
}
