//! Between an adapter in memory and its folder.

use std::collections::BTreeMap;
use std::path::Path;

use compute::{DType, Device, Matrix, MatrixMut, MatrixRef};

use super::folder::AdapterFolder;
use super::targets::Resolution;
use super::tensors::write_folder;
use super::{AdapterTensor, PeftConfig, key_prefix, write_adapter};
use crate::adapter::parameters::{Adapter, Layout, Parameters, Role, Tensor};
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

    /// Writes an adapter folder that PEFT reads, for the base as its files have it.
    ///
    /// Of an adapter whose beginning `B0 A0` was taken out of the base, the update of that is
    /// `B A - B0 A0 = [B, -B0] [A; A0]`: a file has twice the rank (PEFT's `LoraModel.subtract_mutated_init`).
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path, config: &PeftConfig) -> Result<()> {
        let Some(began) = &self.taken_out else {
            return save_adapter(folder, config, &self.layout, &self.parameters);
        };
        let tensors = || self.layout.tensors().iter();
        let spec = |t: &Tensor| TensorSpec {
            name: t.name.clone(),
            shape: with_beginning(t).map_or_else(|| t.file_shape(), Vec::from),
            dtype: StoredDType::F32,
        };
        write_folder(folder, &config.with_beginning(), tensors().map(spec).collect(), |writer| {
            tensors().try_for_each(|tensor| {
                let values = self.parameters.tensor(tensor);
                match (tensor.role, in_file(&self.parameters, tensor)) {
                    (Role::A | Role::B, _) => {
                        let both = beside(tensor, values, began.tensor(tensor));
                        writer.write(&tensor.name, both.as_ref())
                    }
                    (_, written) => {
                        writer.write(&tensor.name, written.as_ref().map_or(values, Matrix::as_ref))
                    }
                }
            })
        })
    }

    /// Reads back the tensors that [`Adapter::save`] wrote.
    ///
    /// # Errors
    /// If they are not those of this adapter, or it began from other values.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        let Some(began) = &self.taken_out else {
            return read_parameters(path, &self.layout, &mut [("", &mut self.parameters)]);
        };
        let file = open_of_layout(path, &self.layout, 1)?;
        for tensor in self.layout.tensors() {
            let Some([rows, cols]) = with_beginning(tensor) else {
                read_tensor(&mut self.parameters, tensor, |to| file.read_into(&tensor.name, to))?;
                continue;
            };
            let mut both = Matrix::unset(rows, cols, DType::F32);
            file.read_into(&tensor.name, both.as_mut())?;
            let now = first_of_both(tensor, &both);
            if beside(tensor, now.as_ref(), began.tensor(tensor)).to_vec() != both.to_vec() {
                let problem = "began from other values than the base, the seed and the settings give here: the base's files were \
                               changed since, or another kind of processor has computed them; put the files back, or go on \
                               where the run began";
                return Err(ModelError::tensor(path, tensor.name.as_str(), problem));
            }
            self.parameters.tensor_mut(tensor).upload(|to| to.f32().copy_from_slice(now.as_ref().f32()));
        }
        Ok(())
    }
}

/// The shape of A or B in a file that has the beginning beside it, subtracted: `[2 R, in]` and `[out, 2 R]`.
fn with_beginning(tensor: &Tensor) -> Option<[usize; 2]> {
    match tensor.role {
        Role::A => Some([2 * tensor.rows, tensor.cols]),
        Role::B => Some([tensor.rows, 2 * tensor.cols]),
        Role::Magnitude | Role::Whole | Role::Bias => None,
    }
}

/// A or B of such a file's tensor.
fn first_of_both(tensor: &Tensor, both: &Matrix) -> Matrix {
    let mut now = Matrix::unset(tensor.rows, tensor.cols, DType::F32);
    let rows = both.as_ref().f32().chunks(both.cols());
    for (to, from) in now.as_mut().f32().chunks_mut(tensor.cols).zip(rows) {
        to.copy_from_slice(&from[..tensor.cols]);
    }
    now
}

/// A below which its beginning stands, or B beside which it stands with another sign.
fn beside(tensor: &Tensor, now: MatrixRef<'_>, began: MatrixRef<'_>) -> Matrix {
    let [rows, cols] = with_beginning(tensor).expect("it is A or B");
    let mut both = Matrix::unset(rows, cols, DType::F32);
    let (now, began) = (now.download(), began.download());
    match tensor.role {
        Role::A => {
            let (first, second) = both.as_mut().f32().split_at_mut(now.f32().len());
            first.copy_from_slice(now.f32());
            second.copy_from_slice(began.f32());
        }
        _ => {
            let old = now.f32().chunks(tensor.cols).zip(began.f32().chunks(tensor.cols));
            for (to, (now, began)) in both.as_mut().f32().chunks_mut(cols).zip(old) {
                let (first, second) = to.split_at_mut(tensor.cols);
                first.copy_from_slice(now);
                second.iter_mut().zip(began).for_each(|(to, began)| *to = -began);
            }
        }
    }
    both
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
    let file = open_of_layout(path, layout, buffers.len())?;
    for (prefix, parameters) in buffers {
        for tensor in layout.tensors() {
            let name = format!("{prefix}{}", tensor.name);
            read_tensor(parameters, tensor, |to| file.read_into(&name, to))?;
        }
    }
    Ok(())
}

/// Opens a file that holds the tensors of a layout so many times.
fn open_of_layout(path: &Path, layout: &Layout, times: usize) -> Result<Checkpoint> {
    let file = Checkpoint::open_file(path)?;
    if file.names().count() != times * layout.tensors().len() {
        let problem = "does not hold the tensors of this run's settings; it belongs to another run";
        return Err(ModelError::File { path: path.to_owned(), problem: problem.to_owned() });
    }
    Ok(file)
}
