//! What can go wrong between a data file and token ids, told so that its cause can be found: file, line,
//! field, and what to do.

use std::path::PathBuf;

use crate::{Source, TemplateError, TokenizerError};

/// An error in the user's data, data settings, tokenizer or chat template.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read.
    #[error("{path}: {source}{}", where_to_look(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The path leads to nothing that can be trained on.
    #[error("{path}: {message}")]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        message: String,
    },
    /// One record of a file is wrong.
    #[error("{at}: {message}")]
    Record {
        /// The file and line.
        at: Source,
        /// What is wrong with it, and what to do.
        message: String,
    },
    /// A record is fine, but the chat template cannot render it.
    #[error("{at}: {error}")]
    Render {
        /// The file and line.
        at: Source,
        /// What the template said.
        error: TemplateError,
    },
    /// The chat template itself is wrong, whatever the record.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer cannot be loaded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A token that the model has no embedding for.
    #[error(
        "{at}: token {id} ({token:?}) is beyond the model's vocabulary of {vocab_size}; \
         the tokenizer or the token ids belong to another model"
    )]
    Vocabulary {
        /// The file and line.
        at: Source,
        /// The token.
        id: u32,
        /// Its text, if the tokenizer knows it.
        token: String,
        /// The number of rows of the model's embedding.
        vocab_size: usize,
    },
    /// An example has more than `max_length` tokens and `on_overflow` is `error`.
    #[error(
        "{at}: the example has {tokens} tokens, data.max_length is {max_length}; \
         raise data.max_length, or set data.on_overflow to truncate or drop"
    )]
    Overflow {
        /// The file and line.
        at: Source,
        /// The example's length in tokens.
        tokens: usize,
        /// The limit.
        max_length: usize,
    },
    /// No token of the whole data set carries loss.
    #[error("nothing would be trained: {0}")]
    NothingTrained(String),
    /// A setting contradicts itself or the data.
    #[error("{key}: {message}")]
    Setting {
        /// The setting's name in the run file.
        key: &'static str,
        /// What is wrong with it, and what to do.
        message: String,
    },
}

/// What to do about a file that is not there.
fn where_to_look(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => "; check its name, and the folder that it is looked for from",
        _ => "",
    }
}

impl DataError {
    pub(crate) fn record(at: &Source, message: impl Into<String>) -> Self {
        DataError::Record { at: at.clone(), message: message.into() }
    }
}

/// A name that is none of the known ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {given:?}{}; known: {}", did_you_mean(.given, .known), .known.join(", "))]
pub struct UnknownName {
    /// What kind of name it should be.
    pub what: &'static str,
    /// What was given.
    pub given: String,
    /// All the right names.
    pub known: &'static [&'static str],
}

/// `, did you mean "x"?` if one of the known names is near, else nothing.
pub(crate) fn did_you_mean(given: &str, known: &[&str]) -> String {
    nearest(given, known).map(|name| format!(", did you mean {name:?}?")).unwrap_or_default()
}

/// The known name nearest to `given` by edit distance, if it is near enough to be a slip of the pen.
pub(crate) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let given = given.to_lowercase();
    let (distance, name) = known.iter().map(|name| (edit_distance(&given, name), *name)).min()?;
    (distance <= 1 + name.chars().count() / 4).then_some(name)
}

/// Levenshtein's distance, on prefixes short enough that a hostile name costs nothing.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Implements `FromStr`, `Display`, serde and `NAMES` for an enum whose variants are named by fixed words.
macro_rules! named_enum {
    ($type:ident, $what:literal, $($variant:ident = $name:literal),+ $(,)?) => {
        impl $type {
            /// The names as they stand in the run file.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The name as it stands in the run file.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name),+ }
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::error::UnknownName;
            fn from_str(given: &str) -> Result<Self, Self::Err> {
                match given {
                    $($name => Ok($type::$variant),)+
                    _ => Err($crate::error::UnknownName { what: $what, given: given.into(), known: Self::NAMES }),
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let given = <String as serde::Deserialize>::deserialize(deserializer)?;
                given.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use named_enum;
