//! The names of each family's parts: a row for each way of naming them.

use super::NormPart::{AfterAttention, AfterMlp, Attention, K as KNorm, Mlp, Q as QNorm};
use super::Part::{Down, Gate, GateUp, K, O, Q, Qkv, Router, Up, V};
use super::Table;

/// Llama's names, which most families share.
pub(crate) const LLAMA: Table = Table {
    root: "model",
    embedding: "embed_tokens",
    positions: "",
    layers: "layers",
    final_norm: "norm",
    head: "lm_head",
    parts: &[
        (Q, "self_attn.q_proj"),
        (K, "self_attn.k_proj"),
        (V, "self_attn.v_proj"),
        (Qkv, "self_attn.qkv_proj"),
        (O, "self_attn.o_proj"),
        (Router, "mlp.gate"),
        (Gate, "mlp.gate_proj"),
        (Up, "mlp.up_proj"),
        (GateUp, "mlp.gate_up_proj"),
        (Down, "mlp.down_proj"),
    ],
    experts: "mlp.experts",
    expert_parts: ["gate_proj", "up_proj", "down_proj"],
    norms: &[
        (Attention, "input_layernorm"),
        (QNorm, "self_attn.q_norm"),
        (KNorm, "self_attn.k_norm"),
        (Mlp, "post_attention_layernorm"),
    ],
    activation: "mlp.act_fn",
    other_files: &[],
};

/// A norm on each side of both halves.
pub(crate) const GEMMA: Table = Table {
    norms: &[
        (Attention, "input_layernorm"),
        (QNorm, "self_attn.q_norm"),
        (KNorm, "self_attn.k_norm"),
        (AfterAttention, "post_attention_layernorm"),
        (Mlp, "pre_feedforward_layernorm"),
        (AfterMlp, "post_feedforward_layernorm"),
    ],
    ..LLAMA
};

/// OLMo 2's norms stand behind the halves only.
pub(crate) const OLMO2: Table = Table {
    norms: &[
        (QNorm, "self_attn.q_norm"),
        (KNorm, "self_attn.k_norm"),
        (AfterAttention, "post_attention_layernorm"),
        (AfterMlp, "post_feedforward_layernorm"),
    ],
    ..LLAMA
};

/// GLM-4 has norms on both sides too, under other names.
pub(crate) const GLM4: Table = Table {
    norms: &[
        (Attention, "input_layernorm"),
        (AfterAttention, "post_self_attn_layernorm"),
        (Mlp, "post_attention_layernorm"),
        (AfterMlp, "post_mlp_layernorm"),
    ],
    activation: "mlp.activation_fn",
    ..LLAMA
};

/// Phi-3: Llama's names, another activation's.
pub(crate) const PHI3: Table = Table { activation: "mlp.activation_fn", ..LLAMA };

/// Hunyuan's norms of queries and keys.
pub(crate) const HUNYUAN: Table = Table {
    norms: &[
        (Attention, "input_layernorm"),
        (QNorm, "self_attn.query_layernorm"),
        (KNorm, "self_attn.key_layernorm"),
        (Mlp, "post_attention_layernorm"),
    ],
    ..LLAMA
};

/// Mixtral's experts, as files name them.
pub(crate) const MIXTRAL: Table = Table {
    parts: &[
        (Q, "self_attn.q_proj"),
        (K, "self_attn.k_proj"),
        (V, "self_attn.v_proj"),
        (O, "self_attn.o_proj"),
        (Router, "block_sparse_moe.gate"),
    ],
    experts: "block_sparse_moe.experts",
    expert_parts: ["w1", "w3", "w2"],
    ..LLAMA
};

/// GPT-2; the oldest files are those of the transformer without its head.
pub(crate) const GPT2: Table = Table {
    root: "transformer",
    embedding: "wte",
    positions: "wpe",
    layers: "h",
    final_norm: "ln_f",
    parts: &[(Qkv, "attn.c_attn"), (O, "attn.c_proj"), (Up, "mlp.c_fc"), (Down, "mlp.c_proj")],
    norms: &[(Attention, "ln_1"), (Mlp, "ln_2")],
    activation: "mlp.act",
    other_files: &[("", "lm_head")],
    ..LLAMA
};

/// GPT-3's parts by the names of LoRA's paper; there are no files of it.
pub(crate) const GPT3: Table = Table {
    positions: "embed_positions",
    parts: &[
        (Q, "self_attn.q_proj"),
        (K, "self_attn.k_proj"),
        (V, "self_attn.v_proj"),
        (O, "self_attn.o_proj"),
        (Up, "mlp.up_proj"),
        (Down, "mlp.down_proj"),
    ],
    ..LLAMA
};

/// GPT-NeoX (Pythia).
pub(crate) const GPT_NEOX: Table = Table {
    root: "gpt_neox",
    embedding: "embed_in",
    final_norm: "final_layer_norm",
    head: "embed_out",
    parts: &[
        (Qkv, "attention.query_key_value"),
        (O, "attention.dense"),
        (Up, "mlp.dense_h_to_4h"),
        (Down, "mlp.dense_4h_to_h"),
    ],
    norms: &[(Attention, "input_layernorm"), (Mlp, "post_attention_layernorm")],
    activation: "mlp.act",
    ..LLAMA
};

/// StarCoder2: Llama's attention, GPT-2's MLP.
pub(crate) const STARCODER2: Table = Table {
    parts: &[
        (Q, "self_attn.q_proj"),
        (K, "self_attn.k_proj"),
        (V, "self_attn.v_proj"),
        (O, "self_attn.o_proj"),
        (Up, "mlp.c_fc"),
        (Down, "mlp.c_proj"),
    ],
    norms: &[(Attention, "input_layernorm"), (Mlp, "post_attention_layernorm")],
    activation: "mlp.act",
    ..LLAMA
};

/// What holds the model of texts inside a wrapper.
pub(crate) const WRAPPED: &str = "model.language_model";

/// Where transformers up to 4.51 has the model of texts inside a wrapper, and files still do, with its head.
pub(crate) const OLD_WRAPPED: &[(&str, &str)] = &[("language_model.model", "language_model.lm_head")];

/// Buffers some old checkpoints carry that are computed here.
pub(crate) const COMPUTED_BUFFERS: [&str; 6] = [
    ".rotary_emb.inv_freq",
    ".self_attn.masked_bias",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
];

/// What transformers 5 calls what holds the experts of a block, whatever files call it.
pub(crate) const EXPERTS: &str = "mlp.experts";

/// And what it calls the choice of experts.
pub(crate) const ROUTER: &str = "mlp.gate";

/// What it calls the two parameters of all experts: gate and up of each, one below the other, and down.
pub(crate) const OF_EXPERTS: [(super::Part, &str); 2] = [(GateUp, "gate_up_proj"), (Down, "down_proj")];

/// What PEFT's table has for most families where `target_modules` is null.
pub const DEFAULT_TARGETS: [&str; 2] = ["q_proj", "v_proj"];
