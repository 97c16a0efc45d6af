//! Log-probabilities in OpenAI's two shapes.

use infer::Logprobs;
use serde_json::{Map, Value, json};

use crate::answer::Said;
use crate::words::Words;

/// JSON has no infinities: a token that cannot come is told as very unlikely, as vLLM does.
fn number(logprob: f32) -> f64 {
    f64::from(logprob).max(-9999.0)
}

/// `logprobs` of a chat: for each token its likeliest others.
pub(crate) fn of_chat(words: &Words, said: &[Said]) -> Value {
    let told = |token: u32, logprob: f32| {
        let text = words.spell(token);
        let is_whole = words.decode(&[token], "").is_ok_and(|read| !read.contains('\u{fffd}'));
        let bytes = is_whole.then(|| text.as_bytes().to_vec());
        json!({"token": text, "logprob": number(logprob), "bytes": bytes})
    };
    let entries = said.iter().filter_map(|said| {
        let Logprobs { token, logprob, top } = said.logprobs.as_ref()?;
        let mut entry = told(*token, *logprob);
        entry["top_logprobs"] = top.iter().map(|(token, logprob)| told(*token, *logprob)).collect();
        Some(entry)
    });
    json!({"content": entries.collect::<Vec<_>>(), "refusal": null})
}

/// `logprobs` of a completion, which grows by tokens.
#[derive(Debug, Default)]
pub(crate) struct OfCompletion {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
}

impl OfCompletion {
    /// Adds a token; the first of a text has no log-probability.
    pub(crate) fn push(&mut self, words: &Words, token: u32, logprobs: Option<&Logprobs>, offset: usize) {
        let text = words.spell(token);
        let top = logprobs.map(|logprobs| {
            let mut top = Map::new();
            let own = (logprobs.token, logprobs.logprob);
            for (other, logprob) in logprobs.top.iter().chain([&own]) {
                // Of two that read the same the likelier one stands first.
                top.entry(words.spell(*other)).or_insert_with(|| number(*logprob).into());
            }
            top
        });
        self.tokens.push(text.into());
        self.token_logprobs.push(logprobs.map(|logprobs| number(logprobs.logprob)).into());
        self.top_logprobs.push(top.map_or(Value::Null, Value::Object));
        self.text_offset.push(offset.into());
    }

    pub(crate) fn value(self) -> Value {
        let OfCompletion { tokens, token_logprobs, top_logprobs, text_offset } = self;
        json!({
            "tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top_logprobs,
            "text_offset": text_offset,
        })
    }
}
