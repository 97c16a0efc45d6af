//! What config.json says of quantized weights: bitsandbytes' four bits and this program's own integers are read,
//! every other kind is refused by name.

use compute::quant::{BlockType, Code, CodebookFormat, Format};
use serde_json::{Value, json};

use super::{Config, Fields};
use crate::error::Result;
use compute::quant::blocks::GROUP;

const FIELD: &str = "quantization_config";
/// The `quant_method` of weights in blocks: bytes `[rows, bytes of a row]` in place of `[rows, cols]`, as
/// `compute::quant::blocks` has them.
const OWN_METHOD: &str = "luthier";
/// The types of them that a folder may have.
pub(crate) const INTEGERS: [BlockType; 3] = [BlockType::Int4, BlockType::Int3, BlockType::Int2];

/// Reads a `quantization_config`.
pub(super) fn parse(value: &Value, fields: &Fields) -> Result<Format> {
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
        let mut quantized = self.clone();
        quantized.quantization = Some(format);
        quantized.raw.insert(FIELD.to_owned(), to_json(format, compute_dtype));
        quantized
    }
}
