//! Where a model's parameters lie in a GGUF file: llama.cpp's names (`gguf-py/gguf/constants.py`), and what its
//! converter does to the values (`conversion/*.py`), as data. Readers and writers both ask here.

use crate::config::{Config, FusedQkv, GgufForm, NormKind};
use crate::names::{ModuleId, NormPart, Parameter, Part};

/// Tensors that only the rotary embedding needs; the configuration is made of them.
pub const ROPE_FACTORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Where a parameter lies in a GGUF file, and how its values stand there.
///
/// A tensor's rows are what its first dimension runs along. The parameter is the matrix `[rows, cols]` of
/// [`Parameter`], whatever a Hugging Face folder has of it: GGUF files are never transposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufPlace {
    /// The tensor's name.
    pub tensor: String,
    /// Its dimensions, the fastest one first: of experts, those of one layer lie in one tensor.
    pub dimensions: Vec<u64>,
    /// Which of the tensor's rows is the parameter's first.
    pub first_row: usize,
    /// In which order the parameter's rows stand there; a bias's elements, as its weight's rows.
    pub order: RowOrder,
    /// Whether one was added to each value: llama.cpp multiplies by Gemma's norms as they are in the file.
    pub plus_one: bool,
}

/// In which order rows stand in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As in a Hugging Face folder.
    Same,
    /// Of each head of `head` rows, the rows `i` and `i + head / 2`, which a rotary embedding turns together,
    /// are neighbours (`LlamaModel.permute`).
    PairsTogether {
        /// Rows of a head.
        head: usize,
    },
    /// A folder has query, key and value of each of `heads` heads together, the file all queries, all keys,
    /// all values (`GPTNeoXModel.modify_tensors`).
    PartsTogether {
        /// Heads.
        heads: usize,
        /// Rows of a head in each part.
        head: usize,
    },
}

impl RowOrder {
    /// Where the row of this number stands in the file, counted from the parameter's first.
    pub fn place(self, row: usize) -> usize {
        match self {
            RowOrder::Same => row,
            RowOrder::PairsTogether { head } => {
                let within = row % head;
                row - within + within % (head / 2) * 2 + within / (head / 2)
            }
            RowOrder::PartsTogether { heads, head } => {
                let (of_head, part, within) = (row / head / 3, row / head % 3, row % head);
                (part * heads + of_head) * head + within
            }
        }
    }
}

impl Config {
    /// Where a GGUF file of this model has a parameter; `None` if how llama.cpp holds the family is not known.
    pub fn gguf_place(&self, parameter: &Parameter) -> Option<GgufPlace> {
        let form = self.gguf?;
        let &Parameter { module, bias, rows, cols, .. } = parameter;
        let ending = if bias { "bias" } else { "weight" };
        let size = |size: usize| size as u64;
        let (dimensions, first_row) = match (module, &self.experts) {
            (ModuleId::Expert { expert, .. }, Some(experts)) => {
                (vec![size(cols), size(rows), size(experts.count)], expert * rows)
            }
            _ if parameter.is_vector() => (vec![size(cols)], 0),
            _ => (vec![size(cols), size(rows)], 0),
        };
        Some(GgufPlace {
            tensor: format!("{}.{ending}", module_name(module)),
            dimensions,
            first_row,
            order: self.row_order(module, form),
            plus_one: module.is_norm() && !bias && self.norm == NormKind::RmsPlusOne,
        })
    }

    fn row_order(&self, module: ModuleId, form: GgufForm) -> RowOrder {
        let ModuleId::Linear { part, .. } = module else { return RowOrder::Same };
        let (heads, head) = (self.heads, self.head_dim);
        match part {
            Part::Q | Part::K if form.pairs_are_neighbours => RowOrder::PairsTogether { head },
            Part::Qkv if self.fused_qkv == Some(FusedQkv::ByHead) => RowOrder::PartsTogether { heads, head },
            _ => RowOrder::Same,
        }
    }
}

/// What llama.cpp calls a module.
pub(super) fn module_name(module: ModuleId) -> String {
    match module {
        ModuleId::Embedding => "token_embd".to_owned(),
        ModuleId::Positions => "position_embd".to_owned(),
        ModuleId::FinalNorm => "output_norm".to_owned(),
        ModuleId::Head => "output".to_owned(),
        ModuleId::Norm { layer, part } => format!("blk.{layer}.{}", norm_name(part)),
        ModuleId::Linear { layer, part } => format!("blk.{layer}.{}", part_name(part)),
        ModuleId::Expert { layer, part, .. } => format!("blk.{layer}.{}_exps", part_name(part)),
    }
}

fn norm_name(part: NormPart) -> &'static str {
    match part {
        NormPart::Attention => "attn_norm",
        NormPart::Q => "attn_q_norm",
        NormPart::K => "attn_k_norm",
        NormPart::AfterAttention => "post_attention_norm",
        NormPart::Mlp => "ffn_norm",
        NormPart::AfterMlp => "post_ffw_norm",
    }
}

fn part_name(part: Part) -> &'static str {
    match part {
        Part::Q => "attn_q",
        Part::K => "attn_k",
        Part::V => "attn_v",
        Part::Qkv => "attn_qkv",
        Part::O => "attn_output",
        Part::Router => "ffn_gate_inp",
        Part::Gate => "ffn_gate",
        // Gate and up in one layer, gate first, bear the name of the second.
        Part::Up | Part::GateUp => "ffn_up",
        Part::Down => "ffn_down",
    }
}
