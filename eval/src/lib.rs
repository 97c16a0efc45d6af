//! Whether one system is better than another, by how much, and whether that is more than chance. Knows no
//! model: items and answers come in, numbers with intervals go out.

pub mod choice;
pub mod open;
pub mod paired;
pub mod text;
pub mod tournament;
