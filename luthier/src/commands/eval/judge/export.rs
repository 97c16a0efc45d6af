//! The systems' answers in the files of other judges' programs.
//!
//! - `mt-bench`: `NAME.jsonl` of `{question_id, answer_id, model_id, choices: [{index, turns}], tstamp}`, which
//!   FastChat's `llm_judge` reads in `data/BENCH/model_answer`.
//! - `alpaca-eval`: `NAME.json`, a list of `{instruction, output, generator}`, for `--model_outputs`.
//! - `arena-hard`: `NAME.jsonl` of `{uid, ans_id, model, messages, tstamp, metadata}`, which Arena-Hard-Auto 2
//!   reads in `data/BENCH/model_answer`.

use std::path::Path;
use std::str::FromStr;

use anyhow::Context;
use model::checkpoint::{Staging, write_whole};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::questions::Question;
use crate::error::user;

/// Another program's form of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    MtBench,
    AlpacaEval,
    ArenaHard,
}

impl FromStr for Form {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        match name {
            "mt-bench" => Ok(Form::MtBench),
            "alpaca-eval" => Ok(Form::AlpacaEval),
            "arena-hard" => Ok(Form::ArenaHard),
            _ => Err(user(format!("--export {name}: expected mt-bench, alpaca-eval or arena-hard"))),
        }
    }
}

/// Writes a file for each system into a new folder.
///
/// # Errors
/// If the folder is taken, or cannot be written.
pub(super) fn export<'a>(
    form: Form,
    folder: &Path,
    questions: &[Question],
    systems: impl Iterator<Item = (&'a str, &'a [String])>,
) -> anyhow::Result<()> {
    let staging = Staging::folder(folder)?;
    for (system, answers) in systems {
        let records: Vec<Value> = questions
            .iter()
            .zip(answers)
            .map(|(question, answer)| form.record(system, question, answer))
            .collect();
        let (kind, text) = match form {
            Form::AlpacaEval => ("json", serde_json::to_string_pretty(&records)? + "\n"),
            _ => ("jsonl", records.iter().map(|record| format!("{record}\n")).collect()),
        };
        write_whole(&staging.path().join(format!("{system}.{kind}")), text.as_bytes())?;
    }
    staging.publish().with_context(|| format!("--export {}", folder.display()))
}

impl Form {
    fn record(self, system: &str, question: &Question, answer: &str) -> Value {
        // No clock and no chance: the same answers are the same bytes. Nobody reads the time.
        let id: String = Sha256::digest(json!([system, question.id, answer]).to_string())
            .iter()
            .take(11)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        match self {
            Form::MtBench => json!({
                "question_id": number_or_text(&question.id), "answer_id": id, "model_id": system,
                "choices": [{"index": 0, "turns": [answer]}], "tstamp": 0.0,
            }),
            Form::AlpacaEval => {
                json!({"instruction": question.text, "output": answer, "generator": system})
            }
            Form::ArenaHard => json!({
                "uid": question.id, "ans_id": id, "model": system,
                "messages": [
                    {"role": "user", "content": question.text},
                    {"role": "assistant", "content": {"answer": answer}},
                ],
                "tstamp": 0.0, "metadata": {},
            }),
        }
    }
}

/// FastChat sorts answers by whole numbers.
fn number_or_text(id: &str) -> Value {
    match id.parse::<i64>() {
        Ok(number) if number.to_string() == id => json!(number),
        _ => json!(id),
    }
}
