//! Tests of the crate from the outside.

mod beginnings;
mod common;
mod damage;
mod events;
mod finite;
mod forecast;
mod forgetting;
mod frozen;
mod memory;
mod null;
mod optimizer;
mod parity;
mod resume;
mod schedule;
mod step;
mod studio;
mod together;
