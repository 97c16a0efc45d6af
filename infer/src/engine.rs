//! Many sequences at once: requests with an adapter each, or none, over one base, a forward pass a step.
//!
//! Every request comes to what it comes to alone, to the byte, at any load and beside any others. Its rows are a
//! group of their own in the batch. Those of a prompt are multiplied as rows of a long text are, however few
//! they are, so that it does not matter where a chunk ends or what another request has computed of it already;
//! those of new tokens one by one, as a request alone would, or, in [`Sums::Tiles`], as in training.

use std::sync::Arc;

use model::{Adapter, Decoder};

use crate::generator::{Finish, InferError};
use crate::sampler::Sampling;

/// What a request is called.
pub type RequestId = u64;

/// How many rows the products of new tokens have, and so in which order they sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sums {
    /// As fast as a request alone goes. Log-probabilities differ from those of a pass over the whole text by
    /// rounding.
    #[default]
    Rows,
    /// As training sums: a text's log-probabilities are those of a pass over the whole of it, to the bit.
    Tiles,
}

/// The sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Tokens of the longest sequence, at most what the model was made for.
    pub context: usize,
    /// Tokens that the cache holds in all; rounded up to whole pages.
    pub cached_tokens: usize,
    /// The most tokens of a step: those that are generated, and chunks of prompts.
    pub step_tokens: usize,
    /// The most sequences that generate at once.
    pub running: usize,
    /// The largest rank of an adapter that a request may have.
    pub max_rank: usize,
    /// How new tokens are summed.
    pub sums: Sums,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Tokens to continue.
    pub prompt: Vec<u32>,
    /// With which adapter, which stays alive until the request has ended. Requests share what was computed of
    /// a common beginning only where this is the same object, or none.
    pub adapter: Option<Arc<Adapter>>,
    /// The most new tokens; with 0 the prompt's log-probabilities are all there is.
    pub max_tokens: usize,
    /// Tokens that end the sequence; the one that came is not part of the result.
    pub stop: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Log-probabilities of new tokens, and of so many of the likeliest beside each.
    pub logprobs: Option<usize>,
    /// The same of the prompt's tokens.
    pub prompt_logprobs: Option<usize>,
    /// Whose it is: requests that wait take turns by what their owners have used.
    pub owner: u64,
}

/// The logarithm of a token's probability, before temperature and all else that sampling does.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Which token.
    pub token: u32,
    /// Natural logarithm.
    pub logprob: f32,
    /// The likeliest tokens, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// What became of a request in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt is computed; so many tokens of it were there from another request. `logprobs` of all its
    /// tokens but the first, if they were asked for.
    Prompt {
        /// Tokens that were not computed again.
        cached: usize,
        /// For each token but the first.
        logprobs: Vec<Logprobs>,
    },
    /// A new token.
    Token {
        /// Which one.
        token: u32,
        /// If it was asked for.
        logprobs: Option<Logprobs>,
    },
    /// There is no more. The request is forgotten.
    End(Finish),
    /// It could not go on. The request is forgotten.
    Failed(InferError),
}

/// What an engine is busy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that hold pages of the cache.
    pub running: usize,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Pages in use by requests.
    pub used_pages: usize,
    /// Pages that hold what another request may begin with.
    pub kept_pages: usize,
    /// All pages.
    pub pages: usize,
}

/// A model that answers many requests at once.
#[derive(Debug)]
pub struct Engine {
    decoder: Arc<Decoder>,
    extent: Extent,
}

impl Engine {
    /// An engine without requests, with all its memory.
    pub fn new(decoder: Arc<Decoder>, extent: Extent) -> Self {
        Engine { decoder, extent }
    }

    /// What it was laid out for.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Takes up a request, which waits for its turn.
    ///
    /// # Errors
    /// If the prompt is empty, too long, not of the model's vocabulary, or needs more cache than there is, or
    /// the adapter's rank is above [`Extent::max_rank`].
    pub fn submit(&mut self, _ask: Ask) -> Result<RequestId, InferError> {
        todo!()
    }

    /// Forgets a request: there are no more events of it. Of one that is not known nothing happens.
    pub fn cancel(&mut self, _id: RequestId) {
        todo!()
    }

    /// Computes one step of whatever there is to do, and says what came of it, in the order of requests.
    pub fn step(&mut self) -> Vec<(RequestId, Event)> {
        todo!()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        todo!()
    }

    /// What it is busy with.
    pub fn load(&self) -> Load {
        todo!()
    }
}
