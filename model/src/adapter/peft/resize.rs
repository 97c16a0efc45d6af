//! An adapter at other ranks: each update `B A` becomes the nearest one of its new rank (Eckart and Young
//! 1936), by the singular values of `B A`, which is never made.

use std::path::Path;

use compute::{DType, Matrix, random};

use super::folder::AdapterFiles;
use super::tensors::{a_key, b_key, updates, write_folder};
use super::{CONFIG_FILE, PeftConfig, Update, targets};
use crate::checkpoint::{StoredDType, TensorSpec};
use crate::decompose::Singular;
use crate::error::{ModelError, Result};

/// Which ranks updates get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ranks {
    /// All of them the same.
    All(usize),
    /// Each the lowest that keeps this part of the sum of squares of `B A`, from 0 to 1.
    Keeping(f64),
}

/// What became of one update.
#[derive(Clone, Debug, PartialEq)]
pub struct Resized {
    /// The path of its module.
    pub module: String,
    /// Its rank before.
    pub from: usize,
    /// Its rank now.
    pub to: usize,
    /// The sum of the squares of `scale * B A`.
    pub squares: f64,
    /// What of it was lost.
    pub lost: f64,
}

/// The part of sums of squares that is kept; all of nothing.
pub fn kept(squares: f64, lost: f64) -> f64 {
    if squares > 0.0 { 1.0 - lost / squares } else { 1.0 }
}

/// Writes an adapter with other ranks into the folder `to`: factors with equal shares of the singular values,
/// and alphas that keep every scale. What is beyond the rank that an update had begins as a new one: A with
/// random numbers, B with zero. Magnitudes and modules trained whole stay as they are.
///
/// # Errors
/// If it has updates of experts, or its tensors are not those of its settings, or a file cannot be read or
/// written.
pub fn resize(
    files: &AdapterFiles,
    ranks: Ranks,
    to: &Path,
    observe: &mut dyn FnMut(&Resized),
) -> Result<Vec<Resized>> {
    let AdapterFiles { config, tensors, .. } = files;
    if !config.target_parameters.is_empty() {
        let problem = "names updates of experts, which share factors and cannot be resized; merge the adapter, train with \
                       another rank, or resize one without them";
        let path = tensors.path().with_file_name(CONFIG_FILE);
        return Err(ModelError::field(&path, "target_parameters", problem));
    }
    let updates = updates(config, tensors)?;
    if updates.is_empty() {
        return Err(ModelError::file(tensors.path(), "has no low-rank update to resize"));
    }
    let (mut resized, mut factors) = (Vec::new(), Vec::new());
    for update in &updates {
        let (told, new) = resize_one(files, update, ranks)?;
        observe(&told);
        resized.push(told);
        factors.push(new);
    }
    let config = settings(config, &resized)?;
    let is_factor = |key: &str| key.ends_with(".lora_A.weight") || key.ends_with(".lora_B.weight");
    let others: Vec<&str> = tensors.keys().filter(|key| !is_factor(key)).collect();
    let spec = |name: String, shape| TensorSpec { name, shape, dtype: StoredDType::F32 };
    let mut specs = Vec::new();
    for (update, [a, b]) in updates.iter().zip(&factors) {
        specs.push(spec(a_key(&update.module), vec![a.rows(), a.cols()]));
        specs.push(spec(b_key(&update.module), vec![b.rows(), b.cols()]));
    }
    let shape = |key: &str| tensors.shape(key).expect("it is one of the keys");
    specs.extend(others.iter().map(|key| spec((*key).to_owned(), shape(key))));
    write_folder(to, &config, specs, |writer| {
        for (update, [a, b]) in updates.iter().zip(&factors) {
            writer.write(&a_key(&update.module), a.as_ref())?;
            writer.write(&b_key(&update.module), b.as_ref())?;
        }
        others.iter().try_for_each(|key| {
            let (rows, cols) = match shape(key)[..] {
                [rows, cols] => (rows, cols),
                ref vector => (1, vector.iter().product()),
            };
            let mut values = Matrix::unset(rows, cols, DType::F32);
            tensors.read_into(key, values.as_mut())?;
            writer.write(key, values.as_ref())
        })
    })?;
    Ok(resized)
}

/// A and B of one update at its new rank.
fn resize_one(files: &AdapterFiles, update: &Update, ranks: Ranks) -> Result<(Resized, [Matrix; 2])> {
    let Update { module, rank: from, outer, inner, .. } = update;
    let (keys, shapes) = ([a_key(module), b_key(module)], [[*from, *inner], [*outer, *from]]);
    let read = |n: usize| {
        let [rows, cols] = shapes[n];
        let mut values = Matrix::unset(rows, cols, DType::F32);
        files.tensors.read_into(&keys[n], values.as_mut())?;
        Ok::<_, ModelError>(values)
    };
    let (a, b) = (read(0)?, read(1)?);
    let singular = Singular::of_product(b.as_ref(), a.as_ref()).ok_or_else(|| {
        files.tensors.error(&keys[0], "has no singular values with its B: its values are damaged")
    })?;
    let squares = singular.squares_from(0);
    let to = match ranks {
        Ranks::All(rank) => rank,
        Ranks::Keeping(part) => {
            let enough = |rank: &usize| singular.squares_from(*rank) <= (1.0 - part) * squares;
            (1..*from).find(enough).unwrap_or(*from)
        }
    };
    let (mut a, mut b) = (Matrix::zeros(to, *inner, DType::F32), Matrix::zeros(*outer, to, DType::F32));
    let known = singular.values.len().min(to);
    let key = module.bytes().fold(0, |key, byte| random::key(key, u64::from(byte)));
    let bound = 1.0 / (*inner as f64).sqrt();
    for (i, value) in a.as_mut().f32()[known * inner..].iter_mut().enumerate() {
        *value = ((2.0 * random::uniform(key, i as u64) - 1.0) * bound) as f32;
    }
    singular.write_leading(1.0, a.as_mut(), b.as_mut());
    let scale = f64::from(targets::scale_at(&files.config, module, *from)?);
    let (squares, lost) = (scale * scale * squares, scale * scale * singular.squares_from(to));
    Ok((Resized { module: module.clone(), from: *from, to, squares, lost }, [a, b]))
}

/// The settings with the new ranks: the largest is `r`, with an entry for each module that has another.
fn settings(config: &PeftConfig, resized: &[Resized]) -> Result<PeftConfig> {
    let r = resized.iter().map(|update| update.to).max().expect("there is an update");
    let mut alphas = Vec::with_capacity(resized.len());
    for Resized { module, from, to, .. } in resized {
        let ratio = *to as f64 / *from as f64;
        let factor = if config.use_rslora { ratio.sqrt() } else { ratio };
        alphas.push((module.clone(), targets::alpha_at(config, module)? * factor));
    }
    let largest = resized.iter().position(|update| update.to == r).expect("one has the largest rank");
    let lora_alpha = alphas[largest].1;
    let ranks = resized.iter().filter(|update| update.to != r);
    Ok(PeftConfig {
        r,
        lora_alpha,
        rank_pattern: ranks.map(|update| (update.module.clone(), update.to)).collect(),
        alpha_pattern: alphas.into_iter().filter(|(_, alpha)| *alpha != lora_alpha).collect(),
        init_lora_weights: true.into(),
        ..config.clone()
    })
}
