//! What the `config.json` of a Hugging Face folder would say of the model in a GGUF file, so that the one
//! reader of configurations reads both.
//!
//! Metadata gives sizes and constants (`gguf-py/gguf/constants.py`); what llama.cpp fixes by architecture
//! (`src/models/*.cpp`), and what only the tensors tell, is added here. A key of the architecture that is not
//! known could change the arithmetic, and is refused by name.

use std::cell::RefCell;
use std::collections::BTreeSet;

use compute::ops::rope::RopeScaling;
use serde_json::{Map, Value, json};

use super::names::ROPE_FACTORS;
use super::{Gguf, GgufValue, TensorType};
use crate::config::{Config, Family};
use crate::error::{ModelError, Result, quoted, shown};

/// What llama.cpp calls an architecture, and what it stands for here.
struct Architecture {
    name: &'static str,
    family: Family,
    /// Of layers with a window, which each `n`-th has none, where the file does not say; 0: every layer has
    /// one, but none where the file gives no size.
    full_every: usize,
    /// The window of a file that gives none.
    window: Option<usize>,
    /// Whether the file has a norm with a bias, whose epsilon stands under another key.
    layer_norm: bool,
    /// Fields of config.json that say whether there are biases, and the tensors that tell.
    biases: &'static [(&'static str, &'static str)],
}

const ATTENTION_BIAS: (&str, &str) = ("attention_bias", "blk.0.attn_q.bias");

const LLAMA: Architecture = Architecture {
    name: "llama",
    family: Family::Llama,
    full_every: 0,
    window: None,
    layer_norm: false,
    biases: &[ATTENTION_BIAS, ("mlp_bias", "blk.0.ffn_up.bias")],
};

const ARCHITECTURES: [Architecture; 17] = [
    LLAMA,
    Architecture { name: "mistral3", family: Family::Ministral3, biases: &[], ..LLAMA },
    Architecture { name: "qwen2", family: Family::Qwen2, biases: &[], ..LLAMA },
    Architecture { name: "qwen3", family: Family::Qwen3, biases: &[ATTENTION_BIAS], ..LLAMA },
    Architecture { name: "qwen3moe", family: Family::Qwen3Moe, biases: &[ATTENTION_BIAS], ..LLAMA },
    Architecture {
        name: "gemma2",
        family: Family::Gemma2,
        full_every: 2,
        window: Some(4096),
        biases: &[ATTENTION_BIAS],
        ..LLAMA
    },
    Architecture {
        name: "gemma3",
        family: Family::Gemma3,
        full_every: 6,
        biases: &[ATTENTION_BIAS],
        ..LLAMA
    },
    Architecture { name: "phi3", family: Family::Phi3, biases: &[], ..LLAMA },
    Architecture { name: "gpt2", family: Family::Gpt2, layer_norm: true, biases: &[], ..LLAMA },
    Architecture { name: "smollm3", family: Family::SmolLm3, ..LLAMA },
    Architecture { name: "granite", family: Family::Granite, ..LLAMA },
    Architecture { name: "olmo2", family: Family::Olmo2, full_every: 4, biases: &[ATTENTION_BIAS], ..LLAMA },
    Architecture { name: "glm4", family: Family::Glm4, biases: &[ATTENTION_BIAS], ..LLAMA },
    Architecture {
        name: "gptneox",
        family: Family::GptNeoX,
        layer_norm: true,
        biases: &[("attention_bias", "blk.0.attn_qkv.bias")],
        ..LLAMA
    },
    Architecture {
        name: "starcoder2",
        family: Family::Starcoder2,
        layer_norm: true,
        biases: &[("use_bias", "blk.0.attn_q.bias")],
        ..LLAMA
    },
    Architecture { name: "hunyuan-dense", family: Family::Hunyuan, biases: &[ATTENTION_BIAS], ..LLAMA },
    Architecture {
        name: "ernie4_5",
        family: Family::Ernie45,
        biases: &[("use_bias", "blk.0.attn_q.bias")],
        ..LLAMA
    },
];

/// Keys without a say in what is computed.
const SILENT: [&str; 3] = ["vocab_size", "tensor_data_layout", "rope.scaling.finetuned"];

/// Keys that must have this value, where they stand at all: with another one the arithmetic is another.
const FIXED: [(&str, f64); 12] = [
    ("attention.causal", 1.0),
    ("expert_gating_func", 1.0),
    ("expert_group_count", 0.0),
    ("expert_group_used_count", 0.0),
    ("expert_shared_count", 0.0),
    ("expert_shared_feed_forward_length", 0.0),
    ("expert_weights_norm", 1.0),
    ("leading_dense_block_count", 0.0),
    ("nextn_predict_layers", 0.0),
    ("pooling_type", 0.0),
    ("rope.scaling.alpha", 0.0),
    ("rope.scaling.yarn_ext_factor", 1.0),
];

/// The parameters by which Meta scaled all its models since Llama 3.1, but for the factor itself.
const LLAMA3: (f64, f64, usize) = (1.0, 4.0, 8192);

impl Gguf {
    /// The configuration of the model in the file.
    ///
    /// # Errors
    /// If the file holds no whole model, its architecture or a key of it is not known here, or what it says
    /// contradicts itself.
    pub fn config(&self) -> Result<Config> {
        Config::from_map(self.config_json()?, self.path())
    }

    /// The object that the `config.json` of an equal model in a Hugging Face folder holds.
    ///
    /// # Errors
    /// As [`Gguf::config`], but that sizes are not looked at yet.
    pub fn config_json(&self) -> Result<Map<String, Value>> {
        if let Some(kind) = self.text("general.type").filter(|kind| *kind != "model") {
            let problem = format!("holds no model, but what it calls {:?}", shown(kind));
            return Err(ModelError::file(self.path(), problem));
        }
        if let Some(count) = self.integer("split.count").filter(|&count| count > 1) {
            let problem = format!(
                "is a part of a model in {count} files; make one of them by `llama-gguf-split --merge`"
            );
            return Err(ModelError::file(self.path(), problem));
        }
        let key = "general.architecture";
        let named = self.text(key).ok_or_else(|| self.field(key, "is missing, or is no text"))?;
        let known = || quoted(ARCHITECTURES.iter().map(|architecture| architecture.name));
        let architecture = ARCHITECTURES.iter().find(|architecture| architecture.name == named);
        let architecture = architecture.ok_or_else(|| {
            self.field(
                key,
                format!("is {:?}, which is not supported; supported are {}", shown(named), known()),
            )
        })?;
        let keys = Keys { file: self, prefix: architecture.name, read: RefCell::default() };
        let json = read(&keys, architecture)?;
        keys.refuse_unread()?;
        Ok(json)
    }

    fn field(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::field(self.path(), key, problem)
    }

    fn has(&self, tensor: &str) -> bool {
        self.tensors().contains_key(tensor)
    }
}

/// The keys of an architecture, which remember what was asked for.
struct Keys<'a> {
    file: &'a Gguf,
    prefix: &'static str,
    read: RefCell<BTreeSet<String>>,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn get(&self, name: &str) -> Option<&GgufValue> {
        let key = self.key(name);
        let value = self.file.metadata().get(&key);
        self.read.borrow_mut().insert(key);
        value
    }

    fn error(&self, name: &str, problem: impl Into<String>) -> ModelError {
        self.file.field(&self.key(name), problem)
    }

    /// A whole number, or a list of it for every layer.
    fn size(&self, name: &str) -> Result<Option<u64>> {
        let wrong = || self.error(name, "is no whole number from 0 on");
        let size = |number: i128| u64::try_from(number).map_err(|_| wrong());
        match self.get(name) {
            None => Ok(None),
            Some(GgufValue::Integer(number)) => size(*number).map(Some),
            Some(GgufValue::Integers(list)) => match list.split_first() {
                Some((first, rest)) if rest.iter().all(|other| other == first) => {
                    size((*first).into()).map(Some)
                }
                Some(_) => Err(self.error(name, "differs from layer to layer, which is not supported")),
                None => Err(wrong()),
            },
            Some(_) => Err(wrong()),
        }
    }

    fn required(&self, name: &str) -> Result<u64> {
        self.size(name)?.ok_or_else(|| self.error(name, "is missing; convert the model once more"))
    }

    /// A number, with the digits that were meant where the file has it in 32 bits.
    fn number(&self, name: &str) -> Result<Option<f64>> {
        match self.get(name) {
            None => Ok(None),
            Some(GgufValue::Float(number)) if number.is_finite() => Ok(Some(as_written(*number))),
            Some(GgufValue::Integer(number)) => Ok(Some(*number as f64)),
            Some(_) => Err(self.error(name, "is no number")),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(GgufValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(name, "is no text")),
        }
    }

    fn refuse_unread(&self) -> Result<()> {
        let read = self.read.borrow();
        for (key, value) in self.file.metadata() {
            let Some(name) = key.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            if read.contains(key) || SILENT.contains(&name) {
                continue;
            }
            let number = match value {
                GgufValue::Integer(number) => Some(*number as f64),
                GgufValue::Float(number) => Some(*number),
                GgufValue::Bool(flag) => Some(f64::from(u8::from(*flag))),
                _ => None,
            };
            match FIXED.iter().find(|(fixed, _)| *fixed == name) {
                Some((_, fixed)) if number == Some(*fixed) => {}
                Some((_, fixed)) => {
                    let problem = format!("is not {fixed}: models with this feature are not supported");
                    return Err(self.file.field(key, problem));
                }
                None => {
                    let problem = "is not known here, and could change what the model computes";
                    return Err(self.file.field(key, problem));
                }
            }
        }
        Ok(())
    }
}

/// A number of 32 bits, with the digits that were meant.
fn as_written(number: f64) -> f64 {
    let short = number as f32;
    if f64::from(short) == number { short.to_string().parse().unwrap_or(number) } else { number }
}

/// The object, field by field.
struct Fields {
    family: Family,
    map: Map<String, Value>,
}

impl Fields {
    /// Sets a field, by our word for it.
    fn set(&mut self, field: &'static str, value: impl Into<Value>) {
        self.map.insert(self.family.field(field).to_owned(), value.into());
    }

    fn set_if(&mut self, field: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(field, value);
        }
    }
}

fn read(keys: &Keys<'_>, architecture: &Architecture) -> Result<Map<String, Value>> {
    let file = keys.file;
    let layers = keys.required("block_count")?;
    let windows = windows(keys, architecture, layers)?;
    let experts = keys.size("expert_count")?.filter(|&count| count > 0);
    let family = match (architecture.family, &windows, experts) {
        (Family::Llama, _, Some(_)) => Family::Mixtral,
        (Family::Llama, Some(_), None) => Family::Mistral,
        (Family::Olmo2, Some(_), _) => Family::Olmo3,
        (family, _, _) => family,
    };
    let mut fields = Fields { family, map: Map::new() };
    fields.set("model_type", family.model_type());
    fields.set("architectures", json!([family.architecture()]));
    fields.set("vocab_size", embedded_tokens(file)?);
    let (width, heads) = (keys.required("embedding_length")?, keys.required("attention.head_count")?);
    fields.set("hidden_size", width);
    fields.set("intermediate_size", keys.required("feed_forward_length")?);
    fields.set("num_hidden_layers", layers);
    fields.set("num_attention_heads", heads);
    fields.set("num_key_value_heads", keys.size("attention.head_count_kv")?.unwrap_or(heads));
    let head = head_size(keys, width, heads)?;
    fields.set("head_dim", head);
    let context = keys.required("context_length")?;
    fields.set("max_position_embeddings", context);
    let kind = if architecture.layer_norm { "" } else { "rms_" };
    let epsilon = format!("attention.layer_norm_{kind}epsilon");
    let missing = || keys.error(&epsilon, "is missing; convert the model once more");
    fields.set(family.norm_eps_field(), keys.number(&epsilon)?.ok_or_else(missing)?);
    for &(field, tensor) in architecture.biases {
        // A family may lack the field: Mistral has no biases.
        if file.has(tensor) || !matches!(family, Family::Mistral | Family::Mixtral) {
            fields.set(field, file.has(tensor));
        }
    }
    set_windows(keys, &mut fields, windows)?;
    set_experts(keys, &mut fields, experts)?;
    set_scales(keys, &mut fields, (width, heads, head, layers))?;
    set_rope(keys, &mut fields, head, context)?;
    if family == Family::GptNeoX {
        let parallel = match keys.get("use_parallel_residual") {
            Some(GgufValue::Bool(parallel)) => *parallel,
            _ => return Err(keys.error("use_parallel_residual", "is missing, or is neither true nor false")),
        };
        fields.set("use_parallel_residual", parallel);
    }
    fields.set("tie_word_embeddings", !file.has("output.weight"));
    set_tokens(file, &mut fields);
    fields.set_if("dtype", stored_type(file));
    Ok(fields.map)
}

/// Rows of the embedding: a file may name fewer tokens.
fn embedded_tokens(file: &Gguf) -> Result<u64> {
    let name = "token_embd.weight";
    match file.tensors().get(name).map(|tensor| &tensor.dimensions[..]) {
        Some(&[_, tokens]) => Ok(tokens),
        Some(other) => {
            let problem = format!("has the dimensions {other:?}; expected the model's width and its tokens");
            Err(ModelError::tensor(file.path(), name, problem))
        }
        None => Err(ModelError::tensor(file.path(), name, "is missing: this file holds no whole model")),
    }
}

fn head_size(keys: &Keys<'_>, width: u64, heads: u64) -> Result<u64> {
    let divided = width.checked_div(heads).filter(|_| width.is_multiple_of(heads));
    let size = match (keys.size("attention.key_length")?, divided) {
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => {
            let problem = format!("is {heads}, which does not divide the width {width}");
            return Err(keys.error("attention.head_count", problem));
        }
    };
    for other in ["attention.value_length", "attention.key_length_swa", "attention.value_length_swa"] {
        if keys.size(other)?.is_some_and(|other| other != size) {
            let problem = format!("is not {size}, the size of a key's head, which is not supported");
            return Err(keys.error(other, problem));
        }
    }
    Ok(size)
}

/// The window, and which layers have it.
fn windows(keys: &Keys<'_>, of: &Architecture, layers: u64) -> Result<Option<(u64, Vec<bool>)>> {
    let name = "attention.sliding_window_pattern";
    let pattern = keys.get(name);
    let window = keys.size("attention.sliding_window")?.or(of.window.map(|window| window as u64));
    let Some(window) = window.filter(|&window| window > 0) else { return Ok(None) };
    if let Some(GgufValue::Bools(slides)) = pattern {
        if slides.len() as u64 != layers {
            return Err(keys.error(name, format!("has {} entries for {layers} layers", slides.len())));
        }
        return Ok(Some((window, slides.clone())));
    }
    let every = match pattern {
        None => of.full_every as u64,
        Some(GgufValue::Integer(every)) if (0..=i128::from(u32::MAX)).contains(every) => *every as u64,
        Some(_) => {
            let problem = "is neither a number of layers nor a list of true and false for each";
            return Err(keys.error(name, problem));
        }
    };
    // As `set_swa_pattern`; the layers are counted from 0 there.
    let slides = (0..bounded(layers)).map(|layer| every == 0 || layer % every + 1 < every);
    Ok(Some((window, slides.collect())))
}

/// No list is made longer than any model has layers: the reader of the configuration says what is wrong.
fn bounded(layers: u64) -> u64 {
    layers.min(1 << 16)
}

fn set_windows(keys: &Keys<'_>, fields: &mut Fields, windows: Option<(u64, Vec<bool>)>) -> Result<()> {
    let Some((window, slides)) = windows else {
        if fields.family.has_windows() {
            fields.set("sliding_window", Value::Null);
        }
        return Ok(());
    };
    if !fields.family.has_windows() {
        let problem = format!("is {window}: a {} model has no windows", fields.family.model_type());
        return Err(keys.error("attention.sliding_window", problem));
    }
    fields.set("sliding_window", window);
    if matches!(fields.family, Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe | Family::SmolLm3) {
        fields.set("use_sliding_window", true);
    }
    let kind = |&slides: &bool| if slides { "sliding_attention" } else { "full_attention" };
    if fields.family != Family::Qwen3Moe {
        fields.set("layer_types", slides.iter().map(kind).collect::<Vec<_>>());
    }
    Ok(())
}

fn set_experts(keys: &Keys<'_>, fields: &mut Fields, count: Option<u64>) -> Result<()> {
    let used = keys.size("expert_used_count")?;
    let inner = keys.size("expert_feed_forward_length")?;
    if let Some(scale) = keys.number("expert_weights_scale")?.filter(|&scale| scale != 0.0 && scale != 1.0) {
        let problem = format!("is {scale}: experts with a weight beyond their share are not supported");
        return Err(keys.error("expert_weights_scale", problem));
    }
    let missing = |name: &str| keys.error(name, "is missing; convert the model once more");
    match (fields.family, count) {
        (Family::Mixtral, Some(count)) => {
            fields.set("num_local_experts", count);
            fields.set_if("intermediate_size", inner);
            fields.set("num_experts_per_tok", used.ok_or_else(|| missing("expert_used_count"))?);
        }
        (Family::Qwen3Moe, Some(count)) => {
            fields.set("num_experts", count);
            fields.set("moe_intermediate_size", inner.ok_or_else(|| missing("expert_feed_forward_length"))?);
            fields.set("num_experts_per_tok", used.ok_or_else(|| missing("expert_used_count"))?);
            // llama.cpp always makes the weights of a token's experts sum to one.
            fields.set("norm_topk_prob", true);
        }
        (Family::Qwen3Moe, None) => return Err(missing("expert_count")),
        (_, None) => {}
        (_, Some(count)) => {
            let family = fields.family.model_type();
            return Err(keys.error("expert_count", format!("is {count}: a {family} model has no experts")));
        }
    }
    Ok(())
}

/// Numbers that scale or cap what passes, which llama.cpp partly fixes by the size of the model.
fn set_scales(
    keys: &Keys<'_>,
    fields: &mut Fields,
    (width, heads, head, layers): (u64, u64, u64, u64),
) -> Result<()> {
    let final_cap = "final_logit_softcapping";
    match fields.family {
        Family::Gemma2 | Family::Gemma3 => {
            // The largest of both is the only one whose scores are scaled by something else.
            let largest = if fields.family == Family::Gemma2 { 46 } else { 62 };
            let scalar = if layers == largest { width / heads.max(1) } else { head };
            fields.set("query_pre_attn_scalar", scalar);
            let is_on = |cap: &f64| *cap != 0.0;
            if fields.family == Family::Gemma2 {
                fields.set_if("attn_logit_softcapping", keys.number("attn_logit_softcapping")?);
                fields.set_if(final_cap, keys.number(final_cap)?);
            } else {
                fields.set_if(final_cap, keys.number(final_cap)?.filter(is_on));
            }
        }
        Family::Granite => {
            let usual = || (head as f64).powf(-0.5);
            let scale = keys.number("attention.scale")?.filter(|&scale| scale != 0.0);
            fields.set("attention_multiplier", scale.unwrap_or_else(usual));
            let missing = || keys.error("logit_scale", "is missing; convert the model once more");
            fields.set("logits_scaling", keys.number("logit_scale")?.ok_or_else(missing)?);
            for (field, key) in
                [("embedding_multiplier", "embedding_scale"), ("residual_multiplier", "residual_scale")]
            {
                fields.set_if(field, keys.number(key)?.filter(|&scale| scale != 0.0));
            }
            if keys.get("rope.scaling.finetuned") == Some(&GgufValue::Bool(false)) {
                let problem = "is false, by which no position is turned, and that is not supported";
                return Err(keys.error("rope.scaling.finetuned", problem));
            }
        }
        _ => {}
    }
    Ok(())
}

fn set_rope(keys: &Keys<'_>, fields: &mut Fields, head: u64, context: u64) -> Result<()> {
    if fields.family == Family::Gpt2 {
        return Ok(());
    }
    let turned = keys.size("rope.dimension_count")?.unwrap_or(head);
    if turned > head || keys.size("rope.dimension_count_swa")?.is_some_and(|other| other != turned) {
        let problem =
            format!("is {turned}; heads have {head} dimensions, of which as many turn in each layer");
        return Err(keys.error("rope.dimension_count", problem));
    }
    if turned != head || matches!(fields.family, Family::Glm4 | Family::GptNeoX) {
        fields.set("partial_rotary_factor", part(turned, head));
    }
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let local = keys.number("rope.freq_base_swa")?;
    let scaling = scaling(keys, fields.family, (turned / 2, theta), context)?;
    fields.set("rope_theta", theta);
    match fields.family {
        Family::Gemma3 => {
            fields.set("rope_local_base_freq", local.unwrap_or(10_000.0));
            fields.set_if("rope_scaling", scaling);
        }
        // Layers with a window have no scaling.
        Family::Olmo3 => {
            let mut full = scaling.unwrap_or_else(|| json!({"rope_type": "default"}));
            full["rope_theta"] = theta.into();
            let sliding = json!({"rope_type": "default", "rope_theta": local.unwrap_or(theta)});
            let kinds = json!({"full_attention": full, "sliding_attention": sliding});
            fields.set("rope_parameters", kinds);
        }
        Family::Ministral3 => {
            let mut parameters = scaling.unwrap_or_else(|| json!({"rope_type": "default"}));
            parameters["rope_theta"] = theta.into();
            let growth = keys.number("attention.temperature_scale")?.filter(|&beta| beta != 0.0);
            if let Some(beta) = growth {
                parameters["llama_4_scaling_beta"] = beta.into();
                parameters["original_max_position_embeddings"] = original(keys, context)?.into();
            }
            fields.set("rope_parameters", parameters);
        }
        _ => fields.set_if("rope_scaling", scaling),
    }
    if local.is_some_and(|local| local != theta) && !matches!(fields.family, Family::Gemma3 | Family::Olmo3) {
        let problem = "differs from rope.freq_base, which is not supported for this architecture";
        return Err(keys.error("rope.freq_base_swa", problem));
    }
    Ok(())
}

/// The part of a head that turns, so that multiplying by the head and cutting gives the dimensions again.
fn part(turned: u64, head: u64) -> f64 {
    let part = turned as f64 / head as f64;
    if ((head as f64 * part) as u64) < turned { part.next_up() } else { part }
}

/// The context of the training before any scaling.
fn original(keys: &Keys<'_>, context: u64) -> Result<u64> {
    Ok(keys.size("rope.scaling.original_context_length")?.unwrap_or(context))
}

/// The object of `rope_scaling`, of an embedding that turns so many pairs with this base.
fn scaling(
    keys: &Keys<'_>,
    family: Family,
    (pairs, theta): (u64, f64),
    context: u64,
) -> Result<Option<Value>> {
    let factor = keys.number("rope.scaling.factor")?.or(keys.number("rope.scale_linear")?);
    let factor = factor.filter(|&factor| factor != 0.0);
    let attention = keys.number("rope.scaling.attn_factor")?;
    let original = original(keys, context)?;
    let kind = keys.text("rope.scaling.type")?;
    let factors = |name| rope_factors(keys.file, name, pairs);
    let scaling = match kind.unwrap_or("linear") {
        "longrope" => {
            let [_, long, short] = ROPE_FACTORS;
            let both = factors(long)?.zip(factors(short)?);
            let Some((long, short)) = both else {
                let problem = "is \"longrope\", but the tensors `rope_factors_long.weight` and \
                               `rope_factors_short.weight` are missing";
                return Err(keys.error("rope.scaling.type", problem));
            };
            Some(json!({
                "rope_type": "longrope",
                "long_factor": long,
                "short_factor": short,
                "factor": context as f64 / original as f64,
                "original_max_position_embeddings": original,
                "attention_factor": attention.unwrap_or(1.0),
            }))
        }
        "yarn" => Some(yarn(keys, family, factor, attention, original)?),
        "none" => None,
        "linear" => factor
            .filter(|&factor| factor != 1.0)
            .map(|factor| json!({"rope_type": "linear", "factor": factor})),
        other => {
            let problem = format!(
                "is {:?}, which is not supported; supported are `none`, `linear`, `yarn` and `longrope`",
                shown(other)
            );
            return Err(keys.error("rope.scaling.type", problem));
        }
    };
    match (factors(ROPE_FACTORS[0])?, &scaling) {
        (None, _) => Ok(scaling),
        (Some(divisors), None) => Ok(divided(&divisors, theta)),
        (Some(_), Some(_)) => {
            let problem = "stands beside another scaling of the rotary embedding, which is not supported";
            Err(ModelError::tensor(keys.file.path(), ROPE_FACTORS[0], problem))
        }
    }
}

fn yarn(
    keys: &Keys<'_>,
    family: Family,
    factor: Option<f64>,
    attention: Option<f64>,
    original: u64,
) -> Result<Value> {
    let missing = || keys.error("rope.scaling.factor", "is missing, and the scaling is YaRN");
    let factor = factor.ok_or_else(missing)?;
    let mut scaling = json!({
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    });
    for (field, key) in
        [("beta_fast", "rope.scaling.yarn_beta_fast"), ("beta_slow", "rope.scaling.yarn_beta_slow")]
    {
        if let Some(beta) = keys.number(key)? {
            scaling[field] = beta.into();
        }
    }
    // What transformers calls the attention's factor, as llama.cpp's converter has it; llama.cpp itself reads
    // the other key, by which it multiplies its own factor.
    let named = keys.number("rope.scaling.yarn_attn_factor")?;
    let own = 1.0 + 0.1 * factor.max(1.0).ln();
    if let Some(attention) = attention.filter(|&by| by != 1.0).map(|by| by * own).or(named) {
        scaling["attention_factor"] = attention.into();
    }
    if family == Family::Ministral3
        && let Some(all) = keys.number("rope.scaling.yarn_log_multiplier")?.filter(|&all| all != 0.0)
    {
        scaling["mscale"] = 1.0.into();
        scaling["mscale_all_dim"] = all.into();
    }
    Ok(scaling)
}

/// A tensor of factors, one for each pair.
fn rope_factors(file: &Gguf, name: &str, pairs: u64) -> Result<Option<Vec<f64>>> {
    let Some(tensor) = file.tensors().get(name) else { return Ok(None) };
    if tensor.dimensions != [pairs] || tensor.kind != TensorType::F32 {
        let problem = format!("is not {pairs} numbers in F32, one for each pair that turns");
        return Err(ModelError::tensor(file.path(), name, problem));
    }
    let values: Vec<f64> =
        file.read_f32(name)?.into_iter().map(|bits| as_written(f32::from_bits(bits).into())).collect();
    match values.iter().all(|factor| (1e-9..=1e9).contains(factor)) {
        true => Ok(Some(values)),
        false => Err(ModelError::tensor(file.path(), name, "has factors that are no numbers above 0")),
    }
}

/// The scaling that divides each frequency by a factor of its own: Llama 3's, if the factors are what it comes
/// to, or else LongRoPE's, whose factors are the same at every length. `None` where all factors are one.
fn divided(divisors: &[f64], theta: f64) -> Option<Value> {
    let largest = divisors.iter().copied().fold(1.0, f64::max);
    if divisors.iter().all(|&factor| factor == 1.0) {
        return None;
    }
    let (low_freq_factor, high_freq_factor, original_max_position_embeddings) = LLAMA3;
    let llama3 = RopeScaling::Llama3 {
        factor: largest,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
    };
    let dims = 2 * divisors.len();
    let [(plain, _), (scaled, _)] =
        [RopeScaling::None, llama3].map(|scaling| scaling.frequencies(dims, theta, false));
    let is_near = |((plain, scaled), factor): ((&f32, &f32), &f64)| {
        (f64::from(*plain) / f64::from(*scaled) / factor - 1.0).abs() < 1e-6
    };
    if plain.iter().zip(&scaled).zip(divisors).all(is_near) {
        return Some(json!({
            "rope_type": "llama3",
            "factor": largest,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }));
    }
    Some(json!({
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "factor": 1.0,
        "original_max_position_embeddings": original_max_position_embeddings,
        "attention_factor": 1.0,
    }))
}

/// Ids of the tokens that begin, end and pad texts; an answer may end at several.
fn set_tokens(file: &Gguf, fields: &mut Fields) {
    let id = |kind: &str| {
        file.integer(&format!("tokenizer.ggml.{kind}_token_id")).and_then(|id| u32::try_from(id).ok())
    };
    let mut ends: Vec<u32> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
    let mut seen = BTreeSet::new();
    ends.retain(|&end| seen.insert(end));
    fields.set("bos_token_id", id("bos"));
    fields.set("eos_token_id", ends);
    fields.set("pad_token_id", id("padding"));
}

/// The type of most values, if it is one that config.json can name.
fn stored_type(file: &Gguf) -> Option<&'static str> {
    let kind = file.tensors().values().max_by_key(|tensor| tensor.elements())?.kind;
    match kind.name() {
        "F32" => Some("float32"),
        "F16" => Some("float16"),
        "BF16" => Some("bfloat16"),
        _ => None,
    }
}
