//! A record as a question: what a model is to answer, and the answer that the record gives.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::oasst::{Conversations, LeftOut, Oasst, Trees, is_of_tree};
use super::{Chat, Fields, Format, INSTRUCTION, Item, OUTPUT, detect};
use crate::source::{RawRecord, Records, records};
use crate::{DataError, Source};

/// What a model is asked, and what the record says to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// What is asked.
    pub asked: Asked,
    /// The answer that the record gives, if it gives one: the words of the assistant's last turn, or of the
    /// completion.
    pub reference: Option<String>,
}

/// What a model is to answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// A conversation that ends with a user's or a tool's message.
    Chat(Chat),
    /// A text to be continued.
    Text(String),
}

/// The records of a file as questions.
#[derive(Debug)]
pub struct Questions {
    /// The questions with their places.
    pub questions: Vec<(Source, Question)>,
    /// What of the file was no question to begin with, by the reason.
    pub left_out: BTreeMap<&'static str, usize>,
}

impl Questions {
    /// Reads a file whose records have the named format; `Auto`: each the one that its keys tell. `oasst`: what
    /// is taken out of trees of messages; of each conversation the last question is asked.
    ///
    /// # Errors
    /// If the file cannot be opened, or a record is no question.
    pub fn read(path: &Path, format: Format, oasst: &Oasst) -> Result<Self, DataError> {
        let mut rest = records(path)?;
        let first = rest.next().transpose()?;
        let is_tree = match &first {
            Some(record) => is_of_tree(&record.parse()?),
            None => false,
        };
        let mut records: Records = Box::new(first.map(Ok).into_iter().chain(rest));
        let left_out = LeftOut::default();
        let mut named = Some(format).filter(|format| *format != Format::Auto);
        if format == Format::Oasst || (is_tree && named.is_none()) {
            records =
                Box::new(Conversations::new(records, oasst.clone(), left_out.clone(), Trees::default()));
            named = Some(Format::Messages);
        }
        let question = |record: Result<RawRecord, DataError>| {
            let record = record?;
            let question = Question::of(record.parse()?, &record.at, named)?;
            Ok((record.at, question))
        };
        let questions = records.map(question).collect::<Result<_, DataError>>()?;
        let left_out = std::mem::take(&mut *left_out.lock().expect("nobody panics with it"));
        Ok(Questions { questions, left_out })
    }
}

impl Question {
    /// Understands a record of the named format, or of any that [`Format::item`] knows, and those that lack the
    /// answer: `prompt` alone (a text, or messages), an instruction alone. A text (`{"text"}`, a document) is one
    /// to be continued.
    ///
    /// # Errors
    /// If the record has none of these forms, or asks nothing.
    fn of(record: Map<String, Json>, at: &Source, named: Option<Format>) -> Result<Self, DataError> {
        let mut fields = Fields { record, at };
        let has =
            |fields: &Fields<'_>, keys: &[&str]| keys.iter().any(|key| fields.record.contains_key(*key));
        let known = ["messages", "conversations", "conversation", "text", "input_ids"];
        // The answer is not asked for: one that is missing is as good as an empty one.
        let mut answered = true;
        if !has(&fields, &known) && !has(&fields, &["completion"]) && !has(&fields, OUTPUT) {
            if has(&fields, &["prompt"]) && named != Some(Format::Alpaca) {
                let is_list = fields.record["prompt"].is_array();
                if is_list {
                    let messages = fields.record.shift_remove("prompt").expect("just seen");
                    fields.record.insert("messages".into(), messages);
                } else {
                    answered = false;
                    fields.record.insert("completion".into(), Json::from(""));
                }
            } else if has(&fields, INSTRUCTION) {
                answered = false;
                fields.record.insert(OUTPUT[0].into(), Json::from(""));
            }
        }
        let format = named.map_or_else(|| detect(&fields.record, at), Ok)?;
        fields.refuse_unheard(format)?;
        // Whether the record is to be learnt does not matter here.
        fields.is_learnt(format)?;
        let item = match format {
            Format::Messages => fields.messages()?,
            Format::Sharegpt => fields.sharegpt()?,
            Format::Alpaca => fields.alpaca()?,
            Format::Completion => fields.completion()?,
            Format::Text => Item::Text(fields.text(&["text"])?),
            _ => {
                let message = format!("records of the format `{format}` ask nothing in words");
                return Err(DataError::record(at, message));
            }
        };
        let (asked, reference) = match item {
            Item::Chat(chat) => {
                let (chat, reference) = asked_of(chat, at)?;
                (Asked::Chat(chat), reference)
            }
            Item::Completion { prompt, completion } => (Asked::Text(prompt), Some(completion)),
            Item::Text(text) => (Asked::Text(text), None),
            Item::Unlearnt | Item::Tokenized { .. } => unreachable!("no item of these formats"),
        };
        Ok(Question { asked, reference: reference.filter(|_| answered) })
    }
}

/// A conversation without the assistant's last turn, if that ends it, and the words of that turn.
fn asked_of(mut chat: Chat, at: &Source) -> Result<(Chat, Option<String>), DataError> {
    let is_answer = |message: &Map<String, Json>| message.get("role").is_some_and(|role| role == "assistant");
    let mut reference = None;
    if chat.messages.last().is_some_and(is_answer) {
        let answer = chat.messages.pop().expect("just seen");
        reference = answer.get("content").and_then(Json::as_str).map(str::to_owned);
    }
    match chat.messages.last() {
        None => Err(DataError::record(
            at,
            "there is nothing to answer: the conversation has no message but the answer",
        )),
        Some(last) if is_answer(last) => Err(DataError::record(
            at,
            "there is nothing to answer: two messages of the assistant end the conversation",
        )),
        Some(_) => Ok((chat, reference)),
    }
}
