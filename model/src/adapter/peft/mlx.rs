//! Adapter folders of mlx-lm: `adapter_config.json` beside `adapters.safetensors`, in PEFT's words.
//!
//! There `y += scale * (x A) B` with A `[in, R]` and B `[R, out]` (mlx_lm/tuner/lora.py): PEFT's matrices
//! transposed, and `scale` is the factor itself, whatever `alpha` older files have beside it. Which layers
//! are meant is said by their number, counted from the last (`num_layers`, once `lora_layers`), and by `keys`
//! within a layer; without keys it depends on mlx-lm's version, so the file's tensors decide. mlx-lm drops
//! what it has no place for; here that is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::folder::AdapterTensors;
use super::{ALPHA, CONFIG_FILE, DROPOUT, MAX_RANK, PREFIX, PeftConfig, Selection, texts};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Fields};
use crate::error::{ModelError, Result};
use crate::names::ModuleId;

/// The file of an adapter's tensors.
const WEIGHTS_FILE: &str = "adapters.safetensors";
const A: &str = ".lora_a";
const B: &str = ".lora_b";

/// An `adapter_config.json` of mlx-lm, as far as it says how the adapter is applied.
#[derive(Debug)]
pub(super) struct Settings {
    rank: usize,
    scale: f64,
    dropout: f64,
    /// Modules by their path within a layer, or in the model.
    keys: Option<BTreeSet<String>>,
    /// How many of the last layers; none: all.
    layers: Option<usize>,
    model: Option<String>,
}

impl Settings {
    /// Reads the settings, if they are mlx-lm's: PEFT's name their method by `peft_type`.
    pub(super) fn parse(map: &Map<String, Value>, path: &Path) -> Result<Option<Self>> {
        let marks = ["fine_tune_type", "lora_parameters", "lora_layers"];
        if map.contains_key("peft_type") || !marks.iter().any(|mark| map.contains_key(*mark)) {
            return Ok(None);
        }
        let fields = Fields::new(path, "", map);
        let kind = fields.text("fine_tune_type")?.unwrap_or_else(|| "lora".to_owned());
        if kind != "lora" || fields.flag_or("use_dora", false)? {
            let (field, kind) =
                if kind == "lora" { ("use_dora", "true".to_owned()) } else { ("fine_tune_type", kind) };
            let problem =
                format!("is {kind}; of mlx-lm's adapters only those of the type `lora` are supported");
            return Err(fields.error(field, problem));
        }
        let section = "lora_parameters";
        let inner = match fields.present(section) {
            Some(Value::Object(inner)) => inner,
            Some(value) => return Err(fields.wrong(section, value, "an object with `rank` and `scale`")),
            None => {
                return Err(
                    fields.error(section, "is missing; an adapter of mlx-lm has `rank` and `scale` there")
                );
            }
        };
        let inner = Fields::new(path, section, inner);
        let needed = |field: &str| {
            inner
                .present(field)
                .map(|_| ())
                .ok_or_else(|| inner.error(field, "is missing; mlx-lm needs it to load an adapter"))
        };
        needed("rank")?;
        needed("scale")?;
        let rank = inner.size_or("rank", MAX_RANK, 1)?;
        let keys = inner.present("keys").map(|_| texts(&inner, "keys")).transpose()?;
        Ok(Some(Settings {
            rank,
            scale: inner.float_or("scale", 1.0, 0.0..=ALPHA.end() / rank as f64)?,
            dropout: inner.float_or("dropout", 0.0, DROPOUT)?,
            keys: keys.map(BTreeSet::from_iter),
            layers: last_layers(&fields)?,
            model: fields.text("model")?.filter(|name| !name.is_empty()),
        }))
    }

    /// The folder's settings and tensors in PEFT's words: A and B of each module that has them.
    pub(super) fn open(&self, folder: &Path) -> Result<(PeftConfig, AdapterTensors)> {
        let path = folder.join(WEIGHTS_FILE);
        if !path.is_file() && folder.join("adapters.npz").is_file() {
            let problem = "has its weights only as adapters.npz, as mlx-lm wrote them once; save them as adapters.safetensors";
            return Err(ModelError::file(folder, problem));
        }
        let file = Checkpoint::open_file(&path)?;
        let (mut names, mut modules) = (BTreeMap::new(), BTreeSet::new());
        for name in file.names() {
            let (module, part) = match (name.strip_suffix(A), name.strip_suffix(B)) {
                (Some(module), _) => (module, "lora_A"),
                (_, Some(module)) => (module, "lora_B"),
                _ => {
                    let problem =
                        format!("is no part of a LoRA adapter of mlx-lm, whose tensors end in {A} or {B}");
                    return Err(ModelError::tensor(&path, name, problem));
                }
            };
            modules.insert(module.to_owned());
            names.insert(format!("{PREFIX}{module}.{part}.weight"), name.to_owned());
        }
        let config = PeftConfig {
            r: self.rank,
            lora_alpha: self.scale * self.rank as f64,
            lora_dropout: self.dropout,
            target_modules: Some(Selection::List(modules.into_iter().collect())),
            base_model_name_or_path: self.model.clone(),
            ..PeftConfig::default()
        };
        Ok((config, AdapterTensors::transposed(file, names)))
    }

    /// The tensors are those of the modules that the settings mean on this model.
    pub(super) fn check_layers(&self, tensors: &AdapterTensors, model: &Config) -> Result<()> {
        let first = self.layers.map_or(0, |n| model.layers.saturating_sub(n));
        let mut found = BTreeSet::new();
        for key in tensors.keys() {
            let path = key.strip_prefix(PREFIX).unwrap_or(key);
            let Some(module) = path.rsplit_once(".lora_").and_then(|(path, _)| model.names.parse(path))
            else {
                continue;
            };
            found.insert(module);
            let whole = self.keys.as_ref().is_some_and(|keys| keys.contains(&model.path(module)));
            let problem = match module.layer() {
                Some(layer) if layer < first && !whole => {
                    format!("belongs to layer {layer}, but `num_layers` means the layers from {first} on")
                }
                _ if !whole
                    && self
                        .keys
                        .as_ref()
                        .is_some_and(|keys| !keys.contains(within_block(model, module).as_str())) =>
                {
                    "belongs to no module that `lora_parameters.keys` names".to_owned()
                }
                _ => continue,
            };
            return Err(tensors
                .error(key, format!("{problem}; {CONFIG_FILE} and {WEIGHTS_FILE} must be of one adapter")));
        }
        let mut called = model.modules().into_iter().map(|m| m.id).filter(|m| m.is_linear());
        let missing = called.find(|&module| {
            let named = |path: &str| self.keys.as_ref().is_some_and(|keys| keys.contains(path));
            let meant =
                module.layer().is_some_and(|layer| layer >= first) && named(&within_block(model, module));
            (meant || named(&model.path(module))) && !found.contains(&module)
        });
        match missing {
            None => Ok(()),
            Some(module) => {
                let problem =
                    format!("is missing, though `lora_parameters.keys` in {CONFIG_FILE} calls for it");
                Err(ModelError::tensor(tensors.path(), model.path(module) + A, problem))
            }
        }
    }
}

/// The path of a module within its block, such as `self_attn.q_proj`.
fn within_block(model: &Config, module: ModuleId) -> String {
    model.names.within_block(&model.path(module)).to_owned()
}

/// How many layers, counted from the last, are meant; none: all. mlx-lm takes 0 and below for all.
fn last_layers(fields: &Fields) -> Result<Option<usize>> {
    let field = if fields.present("num_layers").is_some() { "num_layers" } else { "lora_layers" };
    let Some(value) = fields.present(field) else { return Ok(None) };
    match value.as_i64() {
        Some(n) => Ok(usize::try_from(n).ok().filter(|&n| n > 0)),
        None => Err(fields.wrong(field, value, "a number of layers, or -1 for all")),
    }
}
