//! The fields of a request's body: each is read with its type and its range, and what is wrong is told by its
//! name. Fields that nobody reads are nobody's business, as OpenAI's clients expect, but for those of jobs.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object that a client sent. A field that is `null` counts as not there.
#[derive(Clone, Debug)]
pub(crate) struct Fields(Map<String, Value>, usize);

impl Fields {
    /// Reads the body of a request.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields, body.len())),
            Ok(other) => {
                Err(ApiError::invalid(format!("the body must be a JSON object, and is {}", kind(&other))))
            }
            Err(error) => Err(ApiError::invalid(format!("the body is not JSON: {error}"))),
        }
    }

    /// Bytes of the body that it came in.
    pub(crate) fn bytes(&self) -> usize {
        self.1
    }

    /// The object itself.
    pub(crate) fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// A field as it is.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A field that must be there.
    pub(crate) fn required(&self, name: &str) -> Result<&Value, ApiError> {
        self.value(name).ok_or_else(|| ApiError::field(name, format!("`{name}` is missing")))
    }

    /// Refuses fields that are none of these: where a misspelt one would be missed for hours.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        let is_unknown = |name: &&String| !known.contains(&name.as_str()) && self.value(name).is_some();
        let Some(name) = self.0.keys().find(is_unknown) else { return Ok(()) };
        let meant = nearest(name, known).map_or(String::new(), |meant| format!("; did you mean `{meant}`?"));
        let known = known.join("`, `");
        let message = format!("there is no `{name}` here{meant}; there are `{known}`");
        Err(ApiError::field(name.clone(), message))
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        self.read(name, "a string", Value::as_str)
    }

    pub(crate) fn required_text(&self, name: &str) -> Result<&str, ApiError> {
        self.required(name)?;
        Ok(self.text(name)?.unwrap_or_default())
    }

    /// An object.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields>, ApiError> {
        self.read(name, "an object", |value| Some(Fields(value.as_object()?.clone(), self.1)))
    }

    /// A list.
    pub(crate) fn list(&self, name: &str) -> Result<Option<&Vec<Value>>, ApiError> {
        self.read(name, "a list", Value::as_array)
    }

    /// A number within a range.
    pub(crate) fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let words = match (*range.start(), *range.end()) {
            (f64::MIN, f64::MAX) => "a number".to_owned(),
            (least, f64::MAX) => format!("a number of {least} or more"),
            (least, most) => format!("a number from {least} to {most}"),
        };
        self.read(name, &words, |value| value.as_f64().filter(|number| range.contains(number)))
    }

    /// A whole number within a range.
    pub(crate) fn whole(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let words = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(name, &words, |value| value.as_i64().filter(|number| range.contains(number)))
    }

    /// A whole number from `least` on.
    pub(crate) fn count(&self, name: &str, least: usize) -> Result<Option<usize>, ApiError> {
        let words = format!("a whole number of {least} or more");
        let count = |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|count| *count >= least);
        self.read(name, &words, count)
    }

    /// Token ids.
    pub(crate) fn tokens(&self, name: &str) -> Result<Option<Vec<u32>>, ApiError> {
        self.read(name, "a list of token ids", tokens)
    }

    /// One string or a list of some.
    pub(crate) fn texts(&self, name: &str, most: usize) -> Result<Vec<String>, ApiError> {
        let texts = |value: &Value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) if list.len() <= most => {
                list.iter().map(|text| text.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        };
        Ok(self
            .read(name, &format!("a string or a list of at most {most} strings"), texts)?
            .unwrap_or_default())
    }

    /// Refuses a field that would change the answer in a way that is not there.
    pub(crate) fn refuse(&self, name: &str, harmless: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        match self.value(name) {
            Some(value) if !harmless(value) => Err(ApiError::field(
                name,
                format!("this server cannot do what `{name}` asks for; leave it out"),
            )),
            _ => Ok(()),
        }
    }

    fn read<'a, T>(
        &'a self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => {
                let given = shown(value);
                Err(ApiError::field(name, format!("`{name}` must be {expected}, and is {given}")))
            }
        }
    }
}

/// The most alike of the known names, if any is alike enough to be meant.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distances = known.iter().map(|known| (strsim::damerau_levenshtein(name, known), *known));
    let (distance, nearest) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= nearest.len().max(name.len()) / 3).then_some(nearest)
}

/// A list of token ids.
pub(crate) fn tokens(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// A value in few words: small ones as they are, others by their kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.len() <= 40 => value.to_string(),
        _ => kind(value).to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
