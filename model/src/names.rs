//! Our parts of a model and the names that checkpoints give them: the only place of such strings.
//!
//! A [`ModuleId`] says what a module is; [`Names`], which a [`Config`] carries, says what its family calls
//! it. A family that names its parts in its own way is a row of `names/tables.rs`, and nothing else.

use std::cmp::Ordering;

use compute::quant::Format;

use crate::config::{Config, Mlp, NormKind, Positions, QkNorm, Span};

pub(crate) mod tables;

/// A linear layer of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Queries, `[H * D, C]`.
    Q,
    /// Keys, `[K * D, C]`.
    K,
    /// Values, `[K * D, C]`.
    V,
    /// Queries, keys and values in one layer, `[(H + 2 K) * D, C]`.
    Qkv,
    /// The attention's output, `[C, H * D]`.
    O,
    /// Which experts a token goes to, `[E, C]`.
    Router,
    /// The gate of the MLP, `[F, C]`.
    Gate,
    /// What the gate multiplies, or an MLP's first layer where there is no gate, `[F, C]`.
    Up,
    /// Gate and up in one layer, `[2 F, C]`.
    GateUp,
    /// Back to the model's width, `[C, F]`.
    Down,
}

impl Part {
    /// All parts in the order in which a token meets them.
    pub const ALL: [Part; 10] = [
        Part::Q,
        Part::K,
        Part::V,
        Part::Qkv,
        Part::O,
        Part::Router,
        Part::Gate,
        Part::Up,
        Part::GateUp,
        Part::Down,
    ];
    /// The layers of an expert, or of any gated MLP.
    pub const GATED: [Part; 3] = [Part::Gate, Part::Up, Part::Down];
}

/// A norm of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NormPart {
    /// Before attention, width `C`.
    Attention,
    /// Over the queries: each head, width `D`, or all of them, width `H * D`.
    Q,
    /// Over the keys: each head, width `D`, or all of them, width `K * D`.
    K,
    /// Behind attention, before its result joins the residual stream, width `C`.
    AfterAttention,
    /// Before the MLP, width `C`.
    Mlp,
    /// Behind the MLP, before its result joins the residual stream, width `C`.
    AfterMlp,
}

impl NormPart {
    /// All norms in the order in which a token meets them.
    pub const ALL: [NormPart; 6] = [
        NormPart::Attention,
        NormPart::Q,
        NormPart::K,
        NormPart::AfterAttention,
        NormPart::Mlp,
        NormPart::AfterMlp,
    ];
}

/// A module that owns parameters. Their order is the one in which a token meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleId {
    /// Token embeddings, `[V, C]`.
    Embedding,
    /// Embeddings of positions where these are learned, `[positions, C]`.
    Positions,
    /// A linear layer of block `layer`.
    Linear {
        /// The block, from 0.
        layer: usize,
        /// Which of its linear layers.
        part: Part,
    },
    /// A linear layer of one expert of block `layer`.
    Expert {
        /// The block, from 0.
        layer: usize,
        /// The expert, from 0.
        expert: usize,
        /// Which of its linear layers: one of [`Part::GATED`].
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

impl ModuleId {
    /// Whether this is a linear layer, the head included.
    pub fn is_linear(self) -> bool {
        matches!(self, ModuleId::Linear { .. } | ModuleId::Expert { .. } | ModuleId::Head)
    }

    /// Whether this is a norm.
    pub fn is_norm(self) -> bool {
        matches!(self, ModuleId::Norm { .. } | ModuleId::FinalNorm)
    }

    /// The block it belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            ModuleId::Linear { layer, .. }
            | ModuleId::Expert { layer, .. }
            | ModuleId::Norm { layer, .. } => Some(layer),
            ModuleId::Embedding | ModuleId::Positions | ModuleId::FinalNorm | ModuleId::Head => None,
        }
    }

    /// Stage, layer, place within the layer, expert, place within the expert.
    fn order(self) -> (u8, usize, u8, usize, u8) {
        let within = |layer, place| (2, layer, place, 0, 0);
        match self {
            ModuleId::Embedding => (0, 0, 0, 0, 0),
            ModuleId::Positions => (1, 0, 0, 0, 0),
            ModuleId::Norm { layer, part } => within(
                layer,
                match part {
                    NormPart::Attention => 0,
                    NormPart::Q => 5,
                    NormPart::K => 6,
                    NormPart::AfterAttention => 8,
                    NormPart::Mlp => 9,
                    NormPart::AfterMlp => 15,
                },
            ),
            ModuleId::Linear { layer, part } => within(
                layer,
                match part {
                    Part::Q => 1,
                    Part::K => 2,
                    Part::V => 3,
                    Part::Qkv => 4,
                    Part::O => 7,
                    Part::Router => 10,
                    Part::Gate => 11,
                    Part::Up => 12,
                    Part::GateUp => 13,
                    Part::Down => 14,
                },
            ),
            ModuleId::Expert { layer, expert, part } => (2, layer, 11, expert, part as u8),
            ModuleId::FinalNorm => (3, 0, 0, 0, 0),
            ModuleId::Head => (4, 0, 0, 0, 0),
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

/// What a family calls its parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// What holds everything but the head, such as `model`.
    pub(crate) root: &'static str,
    pub(crate) embedding: &'static str,
    /// Empty where positions are not learned.
    pub(crate) positions: &'static str,
    /// What holds the blocks.
    pub(crate) layers: &'static str,
    pub(crate) final_norm: &'static str,
    pub(crate) head: &'static str,
    /// Linear layers, by their path within the block.
    pub(crate) parts: &'static [(Part, &'static str)],
    /// What holds the experts, by its path within the block.
    pub(crate) experts: &'static str,
    /// The linear layers of an expert.
    pub(crate) expert_parts: [&'static str; 3],
    /// Norms, by their path within the block.
    pub(crate) norms: &'static [(NormPart, &'static str)],
    /// Modules without parameters that targets may name by mistake, within the block.
    pub(crate) activation: &'static str,
    /// Roots and heads in files by other releases of transformers.
    pub(crate) other_files: &'static [(&'static str, &'static str)],
}

/// What a checkpoint calls the parts of its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    pub(crate) table: &'static Table,
    /// What holds everything but the head: the table's, or another inside a wrapper.
    pub(crate) root: &'static str,
    /// What holds everything but the head, and the head, in files by other releases of transformers.
    pub(crate) others: &'static [(&'static str, &'static str)],
}

impl Names {
    /// The module of transformers 5 that holds the experts of a block.
    pub(crate) fn experts(&self, layer: usize) -> String {
        self.in_block(layer, tables::EXPERTS)
    }

    /// The module of transformers 5 that chooses the experts of a block.
    pub(crate) fn router(&self, layer: usize) -> String {
        self.in_block(layer, tables::ROUTER)
    }

    /// The parameters by which transformers 5 holds the experts of a block and their choice, in its order.
    pub fn parameters_of_experts(&self, layer: usize) -> [(Part, String); 3] {
        let [first, last] =
            tables::OF_EXPERTS.map(|(part, name)| (part, format!("{}.{name}", self.experts(layer))));
        [(Part::Router, format!("{}.weight", self.router(layer))), first, last]
    }

    /// A module's path as PEFT and `named_modules()` give it, such as `model.layers.0.self_attn.q_proj`.
    ///
    /// # Panics
    /// If the family has no such part.
    pub fn path(&self, module: ModuleId) -> String {
        let Table { embedding, positions, final_norm, head, experts, expert_parts, .. } = *self.table;
        match module {
            ModuleId::Embedding => self.inside(embedding),
            ModuleId::Positions => self.inside(positions),
            ModuleId::FinalNorm => self.inside(final_norm),
            ModuleId::Head => head.to_owned(),
            ModuleId::Norm { layer, part } => self.in_block(layer, name_of(self.table.norms, part)),
            ModuleId::Linear { layer, part } => self.in_block(layer, name_of(self.table.parts, part)),
            ModuleId::Expert { layer, expert, part } => {
                let place = Part::GATED.iter().position(|&p| p == part).expect("a part of an expert");
                self.in_block(layer, &format!("{experts}.{expert}.{}", expert_parts[place]))
            }
        }
    }

    /// The module of a path; `None` if no module with parameters has it. Layer and expert are not checked
    /// against a model.
    pub fn parse(&self, path: &str) -> Option<ModuleId> {
        if path == self.table.head {
            return Some(ModuleId::Head);
        }
        let Table { embedding, positions, layers, final_norm, experts, expert_parts, .. } = *self.table;
        let path =
            if self.root.is_empty() { path } else { path.strip_prefix(self.root)?.strip_prefix('.')? };
        match path {
            "" => return None,
            _ if path == embedding => return Some(ModuleId::Embedding),
            _ if path == positions => return Some(ModuleId::Positions),
            _ if path == final_norm => return Some(ModuleId::FinalNorm),
            _ => {}
        }
        let (layer, rest) = path.strip_prefix(layers)?.strip_prefix('.')?.split_once('.')?;
        let layer = number(layer)?;
        if let Some(&(part, _)) = self.table.norms.iter().find(|(_, name)| *name == rest) {
            return Some(ModuleId::Norm { layer, part });
        }
        if let Some(&(part, _)) = self.table.parts.iter().find(|(_, name)| *name == rest) {
            return Some(ModuleId::Linear { layer, part });
        }
        if experts.is_empty() {
            return None;
        }
        let (expert, name) = rest.strip_prefix(experts)?.strip_prefix('.')?.split_once('.')?;
        let place = expert_parts.iter().position(|part| *part == name)?;
        Some(ModuleId::Expert { layer, expert: number(expert)?, part: Part::GATED[place] })
    }

    /// What this model calls a module, or a tensor, of the same model somewhere else: by itself, or inside a
    /// wrapper of this or an older release of transformers. `None` if it stands here, or nowhere of these.
    pub(crate) fn moved_here(&self, name: &str) -> Option<String> {
        let Table { embedding, positions, layers, final_norm, head, .. } = *self.table;
        let is_inside = |rest: &&str| {
            let first = rest.split('.').next();
            [embedding, positions, layers, final_norm].into_iter().any(|own| first == own.split('.').next())
        };
        if self_contained(name, self.root).is_some_and(|rest| is_inside(&rest)) {
            return None;
        }
        let old = tables::OLD_WRAPPED.iter();
        let mut roots =
            [self.table.root, tables::WRAPPED].into_iter().chain(old.clone().map(|(root, _)| *root));
        let inside = roots.find_map(|root| self_contained(name, root).filter(is_inside));
        let of_head = || {
            let rest = old.clone().find_map(|(_, old)| name.strip_prefix(old))?;
            rest.starts_with('.').then(|| format!("{head}{rest}"))
        };
        inside.map(|rest| self.inside(rest)).or_else(of_head)
    }

    /// Whether a tensor of this name belongs to another part of a model of which this is the one for texts.
    pub(crate) fn is_foreign(&self, name: &str) -> bool {
        let own = |root: &str, head: &str| {
            self_contained(name, root).is_some() || self_contained(name, head).is_some()
        };
        let wrapped = self.root != self.table.root;
        wrapped && !own(self.root, self.table.head) && !self.others.iter().any(|(root, head)| own(root, head))
    }

    /// The path of block `layer`.
    pub(crate) fn block(&self, layer: usize) -> String {
        format!("{}.{layer}", self.inside(self.table.layers))
    }

    /// A path without the block that it stands in: `self_attn.q_proj`.
    pub fn within_block<'a>(&self, path: &'a str) -> &'a str {
        let within =
            path.strip_prefix(&*self.inside(self.table.layers)).and_then(|rest| rest.strip_prefix('.'));
        within.and_then(|rest| rest.split_once('.')).map_or(path, |(_, name)| name)
    }

    /// Paths of what holds others, and of modules without parameters.
    pub(crate) fn others(&self, layers: usize) -> Vec<String> {
        let mut others = Vec::new();
        let root: Vec<&str> = self.root.split('.').filter(|part| !part.is_empty()).collect();
        others.extend((1..=root.len()).map(|n| root[..n].join(".")));
        others.extend([self.inside(self.table.layers), self.inside("rotary_emb")]);
        for layer in 0..layers {
            let paths = self
                .table
                .parts
                .iter()
                .map(|(_, name)| *name)
                .chain([self.table.experts, self.table.activation]);
            let mut parents: Vec<&str> =
                paths.filter_map(|path| path.rsplit_once('.')).map(|(parent, _)| parent).collect();
            parents.dedup();
            parents.push(self.table.activation);
            others.extend(parents.into_iter().map(|name| self.in_block(layer, name)));
            others.push(self.block(layer));
        }
        others
    }

    fn inside(&self, name: &str) -> String {
        if self.root.is_empty() { name.to_owned() } else { format!("{}.{name}", self.root) }
    }

    fn in_block(&self, layer: usize, name: &str) -> String {
        format!("{}.{name}", self.block(layer))
    }
}

fn name_of<T: Copy + PartialEq + std::fmt::Debug>(names: &[(T, &'static str)], part: T) -> &'static str {
    names.iter().find(|(p, _)| *p == part).unwrap_or_else(|| panic!("the family has no {part:?}")).1
}

/// A name without what holds it, if it is held by that.
fn self_contained<'a>(name: &'a str, root: &str) -> Option<&'a str> {
    name.strip_prefix(root)?.strip_prefix('.')
}

/// A number as module paths write it: no sign, no leading zero.
fn number(text: &str) -> Option<usize> {
    let canonical = text == "0" || !text.starts_with('0');
    text.parse().ok().filter(|_| canonical && text.bytes().all(|b| b.is_ascii_digit()))
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
    /// Whether a bias stands beside the weight.
    pub bias: bool,
}

impl Module {
    /// Values of its bias: one for each output feature, or for each column of a norm.
    pub fn bias_len(&self) -> usize {
        match (self.bias, self.id.is_norm()) {
            (false, _) => 0,
            (true, false) => self.rows,
            (true, true) => self.cols,
        }
    }

    /// Number of its parameters, the bias included.
    pub fn parameter_count(&self) -> u64 {
        self.rows as u64 * self.cols as u64 + self.bias_len() as u64
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
    /// What the family calls its parts.
    pub names: Names,
    /// Whether files have `[in, out]` where the matrix is `[out, in]` (`Conv1D` of transformers).
    pub transposed: bool,
}

impl Parameter {
    /// Its name in a checkpoint.
    pub fn name(&self) -> String {
        self.names.path(self.module) + if self.bias { ".bias" } else { ".weight" }
    }

    /// Its name, and those that files by other releases give it.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> + use<> {
        let (names, name) = (self.names, self.name());
        let other = move |&(root, head): &(&str, &str)| match self_contained(&name, names.root) {
            Some(rest) if root.is_empty() => rest.to_owned(),
            Some(rest) => format!("{root}.{rest}"),
            None => name.replacen(names.table.head, head, 1),
        };
        std::iter::once(self.name()).chain(names.others.iter().map(other))
    }

    /// Whether quantization is for it: the weights of the blocks' linear layers, which are nearly all of a
    /// model. Embeddings, head, norms, biases and the choice of experts stay as they are, as with
    /// bitsandbytes.
    pub fn is_quantizable(&self) -> bool {
        let router = matches!(self.module, ModuleId::Linear { part: Part::Router, .. });
        !self.bias && !router && matches!(self.module, ModuleId::Linear { .. } | ModuleId::Expert { .. })
    }

    /// Whether it is quantized where linear layers are held in this format: rows must be whole blocks.
    pub fn takes(&self, format: Format) -> bool {
        self.is_quantizable() && self.cols.is_multiple_of(format.row_step())
    }

    /// Whether bitsandbytes finds a linear layer in transformers there, which it quantizes in the folders
    /// that it writes: experts are bare parameters since transformers 5, and stay as they are.
    pub(crate) fn is_linear_of_transformers(&self) -> bool {
        self.is_quantizable() && !matches!(self.module, ModuleId::Expert { .. })
    }

    /// Whether it is a row: a bias, or what a norm has.
    pub fn is_vector(&self) -> bool {
        self.bias || self.module.is_norm()
    }

    /// Its shape in a checkpoint: norms and biases have one dimension.
    pub fn file_shape(&self) -> Vec<usize> {
        match () {
            () if self.is_vector() => vec![self.cols],
            () if self.transposed => vec![self.cols, self.rows],
            () => vec![self.rows, self.cols],
        }
    }
}

impl Config {
    /// The linear layers of a block, its experts aside.
    fn parts(&self, layer: usize) -> Vec<Part> {
        let attention = match self.fused_qkv {
            None => &[Part::Q, Part::K, Part::V, Part::O][..],
            Some(_) => &[Part::Qkv, Part::O],
        };
        let mlp = match self.blocks[layer].mlp {
            Mlp::Gated if self.fused_gate_up => &[Part::GateUp, Part::Down][..],
            Mlp::Gated => &Part::GATED,
            Mlp::Plain => &[Part::Up, Part::Down],
            Mlp::Experts => &[Part::Router],
        };
        [attention, mlp].concat()
    }

    /// The norms of a block.
    fn norm_parts(&self) -> Vec<NormPart> {
        let has = |part: &NormPart| match part {
            NormPart::Attention | NormPart::Mlp => self.norms.before,
            NormPart::AfterAttention | NormPart::AfterMlp => self.norms.behind,
            NormPart::Q | NormPart::K => self.qk_norm.is_some(),
        };
        NormPart::ALL.into_iter().filter(has).collect()
    }

    /// Every module with parameters, in the order of [`ModuleId`]. A tied head shares the embedding's weight
    /// and is not listed.
    pub fn modules(&self) -> Vec<Module> {
        let mut modules = vec![ModuleId::Embedding];
        modules.extend((self.positions == Positions::Learned).then_some(ModuleId::Positions));
        for layer in 0..self.layers {
            modules.extend(self.parts(layer).into_iter().map(|part| ModuleId::Linear { layer, part }));
            if let (Mlp::Experts, Some(experts)) = (self.blocks[layer].mlp, &self.experts) {
                let of = |expert| Part::GATED.map(|part| ModuleId::Expert { layer, expert, part });
                modules.extend((0..experts.count).flat_map(of));
            }
            modules.extend(self.norm_parts().into_iter().map(|part| ModuleId::Norm { layer, part }));
        }
        modules.push(ModuleId::FinalNorm);
        modules.extend((!self.tie_word_embeddings).then_some(ModuleId::Head));
        modules.sort_unstable();
        modules.into_iter().map(|id| self.module(id)).collect()
    }

    /// The size of one module. A tied head has its size too, though its weight is the embedding's.
    pub fn module(&self, id: ModuleId) -> Module {
        let (c, q, kv) = (self.hidden_size, self.q_width(), self.kv_width());
        let norm_bias = self.norm == NormKind::Layer;
        let biases = self.biases;
        let (rows, cols, bias) = match id {
            ModuleId::Embedding => (self.vocab_size, c, false),
            ModuleId::Positions => (self.max_position_embeddings, c, false),
            ModuleId::Head => (self.vocab_size, c, false),
            ModuleId::FinalNorm => (1, c, norm_bias),
            ModuleId::Norm { part, .. } => match (part, self.qk_norm) {
                (NormPart::Q | NormPart::K, Some(QkNorm { span: Span::Head, .. })) => {
                    (1, self.head_dim, false)
                }
                (NormPart::Q, _) => (1, q, false),
                (NormPart::K, _) => (1, kv, false),
                _ => (1, c, norm_bias),
            },
            ModuleId::Expert { part, .. } => {
                let inner = self.experts.as_ref().map_or(0, |experts| experts.inner);
                if part == Part::Down { (c, inner, false) } else { (inner, c, false) }
            }
            ModuleId::Linear { part, .. } => match part {
                Part::Q => (q, c, biases.qkv),
                Part::K | Part::V => (kv, c, biases.qkv),
                Part::Qkv => (q + 2 * kv, c, biases.qkv),
                Part::O => (c, q, biases.output),
                Part::Router => (self.experts.as_ref().map_or(0, |experts| experts.count), c, false),
                Part::Gate | Part::Up => (self.intermediate_size, c, biases.mlp),
                Part::GateUp => (2 * self.intermediate_size, c, biases.mlp),
                Part::Down => (c, self.intermediate_size, biases.mlp),
            },
        };
        Module { id, rows, cols, bias }
    }

    /// The path of a module, as [`Names::path`].
    pub fn path(&self, module: ModuleId) -> String {
        self.names.path(module)
    }

    /// The weight of a module, or its bias.
    pub(crate) fn parameter(&self, id: ModuleId, bias: bool) -> Parameter {
        let module = self.module(id);
        let (rows, cols) = if bias { (1, module.bias_len()) } else { (module.rows, module.cols) };
        let transposed = self.transposed && !bias && matches!(id, ModuleId::Linear { .. });
        Parameter { module: id, bias, rows, cols, names: self.names, transposed }
    }

    /// The weight of a module; a tied head's is the embedding's.
    pub(crate) fn weight_of(&self, id: ModuleId) -> Parameter {
        let tied = id == ModuleId::Head && self.tie_word_embeddings;
        self.parameter(if tied { ModuleId::Embedding } else { id }, false)
    }

    /// Every tensor of parameters, in the order of [`Config::modules`], a bias after its weight.
    pub fn parameters(&self) -> Vec<Parameter> {
        let both = |m: Module| {
            [false, true].into_iter().filter(move |&bias| m.bias || !bias).map(move |bias| (m.id, bias))
        };
        self.modules().into_iter().flat_map(both).map(|(id, bias)| self.parameter(id, bias)).collect()
    }

    /// Number of all parameters; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        self.modules().iter().map(Module::parameter_count).sum()
    }

    /// The part of the tokens that meet a module: of an expert, as many as all experts share evenly; of the
    /// rest, all.
    pub fn part_of_tokens(&self, module: ModuleId) -> f64 {
        match (module, &self.experts) {
            (ModuleId::Expert { .. }, Some(experts)) => experts.per_token as f64 / experts.count as f64,
            _ => 1.0,
        }
    }

    /// Number of the parameters that one token meets: of the experts, of those that are chosen for it.
    pub fn active_parameter_count(&self) -> u64 {
        let of = |m: &Module| self.part_of_tokens(m.id) * m.parameter_count() as f64;
        // Experts are of one size, so that the sum is a whole number.
        self.modules().iter().map(of).sum::<f64>().round() as u64
    }
}
