//! Records written anew, as lines of JSON in one of our formats: what a file of any kind says, and no more.
//!
//! A conversation becomes `messages`, whatever it was, with its tools and with the marks of what is not
//! learnt; two texts, a text and token ids stay what they are. What else a record has (`id`, `source` ...) is
//! not taken over. A record that is marked as not to be learnt is left out.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use crate::dataset::FileReport;
use crate::error::named_enum;
use crate::format::{self, Chat, Item, Learnt, Oasst, Opened, Trees};
use crate::source::{files, shown};
use crate::{DataError, Format, IGNORE, Source, SourceSpec, json};

/// What records become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Conversations become messages, others stay what they are.
    Auto,
    /// All become messages; of two texts the first is the user's and the second the assistant's.
    Messages,
}

named_enum!(Target, "target format", Auto = "auto", Messages = "messages");

/// What was converted.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Converted {
    /// Each file with its format, in order.
    pub files: Vec<FileReport>,
    /// Records that were written.
    pub records: usize,
    /// Records that were left out because they are marked as not to be learnt.
    pub left_out: usize,
    /// What else was left out, by the reason.
    pub unfit: BTreeMap<&'static str, usize>,
}

/// Reads the sources record by record and hands each to `write` as a line of JSON without its end.
///
/// # Errors
/// The first thing wrong with a record, or what `write` said.
pub fn convert<E: From<DataError>>(
    sources: &[SourceSpec],
    format: Format,
    oasst: &Oasst,
    to: Target,
    mut write: impl FnMut(&str) -> Result<(), E>,
) -> Result<Converted, E> {
    let (mut converted, trees) = (Converted::default(), Trees::default());
    for source in sources {
        for path in files(&source.path)? {
            let Opened { records, format, found, left_out } =
                format::open(&path, source.format.unwrap_or(format), oasst, &trees)?;
            let mut count = 0;
            for record in records {
                let record = record?;
                count += 1;
                match object(format.item(record.parse()?, &record.at)?, to, &record.at)? {
                    None => converted.left_out += 1,
                    Some(object) => {
                        write(&json::write(&object))?;
                        converted.records += 1;
                    }
                }
            }
            for (why, count) in left_out.lock().expect("nobody panics with it").iter() {
                *converted.unfit.entry(why).or_default() += count;
            }
            converted.files.push(FileReport { path: shown(&path), format, found, records: count });
        }
    }
    Ok(converted)
}

/// The record that says what an item says; none for one that is not learnt.
fn object(item: Item, to: Target, at: &Source) -> Result<Option<Json>, DataError> {
    let no_roles = |what: &str| {
        DataError::record(
            at,
            format!("is {what}, which has no roles; only conversations and completions become messages"),
        )
    };
    Ok(Some(match item {
        Item::Unlearnt => return Ok(None),
        Item::Chat(chat) => conversation(chat.with_inputs_in_content(), to),
        Item::Completion { prompt, completion } => match to {
            Target::Auto => json!({ "prompt": prompt, "completion": completion }),
            Target::Messages => json!({ "messages": [
                { "role": "user", "content": prompt },
                { "role": "assistant", "content": completion },
            ] }),
        },
        Item::Text(_) if to == Target::Messages => return Err(no_roles("a text")),
        Item::Text(text) => json!({ "text": text }),
        Item::Tokenized { .. } if to == Target::Messages => return Err(no_roles("a list of token ids")),
        Item::Tokenized { input_ids, labels } => {
            let all =
                input_ids.iter().zip(&labels).all(|(&id, &label)| label != IGNORE && label == id as i32);
            match all {
                true => json!({ "input_ids": input_ids }),
                false => json!({ "input_ids": input_ids, "labels": labels }),
            }
        }
    }))
}

fn conversation(chat: Chat, to: Target) -> Json {
    let Chat { messages, tools, given, mut marks, .. } = chat;
    let mut messages: Vec<Json> = messages
        .into_iter()
        .enumerate()
        .map(|(i, mut message)| {
            let is_context = i < given && to == Target::Messages;
            let learnt =
                if is_context { Some(Learnt::Nothing) } else { marks.remove(&i).map(|mark| mark.learnt) };
            // A user's turn before what is to be learnt is not learnt anyway.
            if !is_context || message.get("role").is_some_and(|role| role == "assistant") {
                mark(&mut message, learnt);
            }
            Json::Object(message)
        })
        .collect();
    let mut record = Map::new();
    if given > 0 && to == Target::Auto {
        let completion = messages.split_off(given);
        record.insert("prompt".into(), messages.into());
        record.insert("completion".into(), completion.into());
    } else {
        record.insert("messages".into(), messages.into());
    }
    record.extend(tools.map(|tools| ("tools".to_string(), tools)));
    Json::Object(record)
}

/// Writes into a message what of it is learnt.
fn mark(message: &mut Map<String, Json>, learnt: Option<Learnt>) {
    match learnt {
        None => {}
        Some(Learnt::All) => {
            message.insert("train".into(), true.into());
        }
        Some(Learnt::Nothing) => {
            message.insert("weight".into(), 0.into());
        }
        Some(Learnt::AllBut(ranges)) => {
            let content = message.get("content").and_then(Json::as_str).unwrap_or_default().to_string();
            let mut parts = Vec::new();
            let mut end = 0;
            for range in ranges {
                if end < range.start {
                    parts.push(json!({ "type": "text", "text": content[end..range.start] }));
                }
                parts.push(json!({ "type": "text", "text": content[range.clone()], "weight": 0 }));
                end = range.end;
            }
            if end < content.len() {
                parts.push(json!({ "type": "text", "text": content[end..] }));
            }
            message.insert("content".into(), parts.into());
        }
    }
}
