//! JSON in answers.

use serde_json::{Number, Value};

use super::{TextError, best, python};

/// Whether the JSON in an answer is that of the reference.
#[derive(Clone, Debug, Default)]
pub struct JsonMatch {
    /// The fields that are compared: keys of the outermost object, or JSON pointers (RFC 6901, `/user/name`)
    /// if they begin with a slash. If empty, the whole value is.
    pub fields: Vec<String>,
}

/// How an answer's JSON compares with a reference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct JsonScore {
    /// 1 if everything that is compared is equal, else 0.
    pub equal: f64,
    /// The share of the fields that are equal, from 0 to 1; if no fields are chosen, the same as `equal`.
    pub fields: f64,
}

impl JsonMatch {
    /// The score of the answer's first JSON value ([`first_value`]) against the reference that has most in
    /// common with it. An answer without JSON scores 0. A field is right if reference and answer have equal
    /// values there, or neither has any.
    pub fn score(&self, answer: &str, references: &[impl AsRef<str>]) -> Result<JsonScore, TextError> {
        if let Some(field) = self.fields.iter().find(|field| field.starts_with('/') && !is_pointer(field)) {
            return Err(TextError::Field { field: field.clone() });
        }
        let answer = first_value(answer);
        let fields = best(references, |index, reference| {
            let reference: Value = serde_json::from_str(reference)
                .map_err(|error| TextError::NotJson { index, reason: error.to_string() })?;
            Ok(answer.as_ref().map_or(0.0, |answer| self.share(answer, &reference)))
        })?;
        Ok(JsonScore { equal: f64::from(fields == 1.0), fields })
    }

    fn share(&self, answer: &Value, reference: &Value) -> f64 {
        if self.fields.is_empty() {
            return f64::from(equal(answer, reference));
        }
        let is_right = |field: &&String| match (field_of(answer, field), field_of(reference, field)) {
            (Some(a), Some(b)) => equal(a, b),
            // Something that is no object has no fields, and is not right by lacking them.
            (None, None) => answer.is_object() || field.starts_with('/') && answer.is_array(),
            _ => false,
        };
        self.fields.iter().filter(is_right).count() as f64 / self.fields.len() as f64
    }
}

fn field_of<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    if field.starts_with('/') { value.pointer(field) } else { value.get(field) }
}

fn is_pointer(field: &str) -> bool {
    field.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']))
}

/// Whether two values are equal: objects in any order of keys, numbers by value (`1`, `1.0` and `1e0` are
/// equal).
pub fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => equal_numbers(a, b),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            let has_equal = |(key, a): (&String, &Value)| b.get(key).is_some_and(|b| equal(a, b));
            a.len() == b.len() && a.iter().all(has_equal)
        }
        _ => a == b,
    }
}

fn equal_numbers(a: &Number, b: &Number) -> bool {
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a == b,
        (None, None) => a.as_f64() == b.as_f64(),
        _ => false,
    }
}

/// A whole number exactly, even one that is written with a point: beyond 2^53 two of them may be the same
/// `f64`.
fn whole(number: &Number) -> Option<i128> {
    if let Some(whole) = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from)) {
        return Some(whole);
    }
    let float = number.as_f64()?;
    (float.fract() == 0.0 && float.abs() < 1e38).then_some(float as i128)
}

/// The first JSON value of an answer: all of it, if it is one (whitespace aside); else the first block
/// between fences (``` or ~~~) that is one; else the first object or list that stands anywhere. In running
/// text a number or a word is not taken for JSON. Of a key that stands twice in an object the last one holds;
/// values nested deeper than 128 are none.
pub fn first_value(answer: &str) -> Option<Value> {
    let whole = |text: &str| serde_json::from_str(python::strip(text)).ok();
    whole(answer).or_else(|| blocks(answer).find_map(whole)).or_else(|| embedded(answer))
}

/// The contents of fenced blocks; the last one may be open at its end.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let (at, fence) =
                ["```", "~~~"].into_iter().filter_map(|fence| Some((rest.find(fence)?, fence))).min()?;
            let after = &rest[at + fence.len()..];
            let Some((info, body)) = after.split_once('\n') else {
                rest = "";
                continue;
            };
            // A block on a single line has no name of a language, but all of its content there.
            let body = if info.contains(fence) { after } else { body };
            let (block, after) = body.split_once(fence).unwrap_or((body, ""));
            rest = after;
            return Some(block);
        }
    })
}

/// The first object or list in a text. Each begins a parse of its own, but a place is parsed 256 times at
/// most, since a parse ends at a depth of 128: within so many lists and objects, and once more if it is taken
/// for a string.
fn embedded(text: &str) -> Option<Value> {
    let starts = text.bytes().enumerate().filter(|(_, byte)| matches!(byte, b'{' | b'[')).map(|(at, _)| at);
    starts.into_iter().find_map(|at| serde_json::Deserializer::from_str(&text[at..]).into_iter().next()?.ok())
}
