//! The body of a pass, protobuf or JSON, read into examples. Whatever it claims of itself is held against the
//! bytes that are there.

use std::collections::BTreeMap;
use std::io::Read;

use axum::http::{HeaderMap, header};
use prost::Message;
use serde_json::Value;

use super::proto::{self, Chunk, DType, Datum, ForwardBackwardRequest, numbers};
use super::trainer::{Example, Objective};
use crate::error::ApiError;
use crate::fields::{Fields, tokens};

/// Bytes of a body, packed and unpacked.
pub(super) const MOST_BYTES: usize = 32 << 20;
const MEBIBYTE: usize = 1 << 20;
/// Examples of a request.
pub(super) const MOST_EXAMPLES: usize = 1024;
/// Pieces of an example's input.
const MOST_CHUNKS: usize = 1024;
/// Targets of a place.
const MOST_COLUMNS: usize = 64;
/// Tokens of a request, an example counted once for each column of its targets.
const MOST_TOKENS: usize = 1 << 20;
/// Memory for what a packed body refers back to.
const WINDOW_LOG: u32 = 24;

/// What ratios are clipped to, and what DRO's penalty counts, where nobody says.
const CLIP: [f64; 2] = [0.8, 1.2];
const BETA: f64 = 0.05;

/// Mebibytes that a body may come to, by what its request says of it; 1 at least.
pub(super) fn mebibytes(headers: &HeaderMap) -> usize {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(MOST_BYTES).clamp(1, MOST_BYTES).div_ceil(MEBIBYTE)
}

/// A request for a pass.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) seq: u64,
    pub(super) backward: bool,
    pub(super) objective: Objective,
    /// Of each example as the client has it: how many columns its targets have, if they are a matrix. There
    /// is an example below for each column.
    pub(super) columns: Vec<Option<usize>>,
    pub(super) examples: Vec<Example>,
}

/// Unpacks a body that was packed by zstd.
pub(super) fn unpack(body: &[u8]) -> Result<Vec<u8>, ApiError> {
    let broken = |error: std::io::Error| ApiError::invalid(format!("the body is no zstd: {error}"));
    let mut reader = zstd::stream::read::Decoder::new(body).map_err(broken)?;
    reader.window_log_max(WINDOW_LOG).map_err(broken)?;
    let mut unpacked = Vec::new();
    reader.take(MOST_BYTES as u64 + 1).read_to_end(&mut unpacked).map_err(broken)?;
    if unpacked.len() > MOST_BYTES { Err(ApiError::too_large(MOST_BYTES)) } else { Ok(unpacked) }
}

/// A matrix or a list of numbers.
struct Numbers<T> {
    rows: usize,
    /// None: it is a list.
    columns: Option<usize>,
    values: Vec<T>,
}

/// The inputs of an example that are read.
#[derive(Default)]
struct Inputs {
    targets: Option<Numbers<u32>>,
    /// `weights`, `logprobs` and `advantages`.
    others: BTreeMap<String, Numbers<f32>>,
}

/// Reads a body in protobuf.
pub(super) fn read_proto(body: &[u8]) -> Result<Asked, ApiError> {
    let broken = |error: prost::DecodeError| ApiError::invalid(format!("the body cannot be read: {error}"));
    let request = ForwardBackwardRequest::decode(body).map_err(broken)?;
    let mut config = request.loss_fn_config;
    for (key, value) in request.loss_fn_config_v2 {
        let number = value.number.ok_or_else(|| {
            ApiError::field("loss_fn_config", format!("`{key}` of `loss_fn_config` must be a number"))
        })?;
        config.insert(key, number);
    }
    let mut asked = Asked {
        model: request.model_id,
        seq: seq(i64::from(request.seq_id))?,
        backward: !request.forward_only,
        objective: objective(&request.loss_fn, &config)?,
        columns: Vec::new(),
        examples: Vec::new(),
    };
    check_count(request.data.len())?;
    for (index, datum) in request.data.iter().enumerate() {
        let datum = Datum::decode(&datum[..]).map_err(broken)?;
        let wrong = |problem: String| about(index, &problem);
        if datum.model_input.len() > MOST_CHUNKS {
            return Err(wrong(format!("its input may have {MOST_CHUNKS} pieces at most")));
        }
        let mut ids = Vec::new();
        for chunk in &datum.model_input {
            let chunk = Chunk::decode(&chunk[..]).map_err(broken)?;
            let text = chunk.encoded_text.ok_or_else(|| wrong(NO_TEXT.into()))?;
            let read = numbers(&text.tokens, u32::from_le_bytes);
            ids.extend(read.ok_or_else(|| wrong("its tokens are not 4 bytes each".into()))?);
        }
        let mut inputs = Inputs::default();
        for (name, tensor) in datum.loss_fn_inputs {
            let floats = |tensor| floats_of(tensor).map_err(|problem| wrong(format!("`{name}` {problem}")));
            match name.as_str() {
                "target_tokens" => {
                    let read = ints_of(tensor).and_then(tokens_of);
                    inputs.targets = Some(read.map_err(|problem| wrong(format!("`{name}` {problem}")))?);
                }
                "weights" | "logprobs" | "advantages" => {
                    let read = floats(tensor)?;
                    inputs.others.insert(name, read);
                }
                _ => return Err(wrong(unknown(&name))),
            }
        }
        asked.add(index, ids, inputs)?;
    }
    Ok(asked)
}

/// Reads a body in JSON; its input is the field of this name.
pub(super) fn read_json(fields: &Fields, field: &str, backward: bool) -> Result<Asked, ApiError> {
    let input =
        fields.object(field)?.ok_or_else(|| ApiError::field(field, format!("`{field}` is missing")))?;
    let mut config = BTreeMap::new();
    for (key, value) in fields_of(input.value("loss_fn_config"), "loss_fn_config")? {
        let number = value.as_f64().ok_or_else(|| {
            ApiError::field("loss_fn_config", format!("`{key}` of `loss_fn_config` must be a number"))
        })?;
        config.insert(key.clone(), number);
    }
    let mut asked = Asked {
        model: fields.required_text("model_id")?.to_owned(),
        seq: read_seq(fields)?,
        backward: backward && !fields.boolean("forward_only")?.unwrap_or(false),
        objective: objective(input.required_text("loss_fn")?, &config)?,
        columns: Vec::new(),
        examples: Vec::new(),
    };
    let data = input.list("data")?.map_or(&[][..], Vec::as_slice);
    check_count(data.len())?;
    for (index, datum) in data.iter().enumerate() {
        let wrong = |problem: String| about(index, &problem);
        let ids = datum.get("model_input").and_then(read_input).ok_or_else(|| wrong(NO_TEXT.into()))?;
        let mut inputs = Inputs::default();
        for (name, tensor) in fields_of(datum.get("loss_fn_inputs"), "loss_fn_inputs")? {
            let named = |problem: String| wrong(format!("`{name}` {problem}"));
            match name.as_str() {
                "target_tokens" => {
                    let read = json_tensor(tensor, |value| u32::try_from(value.as_u64()?).ok());
                    inputs.targets = Some(read.map_err(named)?);
                }
                "weights" | "logprobs" | "advantages" => {
                    let read = json_tensor(tensor, |value| value.as_f64().map(|number| number as f32));
                    inputs.others.insert(name.clone(), read.map_err(named)?);
                }
                _ => return Err(wrong(unknown(name))),
            }
        }
        asked.add(index, ids, inputs)?;
    }
    Ok(asked)
}

/// The tokens of an input in JSON, `{"chunks": [{"type": "encoded_text", "tokens": [...]}]}`.
pub(super) fn read_input(input: &Value) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    for chunk in input.get("chunks")?.as_array()? {
        ids.extend(tokens(chunk.get("tokens")?)?);
    }
    Some(ids)
}

const NO_TEXT: &str =
    "its input must be pieces of text as token ids, from 0 on: there are no images and sounds here";

fn unknown(name: &str) -> String {
    format!(
        "there is no `{name}` among the inputs of the losses here: target_tokens, weights, logprobs, advantages"
    )
}

fn about(index: usize, problem: &str) -> ApiError {
    ApiError::field("data", format!("example {index}: {problem}"))
}

fn check_count(count: usize) -> Result<(), ApiError> {
    match count {
        1..=MOST_EXAMPLES => Ok(()),
        _ => Err(ApiError::field(
            "data",
            format!("a request has 1 to {MOST_EXAMPLES} examples, and this one {count}"),
        )),
    }
}

fn fields_of<'v>(
    value: Option<&'v Value>,
    name: &str,
) -> Result<impl Iterator<Item = (&'v String, &'v Value)>, ApiError> {
    match value.filter(|value| !value.is_null()) {
        None => Ok(None.into_iter().flatten()),
        Some(Value::Object(fields)) => Ok(Some(fields.iter()).into_iter().flatten()),
        Some(_) => Err(ApiError::field(name, format!("`{name}` must be an object"))),
    }
}

/// The number of a request among those of its model.
pub(super) fn read_seq(fields: &Fields) -> Result<u64, ApiError> {
    seq(fields.whole("seq_id", 0..=i64::MAX)?.unwrap_or(0))
}

/// The model and the number of a request, as far as they can be read.
pub(super) fn place_of(fields: &Fields) -> Option<(String, u64)> {
    Some((fields.text("model_id").ok()??.to_owned(), read_seq(fields).ok()?))
}

/// The same of the body of a pass.
pub(super) fn place(body: &[u8], is_proto: bool) -> Option<(String, u64)> {
    if !is_proto {
        return place_of(&Fields::parse(body).ok()?);
    }
    let request = ForwardBackwardRequest::decode(body).ok()?;
    Some((request.model_id, seq(i64::from(request.seq_id)).ok()?))
}

fn seq(number: i64) -> Result<u64, ApiError> {
    match u64::try_from(number) {
        Ok(number @ 1..) => Ok(number),
        _ => Err(ApiError::field("seq_id", "`seq_id` must be the request's number, from 1 on")),
    }
}

/// The loss of this name with these settings.
fn objective(name: &str, config: &BTreeMap<String, f64>) -> Result<Objective, ApiError> {
    const CLIPS: [&str; 2] = ["clip_low_threshold", "clip_high_threshold"];
    let known: &[&str] = match name {
        "cross_entropy" | "importance_sampling" => &[],
        "ppo" | "cispo" => &CLIPS,
        "dro" => &["beta"],
        _ => {
            return Err(ApiError::field(
                "loss_fn",
                format!(
                    "there is no loss `{name}` here, but cross_entropy, importance_sampling, ppo, cispo and dro; \
                     others can be computed by the client: forward_backward_custom"
                ),
            ));
        }
    };
    for (key, value) in config {
        if !known.contains(&key.as_str()) {
            let message = format!("the loss {name} has no setting `{key}`; it has {known:?}");
            return Err(ApiError::field("loss_fn_config", message));
        }
        if !(value.is_finite() && *value >= 0.0) {
            let message = format!("`{key}` must be a number of 0 or more, and is {value}");
            return Err(ApiError::field("loss_fn_config", message));
        }
    }
    let setting = |key: &str, usual: f64| config.get(key).copied().unwrap_or(usual);
    let clip = [setting(CLIPS[0], CLIP[0]), setting(CLIPS[1], CLIP[1])];
    if clip[0] > clip[1] {
        let message = format!("{} may not be above {}, and they are {clip:?}", CLIPS[0], CLIPS[1]);
        return Err(ApiError::field("loss_fn_config", message));
    }
    Ok(match name {
        "importance_sampling" => Objective::ImportanceSampling,
        "ppo" => Objective::Ppo { clip },
        "cispo" => Objective::Cispo { clip },
        "dro" => Objective::Dro { beta: setting("beta", BETA) },
        _ => Objective::CrossEntropy,
    })
}

impl Asked {
    /// Adds an example, once for each column of its targets.
    fn add(&mut self, index: usize, ids: Vec<u32>, inputs: Inputs) -> Result<(), ApiError> {
        let Inputs { targets, mut others } = inputs;
        let targets = targets.ok_or_else(|| about(index, "`target_tokens` is missing"))?;
        let count = targets.columns.unwrap_or(1);
        if targets.rows != ids.len() || count == 0 || count > MOST_COLUMNS {
            let shape = shown(targets.rows, targets.columns);
            return Err(about(
                index,
                &format!(
                    "its input has {} tokens and `target_tokens` the shape {shape}; there must be a target for each \
                     token, or up to {MOST_COLUMNS}",
                    ids.len()
                ),
            ));
        }
        let of_policy = self.objective != Objective::CrossEntropy;
        let mut read = |name: &str, is_needed: bool| match others.remove(name) {
            Some(found) if (found.rows, found.columns) == (targets.rows, targets.columns) => {
                Ok(Some(found.values))
            }
            Some(found) => {
                let [own, that] =
                    [(found.rows, found.columns), (targets.rows, targets.columns)].map(|(r, c)| shown(r, c));
                Err(about(index, &format!("`{name}` has the shape {own}, and `target_tokens` {that}")))
            }
            None if is_needed => Err(about(index, &format!("`{name}` is missing, which this loss needs"))),
            None => Ok(None),
        };
        let weights = read("weights", false)?.unwrap_or_else(|| vec![1.0; targets.values.len()]);
        let sampled = read("logprobs", of_policy)?.filter(|_| of_policy).unwrap_or_default();
        let advantages = read("advantages", of_policy)?.filter(|_| of_policy).unwrap_or_default();
        let tokens: usize = self.examples.iter().map(|example| example.ids.len()).sum();
        if tokens + count * ids.len() > MOST_TOKENS {
            return Err(about(index, &format!("a request has {MOST_TOKENS} tokens at most")));
        }
        fn column<T: Copy>(values: &[T], count: usize, which: usize) -> Vec<T> {
            values.iter().skip(which).step_by(count).copied().collect()
        }
        for which in 0..count {
            self.examples.push(Example {
                ids: ids.clone(),
                targets: column(&targets.values, count, which),
                weights: column(&weights, count, which),
                sampled: column(&sampled, count, which),
                advantages: column(&advantages, count, which),
            });
        }
        self.columns.push(targets.columns);
        Ok(())
    }
}

fn shown(rows: usize, columns: Option<usize>) -> String {
    columns.map_or_else(|| format!("[{rows}]"), |columns| format!("[{rows}, {columns}]"))
}

/// A tensor's shape, if it is a list or a matrix of so many numbers.
fn shape_of(shape: &[i64], count: usize) -> Result<(usize, Option<usize>), String> {
    let sizes: Option<Vec<usize>> = shape.iter().map(|&size| usize::try_from(size).ok()).collect();
    let found = match sizes.as_deref() {
        Some([]) => Some((count, None)),
        Some(&[rows]) => Some((rows, None)),
        Some(&[rows, columns]) => Some((rows, Some(columns))),
        _ => None,
    };
    let fits =
        |(rows, columns): &(usize, Option<usize>)| rows.checked_mul(columns.unwrap_or(1)) == Some(count);
    found.filter(fits).ok_or_else(|| format!("has {count} numbers, and says its shape is {shape:?}"))
}

/// A matrix out of its entries; the others are what is `nothing`.
fn dense<T: Copy>(
    values: Vec<T>,
    rows_begin: &[i64],
    columns_of: &[i64],
    shape: &[i64],
    nothing: T,
) -> Result<Numbers<T>, String> {
    let wrong = || format!("is no sparse matrix of the shape {shape:?}");
    let &[rows, columns] = shape else { return Err(wrong()) };
    let (rows, columns) =
        (usize::try_from(rows).map_err(|_| wrong())?, usize::try_from(columns).map_err(|_| wrong())?);
    // A few bytes may stand for many zeros: what a request may have in all, it may have here.
    let size = rows.checked_mul(columns).filter(|&size| size <= MOST_TOKENS).ok_or_else(wrong)?;
    if rows_begin.len() != rows + 1 || columns_of.len() != values.len() || columns > MOST_COLUMNS {
        return Err(wrong());
    }
    let mut all = vec![nothing; size];
    for (row, ends) in rows_begin.windows(2).enumerate() {
        let range = usize::try_from(ends[0]).ok().zip(usize::try_from(ends[1]).ok());
        let (begin, end) =
            range.filter(|(begin, end)| begin <= end && *end <= values.len()).ok_or_else(wrong)?;
        for entry in begin..end {
            let column = usize::try_from(columns_of[entry]).ok().filter(|&column| column < columns);
            all[row * columns + column.ok_or_else(wrong)?] = values[entry];
        }
    }
    Ok(Numbers { rows, columns: Some(columns), values: all })
}

/// The numbers of a tensor whose bytes are read by its type.
fn read_tensor<T: Copy>(
    tensor: proto::Tensor,
    nothing: T,
    read: impl Fn(&[u8], DType) -> Option<Vec<T>>,
) -> Result<Numbers<T>, String> {
    let dtype = tensor.dtype();
    let numbers_of = |bytes: &[u8]| {
        read(bytes, dtype)
            .ok_or_else(|| format!("has a type that is not read here, or bytes that are no {dtype:?}"))
    };
    let Some(sparse) = tensor.sparse_csr else {
        let values = numbers_of(&tensor.dense.unwrap_or_default())?;
        let (rows, columns) = shape_of(&tensor.shape, values.len())?;
        return Ok(Numbers { rows, columns, values });
    };
    let indices =
        |bytes: &[u8]| numbers(bytes, i64::from_le_bytes).ok_or("has indices that are not 8 bytes each");
    let (rows, columns) = (indices(&sparse.crow_indices)?, indices(&sparse.col_indices)?);
    dense(numbers_of(&sparse.values)?, &rows, &columns, &tensor.shape, nothing)
}

fn ints_of(tensor: proto::Tensor) -> Result<Numbers<i64>, String> {
    read_tensor(tensor, 0, |bytes, dtype| match dtype {
        DType::Int64 => numbers(bytes, i64::from_le_bytes),
        DType::Int32 => numbers(bytes, |four| i64::from(i32::from_le_bytes(four))),
        _ => None,
    })
}

fn floats_of(tensor: proto::Tensor) -> Result<Numbers<f32>, String> {
    read_tensor(tensor, 0.0, |bytes, dtype| match dtype {
        DType::Float32 => numbers(bytes, f32::from_le_bytes),
        DType::Bfloat16 => numbers(bytes, |two| f32::from_bits(u32::from(u16::from_le_bytes(two)) << 16)),
        DType::Int64 => numbers(bytes, |eight| i64::from_le_bytes(eight) as f32),
        _ => None,
    })
}

fn tokens_of(ints: Numbers<i64>) -> Result<Numbers<u32>, String> {
    let Numbers { rows, columns, values } = ints;
    let token = |&value: &i64| u32::try_from(value).map_err(|_| format!("has {value}, which is no token"));
    let values = values.iter().map(token).collect::<Result<_, _>>()?;
    Ok(Numbers { rows, columns, values })
}

/// A tensor in JSON, `{"data": [...], "shape": [...]}`, perhaps sparse.
fn json_tensor<T: Copy + Default>(
    tensor: &Value,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Numbers<T>, String> {
    let list = |name: &str| tensor.get(name).filter(|value| !value.is_null()).map(Value::as_array);
    let wholes = |name: &str| match list(name) {
        None => Ok(None),
        Some(list) => list
            .and_then(|list| list.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>())
            .map(Some)
            .ok_or_else(|| format!("has a `{name}` that is no list of whole numbers")),
    };
    let values = list("data").flatten().and_then(|list| list.iter().map(read).collect::<Option<Vec<T>>>());
    let values = values.ok_or("has no `data` that is a list of fitting numbers")?;
    let shape = wholes("shape")?.unwrap_or_default();
    match (wholes("sparse_crow_indices")?, wholes("sparse_col_indices")?) {
        (Some(rows), Some(columns)) => dense(values, &rows, &columns, &shape, T::default()),
        _ => {
            let (rows, columns) = shape_of(&shape, values.len())?;
            Ok(Numbers { rows, columns, values })
        }
    }
}
