//! An adapter's tensors as PEFT's file has them: keys, updates, writing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compute::MatrixRef;

use super::folder::AdapterTensors;
use super::{CONFIG_FILE, PeftConfig};
use crate::checkpoint::{Checkpoint, CheckpointWriter, StoredDType, TensorSpec, write_whole};
use crate::error::{ModelError, Result};

/// The file of an adapter's tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before a module's path.
pub(super) const PREFIX: &str = "base_model.model.";

/// The key of A `[R, in]` of the module of this path.
pub fn a_key(path: &str) -> String {
    format!("{}.lora_A.weight", key_prefix(path))
}

/// The key of B `[out, R]` of the module of this path.
pub fn b_key(path: &str) -> String {
    format!("{}.lora_B.weight", key_prefix(path))
}

/// What stands before `.weight` and `.bias` of a module trained whole, and before `.lora_A.weight`.
pub fn key_prefix(path: &str) -> String {
    format!("{PREFIX}{path}")
}

/// A tensor of an adapter, to be written.
#[derive(Clone, Debug)]
pub struct AdapterTensor<'a> {
    /// Its key, as [`a_key`] and its like make it.
    pub key: String,
    /// Its dimensions in the file.
    pub shape: Vec<usize>,
    /// Its values; stored as `f32`, which PEFT holds adapters in.
    pub values: MatrixRef<'a>,
}

/// Writes an adapter folder, which is made if need be: tensors first, then the settings that make it one.
pub fn write_adapter(folder: &Path, config: &PeftConfig, tensors: &[AdapterTensor<'_>]) -> Result<()> {
    let spec = |t: &AdapterTensor| TensorSpec {
        name: t.key.clone(),
        shape: t.shape.clone(),
        dtype: StoredDType::F32,
    };
    write_folder(folder, config, tensors.iter().map(spec).collect(), |writer| {
        tensors.iter().try_for_each(|tensor| writer.write(&tensor.key, tensor.values))
    })
}

/// [`write_adapter`] of tensors that `write` gives one after the other.
pub(super) fn write_folder(
    folder: &Path,
    config: &PeftConfig,
    specs: Vec<TensorSpec>,
    write: impl FnOnce(&mut CheckpointWriter) -> Result<()>,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| ModelError::write(folder, e))?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = CheckpointWriter::file(&folder.join(WEIGHTS_FILE), &metadata, specs)?;
    write(&mut writer)?;
    writer.finish()?;
    write_whole(&folder.join(CONFIG_FILE), config.to_json().as_bytes())
}

/// The path of the module whose whole weight or bias stands under a key, if one does.
pub fn whole_module(key: &str) -> Option<&str> {
    let path = key.strip_prefix(PREFIX).filter(|path| !path.contains(".lora_"))?;
    let path = path.strip_suffix(".weight").or_else(|| path.strip_suffix(".bias"))?;
    let places = [".base_layer", ".original_module", ".modules_to_save"];
    Some(places.iter().find_map(|place| path.strip_suffix(place)).unwrap_or(path))
}

/// A low-rank update as an adapter's file has it, told without the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The path of its module in the model, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// R.
    pub rank: usize,
    /// Of how many experts of a block it is; 1 for any other layer.
    pub experts: usize,
    /// Rows of the module's weight and of B.
    pub outer: usize,
    /// Columns of the module's weight and of A.
    pub inner: usize,
}

/// The low-rank updates of an adapter's file, in the order of the file's names.
///
/// # Errors
/// The file is checked as far as can be without a model: each A (R x inner) has its B (outer x R), of a rank
/// that `config` names, and what else is there is a weight or a bias of a module.
pub fn updates(config: &PeftConfig, tensors: &AdapterTensors) -> Result<Vec<Update>> {
    let wrong = |key: &str, problem: String| tensors.error(key, problem);
    let matrix = |key: &str| -> Result<(usize, usize)> {
        let missing = || wrong(key, "is missing: each update has an A and a B".to_owned());
        match tensors.shape(key).ok_or_else(missing)?[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
            ref shape => Err(wrong(key, format!("has shape {shape:?}; an A or a B is a matrix"))),
        }
    };
    let (a, b, magnitude) = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector");
    let known = |path: &str| match path.contains(".lora_") {
        true => path.ends_with(a) || path.ends_with(b) || config.use_dora && path.ends_with(magnitude),
        false => path.ends_with(".weight") || path.ends_with(".bias"),
    };
    for key in tensors.keys() {
        if !key.strip_prefix(PREFIX).is_some_and(known) {
            let problem = format!("is no part of a LoRA adapter, whose tensors are called {PREFIX}...");
            return Err(wrong(key, problem));
        }
    }
    let mut updates = Vec::new();
    for key in tensors.keys() {
        let path = &key[PREFIX.len()..];
        if let Some(module) = path.strip_suffix(b) {
            matrix(&format!("{PREFIX}{module}{a}"))?;
        }
        let Some(module) = path.strip_suffix(a) else { continue };
        let ((rank, inner), (outer, cols)) = (matrix(key)?, matrix(&format!("{PREFIX}{module}{b}"))?);
        if rank != cols {
            return Err(wrong(key, format!("has {rank} rows, its B {cols} columns; both are the rank")));
        }
        // Of an update of experts, whose number is the model's to say, the file has all of them.
        let fits = |named: &usize| rank == *named;
        let fits_experts =
            |named: &usize| !config.target_parameters.is_empty() && rank.is_multiple_of(*named);
        let named = || std::iter::once(config.r).chain(config.rank_pattern.iter().map(|&(_, named)| named));
        let Some(of_one) = named().find(fits).or_else(|| named().find(fits_experts)) else {
            let problem = format!(
                "is of rank {rank}, which {CONFIG_FILE} does not name: `r` is {}; the two files must be of one adapter",
                config.r
            );
            return Err(wrong(key, problem));
        };
        updates.push(Update {
            module: module.to_owned(),
            rank: of_one,
            experts: rank / of_one,
            outer,
            inner,
        });
    }
    Ok(updates)
}

/// Opens the file of an adapter's tensors.
pub(super) fn open_weights(folder: &Path) -> Result<Checkpoint> {
    let path: PathBuf = folder.join(WEIGHTS_FILE);
    if !path.is_file() && folder.join("adapter_model.bin").is_file() {
        let problem = "has its weights only as adapter_model.bin, a Python pickle, which can run code when it is read; \
                       load it in PEFT and save it again with safe_serialization=True";
        return Err(ModelError::file(folder, problem));
    }
    Checkpoint::open_file(&path)
}
