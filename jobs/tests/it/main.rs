//! The crate from outside.

mod histories;
mod processes;
mod shares;
mod simulate;
mod traces;
