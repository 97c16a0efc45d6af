//! Weights in files: safetensors read without trust and without holding a file in memory, and written whole
//! or not at all.
//!
//! The format is eight bytes of header length, a JSON header that gives each tensor its type, shape and byte
//! range, and the bytes (<https://huggingface.co/docs/safetensors>). Everything the header says is checked
//! against the file before any of it is used.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use compute::quant::{BlockType, Blocks};
use compute::{DType, MappedFile, Matrix, MatrixMut, MatrixRef};
use half::{bf16, f16};
use serde::Deserialize;

use crate::config::{Config, read_small_file};
use crate::error::{ModelError, Result, nearest, quoted};
use crate::gguf::names::RowOrder;
use crate::names::{ModuleId, Parameter, tables};

pub(crate) use companions::copy_companions;
pub use companions::copy_tokenizer;
use mlx::Apart;
pub use staging::{Staging, sweep_staged};
use stored::Element;
pub use stored::StoredDType;
pub use writer::{CheckpointWriter, SHARD_BYTES, TensorSpec, sweep, sync_folder, write_whole};

mod companions;
mod gguf;
mod header;
pub(crate) mod mlx;
pub(crate) mod quantized;
mod staging;
mod stored;
mod writer;

/// What a file says about a tensor, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// How its elements are stored.
    pub dtype: StoredDType,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's files.
    file: usize,
    /// Position of its first byte in that file; where blocks are put together, among those.
    start: u64,
    /// How its values stand there, in a GGUF file.
    placed: Option<Placed>,
    /// Where its blocks are put together from, if MLX quantized it.
    apart: Option<Box<Apart>>,
}

/// How the values of a parameter stand in a GGUF file, never transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// In which order its rows stand, or the elements of a vector.
    order: RowOrder,
    /// Whether one was added to each value.
    plus_one: bool,
}

impl Placed {
    /// Brings rows, of so many units each, from the file's order into a folder's.
    fn sort_rows<T: Copy>(self, values: &mut [T], row: usize) {
        if self.order == RowOrder::Same {
            return;
        }
        let from = values.to_vec();
        for (number, to) in values.chunks_exact_mut(row).enumerate() {
            to.copy_from_slice(&from[self.order.place(number) * row..][..row]);
        }
    }
}

impl TensorInfo {
    /// Number of elements.
    pub fn element_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in the file.
    pub fn size_bytes(&self) -> u64 {
        self.dtype.bytes(self.element_count()) as u64
    }
}

/// How the weights of a model are stored, as far as the memory that they take depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWeights {
    /// The type of most of them, those of codes aside.
    pub dtype: StoredDType,
    /// Bytes of codes and scales, by name.
    pub(crate) quantized: BTreeMap<String, u64>,
}

impl From<StoredDType> for StoredWeights {
    fn from(dtype: StoredDType) -> Self {
        StoredWeights { dtype, quantized: BTreeMap::new() }
    }
}

/// An open checkpoint: one or several safetensors files whose headers have been checked.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
    /// The file, where weights stay in it.
    map: Option<Arc<MappedFile>>,
}

/// Largest index of shards, in bytes.
const MAX_INDEX: u64 = 256 << 20;
/// Bytes read and converted at a time.
const BUFFER: usize = 256 << 10;

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

impl Checkpoint {
    /// Opens a model folder's `model.safetensors`, or the shards its `model.safetensors.index.json` names,
    /// and checks every header.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.symlink_metadata().is_ok() {
            return Checkpoint::open_file(&single);
        }
        if index.symlink_metadata().is_ok() {
            return open_shards(folder, &index);
        }
        Err(no_weights(folder))
    }

    /// As [`Checkpoint::open`]; none where the folder has no weights, since a model may begin from random
    /// ones.
    pub(crate) fn open_if_any(folder: &Path) -> Result<Option<Checkpoint>> {
        // What is there but cannot be read, such as a link to nothing, is no folder without weights.
        let is_there = |name| folder.join(name).symlink_metadata().is_ok();
        let any = [SINGLE, INDEX].into_iter().any(is_there) || named(folder, is_shard).is_some();
        any.then(|| Checkpoint::open(folder)).transpose()
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::empty(path);
        checkpoint.metadata = checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    fn empty(path: &Path) -> Checkpoint {
        Checkpoint {
            path: path.to_owned(),
            files: vec![],
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            map: None,
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<BTreeMap<String, String>> {
        let file = File::open(path).map_err(|e| ModelError::read(path, e))?;
        let header = header::read_header(&file, path, self.files.len())?;
        for (name, info) in header.tensors {
            if let Some(other) = self.tensors.insert(name.clone(), info) {
                let problem =
                    format!("is also in {}; a tensor has one place", self.files[other.file].0.display());
                return Err(ModelError::tensor(path, name, problem));
            }
        }
        self.files.push((path.to_owned(), file));
        Ok(header.metadata)
    }

    /// The file, or the folder of shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives tensors other names, by which they are known from then on.
    ///
    /// # Errors
    /// If two get the same one.
    pub(crate) fn rename(&mut self, new: impl Fn(&str) -> Option<String>) -> Result<()> {
        let mut renamed = BTreeMap::new();
        for (name, info) in std::mem::take(&mut self.tensors) {
            let new = new(&name).unwrap_or_else(|| name.clone());
            if renamed.insert(new.clone(), info).is_some() {
                let problem =
                    format!("and another tensor both stand for `{new}`; the file must have one of them");
                return Err(ModelError::tensor(&self.path, name, problem));
            }
        }
        self.tensors = renamed;
        Ok(())
    }

    /// Reads weights, which `config` says are in blocks of this type, as such: in safetensors they are bytes.
    ///
    /// # Errors
    /// If a weight is bytes of another number than its shape makes.
    pub(crate) fn take_as_blocks(&mut self, config: &Config, kind: BlockType) -> Result<()> {
        for parameter in config.parameters().iter().filter(|parameter| parameter.is_quantizable()) {
            let Some(name) = self.name_of(parameter) else { continue };
            let info = self.tensors.get_mut(&name).expect("it has this name");
            if info.dtype != StoredDType::U8 {
                continue;
            }
            let (rows, cols) = (parameter.rows, parameter.cols);
            if !cols.is_multiple_of(kind.elements()) || info.shape != [rows, kind.size_bytes(cols)] {
                let problem = format!(
                    "has {:?} bytes, where {rows} rows of {cols} weights in {kind} are needed ({})",
                    info.shape,
                    shape_fields(parameter, config),
                );
                return Err(ModelError::tensor(&self.files[info.file].0, name, problem));
            }
            (info.dtype, info.shape) = (StoredDType::Blocks(kind), vec![rows, cols]);
        }
        Ok(())
    }

    /// Free-text pairs of the header (`format: pt` and the like); empty for shards.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What the file says of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Bytes of all tensors.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.values().map(TensorInfo::size_bytes).sum()
    }

    /// The type in which most of the weights' bytes are stored, those in four bits aside.
    pub fn main_dtype(&self) -> Option<StoredDType> {
        let whole = |name: &str| quantized::weight_of(name).is_none() && self.quantized_code(name).is_none();
        let whole: Vec<&TensorInfo> =
            self.tensors.iter().filter(|(name, _)| whole(name)).map(|(_, info)| info).collect();
        let bytes = |d| whole.iter().filter(|t| t.dtype == d).map(|t| t.size_bytes()).sum::<u64>();
        let used = self.tensors.values().next().is_some();
        let types = [StoredDType::F16, StoredDType::F32, StoredDType::Bf16];
        types.into_iter().max_by_key(|&d| bytes(d)).filter(|_| used)
    }

    /// How the weights of `config` are stored here; none if nothing is.
    ///
    /// # Errors
    /// If what stands beside a weight of codes is missing, misshapen or contradicts `config`.
    pub fn weights(&self, config: &Config) -> Result<Option<StoredWeights>> {
        let Some(dtype) = self.main_dtype() else { return Ok(None) };
        let mut weights = StoredWeights::from(dtype);
        for parameter in config.parameters() {
            if let Some((_, bytes)) = self.quantized(&parameter, config)? {
                weights.quantized.insert(parameter.name(), bytes);
            }
        }
        Ok(Some(weights))
    }

    /// Reads a tensor into a matrix of the same size (one dimension is a single row), converted to the
    /// matrix's type. Nothing is held beyond the matrix but a buffer of 256 KiB.
    ///
    /// # Errors
    /// If the tensor is missing, has another shape, has a value that is NaN or infinite (also one that
    /// becomes infinite in the matrix's type), or the file cannot be read.
    pub fn read_into(&self, name: &str, to: MatrixMut<'_>) -> Result<()> {
        let info = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let fits = match info.shape[..] {
            [n] => to.rows() == 1 && to.cols() == n,
            [rows, cols] => to.rows() == rows && to.cols() == cols,
            _ => false,
        };
        if !fits {
            let problem =
                format!("has shape {:?} where [{}, {}] is needed", info.shape, to.rows(), to.cols());
            return Err(ModelError::tensor(&self.files[info.file].0, name, problem));
        }
        let from = Source { files: &self.files, name, info };
        match to.dtype() {
            DType::F32 => from.convert(to.f32()),
            DType::Bf16 => from.convert(to.bf16()),
        }
    }

    /// Reads the elements of a tensor from `start` on, as [`Checkpoint::read_into`] does.
    ///
    /// # Errors
    /// If the tensor is missing or ends before, has a value that is NaN or infinite, or the file cannot be
    /// read.
    pub fn read_part(&self, name: &str, start: usize, to: &mut [f32]) -> Result<()> {
        let part = self.part(name, start, to.len())?;
        Source { files: &self.files, name, info: &part }.convert(to)
    }

    /// Whether a tensor has the values of one of another file, as far as the narrower of their two types can
    /// tell.
    ///
    /// # Errors
    /// As [`Checkpoint::read_into`].
    pub(crate) fn same_values(&self, name: &str, other: &Checkpoint, other_name: &str) -> Result<bool> {
        let a = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let b = other.tensors.get(other_name).ok_or_else(|| other.missing(other_name))?;
        if a.shape != b.shape {
            return Ok(false);
        }
        let either = |dtype| a.dtype == dtype || b.dtype == dtype;
        let rounded = |value: f32| match () {
            () if either(StoredDType::Bf16) => bf16::from_f32(value).to_f32(),
            () if either(StoredDType::F16) => f16::from_f32(value).to_f32(),
            () => value,
        };
        let elements = a.element_count();
        let (mut left, mut right) = (vec![0.0; BUFFER / 4], vec![0.0; BUFFER / 4]);
        for start in (0..elements).step_by(BUFFER / 4) {
            let n = (elements - start).min(BUFFER / 4);
            self.read_part(name, start, &mut left[..n])?;
            other.read_part(other_name, start, &mut right[..n])?;
            if left[..n].iter().zip(&right[..n]).any(|(&l, &r)| rounded(l) != rounded(r)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the bytes of a tensor from element `start` on as they are.
    ///
    /// # Errors
    /// If the tensor is missing or ends before, or the file cannot be read.
    pub fn read_bytes(&self, name: &str, start: usize, to: &mut [u8]) -> Result<()> {
        let (count, bytes) = self.tensors.get(name).ok_or_else(|| self.missing(name))?.dtype.unit();
        let part = self.part(name, start, to.len() / bytes * count)?;
        Source { files: &self.files, name, info: &part }.read_at(part.start, to)
    }

    /// Where the elements of a tensor from `start` on lie.
    fn part(&self, name: &str, start: usize, count: usize) -> Result<TensorInfo> {
        let info = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let elements = info.element_count();
        if start.checked_add(count).is_none_or(|end| end > elements) {
            let problem = format!("has {elements} elements where {start} and {count} are needed");
            return Err(ModelError::tensor(&self.files[info.file].0, name, problem));
        }
        let position = info.start + info.dtype.bytes(start) as u64;
        Ok(TensorInfo { start: position, ..info.clone() })
    }

    /// Checks that this checkpoint is that of `config`: every parameter there in its shape and nothing else.
    /// A tied head may stand in the file too if it equals the embedding, or instead of it.
    pub fn check(&self, config: &Config) -> Result<()> {
        let parameters = config.parameters();
        let mut known: BTreeMap<String, Parameter> = BTreeMap::new();
        let mut any_quantized = false;
        for parameter in &parameters {
            let name = self.stored_name(parameter, config)?;
            known.insert(name.clone(), *parameter);
            let info = &self.tensors[&name];
            if self.quantized_code(&name).is_some() {
                self.check_quantized(parameter, config)?;
                any_quantized = true;
                continue;
            }
            any_quantized |= matches!(info.dtype, StoredDType::Blocks(_));
            if info.shape != parameter.file_shape() {
                return Err(self.misshapen(&name, info, parameter, config));
            } else if !info.dtype.is_weight() {
                return Err(ModelError::tensor(&self.files[info.file].0, name, not_weights(info.dtype)));
            }
        }
        if config.quantization.is_some() && !any_quantized {
            let problem = "has no quantized weight, though config.json has a `quantization_config`; the weights and \
                           config.json must be of one model";
            return Err(ModelError::file(&self.path, problem));
        }
        let embedding = self.stored_name(&config.parameter(ModuleId::Embedding, false), config)?;
        let tied_head = self.name_of(&config.parameter(ModuleId::Head, false));
        let tied_head = tied_head.filter(|_| config.tie_word_embeddings);
        for (name, info) in &self.tensors {
            let computed = tables::COMPUTED_BUFFERS.iter().any(|buffer| name.ends_with(buffer));
            if known.contains_key(name) || computed || config.names.is_foreign(name) {
                continue;
            }
            let beside = quantized::weight_of(name);
            if beside
                .is_some_and(|weight| known.contains_key(weight) && self.quantized_code(weight).is_some())
            {
                continue;
            }
            if tied_head.as_deref() == Some(name) {
                self.check_tied(&embedding, name)?;
                continue;
            }
            return Err(self.unknown(name, info, &known, config));
        }
        Ok(())
    }

    /// Reads a parameter of `config` into its matrix, as [`Checkpoint::read_into`]; a tied embedding under
    /// whichever name it has.
    pub fn read_parameter(&self, parameter: &Parameter, config: &Config, to: MatrixMut<'_>) -> Result<()> {
        let name = self.stored_name(parameter, config)?;
        match self.tensors[&name].placed {
            None => read_as_stored(parameter.transposed, to, |to| self.read_into(&name, to)),
            Some(placed) => self.read_placed(&name, placed, parameter, to),
        }
    }

    /// Reads a parameter of a GGUF file.
    fn read_placed(
        &self,
        name: &str,
        placed: Placed,
        parameter: &Parameter,
        to: MatrixMut<'_>,
    ) -> Result<()> {
        let from = Source { files: &self.files, name, info: &self.tensors[name] };
        let row = if parameter.is_vector() { 1 } else { parameter.cols };
        fn finish<T: Element>(placed: Placed, values: &mut [T], row: usize) {
            placed.sort_rows(values, row);
            if placed.plus_one {
                values.iter_mut().for_each(|value| *value = T::from_f32(value.to_f32() - 1.0));
            }
        }
        match to.dtype() {
            DType::F32 => {
                let to = to.f32();
                from.convert(&mut *to)?;
                finish(placed, to, row);
            }
            DType::Bf16 => {
                let to = to.bf16();
                from.convert(&mut *to)?;
                finish(placed, to, row);
            }
        }
        Ok(())
    }

    /// What the file says of a parameter.
    pub(crate) fn stored(&self, parameter: &Parameter, config: &Config) -> Result<&TensorInfo> {
        Ok(&self.tensors[&self.stored_name(parameter, config)?])
    }

    /// Under which name a parameter stands in the file.
    pub(crate) fn stored_name(&self, parameter: &Parameter, config: &Config) -> Result<String> {
        if let Some(name) = self.name_of(parameter) {
            return Ok(name);
        }
        let tied = config.tie_word_embeddings && parameter.module == ModuleId::Embedding;
        let head = tied.then(|| self.name_of(&config.parameter(ModuleId::Head, false))).flatten();
        if let Some(head) = head {
            return Ok(head);
        }
        let name = parameter.name();
        if parameter.module == ModuleId::Head {
            let problem = "is missing; if the model's head shares the embedding's weight, config.json must say \
                           \"tie_word_embeddings\": true";
            return Err(ModelError::tensor(&self.path, name, problem));
        }
        Err(self.missing(&name))
    }

    /// What this file calls a parameter, or would, by what it calls the embedding.
    pub(crate) fn spelling(&self, parameter: &Parameter) -> String {
        let embedding = Parameter { module: ModuleId::Embedding, bias: false, ..*parameter };
        let place = embedding.names().position(|name| self.tensors.contains_key(&name)).unwrap_or(0);
        let usual = || parameter.names().nth(place).unwrap_or_else(|| parameter.name());
        self.name_of(parameter).unwrap_or_else(usual)
    }

    /// The tensors of other parts of a model than that for texts.
    pub(crate) fn foreign(&self, config: &Config) -> Vec<TensorSpec> {
        let others = self.tensors.iter().filter(|(name, _)| config.names.is_foreign(name));
        let spec = |(name, info): (&String, &TensorInfo)| TensorSpec {
            name: name.clone(),
            shape: info.shape.clone(),
            dtype: info.dtype,
        };
        others.map(spec).collect()
    }

    /// Copies them, byte for byte.
    pub(crate) fn copy_foreign(&self, config: &Config, to: &mut CheckpointWriter) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        for TensorSpec { name, dtype, .. } in self.foreign(config) {
            let elements = self.tensors[&name].element_count();
            let step = BUFFER / dtype.bytes(1);
            for start in (0..elements).step_by(step) {
                let bytes = &mut buffer[..step.min(elements - start) * dtype.bytes(1)];
                self.read_bytes(&name, start, bytes)?;
                to.write_bytes(&name, start, bytes)?;
            }
        }
        Ok(())
    }

    /// Whether a parameter is here, under any of its names.
    pub(crate) fn has(&self, parameter: &Parameter) -> bool {
        self.name_of(parameter).is_some()
    }

    /// The name of a parameter in this file, if it has it.
    fn name_of(&self, parameter: &Parameter) -> Option<String> {
        parameter.names().find(|name| self.tensors.contains_key(name))
    }

    fn missing(&self, name: &str) -> ModelError {
        let near = nearest(name, self.names(), 2);
        let hint = match near.is_empty() {
            true => "the file has no tensors".to_owned(),
            false => format!("the nearest names in the file are {}", quoted(near)),
        };
        ModelError::tensor(&self.path, name, format!("is missing; {hint}"))
    }

    fn misshapen(&self, name: &str, info: &TensorInfo, parameter: &Parameter, config: &Config) -> ModelError {
        let problem = format!(
            "has shape {:?} but config.json makes it {:?} ({}); the weights and config.json must be of one model",
            info.shape,
            parameter.file_shape(),
            shape_fields(parameter, config),
        );
        ModelError::tensor(&self.files[info.file].0, name, problem)
    }

    fn unknown(
        &self,
        name: &str,
        info: &TensorInfo,
        known: &BTreeMap<String, Parameter>,
        config: &Config,
    ) -> ModelError {
        let beyond =
            name.rsplit_once('.').and_then(|(path, _)| config.names.parse(path)).and_then(ModuleId::layer);
        let problem = match beyond {
            Some(layer) if layer >= config.layers => {
                format!("belongs to layer {layer}, but config.json says num_hidden_layers {}", config.layers)
            }
            _ => {
                let near = nearest(name, known.keys().map(String::as_str), 1);
                format!(
                    "is not a part of a {} model as config.json describes it (the nearest is {})",
                    config.family.model_type(),
                    quoted(near)
                )
            }
        };
        ModelError::tensor(&self.files[info.file].0, name, problem)
    }

    /// Both names of a tied weight are in the file: they must hold the same.
    fn check_tied(&self, embedding: &str, head: &str) -> Result<()> {
        let (a, b) = (&self.tensors[embedding], &self.tensors[head]);
        let path = &self.files[b.file].0;
        let differs = || {
            let problem = format!(
                "differs from `{embedding}`, though config.json says \"tie_word_embeddings\": true; set it to false \
                 if the head is trained apart"
            );
            ModelError::tensor(path, head, problem)
        };
        if a.dtype != b.dtype || a.shape != b.shape {
            return Err(differs());
        }
        let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
        let mut done = 0;
        while done < a.size_bytes() {
            let n = BUFFER.min((a.size_bytes() - done) as usize);
            for (info, buffer) in [(a, &mut left), (b, &mut right)] {
                let (path, file) = &self.files[info.file];
                read_exact_at(file, &mut buffer[..n], info.start + done)
                    .map_err(|e| ModelError::read(path, e))?;
            }
            if left[..n] != right[..n] {
                return Err(differs());
            }
            done += n as u64;
        }
        Ok(())
    }
}

/// Why a tensor of this type, which no state says how to read, is refused.
fn not_weights(dtype: StoredDType) -> String {
    format!("is stored as {} where weights are needed; supported are F32, BF16 and F16", dtype.name())
}

/// `to [N, M]` from `from [M, N]` of the same type.
pub(crate) fn transpose(from: MatrixRef<'_>, to: MatrixMut<'_>) {
    fn turn<T: Copy>(from: &[T], to: &mut [T], rows: usize) {
        let cols = to.len() / rows.max(1);
        for (r, to) in to.chunks_exact_mut(cols.max(1)).enumerate() {
            to.iter_mut().enumerate().for_each(|(c, to)| *to = from[c * rows + r]);
        }
    }
    let rows = to.rows();
    assert_eq!((from.rows(), from.cols(), from.dtype()), (to.cols(), rows, to.dtype()), "a transpose");
    match to.dtype() {
        DType::F32 => turn(from.f32(), to.f32(), rows),
        DType::Bf16 => turn(from.bf16(), to.bf16(), rows),
    }
}

/// Fills a matrix `[N, M]` by a function that reads it as a file has it, `[M, N]` if it is transposed there.
pub(crate) fn read_as_stored(
    transposed: bool,
    to: MatrixMut<'_>,
    read: impl FnOnce(MatrixMut<'_>) -> Result<()>,
) -> Result<()> {
    if !transposed {
        return read(to);
    }
    let mut turned = Matrix::unset(to.cols(), to.rows(), to.dtype());
    read(turned.as_mut())?;
    transpose(turned.as_ref(), to);
    Ok(())
}

/// The fields of config.json that fix a parameter's shape, with their values.
fn shape_fields(parameter: &Parameter, config: &Config) -> String {
    use crate::names::{NormPart, Part};
    let hidden = ("hidden_size", config.hidden_size);
    let inner = ("intermediate_size", config.intermediate_size);
    let vocabulary = ("vocab_size", config.vocab_size);
    let (heads, kv_heads) = (("num_attention_heads", config.heads), ("num_key_value_heads", config.kv_heads));
    let head_dim = ("head_dim", config.head_dim);
    let fields: &[(&str, usize)] = match parameter.module {
        ModuleId::Embedding | ModuleId::Head => &[vocabulary, hidden],
        ModuleId::Positions => &[("max_position_embeddings", config.max_position_embeddings), hidden],
        ModuleId::Norm { part: NormPart::Q | NormPart::K, .. } => &[heads, kv_heads, head_dim],
        ModuleId::Norm { .. } | ModuleId::FinalNorm => &[hidden],
        ModuleId::Expert { .. } => {
            &[hidden, ("the experts' inner width", parameter.rows.min(parameter.cols))]
        }
        ModuleId::Linear { part: Part::Q | Part::O, .. } => &[hidden, heads, head_dim],
        ModuleId::Linear { part: Part::K | Part::V, .. } => &[hidden, kv_heads, head_dim],
        ModuleId::Linear { part: Part::Qkv, .. } => &[hidden, heads, kv_heads, head_dim],
        ModuleId::Linear { part: Part::Router, .. } => &[("the number of experts", parameter.rows), hidden],
        ModuleId::Linear { part: Part::Gate | Part::Up | Part::GateUp | Part::Down, .. } => &[hidden, inner],
    };
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name} {value}")).collect();
    fields.join(", ")
}

/// A tensor about to be read.
struct Source<'a> {
    files: &'a [(PathBuf, File)],
    name: &'a str,
    info: &'a TensorInfo,
}

impl Source<'_> {
    fn path(&self) -> &Path {
        &self.files[self.info.file].0
    }

    /// Reads bytes from a position of the tensor's file on, or among the blocks that are put together.
    fn read_at(&self, position: u64, to: &mut [u8]) -> Result<()> {
        let read = match (&self.info.apart, self.info.dtype) {
            (Some(apart), StoredDType::Blocks(kind)) => {
                apart.read(self.files, position as usize / kind.bytes(), to)
            }
            _ => read_exact_at(&self.files[self.info.file].1, to, position),
        };
        read.map_err(|e| ModelError::read(self.path(), e))
    }

    /// Streams the tensor through a buffer into `to`.
    fn convert<T: Element>(&self, to: &mut [T]) -> Result<()> {
        match self.info.dtype {
            StoredDType::F32 => self.stream(to, |b: [u8; 4]| T::from_f32(f32::from_le_bytes(b))),
            StoredDType::Bf16 => self.stream(to, |b: [u8; 2]| T::from_bf16(bf16::from_le_bytes(b))),
            StoredDType::F16 => self.stream(to, |b: [u8; 2]| T::from_f32(f16::from_le_bytes(b).to_f32())),
            StoredDType::Blocks(kind) => self.decode(kind, to),
            other => Err(ModelError::tensor(self.path(), self.name, not_weights(other))),
        }
    }

    /// Brings blocks into values, a buffer's worth at a time.
    fn decode<T: Element>(&self, kind: BlockType, to: &mut [T]) -> Result<()> {
        let step = BUFFER / kind.bytes() * kind.elements();
        let mut values = vec![0.0; step.min(to.len())];
        for (chunk, to) in to.chunks_mut(step).enumerate() {
            let mut blocks = Blocks::zeros(kind, to.len());
            let position = self.info.start + kind.size_bytes(chunk * step) as u64;
            self.read_at(position, blocks.bytes_mut())?;
            blocks.values(0, &mut values[..to.len()]);
            to.iter_mut().zip(&values).for_each(|(to, &value)| *to = T::from_f32(value));
            if let Some(within) = to.iter().position(|v| !v.finite()) {
                return Err(self.not_finite(chunk * step + within, to[within].to_f32()));
            }
        }
        Ok(())
    }

    fn stream<T: Element, const N: usize>(&self, to: &mut [T], decode: impl Fn([u8; N]) -> T) -> Result<()> {
        let mut buffer = vec![0; BUFFER.min(to.len() * N)];
        let mut position = self.info.start;
        for (chunk, to) in to.chunks_mut(BUFFER / N).enumerate() {
            let bytes = &mut buffer[..to.len() * N];
            self.read_at(position, bytes)?;
            position += bytes.len() as u64;
            let (elements, _) = bytes.as_chunks::<N>();
            let mut finite = true;
            for (to, &from) in to.iter_mut().zip(elements) {
                *to = decode(from);
                finite &= to.finite();
            }
            if !finite {
                let within = to.iter().position(|v| !v.finite()).expect("one was seen");
                return Err(self.not_finite(chunk * (BUFFER / N) + within, to[within].to_f32()));
            }
        }
        Ok(())
    }

    fn not_finite(&self, element: usize, value: f32) -> ModelError {
        let index = match self.info.shape[..] {
            [_, cols] => format!("[{}, {}]", element / cols, element % cols),
            _ => format!("[{element}]"),
        };
        let problem = format!("has the value {value} at {index}; weights must be finite");
        ModelError::tensor(self.path(), self.name, problem)
    }
}

/// The index of a sharded checkpoint; its metadata is not needed.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(folder: &Path, index: &Path) -> Result<Checkpoint> {
    let text = read_small_file(index, MAX_INDEX)?;
    let Index { weight_map } = serde_json::from_str(&text).map_err(|e| ModelError::json(index, &e))?;
    let mut shards: Vec<&String> = weight_map.values().collect();
    shards.sort();
    shards.dedup();
    let mut checkpoint = Checkpoint::empty(folder);
    for shard in shards {
        checkpoint.add_file(&shard_path(folder, index, shard)?)?;
    }
    for (name, shard) in &weight_map {
        match checkpoint.tensors.get(name) {
            Some(info) if checkpoint.files[info.file].0 == folder.join(shard) => {}
            Some(info) => {
                let file = checkpoint.files[info.file].0.display();
                let problem =
                    format!("is placed in {shard:?} but is in {file}; the index is not of these files");
                return Err(ModelError::tensor(index, name, problem));
            }
            None => {
                let problem = format!(
                    "is placed in {shard:?}, which does not have it; the index is not of these files"
                );
                return Err(ModelError::tensor(index, name, problem));
            }
        }
    }
    if let Some((name, info)) = checkpoint.tensors.iter().find(|(name, _)| !weight_map.contains_key(*name)) {
        let problem = format!("is not in {INDEX}; the index is not of these files");
        return Err(ModelError::tensor(&checkpoint.files[info.file].0, name, problem));
    }
    Ok(checkpoint)
}

/// A shard's path, which must be a plain file name: an index must not reach outside its folder.
fn shard_path(folder: &Path, index: &Path, shard: &str) -> Result<PathBuf> {
    let mut components = Path::new(shard).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if !plain || shard.contains(['/', '\\']) {
        let problem = format!("names the file {shard:?}; only files of the same folder are read");
        return Err(ModelError::field(index, "weight_map", problem));
    }
    let path = folder.join(shard);
    if !path.is_file() {
        let problem = format!("names {shard:?}, which is not in the folder; was the download broken off?");
        return Err(ModelError::field(index, "weight_map", problem));
    }
    Ok(path)
}

/// That a folder has no weights, with what it has in their place.
pub(crate) fn no_weights(folder: &Path) -> ModelError {
    if !folder.is_dir() {
        let source = io::Error::new(io::ErrorKind::NotFound, "there is no such folder");
        return ModelError::read(folder, source);
    }
    let problem = if let Some(name) = named(folder, |n| n.starts_with("pytorch_model") && n.contains(".bin"))
    {
        format!(
            "has weights only as {name}, a Python pickle, which can run code when it is read; save the model again \
             with save_pretrained(..., safe_serialization=True)"
        )
    } else if named(folder, |n| n.starts_with("adapter_model.")).is_some() {
        "is an adapter, not a model; give it as the adapter and its base as the model".to_owned()
    } else if let Some(name) = named(folder, |n| n.ends_with(".gguf")) {
        format!("has weights only as {name}; a model folder in the Hugging Face layout is needed")
    } else if let Some(name) = named(folder, is_shard) {
        format!("has {name} but no {INDEX}, which says what is in which file; copy it into the folder, too")
    } else {
        format!("has neither {SINGLE} nor {INDEX}")
    };
    ModelError::file(folder, problem)
}

/// A file of a folder whose name passes a test.
fn named(folder: &Path, test: impl Fn(&str) -> bool) -> Option<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).find(|name| test(name))
}

/// Whether a file is one of several that hold a model.
fn is_shard(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(n, of)| number(n) && number(of))
}

/// Fills `buffer` from a position of the file, leaving no cursor behind: threads may read side by side.
#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, position)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut position: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, position)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                buffer = &mut buffer[n..];
                position += n as u64;
            }
        }
    }
    Ok(())
}
