//! Marks of what is not to be learnt, as people's records carry them: on a record, a message or a part of
//! one.
//!
//! `weight` is OpenAI's and Mistral's, `train` and `training` are Axolotl's, `loss` is LLaMA-Factory's;
//! `train_detail` or `training_detail` marks parts of a message's content, as Axolotl has it. A mark is no
//! part of what a template renders.

use std::ops::Range;

use serde_json::{Map, Value as Json};

use crate::source::kind;

/// Keys that say whether something is learnt.
const KEYS: [&str; 5] = ["weight", "train", "training", "loss", "loss_mask"];

/// Keys that say which characters of a message are learnt.
const DETAILS: [&str; 2] = ["train_detail", "training_detail"];

/// Takes an object's marks as they stand, for another object that is made of it.
pub(super) fn carry(object: &mut Map<String, Json>) -> Map<String, Json> {
    let taken = KEYS.iter().chain(&DETAILS).filter_map(|key| object.shift_remove_entry(*key));
    taken.collect()
}

/// What a message's marks say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The message and the key, such as `messages[2].weight`.
    pub place: String,
    /// What is learnt.
    pub learnt: Learnt,
}

/// What of a marked message is learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// All of it, whoever says it.
    All,
    /// Nothing.
    Nothing,
    /// Not these bytes of its content, ascending.
    AllBut(Vec<Range<usize>>),
}

/// Takes an object's marks: the key of one that is set, and whether it says that the object is learnt.
pub(super) fn take(
    object: &mut Map<String, Json>,
    place: &str,
) -> Result<Option<(&'static str, bool)>, String> {
    let mut found: Option<(&str, bool)> = None;
    for key in KEYS {
        // An empty text is a cell of a table without a value.
        let says = |value: &Json| !value.is_null() && value.as_str() != Some("");
        let Some(value) = object.shift_remove(key).filter(says) else { continue };
        let learnt = is_learnt(&value).ok_or_else(|| {
            let shown =
                if value.is_object() || value.is_array() { kind(&value).into() } else { value.to_string() };
            format!(
                "{place}{key} is {shown}; it is learnt (1 or true) or not (0 or false), and nothing between"
            )
        })?;
        match found {
            Some((other, earlier)) if earlier != learnt => {
                let (yes, no) = if learnt { (key, other) } else { (other, key) };
                return Err(format!("{place}{yes} says that it is learnt, {place}{no} that it is not"));
            }
            _ => found = found.or(Some((key, learnt))),
        }
    }
    Ok(found)
}

fn is_learnt(value: &Json) -> Option<bool> {
    match value {
        Json::Bool(learnt) => Some(*learnt),
        Json::Number(number) if number.as_f64() == Some(0.0) => Some(false),
        Json::Number(number) if number.as_f64() == Some(1.0) => Some(true),
        Json::String(text) => match text.trim().to_lowercase().as_str() {
            "true" | "1" | "1.0" => Some(true),
            "false" | "0" | "0.0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Takes a message's marks, given the bytes of its content whose parts are marked as not learnt.
pub(super) fn of_message(
    message: &mut Map<String, Json>,
    place: &str,
    mut not_learnt: Vec<Range<usize>>,
) -> Result<Option<Mark>, String> {
    let whole = take(message, &format!("{place}."))?;
    let mut key = "content";
    for detail in DETAILS {
        let Some(list) = message.shift_remove(detail).filter(|value| !value.is_null()) else { continue };
        if !not_learnt.is_empty() {
            return Err(format!("{place}.{detail}: parts of the content are marked in another way already"));
        }
        not_learnt = outside(&list, content(message)).map_err(|error| format!("{place}.{detail}{error}"))?;
        key = detail;
    }
    let learnt = match whole {
        Some((_, false)) => Learnt::Nothing,
        _ if !not_learnt.is_empty() => match not_learnt[..] {
            [Range { start: 0, end }] if end == content(message).len() => Learnt::Nothing,
            _ => Learnt::AllBut(not_learnt),
        },
        // A weight of 1 is what every message has anyway.
        Some((key, true)) if key != "weight" => Learnt::All,
        _ => return Ok(None),
    };
    let key = whole.filter(|_| !matches!(learnt, Learnt::AllBut(_))).map_or(key, |(key, _)| key);
    Ok(Some(Mark { place: format!("{place}.{key}"), learnt }))
}

fn content(message: &Map<String, Json>) -> &str {
    message.get("content").and_then(Json::as_str).unwrap_or_default()
}

/// The bytes of the content that no entry of the list marks as learnt. An entry has `begin_offset` and
/// `end_offset`, its first and last character, and `train`.
fn outside(list: &Json, content: &str) -> Result<Vec<Range<usize>>, String> {
    const SHAPE: &str = "must be a list of {\"begin_offset\", \"end_offset\", \"train\"}";
    let list = list.as_array().ok_or_else(|| format!(" {SHAPE}"))?;
    let bytes: Vec<usize> = content.char_indices().map(|(at, _)| at).chain([content.len()]).collect();
    let characters = bytes.len() - 1;
    let mut learnt: Vec<Option<bool>> = vec![None; characters];
    for (i, entry) in list.iter().enumerate() {
        let offset = |key: &str| entry.get(key).and_then(Json::as_u64).map(|at| at as usize);
        let train = entry.get("train").and_then(is_learnt);
        let (Some(begin), Some(end), Some(train)) = (offset("begin_offset"), offset("end_offset"), train)
        else {
            return Err(format!("[{i}] {SHAPE}"));
        };
        if begin > end || end >= characters {
            return Err(format!(
                "[{i}] goes from character {begin} to {end}; the content has {characters}, counted from 0, and the end is \
                 the last character that belongs to the part"
            ));
        }
        let part = &mut learnt[begin..=end];
        if part.iter().any(|earlier| earlier.is_some_and(|earlier| earlier != train)) {
            return Err(format!(
                "[{i}] contradicts an entry before it; end_offset is the last character that belongs to a part"
            ));
        }
        part.fill(Some(train));
    }
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (i, _) in learnt.iter().enumerate().filter(|(_, learnt)| **learnt != Some(true)) {
        match ranges.last_mut() {
            Some(last) if last.end == bytes[i] => last.end = bytes[i + 1],
            _ => ranges.push(bytes[i]..bytes[i + 1]),
        }
    }
    Ok(ranges)
}
