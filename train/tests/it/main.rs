//! Tests of the crate from the outside.

mod common;
mod frozen;
mod optimizer;
mod parity;
mod resume;
mod schedule;
mod step;
