//! The crate's tests.

mod paired;
mod text;
mod tournament;
