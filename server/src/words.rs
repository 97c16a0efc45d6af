//! Between text and tokens: the base's tokenizer, how conversations are written, and what ends the model's
//! words.

use std::sync::Arc;

use data::{ChatTemplate, TextStream, Tokenizer};
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Tokens before a text that decide how its first token reads: whether a space is put before it.
const LEAD: usize = 32;

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
    /// Writes them.
    pub template: ChatTemplate,
    /// What ends a turn.
    pub stops: Stops,
}

/// What a server knows of text.
#[derive(Debug)]
pub struct Words {
    tokenizer: Arc<Tokenizer>,
    stops: Stops,
    chat: Option<Chat>,
    /// A token that stands before one whose text is looked for, and its text.
    before: Option<(u32, String)>,
}

impl Words {
    /// `stops` are those of plain text. Without `chat` there are no conversations with the base.
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Stops, chat: Option<Chat>) -> Self {
        let first = tokenizer.encode("a", false).ok().and_then(|encoded| encoded.ids.last().copied());
        let before = first.and_then(|id| Some((id, tokenizer.decode(&[id], false).ok()?)));
        Words { tokenizer, stops, chat, before }
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

    /// A decoder for the tokens that follow a prompt.
    pub(crate) fn stream_after(&self, prompt: &[u32]) -> TextStream {
        let mut stream = self.tokenizer.stream(true);
        for &id in &prompt[prompt.len().saturating_sub(LEAD)..] {
            stream.push(&self.tokenizer, id);
        }
        stream
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
    /// The text of a conversation, up to where the assistant begins to speak if `prompts`.
    pub(crate) fn write(
        &self,
        messages: &[Map<String, Value>],
        tools: Option<&Value>,
        prompts: bool,
    ) -> Result<String, ApiError> {
        let text = match prompts {
            true => self.template.prompt(messages, tools),
            false => self.template.render(messages, tools, false).map(|rendered| rendered.text),
        };
        text.map_err(|error| ApiError::field("messages", error.to_string()))
    }
}
