//! Token ids in, token ids out: a decoder, an adapter and a cache of keys and values.
//!
//! Knows nothing of text or HTTP.

mod constraint;
mod engine;
mod generator;
mod pages;
mod queue;
mod sampler;
mod scorer;

pub use constraint::{Allowed, Constraint, Reason};
pub use engine::{Ask, Engine, Event, Extent, Load, Logprobs, RequestId, SMALLEST_GROUP, Sums};
pub use generator::{Finish, Generation, Generator, InferError, Request};
pub use sampler::{Sampler, Sampling};
pub use scorer::{Scored, Scorer, Stem};

/// What a request is answered with beside the base; who serves requests need not know more of models.
pub use model::Adapter;
