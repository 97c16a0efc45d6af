//! The crate from the outside: files in, token ids with labels out.

mod audit;
mod compressed;
mod convert;
mod files;
mod formats;
mod gguf;
mod labels;
mod malformed;
mod marks;
mod oasst;
mod order;
mod parquet;
mod support;
mod tables;
mod templates;
mod tokenizers;
mod tools;
mod warnings;
