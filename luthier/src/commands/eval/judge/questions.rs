//! Questions and the systems' answers to them, in the forms in which people have them.
//!
//! | | a question | an answer |
//! |---|---|---|
//! | plain | `{id, question}` | `{id, answer}` |
//! | Vicuna | `{question_id, text}` | `{question_id, text}` |
//! | MT-Bench | `{question_id, turns: [...]}` | `{question_id, choices: [{turns: [...]}]}` |
//! | AlpacaEval | `{instruction}` | `{instruction, output}` |
//! | Arena-Hard | `{uid, prompt}` | `{uid, messages: [..., {role: assistant, content: {answer}}]}` |
//! | `generate --data` | `{prompt}`, `{instruction}` or `{messages}` | `{text, ...}`, in order |

use std::collections::BTreeMap;
use std::path::Path;

use data::Source;
use data::source;
use serde_json::{Map, Value};

use crate::error::user;
use crate::terminal::one_line;

/// The most questions, and so the most records of a file.
const MOST: usize = 100_000;
/// The longest id, in bytes.
const LONGEST_ID: usize = 256;
/// Ids that are shown of those that are missing.
const SHOWN: usize = 5;
/// Keys of a question's id.
const IDS: [&str; 3] = ["id", "question_id", "uid"];
/// Keys that hold a text alone.
const QUESTIONS: [&str; 4] = ["question", "text", "prompt", "instruction"];
const ANSWERS: [&str; 3] = ["answer", "output", "text"];

/// What all systems were asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// Its id, or its number from 1.
    pub(super) id: String,
    pub(super) text: String,
}

/// The questions of a file, in order.
///
/// # Errors
/// If a record is no question, two have one id, or there are fewer than two: no interval can be told of one.
pub(super) fn read_questions(path: &Path) -> anyhow::Result<Vec<Question>> {
    let mut questions: Vec<Question> = Vec::new();
    let mut places: BTreeMap<String, Source> = BTreeMap::new();
    let (mut with_id, mut later_turns) = (0, 0);
    for record in records(path)? {
        let (at, record) = record?;
        let id = id(&record, &at)?;
        with_id += usize::from(id.is_some());
        let id = id.unwrap_or_else(|| (questions.len() + 1).to_string());
        let (text, turns) = question(&record).ok_or_else(|| {
            user(format!(
                "{at}: the record has no question; it needs `question` (or `text`, `instruction`, `turns`)"
            ))
        })?;
        later_turns += usize::from(turns > 1);
        if let Some(before) = places.insert(id.clone(), at.clone()) {
            return Err(user(format!(
                "{at}: a second question has the id {id}; the first stands in {before}"
            )));
        }
        questions.push(Question { id, text });
        if with_id != 0 && with_id != questions.len() {
            return Err(user(format!("{at}: some questions have an id and others have none")));
        }
    }
    if later_turns > 0 {
        eprintln!("note: of {later_turns} questions with several turns the first is judged");
    }
    match questions.len() {
        0 | 1 => Err(user(format!("{}: two questions or more are needed", path.display()))),
        _ => Ok(questions),
    }
}

/// A system's answers, one to each question, in the questions' order. They are found by their ids; where they
/// have none, by the question that they repeat (AlpacaEval's `instruction`); else they stand in order.
///
/// # Errors
/// If a record is no answer, or a question has none, or two.
pub(super) fn read_answers(path: &Path, questions: &[Question]) -> anyhow::Result<Vec<String>> {
    let mut found: Vec<Found> = Vec::new();
    for record in records(path)? {
        let (at, record) = record?;
        let text = answer(&record).ok_or_else(|| {
            user(format!(
                "{at}: the record has no answer; it needs `answer` (or `text`, `output`, `choices`)"
            ))
        })?;
        let question = record.get("instruction").and_then(Value::as_str).map(str::to_owned);
        found.push(Found { id: id(&record, &at)?, question, text, at });
    }
    let by = match found.iter().filter(|of| of.id.is_some()).count() {
        0 if found.iter().all(|of| of.question.is_some()) => By::Question,
        0 => By::Order,
        with_id if with_id == found.len() => By::Id,
        _ => return Err(user(format!("{}: some answers have an id and others have none", path.display()))),
    };
    by.sort(path, found, questions)
}

/// An answer and what it may be found by.
struct Found {
    id: Option<String>,
    question: Option<String>,
    text: String,
    at: Source,
}

/// What an answer's question is found by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Id,
    Question,
    Order,
}

impl By {
    /// One answer to each question, in the questions' order.
    fn sort(self, path: &Path, found: Vec<Found>, questions: &[Question]) -> anyhow::Result<Vec<String>> {
        if self == By::Order {
            let (path, answers, asked) = (path.display(), found.len(), questions.len());
            if answers != asked {
                return Err(user(format!(
                    "{path}: {answers} answers without ids do not belong to {asked} questions; give both an id"
                )));
            }
            return Ok(found.into_iter().map(|of| of.text).collect());
        }
        let mut answers: BTreeMap<String, Found> = BTreeMap::new();
        for of in found {
            let key = if self == By::Id { of.id.clone() } else { of.question.clone() };
            let key = key.expect("all have one");
            if let Some(before) = answers.get(&key) {
                let (key, before) = (one_line(&key), &before.at);
                return Err(user(format!(
                    "{}: a second answer to the question {key}; the first stands in {before}",
                    of.at
                )));
            }
            answers.insert(key, of);
        }
        let mut sorted = Vec::with_capacity(questions.len());
        let mut missing = Vec::new();
        for question in questions {
            // Two questions may have one text, and then one answer.
            match answers.get(if self == By::Id { &question.id } else { &question.text }) {
                Some(of) => sorted.push(of.text.clone()),
                None => missing.push(one_line(&question.id)),
            }
        }
        if !missing.is_empty() {
            let all = missing.len();
            let more = if all > SHOWN { ", ..." } else { "" };
            missing.truncate(SHOWN);
            return Err(user(format!(
                "{}: {all} of {} questions have no answer: {}{more}",
                path.display(),
                questions.len(),
                missing.join(", ")
            )));
        }
        let more = answers.len().saturating_sub(questions.len());
        if more > 0 {
            eprintln!("note: {}: {more} answers to other questions are passed over", path.display());
        }
        Ok(sorted)
    }
}

type Record = (Source, Map<String, Value>);

/// The records of a file, with an end to them.
fn records(path: &Path) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Record>>> {
    let path = path.to_owned();
    let records = source::records(&path)?;
    Ok(records.enumerate().map(move |(number, record)| {
        if number == MOST {
            return Err(user(format!("{}: more than {MOST} records", path.display())));
        }
        let record = record?;
        Ok((record.at.clone(), record.parse()?))
    }))
}

fn id(record: &Map<String, Value>, at: &Source) -> anyhow::Result<Option<String>> {
    let Some((key, value)) = IDS.iter().find_map(|key| Some((key, record.get(*key)?))) else {
        return Ok(None);
    };
    match value {
        Value::Null => Ok(None),
        Value::String(id) if (1..=LONGEST_ID).contains(&id.len()) => Ok(Some(id.clone())),
        Value::Number(id) => Ok(Some(id.to_string())),
        _ => Err(user(format!("{at}: `{key}` must be a number or a text of 1 to {LONGEST_ID} bytes"))),
    }
}

/// The question's text, and how many turns it has.
fn question(record: &Map<String, Value>) -> Option<(String, usize)> {
    if let Some(text) = text_at(record, &QUESTIONS) {
        // Alpaca's form has what an instruction is about beside it.
        let input = record.get("input").and_then(Value::as_str).filter(|input| !input.is_empty());
        let text = input.map_or(text.clone(), |input| format!("{text}\n\n{input}"));
        return Some((text, 1));
    }
    if let Some(turns) = record.get("turns").and_then(Value::as_array) {
        return Some((text_of(turns.first()?)?, turns.len()));
    }
    last_of(record, "user").map(|text| (text, 1))
}

fn answer(record: &Map<String, Value>) -> Option<String> {
    if let Some(text) = text_at(record, &ANSWERS) {
        return Some(text);
    }
    match record.get("choices") {
        Some(choices) => text_of(choices.get(0)?.get("turns")?.get(0)?),
        None => last_of(record, "assistant"),
    }
}

/// The text of the first of these keys that there is.
fn text_at(record: &Map<String, Value>, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|key| record.get(*key)?.as_str().map(str::to_owned))
}

/// A turn's text: itself, or what stands in its `content` or `answer`.
fn text_of(turn: &Value) -> Option<String> {
    let text =
        turn.as_str().or_else(|| turn.get("content")?.as_str()).or_else(|| turn.get("answer")?.as_str());
    text.map(str::to_owned)
}

/// What somebody last said in a conversation.
fn last_of(record: &Map<String, Value>, role: &str) -> Option<String> {
    let messages = record.get("messages")?.as_array()?;
    let last = messages.iter().rfind(|message| message.get("role").and_then(Value::as_str) == Some(role))?;
    text_of(last.get("content")?)
}
