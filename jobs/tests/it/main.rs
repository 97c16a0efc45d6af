//! The crate from outside.

mod shares;
mod simulate;
