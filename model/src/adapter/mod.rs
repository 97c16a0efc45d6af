//! Adapters. Under `linear`: trained tensors and the methods that they belong to. Over `decoder`: how they
//! begin, how files say them, how they merge.

pub mod extract;
pub mod init;
mod joint;
pub mod merge;
pub(crate) mod method;
pub mod parameters;
pub mod peft;
