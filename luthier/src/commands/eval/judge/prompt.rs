//! What a judge is shown: its instructions, a question and two answers.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::error::user;
use crate::run_file::Kind;

/// A longer file is none of instructions.
const MAX_BYTES: u64 = 1 << 20;
/// What is replaced, in the order of [`Prompt::messages`]'s arguments.
const PLACES: [&str; 3] = ["{question}", "{answer_1}", "{answer_2}"];

/// Who the judge is, where the instructions are ours.
const SYSTEM: &str = "You compare the answers of two assistants, carefully and without favour.";
/// The form of the prompts of Vicuna and QLoRA (Chiang et al., 2023; Dettmers et al., 2023), whose replies
/// `eval` can read.
const SHOWN: &str = "\
[Question]
{question}

[The Start of Assistant 1's Answer]
{answer_1}

[The End of Assistant 1's Answer]

[The Start of Assistant 2's Answer]
{answer_2}

[The End of Assistant 2's Answer]

[System]
Two assistants answered the user's question above. Consider how helpful, relevant, accurate and detailed \
each answer is. Neither the order in which the answers stand nor their length may count.
";
const SCORES: &str = "\
Give each assistant a score from 1 to 10, a higher one for a better answer. Your first line must hold nothing \
but the two scores, first that of Assistant 1, then that of Assistant 2, with a space between them. Explain \
them from the second line on.
";
const VERDICT: &str = "\
Explain first what speaks for and against each answer. Your last line must hold nothing but a number: 1 if \
the answer of Assistant 1 is better, 2 if that of Assistant 2 is, or 3 if both are equally good.
";

/// A judge's instructions, around the places of what it judges.
#[derive(Debug)]
pub(super) struct Prompt {
    system: Option<&'static str>,
    /// Text and the place behind it, in order.
    parts: Vec<(String, usize)>,
    rest: String,
}

impl Prompt {
    /// Ours, or those of a file.
    ///
    /// # Errors
    /// If the file cannot be read, or has no place for a question or an answer.
    pub(super) fn open(path: Option<&Path>, kind: Kind) -> anyhow::Result<Self> {
        let Some(path) = path else {
            let asked = if kind == Kind::Scores { SCORES } else { VERDICT };
            return Ok(Prompt::new(Some(SYSTEM), &format!("{SHOWN}{asked}")));
        };
        let name = path.display();
        let failed = || format!("cannot read the judge's instructions {name}");
        let file = std::fs::metadata(path).with_context(failed)?;
        if !file.is_file() || file.len() > MAX_BYTES {
            return Err(user(format!(
                "{name} is no file of up to {} MiB; that is no prompt",
                MAX_BYTES >> 20
            )));
        }
        let text = std::fs::read_to_string(path).with_context(failed)?;
        let missing: Vec<&str> = PLACES.into_iter().filter(|place| !text.contains(place)).collect();
        if !missing.is_empty() {
            return Err(user(format!(
                "{name}: the judge would not see all: {} is missing; a prompt has {}",
                missing.join(" and "),
                PLACES.join(", ")
            )));
        }
        Ok(Prompt::new(None, &text))
    }

    /// Splits the text at its places, once: what stands in a question or an answer is never one.
    fn new(system: Option<&'static str>, text: &str) -> Self {
        let (mut parts, mut rest) = (Vec::new(), text);
        let next = |rest: &str| {
            let found = PLACES.iter().enumerate().filter_map(|(place, name)| Some((rest.find(name)?, place)));
            found.min()
        };
        while let Some((at, place)) = next(rest) {
            parts.push((rest[..at].to_owned(), place));
            rest = &rest[at + PLACES[place].len()..];
        }
        Prompt { system, parts, rest: rest.to_owned() }
    }

    /// The messages of a request.
    pub(super) fn messages(&self, question: &str, first: &str, second: &str) -> Value {
        let shown = [question, first, second];
        let mut text: String =
            self.parts.iter().flat_map(|(text, place)| [text.as_str(), shown[*place]]).collect();
        text.push_str(&self.rest);
        let user = json!({"role": "user", "content": text});
        match self.system {
            Some(system) => json!([{"role": "system", "content": system}, user]),
            None => json!([user]),
        }
    }
}
