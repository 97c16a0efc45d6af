//! Reading a JSON object field by field, with bounds; errors name file and field.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{ModelError, Result, nearest};

/// The text of a file that is small if it is what it should be.
pub(crate) fn read_small_file(path: &Path, max_bytes: u64) -> Result<String> {
    let length = fs::metadata(path).map_err(|e| ModelError::read(path, e))?.len();
    if length > max_bytes {
        let problem = format!("has {length} bytes, more than the {max_bytes} that such a file can have");
        return Err(ModelError::file(path, problem));
    }
    let bytes = fs::read(path).map_err(|e| ModelError::read(path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        let position = e.utf8_error().valid_up_to();
        ModelError::file(path, format!("is not UTF-8 text: byte {position} is not part of a character"))
    })
}

/// A value cut to what fits into a message.
pub(crate) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The fields of a JSON object, read with bounds; errors name file and field.
pub(crate) struct Fields<'a> {
    pub(crate) path: &'a Path,
    /// The object's own name in the file; empty at the top.
    pub(crate) prefix: &'a str,
    pub(crate) map: &'a Map<String, Value>,
    /// What this file calls some of the fields: our word and its own.
    aliases: &'static [(&'static str, &'static str)],
}

impl<'a> Fields<'a> {
    /// The fields of an object, which has this name in the file (none at the top).
    pub(crate) fn new(path: &'a Path, prefix: &'a str, map: &'a Map<String, Value>) -> Self {
        Fields { path, prefix, map, aliases: &[] }
    }

    /// The same fields under other names.
    pub(crate) fn with_aliases(self, aliases: &'static [(&'static str, &'static str)]) -> Self {
        Fields { aliases, ..self }
    }

    /// A field's name in the file.
    pub(super) fn name<'n>(&self, field: &'n str) -> &'n str {
        self.aliases.iter().find(|(ours, _)| *ours == field).map_or(field, |(_, theirs)| theirs)
    }

    /// A field's value, null included.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(self.name(field))
    }

    pub(crate) fn error(&self, field: impl Into<String>, problem: impl Into<String>) -> ModelError {
        let field = field.into();
        let field = self.name(&field);
        let name = if self.prefix.is_empty() { field.to_owned() } else { format!("{}.{field}", self.prefix) };
        ModelError::field(self.path, name, problem)
    }

    pub(crate) fn wrong(&self, field: impl Into<String>, value: &Value, expected: &str) -> ModelError {
        self.error(field, format!("is {}; expected {expected}", short(value)))
    }

    /// A field's value unless it is absent or null.
    pub(crate) fn present(&self, field: &str) -> Option<&'a Value> {
        self.get(field).filter(|v| !v.is_null())
    }

    pub(super) fn missing(&self, field: &str) -> ModelError {
        let near = nearest(field, self.map.keys().map(String::as_str), 1);
        // Only a slip of the pen is worth naming.
        let hint = match near.first() {
            Some(near) if near.len().abs_diff(field.len()) <= 2 && near.get(..3) == field.get(..3) => {
                format!(" (there is {near:?})")
            }
            _ => String::new(),
        };
        self.error(field, format!("is missing{hint}; take the config.json that came with the model"))
    }

    /// A whole number from `min` to `max`.
    pub(super) fn whole(&self, field: &str, min: usize, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.present(field) else { return Ok(None) };
        let number = value
            .as_u64()
            .or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64));
        match number {
            Some(n) if (min as u64..=max as u64).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.wrong(field, value, &format!("a whole number from {min} to {max}"))),
        }
    }

    pub(crate) fn size(&self, field: &str, max: usize) -> Result<usize> {
        self.whole(field, 1, max)?.ok_or_else(|| self.missing(field))
    }

    pub(crate) fn size_or(&self, field: &str, max: usize, default: usize) -> Result<usize> {
        Ok(self.whole(field, 1, max)?.unwrap_or(default))
    }

    pub(super) fn count_or(&self, field: &str, max: usize, default: usize) -> Result<usize> {
        Ok(self.whole(field, 0, max)?.unwrap_or(default))
    }

    pub(crate) fn flag_or(&self, field: &str, default: bool) -> Result<bool> {
        match self.present(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.wrong(field, value, "true or false")),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<String>> {
        match self.present(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(value) => Err(self.wrong(field, value, "text")),
        }
    }

    pub(crate) fn optional_float(
        &self,
        field: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>> {
        let Some(value) = self.present(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (low, high) = (range.start(), range.end());
                let low =
                    if *low == f64::MIN_POSITIVE { "above 0".to_owned() } else { format!("from {low}") };
                Err(self.wrong(field, value, &format!("a number {low} to {high}")))
            }
        }
    }

    pub(super) fn float(&self, field: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64> {
        self.optional_float(field, range)?.ok_or_else(|| self.missing(field))
    }

    pub(crate) fn float_or(
        &self,
        field: &str,
        default: f64,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<f64> {
        Ok(self.optional_float(field, range)?.unwrap_or(default))
    }

    /// A token id, a list of them, or none where the field is null.
    pub(super) fn token(&self, field: &str, default: &[u32]) -> Result<Vec<u32>> {
        let id = |value: &Value| match value.as_u64() {
            Some(id) if id <= u64::from(u32::MAX) => Ok(id as u32),
            // Some tools write -1 for "none", transformers keeps it.
            _ => Err(self.wrong(field, value, "a token id or null")),
        };
        match self.get(field) {
            None => Ok(default.to_vec()),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Number(n)) if n.as_i64() == Some(-1) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}
