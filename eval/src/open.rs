//! Open questions, whose answers are generated: what a model is asked, and what its answer is compared with.
//!
//! Rows of the files that people have become [`OpenQuestion`]s ([`OpenForm`] says which files). Texts and
//! stops are those of lm-evaluation-harness 0.4.13, to the byte: of its task `gsm8k`.

use std::str::FromStr;

use serde_json::{Map, Value};

use crate::choice::{BETWEEN, Example};

/// A question with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenQuestion {
    /// What is asked.
    pub prompt: String,
    /// The right answer as it follows the prompt in a worked example, with the space between both.
    pub continuation: String,
    /// What a generated answer is compared with.
    pub reference: String,
}

impl OpenQuestion {
    /// What a model is asked: worked examples with their answers, and the question.
    pub fn prompt(&self, shots: &[&OpenQuestion]) -> String {
        let shot = |shot: &&OpenQuestion| [&shot.prompt, &shot.continuation, BETWEEN].concat();
        shots.iter().map(shot).collect::<String>() + &self.prompt
    }
}

impl Example for OpenQuestion {
    fn group(&self) -> Option<&str> {
        None
    }
}

/// How rows say what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenForm {
    /// GSM8K (Cobbe et al., 2021): `{"question", "answer"}`, the answer a solution that ends with `#### 18`
    /// (`lm_eval/tasks/gsm8k/gsm8k.yaml`).
    Gsm8k,
}

impl OpenForm {
    /// All of them.
    pub const ALL: &'static [OpenForm] = &[OpenForm::Gsm8k];

    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            OpenForm::Gsm8k => "gsm8k",
        }
    }

    /// The texts that end an answer.
    pub fn stops(self) -> &'static [&'static str] {
        match self {
            OpenForm::Gsm8k => &["Question:", "</s>", "<|im_end|>"],
        }
    }

    /// The question of a row.
    ///
    /// # Errors
    /// If a field is missing, or no text.
    pub fn question(self, row: &Map<String, Value>) -> Result<OpenQuestion, OpenError> {
        match self {
            OpenForm::Gsm8k => {
                let (question, answer) = (text(self, row, "question")?, text(self, row, "answer")?);
                Ok(OpenQuestion {
                    prompt: format!("Question: {question}\nAnswer:"),
                    continuation: format!(" {answer}"),
                    reference: answer.to_owned(),
                })
            }
        }
    }
}

impl FromStr for OpenForm {
    type Err = OpenError;

    fn from_str(given: &str) -> Result<Self, OpenError> {
        let form = OpenForm::ALL.iter().copied().find(|form| form.name() == given);
        form.ok_or_else(|| OpenError::UnknownForm { given: given.into() })
    }
}

fn text<'r>(form: OpenForm, row: &'r Map<String, Value>, field: &'static str) -> Result<&'r str, OpenError> {
    let found = match row.get(field) {
        Some(Value::String(text)) => return Ok(text),
        Some(other) => format!("must be a text, but is {other:.40}"),
        None => {
            let known: Vec<&str> = row.keys().map(String::as_str).take(12).collect();
            format!("is missing; the row has [{}]", known.join(", "))
        }
    };
    Err(OpenError::Field { form: form.name(), field, found })
}

/// Why a row is no open question.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A name that no form has.
    #[error("no form of open questions is called {given:?}; known is {}", OpenForm::Gsm8k.name())]
    UnknownForm {
        /// As it was given.
        given: String,
    },
    /// A row that does not fit its form.
    #[error("a row of the form {form}: {field:?} {found}")]
    Field {
        /// The form's name.
        form: &'static str,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        found: String,
    },
}
