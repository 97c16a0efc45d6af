//! Records that want an answer, as prompts.

use std::path::{Path, PathBuf};

use anyhow::Context;
use data::{Asked, ChatTemplate, Question, Questions, Tokenizer};
use serde_json::{Map, Value};

use crate::error::user;
use crate::hub;
use crate::run_file::DataSection;
use crate::setup::{self, Base};

/// A record, ready to be answered.
pub(crate) struct Record {
    /// File and line.
    pub(crate) source: String,
    /// What of it goes into the output: `messages` and `tools`, or `prompt`.
    pub(crate) asked: Map<String, Value>,
    pub(crate) reference: Option<String>,
    pub(crate) prompt: Vec<u32>,
    pub(crate) is_chat: bool,
}

/// The records of some files.
pub(crate) struct Records {
    pub(crate) records: Vec<Record>,
    /// How conversations are written, if there are any.
    pub(crate) template: Option<ChatTemplate>,
}

impl Records {
    /// Reads all records as the `data` section says. `named`: the template for conversations, if not the model's
    /// own.
    ///
    /// # Errors
    /// If a record asks for no answer, or is a conversation and there is no template.
    pub(crate) fn read(
        files: &[PathBuf],
        section: &DataSection,
        named: Option<&str>,
        base: &Base,
        tokenizer: &Tokenizer,
    ) -> anyhow::Result<Self> {
        let questions = questions(files, section)?;
        let template = template(base, tokenizer, named, &questions)?;
        let prepared = questions
            .into_iter()
            .map(|(source, question)| prepare(tokenizer, template.as_ref(), source, question));
        let records = prepared.collect::<anyhow::Result<_>>()?;
        Ok(Records { records, template })
    }
}

/// The files that hold the records.
pub(crate) fn files(data: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in hub::resolve_data(data)? {
        files.extend(data::source::files(&path)?);
    }
    Ok(files)
}

/// The questions of the files, with their places, read as a run's settings say.
pub(crate) fn questions(files: &[PathBuf], section: &DataSection) -> anyhow::Result<Vec<(String, Question)>> {
    let (format, oasst) = (setup::format(section.format), setup::oasst(section));
    let mut questions = Vec::new();
    for file in files {
        let Questions { questions: read, left_out } = Questions::read(file, format, &oasst)?;
        for (what, count) in left_out {
            eprintln!("note: {}: left out, {what}: {count}", file.display());
        }
        questions.extend(read.into_iter().map(|(at, question)| (at.to_string(), question)));
    }
    Ok(questions)
}

/// The template for the conversations, if there are any. Instructions have Alpaca's where the model has none,
/// as in training.
fn template(
    base: &Base,
    tokenizer: &Tokenizer,
    named: Option<&str>,
    questions: &[(String, Question)],
) -> anyhow::Result<Option<ChatTemplate>> {
    let chats = questions.iter().filter_map(|(_, question)| match &question.asked {
        Asked::Chat(chat) => Some(chat.instruction),
        Asked::Text(_) => None,
    });
    let chats: Vec<bool> = chats.collect();
    if chats.is_empty() {
        return Ok(None);
    }
    if chats.iter().all(|instruction| *instruction) && ChatTemplate::resolve(named, tokenizer)?.is_none() {
        let alpaca = ChatTemplate::builtin("alpaca").expect("it is built in");
        return Ok(Some(alpaca.with_special_tokens(tokenizer)));
    }
    super::template(base, tokenizer, named).map(Some)
}

fn prepare(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    source: String,
    question: Question,
) -> anyhow::Result<Record> {
    let mut asked = Map::new();
    let is_chat = matches!(question.asked, Asked::Chat(_));
    let prompt = match question.asked {
        Asked::Chat(chat) => {
            let template = template.expect("there is one where there are conversations");
            let text = template.question(&chat).with_context(|| source.clone())?;
            let chat = chat.with_inputs_in_content();
            let messages: Vec<Value> = chat.messages.into_iter().map(Value::Object).collect();
            asked.insert("messages".into(), messages.into());
            asked.extend(chat.tools.map(|tools| ("tools".to_owned(), tools)));
            tokenizer.encode(&text, false)?.ids
        }
        Asked::Text(text) => {
            let ids = tokenizer.encode(&text, true)?.ids;
            asked.insert("prompt".into(), text.into());
            ids
        }
    };
    match prompt.is_empty() {
        true => Err(user(format!("{source}: the prompt has no tokens: give some text"))),
        false => Ok(Record { source, asked, reference: question.reference, prompt, is_chat }),
    }
}
