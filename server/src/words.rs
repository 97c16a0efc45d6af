//! Between text and tokens: the base's tokenizer, how conversations are written, and what ends the model's
//! words.

use std::sync::{Arc, OnceLock};

use data::{ChatTemplate, TextStream, Tokenizer};
use infer::Constraint;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};

use crate::conversation::Conversation;
use crate::error::ApiError;
use crate::outline::Outline;
use crate::style::Style;
use crate::vocabulary::Vocabulary;

/// What ends the model's words, none of it said.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Tokens that end them.
    pub tokens: Vec<u32>,
    /// A template's end of turn that is no token of the tokenizer.
    pub text: Option<String>,
}

/// How conversations are written.
#[derive(Debug)]
pub struct Chat {
    template: ChatTemplate,
    stops: Stops,
    style: OnceLock<Style>,
}

/// What a server knows of text.
#[derive(Debug)]
pub struct Words {
    tokenizer: Arc<Tokenizer>,
    stops: Stops,
    chat: Option<Chat>,
    /// A token that stands before one whose text is looked for, and its text.
    before: Option<(u32, String)>,
    /// Made for the first grammar.
    vocabulary: OnceLock<Result<Vocabulary, String>>,
}

impl Words {
    /// `stops` are those of plain text. Without `chat` there are no conversations with the base.
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Stops, chat: Option<Chat>) -> Self {
        let first = tokenizer.encode("a", false).ok().and_then(|encoded| encoded.ids.last().copied());
        let before = first.and_then(|id| Some((id, tokenizer.decode(&[id], false).ok()?)));
        Words { tokenizer, stops, chat, before, vocabulary: OnceLock::new() }
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(crate) fn stops(&self) -> &Stops {
        &self.stops
    }

    /// How conversations with an adapter are written, or with the base.
    pub(crate) fn chat<'a>(&'a self, own: Option<&'a Chat>) -> Result<&'a Chat, ApiError> {
        own.or(self.chat.as_ref()).ok_or_else(|| {
            ApiError::field("messages", "this model has no chat template: send a `prompt` to /v1/completions")
        })
    }

    /// The tokens of a text.
    pub(crate) fn encode(&self, text: &str, add_special: bool, param: &str) -> Result<Vec<u32>, ApiError> {
        let encoded = self.tokenizer.encode(text, add_special);
        Ok(encoded.map_err(|error| ApiError::field(param, error.to_string()))?.ids)
    }

    /// The text of tokens, special ones included.
    pub(crate) fn decode(&self, ids: &[u32], param: &str) -> Result<String, ApiError> {
        self.tokenizer.decode(ids, false).map_err(|error| ApiError::field(param, error.to_string()))
    }

    /// What keeps each of some answers to a grammar, if there is one. It takes its time.
    ///
    /// # Errors
    /// If a part of it, or all of it, cannot be used.
    pub(crate) fn constraints(
        &self,
        outline: Option<Outline>,
        answers: usize,
    ) -> Result<Vec<Option<Box<dyn Constraint>>>, ApiError> {
        let constraint = outline.map(|outline| self.constraint(outline)).transpose()?;
        Ok(vec![constraint; answers])
    }

    fn constraint(&self, outline: Outline) -> Result<Box<dyn Constraint>, ApiError> {
        let Outline { main, parts, param } = outline;
        let vocabulary = self.vocabulary.get_or_init(|| Vocabulary::new(&self.tokenizer));
        let vocabulary = vocabulary.as_ref().map_err(|error| ApiError::internal(error.as_str()))?;
        let make = |grammars: Vec<GrammarWithLexer>, param: &str| {
            let made = vocabulary.constraint(TopLevelGrammar { grammars, max_tokens: None });
            made.map_err(|reason| ApiError::field(param, format!("`{param}` cannot be used: {reason}")))
        };
        let Some(main) = main else { return make(parts.into_iter().map(|(part, _)| part).collect(), &param) };
        // A part that nothing fits would be noticed in the midst of an answer.
        for (part, param) in &parts {
            make(vec![part.clone()], param)?;
        }
        make([main].into_iter().chain(parts.into_iter().map(|(part, _)| part)).collect(), &param)
    }

    /// A decoder for the tokens that follow a prompt.
    pub(crate) fn stream_after(&self, prompt: &[u32]) -> TextStream {
        self.tokenizer.stream_after(prompt)
    }

    /// A token as it reads within a text; one that is no whole characters as the vocabulary spells it, so that
    /// no two look the same.
    pub(crate) fn spell(&self, id: u32) -> String {
        let read = match &self.before {
            Some((before, text)) => self
                .tokenizer
                .decode(&[*before, id], false)
                .ok()
                .and_then(|both| both.strip_prefix(text.as_str()).map(str::to_owned)),
            None => self.tokenizer.decode(&[id], false).ok(),
        };
        let whole = read.filter(|text| !text.is_empty() && !text.contains('\u{fffd}'));
        whole.or_else(|| self.tokenizer.id_to_token(id)).unwrap_or_default()
    }
}

impl Chat {
    /// `template` writes conversations, `stops` end a turn.
    pub fn new(template: ChatTemplate, stops: Stops) -> Self {
        Chat { template, stops, style: OnceLock::new() }
    }

    pub(crate) fn stops(&self) -> &Stops {
        &self.stops
    }

    /// How calls and thoughts are written.
    pub(crate) fn style(&self) -> &Style {
        self.style.get_or_init(|| Style::of(&self.template))
    }

    /// The text of a conversation, up to where the assistant begins to speak if `prompts`.
    pub(crate) fn write(&self, conversation: &Conversation, prompts: bool) -> Result<String, ApiError> {
        let Conversation { messages, tools, variables, .. } = conversation;
        let own = (!variables.is_empty()).then(|| self.template.with_variables(variables));
        let template = own.as_ref().unwrap_or(&self.template);
        let text = match prompts {
            true => template.prompt(messages, tools.as_ref()),
            false => template.render(messages, tools.as_ref(), false).map(|rendered| rendered.text),
        };
        text.map_err(|error| ApiError::field("messages", error.to_string()))
    }
}
