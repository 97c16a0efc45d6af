//! A run's examples, made again from its folder's settings and the data that they name.

use anyhow::bail;
use data::{Dataset, Example, IGNORE, Tokenizer, preview};
use serde::Serialize;

use crate::hub;
use crate::run_folder::{self, Account};
use crate::setup;
use crate::terminal::{cut_segments, printable};

/// Characters of an example that are shown.
const SHOWN: usize = 2000;
/// Tokens of a plain text that are its prompt.
const BEGINNING: usize = 48;

/// Examples of a run, and the tokenizer that made them.
pub(super) struct Material {
    pub(super) tokenizer: Tokenizer,
    train: Dataset,
    eval: Option<Dataset>,
}

/// An example on the page.
#[derive(Serialize)]
pub(super) struct Shown {
    source: String,
    tokens: usize,
    trained: usize,
    /// Text, and whether it carries loss.
    parts: Vec<(String, bool)>,
    /// Whether there is more of it.
    cut: bool,
}

/// A prompt of an example, and what the example goes on with.
pub(super) struct Question {
    pub(super) source: String,
    pub(super) prompt: Vec<u32>,
    pub(super) expected: Vec<u32>,
}

impl Material {
    /// Reads the examples of a run again.
    ///
    /// # Errors
    /// If model or data are no longer there, or no longer what they were.
    pub(super) fn of(run: &Account) -> anyhow::Result<Self> {
        let mut settings = run.settings.clone();
        run_folder::find_template(&run.folder, &mut settings);
        let model = settings.model.as_deref().unwrap_or_default();
        if !hub::is_here(model) {
            bail!("the model {model} is no longer there");
        }
        if settings.data.sources().iter().any(|source| source.path.as_os_str() == "-") {
            bail!("they were read from stdin");
        }
        let (tokenizer, config) = setup::tokenizer_of(model)?;
        let (train, eval) = setup::datasets(&settings, config.as_ref(), &tokenizer, Some(run.begun))?;
        Ok(Material { tokenizer, train, eval })
    }

    /// The first training examples.
    pub(super) fn shown(&self, count: usize) -> Vec<Shown> {
        self.train.examples.iter().take(count).map(|example| self.show(example)).collect()
    }

    fn show(&self, example: &Example) -> Shown {
        let runs = preview::runs(example, &self.tokenizer);
        let (parts, cut) = cut_segments(runs.iter().map(|(text, trained)| (text.as_str(), *trained)), SHOWN);
        Shown {
            source: example.source.to_string(),
            tokens: example.len(),
            trained: example.trained_tokens(),
            parts: parts.into_iter().map(|(text, trained)| (printable(text), trained)).collect(),
            cut,
        }
    }

    /// Prompts of the first held-out examples, or of the first training examples where none are held out.
    pub(super) fn questions(&self, count: usize) -> Vec<Question> {
        let held_out = self.eval.as_ref().filter(|eval| !eval.examples.is_empty());
        let mut questions: Vec<Question> = Vec::new();
        for example in &held_out.unwrap_or(&self.train).examples {
            let question =
                question(example).filter(|new| questions.iter().all(|old| old.prompt != new.prompt));
            questions.extend(question);
            if questions.len() >= count {
                break;
            }
        }
        questions.truncate(count);
        questions
    }
}

/// An example's tokens up to those that carry loss, and these. Of a plain text, all of which carries loss, its
/// beginning and the rest.
fn question(example: &Example) -> Option<Question> {
    let (ids, labels) = (&example.input_ids, &example.labels);
    let is_trained = |at: &usize| labels[*at] != IGNORE;
    let first = (1..ids.len()).find(is_trained)?;
    let (first, end) = match first {
        1 => ((ids.len() / 2).min(BEGINNING), ids.len()),
        first => (first, (first..ids.len()).find(|at| !is_trained(at)).unwrap_or(ids.len())),
    };
    let (source, prompt) = (example.source.to_string(), ids[..first].to_vec());
    (first > 0).then(|| Question { source, prompt, expected: ids[first..end].to_vec() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use data::Source;

    use super::*;

    fn asked(trained: &[usize]) -> Option<(Vec<u32>, Vec<u32>)> {
        let input_ids: Vec<u32> = (0..10).collect();
        let label = |id: &u32| if trained.contains(&(*id as usize)) { *id as i32 } else { IGNORE };
        let labels = input_ids.iter().map(label).collect();
        let source = Source { file: Arc::new("d.jsonl".into()), line: 1 };
        question(&Example { input_ids, labels, source }).map(|question| (question.prompt, question.expected))
    }

    #[test]
    fn a_prompt_ends_where_the_first_answer_begins() {
        assert_eq!(asked(&[4, 5, 8]), Some(((0..4).collect(), vec![4, 5])));
        assert_eq!(asked(&[7, 8, 9]), Some(((0..7).collect(), vec![7, 8, 9])));
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(asked(&all), Some(((0..5).collect(), (5..10).collect())));
        assert_eq!(asked(&[]), None);
    }
}
