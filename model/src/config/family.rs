//! The families: a row of fields for each, with what its configuration class in transformers takes where
//! config.json is silent.

use super::{BY_LAYER, NormKind, Norms, Span};
use crate::names::{Table, tables};

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
    /// Gemma 3: norms on both sides of each half, five layers with a window to one without, two rotary bases.
    Gemma3,
    /// Gemma 2: norms on both sides of each half, a window on every other layer, soft caps.
    Gemma2,
    /// Phi-3, Phi-3.5 and Phi-4: fused projections.
    Phi3,
    /// GPT-2: layer norms, learned positions, weights stored transposed.
    Gpt2,
    /// SmolLM3: no rotary embedding on every fourth layer.
    SmolLm3,
    /// Granite 3: multipliers.
    Granite,
    /// OLMo 2: norms only behind the halves, and over all queries and all keys.
    Olmo2,
    /// OLMo 3: OLMo 2 with windows on three of four layers.
    Olmo3,
    /// Ministral 3: YaRN, and queries that grow with the position.
    Ministral3,
    /// GLM-4: norms on both sides of each half, pairs of neighbours turned in half of each head.
    Glm4,
    /// GPT-NeoX and Pythia: layer norms, both halves read the same input.
    GptNeoX,
    /// StarCoder2: Mistral with layer norms, biases, and no gate in the MLP.
    Starcoder2,
    /// Hunyuan, dense: norms of queries and keys behind the rotary embedding.
    Hunyuan,
    /// ERNIE 4.5, dense: pairs of neighbours turned.
    Ernie45,
    /// Qwen3 with a mixture of experts.
    Qwen3Moe,
    /// Mixtral: Mistral with a mixture of experts.
    Mixtral,
}

/// How llama.cpp holds a family in GGUF files (its `convert_hf_to_gguf.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgufForm {
    /// What it calls the architecture.
    pub architecture: &'static str,
    /// Whether rows of queries and keys stand so that the pairs which a rotary embedding turns are
    /// neighbours.
    pub pairs_are_neighbours: bool,
}

impl GgufForm {
    /// Rows as they stand in a Hugging Face folder.
    const fn plain(architecture: &'static str) -> Option<GgufForm> {
        Some(GgufForm { architecture, pairs_are_neighbours: false })
    }

    /// The rows of Llama and what llama.cpp converts like it.
    const fn like_llama(architecture: &'static str) -> Option<GgufForm> {
        Some(GgufForm { architecture, pairs_are_neighbours: true })
    }
}

/// How mlx-lm holds a family whose weights stand there under the names and in the shapes of Hugging Face folders
/// (`mlx_lm/models`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlxForm {
    /// Which heads it has.
    pub head: MlxHead,
    /// Whether it reads how the rotary embedding is stretched.
    pub scales_rotary: bool,
}

/// The heads that mlx-lm has for a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlxHead {
    /// The embedding, or one of its own, as config.json says.
    Any,
    /// The embedding.
    Tied,
    /// One of its own.
    Own,
}

impl MlxForm {
    const ANY: Option<MlxForm> = Some(MlxForm { head: MlxHead::Any, scales_rotary: true });

    const fn unscaled(head: MlxHead) -> Option<MlxForm> {
        Some(MlxForm { head, scales_rotary: false })
    }
}

/// What llama.cpp makes of Ministral 3, and of every model of texts that Mistral 3 wraps.
const MISTRAL3_IN_GGUF: Option<GgufForm> = GgufForm::like_llama("mistral3");

/// What a family fixes, and what it takes where config.json is silent.
pub(super) struct Row {
    pub(super) model_type: &'static str,
    /// The class that transformers names in `architectures`.
    pub(super) architecture: &'static str,
    pub(super) names: &'static Table,
    /// How llama.cpp holds the family in GGUF files; `None`: not known here.
    pub(super) gguf: Option<GgufForm>,
    /// How mlx-lm holds it; `None`: in another form than folders, or not known here.
    pub(super) mlx: Option<MlxForm>,
    /// Our words for fields and the file's, where they differ.
    pub(super) aliases: &'static [(&'static str, &'static str)],
    /// Sizes that files of the family leave out: vocabulary, width, inner width, layers, heads.
    pub(super) sizes: Option<[usize; 5]>,
    /// `None`: as many as query heads.
    pub(super) kv_heads: Option<usize>,
    /// `None`: width over heads.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) bos: Option<u32>,
    pub(super) eos: &'static [u32],
    pub(super) pad: Option<u32>,
    pub(super) tied: bool,
    /// The activation's field and its default.
    pub(super) activation: (&'static str, &'static str),
    pub(super) norm: NormKind,
    /// The field of what is added to a norm's variance, and its default.
    pub(super) norm_eps: (&'static str, f64),
    pub(super) norms: Norms,
    pub(super) residual: Residual,
    pub(super) biases: Biases,
    /// Norms of queries and keys: over what, and whether behind the rotary embedding.
    pub(super) qk_norm: Option<(Span, bool)>,
    pub(super) windows: Windows,
    pub(super) rotary: Rotary,
    pub(super) rope_theta: f64,
    /// Which part of each head is turned; none: all of it, always.
    pub(super) partial_rotary: Option<f64>,
    /// What the family alone has among the parameters of its rotary embedding.
    pub(super) rope_extra: RopeExtra,
    /// Whether neighbours `(2i, 2i + 1)` are turned together, rather than `(i, i + D / 2)`.
    pub(super) interleaved: bool,
    pub(super) fused: Fused,
    /// A gate in the MLP.
    pub(super) gated: bool,
    /// Linear layers are stored `[in, out]`.
    pub(super) transposed: bool,
    /// Whether the inner width is four times the width where the file does not say it.
    pub(super) four_widths: bool,
    /// Whether embeddings are multiplied by the root of the width.
    pub(super) embeddings_by_width: bool,
    pub(super) experts: Option<ExpertFields>,
    /// Numbers that change the arithmetic and that this family has, with their defaults; elsewhere they are
    /// refused.
    pub(super) numbers: &'static [(&'static str, Option<f64>)],
    /// Flags that change the arithmetic and that this family has, off if absent; elsewhere they are refused.
    pub(super) flags: &'static [&'static str],
    /// Fields that change the arithmetic elsewhere, and that the family's own code passes over.
    pub(super) ignores: &'static [&'static str],
}

/// Which inputs the halves of a block read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Residual {
    /// The MLP reads what attention made.
    Serial,
    /// `use_parallel_residual`, true if absent: both halves read the block's input.
    ParallelField,
}

/// Which linear layers of a family have biases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Biases {
    None,
    /// Always on queries, keys and values.
    Qkv,
    /// By the field `attention_bias` (true if absent) on queries, keys and values.
    QkvField,
    /// By the field `attention_bias`, on all four of attention.
    AttentionField,
    /// By the fields `attention_bias` and `mlp_bias`.
    AttentionAndMlpFields,
    /// By the field `use_bias`, on all; this if absent.
    AllField(bool),
    /// By the field `attention_bias` (true if absent) on attention; always on the MLP.
    AttentionFieldAndMlp,
    /// Always, on all.
    All,
}

/// How a family says which layers see a sliding window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    None,
    /// `sliding_window`, all layers; the default where the field is absent.
    AllLayers(Option<usize>),
    /// `use_sliding_window`, `sliding_window` and `max_window_layers` or `layer_types`.
    UpperLayers,
    /// `use_sliding_window` and `sliding_window`, all layers.
    AllLayersIfUsed,
    /// `use_sliding_window` and `sliding_window`, the layers without rotary embedding, or `layer_types`.
    LayersWithoutRotary,
    /// `layer_types`, or all but every n-th layer, counted from 1, by `sliding_window_pattern`; the default
    /// of both.
    Pattern {
        window: usize,
        every: usize,
    },
}

/// What is done about positions.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rotary {
    /// A table of embeddings.
    Learned,
    /// One rotary embedding for all layers.
    All,
    /// None on the layers that `no_rope_layers` or `no_rope_layer_interval` (4 if absent) leave out.
    Skipping,
    /// Layers with a window have a base of their own and no scaling: `rope_local_base_freq`, or this if
    /// absent.
    LocalBase(f64),
    /// Layers with a window have the default base and no scaling.
    LocalUnscaled,
}

/// What only one family writes among its rotary parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RopeExtra {
    None,
    /// `dynamic` with an `alpha`, by which the base grows whatever the length of the text (Hunyuan).
    DynamicAlpha,
    /// `su` and `yarn` for what is `longrope` now (early releases of Phi-3).
    LongRopeByOldNames,
    /// `llama_4_scaling_beta`, by which queries grow; and all of [`MINISTRAL3_ROPE`] where there are no
    /// parameters at all.
    QueryGrowth,
}

/// The parameters that transformers' `Ministral3Config` takes where there are none.
pub(super) const MINISTRAL3_ROPE: &str = r#"{"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0,
    "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0,
    "mscale": 1.0, "llama_4_scaling_beta": 0.1}"#;

/// Which projections are one layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fused {
    None,
    GateUp,
    /// Queries, keys and values one after the other, and gate and up.
    QkvAndGateUp,
    /// Queries, keys and values one after the other.
    Qkv,
    /// Query, key and value of each head one after the other.
    QkvByHead,
}

/// How a family writes down its experts.
#[derive(Clone, Copy)]
pub(super) struct ExpertFields {
    /// The fields that may give their number, and the default.
    pub(super) count: (&'static [&'static str], usize),
    pub(super) per_token: usize,
    /// The field of their inner width.
    pub(super) inner: (&'static str, usize),
    /// Whether the weights of a token's experts always sum to one; else `norm_topk_prob` says.
    pub(super) normalized: bool,
    /// Whether `mlp_only_layers` and `decoder_sparse_step` leave some layers without.
    pub(super) some_layers: bool,
}

const LLAMA: Row = Row {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    gguf: GgufForm::like_llama("llama"),
    mlx: MlxForm::ANY,
    names: &tables::LLAMA,
    aliases: &[],
    sizes: None,
    kv_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    bos: Some(1),
    eos: &[2],
    pad: None,
    tied: false,
    activation: ("hidden_act", "silu"),
    norm: NormKind::Rms,
    norm_eps: ("rms_norm_eps", 1e-6),
    norms: Norms { before: true, behind: false },
    residual: Residual::Serial,
    biases: Biases::AttentionAndMlpFields,
    qk_norm: None,
    windows: Windows::None,
    rotary: Rotary::All,
    rope_theta: 10_000.0,
    partial_rotary: None,
    rope_extra: RopeExtra::None,
    interleaved: false,
    fused: Fused::None,
    gated: true,
    transposed: false,
    four_widths: false,
    embeddings_by_width: false,
    experts: None,
    numbers: &[],
    flags: &[],
    ignores: &[],
};

const MISTRAL: Row = Row {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    kv_heads: Some(8),
    max_position_embeddings: 131_072,
    biases: Biases::None,
    windows: Windows::AllLayers(Some(4096)),
    ..LLAMA
};

const QWEN2: Row = Row {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    gguf: GgufForm::plain("qwen2"),
    kv_heads: Some(32),
    max_position_embeddings: 32_768,
    bos: None,
    eos: &[],
    biases: Biases::Qkv,
    windows: Windows::UpperLayers,
    ..LLAMA
};

const QWEN3: Row = Row {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    gguf: GgufForm::plain("qwen3"),
    head_dim: Some(128),
    biases: Biases::AttentionField,
    qk_norm: Some((Span::Head, false)),
    ..QWEN2
};

const GEMMA2: Row = Row {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    gguf: GgufForm::plain("gemma2"),
    mlx: MlxForm::unscaled(MlxHead::Tied),
    names: &tables::GEMMA,
    sizes: Some([256_000, 2304, 9216, 26, 8]),
    kv_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    bos: Some(2),
    eos: &[1],
    pad: Some(0),
    tied: true,
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    norm: NormKind::RmsPlusOne,
    norms: Norms { before: true, behind: true },
    biases: Biases::AttentionField,
    windows: Windows::Pattern { window: 4096, every: 2 },
    embeddings_by_width: true,
    numbers: &[
        ("query_pre_attn_scalar", Some(256.0)),
        ("attn_logit_softcapping", Some(50.0)),
        ("final_logit_softcapping", Some(30.0)),
    ],
    ..LLAMA
};

const GEMMA3: Row = Row {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    gguf: GgufForm::plain("gemma3"),
    mlx: None,
    sizes: Some([262_208, 2304, 9216, 26, 8]),
    max_position_embeddings: 131_072,
    qk_norm: Some((Span::Head, false)),
    windows: Windows::Pattern { window: 4096, every: 6 },
    rotary: Rotary::LocalBase(10_000.0),
    rope_theta: 1_000_000.0,
    numbers: &[("query_pre_attn_scalar", Some(256.0)), ("final_logit_softcapping", None)],
    ignores: &["attn_logit_softcapping"],
    ..GEMMA2
};

const PHI3: Row = Row {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    gguf: GgufForm::plain("phi3"),
    mlx: MlxForm::unscaled(MlxHead::Any),
    names: &tables::PHI3,
    max_position_embeddings: 4096,
    eos: &[32_000],
    pad: Some(32_000),
    norm_eps: ("rms_norm_eps", 1e-5),
    biases: Biases::None,
    windows: Windows::AllLayers(None),
    partial_rotary: Some(1.0),
    rope_extra: RopeExtra::LongRopeByOldNames,
    fused: Fused::QkvAndGateUp,
    ..LLAMA
};

const GPT2: Row = Row {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    gguf: GgufForm::plain("gpt2"),
    mlx: None,
    names: &tables::GPT2,
    aliases: &[
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
    ],
    sizes: Some([50_257, 768, 3072, 12, 12]),
    max_position_embeddings: 1024,
    bos: Some(50_256),
    eos: &[50_256],
    tied: true,
    activation: ("activation_function", "gelu_new"),
    norm: NormKind::Layer,
    norm_eps: ("layer_norm_epsilon", 1e-5),
    biases: Biases::All,
    rotary: Rotary::Learned,
    fused: Fused::Qkv,
    gated: false,
    transposed: true,
    four_widths: true,
    flags: &[BY_LAYER],
    ..LLAMA
};

const SMOLLM3: Row = Row {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    gguf: GgufForm::like_llama("smollm3"),
    kv_heads: Some(4),
    max_position_embeddings: 32_768,
    bos: Some(128_000),
    eos: &[128_001],
    pad: Some(128_004),
    tied: true,
    windows: Windows::LayersWithoutRotary,
    rotary: Rotary::Skipping,
    rope_theta: 2_000_000.0,
    ..LLAMA
};

const GRANITE: Row = Row {
    model_type: "granite",
    architecture: "GraniteForCausalLM",
    gguf: GgufForm::like_llama("granite"),
    numbers: &[
        ("embedding_multiplier", Some(1.0)),
        ("attention_multiplier", Some(1.0)),
        ("residual_multiplier", Some(1.0)),
        ("logits_scaling", Some(1.0)),
    ],
    ..LLAMA
};

const OLMO2: Row = Row {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    gguf: GgufForm::plain("olmo2"),
    names: &tables::OLMO2,
    bos: None,
    eos: &[50_279],
    pad: Some(1),
    norm_eps: ("rms_norm_eps", 1e-5),
    norms: Norms { before: false, behind: true },
    biases: Biases::AttentionField,
    qk_norm: Some((Span::Width, false)),
    ..LLAMA
};

const OLMO3: Row = Row {
    model_type: "olmo3",
    architecture: "Olmo3ForCausalLM",
    mlx: None,
    windows: Windows::Pattern { window: 4096, every: 4 },
    rotary: Rotary::LocalUnscaled,
    rope_theta: 500_000.0,
    ..OLMO2
};

const MINISTRAL3: Row = Row {
    model_type: "ministral3",
    architecture: "Ministral3ForCausalLM",
    gguf: MISTRAL3_IN_GGUF,
    head_dim: Some(128),
    pad: Some(11),
    max_position_embeddings: 262_144,
    norm_eps: ("rms_norm_eps", 1e-5),
    windows: Windows::AllLayers(None),
    rope_extra: RopeExtra::QueryGrowth,
    ..MISTRAL
};

const GLM4: Row = Row {
    model_type: "glm4",
    architecture: "Glm4ForCausalLM",
    gguf: GgufForm::plain("glm4"),
    mlx: MlxForm::unscaled(MlxHead::Own),
    names: &tables::GLM4,
    kv_heads: Some(2),
    head_dim: Some(128),
    max_position_embeddings: 131_072,
    bos: None,
    eos: &[151_329, 151_336, 151_338],
    pad: Some(151_329),
    norm_eps: ("rms_norm_eps", 1.5625e-7),
    norms: Norms { before: true, behind: true },
    biases: Biases::QkvField,
    partial_rotary: Some(0.5),
    interleaved: true,
    fused: Fused::GateUp,
    ..LLAMA
};

const GPT_NEOX: Row = Row {
    model_type: "gpt_neox",
    architecture: "GPTNeoXForCausalLM",
    gguf: GgufForm::plain("gptneox"),
    mlx: None,
    names: &tables::GPT_NEOX,
    aliases: &[("partial_rotary_factor", "rotary_pct"), ("rope_theta", "rotary_emb_base")],
    bos: Some(0),
    activation: ("hidden_act", "gelu"),
    norm: NormKind::Layer,
    norm_eps: ("layer_norm_eps", 1e-5),
    residual: Residual::ParallelField,
    biases: Biases::AttentionFieldAndMlp,
    partial_rotary: Some(0.25),
    fused: Fused::QkvByHead,
    gated: false,
    ..LLAMA
};

const STARCODER2: Row = Row {
    model_type: "starcoder2",
    architecture: "Starcoder2ForCausalLM",
    gguf: GgufForm::plain("starcoder2"),
    mlx: MlxForm::unscaled(MlxHead::Any),
    names: &tables::STARCODER2,
    kv_heads: Some(2),
    max_position_embeddings: 4096,
    bos: Some(50_256),
    eos: &[50_256],
    tied: true,
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    norm: NormKind::Layer,
    norm_eps: ("norm_epsilon", 1e-5),
    biases: Biases::AllField(true),
    windows: Windows::AllLayers(None),
    gated: false,
    ..LLAMA
};

const HUNYUAN: Row = Row {
    model_type: "hunyuan_v1_dense",
    architecture: "HunYuanDenseV1ForCausalLM",
    gguf: GgufForm::plain("hunyuan-dense"),
    mlx: MlxForm::unscaled(MlxHead::Any),
    names: &tables::HUNYUAN,
    pad: Some(0),
    norm_eps: ("rms_norm_eps", 1e-5),
    biases: Biases::AttentionField,
    qk_norm: Some((Span::Head, true)),
    rope_extra: RopeExtra::DynamicAlpha,
    ..LLAMA
};

const ERNIE45: Row = Row {
    model_type: "ernie4_5",
    architecture: "Ernie4_5ForCausalLM",
    gguf: GgufForm::plain("ernie4_5"),
    mlx: MlxForm::unscaled(MlxHead::Any),
    kv_heads: Some(2),
    head_dim: Some(128),
    max_position_embeddings: 131_072,
    pad: Some(0),
    tied: true,
    norm_eps: ("rms_norm_eps", 1e-5),
    biases: Biases::AllField(false),
    rope_theta: 500_000.0,
    interleaved: true,
    ..LLAMA
};

const QWEN3_MOE: Row = Row {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    gguf: GgufForm::plain("qwen3moe"),
    mlx: None,
    kv_heads: Some(4),
    head_dim: None,
    windows: Windows::AllLayersIfUsed,
    experts: Some(ExpertFields {
        count: (&["num_experts", "num_local_experts"], 128),
        per_token: 8,
        inner: ("moe_intermediate_size", 768),
        normalized: false,
        some_layers: true,
    }),
    ..QWEN3
};

const MIXTRAL: Row = Row {
    model_type: "mixtral",
    architecture: "MixtralForCausalLM",
    mlx: None,
    names: &tables::MIXTRAL,
    norm_eps: ("rms_norm_eps", 1e-5),
    windows: Windows::AllLayers(None),
    rope_theta: 1_000_000.0,
    experts: Some(ExpertFields {
        count: (&["num_local_experts"], 8),
        per_token: 2,
        inner: ("intermediate_size", 14_336),
        normalized: true,
        some_layers: false,
    }),
    ..MISTRAL
};

impl Family {
    /// All families.
    pub const ALL: [Family; 20] = [
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::Gemma3,
        Family::Gemma2,
        Family::Phi3,
        Family::Gpt2,
        Family::SmolLm3,
        Family::Granite,
        Family::Olmo2,
        Family::Olmo3,
        Family::Ministral3,
        Family::Glm4,
        Family::GptNeoX,
        Family::Starcoder2,
        Family::Hunyuan,
        Family::Ernie45,
        Family::Qwen3Moe,
        Family::Mixtral,
    ];

    pub(super) fn row(self) -> &'static Row {
        match self {
            Family::Llama => &LLAMA,
            Family::Mistral => &MISTRAL,
            Family::Qwen2 => &QWEN2,
            Family::Qwen3 => &QWEN3,
            Family::Gemma3 => &GEMMA3,
            Family::Gemma2 => &GEMMA2,
            Family::Phi3 => &PHI3,
            Family::Gpt2 => &GPT2,
            Family::SmolLm3 => &SMOLLM3,
            Family::Granite => &GRANITE,
            Family::Olmo2 => &OLMO2,
            Family::Olmo3 => &OLMO3,
            Family::Ministral3 => &MINISTRAL3,
            Family::Glm4 => &GLM4,
            Family::GptNeoX => &GPT_NEOX,
            Family::Starcoder2 => &STARCODER2,
            Family::Hunyuan => &HUNYUAN,
            Family::Ernie45 => &ERNIE45,
            Family::Qwen3Moe => &QWEN3_MOE,
            Family::Mixtral => &MIXTRAL,
        }
    }

    /// `model_type` in config.json.
    pub fn model_type(self) -> &'static str {
        self.row().model_type
    }

    /// The class transformers names in `architectures`.
    pub fn architecture(self) -> &'static str {
        self.row().architecture
    }

    /// What config.json calls a field, given our word for it.
    pub(crate) fn field(self, ours: &'static str) -> &'static str {
        self.row().aliases.iter().find(|(word, _)| *word == ours).map_or(ours, |(_, theirs)| theirs)
    }

    /// Whether layers of some of its models see a sliding window.
    pub(crate) fn has_windows(self) -> bool {
        self.row().windows != Windows::None
    }

    /// The field of what is added to a norm's variance.
    pub(crate) fn norm_eps_field(self) -> &'static str {
        self.row().norm_eps.0
    }
}

/// A model of texts inside one of several kinds of input: what it is called, where its parts stand, and in
/// files by other releases.
pub(super) struct Wrapper {
    pub(super) model_type: &'static str,
    /// What holds everything but the head.
    pub(super) root: &'static str,
    /// The same, and the head, in files by other releases of transformers.
    pub(super) other_files: &'static [(&'static str, &'static str)],
    /// The families that may be inside; the first if the file does not say.
    pub(super) inside: &'static [Family],
    /// How llama.cpp holds the model of texts inside.
    pub(super) gguf: Option<GgufForm>,
}

pub(super) const WRAPPERS: [Wrapper; 2] = [
    Wrapper {
        model_type: "gemma3",
        root: tables::WRAPPED,
        other_files: tables::OLD_WRAPPED,
        inside: &[Family::Gemma3],
        gguf: GgufForm::plain("gemma3"),
    },
    Wrapper {
        model_type: "mistral3",
        root: tables::WRAPPED,
        other_files: tables::OLD_WRAPPED,
        inside: &[Family::Mistral, Family::Ministral3],
        gguf: MISTRAL3_IN_GGUF,
    },
];
