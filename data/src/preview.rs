//! Examples for a person to look at: text with the tokens that carry loss told apart.

use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::{Example, IGNORE, Tokenizer, TokenizerError};

/// A token of an example as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The text that became whole with this token: empty in the middle of a character that spans tokens, and
    /// the whole character at its last token.
    pub text: String,
    /// Whether the token carries loss (after the shift: an example's first token never does).
    pub trained: bool,
    /// The token.
    pub token_id: u32,
}

/// The example's tokens as text; put together, the segments are the whole decoded text.
pub fn segments(example: &Example, tokenizer: &Tokenizer) -> Vec<Segment> {
    let mut stream = tokenizer.stream(false);
    let mut segments: Vec<Segment> = Vec::with_capacity(example.len());
    for (i, (&token_id, &label)) in example.input_ids.iter().zip(&example.labels).enumerate() {
        let text = stream.push(tokenizer, token_id);
        segments.push(Segment { text, trained: i > 0 && label != IGNORE, token_id });
    }
    if let Some(last) = segments.last_mut() {
        last.text.push_str(&stream.finish(tokenizer));
    }
    segments
}

/// The example as `data preview --json` prints it: `{"text", "token_ids", "labels", "source"}`.
pub fn json(example: &Example, tokenizer: &Tokenizer) -> Result<Json, TokenizerError> {
    Ok(json!({
        "text": tokenizer.decode(&example.input_ids, false)?,
        "token_ids": example.input_ids,
        "labels": example.labels,
        "source": example.source.to_string(),
    }))
}

/// Neighbouring tokens of one kind joined: (text, whether it carries loss). For painting and for text
/// snapshots.
pub fn runs(example: &Example, tokenizer: &Tokenizer) -> Vec<(String, bool)> {
    let mut runs: Vec<(String, bool)> = Vec::new();
    for segment in segments(example, tokenizer) {
        match runs.last_mut() {
            Some((text, trained)) if *trained == segment.trained => text.push_str(&segment.text),
            _ => runs.push((segment.text, segment.trained)),
        }
    }
    runs
}
