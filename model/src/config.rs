//! A model's shape and constants, from `config.json`: a family is a row of fields, not a file of code.
//!
//! Defaults for absent fields are those of transformers' configuration classes (`LlamaConfig`, `MistralConfig`,
//! `Qwen2Config`, `Qwen3Config`), and both ways of writing the rotary embedding are read: `rope_theta` with
//! `rope_scaling`, and the `rope_parameters` of transformers 5. Whatever would change the model's arithmetic and is
//! not known here is refused by name.

mod quantization;

use std::fs;
use std::path::Path;

use compute::ops::gated::Activation;
use compute::ops::rope::RopeScaling;
use compute::quant::Format;
use serde_json::{Map, Value};

use crate::checkpoint::StoredDType;
use crate::error::{ModelError, Result, nearest, quoted};

/// A supported family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3, 3.1, 3.2 and what shares their shape.
    Llama,
    /// Mistral: Llama with a sliding window in some releases.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen3: norms over each query and key head.
    Qwen3,
}

/// What a family's configuration class takes where config.json is silent, and what it fixes.
struct Defaults {
    /// `None`: as many as query heads.
    kv_heads: Option<usize>,
    /// `None`: width over heads.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    biases: Biases,
    qk_norm: bool,
    windows: Windows,
}

/// Which linear layers of a family have biases.
enum Biases {
    None,
    /// Always on queries, keys and values.
    Qkv,
    /// By the field `attention_bias`, on all four of attention.
    AttentionField,
    /// By the fields `attention_bias` and `mlp_bias`.
    AttentionAndMlpFields,
}

/// How a family says which layers see a sliding window.
enum Windows {
    None,
    /// `sliding_window`, all layers; the default where the field is absent.
    AllLayers(usize),
    /// `use_sliding_window`, `sliding_window` and `max_window_layers` or `layer_types`.
    UpperLayers,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// `model_type` in config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The class transformers names in `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    fn defaults(self) -> Defaults {
        match self {
            Family::Llama => Defaults {
                kv_heads: None,
                head_dim: None,
                max_position_embeddings: 2048,
                bos: Some(1),
                eos: Some(2),
                biases: Biases::AttentionAndMlpFields,
                qk_norm: false,
                windows: Windows::None,
            },
            Family::Mistral => Defaults {
                kv_heads: Some(8),
                head_dim: None,
                max_position_embeddings: 131_072,
                bos: Some(1),
                eos: Some(2),
                biases: Biases::None,
                qk_norm: false,
                windows: Windows::AllLayers(4096),
            },
            Family::Qwen2 => Defaults {
                kv_heads: Some(32),
                head_dim: None,
                max_position_embeddings: 32_768,
                bos: None,
                eos: None,
                biases: Biases::Qkv,
                qk_norm: false,
                windows: Windows::UpperLayers,
            },
            Family::Qwen3 => Defaults {
                kv_heads: Some(32),
                head_dim: Some(128),
                max_position_embeddings: 32_768,
                bos: None,
                eos: None,
                biases: Biases::AttentionField,
                qk_norm: true,
                windows: Windows::UpperLayers,
            },
        }
    }
}

/// A decoder's shape and constants.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the defaults came from; the arithmetic follows the other fields.
    pub family: Family,
    /// `V`, tokens known.
    pub vocab_size: usize,
    /// `C`, the model's width.
    pub hidden_size: usize,
    /// `F`, the MLP's inner width.
    pub intermediate_size: usize,
    /// `L`, blocks.
    pub layers: usize,
    /// `H`, query heads.
    pub heads: usize,
    /// `K`, key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// `D`, the size of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched for long contexts.
    pub rope_scaling: RopeScaling,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Biases on queries, keys and values.
    pub qkv_bias: bool,
    /// A bias on the attention's output.
    pub output_bias: bool,
    /// Biases on the MLP's three layers.
    pub mlp_bias: bool,
    /// Norms over each query and key head.
    pub qk_norm: bool,
    /// The head is the embedding's weight.
    pub tie_word_embeddings: bool,
    /// For each layer: how many tokens a token sees, itself included (`Some(w)`: positions `p - w + 1 ..= p`), or all
    /// before it.
    pub windows: Vec<Option<usize>>,
    /// The gate's activation.
    pub activation: Activation,
    /// Standard deviation of freshly made weights.
    pub initializer_range: f32,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// Ends of text; several for some chat models.
    pub eos: Vec<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// How the checkpoint says its weights are stored; the files themselves decide.
    pub dtype: Option<StoredDType>,
    /// How the folder's linear layers are quantized, if they are; each tensor says its own block size.
    pub quantization: Option<Format>,
    /// The file as it was, for saving.
    pub raw: Map<String, Value>,
}

/// Largest sizes accepted: a few times beyond any known model, so that products of them cannot overflow.
mod bounds {
    pub(super) const VOCABULARY: usize = 1 << 24;
    pub(super) const WIDTH: usize = 1 << 20;
    pub(super) const INNER: usize = 1 << 22;
    pub(super) const LAYERS: usize = 1 << 12;
    pub(super) const HEADS: usize = 1 << 14;
    pub(super) const HEAD: usize = 1 << 14;
    pub(super) const POSITIONS: usize = 1 << 32;
    pub(super) const TOKEN: usize = u32::MAX as usize;
    /// Bytes of config.json.
    pub(super) const FILE: u64 = 16 << 20;
}

impl Config {
    /// Reads `config.json` of a model folder.
    pub fn load(folder: &Path) -> Result<Config> {
        let path = folder.join("config.json");
        Config::from_json(&read_small_file(&path, bounds::FILE)?, &path)
    }

    /// Reads the text of a `config.json`; `path` is only named in errors.
    pub fn from_json(text: &str, path: &Path) -> Result<Config> {
        match serde_json::from_str(text).map_err(|e| ModelError::json(path, &e))? {
            Value::Object(raw) => Config::from_map(raw, path),
            _ => Err(ModelError::file(path, "is not a JSON object; a model's config.json is one")),
        }
    }

    /// As [`Config::from_json`], of an object already parsed.
    pub fn from_map(raw: Map<String, Value>, path: &Path) -> Result<Config> {
        let fields = Fields { path, prefix: "", map: &raw };
        let family = family(&fields)?;
        refuse_unsupported(&fields)?;
        let defaults = family.defaults();

        let hidden_size = fields.size("hidden_size", bounds::WIDTH)?;
        let layers = fields.size("num_hidden_layers", bounds::LAYERS)?;
        let heads = fields.size("num_attention_heads", bounds::HEADS)?;
        let (qkv_bias, output_bias, mlp_bias) = biases(&fields, &defaults)?;
        let max_position_embeddings =
            fields.size_or("max_position_embeddings", bounds::POSITIONS, defaults.max_position_embeddings)?;
        let (rope_theta, rope_scaling) = rope(&fields, max_position_embeddings)?;
        let config = Config {
            family,
            vocab_size: fields.size("vocab_size", bounds::VOCABULARY)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", bounds::INNER)?,
            layers,
            heads,
            kv_heads: kv_heads(&fields, &defaults, heads)?,
            head_dim: head_dim(&fields, &defaults, hidden_size, heads)?,
            rms_norm_eps: fields.float_or("rms_norm_eps", 1e-6, 0.0..=1.0)? as f32,
            rope_theta,
            rope_scaling,
            max_position_embeddings,
            qkv_bias,
            output_bias,
            mlp_bias,
            qk_norm: defaults.qk_norm,
            tie_word_embeddings: fields.flag_or("tie_word_embeddings", false)?,
            windows: windows(&fields, &defaults, layers)?,
            activation: activation(&fields)?,
            initializer_range: fields.float_or("initializer_range", 0.02, 0.0..=1.0)? as f32,
            bos: fields.token("bos_token_id", defaults.bos)?.first().copied(),
            eos: fields.token("eos_token_id", defaults.eos)?,
            pad: fields.token("pad_token_id", None)?.first().copied(),
            dtype: dtype(&fields)?,
            quantization: fields
                .present("quantization_config")
                .map(|v| quantization::parse(v, &fields))
                .transpose()?,
            raw: Map::new(),
        };
        Ok(Config { raw, ..config })
    }

    /// Width of all query heads, `H * D`; also what the attention's output layer reads.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads, `K * D`; also of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The text of a `config.json` for weights stored as `dtype`: this one's own fields with the type replaced, as
    /// transformers writes it (two spaces, a newline at the end).
    pub fn to_json(&self, dtype: StoredDType) -> String {
        let mut raw = self.raw.clone();
        let field = if raw.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        raw.insert(field.to_owned(), Value::from(dtype.torch_name()));
        serde_json::to_string_pretty(&Value::Object(raw)).expect("a JSON object serializes") + "\n"
    }
}

fn family(fields: &Fields) -> Result<Family> {
    let supported = || quoted(Family::ALL.map(Family::model_type));
    let Some(name) = fields.text("model_type")? else {
        return Err(
            fields.error("model_type", format!("is missing; it names the model's family: {}", supported()))
        );
    };
    Family::ALL.into_iter().find(|f| f.model_type() == name).ok_or_else(|| {
        fields.error(
            "model_type",
            format!("is {name:?}, which is not supported; supported are {}", supported()),
        )
    })
}

/// Fields that change a model's arithmetic in ways not built here, with the values that do not.
fn refuse_unsupported(fields: &Fields) -> Result<()> {
    const FOREIGN: [&str; 22] = [
        "attention_chunk_size",
        "attention_multiplier",
        "attention_sinks",
        "attn_logit_softcapping",
        "add_cross_attention",
        "clip_qkv",
        "embedding_multiplier",
        "final_logit_softcapping",
        "is_encoder_decoder",
        "kv_lora_rank",
        "logit_scale",
        "logits_scaling",
        "no_rope_layers",
        "num_experts",
        "num_local_experts",
        "parallel_attn",
        "query_pre_attn_scalar",
        "residual_multiplier",
        "text_config",
        "use_cross_attention",
        "use_sinks",
        "vision_config",
    ];
    for field in FOREIGN {
        match fields.present(field) {
            None | Some(Value::Bool(false)) => {}
            Some(value) => {
                let problem = format!("is {}: models with this feature are not supported", short(value));
                return Err(fields.error(field, problem));
            }
        }
    }
    fields.whole_rotary()
}

fn kv_heads(fields: &Fields, defaults: &Defaults, heads: usize) -> Result<usize> {
    let name = "num_key_value_heads";
    let kv_heads = match fields.map.get(name) {
        Some(Value::Null) => heads,
        _ => fields.size_or(name, bounds::HEADS, defaults.kv_heads.unwrap_or(heads))?,
    };
    if !heads.is_multiple_of(kv_heads) {
        let problem = format!("is {kv_heads}, which does not divide num_attention_heads {heads}");
        return Err(fields.error(name, problem));
    }
    Ok(kv_heads)
}

fn head_dim(fields: &Fields, defaults: &Defaults, hidden_size: usize, heads: usize) -> Result<usize> {
    let named = fields.present("head_dim").is_some() || defaults.head_dim.is_some();
    if !named && !hidden_size.is_multiple_of(heads) {
        let problem =
            format!("is {heads}, which does not divide hidden_size {hidden_size}, and head_dim is not given");
        return Err(fields.error("num_attention_heads", problem));
    }
    let derived = defaults.head_dim.unwrap_or(hidden_size / heads);
    let head_dim = fields.size_or("head_dim", bounds::HEAD, derived)?;
    if !head_dim.is_multiple_of(2) {
        let problem = format!("is {head_dim}; rotary embedding turns pairs, so a head's size must be even");
        return Err(fields.error("head_dim", problem));
    }
    Ok(head_dim)
}

/// Biases on queries, keys and values; on the attention's output; on the MLP.
fn biases(fields: &Fields, defaults: &Defaults) -> Result<(bool, bool, bool)> {
    Ok(match defaults.biases {
        Biases::None => (false, false, false),
        Biases::Qkv => (true, false, false),
        Biases::AttentionField => {
            let attention = fields.flag_or("attention_bias", false)?;
            (attention, attention, false)
        }
        Biases::AttentionAndMlpFields => {
            let attention = fields.flag_or("attention_bias", false)?;
            (attention, attention, fields.flag_or("mlp_bias", false)?)
        }
    })
}

fn windows(fields: &Fields, defaults: &Defaults, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = |default| match fields.map.get("sliding_window") {
        Some(Value::Null) => Ok(None),
        _ => fields.size_or("sliding_window", bounds::POSITIONS, default).map(Some),
    };
    match defaults.windows {
        Windows::None => Ok(vec![None; layers]),
        Windows::AllLayers(default) => {
            if fields.present("layer_types").is_some() {
                let problem = "is present: Mistral models with layers of several kinds are not supported";
                return Err(fields.error("layer_types", problem));
            }
            Ok(vec![window(default)?; layers])
        }
        Windows::UpperLayers => {
            let used = fields.flag_or("use_sliding_window", false)?;
            let window = if used { window(4096)? } else { None };
            match fields.present("layer_types") {
                Some(types) => typed_windows(fields, types, window, layers),
                None => {
                    let first = fields.count_or("max_window_layers", bounds::LAYERS, 28)?;
                    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
                }
            }
        }
    }
}

fn typed_windows(
    fields: &Fields,
    types: &Value,
    window: Option<usize>,
    layers: usize,
) -> Result<Vec<Option<usize>>> {
    let name = "layer_types";
    let types =
        types.as_array().ok_or_else(|| fields.wrong(name, types, "a list with one entry per layer"))?;
    if types.len() != layers {
        let problem = format!("has {} entries for num_hidden_layers {layers}", types.len());
        return Err(fields.error(name, problem));
    }
    let of_layer = |(layer, kind): (usize, &Value)| match (kind.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
        (Some("sliding_attention"), None) => {
            let problem = "is \"sliding_attention\" but use_sliding_window or sliding_window is off";
            Err(fields.error(format!("{name}[{layer}]"), problem))
        }
        _ => {
            let expected = "\"full_attention\" or \"sliding_attention\"";
            Err(fields.wrong(format!("{name}[{layer}]"), kind, expected))
        }
    };
    types.iter().enumerate().map(of_layer).collect()
}

fn activation(fields: &Fields) -> Result<Activation> {
    match fields.text("hidden_act")?.as_deref() {
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some(other) => {
            let problem = format!("is {other:?}; supported are `silu`, `gelu` and `gelu_pytorch_tanh`");
            Err(fields.error("hidden_act", problem))
        }
    }
}

fn dtype(fields: &Fields) -> Result<Option<StoredDType>> {
    for name in ["dtype", "torch_dtype"] {
        let Some(text) = fields.text(name)? else { continue };
        return match text.strip_prefix("torch.").unwrap_or(&text) {
            "float32" => Ok(Some(StoredDType::F32)),
            "bfloat16" => Ok(Some(StoredDType::Bf16)),
            "float16" => Ok(Some(StoredDType::F16)),
            "auto" => Ok(None),
            _ => {
                let problem = format!("is {text:?}; supported are `float32`, `bfloat16` and `float16`");
                Err(fields.error(name, problem))
            }
        };
    }
    Ok(None)
}

/// The base and the scaling of the rotary embedding, from either way of writing them.
fn rope(fields: &Fields, max_positions: usize) -> Result<(f64, RopeScaling)> {
    let theta_range = 1.0..=1e15;
    // transformers 5 takes a present `rope_scaling` before `rope_parameters`.
    let name = if fields.present("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
    let outer_theta = fields.float_or("rope_theta", 10_000.0, theta_range.clone())?;
    let Some(value) = fields.present(name) else { return Ok((outer_theta, RopeScaling::None)) };
    let map = value.as_object().ok_or_else(|| fields.wrong(name, value, "an object"))?;
    if let Some(kind) = map.keys().find(|k| k.ends_with("_attention")) {
        let problem = format!(
            "has parameters of its own for {kind:?}: rotary embedding by layer type is not supported"
        );
        return Err(fields.error(name, problem));
    }
    let inner = Fields { path: fields.path, prefix: name, map };
    inner.whole_rotary()?;
    let theta = inner.float_or("rope_theta", outer_theta, theta_range)?;
    Ok((theta, rope_scaling(fields, &inner, max_positions)?))
}

fn rope_scaling(fields: &Fields, inner: &Fields, max_positions: usize) -> Result<RopeScaling> {
    let type_name = if inner.present("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = inner.text(type_name)?;
    let positive = f64::MIN_POSITIVE..=1e9;
    let original = || -> Result<usize> {
        let name = "original_max_position_embeddings";
        let of = if fields.present(name).is_some() { fields } else { inner };
        of.size_or(name, bounds::POSITIONS, max_positions)
    };
    match kind.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: inner.float("factor", positive)? }),
        Some("llama3") => {
            let low = inner.float("low_freq_factor", positive.clone())?;
            let high = inner.float("high_freq_factor", positive.clone())?;
            if low >= high {
                let problem = format!("is {high}, which must be above low_freq_factor {low}");
                return Err(inner.error("high_freq_factor", problem));
            }
            Ok(RopeScaling::Llama3 {
                factor: inner.float("factor", positive)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original()?,
            })
        }
        Some("yarn") => {
            let original = original()?;
            // An explicit null means the ratio of the context lengths.
            let factor = match inner.map.get("factor") {
                Some(Value::Null) => max_positions as f64 / original as f64,
                _ => inner.float("factor", positive.clone())?,
            };
            let optional = |name| inner.optional_float(name, positive.clone());
            Ok(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast: optional("beta_fast")?.unwrap_or(32.0),
                beta_slow: optional("beta_slow")?.unwrap_or(1.0),
                attention_factor: optional("attention_factor")?,
                mscale: inner.optional_float("mscale", 0.0..=1e9)?,
                mscale_all_dim: inner.optional_float("mscale_all_dim", 0.0..=1e9)?,
                truncate: inner.flag_or("truncate", true)?,
            })
        }
        Some(other) => {
            let problem = format!("is {other:?}; supported are `default`, `linear`, `llama3` and `yarn`");
            Err(inner.error(type_name, problem))
        }
    }
}

/// The text of a file that is small if it is what it should be.
pub(crate) fn read_small_file(path: &Path, max_bytes: u64) -> Result<String> {
    let length = fs::metadata(path).map_err(|e| ModelError::read(path, e))?.len();
    if length > max_bytes {
        let problem = format!("has {length} bytes, more than the {max_bytes} that such a file can have");
        return Err(ModelError::file(path, problem));
    }
    let bytes = fs::read(path).map_err(|e| ModelError::read(path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        let position = e.utf8_error().valid_up_to();
        ModelError::file(path, format!("is not UTF-8 text: byte {position} is not part of a character"))
    })
}

/// A value cut to what fits into a message.
pub(crate) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The fields of a JSON object, read with bounds; errors name file and field.
pub(crate) struct Fields<'a> {
    pub(crate) path: &'a Path,
    /// The object's own name in the file; empty at the top.
    pub(crate) prefix: &'a str,
    pub(crate) map: &'a Map<String, Value>,
}

impl Fields<'_> {
    pub(crate) fn error(&self, field: impl Into<String>, problem: impl Into<String>) -> ModelError {
        let field = field.into();
        let name = if self.prefix.is_empty() { field } else { format!("{}.{field}", self.prefix) };
        ModelError::field(self.path, name, problem)
    }

    pub(crate) fn wrong(&self, field: impl Into<String>, value: &Value, expected: &str) -> ModelError {
        self.error(field, format!("is {}; expected {expected}", short(value)))
    }

    /// The field's value unless it is absent or null.
    pub(crate) fn present(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn missing(&self, field: &str) -> ModelError {
        let near = nearest(field, self.map.keys().map(String::as_str), 1);
        // Only a slip of the pen is worth naming.
        let hint = match near.first() {
            Some(near) if near.len().abs_diff(field.len()) <= 2 && near.starts_with(&field[..3]) => {
                format!(" (there is {near:?})")
            }
            _ => String::new(),
        };
        self.error(field, format!("is missing{hint}; take the config.json that came with the model"))
    }

    /// A whole number from `min` to `max`.
    fn whole(&self, field: &str, min: usize, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.present(field) else { return Ok(None) };
        let number = value
            .as_u64()
            .or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64));
        match number {
            Some(n) if (min as u64..=max as u64).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.wrong(field, value, &format!("a whole number from {min} to {max}"))),
        }
    }

    pub(crate) fn size(&self, field: &str, max: usize) -> Result<usize> {
        self.whole(field, 1, max)?.ok_or_else(|| self.missing(field))
    }

    pub(crate) fn size_or(&self, field: &str, max: usize, default: usize) -> Result<usize> {
        Ok(self.whole(field, 1, max)?.unwrap_or(default))
    }

    fn count_or(&self, field: &str, max: usize, default: usize) -> Result<usize> {
        Ok(self.whole(field, 0, max)?.unwrap_or(default))
    }

    pub(crate) fn flag_or(&self, field: &str, default: bool) -> Result<bool> {
        match self.present(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.wrong(field, value, "true or false")),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<String>> {
        match self.present(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(value) => Err(self.wrong(field, value, "text")),
        }
    }

    pub(crate) fn optional_float(
        &self,
        field: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>> {
        let Some(value) = self.present(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (low, high) = (range.start(), range.end());
                let low =
                    if *low == f64::MIN_POSITIVE { "above 0".to_owned() } else { format!("from {low}") };
                Err(self.wrong(field, value, &format!("a number {low} to {high}")))
            }
        }
    }

    fn float(&self, field: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64> {
        self.optional_float(field, range)?.ok_or_else(|| self.missing(field))
    }

    pub(crate) fn float_or(
        &self,
        field: &str,
        default: f64,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<f64> {
        Ok(self.optional_float(field, range)?.unwrap_or(default))
    }

    /// A token id, a list of them, or none where the field is null.
    fn token(&self, field: &str, default: Option<u32>) -> Result<Vec<u32>> {
        let id = |value: &Value| match value.as_u64() {
            Some(id) if id <= bounds::TOKEN as u64 => Ok(id as u32),
            // Some tools write -1 for "none", transformers keeps it.
            _ => Err(self.wrong(field, value, "a token id or null")),
        };
        match self.map.get(field) {
            None => Ok(default.into_iter().collect()),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Number(n)) if n.as_i64() == Some(-1) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }

    /// Fails if only a part of each head is rotated.
    fn whole_rotary(&self) -> Result<()> {
        let name = "partial_rotary_factor";
        match self.optional_float(name, 0.0..=1.0)? {
            None | Some(1.0) => Ok(()),
            Some(part) => {
                let problem =
                    format!("is {part}: models that rotate only a part of each head are not supported");
                Err(self.error(name, problem))
            }
        }
    }
}
