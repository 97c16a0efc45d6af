//! A run's examples, made again from its folder's settings and the data that they name.

use anyhow::bail;
use data::{Dataset, Example, Tokenizer, preview};
use serde::Serialize;

use crate::commands::questions::{Question, questions};
use crate::hub;
use crate::run_folder::{self, Account};
use crate::setup;
use crate::terminal::{cut_segments, printable};

/// Characters of an example that are shown.
const SHOWN: usize = 2000;

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
        questions(&held_out.unwrap_or(&self.train).examples, count)
    }
}
