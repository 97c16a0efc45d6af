//! A model's shape and constants, from `config.json`: a family is a row of fields, not a file of code.
//!
//! Defaults for absent fields are those of transformers' configuration classes (`config/family.rs`), and both
//! ways of writing the rotary embedding are read (`config/rotary.rs`). Whatever would change the model's
//! arithmetic and is not known here is refused by name. Of a model with several kinds of input, such as
//! images, the part for texts is read.

mod family;
mod fields;
pub(crate) mod quantization;
mod rotary;

use std::path::Path;

use compute::ops::gated::Activation;
use compute::ops::rope::Rotation;
use compute::quant::Format;
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, StoredDType};
use crate::error::{ModelError, Result, quoted};
use crate::names::{ModuleId, Names};
use family::{Biases as BiasRule, Fused, Residual, Rotary, Row, WRAPPERS, Windows, Wrapper};
pub use family::{Family, GgufForm, MlxForm, MlxHead};
pub(crate) use fields::{Fields, read_small_file, short};

/// What kind of norm stands in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// RMS norm.
    Rms,
    /// RMS norm by one plus the weight.
    RmsPlusOne,
    /// Layer norm, with a bias.
    Layer,
}

/// Where norms stand in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norms {
    /// Before attention and before the MLP.
    pub before: bool,
    /// Behind each, before its result joins the residual stream.
    pub behind: bool,
}

/// Over what a norm of queries or keys runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Each head.
    Head,
    /// All heads together.
    Width,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkNorm {
    /// Over what.
    pub span: Span,
    /// Whether behind the rotary embedding rather than before it.
    pub behind_rope: bool,
}

/// How a token knows where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Queries and keys are turned ([`BlockConfig::rope`]).
    Rotary,
    /// A learned vector for each position is added to the token's.
    Learned,
}

/// Queries at position `p` are multiplied by `1 + beta ln(1 + floor(p / original))` (Ministral 3, as Llama
/// 4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryGrowth {
    /// How fast.
    pub beta: f64,
    /// Positions that each step spans.
    pub original: usize,
}

/// The order of a fused projection's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedQkv {
    /// All queries, all keys, all values.
    Blocks,
    /// Query, key and value of each head; as many key heads as query heads.
    ByHead,
}

/// Which linear layers have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The attention's output.
    pub output: bool,
    /// The MLP's layers.
    pub mlp: bool,
}

/// What the MLP half of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// `down(act(gate(x)) * up(x))`.
    Gated,
    /// `down(act(up(x)))`.
    Plain,
    /// A weighted sum of a few gated MLPs out of many, chosen for each token.
    Experts,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// `E`, experts of a layer.
    pub count: usize,
    /// Experts that a token goes to.
    pub per_token: usize,
    /// Inner width of an expert.
    pub inner: usize,
    /// Whether the weights of a token's experts are made to sum to one.
    pub normalized: bool,
}

/// What differs from block to block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// How many tokens a token sees, itself included (`Some(w)`: positions `p - w + 1 ..= p`), or all before
    /// it.
    pub window: Option<usize>,
    /// Which of [`Config::ropes`] turns its queries and keys, if any.
    pub rope: Option<usize>,
    /// What its MLP half is.
    pub mlp: Mlp,
}

/// A decoder's shape and constants.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the defaults came from; the arithmetic follows the other fields.
    pub family: Family,
    /// What checkpoints call its parts.
    pub names: Names,
    /// How llama.cpp holds it, if that is known.
    pub gguf: Option<GgufForm>,
    /// How mlx-lm holds it, if that is as folders do.
    pub mlx: Option<MlxForm>,
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
    /// `D`, the size of a head.
    pub head_dim: usize,
    /// What differs from block to block, one for each.
    pub blocks: Vec<BlockConfig>,
    /// What kind of norm stands before, behind and at the end.
    pub norm: NormKind,
    /// Added to the mean square, or the variance, in every norm.
    pub norm_eps: f32,
    /// Where norms stand in a block.
    pub norms: Norms,
    /// Whether both halves of a block read its input, rather than the MLP what attention made.
    pub parallel_residual: bool,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// How a token knows where it stands.
    pub positions: Positions,
    /// The rotary embeddings that blocks choose from.
    pub ropes: Vec<Rotation>,
    /// Whether queries grow with their position.
    pub query_growth: Option<QueryGrowth>,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Factor on attention's scores.
    pub attention_scale: f32,
    /// Whether that factor is divided by the block's number, from 1.
    pub attention_scale_by_layer: bool,
    /// Attention's scores are `cap tanh(score / cap)`.
    pub attention_cap: Option<f32>,
    /// Factor on embeddings, rounded to the type of activations.
    pub embedding_scale: f32,
    /// Factor on what each half adds to the residual stream.
    pub residual_scale: f32,
    /// Factor on logits, before their cap.
    pub logits_scale: f32,
    /// Logits are `cap tanh(logit / cap)`.
    pub logits_cap: Option<f32>,
    /// Whether queries, keys and values are one layer, and how.
    pub fused_qkv: Option<FusedQkv>,
    /// Whether gate and up are one layer, gate first.
    pub fused_gate_up: bool,
    /// Which linear layers have biases.
    pub biases: Biases,
    /// Whether files store the blocks' linear layers as `[in, out]`.
    pub transposed: bool,
    /// The MLP's activation.
    pub activation: Activation,
    /// The experts of the layers that have them.
    pub experts: Option<Experts>,
    /// The head is the embedding's weight.
    pub tie_word_embeddings: bool,
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
    pub(super) const EXPERTS: usize = 1 << 12;
    /// Of all layers together.
    pub(super) const EXPERTS_OF_ALL: usize = 1 << 17;
    pub(super) const POSITIONS: usize = 1 << 32;
    /// Bytes of config.json.
    pub(super) const FILE: u64 = 16 << 20;
}

impl Config {
    /// Reads `config.json` of a model folder. Whether a wrapper's head is tied may be left to the weights, at
    /// which [`ModelFolder::open`] looks.
    ///
    /// [`ModelFolder::open`]: crate::ModelFolder::open
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
        let outer = Fields::new(path, "", &raw);
        let config = match wrapper(&outer)? {
            None => {
                let family = family(&outer, &Family::ALL, None)?;
                read(Fields::new(path, "", &raw), family, None, &outer)?
            }
            Some(wrapper) => {
                let inner = match outer.present(TEXT) {
                    Some(Value::Object(map)) => Fields::new(path, TEXT, map),
                    Some(value) => return Err(outer.wrong(TEXT, value, "an object")),
                    None => return Err(outer.missing(TEXT)),
                };
                let family = family(&inner, wrapper.inside, Some(wrapper.inside[0]))?;
                read(inner, family, Some(wrapper), &outer)?
            }
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

    /// The text of a `config.json` for weights stored as `dtype`: this one's own fields with the type
    /// replaced, as transformers writes it (two spaces, a newline at the end).
    pub fn to_json(&self, dtype: StoredDType) -> String {
        let mut raw = self.raw.clone();
        let field = if raw.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        raw.insert(field.to_owned(), Value::from(dtype.torch_name()));
        serde_json::to_string_pretty(&Value::Object(raw)).expect("a JSON object serializes") + "\n"
    }

    /// Wrappers that do not say whether the head is tied are tied only where the weights have no head: so
    /// transformers 5 takes them.
    pub(crate) fn settle_head(&mut self, weights: &Checkpoint) {
        let silent = !self.raw.contains_key(TIED) && self.names.root != self.names.table.root;
        if silent && weights.has(&self.parameter(ModuleId::Head, false)) {
            self.tie_word_embeddings = false;
        }
    }

    /// Says in the file, too, that the head has a weight of its own.
    pub(crate) fn untie(&mut self) {
        self.tie_word_embeddings = false;
        self.raw.insert(TIED.to_owned(), Value::Bool(false));
        if let Some(Value::Object(inner)) = self.raw.get_mut(TEXT) {
            inner.insert(TIED.to_owned(), Value::Bool(false));
        }
    }
}

/// Numbers above 0 that can be computed with, also as `f32` and as divisors.
const POSITIVE: std::ops::RangeInclusive<f64> = 1e-9..=1e9;
/// GPT-2's field that divides attention's factor by the block's number.
const BY_LAYER: &str = "scale_attn_by_inverse_layer_idx";
/// The field that says whether the head is the embedding's weight.
const TIED: &str = "tie_word_embeddings";
/// Where a model of several kinds of input describes its part for texts.
const TEXT: &str = "text_config";

/// All fields of a model of this family. `outer` is the whole file, which is `fields` but for a model inside
/// a wrapper.
fn read(
    fields: Fields<'_>,
    family: Family,
    wrapper: Option<&'static Wrapper>,
    outer: &Fields<'_>,
) -> Result<Config> {
    let row = family.row();
    let fields = &fields.with_aliases(row.aliases);
    refuse_unsupported(fields, row)?;
    let [vocab_size, hidden_size, intermediate_size, layers, heads] = sizes(fields, row)?;
    let experts = experts(fields, row, layers)?;
    let mlps = mlps(fields, row, layers)?;
    let max_position_embeddings =
        fields.size_or("max_position_embeddings", bounds::POSITIONS, row.max_position_embeddings)?;
    let head_dim = head_dim(fields, row, hidden_size, heads)?;
    let kv_heads = kv_heads(fields, row, heads)?;
    let windows = windows(fields, row, layers)?;
    let rotary::Ropes { ropes, of_layers, query_growth } =
        rotary::read(fields, row, &windows, head_dim, max_position_embeddings)?;
    let blocks = windows.into_iter().zip(of_layers).zip(mlps);
    let blocks = blocks.map(|((window, rope), mlp)| BlockConfig { window, rope, mlp }).collect();
    let number = |field: &str| row.number(fields, field);
    let attention_scale = match (number("query_pre_attn_scalar")?, number("attention_multiplier")?) {
        (Some(scalar), _) => scalar.powf(-0.5) as f32,
        (None, Some(multiplier)) => multiplier as f32,
        (None, None) => (head_dim as f32).powf(-0.5),
    };
    // Gemma's embeddings are as long as its width is large.
    let embedding_scale = match row.embeddings_by_width {
        true => (hidden_size as f64).sqrt(),
        false => number("embedding_multiplier")?.unwrap_or(1.0),
    };
    let activation = activation(fields, row)?;
    let is_usual_activation = parse_activation(row.activation.1) == Some(activation);
    // Token ids and the like may stand in either place.
    let either = |field: &str| if fields.get(field).is_some() { fields } else { outer };
    Ok(Config {
        family,
        names: Names {
            table: row.names,
            root: wrapper.map_or(row.names.root, |w| w.root),
            others: wrapper.map_or(row.names.other_files, |w| w.other_files),
        },
        gguf: wrapper.map_or(row.gguf, |wrapper| wrapper.gguf),
        // It has the family's usual activation, whatever the file says.
        mlx: row.mlx.filter(|_| wrapper.is_none() && is_usual_activation),
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        blocks,
        norm: row.norm,
        norm_eps: fields.float_or(row.norm_eps.0, row.norm_eps.1, 0.0..=1.0)? as f32,
        norms: row.norms,
        parallel_residual: match row.residual {
            Residual::Serial => false,
            Residual::ParallelField => fields.flag_or("use_parallel_residual", true)?,
        },
        qk_norm: row.qk_norm.map(|(span, behind_rope)| QkNorm { span, behind_rope }),
        positions: if row.rotary == Rotary::Learned { Positions::Learned } else { Positions::Rotary },
        ropes,
        query_growth,
        max_position_embeddings,
        attention_scale,
        attention_scale_by_layer: row.flag(fields, BY_LAYER)?,
        attention_cap: number("attn_logit_softcapping")?.map(|cap| cap as f32),
        embedding_scale: embedding_scale as f32,
        residual_scale: number("residual_multiplier")?.unwrap_or(1.0) as f32,
        logits_scale: number("logits_scaling")?.map_or(1.0, |scale| 1.0 / scale as f32),
        // Gemma 3's wrapper passes over it.
        logits_cap: number("final_logit_softcapping")?.filter(|_| wrapper.is_none()).map(|cap| cap as f32),
        fused_qkv: match row.fused {
            Fused::None | Fused::GateUp => None,
            Fused::Qkv | Fused::QkvAndGateUp => Some(FusedQkv::Blocks),
            Fused::QkvByHead => Some(FusedQkv::ByHead),
        },
        fused_gate_up: matches!(row.fused, Fused::GateUp | Fused::QkvAndGateUp),
        biases: biases(fields, row)?,
        transposed: row.transposed,
        activation,
        experts,
        // Of a wrapped model only what the wrapper says counts.
        tie_word_embeddings: outer.flag_or(TIED, row.tied || wrapper.is_some())?,
        initializer_range: fields.float_or("initializer_range", 0.02, 0.0..=1.0)? as f32,
        bos: either("bos_token_id").token("bos_token_id", row.bos.as_slice())?.first().copied(),
        eos: either("eos_token_id").token("eos_token_id", row.eos)?,
        pad: either("pad_token_id").token("pad_token_id", row.pad.as_slice())?.first().copied(),
        dtype: dtype(outer)?,
        quantization: quantization::read(outer)?,
        raw: Map::new(),
    })
}

/// The wrapper that the file describes, if it does.
fn wrapper(fields: &Fields<'_>) -> Result<Option<&'static Wrapper>> {
    let name = fields.text("model_type")?;
    Ok(WRAPPERS.iter().find(|wrapper| Some(wrapper.model_type) == name.as_deref()))
}

/// The family that the file names, one of these; `default` if it names none.
fn family(fields: &Fields<'_>, among: &[Family], default: Option<Family>) -> Result<Family> {
    let supported = || {
        let wrappers = WRAPPERS.iter().map(|w| w.model_type).filter(|_| among.len() == Family::ALL.len());
        quoted(among.iter().map(|f| f.model_type()).chain(wrappers))
    };
    let field = "model_type";
    let Some(name) = fields.text(field)? else {
        let missing =
            || fields.error(field, format!("is missing; it names the model's family: {}", supported()));
        return default.ok_or_else(missing);
    };
    let found = among.iter().find(|f| f.model_type() == name);
    found.copied().ok_or_else(|| {
        let problem = format!("is {name:?}, which is not supported; supported are {}", supported());
        fields.error(field, problem)
    })
}

impl Row {
    /// A number that changes the arithmetic, if the family has it.
    fn number(&self, fields: &Fields<'_>, field: &str) -> Result<Option<f64>> {
        let Some(&(_, default)) = self.numbers.iter().find(|(name, _)| *name == field) else {
            return Ok(None);
        };
        match fields.get(field) {
            Some(Value::Null) => Ok(None),
            _ => Ok(fields.optional_float(field, POSITIVE)?.or(default)),
        }
    }

    /// A flag that changes the arithmetic, if the family has it.
    fn flag(&self, fields: &Fields<'_>, field: &'static str) -> Result<bool> {
        Ok(self.flags.contains(&field) && fields.flag_or(field, false)?)
    }
}

/// Fields that change a model's arithmetic in ways not built here, or not by this family, with the values
/// that do not.
fn refuse_unsupported(fields: &Fields<'_>, row: &Row) -> Result<()> {
    const FOREIGN: [&str; 24] = [
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
        BY_LAYER,
        "text_config",
        "use_bidirectional_attention",
        "use_cross_attention",
        "use_sinks",
        "vision_config",
    ];
    let knows = |field: &str| {
        row.numbers.iter().any(|(name, _)| *name == field)
            || row.ignores.contains(&field)
            || row.flags.contains(&field)
            || row.experts.is_some_and(|experts| experts.count.0.contains(&field))
            || (field == "no_rope_layers" && row.rotary == Rotary::Skipping)
    };
    for field in FOREIGN.into_iter().filter(|field| !knows(field)) {
        match fields.present(field) {
            None | Some(Value::Bool(false)) => {}
            Some(value) => {
                let problem = format!("is {}: models with this feature are not supported", short(value));
                return Err(fields.error(field, problem));
            }
        }
    }
    // What classes can do without, and models never do.
    let needed = [("scale_attn_weights", "its scale"), ("use_qk_norm", "norms of queries and keys")];
    for (field, what) in
        needed.into_iter().filter(|(field, _)| *field != "use_qk_norm" || row.qk_norm.is_some())
    {
        if !fields.flag_or(field, true)? {
            return Err(fields.error(field, format!("is false: attention without {what} is not supported")));
        }
    }
    Ok(())
}

/// Vocabulary, width, inner width, layers, heads.
fn sizes(fields: &Fields<'_>, row: &Row) -> Result<[usize; 5]> {
    let names = [
        ("vocab_size", bounds::VOCABULARY),
        ("hidden_size", bounds::WIDTH),
        ("intermediate_size", bounds::INNER),
        ("num_hidden_layers", bounds::LAYERS),
        ("num_attention_heads", bounds::HEADS),
    ];
    let mut sizes = [0; 5];
    for (place, (name, most)) in names.into_iter().enumerate() {
        sizes[place] = match row.sizes {
            Some(_) if name == "intermediate_size" && fields.present(name).is_none() && row.four_widths => {
                4 * sizes[1]
            }
            Some(defaults) => fields.size_or(name, most, defaults[place])?,
            None => fields.size(name, most)?,
        };
    }
    Ok(sizes)
}

fn kv_heads(fields: &Fields<'_>, row: &Row, heads: usize) -> Result<usize> {
    let name = "num_key_value_heads";
    let kv_heads = match fields.get(name) {
        Some(Value::Null) => heads,
        _ => fields.size_or(name, bounds::HEADS, row.kv_heads.unwrap_or(heads))?,
    };
    if !heads.is_multiple_of(kv_heads) {
        let problem = format!("is {kv_heads}, which does not divide num_attention_heads {heads}");
        return Err(fields.error(name, problem));
    }
    if kv_heads != heads && row.fused == Fused::QkvByHead {
        return Err(
            fields.error(name, format!("is {kv_heads}; a {} model has as many as heads", row.model_type))
        );
    }
    Ok(kv_heads)
}

fn head_dim(fields: &Fields<'_>, row: &Row, hidden_size: usize, heads: usize) -> Result<usize> {
    let named = fields.present("head_dim").is_some() || row.head_dim.is_some();
    if !named && !hidden_size.is_multiple_of(heads) {
        let problem =
            format!("is {heads}, which does not divide hidden_size {hidden_size}, and head_dim is not given");
        return Err(fields.error("num_attention_heads", problem));
    }
    let derived = row.head_dim.unwrap_or(hidden_size / heads);
    let head_dim = fields.size_or("head_dim", bounds::HEAD, derived)?;
    if !head_dim.is_multiple_of(2) && row.rotary != Rotary::Learned {
        let problem = format!("is {head_dim}; rotary embedding turns pairs, so a head's size must be even");
        return Err(fields.error("head_dim", problem));
    }
    Ok(head_dim)
}

fn biases(fields: &Fields<'_>, row: &Row) -> Result<Biases> {
    let attention = |default| fields.flag_or("attention_bias", default);
    let of = |qkv, output, mlp| Biases { qkv, output, mlp };
    Ok(match row.biases {
        BiasRule::None => Biases::default(),
        BiasRule::Qkv => of(true, false, false),
        BiasRule::QkvField => of(attention(true)?, false, false),
        BiasRule::AttentionField => of(attention(false)?, attention(false)?, false),
        BiasRule::AttentionAndMlpFields => {
            of(attention(false)?, attention(false)?, fields.flag_or("mlp_bias", false)?)
        }
        BiasRule::AllField(default) => {
            let all = fields.flag_or("use_bias", default)?;
            of(all, all, all)
        }
        BiasRule::AttentionFieldAndMlp => of(attention(true)?, attention(true)?, true),
        BiasRule::All => of(true, true, true),
    })
}

fn experts(fields: &Fields<'_>, row: &Row, layers: usize) -> Result<Option<Experts>> {
    let Some(rule) = row.experts else { return Ok(None) };
    let (names, default) = rule.count;
    let name = names.iter().find(|name| fields.present(name).is_some()).unwrap_or(&names[0]);
    let count = fields.size_or(name, bounds::EXPERTS, default)?;
    let per_token = fields.size_or("num_experts_per_tok", bounds::EXPERTS, rule.per_token)?;
    if per_token > count {
        let problem = format!("is {per_token}, more than the {count} of {name}");
        return Err(fields.error("num_experts_per_tok", problem));
    }
    let normalized = rule.normalized || fields.flag_or("norm_topk_prob", false)?;
    let inner = fields.size_or(rule.inner.0, bounds::INNER, rule.inner.1)?;
    if count * layers > bounds::EXPERTS_OF_ALL {
        let problem = format!("is {count}, on {layers} layers: more than {} in all", bounds::EXPERTS_OF_ALL);
        return Err(fields.error(*name, problem));
    }
    Ok(Some(Experts { count, per_token, inner, normalized }))
}

/// What the MLP half of each layer is: of some families with experts, `mlp_only_layers` and
/// `decoder_sparse_step` leave some layers without.
fn mlps(fields: &Fields<'_>, row: &Row, layers: usize) -> Result<Vec<Mlp>> {
    let plain = if row.gated { Mlp::Gated } else { Mlp::Plain };
    match row.experts {
        None => return Ok(vec![plain; layers]),
        Some(experts) if !experts.some_layers => return Ok(vec![Mlp::Experts; layers]),
        Some(_) => {}
    }
    let name = "mlp_only_layers";
    let without = match fields.present(name) {
        None => Vec::new(),
        Some(Value::Array(list)) => {
            let number = |value: &Value| value.as_u64().filter(|&layer| layer < layers as u64);
            let number = |value| number(value).ok_or_else(|| fields.wrong(name, value, "numbers of layers"));
            list.iter().map(number).collect::<Result<Vec<_>>>()?
        }
        Some(value) => return Err(fields.wrong(name, value, "a list of layers")),
    };
    let step = fields.size_or("decoder_sparse_step", bounds::LAYERS, 1)?;
    let sparse = |layer: usize| !without.contains(&(layer as u64)) && (layer + 1).is_multiple_of(step);
    Ok((0..layers).map(|layer| if sparse(layer) { Mlp::Experts } else { plain }).collect())
}

fn windows(fields: &Fields<'_>, row: &Row, layers: usize) -> Result<Vec<Option<usize>>> {
    let name = "sliding_window";
    let window = |default: Option<usize>| match (fields.get(name), default) {
        (Some(Value::Null), _) | (None, None) => Ok(None),
        (_, default) => fields.size_or(name, bounds::POSITIONS, default.unwrap_or(1)).map(Some),
    };
    let used = fields.flag_or("use_sliding_window", false)?;
    let types = fields.present("layer_types");
    match row.windows {
        Windows::None => Ok(vec![None; layers]),
        Windows::AllLayers(default) => {
            let window = window(default)?;
            match types {
                Some(types) => typed_windows(fields, types, window, layers),
                None => Ok(vec![window; layers]),
            }
        }
        Windows::Pattern { window: default, every } => {
            let window = window(Some(default))?;
            match types {
                Some(types) => typed_windows(fields, types, window, layers),
                None => {
                    let every = fields.size_or("sliding_window_pattern", bounds::LAYERS, every)?;
                    Ok((1..=layers).map(|layer| window.filter(|_| !layer.is_multiple_of(every))).collect())
                }
            }
        }
        Windows::AllLayersIfUsed => Ok(vec![window(Some(4096))?.filter(|_| used); layers]),
        Windows::LayersWithoutRotary => {
            let window = window(None)?.filter(|_| used);
            match types {
                Some(types) => typed_windows(fields, types, window, layers),
                None => {
                    let turned = rotary::turned_layers(fields, layers)?.into_iter();
                    Ok(turned.map(|turned| window.filter(|_| turned.is_none())).collect())
                }
            }
        }
        Windows::UpperLayers => {
            let window = window(Some(4096))?.filter(|_| used);
            match types {
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
    fields: &Fields<'_>,
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

fn activation(fields: &Fields<'_>, row: &Row) -> Result<Activation> {
    let (field, default) = row.activation;
    let name = fields.text(field)?;
    let name = name.as_deref().unwrap_or(default);
    parse_activation(name).ok_or_else(|| {
        let problem = format!("is {name:?}; supported are `silu`, `gelu` and `gelu_pytorch_tanh`");
        fields.error(field, problem)
    })
}

/// The activation of this name.
fn parse_activation(name: &str) -> Option<Activation> {
    match name {
        "silu" | "swish" => Some(Activation::Silu),
        "gelu" => Some(Activation::Gelu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Some(Activation::GeluTanh),
        _ => None,
    }
}

fn dtype(fields: &Fields<'_>) -> Result<Option<StoredDType>> {
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
