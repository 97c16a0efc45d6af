//! Models known by name, and the arithmetic of their sizes: what `plan` and `inspect` count without any weights.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{Config, Family};
use crate::error::{ModelError, Result, nearest, quoted};
use crate::names::ModuleId;

/// A row of config.json's numbers.
struct Row {
    name: &'static str,
    family: Family,
    vocabulary: usize,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f64,
    theta: f64,
    positions: usize,
    tied: bool,
    /// Factor of llama3 scaling from 8192 positions.
    llama3_factor: Option<f64>,
}

#[rustfmt::skip]
const ROWS: [Row; 13] = [
    Row { name: "llama-3.2-1b", family: Family::Llama, vocabulary: 128_256, hidden: 2048, inner: 8192, layers: 16, heads: 32, kv_heads: 8, head_dim: 64, eps: 1e-5, theta: 5e5, positions: 131_072, tied: true, llama3_factor: Some(32.0) },
    Row { name: "llama-3.2-3b", family: Family::Llama, vocabulary: 128_256, hidden: 3072, inner: 8192, layers: 28, heads: 24, kv_heads: 8, head_dim: 128, eps: 1e-5, theta: 5e5, positions: 131_072, tied: true, llama3_factor: Some(32.0) },
    Row { name: "llama-3.1-8b", family: Family::Llama, vocabulary: 128_256, hidden: 4096, inner: 14_336, layers: 32, heads: 32, kv_heads: 8, head_dim: 128, eps: 1e-5, theta: 5e5, positions: 131_072, tied: false, llama3_factor: Some(8.0) },
    Row { name: "llama-2-7b", family: Family::Llama, vocabulary: 32_000, hidden: 4096, inner: 11_008, layers: 32, heads: 32, kv_heads: 32, head_dim: 128, eps: 1e-5, theta: 1e4, positions: 4096, tied: false, llama3_factor: None },
    Row { name: "llama-2-13b", family: Family::Llama, vocabulary: 32_000, hidden: 5120, inner: 13_824, layers: 40, heads: 40, kv_heads: 40, head_dim: 128, eps: 1e-5, theta: 1e4, positions: 4096, tied: false, llama3_factor: None },
    Row { name: "llama-65b", family: Family::Llama, vocabulary: 32_000, hidden: 8192, inner: 22_016, layers: 80, heads: 64, kv_heads: 64, head_dim: 128, eps: 1e-5, theta: 1e4, positions: 2048, tied: false, llama3_factor: None },
    Row { name: "qwen2.5-0.5b", family: Family::Qwen2, vocabulary: 151_936, hidden: 896, inner: 4864, layers: 24, heads: 14, kv_heads: 2, head_dim: 64, eps: 1e-6, theta: 1e6, positions: 32_768, tied: true, llama3_factor: None },
    Row { name: "qwen2.5-7b", family: Family::Qwen2, vocabulary: 152_064, hidden: 3584, inner: 18_944, layers: 28, heads: 28, kv_heads: 4, head_dim: 128, eps: 1e-6, theta: 1e6, positions: 131_072, tied: false, llama3_factor: None },
    Row { name: "qwen2.5-32b", family: Family::Qwen2, vocabulary: 152_064, hidden: 5120, inner: 27_648, layers: 64, heads: 40, kv_heads: 8, head_dim: 128, eps: 1e-5, theta: 1e6, positions: 131_072, tied: false, llama3_factor: None },
    Row { name: "qwen3-0.6b", family: Family::Qwen3, vocabulary: 151_936, hidden: 1024, inner: 3072, layers: 28, heads: 16, kv_heads: 8, head_dim: 128, eps: 1e-6, theta: 1e6, positions: 40_960, tied: true, llama3_factor: None },
    Row { name: "mistral-7b", family: Family::Mistral, vocabulary: 32_768, hidden: 4096, inner: 14_336, layers: 32, heads: 32, kv_heads: 8, head_dim: 128, eps: 1e-5, theta: 1e6, positions: 32_768, tied: false, llama3_factor: None },
    Row { name: "tiny", family: Family::Llama, vocabulary: 512, hidden: 64, inner: 176, layers: 2, heads: 4, kv_heads: 2, head_dim: 16, eps: 1e-5, theta: 1e4, positions: 4096, tied: false, llama3_factor: None },
    Row { name: "small", family: Family::Llama, vocabulary: 32_000, hidden: 768, inner: 2048, layers: 12, heads: 12, kv_heads: 4, head_dim: 64, eps: 1e-5, theta: 1e4, positions: 4096, tied: false, llama3_factor: None },
];

/// The one shape that can be counted but not built: it has no gate and other norms.
pub const GPT3: &str = "gpt-3-175b";

impl Row {
    /// The config.json that such a model has.
    fn json(&self) -> Map<String, Value> {
        let mut json = json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.model_type(),
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "max_position_embeddings": self.positions,
            "tie_word_embeddings": self.tied,
            "initializer_range": 0.02,
            "torch_dtype": "bfloat16",
        });
        if self.family == Family::Mistral {
            json["sliding_window"] = Value::Null;
        }
        if let Some(factor) = self.llama3_factor {
            json["rope_scaling"] = json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            });
        }
        match json {
            Value::Object(map) => map,
            _ => unreachable!("the macro made an object"),
        }
    }
}

impl Config {
    /// The configuration of a shape known by name, such as `llama-3.2-1b`.
    ///
    /// # Errors
    /// If the name is unknown, or one that can only be planned ([`GPT3`]).
    pub fn named(name: &str) -> Result<Config> {
        if name == GPT3 {
            let problem = "is known to `plan` only: this program does not build models without a gated MLP";
            return Err(ModelError::setting("shape", format!("{name:?} {problem}")));
        }
        let row = ROWS.iter().find(|r| r.name == name).ok_or_else(|| unknown(name))?;
        Ok(Config::from_map(row.json(), Path::new(name)).expect("the table of shapes is consistent"))
    }
}

/// The names of all shapes.
pub fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|r| r.name).chain([GPT3])
}

fn unknown(name: &str) -> ModelError {
    let (near, all) = (quoted(nearest(name, names(), 1)), quoted(names()));
    ModelError::setting("shape", format!("{name:?} is not known; the nearest is {near}, all are {all}"))
}

/// What a module of a [`Shape`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A linear layer of a block.
    Linear,
    /// The output head, where it has a weight of its own.
    Head,
    /// A table of embeddings, `[entries, width]`.
    Embedding,
    /// A norm: one row.
    Vector,
}

/// A module with its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleShape {
    /// Its path, by which targets name it.
    pub path: String,
    /// What it is.
    pub kind: ModuleKind,
    /// Output features, or entries of a table, or 1.
    pub rows: usize,
    /// Input features, or width.
    pub cols: usize,
    /// Values beside the weight: a bias.
    pub bias: usize,
}

impl ModuleShape {
    /// Parameters of the module itself: a 200 x 200 layer has 40,000.
    pub fn parameters(&self) -> u64 {
        self.rows as u64 * self.cols as u64 + self.bias as u64
    }

    /// Its path without the block it stands in: `self_attn.q_proj`.
    pub fn name_in_block(&self) -> &str {
        let numbers = self.path.split('.').scan(0, |end, part| {
            *end += part.len() + 1;
            Some((part, *end))
        });
        let of_block = numbers.into_iter().find(|(part, _)| part.bytes().all(|b| b.is_ascii_digit()));
        of_block.and_then(|(_, end)| self.path.get(end..)).unwrap_or(&self.path)
    }

    /// Parameters of a low-rank update of it, as [`lora_parameters`].
    pub fn lora_parameters(&self, rank: usize) -> u64 {
        lora_parameters(self.rows, self.cols, rank)
    }
}

/// Parameters of a low-rank update `B [out, R] A [R, in]` of a layer `[out, in]` (Hu et al. 2021, section 4.1): a
/// 200 x 200 layer at rank 2 trains 800 instead of 40,000, 50 times fewer.
pub fn lora_parameters(out: usize, inner: usize, rank: usize) -> u64 {
    rank as u64 * (out as u64 + inner as u64)
}

/// A model's modules and their sizes, without weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it is called in messages.
    pub name: String,
    /// Every module with parameters, in the order in which a token meets them.
    pub modules: Vec<ModuleShape>,
}

impl Shape {
    /// The shape of a configuration.
    pub fn of(name: &str, config: &Config) -> Shape {
        let modules = config.modules().into_iter().map(|m| ModuleShape {
            path: config.path(m.id),
            kind: match m.id {
                ModuleId::Linear { .. } | ModuleId::Expert { .. } => ModuleKind::Linear,
                ModuleId::Head => ModuleKind::Head,
                ModuleId::Embedding | ModuleId::Positions => ModuleKind::Embedding,
                ModuleId::Norm { .. } | ModuleId::FinalNorm => ModuleKind::Vector,
            },
            rows: m.rows,
            cols: m.cols,
            bias: m.bias_len(),
        });
        Shape { name: name.to_owned(), modules: modules.collect() }
    }

    /// A shape known by name, [`GPT3`] included.
    pub fn named(name: &str) -> Result<Shape> {
        if name == GPT3 {
            return Ok(gpt3::shape());
        }
        Ok(Shape::of(name, &Config::named(name)?))
    }

    /// All parameters.
    pub fn parameters(&self) -> u64 {
        self.modules.iter().map(ModuleShape::parameters).sum()
    }

    /// The modules by what they are called within their block and by their size, as indices into
    /// [`Shape::modules`]: the rows of a table that fits on a screen. Order of first appearance.
    pub fn groups(&self) -> Vec<(String, Vec<usize>)> {
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        for (index, module) in self.modules.iter().enumerate() {
            let (name, size) = (module.name_in_block(), |m: &ModuleShape| (m.rows, m.cols, m.bias));
            let same = |first: &ModuleShape| first.name_in_block() == name && size(first) == size(module);
            match groups.iter_mut().find(|(_, indices)| same(&self.modules[indices[0]])) {
                Some((_, indices)) => indices.push(index),
                None => groups.push((name.to_owned(), vec![index])),
            }
        }
        groups
    }

    /// GPT-3's widths in a decoder that this program could run, for what depends on little else (activations). Its MLP
    /// has a gate more.
    pub fn gpt3_stand_in() -> Config {
        let row = Row {
            name: GPT3,
            family: Family::Llama,
            vocabulary: gpt3::VOCABULARY,
            hidden: gpt3::WIDTH,
            inner: gpt3::INNER,
            layers: gpt3::LAYERS,
            heads: 96,
            kv_heads: 96,
            head_dim: 128,
            eps: 1e-5,
            theta: 1e4,
            positions: gpt3::POSITIONS,
            tied: true,
            llama3_factor: None,
        };
        Config::from_map(row.json(), Path::new(GPT3)).expect("the row is consistent")
    }
}

/// GPT-3 (Brown et al. 2020, table 2.1): 96 layers of width 12,288, 50,257 tokens, 2,048 learned positions, layer norms
/// and biases, an MLP without a gate, a tied head.
mod gpt3 {
    use super::{GPT3, ModuleKind, ModuleShape, Shape};

    pub(super) const LAYERS: usize = 96;
    pub(super) const WIDTH: usize = 12_288;
    pub(super) const INNER: usize = 4 * WIDTH;
    pub(super) const VOCABULARY: usize = 50_257;
    pub(super) const POSITIONS: usize = 2048;

    pub(super) fn shape() -> Shape {
        let module = |path: String, kind, rows, cols, bias| ModuleShape { path, kind, rows, cols, bias };
        let table = |path: &str, rows| module(path.to_owned(), ModuleKind::Embedding, rows, WIDTH, 0);
        let norm = |path: String| module(path, ModuleKind::Vector, 1, WIDTH, WIDTH);
        let mut modules =
            vec![table("model.embed_tokens", VOCABULARY), table("model.embed_positions", POSITIONS)];
        for layer in 0..LAYERS {
            let linear = |name: &str, rows, cols| {
                module(format!("model.layers.{layer}.{name}"), ModuleKind::Linear, rows, cols, rows)
            };
            let attention = ["q_proj", "k_proj", "v_proj", "o_proj"];
            modules.push(norm(format!("model.layers.{layer}.input_layernorm")));
            modules.extend(attention.map(|p| linear(&format!("self_attn.{p}"), WIDTH, WIDTH)));
            modules.push(norm(format!("model.layers.{layer}.post_attention_layernorm")));
            modules.push(linear("mlp.up_proj", INNER, WIDTH));
            modules.push(linear("mlp.down_proj", WIDTH, INNER));
        }
        modules.push(norm("model.norm".to_owned()));
        Shape { name: GPT3.to_owned(), modules }
    }
}
