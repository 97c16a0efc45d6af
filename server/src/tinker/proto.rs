//! The messages that Tinker's clients send and take as protobuf, as far as their fields are used here. What a
//! message holds of others is left as bytes where a request could hold very many, so that their number is
//! known before they take memory.

use std::collections::BTreeMap;

use prost::Message;

/// The body of a pass.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ForwardBackwardRequest {
    #[prost(string, tag = "1")]
    pub(super) model_id: String,
    #[prost(int32, tag = "2")]
    pub(super) seq_id: i32,
    /// Each a [`Datum`].
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub(super) data: Vec<Vec<u8>>,
    #[prost(string, tag = "4")]
    pub(super) loss_fn: String,
    #[prost(btree_map = "string, double", tag = "5")]
    pub(super) loss_fn_config: BTreeMap<String, f64>,
    #[prost(bool, tag = "6")]
    pub(super) forward_only: bool,
    #[prost(btree_map = "string, message", tag = "7")]
    pub(super) loss_fn_config_v2: BTreeMap<String, LossConfigValue>,
}

/// A number or a text.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LossConfigValue {
    #[prost(double, optional, tag = "1")]
    pub(super) number: Option<f64>,
    #[prost(string, optional, tag = "2")]
    pub(super) text: Option<String>,
}

/// An example.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Datum {
    /// Each a [`Chunk`].
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(super) model_input: Vec<Vec<u8>>,
    #[prost(btree_map = "string, message", tag = "2")]
    pub(super) loss_fn_inputs: BTreeMap<String, Tensor>,
}

/// A piece of an input: text, or what is not read here.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Chunk {
    #[prost(message, optional, tag = "1")]
    pub(super) encoded_text: Option<EncodedText>,
}

/// Token ids, 4 bytes each.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EncodedText {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) tokens: Vec<u8>,
}

/// Numbers of any shape.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Tensor {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(super) dense: Option<Vec<u8>>,
    #[prost(message, optional, tag = "2")]
    pub(super) sparse_csr: Option<SparseCsr>,
    #[prost(enumeration = "DType", tag = "3")]
    pub(super) dtype: i32,
    #[prost(int64, repeated, tag = "4")]
    pub(super) shape: Vec<i64>,
}

/// A matrix by its entries, row after row.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SparseCsr {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) values: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) crow_indices: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) col_indices: Vec<u8>,
}

/// The types of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum DType {
    Unspecified = 0,
    Float32 = 1,
    Int64 = 2,
    Int32 = 3,
    Bfloat16 = 4,
}

/// What a pass came to.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ForwardBackwardOutput {
    #[prost(string, tag = "1")]
    pub(super) loss_fn_output_type: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) loss_fn_outputs: Vec<ArrayRecord>,
    #[prost(btree_map = "string, double", tag = "3")]
    pub(super) metrics: BTreeMap<String, f64>,
}

/// Fields of several examples.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ArrayRecord {
    #[prost(string, tag = "1")]
    pub(super) type_tag: String,
    #[prost(btree_map = "string, message", tag = "2")]
    pub(super) fields: BTreeMap<String, BatchedTensor>,
    #[prost(int64, tag = "3")]
    pub(super) num_datums: i64,
}

/// A field of several examples, one behind the other.
#[derive(Clone, PartialEq, Message)]
pub(super) struct BatchedTensor {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) data: Vec<u8>,
    /// Where each begins and the last one ends, in bytes, 8 bytes each.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) offsets: Vec<u8>,
    #[prost(enumeration = "DType", tag = "3")]
    pub(super) dtype: i32,
    #[prost(int64, repeated, tag = "4")]
    pub(super) trailing_shape: Vec<i64>,
}

/// What was sampled.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SampleResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) sequences: Vec<SampledSequence>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) prompt_logprobs: Option<Vec<u8>>,
    #[prost(message, optional, tag = "3")]
    pub(super) topk_prompt_logprobs: Option<TopkLogprobs>,
    #[prost(int32, tag = "4")]
    pub(super) prompt_cache_hit_tokens: i32,
}

/// One sequence: 4 bytes for each token, 4 for each log-probability.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SampledSequence {
    /// 0: a stop; 1: the length.
    #[prost(int32, tag = "1")]
    pub(super) stop_reason: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) tokens: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub(super) logprobs: Option<Vec<u8>>,
    #[prost(message, optional, tag = "4")]
    pub(super) topk_sampled_logprobs: Option<TopkLogprobs>,
}

/// The likeliest tokens at each place, `[length, k]`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TopkLogprobs {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) token_ids: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) logprobs: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub(super) k: u32,
    #[prost(uint32, tag = "4")]
    pub(super) length: u32,
}

/// Numbers as their bytes, the lowest first.
pub(super) fn bytes<const N: usize, T: Copy>(numbers: &[T], of: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    numbers.iter().flat_map(|&number| of(number)).collect()
}

/// Bytes as numbers; none if there is a part of one.
pub(super) fn numbers<const N: usize, T>(bytes: &[u8], of: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
    let (whole, rest) = bytes.as_chunks::<N>();
    rest.is_empty().then(|| whole.iter().map(|&bytes| of(bytes)).collect())
}
