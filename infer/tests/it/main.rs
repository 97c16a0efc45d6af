//! Tests of the crate from the outside.

mod engine;
mod generator;
mod null;
mod sampler;
mod scorer;
