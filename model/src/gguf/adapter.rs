//! An adapter as llama.cpp loads it (`llama-adapter.cpp`; `convert_lora_to_gguf.py` writes the same).
//!
//! For the weight `NAME [out, in]` of the base there are `NAME.lora_a [R, in]` and `NAME.lora_b [out, R]`,
//! and the update is `alpha / R * B A` with one `alpha` for the whole file. An update whose scale is another,
//! by rsLoRA or patterns of alpha, has it in its B. Rows of queries and keys stand as the base's do: where
//! llama.cpp turns neighbours, row `a * D/2 + b` of a head (`a` 0 or 1) becomes its row `2 b + a`.

use std::path::Path;

use compute::{DType, Matrix};

use super::TensorType;
use super::names::{GgufPlace, RowOrder};
use super::writer::{GgufSpec, GgufWriter, Said};
use crate::adapter::parameters::{Adapter, Lora, Trained};
use crate::config::Config;
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
    let alphas = updates.iter().map(|(_, lora)| alpha_of(*lora));
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
    let entries = vec![
        ("general.architecture".to_owned(), form.architecture.into()),
        ("general.type".to_owned(), "adapter".into()),
        ("adapter.type".to_owned(), "lora".into()),
        ("adapter.lora.alpha".to_owned(), Said::Float(alpha)),
    ];
    let both = |(place, lora): &(GgufPlace, Lora)| {
        let (a, b) = adapter.lora(*lora);
        let size = |ending: &str, cols: usize, rows: usize| GgufSpec {
            name: format!("{}.{ending}", place.tensor),
            dimensions: vec![cols as u64, rows as u64],
            kind: TensorType::F32,
        };
        [size("lora_a", a.cols() * lora.group, a.rows()), size("lora_b", b.cols(), b.rows())]
    };
    let mut writer = GgufWriter::create(path, &entries, updates.iter().flat_map(both).collect())?;
    for (place, lora) in &updates {
        let (a, b) = (a_of(adapter, *lora), b_of(adapter, *lora, place.order, factor(*lora)));
        for (ending, values) in [("lora_a", a.as_ref()), ("lora_b", b.as_ref())] {
            writer.write(
                &format!("{}.{ending}", place.tensor),
                bytemuck::cast_slice(values.download().f32()),
            )?;
        }
    }
    writer.finish(&entries)?;
    let rescaled = updates.iter().filter(|(_, lora)| factor(*lora) != 1.0).count();
    Ok(Exported { architecture: form.architecture, alpha, updates: updates.len(), rescaled })
}

/// An update's alpha: its scale times its rank, or the number of few digits that differs by no more than the
/// scale's rounding.
fn alpha_of(lora: Lora) -> f32 {
    let alpha = (f64::from(lora.scale) * lora.rank as f64) as f32;
    let short: f32 = format!("{alpha:.5e}").parse().expect("a number is a number");
    if (short - alpha).abs() <= 2.0 * f32::EPSILON * alpha.abs() { short } else { alpha }
}

/// The updates with the places of their weights in GGUF files, or why llama.cpp has no such adapter.
fn updates(adapter: &Adapter, config: &Config) -> std::result::Result<Vec<(GgufPlace, Lora)>, String> {
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
        if !matches!(module, ModuleId::Linear { .. } | ModuleId::Head) || is_router(module) {
            return Err(format!("is on {path}, which is not written as GGUF yet; merge the adapter instead"));
        }
        if module == ModuleId::Head && config.tie_word_embeddings {
            let problem = "the head is the embedding, which llama.cpp leaves as it is";
            return Err(format!("is on {path}, and {problem}; merge the adapter instead"));
        }
        let place = config.gguf_place(&config.parameter(module, false));
        updates.push((place.expect("the family's form is known"), lora));
    }
    Ok(updates)
}

fn is_router(module: ModuleId) -> bool {
    matches!(module, ModuleId::Linear { part: Part::Router, .. })
}

/// A as it reads each input: of QA-LoRA, the column of a group once for each of its inputs.
fn a_of(adapter: &Adapter, lora: Lora) -> Matrix {
    let (a, _) = adapter.lora(lora);
    let a = a.download();
    let a = a.as_ref();
    let wide: Vec<f32> = a.f32().iter().flat_map(|&value| std::iter::repeat_n(value, lora.group)).collect();
    Matrix::from_f32(a.rows(), a.cols() * lora.group, &wide)
}

/// B times a factor, its rows where llama.cpp has them.
fn b_of(adapter: &Adapter, lora: Lora, order: RowOrder, factor: f32) -> Matrix {
    let (_, b) = adapter.lora(lora);
    let mut placed = Matrix::zeros(b.rows(), b.cols(), DType::F32);
    let from = b.download();
    let rows = from.f32().chunks_exact(b.cols());
    placed.as_mut().upload(|mut to| {
        let cols = to.cols();
        let to = to.reborrow().f32();
        for (row, values) in rows.enumerate() {
            let to = &mut to[order.place(row) * cols..][..cols];
            to.iter_mut().zip(values).for_each(|(to, value)| *to = value * factor);
        }
    });
    placed
}
