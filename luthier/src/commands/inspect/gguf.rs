//! What a GGUF file says of the model or the adapter in it, and how its tensors are stored.

use std::collections::BTreeMap;
use std::path::Path;

use model::gguf::{Gguf, GgufValue, TensorType};
use serde_json::{Map, Value, json};

use super::object;
use crate::terminal;

pub(super) fn of_file(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let file = Gguf::open(path)?;
    let kind = file.text("general.type").unwrap_or("model");
    let is_adapter = kind == "adapter";
    let mut facts = object(json!({
        "kind": kind,
        "form": "GGUF",
        "family": file.text("general.architecture"),
        "name": file.text("general.name"),
    }));
    let parts = file.integer("split.count").filter(|&count| count > 1);
    if let Some(count) = parts {
        let number = file.integer("split.no").unwrap_or(0).saturating_add(1);
        facts
            .insert("part".into(), json!(format!("{number} of {count}: what follows is of this file alone")));
    }
    facts.extend(tensors(&file));
    facts.extend(if is_adapter { of_adapter(&file) } else { of_model(&file) });
    Ok(facts)
}

/// How many values there are, and in which types.
fn tensors(file: &Gguf) -> Map<String, Value> {
    let mut kinds: BTreeMap<TensorType, (u64, u64)> = BTreeMap::new();
    let (mut elements, mut bytes) = (0.0, 0.0);
    for tensor in file.tensors().values() {
        let (count, size) = kinds.entry(tensor.kind).or_default();
        *count += 1;
        *size += tensor.size_bytes;
        elements += tensor.elements() as f64;
        bytes += tensor.size_bytes as f64;
    }
    let words = |(kind, (count, size)): (TensorType, (u64, u64))| {
        let s = if count == 1 { "" } else { "s" };
        (kind.name().to_owned(), json!(format!("{count} tensor{s}, {}", terminal::bytes(size))))
    };
    object(json!({
        "parameters": elements as u64,
        "weights": kinds.into_iter().map(words).collect::<Map<_, _>>(),
        "bits_per_parameter": (elements > 0.0).then(|| (8e3 * bytes / elements).round() / 1e3),
    }))
}

fn of_model(file: &Gguf) -> Map<String, Value> {
    let key = |name: &str| format!("{}.{name}", file.text("general.architecture").unwrap_or_default());
    let size = |name: &str| file.metadata().get(&key(name)).map(number);
    let experts = file.integer(&key("expert_count")).filter(|&count| count > 0);
    let mut facts = object(json!({
        "layers": size("block_count"),
        "hidden_size": size("embedding_length"),
        "intermediate_size": size("feed_forward_length"),
        "attention_heads": size("attention.head_count"),
        "key_value_heads": size("attention.head_count_kv"),
        "head_dim": size("attention.key_length"),
        "context": size("context_length"),
        "sliding_window": size("attention.sliding_window"),
        "rope_theta": size("rope.freq_base"),
        "rope_scaling": file.text(&key("rope.scaling.type")),
    }));
    // Of a model in parts the head may be in another one.
    let has = |name: &str| file.tensors().contains_key(name);
    if has("token_embd.weight") && file.integer("split.count").is_none_or(|count| count < 2) {
        facts.insert("tied_head".into(), json!(!has("output.weight")));
    }
    if experts.is_some() {
        let of_experts = json!({
            "count": size("expert_count"),
            "for_each_token": size("expert_used_count"),
            "intermediate_size": size("expert_feed_forward_length"),
        });
        facts.insert("experts".into(), of_experts);
    }
    facts.retain(|_, value| !value.is_null());
    facts.insert("tokenizer".into(), tokenizer(file));
    facts
}

fn tokenizer(file: &Gguf) -> Value {
    let Some(kind) = file.text("tokenizer.ggml.model") else { return Value::Null };
    let tokens = match file.metadata().get("tokenizer.ggml.tokens") {
        Some(GgufValue::Texts(tokens)) => &tokens[..],
        _ => &[],
    };
    let token = |key: &str| {
        let id = file.integer(&format!("tokenizer.ggml.{key}_token_id"))?;
        tokens.get(usize::try_from(id).ok()?)
    };
    let template = file.text("tokenizer.chat_template").map_or("none", |_| "yes");
    json!({
        "type": kind,
        "splits_text_as": file.text("tokenizer.ggml.pre"),
        "vocabulary": tokens.len(),
        "begin_of_text": token("bos"),
        "end_of_text": token("eos"),
        "end_of_turn": token("eot"),
        "padding": token("padding"),
        "chat_template": template,
    })
}

fn of_adapter(file: &Gguf) -> Map<String, Value> {
    let ranks = file.tensors().iter().filter(|(name, _)| name.ends_with(".lora_b"));
    let mut ranks: Vec<u64> = ranks.filter_map(|(_, tensor)| tensor.dimensions.first().copied()).collect();
    let updates = ranks.len();
    ranks.sort_unstable();
    ranks.dedup();
    object(json!({
        "type": file.text("adapter.type"),
        "r": if let [rank] = ranks[..] { json!(rank) } else { json!(ranks) },
        "alpha": file.number("adapter.lora.alpha").map(as_written),
        "updates": updates,
    }))
}

/// More numbers than these are told by the least and the largest.
const NUMBERS: usize = 128;

/// A number, or one for each layer.
fn number(value: &GgufValue) -> Value {
    match value {
        GgufValue::Integer(number) => i64::try_from(*number).map_or(Value::Null, Value::from),
        GgufValue::Float(number) => json!(as_written(*number)),
        GgufValue::Integers(numbers) => match (numbers.first(), numbers.iter().min(), numbers.iter().max()) {
            (Some(only), least, largest) if least == largest => json!(only),
            (_, Some(least), Some(largest)) if numbers.len() > NUMBERS => {
                json!(format!("{} numbers from {least} to {largest}", numbers.len()))
            }
            _ => json!(numbers),
        },
        _ => Value::Null,
    }
}

/// A number that a file has in 32 bits, with the digits that were meant.
fn as_written(number: f64) -> f64 {
    let short = number as f32;
    if f64::from(short) == number { short.to_string().parse().unwrap_or(number) } else { number }
}
