//! The crate's tests.

mod choice;
mod paired;
mod text;
mod tournament;
