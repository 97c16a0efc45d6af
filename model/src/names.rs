//! Our parts of a model and the names checkpoints give them: the only table of such strings.
//!
//! Every supported family (Llama, Mistral, Qwen2, Qwen3) names its parts alike. A family that does not would
//! get its own row here and nowhere else.

use std::cmp::Ordering;
use std::fmt;

use crate::config::Config;

/// A linear layer of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Queries, `[H * D, C]`.
    Q,
    /// Keys, `[K * D, C]`.
    K,
    /// Values, `[K * D, C]`.
    V,
    /// The attention's output, `[C, H * D]`.
    O,
    /// The gate of the MLP, `[F, C]`.
    Gate,
    /// What the gate multiplies, `[F, C]`.
    Up,
    /// Back to the model's width, `[C, F]`.
    Down,
}

impl Part {
    /// All parts in the order in which a token meets them.
    pub const ALL: [Part; 7] = [Part::Q, Part::K, Part::V, Part::O, Part::Gate, Part::Up, Part::Down];

    /// The last segment of the module's path, by which target lists name it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Q => "q_proj",
            Part::K => "k_proj",
            Part::V => "v_proj",
            Part::O => "o_proj",
            Part::Gate => "gate_proj",
            Part::Up => "up_proj",
            Part::Down => "down_proj",
        }
    }

    /// The module of the block that holds it.
    pub fn parent(self) -> &'static str {
        match self {
            Part::Q | Part::K | Part::V | Part::O => "self_attn",
            Part::Gate | Part::Up | Part::Down => "mlp",
        }
    }
}

/// A norm of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NormPart {
    /// Before attention, width `C`.
    Attention,
    /// Over each query head (Qwen3), width `D`.
    Q,
    /// Over each key head (Qwen3), width `D`.
    K,
    /// Before the MLP, width `C`.
    Mlp,
}

impl NormPart {
    /// All norms in the order in which a token meets them.
    pub const ALL: [NormPart; 4] = [NormPart::Attention, NormPart::Q, NormPart::K, NormPart::Mlp];

    /// Its path within the block.
    pub fn name(self) -> &'static str {
        match self {
            NormPart::Attention => "input_layernorm",
            NormPart::Q => "self_attn.q_norm",
            NormPart::K => "self_attn.k_norm",
            NormPart::Mlp => "post_attention_layernorm",
        }
    }
}

/// A module that owns parameters. Their order is the one in which a token meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleId {
    /// Token embeddings, `[V, C]`.
    Embedding,
    /// A linear layer of block `layer`.
    Linear {
        /// The block, from 0.
        layer: usize,
        /// Which of its linear layers.
        part: Part,
    },
    /// A norm of block `layer`.
    Norm {
        /// The block, from 0.
        layer: usize,
        /// Which of its norms.
        part: NormPart,
    },
    /// The norm before the head, width `C`.
    FinalNorm,
    /// The output head, `[V, C]`.
    Head,
}

const LAYERS: &str = "model.layers";
const EMBEDDING: &str = "model.embed_tokens";
const FINAL_NORM: &str = "model.norm";
const HEAD: &str = "lm_head";

impl ModuleId {
    /// The module's path as PEFT and `named_modules()` give it, such as `model.layers.0.self_attn.q_proj`.
    pub fn module_path(self) -> String {
        match self {
            ModuleId::Embedding => EMBEDDING.to_owned(),
            ModuleId::Linear { layer, part } => format!("{LAYERS}.{layer}.{}.{}", part.parent(), part.name()),
            ModuleId::Norm { layer, part } => format!("{LAYERS}.{layer}.{}", part.name()),
            ModuleId::FinalNorm => FINAL_NORM.to_owned(),
            ModuleId::Head => HEAD.to_owned(),
        }
    }

    /// The name of its weight in a checkpoint.
    pub fn weight_name(self) -> String {
        self.module_path() + ".weight"
    }

    /// The name of its bias in a checkpoint, for a linear layer that has one.
    pub fn bias_name(self) -> String {
        self.module_path() + ".bias"
    }

    /// The module of a path; `None` if no module with parameters has it. The layer is not checked against a
    /// model.
    pub fn parse(path: &str) -> Option<ModuleId> {
        match path {
            EMBEDDING => return Some(ModuleId::Embedding),
            FINAL_NORM => return Some(ModuleId::FinalNorm),
            HEAD => return Some(ModuleId::Head),
            _ => {}
        }
        let (layer, rest) = path.strip_prefix(LAYERS)?.strip_prefix('.')?.split_once('.')?;
        let canonical = layer == "0" || !layer.starts_with('0');
        let layer = layer.parse().ok().filter(|_| canonical && layer.bytes().all(|b| b.is_ascii_digit()))?;
        if let Some(&part) = NormPart::ALL.iter().find(|p| p.name() == rest) {
            return Some(ModuleId::Norm { layer, part });
        }
        let (parent, name) = rest.split_once('.')?;
        let part = *Part::ALL.iter().find(|p| p.parent() == parent && p.name() == name)?;
        Some(ModuleId::Linear { layer, part })
    }

    /// Whether this is a linear layer, the head included.
    pub fn is_linear(self) -> bool {
        matches!(self, ModuleId::Linear { .. } | ModuleId::Head)
    }

    /// The block it belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            ModuleId::Linear { layer, .. } | ModuleId::Norm { layer, .. } => Some(layer),
            ModuleId::Embedding | ModuleId::FinalNorm | ModuleId::Head => None,
        }
    }

    /// Stage, layer and place within the layer.
    fn order(self) -> (u8, usize, u8) {
        match self {
            ModuleId::Embedding => (0, 0, 0),
            ModuleId::Norm { layer, part: NormPart::Attention } => (1, layer, 0),
            ModuleId::Linear { layer, part: Part::Q } => (1, layer, 1),
            ModuleId::Linear { layer, part: Part::K } => (1, layer, 2),
            ModuleId::Linear { layer, part: Part::V } => (1, layer, 3),
            ModuleId::Norm { layer, part: NormPart::Q } => (1, layer, 4),
            ModuleId::Norm { layer, part: NormPart::K } => (1, layer, 5),
            ModuleId::Linear { layer, part: Part::O } => (1, layer, 6),
            ModuleId::Norm { layer, part: NormPart::Mlp } => (1, layer, 7),
            ModuleId::Linear { layer, part: Part::Gate } => (1, layer, 8),
            ModuleId::Linear { layer, part: Part::Up } => (1, layer, 9),
            ModuleId::Linear { layer, part: Part::Down } => (1, layer, 10),
            ModuleId::FinalNorm => (2, 0, 0),
            ModuleId::Head => (3, 0, 0),
        }
    }
}

impl Ord for ModuleId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for ModuleId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.module_path())
    }
}

/// A module with the size of its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Which.
    pub id: ModuleId,
    /// Rows of the weight: output features, vocabulary, or 1 for a norm.
    pub rows: usize,
    /// Columns of the weight: input features, or the width of a norm.
    pub cols: usize,
    /// Whether a bias of `rows` values stands beside the weight.
    pub bias: bool,
}

impl Module {
    /// Number of its parameters, the bias included.
    pub fn parameter_count(&self) -> u64 {
        let bias = if self.bias { self.rows as u64 } else { 0 };
        self.rows as u64 * self.cols as u64 + bias
    }
}

/// One tensor of parameters: a module's weight or its bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Whose.
    pub module: ModuleId,
    /// Bias rather than weight.
    pub bias: bool,
    /// Rows of the matrix that holds it; 1 for a norm or a bias.
    pub rows: usize,
    /// Columns of the matrix that holds it.
    pub cols: usize,
}

impl Parameter {
    /// Its name in a checkpoint.
    pub fn name(&self) -> String {
        if self.bias { self.module.bias_name() } else { self.module.weight_name() }
    }

    /// Whether quantization is for it: the weights of the blocks' linear layers, which are nearly all of a
    /// model. Embeddings, head, norms and biases stay as they are, as with bitsandbytes.
    pub fn is_quantizable(&self) -> bool {
        !self.bias && matches!(self.module, ModuleId::Linear { .. })
    }

    /// Its shape in a checkpoint: norms and biases have one dimension.
    pub fn file_shape(&self) -> Vec<usize> {
        match self.module {
            _ if self.bias => vec![self.cols],
            ModuleId::Norm { .. } | ModuleId::FinalNorm => vec![self.cols],
            _ => vec![self.rows, self.cols],
        }
    }
}

impl Config {
    /// Every module with parameters, in the order of [`ModuleId`]. A tied head shares the embedding's weight
    /// and is not listed.
    pub fn modules(&self) -> Vec<Module> {
        let mut modules = vec![self.module(ModuleId::Embedding)];
        for layer in 0..self.layers {
            modules.extend(Part::ALL.map(|part| self.module(ModuleId::Linear { layer, part })));
            let norms =
                NormPart::ALL.iter().filter(|p| self.qk_norm || !matches!(p, NormPart::Q | NormPart::K));
            modules.extend(norms.map(|&part| self.module(ModuleId::Norm { layer, part })));
        }
        modules.push(self.module(ModuleId::FinalNorm));
        if !self.tie_word_embeddings {
            modules.push(self.module(ModuleId::Head));
        }
        modules.sort_by_key(|m| m.id);
        modules
    }

    /// The size of one module. A tied head has its size too, though its weight is the embedding's.
    pub fn module(&self, id: ModuleId) -> Module {
        let (rows, cols, bias) = match id {
            ModuleId::Embedding | ModuleId::Head => (self.vocab_size, self.hidden_size, false),
            ModuleId::FinalNorm => (1, self.hidden_size, false),
            ModuleId::Norm { part: NormPart::Attention | NormPart::Mlp, .. } => (1, self.hidden_size, false),
            ModuleId::Norm { part: NormPart::Q | NormPart::K, .. } => (1, self.head_dim, false),
            ModuleId::Linear { part, .. } => match part {
                Part::Q => (self.q_width(), self.hidden_size, self.qkv_bias),
                Part::K | Part::V => (self.kv_width(), self.hidden_size, self.qkv_bias),
                Part::O => (self.hidden_size, self.q_width(), self.output_bias),
                Part::Gate | Part::Up => (self.intermediate_size, self.hidden_size, self.mlp_bias),
                Part::Down => (self.hidden_size, self.intermediate_size, self.mlp_bias),
            },
        };
        Module { id, rows, cols, bias }
    }

    /// The weight of a module; a tied head's is the embedding's.
    pub(crate) fn weight_of(&self, id: ModuleId) -> Parameter {
        let tied = id == ModuleId::Head && self.tie_word_embeddings;
        let Module { id, rows, cols, .. } = self.module(if tied { ModuleId::Embedding } else { id });
        Parameter { module: id, bias: false, rows, cols }
    }

    /// Every tensor of parameters, in the order of [`Config::modules`], a bias after its weight.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        for m in self.modules() {
            parameters.push(Parameter { module: m.id, bias: false, rows: m.rows, cols: m.cols });
            if m.bias {
                parameters.push(Parameter { module: m.id, bias: true, rows: 1, cols: m.rows });
            }
        }
        parameters
    }

    /// Number of all parameters; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        self.modules().iter().map(Module::parameter_count).sum()
    }
}
