//! An adapter's settings, `adapter_config.json`: read, checked and written.
//!
//! PEFT drops unknown settings with a warning (before 0.14 it stops at them). Here they are errors: an
//! adapter that is applied differently from how it was trained gives wrong answers and says nothing. What is
//! written here is what every version from 0.5 to 0.21 reads alike.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::targets::{self, Resolution};
use crate::adapter::method::qalora::Pooling;
use crate::config::{Config, Fields, read_small_file, short};
use crate::error::{ModelError, Result, nearest, quoted};

/// The file of an adapter's settings.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The largest rank.
pub const MAX_RANK: usize = 1 << 16;
/// The numerators of the scale that are taken for one.
pub const ALPHA: RangeInclusive<f64> = 0.0..=1e9;
/// Probabilities of dropout; near 1 nothing is left of the input.
pub const DROPOUT: RangeInclusive<f64> = 0.0..=0.99;

/// The most inputs of a group of QA-LoRA.
pub const MAX_GROUP: usize = 1 << 16;

/// Bounds on foreign settings.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_ENTRIES: usize = 1 << 16;
const MAX_PATTERNS: usize = 1 << 12;

/// Modules by name: PEFT's list of (ends of) paths, or one expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Paths, or what stands behind a dot in them.
    List(Vec<String>),
    /// A Python regular expression for the whole path, or `all-linear`.
    Expression(String),
}

/// How a low-rank adapter is made: PEFT's `LoraConfig` as far as it is honoured here. The default is PEFT's.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// `R`.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Probability with which an element of the input is dropped in training.
    pub lora_dropout: f64,
    /// Scale by 1/sqrt(R) instead of 1/R.
    pub use_rslora: bool,
    /// Whether magnitudes are trained beside directions.
    pub use_dora: bool,
    /// Whether A reads sums of groups of inputs: QA-LoRA.
    pub qalora: Option<QaLora>,
    /// Whether the base stores its linear layers as `[in, out]`, as GPT-2 does. PEFT corrects it by the
    /// base's own layers.
    pub fan_in_fan_out: bool,
    /// Which linear layers; `None` is PEFT's default for the family.
    pub target_modules: Option<Selection>,
    /// Which of them not.
    pub exclude_modules: Option<Selection>,
    /// Only these blocks; `None` or empty: all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// What the blocks' container is called; empty: any.
    pub layers_pattern: Vec<String>,
    /// Ranks by pattern; the first that fits decides.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas by pattern; the first that fits decides.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Parameters of experts with a low-rank update: whole names, or what stands behind a dot in them.
    pub target_parameters: Vec<String>,
    /// Modules trained whole and stored with the adapter.
    pub modules_to_save: Vec<String>,
    /// How A and B began: `true`, `false` or the name of a method.
    pub init_lora_weights: Value,
    /// The base, as the one who trained called it.
    pub base_model_name_or_path: Option<String>,
    /// The base's revision.
    pub revision: Option<String>,
}

impl Default for PeftConfig {
    fn default() -> Self {
        PeftConfig {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            qalora: None,
            fan_in_fan_out: false,
            target_modules: None,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            target_parameters: Vec::new(),
            modules_to_save: Vec::new(),
            init_lora_weights: Value::Bool(true),
            base_model_name_or_path: None,
            revision: None,
        }
    }
}

/// QA-LoRA's groups of inputs, and by what their sums are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QaLora {
    /// Inputs of a group.
    pub group: usize,
    /// The convention; what is written is always PEFT's, with another alpha for each size of layer.
    pub pooling: Pooling,
}

impl QaLora {
    /// The groups of PEFT's `use_qalora` where `qalora_group_size` is not said.
    const PEFT_GROUP: usize = 16;

    /// The alpha with which PEFT's convention comes to the same on a layer of so many inputs.
    pub(super) fn alpha_in_peft(self, alpha: f64, inputs: usize) -> f64 {
        if self.pooling == Pooling::Peft {
            return alpha;
        }
        let factor = |pooling: Pooling| pooling.factor(inputs, self.group);
        alpha * (factor(self.pooling) / factor(Pooling::Peft))
    }
}

/// What multiplies `B A`: alpha / R, or with rank-stabilized LoRA (Kalajdzievski 2023) alpha / sqrt(R).
pub fn scaling(rank: usize, alpha: f64, rslora: bool) -> f32 {
    wide_scaling(rank, alpha, rslora) as f32
}

/// [`scaling`], not rounded.
pub(super) fn wide_scaling(rank: usize, alpha: f64, rslora: bool) -> f64 {
    let rank = rank as f64;
    alpha / if rslora { rank.sqrt() } else { rank }
}

/// Settings that change what an adapter computes and are not supported, with the value that PEFT gives them
/// when they are not used, and what they are.
fn unsupported() -> [(&'static str, Value, &'static str); 11] {
    let off = || Value::Bool(false);
    [
        ("bias", json!("none"), "trained biases"),
        ("lora_bias", off(), "a bias on B"),
        ("trainable_token_indices", Value::Null, "single trained tokens"),
        ("layer_replication", Value::Null, "repeated layers"),
        ("alora_invocation_tokens", Value::Null, "activated LoRA"),
        ("velora_config", Value::Null, "VeLoRA"),
        ("monteclora_config", Value::Null, "MonteCLoRA"),
        ("use_bdlora", Value::Null, "block-diagonal LoRA"),
        ("arrow_config", Value::Null, "Arrow routing"),
        ("kasa_config", Value::Null, "KaSA"),
        ("ensure_weight_tying", off(), "tied adapters"),
    ]
}

/// Settings that say nothing about how a finished adapter is applied.
const IGNORED: [&str; 11] = [
    "auto_mapping",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "runtime_config",
    "task_type",
];

/// Settings that are read.
const READ: [&str; 21] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "target_parameters",
    "use_rslora",
    "use_dora",
    "use_qalora",
    "qalora_group_size",
    "qalora_pooling",
    "fan_in_fan_out",
];

/// Beginnings that take something out of the base's weights: the adapter then fits only the changed base.
const CHANGES_BASE: [&str; 5] = ["pissa", "corda", "olora", "loftq", "lora_ga"];

/// Reads the object in `adapter_config.json` of an adapter folder.
pub(super) fn read_settings(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join(CONFIG_FILE);
    parse_settings(&read_small_file(&path, MAX_CONFIG_BYTES)?, &path)
}

fn parse_settings(text: &str, path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|e| ModelError::json(path, &e))
}

impl PeftConfig {
    /// The same adapter in words that no version of PEFT takes differently: targets as a list of names, as
    /// Gives modules other paths, wherever they stand with their whole path.
    pub(super) fn rename(&mut self, new: impl Fn(&str) -> Option<String>) {
        let rename = |name: &mut String| *name = new(name).unwrap_or_else(|| name.clone());
        if let Some(Selection::List(names)) = &mut self.target_modules {
            names.iter_mut().for_each(rename);
        }
        self.target_parameters.iter_mut().chain(&mut self.modules_to_save).for_each(rename);
        self.rank_pattern.iter_mut().for_each(|(name, _)| rename(name));
        self.alpha_pattern.iter_mut().for_each(|(name, _)| rename(name));
    }

    /// PEFT resolves `all-linear` when it saves, and patterns spelt out as one entry a module. PEFT sorts
    /// patterns when it saves them, so of two that match, another one may decide once they are read back;
    /// whole names match one module each.
    pub fn settled(mut self, resolution: &Resolution, model: &Config) -> PeftConfig {
        self.fan_in_fan_out = model.transposed;
        if !matches!(self.target_modules, Some(Selection::List(_))) {
            self.target_modules = Some(Selection::List(targets::names(resolution, model)));
        }
        self.spelt_out(resolution)
    }

    /// With an entry a module instead of patterns.
    pub(super) fn spelt_out(mut self, resolution: &Resolution) -> PeftConfig {
        let targets = &resolution.targets;
        let modules = targets.iter().map(|t| (&t.path, t.rank, t.alpha));
        let parameters = resolution.parameters.iter().map(|p| (&p.name, p.rank, p.alpha));
        let all = || modules.clone().chain(parameters.clone());
        let ranks = all().filter(|&(_, rank, _)| rank != self.r);
        let ranks = ranks.map(|(name, rank, _)| (name.clone(), rank)).collect();
        let alphas = all().filter(|&(.., alpha)| alpha != self.lora_alpha);
        self.alpha_pattern = alphas.map(|(name, _, alpha)| (name.clone(), alpha)).collect();
        self.rank_pattern = ranks;
        // Which the alphas of a resolution are in.
        if let Some(qalora) = &mut self.qalora {
            qalora.pooling = Pooling::Peft;
        }
        self
    }

    /// The settings of this adapter where its beginning is subtracted from it: twice the rank, and the alpha
    /// that keeps the scale.
    pub fn with_beginning(&self) -> PeftConfig {
        let alpha = if self.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        PeftConfig {
            r: 2 * self.r,
            lora_alpha: alpha * self.lora_alpha,
            rank_pattern: self.rank_pattern.iter().map(|(name, r)| (name.clone(), 2 * r)).collect(),
            alpha_pattern: self.alpha_pattern.iter().map(|(name, a)| (name.clone(), alpha * a)).collect(),
            ..self.clone()
        }
    }

    /// Reads the text of an `adapter_config.json`; `path` is only named in errors.
    pub fn from_json(text: &str, path: &Path) -> Result<PeftConfig> {
        PeftConfig::from_map(&parse_settings(text, path)?, path)
    }

    /// As [`PeftConfig::from_json`], of an object already parsed.
    pub(super) fn from_map(map: &Map<String, Value>, path: &Path) -> Result<PeftConfig> {
        let fields = Fields::new(path, "", map);
        refuse_foreign(&fields)?;
        let defaults = PeftConfig::default();
        Ok(PeftConfig {
            r: fields.size_or("r", MAX_RANK, defaults.r)?,
            lora_alpha: fields.float_or("lora_alpha", defaults.lora_alpha, ALPHA)?,
            lora_dropout: fields.float_or("lora_dropout", defaults.lora_dropout, DROPOUT)?,
            use_rslora: fields.flag_or("use_rslora", false)?,
            use_dora: fields.flag_or("use_dora", false)?,
            qalora: qalora(&fields)?,
            fan_in_fan_out: fields.flag_or("fan_in_fan_out", false)?,
            target_modules: selection(&fields, "target_modules")?,
            exclude_modules: selection(&fields, "exclude_modules")?,
            layers_to_transform: layers(&fields)?,
            layers_pattern: one_or_more(&fields, "layers_pattern")?,
            rank_pattern: patterns(&fields, "rank_pattern", "a rank from 1 to 65536", |v| {
                v.as_u64().filter(|&r| (1..=MAX_RANK as u64).contains(&r)).map(|r| r as usize)
            })?,
            alpha_pattern: patterns(&fields, "alpha_pattern", "a number from 0 to 1e9", |v| {
                v.as_f64().filter(|a| ALPHA.contains(a))
            })?,
            target_parameters: texts(&fields, "target_parameters")?,
            modules_to_save: texts(&fields, "modules_to_save")?,
            init_lora_weights: initialization(&fields)?,
            base_model_name_or_path: fields.text("base_model_name_or_path")?.filter(|t| !t.is_empty()),
            revision: fields.text("revision")?,
        })
    }

    /// The text of `adapter_config.json` as PEFT writes it, keys sorted, two spaces: what every version
    /// knows, and of the rest only what is not PEFT's default, since versions before 0.14 stop at a field
    /// that is new to them.
    ///
    /// PEFT also sorts the patterns, which can change which of two fits first; here they keep their order,
    /// which PEFT keeps when it reads them.
    pub fn to_json(&self) -> String {
        let always = [
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(self.fan_in_fan_out)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", self.init_lora_weights.clone()),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("modules_to_save", list_or_null(&self.modules_to_save)),
            ("peft_type", json!("LORA")),
            ("r", json!(self.r)),
            ("target_modules", selection_json(&self.target_modules)),
            ("task_type", json!("CAUSAL_LM")),
        ];
        let if_used = [
            ("alpha_pattern", ordered(&self.alpha_pattern, |&a| number(a))),
            ("exclude_modules", selection_json(&self.exclude_modules)),
            ("layers_pattern", list_or_null(&self.layers_pattern)),
            ("layers_to_transform", json!(self.layers_to_transform)),
            ("rank_pattern", ordered(&self.rank_pattern, |&r| json!(r))),
            ("revision", json!(self.revision)),
            ("target_parameters", json!(self.target_parameters)),
            ("use_dora", json!(self.use_dora)),
            ("use_qalora", json!(self.qalora.is_some())),
            ("qalora_group_size", json!(self.qalora.map(|qalora| qalora.group))),
            ("use_rslora", json!(self.use_rslora)),
        ];
        let used = if_used.into_iter().filter(|(_, value)| !is_empty(value));
        let fields: BTreeMap<&str, Value> = always.into_iter().chain(used).collect();
        serde_json::to_string_pretty(&fields).expect("JSON serializes")
    }
}

/// Refuses what is not a LoRA adapter, what is not supported, and what is not known.
fn refuse_foreign(fields: &Fields) -> Result<()> {
    match fields.text("peft_type")? {
        Some(kind) if kind == "LORA" => {}
        Some(kind) => {
            return Err(
                fields.error("peft_type", format!("is {kind:?}; only \"LORA\" adapters are supported"))
            );
        }
        None => return Err(fields.error("peft_type", "is missing; a LoRA adapter says \"LORA\"")),
    }
    if let Some(task) = fields.text("task_type")?.filter(|t| t != "CAUSAL_LM") {
        let problem = format!("is {task:?}; only adapters of language models (\"CAUSAL_LM\") are supported");
        return Err(fields.error("task_type", problem));
    }
    for (field, unused, what) in unsupported() {
        if let Some(value) = fields.present(field).filter(|v| **v != unused && !is_empty(v)) {
            return Err(fields.error(field, format!("is {}, which is not supported: {what}", short(value))));
        }
    }
    let unsupported = unsupported();
    let known: BTreeSet<&str> =
        READ.into_iter().chain(IGNORED).chain(unsupported.iter().map(|(field, ..)| *field)).collect();
    for (field, value) in fields.map {
        if !known.contains(field.as_str()) && !is_empty(value) {
            let near = quoted(nearest(field, known.iter().copied(), 1));
            let problem = format!(
                "is {}, but this setting is not known (the nearest is {near}); if it does not change what the adapter \
                 computes, remove it",
                short(value)
            );
            return Err(fields.error(field.as_str(), problem));
        }
    }
    Ok(())
}

/// Null, false and empty values switch nothing on.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// QA-LoRA's groups in PEFT's words, and the convention, which is PEFT's unless `qalora_pooling` says another:
/// the paper's own code writes such adapters without any of them.
fn qalora(fields: &Fields) -> Result<Option<QaLora>> {
    if !fields.flag_or("use_qalora", false)? {
        return Ok(None);
    }
    let group = fields.size_or("qalora_group_size", MAX_GROUP, QaLora::PEFT_GROUP)?;
    let pooling = match fields.text("qalora_pooling")? {
        None => Pooling::Peft,
        Some(name) => {
            let known = Pooling::ALL.into_iter().find(|(known, _)| *known == name);
            let problem =
                || fields.error("qalora_pooling", format!("is {name:?}; known are sum, mean and peft"));
            known.ok_or_else(problem)?.1
        }
    };
    Ok(Some(QaLora { group, pooling }))
}

fn initialization(fields: &Fields) -> Result<Value> {
    let field = "init_lora_weights";
    match fields.present(field) {
        None => Ok(Value::Bool(true)),
        Some(value @ Value::Bool(_)) => Ok(value.clone()),
        Some(Value::String(method)) => {
            if CHANGES_BASE.iter().any(|m| method.to_lowercase().starts_with(m)) {
                let problem = format!(
                    "is {method:?}: such an adapter fits only the base that was changed with it; convert it in PEFT \
                     with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
                );
                return Err(fields.error(field, problem));
            }
            Ok(Value::String(method.clone()))
        }
        Some(value) => Err(fields.wrong(field, value, "true, false or the name of a method")),
    }
}

/// A list of texts, at most [`MAX_ENTRIES`].
pub(super) fn texts(fields: &Fields, field: &str) -> Result<Vec<String>> {
    let Some(value) = fields.present(field) else { return Ok(Vec::new()) };
    let wrong = || fields.wrong(field, value, "a list of names");
    let list = value.as_array().filter(|list| list.len() <= MAX_ENTRIES).ok_or_else(wrong)?;
    list.iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
}

fn one_or_more(fields: &Fields, field: &str) -> Result<Vec<String>> {
    match fields.present(field) {
        Some(Value::String(text)) if text.is_empty() => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        _ => texts(fields, field),
    }
}

fn selection(fields: &Fields, field: &str) -> Result<Option<Selection>> {
    match fields.present(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(Selection::Expression(text.clone()))),
        Some(_) => Ok(Some(Selection::List(texts(fields, field)?))),
    }
}

fn layers(fields: &Fields) -> Result<Option<Vec<usize>>> {
    let field = "layers_to_transform";
    let Some(value) = fields.present(field) else { return Ok(None) };
    let wrong = || fields.wrong(field, value, "a layer's number or a list of them");
    let layer = |v: &Value| v.as_u64().map(|n| n as usize).ok_or_else(wrong);
    match value {
        Value::Array(list) if list.len() <= MAX_ENTRIES => {
            list.iter().map(layer).collect::<Result<_>>().map(Some)
        }
        _ => Ok(Some(vec![layer(value)?])),
    }
}

fn patterns<T>(
    fields: &Fields,
    field: &str,
    expected: &str,
    parse: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>> {
    let Some(value) = fields.present(field) else { return Ok(Vec::new()) };
    let map = value.as_object().ok_or_else(|| fields.wrong(field, value, "an object of patterns"))?;
    if map.len() > MAX_PATTERNS {
        let problem = format!("has {} patterns, more than the {MAX_PATTERNS} that are read", map.len());
        return Err(fields.error(field, problem));
    }
    let entry = |(pattern, value): (&String, &Value)| match parse(value) {
        Some(parsed) => Ok((pattern.clone(), parsed)),
        None => Err(fields.wrong(format!("{field}[{pattern:?}]"), value, expected)),
    };
    map.iter().map(entry).collect()
}

/// Whole numbers as Python writes integers.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn ordered<T>(patterns: &[(String, T)], value: impl Fn(&T) -> Value) -> Value {
    Value::Object(patterns.iter().map(|(pattern, v)| (pattern.clone(), value(v))).collect())
}

fn selection_json(selection: &Option<Selection>) -> Value {
    match selection {
        None => Value::Null,
        Some(Selection::List(names)) => json!(names),
        Some(Selection::Expression(text)) => json!(text),
    }
}

fn list_or_null(names: &[String]) -> Value {
    if names.is_empty() { Value::Null } else { json!(names) }
}
