//! The tensors of a GGUF file as those of a checkpoint, under the names that the family's folders give them.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use compute::MappedFile;
use compute::quant::{BlockType, Format};

use super::{Checkpoint, Placed, StoredDType, TensorInfo};
use crate::config::Config;
use crate::error::{ModelError, Result, shown};
use crate::gguf::names::ROPE_FACTORS;
use crate::gguf::{Gguf, TensorType};
use crate::names::Parameter;

/// How ggml's types are held; none: weights in that type are not supported.
fn held(kind: TensorType, parameter: &Parameter) -> Option<StoredDType> {
    match kind.name() {
        "F32" => Some(StoredDType::F32),
        "BF16" => Some(StoredDType::Bf16),
        // Of linear layers as it is; what is read row by row, or is small, becomes what the precision asks for.
        "F16" if !parameter.takes(Format::Blocks(BlockType::F16)) => Some(StoredDType::F16),
        _ => kind.blocks().map(StoredDType::Blocks),
    }
}

impl Checkpoint {
    /// The weights of a model in a GGUF file, which is mapped.
    ///
    /// # Errors
    /// If a tensor is missing, of other sizes than `config` makes it, of a type that is not supported, or none
    /// of the model's; or the file cannot be mapped.
    pub(crate) fn of_gguf(gguf: &Gguf, config: &Config) -> Result<Checkpoint> {
        let path = gguf.path();
        let file = File::open(path).map_err(|e| ModelError::read(path, e))?;
        let map = MappedFile::open(&file).map_err(|e| ModelError::read(path, e))?;
        let mut checkpoint = Checkpoint { map: Some(Arc::new(map)), ..Checkpoint::empty(path) };
        checkpoint.files.push((path.to_owned(), file));
        let mut used: BTreeSet<String> = ROPE_FACTORS.into_iter().map(str::to_owned).collect();
        for parameter in config.parameters() {
            let place = config.gguf_place(&parameter).ok_or_else(|| {
                let family = config.family.model_type();
                ModelError::file(
                    path,
                    format!("is a {family} model, and how llama.cpp holds those is not known here"),
                )
            })?;
            let wrong = |problem: String| ModelError::tensor(path, place.tensor.as_str(), problem);
            let Some(tensor) = gguf.tensors().get(&place.tensor) else {
                return Err(wrong(format!("is missing; it holds {}", parameter.name())));
            };
            if tensor.dimensions != place.dimensions {
                return Err(wrong(format!(
                    "has the sizes {:?}, but the metadata makes them {:?}",
                    tensor.dimensions, place.dimensions
                )));
            }
            let dtype = held(tensor.kind, &parameter).ok_or_else(|| {
                wrong(format!(
                    "is of type {}; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K",
                    tensor.kind
                ))
            })?;
            if parameter.is_vector() && matches!(dtype, StoredDType::Blocks(_)) {
                return Err(wrong(format!(
                    "is of type {}, and norms and biases are never quantized",
                    tensor.kind
                )));
            }
            let start = tensor.start + dtype.bytes(place.first_row * parameter.cols) as u64;
            let placed = Some(Placed { order: place.order, plus_one: place.plus_one });
            let shape = parameter.file_shape();
            let info = TensorInfo { dtype, shape, file: 0, start, placed, apart: None };
            checkpoint.tensors.insert(parameter.name(), info);
            used.insert(place.tensor);
        }
        match gguf.tensors().keys().find(|name| !used.contains(*name)) {
            None => Ok(checkpoint),
            Some(name) => {
                let problem = format!(
                    "is none of a {} model's as the metadata describes it; `{}` is not supported",
                    config.family.model_type(),
                    shown(name)
                );
                Err(ModelError::tensor(path, name.as_str(), problem))
            }
        }
    }

    /// The type in which most of the linear layers' weights are quantized, if any are: half precision is none.
    pub(crate) fn main_blocks(&self, config: &Config) -> Option<BlockType> {
        let parameters = config.parameters();
        let kinds =
            parameters.iter().filter(|parameter| parameter.is_quantizable()).filter_map(|parameter| {
                let info = self.stored(parameter, config).ok()?;
                match info.dtype {
                    StoredDType::Blocks(kind) if kind != BlockType::F16 => Some((kind, info.element_count())),
                    _ => None,
                }
            });
        let kinds: Vec<_> = kinds.collect();
        let elements = |kind| kinds.iter().filter(|of| of.0 == kind).map(|of| of.1).sum::<usize>();
        BlockType::ALL.into_iter().rev().max_by_key(|&kind| elements(kind)).filter(|&kind| elements(kind) > 0)
    }
}
