//! What a model answers while it is trained and watched: the first held-out prompts, with the likeliest
//! tokens, whenever it is evaluated. It changes nothing of the run.

use data::{ChatTemplate, Tokenizer};
use infer::{Generator, Sampling};
use model::{Adapter, Decoder};

use super::Prepared;
use crate::commands::generate::{Ask, Stops, speak, stops};
use crate::commands::questions::{Question, questions};
use crate::signal;
use crate::terminal::bytes;
use crate::terminal::live::Answered;

/// Prompts that are answered.
const PROMPTS: usize = 2;
/// Tokens of an answer, at most: there is a line for it.
const LONGEST: usize = 48;

/// Prompts, and all that answering them needs beside what is trained.
pub(super) struct Answering<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    stops: Stops,
    questions: Vec<Question>,
    /// Tokens of the longest prompt with its answer.
    context: usize,
    memory: u64,
}

impl<'a> Answering<'a> {
    /// Chooses the prompts of a run. `template`: the source of the chat template, where it is not the
    /// tokenizer's own.
    ///
    /// # Errors
    /// Why there are no answers: no examples are held out, or there is no room in the memory for what is
    /// needed to answer.
    pub(super) fn of(
        prepared: &'a Prepared,
        decoder: &'a Decoder,
        template: Option<&str>,
    ) -> Result<Self, String> {
        let questions = questions(prepared.data.held_out(), PROMPTS);
        if questions.is_empty() {
            return Err(
                "no answers are shown, for there are no held-out examples to take prompts from".into()
            );
        }
        let (config, layout) = (&decoder.config, &prepared.trained.layout);
        let longest = questions.iter().map(|of| of.prompt.len()).max().unwrap_or(0);
        let context = longest.saturating_add(LONGEST).min(config.max_position_embeddings);
        let memory = Generator::memory_plan(config, layout, decoder.precision, context).total();
        if let Some(spare) = prepared.spare.filter(|spare| memory > *spare) {
            return Err(format!(
                "no answers are shown, for they need {} more, and the run leaves {}",
                bytes(memory),
                bytes(spare)
            ));
        }
        let tokenizer = &*prepared.data.tokenizer;
        let template = match template {
            Some(source) => ChatTemplate::compile(source, "of the run").map(Some),
            None => ChatTemplate::resolve(None, tokenizer),
        };
        let template = template.ok().flatten().map(|template| template.with_special_tokens(tokenizer));
        let stops = stops(config, tokenizer, template.as_ref());
        Ok(Answering { decoder, tokenizer, stops, questions, context, memory })
    }

    /// Bytes that it takes while it answers.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// The prompts and what their examples go on with, without answers.
    pub(super) fn prompts(&self) -> Vec<Answered> {
        let text = |ids: &[u32]| self.tokenizer.decode(ids, true).unwrap_or_default();
        let answered = |of: &Question| Answered {
            prompt: text(&of.prompt),
            expected: text(&of.expected),
            answers: Vec::new(),
        };
        self.questions.iter().map(answered).collect()
    }

    /// What the model says to each prompt with what it has learnt so far; fewer where the process is asked to
    /// stop.
    ///
    /// # Errors
    /// If the model's numbers are not finite.
    pub(super) fn answers(&self, adapter: &Adapter) -> anyhow::Result<Vec<String>> {
        let mut generator = Generator::over_trained(self.decoder, Some(adapter), self.context);
        let mut answers = Vec::new();
        for Question { prompt, .. } in &self.questions {
            let sampling = Sampling::default();
            let ask = Ask { prompt, max_tokens: LONGEST, stops: &self.stops, sampling };
            let go_on = &mut |_: &str| Ok(!signal::is_asked_to_stop());
            let spoken = speak(self.tokenizer, &mut generator, ask, go_on)?;
            if signal::is_asked_to_stop() {
                break;
            }
            answers.push(spoken.text);
        }
        Ok(answers)
    }
}
