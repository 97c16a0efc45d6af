//! What `eval generate` asks: records as they are, rows as a benchmark asks them, worked examples before
//! either.

use std::path::Path;

use anyhow::Context;
use data::{Asked, Tokenizer, source};
use eval::choice::Shots;
use eval::open::{OpenForm, OpenQuestion};
use serde_json::Map;

use crate::cli;
use crate::commands::generate::records::{self, Record, Records, files};
use crate::error::user;
use crate::run_file::DataSection;
use crate::setup::Base;

/// The records of `--data`.
///
/// # Errors
/// If a record is none, or there are too few for worked examples.
pub(super) fn read(
    args: &cli::Answers,
    form: Option<OpenForm>,
    reading: &DataSection,
    base: &Base,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Records> {
    if form.is_none() && args.shots.count == 0 {
        return Records::read(&files(&args.data)?, reading, args.chat_template.as_deref(), base, tokenizer);
    }
    let questions = questions(&args.data, form, reading)?;
    let pool = args.shots.from.as_ref().map(|path| self::questions(path, form, reading)).transpose()?;
    let pool: Vec<OpenQuestion> =
        pool.as_ref().unwrap_or(&questions).iter().map(|(_, question)| question.clone()).collect();
    let shots = Shots::new(&pool, args.shots.count, args.shots.order(args.seed));
    let record = |(number, (source, question)): (usize, (String, OpenQuestion))| {
        let shots = shots.of(&question, number as u64).with_context(|| source.clone())?;
        let text = question.prompt(&shots);
        let prompt = tokenizer.encode(&text, true)?.ids;
        let asked = Map::from_iter([("prompt".to_owned(), text.into())]);
        match prompt.is_empty() {
            true => Err(user(format!("{source}: the prompt has no tokens: give some text"))),
            false => {
                Ok(Record { source, asked, reference: Some(question.reference), prompt, is_chat: false })
            }
        }
    };
    let records = questions.into_iter().enumerate().map(record).collect::<anyhow::Result<_>>()?;
    Ok(Records { records, template: None })
}

/// The questions of a file, a folder or a pattern, with their places.
fn questions(
    path: &Path,
    form: Option<OpenForm>,
    reading: &DataSection,
) -> anyhow::Result<Vec<(String, OpenQuestion)>> {
    let files = files(path)?;
    let Some(form) = form else {
        let read = records::questions(&files, reading)?;
        return read.into_iter().map(|(at, question)| Ok((at.clone(), plain(&at, question)?))).collect();
    };
    let mut all = Vec::new();
    for file in files {
        for record in source::records(&file)? {
            let record = record?;
            let at = record.at.to_string();
            let question = form.question(&record.parse()?).with_context(|| at.clone())?;
            all.push((at, question));
        }
    }
    Ok(all)
}

/// A record as one that may be a worked example.
fn plain(at: &str, question: data::Question) -> anyhow::Result<OpenQuestion> {
    match (question.asked, question.reference) {
        (Asked::Text(prompt), Some(answer)) => {
            Ok(OpenQuestion { prompt, continuation: answer.clone(), reference: answer })
        }
        _ => Err(user(format!(
            "{at}: --shots puts worked examples before texts, records of `prompt` and `completion` (or --form); of \
             conversations write the examples into the messages"
        ))),
    }
}

/// Cuts the beginnings of prompts that leave no room for so many new tokens within the context: what
/// lm-evaluation-harness' `hf` does (`left_truncate_len`), with a warning.
///
/// # Errors
/// If the new tokens alone fill the context.
pub(super) fn cut(records: &mut [Record], max_tokens: usize, context: usize) -> anyhow::Result<()> {
    let room = context.saturating_sub(max_tokens);
    if room == 0 {
        return Err(user(format!(
            "--max-tokens {max_tokens} leaves no room for a prompt in the {context} tokens that the model was made \
             for; ask for fewer"
        )));
    }
    let mut count = 0;
    for record in records {
        let over = record.prompt.len().saturating_sub(room);
        record.prompt.drain(..over);
        count += usize::from(over > 0);
    }
    if count > 0 {
        eprintln!(
            "warning: {count} prompts leave less than --max-tokens {max_tokens} of the {context} tokens that \
             the model was made for; their beginnings were cut"
        );
    }
    Ok(())
}
