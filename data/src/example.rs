//! One example as a trainer sees it: token ids, and which of them carry loss.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::source::Kind;

/// The label of a token that carries no loss, as in transformers.
pub const IGNORE: i32 = -100;

/// Where a record stands: a file, and the line (from 1) on which the record begins; in a Parquet file, which
/// has no lines, the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file, as the user named it.
    pub file: Arc<PathBuf>,
    /// The line on which the record begins, or its row, from 1.
    pub line: usize,
}

impl Source {
    /// The place within the file, in words.
    pub fn place(&self) -> String {
        let unit = if self.is_row() { "row" } else { "line" };
        format!("{unit} {}", self.line)
    }

    fn is_row(&self) -> bool {
        matches!(Kind::of(&self.file), Ok(Kind::Parquet))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_row() {
            true => write!(f, "{}, row {}", self.file.display(), self.line),
            false => write!(f, "{}:{}", self.file.display(), self.line),
        }
    }
}

/// Token ids with labels. Labels are not shifted: `labels[t]` says whether predicting token `t` from those
/// before it carries loss, and so `labels[0]` never does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// T token ids.
    pub input_ids: Vec<u32>,
    /// T labels: the token to predict at this place, or [`IGNORE`].
    pub labels: Vec<i32>,
    /// Where it came from.
    pub source: Source,
}

impl Example {
    /// The number of tokens, T.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// The number of tokens that carry loss after the shift: the first token has nothing to be predicted
    /// from.
    pub fn trained_tokens(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORE).count()
    }
}
