//! The crate from outside.

mod shares;
