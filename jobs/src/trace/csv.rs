//! Tables of traces: fields with commas between them. None of them quotes a field.

use std::io::BufRead;

use super::{Gatherer, Lines, TraceError, Wrong};

/// Bytes of a line.
const MAX_LINE: usize = 64 * 1024;

/// A line's fields.
pub(super) struct Row<'a> {
    pub(super) line: u64,
    fields: Vec<&'a str>,
}

impl<'a> Row<'a> {
    pub(super) fn at(&self, column: usize) -> &'a str {
        self.fields.get(column).copied().unwrap_or_default()
    }
}

/// Reads a table of these columns, one line after the other. What `take` finds wrong is for the gatherer to
/// judge.
pub(super) fn rows<R: BufRead>(
    lines: &mut Lines<R>,
    columns: &[&str],
    gatherer: &mut Gatherer,
    mut take: impl FnMut(&mut Gatherer, Row<'_>) -> Result<(), TraceError>,
) -> Result<(), TraceError> {
    loop {
        let line = match lines.next(MAX_LINE) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => return Err(gatherer.whole(error.to_string())),
        };
        if line.bytes.is_empty() {
            continue;
        }
        let number = line.number;
        let count = line.bytes.iter().filter(|&&byte| byte == b',').count() + 1;
        let last = columns.get(count - 1).or(columns.last()).copied().unwrap_or_default();
        let wrong = match std::str::from_utf8(line.bytes) {
            _ if line.is_cut => {
                Wrong::field(number, last, format!("the line has more than {MAX_LINE} bytes"))
            }
            Err(error) => {
                let before = line.bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b',').count();
                let field = columns.get(before).copied().unwrap_or_default();
                Wrong::field(number, field, "is not UTF-8")
            }
            Ok(text) if count == columns.len() => {
                let fields = text.split(',').map(str::trim).collect();
                take(gatherer, Row { line: number, fields })?;
                continue;
            }
            Ok(_) => {
                let message = format!("{count} fields; {} are expected", columns.len());
                match count < columns.len() {
                    true => Wrong::field(number, columns[count], format!("is missing: {message}")),
                    false => Wrong::line(number, message),
                }
            }
        };
        gatherer.take(Err(wrong))?;
    }
}

/// The names of a table's columns, from its first line.
pub(super) fn header<R: BufRead>(
    lines: &mut Lines<R>,
    gatherer: &Gatherer,
) -> Result<Vec<String>, TraceError> {
    let line = match lines.next(MAX_LINE) {
        Ok(Some(line)) => line,
        Ok(None) => return Err(gatherer.whole("is empty")),
        Err(error) => return Err(gatherer.whole(error.to_string())),
    };
    match std::str::from_utf8(line.bytes) {
        Ok(text) if !line.is_cut => {
            Ok(text.trim_start_matches('\u{feff}').split(',').map(|name| name.trim().to_owned()).collect())
        }
        _ => Err(Wrong::line(1, "is no header of a table").at(&gatherer.file)),
    }
}
