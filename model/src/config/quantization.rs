//! What config.json says of quantized weights: bitsandbytes' four bits, this program's own integers and MLX's
//! are read, every other kind is refused by name.

use std::collections::BTreeMap;

use compute::quant::blocks::GROUP;
use compute::quant::{BlockType, Code, CodebookFormat, Format};
use serde_json::{Map, Value, json};

use super::fields::short;
use super::{Config, Fields};
use crate::error::{Result, shown};

const FIELD: &str = "quantization_config";
/// The `quant_method` of weights in blocks: bytes `[rows, bytes of a row]` in place of `[rows, cols]`, as
/// `compute::quant::blocks` has them.
const OWN_METHOD: &str = "luthier";
/// The types of them that a folder may have.
pub(crate) const INTEGERS: [BlockType; 3] = [BlockType::Int4, BlockType::Int3, BlockType::Int2];

/// The field by which MLX says so; it writes the same under the other name, too.
const MLX_FIELD: &str = "quantization";
/// Weights of a row that may share a scale in MLX's folders: whole groups of ours.
pub(crate) const MLX_GROUPS: [usize; 3] = [GROUP, 2 * GROUP, 4 * GROUP];

/// Bits of a code.
///
/// # Panics
/// If the type is none of [`INTEGERS`].
pub(crate) fn bits(kind: BlockType) -> usize {
    let codes = kind.affine_codes().unwrap_or_else(|| panic!("{kind} are no integers"));
    codes.count_ones() as usize
}

/// How many there are of each type.
pub(crate) fn count(kinds: impl Iterator<Item = BlockType>) -> BTreeMap<BlockType, usize> {
    kinds.fold(BTreeMap::new(), |mut counts, kind| {
        *counts.entry(kind).or_default() += 1;
        counts
    })
}

/// How a model's weights are quantized, if config.json says that they are.
pub(super) fn read(fields: &Fields) -> Result<Option<Format>> {
    match (fields.present(MLX_FIELD), fields.present(FIELD)) {
        (Some(value), _) => parse_mlx(value, fields).map(Some),
        (None, Some(value)) if is_of_mlx(value) => parse_mlx(value, fields).map(Some),
        (None, Some(value)) => parse(value, fields).map(Some),
        (None, None) => Ok(None),
    }
}

/// Whether what stands under the name that others use is MLX's, which says no method.
fn is_of_mlx(value: &Value) -> bool {
    value.get("quant_method").is_none() && value.get("bits").is_some() && value.get("group_size").is_some()
}

/// Reads MLX's `quantization`. Layers may stand in it by name, with settings of their own or `false`; how
/// each is stored is said by its tensors.
fn parse_mlx(value: &Value, fields: &Fields) -> Result<Format> {
    let wrong = |problem: String| fields.error(MLX_FIELD, problem);
    let map = value.as_object().ok_or_else(|| wrong("is not an object".into()))?;
    let kind = kind_of_mlx(map).map_err(wrong)?;
    for (name, value) in map {
        match value {
            _ if ["mode", "bits", "group_size"].contains(&name.as_str()) => {}
            Value::Bool(_) => {}
            Value::Object(layer) => {
                kind_of_mlx(layer)
                    .map_err(|problem| wrong(format!("has `{}`, which {problem}", shown(name))))?;
            }
            other => {
                let problem =
                    format!("has the field `{}` with {}, which is not known", shown(name), short(other));
                return Err(wrong(problem));
            }
        }
    }
    Ok(Format::Blocks(kind))
}

/// The type of a model's weights, or of a layer's, by MLX's settings.
///
/// # Errors
/// What is not supported.
fn kind_of_mlx(map: &Map<String, Value>) -> Result<BlockType, String> {
    let get = |key: &str| map.get(key).unwrap_or(&Value::Null);
    let (mode, size) = (get("mode"), get("group_size"));
    if !mode.is_null() && mode != "affine" {
        return Err(format!("has the mode {}; supported is \"affine\"", short(mode)));
    }
    let kind = INTEGERS.into_iter().find(|&kind| get("bits").as_u64() == Some(bits(kind) as u64));
    let kind =
        kind.ok_or_else(|| format!("has the bits {}; supported are 2, 3 and 4", short(get("bits"))))?;
    match size.as_u64() {
        Some(size) if MLX_GROUPS.iter().any(|&group| group as u64 == size) => Ok(kind),
        _ => Err(format!("has the group_size {}; supported are {MLX_GROUPS:?}", short(size))),
    }
}

/// Reads a `quantization_config`.
fn parse(value: &Value, fields: &Fields) -> Result<Format> {
    let wrong = |problem: String| fields.error(FIELD, problem);
    let map = value.as_object().ok_or_else(|| wrong("is not an object".into()))?;
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
    let method = text("quant_method").unwrap_or("bitsandbytes");
    if method == OWN_METHOD {
        let kind = INTEGERS.into_iter().find(|kind| text("type") == Some(kind.name()));
        let group = map.get("group_size").and_then(Value::as_u64);
        return match (kind, group) {
            (Some(kind), Some(size)) if size == GROUP as u64 => Ok(Format::Blocks(kind)),
            _ => Err(wrong(format!(
                "has the type {} and the group_size {}; known are int4, int3 and int2 with groups of {GROUP}",
                map.get("type").unwrap_or(&Value::Null),
                map.get("group_size").unwrap_or(&Value::Null),
            ))),
        };
    }
    if method != "bitsandbytes" || !(flag("load_in_4bit") || flag("_load_in_4bit")) {
        let kind = if method == "bitsandbytes" { "bitsandbytes in other than 4 bits" } else { method };
        return Err(wrong(format!(
            "is of {kind:?}; of quantized checkpoints only those of bitsandbytes in 4 bits are supported, so use the \
             model's 16-bit checkpoint (this program quantizes it itself when asked to)"
        )));
    }
    let code = match text("bnb_4bit_quant_type").unwrap_or("fp4") {
        "nf4" => Code::Nf4,
        "fp4" => Code::Fp4,
        other => {
            return Err(wrong(format!(
                "has the bnb_4bit_quant_type {other:?}; supported are \"nf4\" and \"fp4\""
            )));
        }
    };
    let double_quant = flag("bnb_4bit_use_double_quant");
    let block_size = CodebookFormat::QLORA.block_size;
    Ok(Format::Codebook(CodebookFormat { code, double_quant, block_size }))
}

/// A `quantization_config`: of a codebook as transformers writes it.
pub(crate) fn to_json(format: Format, compute_dtype: &str) -> Value {
    let format = match format {
        Format::Codebook(format) => format,
        Format::Blocks(kind) => {
            return json!({"quant_method": OWN_METHOD, "type": kind.name(), "group_size": GROUP});
        }
    };
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": format.code.name(),
        "bnb_4bit_use_double_quant": format.double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}

impl Config {
    /// This configuration with its linear layers quantized.
    pub(crate) fn quantized(&self, format: Format, compute_dtype: &str) -> Config {
        let mut quantized = self.as_values();
        quantized.quantization = Some(format);
        quantized.raw.insert(FIELD.to_owned(), to_json(format, compute_dtype));
        quantized
    }

    /// This configuration with these weights quantized as MLX says it; with none it does not say so. Layers
    /// that are of other bits than most have settings of their own (`mlx_lm/utils.py`, `load_model`).
    pub(crate) fn quantized_for_mlx(&self, weights: &BTreeMap<String, BlockType>) -> Config {
        let mut quantized = self.as_values();
        let kinds = count(weights.values().copied());
        let Some((&main, _)) = kinds.iter().max_by_key(|&(_, number)| number) else { return quantized };
        quantized.quantization = Some(Format::Blocks(main));
        let settings_of = |kind| json!({"group_size": GROUP, "bits": bits(kind), "mode": "affine"});
        let mut settings = settings_of(main);
        for (name, &kind) in weights.iter().filter(|&(_, &kind)| kind != main) {
            settings[name.strip_suffix(".weight").unwrap_or(name)] = settings_of(kind);
        }
        for field in [MLX_FIELD, FIELD] {
            quantized.raw.insert(field.to_owned(), settings.clone());
        }
        quantized
    }

    /// This configuration with no weight quantized.
    pub(crate) fn as_values(&self) -> Config {
        let mut config = self.clone();
        config.quantization = None;
        for field in [MLX_FIELD, FIELD] {
            config.raw.remove(field);
        }
        config
    }

    /// Whether the folder says that MLX quantized it.
    pub(crate) fn is_quantized_by_mlx(&self) -> bool {
        let said = |field: &str| self.raw.get(field).filter(|value| !value.is_null());
        self.quantization.is_some() && (said(MLX_FIELD).is_some() || said(FIELD).is_some_and(is_of_mlx))
    }
}
