//! The crate from outside.

mod histories;
mod shares;
mod simulate;
mod traces;
