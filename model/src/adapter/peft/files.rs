//! Between an adapter in memory and its folder.

use std::collections::BTreeMap;
use std::path::Path;

use compute::{DType, Device, Matrix, MatrixMut};

use super::folder::AdapterFolder;
use super::targets::Resolution;
use super::{AdapterTensor, PeftConfig, key_prefix, write_adapter};
use crate::adapter::parameters::{Adapter, Layout, Parameters, Tensor};
use crate::checkpoint::{Checkpoint, CheckpointWriter, StoredDType, TensorSpec, transpose};
use crate::config::Config;
use crate::error::{ModelError, Result};
use crate::names::{ModuleId, Part};

impl Layout {
    /// What an adapter's settings come to on a model, under the keys that PEFT saves it with.
    pub fn of_adapter(resolution: &Resolution, config: &Config) -> Self {
        let mut layout = Layout::default();
        for target in &resolution.targets {
            let (module, prefix) = (config.module(target.module), key_prefix(&target.path));
            let (rank, scale) = (target.rank, target.scale);
            match resolution.group {
                Some(group) => layout.add_qalora(module, &prefix, rank, scale, group),
                None if resolution.dora => layout.add_dora(module, &prefix, rank, scale),
                None => drop(layout.add_lora(module, &prefix, rank, scale)),
            }
        }
        for target in &resolution.parameters {
            let (prefix, layer) = (key_prefix(&target.place), target.layer);
            let (count, size) = target.size(config);
            let (rank, scale) = (target.rank, target.scale);
            match target.part {
                part @ Part::Router => {
                    layout.add_lora(config.module(ModuleId::Linear { layer, part }), &prefix, rank, scale);
                }
                _ => layout.add_expert_lora((layer, target.parts()), count, &prefix, size, rank, scale),
            }
        }
        for &id in &resolution.saved {
            let module = config.module(id);
            layout.add_full(module, &key_prefix(&config.path(id)));
            if config.parameter(id, false).transposed {
                layout.store_transposed(id);
            }
        }
        layout
    }

    /// Shape of a tensor in files that have it as it is here.
    pub fn file_shape(&self, index: usize) -> Vec<usize> {
        let tensor = &self.tensors()[index];
        if tensor.vector { vec![tensor.cols] } else { vec![tensor.rows, tensor.cols] }
    }
}

impl Adapter {
    /// Reads an adapter folder for a model that the user calls `base`, into the memory of a device.
    ///
    /// What the folder's file has of the base's own weights is not part of the adapter: see
    /// [`AdapterFolder::base_tensors`].
    ///
    /// # Errors
    /// If its settings are not supported, or its tensors are not exactly those that the settings call for on
    /// this model.
    pub fn load(
        folder: &Path,
        config: &Config,
        base: Option<&str>,
        device: &Device,
    ) -> Result<(Adapter, AdapterFolder)> {
        let files = AdapterFolder::open(folder, config, base)?;
        Ok((files.read(device)?, files))
    }
}

/// Writes trained tensors as an adapter folder that PEFT reads.
pub fn save_adapter(
    folder: &Path,
    config: &PeftConfig,
    layout: &Layout,
    parameters: &Parameters,
) -> Result<()> {
    let as_written: Vec<Option<Matrix>> = layout.tensors().iter().map(|t| in_file(parameters, t)).collect();
    let tensors = layout.tensors().iter().zip(&as_written).map(|(tensor, written)| AdapterTensor {
        key: tensor.name.clone(),
        shape: tensor.file_shape(),
        values: written.as_ref().map_or_else(|| parameters.tensor(tensor), Matrix::as_ref),
    });
    write_adapter(folder, config, &tensors.collect::<Vec<_>>())
}

/// Where PEFT's file has a tensor's elements in another order, rows and columns of the matrix whose transpose
/// is that order: expert by expert, or as the base stores the weight.
fn turned(tensor: &Tensor) -> Option<[usize; 2]> {
    match () {
        () if tensor.transposed => Some([tensor.rows, tensor.cols]),
        () if tensor.experts > 1 => Some([tensor.experts, tensor.range.len() / tensor.experts]),
        () => None,
    }
}

/// A matrix for such a tensor as the file has it.
fn matrix_of_file(tensor: &Tensor) -> Matrix {
    let shape = tensor.file_shape();
    Matrix::unset(shape[0], shape[1], DType::F32)
}

/// A tensor as PEFT's file has it, where that is another order.
fn in_file(parameters: &Parameters, tensor: &Tensor) -> Option<Matrix> {
    let [rows, cols] = turned(tensor)?;
    let mut written = matrix_of_file(tensor);
    let values = parameters.tensor(tensor).reshape(rows, cols).download();
    transpose(values.as_ref(), written.as_mut().reshape(cols, rows));
    Some(written)
}

/// Fills a tensor by a function that reads it as PEFT's file has it.
pub(super) fn read_tensor(
    parameters: &mut Parameters,
    tensor: &Tensor,
    read: impl FnOnce(MatrixMut<'_>) -> Result<()>,
) -> Result<()> {
    parameters.tensor_mut(tensor).upload(|to| {
        let Some([rows, cols]) = turned(tensor) else { return read(to) };
        let mut written = matrix_of_file(tensor);
        read(written.as_mut())?;
        transpose(written.as_ref().reshape(cols, rows), to.reshape(rows, cols));
        Ok(())
    })
}

/// Writes flat buffers of one layout as a safetensors file, every tensor as `f32` under its name behind the
/// buffer's.
pub fn write_parameters(path: &Path, layout: &Layout, buffers: &[(&str, &Parameters)]) -> Result<()> {
    let tensors = || buffers.iter().flat_map(|b| layout.tensors().iter().enumerate().map(move |t| (b, t)));
    let specs = tensors().map(|((prefix, _), (i, tensor))| TensorSpec {
        name: format!("{prefix}{}", tensor.name),
        shape: layout.file_shape(i),
        dtype: StoredDType::F32,
    });
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = CheckpointWriter::file(path, &metadata, specs.collect())?;
    for ((prefix, parameters), (_, tensor)) in tensors() {
        writer.write(&format!("{prefix}{}", tensor.name), parameters.tensor(tensor))?;
    }
    writer.finish()
}

/// Reads what [`write_parameters`] wrote, or what [`save_adapter`] did of tensors that files have as they
/// are.
///
/// # Errors
/// If a tensor is missing, has another shape, or the file holds others.
pub fn read_parameters(path: &Path, layout: &Layout, buffers: &mut [(&str, &mut Parameters)]) -> Result<()> {
    let file = Checkpoint::open_file(path)?;
    if file.names().count() != buffers.len() * layout.tensors().len() {
        let problem = "does not hold the tensors of this run's settings; it belongs to another run";
        return Err(ModelError::File { path: path.to_owned(), problem: problem.to_owned() });
    }
    for (prefix, parameters) in buffers {
        for tensor in layout.tensors() {
            let name = format!("{prefix}{}", tensor.name);
            read_tensor(parameters, tensor, |to| file.read_into(&name, to))?;
        }
    }
    Ok(())
}
