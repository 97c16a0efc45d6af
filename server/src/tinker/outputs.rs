//! What passes and samples came to, as protobuf, and as JSON for whoever does not ask for that.

use std::collections::BTreeMap;

use prost::Message;
use serde_json::{Value, json};

use super::proto::{self, ArrayRecord, BatchedTensor, DType, ForwardBackwardOutput, bytes};

/// A place where no token is, among the likeliest ones of a place.
const NO_TOKEN: (u32, f32) = (0, -99999.0);

/// A field of one example: a number for each token, or `columns` of them.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) numbers: Vec<f32>,
    pub(super) columns: Option<usize>,
}

/// What a pass came to.
#[derive(Debug)]
pub(super) struct PassOutput {
    /// The fields of each example, under names that all have.
    pub(super) examples: Vec<BTreeMap<&'static str, Field>>,
    pub(super) metrics: BTreeMap<String, f64>,
}

impl PassOutput {
    pub(super) fn bytes(&self) -> usize {
        let fields = self.examples.iter().flat_map(BTreeMap::values);
        fields.map(|field| 4 * field.numbers.len() + 64).sum()
    }

    pub(super) fn proto(&self) -> Vec<u8> {
        // Examples of one shape in a record; those that follow with another one in another.
        let shape = |example: &BTreeMap<_, Field>| example.values().next().and_then(|field| field.columns);
        let records = self.examples.chunk_by(|one, other| shape(one) == shape(other)).map(record);
        let message = ForwardBackwardOutput {
            loss_fn_output_type: "ArrayRecord".into(),
            loss_fn_outputs: records.collect(),
            metrics: self.metrics.clone(),
        };
        message.encode_to_vec()
    }

    pub(super) fn json(&self) -> Value {
        let tensor = |field: &Field| {
            let Field { numbers, columns } = field;
            let mut shape = vec![numbers.len() / columns.unwrap_or(1).max(1)];
            shape.extend(columns);
            json!({"data": numbers, "dtype": "float32", "shape": shape})
        };
        let example = |fields: &BTreeMap<&'static str, Field>| -> Value {
            let fields = fields.iter().map(|(name, field)| ((*name).to_owned(), tensor(field)));
            Value::Object(fields.collect())
        };
        let examples: Vec<Value> = self.examples.iter().map(example).collect();
        json!({
            "loss_fn_output_type": "ArrayRecord", "loss_fn_outputs": examples, "metrics": self.metrics,
        })
    }
}

/// Examples whose fields have one shape.
fn record(examples: &[BTreeMap<&'static str, Field>]) -> ArrayRecord {
    let mut fields: BTreeMap<String, BatchedTensor> = BTreeMap::new();
    for name in examples.first().into_iter().flat_map(BTreeMap::keys) {
        let (mut data, mut offsets, mut trailing_shape) = (Vec::new(), vec![0i64], Vec::new());
        for Field { numbers, columns } in examples.iter().filter_map(|example| example.get(name)) {
            data.extend(bytes(numbers, f32::to_le_bytes));
            offsets.push(data.len() as i64);
            trailing_shape = columns.iter().map(|&columns| columns as i64).collect();
        }
        let dtype = DType::Float32 as i32;
        let offsets = bytes(&offsets, i64::to_le_bytes);
        fields.insert((*name).to_owned(), BatchedTensor { data, offsets, dtype, trailing_shape });
    }
    ArrayRecord { type_tag: "ArrayRecord".into(), fields, num_datums: examples.len() as i64 }
}

/// The likeliest tokens at each place; none at one that was not asked for.
#[derive(Debug)]
pub(super) struct Likeliest {
    pub(super) places: Vec<Vec<(u32, f32)>>,
    pub(super) k: usize,
}

impl Likeliest {
    fn proto(&self) -> proto::TopkLogprobs {
        let place = |place: &Vec<(u32, f32)>| {
            let rest = std::iter::repeat_n(NO_TOKEN, self.k.saturating_sub(place.len()));
            place.iter().copied().take(self.k).chain(rest).collect::<Vec<_>>()
        };
        let all: Vec<(u32, f32)> = self.places.iter().flat_map(place).collect();
        proto::TopkLogprobs {
            token_ids: bytes(&all, |(token, _)| token.to_le_bytes()),
            logprobs: bytes(&all, |(_, logprob)| logprob.to_le_bytes()),
            k: self.k as u32,
            length: self.places.len() as u32,
        }
    }

    fn json(&self) -> Value {
        let place = |place: &Vec<(u32, f32)>| if place.is_empty() { Value::Null } else { json!(place) };
        self.places.iter().map(place).collect()
    }
}

/// A sequence that was sampled, with the token that stopped it.
#[derive(Debug, Default)]
pub(super) struct Sampled {
    pub(super) tokens: Vec<u32>,
    pub(super) logprobs: Vec<f32>,
    pub(super) likeliest: Option<Likeliest>,
    /// Whether it met a stop, and not its length.
    pub(super) is_stopped: bool,
}

/// What was sampled after a prompt.
#[derive(Debug, Default)]
pub(super) struct SampleOutput {
    pub(super) sequences: Vec<Sampled>,
    /// Of each token of the prompt; NaN where it was not asked for, or is none.
    pub(super) prompt_logprobs: Option<Vec<f32>>,
    pub(super) prompt_likeliest: Option<Likeliest>,
    /// Tokens of the prompt that were not computed again.
    pub(super) cached: usize,
}

impl SampleOutput {
    pub(super) fn bytes(&self) -> usize {
        let top = |top: &Option<Likeliest>| top.as_ref().map_or(0, |top| 8 * top.k * top.places.len());
        let of = |sequence: &Sampled| 8 * sequence.tokens.len() + top(&sequence.likeliest);
        let sequences: usize = self.sequences.iter().map(of).sum();
        sequences + self.prompt_logprobs.as_ref().map_or(0, |all| 4 * all.len()) + top(&self.prompt_likeliest)
    }

    pub(super) fn proto(&self) -> Vec<u8> {
        let sequence = |sequence: &Sampled| proto::SampledSequence {
            stop_reason: i32::from(!sequence.is_stopped),
            tokens: bytes(&sequence.tokens, u32::to_le_bytes),
            logprobs: Some(bytes(&sequence.logprobs, f32::to_le_bytes)),
            topk_sampled_logprobs: sequence.likeliest.as_ref().map(Likeliest::proto),
        };
        let message = proto::SampleResponse {
            sequences: self.sequences.iter().map(sequence).collect(),
            prompt_logprobs: self.prompt_logprobs.as_ref().map(|all| bytes(all, f32::to_le_bytes)),
            topk_prompt_logprobs: self.prompt_likeliest.as_ref().map(Likeliest::proto),
            prompt_cache_hit_tokens: self.cached as i32,
        };
        message.encode_to_vec()
    }

    pub(super) fn json(&self) -> Value {
        let sequence = |sequence: &Sampled| {
            json!({
                "stop_reason": if sequence.is_stopped { "stop" } else { "length" },
                "tokens": sequence.tokens, "logprobs": sequence.logprobs,
                "topk_logprobs": sequence.likeliest.as_ref().map(Likeliest::json),
            })
        };
        let sequences: Vec<Value> = self.sequences.iter().map(sequence).collect();
        // What is no number becomes null.
        json!({
            "type": "sample", "sequences": sequences, "prompt_logprobs": self.prompt_logprobs,
            "topk_prompt_logprobs": self.prompt_likeliest.as_ref().map(Likeliest::json),
            "prompt_cache_hit_tokens": self.cached,
        })
    }
}
