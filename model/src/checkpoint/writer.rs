//! Writing safetensors: a tensor at a time, the whole or nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use compute::{DType, MatrixRef, bf16};
use half::f16;
use serde_json::{Map, Value, json};
use tempfile::{Builder, NamedTempFile};

use super::{BUFFER, INDEX, SINGLE, StoredDType};
use crate::error::{ModelError, Result};

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// How its elements will be stored.
    pub dtype: StoredDType,
}

impl TensorSpec {
    pub(crate) fn size_bytes(&self) -> u64 {
        self.dtype.bytes(self.shape.iter().product()) as u64
    }
}

/// Largest shard of a model, in bytes, as transformers has long cut them.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes safetensors files whose tensors come one at a time, in any order.
///
/// The files stand under temporary names until [`CheckpointWriter::finish`] has seen every tensor and the
/// disk has taken every byte; a writer that is dropped before leaves nothing.
pub struct CheckpointWriter {
    shards: Vec<Shard>,
    /// Which shard, and where in it, each tensor belongs.
    places: BTreeMap<String, Place>,
    index: Option<(PathBuf, String)>,
}

struct Shard {
    file: NamedTempFile,
    target: PathBuf,
}

struct Place {
    shard: usize,
    start: u64,
    spec: TensorSpec,
    /// Elements that are in the file.
    written: usize,
}

impl CheckpointWriter {
    /// One file at `path` that will hold these tensors, with text pairs in its header.
    pub fn file(path: &Path, metadata: &BTreeMap<String, String>, specs: Vec<TensorSpec>) -> Result<Self> {
        let mut writer = CheckpointWriter { shards: vec![], places: BTreeMap::new(), index: None };
        writer.add_shard(path.to_owned(), metadata, specs)?;
        Ok(writer)
    }

    /// A model's weights in `folder`: `model.safetensors`, or shards of at most `shard_bytes` with an index
    /// where that is not enough (a tensor larger than a shard has one of its own). Usually [`SHARD_BYTES`].
    pub fn model(folder: &Path, specs: Vec<TensorSpec>, shard_bytes: u64) -> Result<Self> {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let total: u64 = specs.iter().map(TensorSpec::size_bytes).sum();
        if total <= shard_bytes {
            return CheckpointWriter::file(&folder.join(SINGLE), &metadata, specs);
        }
        let groups = cut(specs, shard_bytes);
        let count = groups.len();
        let mut weight_map = BTreeMap::new();
        let mut writer = CheckpointWriter { shards: vec![], places: BTreeMap::new(), index: None };
        for (i, group) in groups.into_iter().enumerate() {
            let name = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            weight_map.extend(group.iter().map(|spec| (spec.name.clone(), name.clone())));
            writer.add_shard(folder.join(&name), &metadata, group)?;
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let text = serde_json::to_string_pretty(&index).expect("JSON serializes") + "\n";
        writer.index = Some((folder.join(INDEX), text));
        Ok(writer)
    }

    fn add_shard(
        &mut self,
        target: PathBuf,
        metadata: &BTreeMap<String, String>,
        specs: Vec<TensorSpec>,
    ) -> Result<()> {
        let (header, starts) = header(metadata, &specs);
        let file = temporary(&target).map_err(|e| ModelError::write(&target, e))?;
        let shard = self.shards.len();
        self.shards.push(Shard { file, target });
        let Shard { file, target, .. } = &mut self.shards[shard];
        file.write_all(&header).map_err(|e| ModelError::write(target, e))?;
        for (spec, start) in specs.into_iter().zip(starts) {
            let name = spec.name.clone();
            let previous = self.places.insert(name, Place { shard, start, spec, written: 0 });
            assert!(previous.is_none(), "tensor {:?} is to be written twice", previous.map(|p| p.spec.name));
        }
        Ok(())
    }

    /// Writes one tensor, converted to the type announced for it.
    ///
    /// # Panics
    /// If the tensor was not announced, was written before, or has another number of elements.
    pub fn write(&mut self, name: &str, values: MatrixRef<'_>) -> Result<()> {
        let elements = self.elements(name);
        assert_eq!(values.rows() * values.cols(), elements, "elements of {name:?}");
        self.write_part(name, 0, values)
    }

    /// Writes the elements of a tensor from `start` on. Parts come in order.
    ///
    /// # Panics
    /// If the tensor was not announced, has no such elements, or the part before has not been written.
    pub fn write_part(&mut self, name: &str, start: usize, values: MatrixRef<'_>) -> Result<()> {
        let count = values.rows() * values.cols();
        self.write_elements(name, start, count, |file, dtype| write_values(file, values, dtype))
    }

    /// Writes the bytes of a tensor from element `start` on as they are. Parts come in order.
    ///
    /// # Panics
    /// If the tensor was not announced, has no such elements, or the part before has not been written.
    pub fn write_bytes(&mut self, name: &str, start: usize, bytes: &[u8]) -> Result<()> {
        let size = self.place(name).spec.dtype.bytes(1);
        assert!(bytes.len().is_multiple_of(size), "{} bytes for {name:?}, {size} an element", bytes.len());
        self.write_elements(name, start, bytes.len() / size, |file, _| file.write_all(bytes))
    }

    /// Has elements written at their place in the file.
    fn write_elements(
        &mut self,
        name: &str,
        start: usize,
        count: usize,
        write: impl FnOnce(&mut File, StoredDType) -> io::Result<()>,
    ) -> Result<()> {
        let elements = self.elements(name);
        let place = self.places.get_mut(name).expect("the tensor was announced");
        assert_eq!(place.written, start, "elements of {name:?} that were written before");
        assert!(start + count <= elements, "{name:?} has {elements} elements, not {start} and {count}");
        place.written += count;
        let dtype = place.spec.dtype;
        let position = place.start + (start * dtype.bytes(1)) as u64;
        let Shard { file, target, .. } = &mut self.shards[place.shard];
        file.seek(SeekFrom::Start(position))
            .and_then(|_| write(file.as_file_mut(), dtype))
            .map_err(|e| ModelError::write(target, e))
    }

    fn place(&self, name: &str) -> &Place {
        self.places.get(name).unwrap_or_else(|| panic!("tensor {name:?} was not announced"))
    }

    fn elements(&self, name: &str) -> usize {
        self.place(name).spec.shape.iter().product()
    }

    /// Waits until the disk has everything, then gives the files their names, the index last.
    ///
    /// # Panics
    /// If an announced tensor was not written.
    pub fn finish(self) -> Result<()> {
        for (name, place) in &self.places {
            assert_eq!(place.written, self.elements(name), "elements of {name:?} that were written");
        }
        for shard in &self.shards {
            shard.file.as_file().sync_all().map_err(|e| ModelError::write(&shard.target, e))?;
        }
        let mut named = Vec::new();
        let result = self.shards.into_iter().try_for_each(|Shard { file, target }| {
            file.persist(&target).map_err(|e| ModelError::write(&target, e.error))?;
            named.push(target);
            Ok(())
        });
        let result = result.and_then(|()| match &self.index {
            Some((path, text)) => write_whole(path, text.as_bytes()),
            None => Ok(()),
        });
        match &result {
            Ok(()) => named.iter().take(1).for_each(|path| sync_folder(path)),
            // A part of a model is of no use.
            Err(_) => named.iter().for_each(|path| drop(fs::remove_file(path))),
        }
        result
    }
}

/// Consecutive tensors cut into groups of at most `limit` bytes.
fn cut(specs: Vec<TensorSpec>, limit: u64) -> Vec<Vec<TensorSpec>> {
    let mut groups: Vec<Vec<TensorSpec>> = Vec::new();
    let mut used = 0;
    for spec in specs {
        let size = spec.size_bytes();
        match groups.last_mut() {
            Some(group) if used + size <= limit => group.push(spec),
            _ => {
                groups.push(vec![spec]);
                used = 0;
            }
        }
        used += size;
    }
    groups
}

/// The bytes before the data, and each tensor's first byte in the file. Tensors of wider elements come first,
/// so that every tensor is aligned to its elements; the header ends on a multiple of eight for the same
/// reason.
fn header(metadata: &BTreeMap<String, String>, specs: &[TensorSpec]) -> (Vec<u8>, Vec<u64>) {
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(specs[i].dtype.bytes(1)));
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut starts = vec![0; specs.len()];
    let mut position = 0;
    for i in order {
        let spec = &specs[i];
        let end = position + spec.size_bytes();
        let entry = json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [position, end]});
        entries.insert(spec.name.clone(), entry);
        starts[i] = position;
        position = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    for start in &mut starts {
        *start += bytes.len() as u64;
    }
    (bytes, starts)
}

/// Converts and writes a buffer's worth at a time.
fn write_values(file: &mut File, values: MatrixRef<'_>, dtype: StoredDType) -> io::Result<()> {
    let elements = values.rows() * values.cols();
    let values = values.download();
    let values = values.as_ref().reshape(elements, 1);
    let rows = BUFFER / dtype.bytes(1);
    let mut buffer = Vec::with_capacity(BUFFER.min(elements * dtype.bytes(1)));
    for start in (0..elements).step_by(rows) {
        let chunk = values.rows_range(start..elements.min(start + rows));
        match chunk.dtype() {
            DType::F32 => encode_f32(&mut buffer, chunk.f32().iter().copied(), dtype),
            DType::Bf16 if dtype == StoredDType::Bf16 => {
                encode(&mut buffer, chunk.bf16().iter().copied(), bf16::to_le_bytes);
            }
            DType::Bf16 => encode_f32(&mut buffer, chunk.bf16().iter().map(|v| v.to_f32()), dtype),
        }
        file.write_all(&buffer)?;
    }
    Ok(())
}

fn encode_f32(buffer: &mut Vec<u8>, values: impl ExactSizeIterator<Item = f32>, dtype: StoredDType) {
    match dtype {
        StoredDType::F32 => encode(buffer, values, f32::to_le_bytes),
        StoredDType::Bf16 => encode(buffer, values, |v| bf16::from_f32(v).to_le_bytes()),
        StoredDType::F16 => encode(buffer, values, |v| f16::from_f32(v).to_le_bytes()),
        other => panic!("{} are no weights", other.name()),
    }
}

/// Replaces the buffer's bytes by those of the values.
fn encode<T, const N: usize>(
    buffer: &mut Vec<u8>,
    values: impl ExactSizeIterator<Item = T>,
    bytes: impl Fn(T) -> [u8; N],
) {
    buffer.resize(values.len() * N, 0);
    let (chunks, _) = buffer.as_chunks_mut::<N>();
    chunks.iter_mut().zip(values).for_each(|(to, value)| *to = bytes(value));
}

/// A new file in the same folder, under a name that no other writer has; dropped, it is gone.
fn temporary(target: &Path) -> io::Result<NamedTempFile> {
    let name = target.file_name().expect("a file to write has a name").to_string_lossy();
    // Made as any file is: a temporary one would be its owner's alone to read.
    Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".tmp")
        .make_in(folder_of(target), |path| File::create_new(path))
}

/// Writes a small file under a temporary name, waits for the disk, and renames it: the file is whole or not
/// there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = temporary(path)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)
    };
    write().map_err(|e| ModelError::write(path, e))?;
    sync_folder(path);
    Ok(())
}

/// Removes the files that writers which were killed left in a folder. No other process may be writing there.
pub fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(".tmp") {
            let _ = fs::remove_file(entry.path()); // of no use, and no harm
        }
    }
}

/// Asks the disk to keep the name of a file or folder too. Not every file system can; what it names is safe
/// in any case.
pub fn sync_folder(file: &Path) {
    sync(folder_of(file));
}

pub(super) fn sync(path: &Path) {
    let _ = File::open(path).and_then(|f| f.sync_all());
}

/// The folder that a file or folder is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
