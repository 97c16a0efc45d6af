//! Models known by name, and the arithmetic of their sizes: what `plan` and `inspect` count without any
//! weights.

use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::{ModelError, Result, nearest, quoted};
use crate::names::{ModuleId, tables};

/// The fields of each shape's config.json that decide its sizes and its arithmetic. What no size depends on
/// and is long, such as Phi-4's factors of rotary frequencies, is left out.
static SHAPES: LazyLock<Map<String, Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("shapes.json")).expect("the table is valid JSON"));

/// GPT-3 (Brown et al. 2020, table 2.1): GPT-2's arithmetic. As in LoRA's paper, queries, keys and values are
/// layers of their own.
const GPT3: &str = "gpt-3-175b";

impl Config {
    /// The configuration of a shape known by name, such as `llama-3.2-1b`.
    ///
    /// # Errors
    /// If the name is unknown.
    pub fn named(name: &str) -> Result<Config> {
        let Some(Value::Object(fields)) = SHAPES.get(name) else { return Err(unknown(name)) };
        let mut raw = fields.clone();
        raw.insert("initializer_range".to_owned(), json!(0.02));
        raw.insert("torch_dtype".to_owned(), json!("bfloat16"));
        let mut config = Config::from_map(raw, Path::new(name)).expect("the table of shapes is consistent");
        config.raw.insert("architectures".to_owned(), json!([config.family.architecture()]));
        if name == GPT3 {
            config.fused_qkv = None;
            config.names.table = &tables::GPT3;
            config.names.root = tables::GPT3.root;
        }
        Ok(config)
    }
}

/// The names of all shapes.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.keys().map(String::as_str)
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

    /// Its path without the block it stands in: `self_attn.q_proj`; and of an expert's without the expert's
    /// number: `mlp.experts.*.up_proj`.
    pub fn name_in_block(&self) -> String {
        let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let mut parts = self.path.split('.');
        match parts.any(is_number) {
            true => parts.map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join("."),
            false => self.path.clone(),
        }
    }

    /// Parameters of a low-rank update of it, as [`lora_parameters`].
    pub fn lora_parameters(&self, rank: usize) -> u64 {
        lora_parameters(self.rows, self.cols, rank)
    }
}

/// Parameters of a low-rank update `B [out, R] A [R, in]` of a layer `[out, in]` (Hu et al. 2021, section
/// 4.1): a 200 x 200 layer at rank 2 trains 800 instead of 40,000, 50 times fewer.
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

    /// A shape known by name.
    pub fn named(name: &str) -> Result<Shape> {
        Ok(Shape::of(name, &Config::named(name)?))
    }

    /// All parameters.
    pub fn parameters(&self) -> u64 {
        self.modules.iter().map(ModuleShape::parameters).sum()
    }

    /// The modules by what they are called within their block and by their size, as indices into
    /// [`Shape::modules`]: the rows of a table that fits on a screen. Order of first appearance.
    pub fn groups(&self) -> Vec<(String, Vec<usize>)> {
        let size = |index: usize| {
            let module: &ModuleShape = &self.modules[index];
            (module.rows, module.cols, module.bias)
        };
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        for (index, module) in self.modules.iter().enumerate() {
            let name = module.name_in_block();
            match groups.iter_mut().find(|(other, of)| *other == name && size(of[0]) == size(index)) {
                Some((_, indices)) => indices.push(index),
                None => groups.push((name, vec![index])),
            }
        }
        groups
    }
}
