//! What chats and completions have in common: how tokens are chosen, when they end, how they are told.

use std::hash::{BuildHasher, Hasher, RandomState};

use infer::Sampling;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, tokens};
use crate::words::Stops;

/// Stop strings of a request.
const MAX_STOPS: usize = 16;
/// Bytes of a stop string.
const MAX_STOP_BYTES: usize = 1024;
/// Tokens beside each that log-probabilities are told of.
pub(crate) const MAX_TOP: i64 = 20;

/// Settings of a request.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) model: String,
    sampling: Sampling,
    /// Answers to each prompt.
    pub(crate) n: usize,
    stops: Vec<String>,
    stop_tokens: Vec<u32>,
    ignore_eos: bool,
    pub(crate) stream: bool,
    /// Whether a stream ends by telling the tokens.
    pub(crate) include_usage: bool,
    /// Whether the ids of all tokens are told, as vLLM has it.
    pub(crate) token_ids: bool,
}

impl Asked {
    /// `most`: the most answers that can be asked for at once.
    pub(crate) fn read(fields: &Fields, most: usize) -> Result<Self, ApiError> {
        let model = fields.required_text("model")?.to_owned();
        let number = |name: &str, range, default: f32| -> Result<f32, ApiError> {
            Ok(fields.number(name, range)?.map_or(default, |number| number as f32))
        };
        let repetition_penalty = number("repetition_penalty", 0.01..=10.0, 1.0)?;
        // -1, as vLLM has it, and 0: all.
        let top_k = fields.whole("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0);
        let sampling = Sampling {
            temperature: number("temperature", 0.0..=2.0, 1.0)?,
            // 0: the likeliest token alone, as OpenAI has it.
            top_p: number("top_p", 0.0..=1.0, 1.0)?,
            top_k: usize::try_from(top_k).unwrap_or(0),
            min_p: number("min_p", 0.0..=1.0, 0.0)?,
            presence_penalty: number("presence_penalty", -2.0..=2.0, 0.0)?,
            frequency_penalty: number("frequency_penalty", -2.0..=2.0, 0.0)?,
            repetition_penalty,
            seed: fields.whole("seed", i64::MIN..=i64::MAX)?.map_or_else(random, |seed| seed as u64),
        };
        let n = fields.count("n", 1)?.unwrap_or(1);
        if n > most {
            return Err(ApiError::field("n", format!("`n` may be {most} at most here, and is {n}")));
        }
        let stops = fields.texts("stop", MAX_STOPS)?;
        if stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            let message = format!("a string of `stop` has 1 to {MAX_STOP_BYTES} bytes");
            return Err(ApiError::field("stop", message));
        }
        let include_usage = match fields.object("stream_options")? {
            Some(options) => options.boolean("include_usage")?.unwrap_or(false),
            None => false,
        };
        let is_empty = |value: &Value| value.as_object().is_some_and(|object| object.is_empty());
        fields.refuse("logit_bias", is_empty)?;
        fields.refuse("best_of", |value| *value == json!(n))?;
        fields.refuse("use_beam_search", |value| *value == json!(false))?;
        Ok(Asked {
            model,
            sampling,
            n,
            stops,
            stop_tokens: fields.tokens("stop_token_ids")?.unwrap_or_default(),
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            stream: fields.boolean("stream")?.unwrap_or(false),
            include_usage,
            token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
        })
    }

    /// How the tokens of an answer are chosen: those to one prompt differ.
    pub(crate) fn sampling(&self, answer: usize) -> Sampling {
        Sampling { seed: self.sampling.seed.wrapping_add(answer as u64), ..self.sampling }
    }

    /// What ends an answer: tokens, and strings.
    pub(crate) fn ends(&self, usual: &Stops) -> (Vec<u32>, Vec<String>) {
        let (mut tokens, mut texts) = (self.stop_tokens.clone(), self.stops.clone());
        if !self.ignore_eos {
            tokens.extend(&usual.tokens);
            texts.extend(usual.text.clone());
        }
        (tokens, texts)
    }
}

/// The prompts of a completion: a string, token ids, or a list of either.
#[derive(Debug)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    pub(crate) fn read(fields: &Fields, most: usize) -> Result<Vec<Self>, ApiError> {
        let wrong = || {
            let message =
                "`prompt` must be a string, a list of token ids, or a list of strings or of such lists";
            ApiError::field("prompt", message)
        };
        let value = fields.required("prompt")?;
        let one = |value: &Value| match value {
            Value::String(text) => Some(Prompt::Text(text.clone())),
            Value::Array(_) => tokens(value).map(Prompt::Tokens),
            _ => None,
        };
        let prompts = match value {
            Value::Array(list) if list.first().is_some_and(|first| !first.is_number()) => {
                list.iter().map(one).collect::<Option<Vec<_>>>()
            }
            value => one(value).map(|prompt| vec![prompt]),
        };
        let prompts = prompts.ok_or_else(wrong)?;
        if prompts.len() > most {
            let message = format!("`prompt` may be {most} prompts at once, and is {}", prompts.len());
            return Err(ApiError::field("prompt", message));
        }
        Ok(prompts)
    }
}

/// How many tokens may come behind a prompt: as many as are asked for, or as there is room for.
pub(crate) fn room(
    prompt: usize,
    asked: Option<usize>,
    context: usize,
    param: &str,
) -> Result<usize, ApiError> {
    let room = context.saturating_sub(prompt);
    match asked {
        Some(asked) if asked > room => Err(ApiError::too_long(
            param,
            format!(
                "the prompt has {prompt} tokens and {asked} are asked for, but the context has {context} in all"
            ),
        )),
        None if room == 0 => Err(ApiError::too_long(
            param,
            format!("the prompt has {prompt} tokens, and the context has room for {context} with the answer"),
        )),
        asked => Ok(asked.unwrap_or(room)),
    }
}

/// A name that nothing else has.
pub(crate) fn new_id(kind: &str) -> String {
    format!("{kind}-{:016x}{:08x}", random(), random() as u32)
}

/// A number that nobody knows beforehand.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
