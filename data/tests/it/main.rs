//! The crate from the outside: files in, token ids with labels out.

mod files;
mod formats;
mod labels;
mod malformed;
mod marks;
mod order;
mod support;
mod templates;
mod tokenizers;
mod tools;
