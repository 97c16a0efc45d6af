//! From a line of a file to token ids with labels.
//!
//! The way of a training token through this crate, one direction, one file per step: [`source`] reads records
//! from files and says where each stands, [`format`](mod@format) finds what kind of record it is and turns it
//! into an [`Item`](format::Item), [`template`] renders conversations as the model's chat template says,
//! [`tokenizer`] turns text into ids, [`label`] decides which of them carry loss, [`dataset`] does all that
//! in parallel and reports what it noticed (also of single records: [`oddity`]), and [`order`] shuffles and
//! packs examples into rows. [`preview`] shows the result to a person, [`audit`] examines it, and [`convert`]
//! writes records anew.
//!
//! This crate knows nothing of devices or models. Its results depend on its inputs and the seed only,
//! never on the number of threads.

pub mod audit;
pub mod convert;
pub mod dataset;
pub mod error;
pub mod example;
pub mod format;
mod json;
pub mod label;
pub mod oddity;
pub mod order;
pub mod preview;
pub mod source;
pub mod template;
pub mod tokenizer;
mod until;

pub use dataset::{DataSpec, Dataset, OnOverflow, Report};
pub use error::{DataError, UnknownName};
pub use example::{Example, IGNORE, Source};
pub use format::{Asked, Chat, Format, Oasst, Paths, Question, Questions};
pub use label::TrainOn;
pub use order::{OrderSpec, Row};
pub use source::{SourceSpec, Sources};
pub use template::{ChatTemplate, PlainEnd, Rendered, TemplateError};
pub use tokenizer::gguf::GgufTokenizer;
pub use tokenizer::{TextStream, Tokenizer, TokenizerError};
pub use until::Until;
