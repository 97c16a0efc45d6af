//! Tests of the crate from the outside.

mod generator;
mod null;
mod sampler;
