//! An adapter as llama.cpp loads it (`llama-adapter.cpp`; `convert_lora_to_gguf.py` writes the same).
//!
//! For the weight `NAME [out, in]` of the base there are `NAME.lora_a [R, in]` and `NAME.lora_b [out, R]`,
//! and the update is `alpha / R * B A` with one `alpha` for the whole file. An update whose scale is another,
//! by rsLoRA or patterns of alpha, has it in its B. Rows of queries and keys stand as the base's do: where
//! llama.cpp turns neighbours, row `a * D/2 + b` of a head (`a` 0 or 1) becomes its row `2 b + a`.

use std::path::Path;

use compute::{DType, Matrix, MatrixRef};

use super::writer::{Said, Written, write};
use super::{Gguf, TensorType};
use crate::adapter::parameters::{Adapter, Lora, Trained};
use crate::config::{Config, GgufForm};
use crate::error::{ModelError, Result};
use crate::names::{ModuleId, Part};

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// What llama.cpp calls the base's architecture.
    pub architecture: &'static str,
    /// The alpha of the file.
    pub alpha: f32,
    /// Updates in it.
    pub updates: usize,
    /// Of them, those whose scale stands in their B.
    pub rescaled: usize,
}

/// Writes an adapter, which errors call `named`, to a new file, and reads it back: each update in it is that
/// of the adapter, to the bit where no scale was folded into it, and else to
/// a rounding of `f32`, which has no numbers below some 1e-45.
///
/// # Errors
/// If llama.cpp has no such adapters (DoRA, modules trained whole, experts), the family's form is not known,
/// the file cannot be written, or what is read back is not what was to be written.
pub fn export(adapter: &Adapter, named: &Path, config: &Config, path: &Path) -> Result<Exported> {
    let wrong = |problem: String| ModelError::file(named, problem);
    let Some(form) = config.gguf else {
        let family = config.family.model_type();
        let problem = format!(
            "is an adapter of {family}, and how llama.cpp holds that family is not known here; merge the adapter, \
             and convert the model by llama.cpp's convert_hf_to_gguf.py"
        );
        return Err(wrong(problem));
    };
    let updates = updates(adapter, config).map_err(wrong)?;
    if adapter.is_without_effect() {
        return Err(wrong("has a B of zeros in every update, and changes nothing".to_owned()));
    }
    let alphas = updates.iter().map(|(_, _, lora)| alpha_of(*lora));
    // Of all factors on a B none is above 1, so that no value grows beyond `f32`.
    let alpha =
        alphas.fold(0.0_f32, |largest, alpha| if alpha.abs() > largest.abs() { alpha } else { largest });
    if alpha == 0.0 {
        return Err(wrong("has no update that changes anything".to_owned()));
    }
    let factor = |lora: Lora| match alpha_of(lora) / alpha {
        // The same alpha over another rank.
        near if (near - 1.0).abs() <= 4.0 * f32::EPSILON => 1.0,
        other => other,
    };
    let mut tensors = Vec::new();
    let (as_they_are, placed): (Vec<_>, Vec<_>) = updates
        .iter()
        .map(|(_, module, lora)| {
            (adapter.lora(*lora).0, b_of(adapter, *lora, *module, config, form, factor(*lora)))
        })
        .unzip();
    for (((name, ..), a), b) in updates.iter().zip(as_they_are).zip(&placed) {
        tensors.push(Written { name: format!("{name}.weight.lora_a"), values: a });
        tensors.push(Written { name: format!("{name}.weight.lora_b"), values: b.as_ref() });
    }
    let said = [
        ("general.architecture", Said::Text(form.architecture)),
        ("general.type", Said::Text("adapter")),
        ("adapter.type", Said::Text("lora")),
        ("adapter.lora.alpha", Said::Float(alpha)),
    ];
    write(path, &said, &tensors)?;
    check(path, &tensors, alpha)?;
    let rescaled = updates.iter().filter(|(_, _, lora)| factor(*lora) != 1.0).count();
    Ok(Exported { architecture: form.architecture, alpha, updates: updates.len(), rescaled })
}

/// An update's alpha: its scale times its rank, or the number of few digits that differs by no more than the
/// scale's rounding.
fn alpha_of(lora: Lora) -> f32 {
    let alpha = (f64::from(lora.scale) * lora.rank as f64) as f32;
    let short: f32 = format!("{alpha:.5e}").parse().expect("a number is a number");
    if (short - alpha).abs() <= 2.0 * f32::EPSILON * alpha.abs() { short } else { alpha }
}

/// The updates by the names of their weights in GGUF files, or why llama.cpp has no such adapter.
fn updates(adapter: &Adapter, config: &Config) -> std::result::Result<Vec<(String, ModuleId, Lora)>, String> {
    let mut updates = Vec::new();
    for (module, trained) in adapter.layout.modules() {
        let path = config.path(module);
        let lora = match trained {
            Trained::Lora(lora) => lora,
            Trained::Dora(_) => {
                return Err(format!(
                    "has DoRA on {path}, and llama.cpp has no DoRA; merge the adapter instead"
                ));
            }
            Trained::Full(_) => {
                let problem = "trained whole, and llama.cpp has no adapters of that";
                return Err(format!("has {path} {problem}; merge the adapter instead"));
            }
        };
        let Some(name) = weight_name(module) else {
            return Err(format!("is on {path}, which is not written as GGUF yet; merge the adapter instead"));
        };
        if module == ModuleId::Head && config.tie_word_embeddings {
            let problem = "the head is the embedding, which llama.cpp leaves as it is";
            return Err(format!("is on {path}, and {problem}; merge the adapter instead"));
        }
        updates.push((name, module, lora));
    }
    Ok(updates)
}

/// What llama.cpp calls the weight of a linear layer, without `.weight`.
fn weight_name(module: ModuleId) -> Option<String> {
    let (layer, part) = match module {
        ModuleId::Head => return Some("output".to_owned()),
        ModuleId::Linear { layer, part } => (layer, part),
        _ => return None,
    };
    let name = match part {
        Part::Q => "attn_q",
        Part::K => "attn_k",
        Part::V => "attn_v",
        Part::Qkv => "attn_qkv",
        Part::O => "attn_output",
        Part::Gate => "ffn_gate",
        Part::Up | Part::GateUp => "ffn_up",
        Part::Down => "ffn_down",
        Part::Router => return None,
    };
    Some(format!("blk.{layer}.{name}"))
}

/// B times a factor, its rows where llama.cpp has them.
fn b_of(
    adapter: &Adapter,
    lora: Lora,
    module: ModuleId,
    config: &Config,
    form: GgufForm,
    factor: f32,
) -> Matrix {
    let (_, b) = adapter.lora(lora);
    let mut placed = Matrix::zeros(b.rows(), b.cols(), DType::F32);
    let from = b.download();
    let of_heads = matches!(module, ModuleId::Linear { part: Part::Q | Part::K, .. });
    let head = Some(config.head_dim).filter(|_| of_heads && form.pairs_are_neighbours);
    let rows = from.f32().chunks_exact(b.cols());
    placed.as_mut().upload(|mut to| {
        let cols = to.cols();
        let to = to.reborrow().f32();
        for (row, values) in rows.enumerate() {
            let row = head.map_or(row, |head| neighbour(row, head));
            to[row * cols..][..cols].iter_mut().zip(values).for_each(|(to, value)| *to = value * factor);
        }
    });
    placed
}

/// Where a row goes, of heads of this size.
fn neighbour(row: usize, head: usize) -> usize {
    let (first, within) = (row / head * head, row % head);
    first + within % (head / 2) * 2 + within / (head / 2)
}

/// That the file has these tensors.
fn check(path: &Path, tensors: &[Written<'_>], alpha: f32) -> Result<()> {
    let file = Gguf::open(path)?;
    let differs = |name: &str| {
        ModelError::tensor(path, name, "was not written as it is; try again, or on another disk")
    };
    if file.number("adapter.lora.alpha") != Some(f64::from(alpha)) || file.tensors().len() != tensors.len() {
        return Err(ModelError::file(path, "was not written as it is; try again, or on another disk"));
    }
    for Written { name, values } in tensors {
        let tensor = file.tensors().get(name).ok_or_else(|| differs(name))?;
        let same_shape = tensor.dimensions == [values.cols() as u64, values.rows() as u64];
        if !same_shape || tensor.kind != TensorType::F32 || file.read_f32(name)? != bits(*values) {
            return Err(differs(name));
        }
    }
    Ok(())
}

fn bits(values: MatrixRef<'_>) -> Vec<u32> {
    values.download().f32().iter().map(|value| value.to_bits()).collect()
}
