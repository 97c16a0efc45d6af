//! One sequence at a time: the prompt in chunks, then token by token over a cache.

use std::time::{Duration, Instant};

use compute::{Download, Precision};
use model::memory::{Allocator, MemoryPlan};
use model::{Activations, Adapter, Batch, Cache, Config, Decoder, Extent, Layout, Purpose, Run};

use crate::sampler::{Sampler, Sampling};

/// Tokens of a prompt that are brought in at once.
const CHUNK: usize = 512;

/// What generation can refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// Nothing to continue.
    #[error(
        "the prompt has no tokens: give some text, or a model whose tokenizer begins with a special token"
    )]
    EmptyPrompt,
    /// The prompt leaves no room.
    #[error("the prompt has {prompt} tokens and the model's context {context}: shorten the prompt")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// The model's own numbers went out of bounds.
    #[error(
        "after {tokens} tokens the model's logits are not finite: its weights or the adapter's are damaged or too large"
    )]
    NotFinite {
        /// Tokens before the place.
        tokens: usize,
    },
    /// More tokens than the engine has room for.
    #[error(
        "the prompt and what may follow take {needed} pages of the cache, which has {pages}: ask for fewer tokens"
    )]
    TooLarge {
        /// Pages that the request needs.
        needed: usize,
        /// Pages that there are.
        pages: usize,
    },
    /// An adapter that the engine was not laid out for.
    #[error("the adapter has {what}, and the engine was laid out for {room}")]
    AdapterTooLarge {
        /// What it has.
        what: String,
        /// What there is room for.
        room: String,
    },
    /// What the request's constraint says of itself.
    #[error("the answer could not be kept to what was asked for: {0}")]
    Constraint(String),
    /// An id that the model has no embedding for.
    #[error(
        "token {token} is beyond the model's vocabulary of {vocab_size}: tokenizer and model do not belong together"
    )]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
}

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tokens to continue.
    pub prompt: &'a [u32],
    /// The most new tokens.
    pub max_tokens: usize,
    /// Tokens that end the sequence; the one that came is not part of the result.
    pub stop: &'a [u32],
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token came.
    Stop,
    /// The most tokens, or the end of the context.
    Length,
    /// The listener asked for it.
    Cancelled,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: Finish,
    /// Prompt tokens that had to be computed; the rest was still in the cache.
    pub computed_prompt_tokens: usize,
    /// Time for the prompt.
    pub prompt_time: Duration,
    /// Time for the tokens behind the first.
    pub decode_time: Duration,
}

impl Generation {
    /// Tokens a second while decoding; of the prompt's pass where only one token came.
    pub fn tokens_per_second(&self) -> f64 {
        match self.tokens.len() {
            0 | 1 => self.tokens.len() as f64 / self.prompt_time.as_secs_f64().max(1e-9),
            n => (n - 1) as f64 / self.decode_time.as_secs_f64().max(1e-9),
        }
    }
}

/// A model ready to continue sequences, with the keys and values of the last one.
#[derive(Debug)]
pub struct Generator<'a> {
    decoder: &'a Decoder,
    adapter: Option<&'a Adapter>,
    buffers: Activations,
    cache: Cache,
    /// The tokens whose keys and values are in the cache.
    cached: Vec<u32>,
}

impl<'a> Generator<'a> {
    /// Room for sequences of `context` tokens, at most what the model was made for: the last token of a
    /// sequence needs no room of its own.
    pub fn new(decoder: &'a Decoder, adapter: Option<&'a Adapter>, context: usize) -> Self {
        adapter.into_iter().for_each(|adapter| decoder.fix(adapter));
        Generator::over_trained(decoder, adapter, context)
    }

    /// [`Generator::new`] with an adapter whose training goes on: nothing that depends on its values is computed
    /// ahead and left beside it, so each token takes longer where the method is DoRA.
    pub fn over_trained(decoder: &'a Decoder, adapter: Option<&'a Adapter>, context: usize) -> Self {
        let layout = adapter.map(|a| a.layout.clone()).unwrap_or_default();
        let mut allocator = Allocator::real(&decoder.device);
        let (buffers, cache) = room(&decoder.config, &layout, decoder.precision, context, &mut allocator);
        Generator { decoder, adapter, buffers, cache, cached: Vec::new() }
    }

    /// The memory that [`Generator::new`] asks for with an adapter of this layout.
    pub fn memory_plan(config: &Config, layout: &Layout, precision: Precision, context: usize) -> MemoryPlan {
        let mut planning = Allocator::planning();
        room(config, layout, precision, context, &mut planning);
        planning.into_plan()
    }

    /// Tokens of the longest sequence.
    pub fn context(&self) -> usize {
        self.cache.rows()
    }

    /// Continues a prompt, telling each new token as it comes; the listener returns false to end. What the
    /// prompt has in common with the last sequence is not computed again.
    ///
    /// # Errors
    /// If the prompt is empty, too long, or not of this model's vocabulary, or the logits are not finite.
    pub fn generate(
        &mut self,
        request: Request<'_>,
        on_token: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Generation, InferError> {
        let Request { prompt, max_tokens, stop, sampling } = request;
        self.check(prompt)?;
        let mut sampler = Sampler::new(sampling, prompt);
        let begun = Instant::now();
        let common = prompt.iter().zip(&self.cached).take_while(|(a, b)| a == b).count();
        // The last token is always computed: its logits are needed.
        let known = common.min(prompt.len() - 1);
        let logits = self.advance(known, &prompt[known..], true)?;
        let mut next = sampler.sample(logits.f32());
        let prompt_time = begun.elapsed();
        let begun = Instant::now();
        let (mut tokens, mut finish) = (Vec::new(), Finish::Length);
        for n in 0..max_tokens {
            if stop.contains(&next) {
                finish = Finish::Stop;
                break;
            }
            tokens.push(next);
            if !on_token(next) {
                finish = Finish::Cancelled;
                break;
            }
            if n + 1 == max_tokens || self.cached.len() == self.context() {
                break;
            }
            next = sampler.sample(self.advance(self.cached.len(), &[next], false)?.f32());
        }
        let computed_prompt_tokens = prompt.len() - known;
        Ok(Generation { tokens, finish, computed_prompt_tokens, prompt_time, decode_time: begun.elapsed() })
    }

    fn check(&self, prompt: &[u32]) -> Result<(), InferError> {
        let vocab_size = self.decoder.config.vocab_size;
        if prompt.is_empty() {
            return Err(InferError::EmptyPrompt);
        }
        if prompt.len() > self.context() {
            return Err(InferError::PromptTooLong { prompt: prompt.len(), context: self.context() });
        }
        match prompt.iter().find(|&&t| t as usize >= vocab_size) {
            Some(&token) => Err(InferError::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }

    /// Puts tokens behind the first `known` of the cached ones and returns the logits after the last. Those of
    /// a prompt are multiplied as many rows are, however few there are: so it does not matter which of them
    /// were there.
    fn advance(&mut self, known: usize, tokens: &[u32], by_tiles: bool) -> Result<Download<'_>, InferError> {
        self.cached.truncate(known);
        let run = Run { by_tiles, ..self.decoder.run(self.adapter) };
        let slots = 0..self.cache.rows();
        let mut last_row = 0;
        for chunk in tokens.chunks(self.buffers.extent().tokens) {
            let mut batch = Batch::new();
            batch.push_cached(chunk, self.cached.len(), slots.clone());
            self.decoder.forward(&run, &batch, Some(&mut self.cache), &mut self.buffers);
            self.cached.extend_from_slice(chunk);
            last_row = chunk.len() - 1;
        }
        let logits = self.decoder.logits(&run, &[last_row], &mut self.buffers).download();
        match logits.f32().iter().all(|l| l.is_finite()) {
            true => Ok(logits),
            false => Err(InferError::NotFinite { tokens: self.cached.len() }),
        }
    }
}

/// Buffers and a cache for sequences of so many tokens, at most what the model was made for.
fn room(
    config: &Config,
    layout: &Layout,
    precision: Precision,
    context: usize,
    allocator: &mut Allocator,
) -> (Activations, Cache) {
    let context = context.clamp(1, config.max_position_embeddings);
    let extent =
        Extent { tokens: CHUNK.min(context), positions: context, purpose: Purpose::Infer, precision };
    let buffers = Activations::new(config, layout, 0.0, extent, allocator);
    (buffers, Cache::new(config, precision, context, allocator))
}
