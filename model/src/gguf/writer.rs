//! Writing a GGUF file: the header first, then the tensors' bytes, one tensor after the other.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{ALIGNMENT, Gguf, GgufTensor, GgufValue, TensorType, kind};
use crate::error::{ModelError, Result};

/// What a file says under a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// A text.
    Text(String),
    /// A number of 32 bits.
    Float(f32),
    /// A whole number of 32 bits.
    Count(u32),
    /// True or false.
    Bool(bool),
    /// Texts.
    Texts(Vec<String>),
    /// Numbers of 32 bits.
    Floats(Vec<f32>),
    /// Whole numbers of 32 bits, with a sign.
    Integers(Vec<i32>),
    /// Truth values.
    Bools(Vec<bool>),
}

impl From<&str> for Said {
    fn from(text: &str) -> Self {
        Said::Text(text.to_owned())
    }
}

/// Keys and values, in the order in which a file has them.
pub type Entries = Vec<(String, Said)>;

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufSpec {
    /// Its name.
    pub name: String,
    /// Its sizes, the fastest one first.
    pub dimensions: Vec<u64>,
    /// How its values are stored.
    pub kind: TensorType,
}

impl GgufSpec {
    /// Bytes of its values.
    fn size_bytes(&self) -> u64 {
        self.dimensions.iter().product::<u64>() / self.kind.block_elements() * self.kind.block_bytes()
    }
}

/// Writes a file whose tensors' bytes come in the order in which they were announced, in pieces of any size.
pub struct GgufWriter {
    to: BufWriter<File>,
    path: PathBuf,
    tensors: Vec<GgufSpec>,
    /// Where each tensor begins.
    starts: Vec<u64>,
    /// Bytes written of the tensor that is being written, the last of these.
    written: u64,
    /// Of the bytes of each tensor that was begun.
    sums: Vec<DefaultHasher>,
}

impl GgufWriter {
    /// Makes a file where there is none, of its final length, and writes its header.
    ///
    /// # Panics
    /// If rows of a tensor are not whole blocks of its type.
    pub fn create(path: &Path, entries: &Entries, tensors: Vec<GgufSpec>) -> Result<Self> {
        for GgufSpec { name, dimensions, kind } in &tensors {
            let block = kind.block_elements();
            assert!(dimensions[0].is_multiple_of(block), "rows of {name} are of whole blocks of {block}");
        }
        let header = header(entries, &tensors);
        let mut start = (header.len() as u64).next_multiple_of(ALIGNMENT);
        let mut starts = Vec::new();
        for tensor in &tensors {
            starts.push(start);
            start = (start + tensor.size_bytes()).next_multiple_of(ALIGNMENT);
        }
        let create = || {
            let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
            // The places between tensors are of zeros then.
            file.set_len(start)?;
            file.write_all(&header)?;
            Ok(BufWriter::new(file))
        };
        let to = create().map_err(|e| ModelError::write(path, e))?;
        Ok(GgufWriter { to, path: path.to_owned(), tensors, starts, written: 0, sums: Vec::new() })
    }

    /// Writes the next bytes of the tensor of this name: the one after the last that is whole.
    ///
    /// # Panics
    /// If it is another one's turn, or it has no such bytes.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(()); // a tensor that is whole stays the last one
        }
        let is_whole = |n: usize| self.written == self.tensors[n].size_bytes();
        if self.sums.len().checked_sub(1).is_none_or(is_whole) {
            let next = self.sums.len();
            assert!(next < self.tensors.len(), "{name:?} is one tensor too many");
            self.sums.push(DefaultHasher::new());
            self.written = 0;
            self.to.seek(SeekFrom::Start(self.starts[next])).map_err(|e| ModelError::write(&self.path, e))?;
        }
        let current = self.sums.len() - 1;
        let tensor = &self.tensors[current];
        assert_eq!(tensor.name, name, "the tensor whose turn it is");
        self.written += bytes.len() as u64;
        assert!(self.written <= tensor.size_bytes(), "{name:?} has more bytes than were announced");
        self.sums[current].write(bytes);
        self.to.write_all(bytes).map_err(|e| ModelError::write(&self.path, e))
    }

    /// Gives what was written so far to readers of the file.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.to.flush().map_err(|e| ModelError::write(&self.path, e))
    }

    /// Waits for the disk, and reads the file back: header and values must be what was to be written.
    ///
    /// # Errors
    /// If a part of the file cannot be written or read, or is not what it should be.
    ///
    /// # Panics
    /// If bytes of a tensor are missing.
    pub fn finish(self, entries: &Entries) -> Result<Gguf> {
        let GgufWriter { to, path, tensors, starts, written, sums } = self;
        assert_eq!(sums.len(), tensors.len(), "tensors that were written");
        assert!(tensors.last().is_none_or(|last| written == last.size_bytes()), "the last tensor is whole");
        let mut file = to
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all().map(|()| file))
            .map_err(|e| ModelError::write(&path, e))?;
        let differs = |name: &str| {
            ModelError::tensor(&path, name, "was not written as it is; try again, or on another disk")
        };
        let read = Gguf::open(&path)?;
        let same = |(key, said): &(String, Said)| read.metadata().get(key) == Some(&said.value());
        if read.metadata().len() != entries.len() || !entries.iter().all(same) {
            return Err(ModelError::file(&path, "was not written as it is; try again, or on another disk"));
        }
        for ((spec, start), sum) in tensors.iter().zip(starts).zip(sums) {
            let GgufSpec { name, dimensions, kind } = spec;
            let expected = GgufTensor {
                dimensions: dimensions.clone(),
                kind: *kind,
                start,
                size_bytes: spec.size_bytes(),
            };
            if read.tensors().get(name) != Some(&expected) {
                return Err(differs(name));
            }
            let found = sum_of(&mut file, &expected).map_err(|e| ModelError::read(&path, e))?;
            if found != sum.finish() {
                return Err(differs(name));
            }
        }
        Ok(read)
    }
}

/// The sum of a tensor's bytes.
fn sum_of(file: &mut File, tensor: &GgufTensor) -> io::Result<u64> {
    let mut sum = DefaultHasher::new();
    let mut buffer = vec![0; (1 << 20).min(tensor.size_bytes as usize)];
    file.seek(SeekFrom::Start(tensor.start))?;
    let mut left = tensor.size_bytes as usize;
    while left > 0 {
        let piece = &mut buffer[..left.min(1 << 20)];
        file.read_exact(piece)?;
        sum.write(piece);
        left -= piece.len();
    }
    Ok(sum.finish())
}

impl Said {
    /// What a reader makes of it.
    fn value(&self) -> GgufValue {
        match self {
            Said::Text(text) => GgufValue::Text(text.clone()),
            Said::Float(number) => GgufValue::Float((*number).into()),
            Said::Count(count) => GgufValue::Integer((*count).into()),
            Said::Bool(flag) => GgufValue::Bool(*flag),
            Said::Texts(texts) => GgufValue::Texts(texts.clone()),
            Said::Floats(numbers) => GgufValue::Floats(numbers.iter().map(|&n| n.into()).collect()),
            Said::Integers(numbers) => GgufValue::Integers(numbers.iter().map(|&n| n.into()).collect()),
            Said::Bools(flags) => GgufValue::Bools(flags.clone()),
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        let of = match self {
            Said::Text(_) => kind::TEXT,
            Said::Float(_) => kind::F32,
            Said::Count(_) => kind::U32,
            Said::Bool(_) => kind::BOOL,
            Said::Texts(_) | Said::Floats(_) | Said::Integers(_) | Said::Bools(_) => kind::ARRAY,
        };
        to.extend(of.to_le_bytes());
        match self {
            Said::Text(value) => text(to, value),
            Said::Float(value) => to.extend(value.to_le_bytes()),
            Said::Count(value) => to.extend(value.to_le_bytes()),
            Said::Bool(value) => to.push(u8::from(*value)),
            Said::Texts(values) => array(to, kind::TEXT, values, |to, value| text(to, value)),
            Said::Floats(values) => array(to, kind::F32, values, |to, value| to.extend(value.to_le_bytes())),
            Said::Integers(values) => {
                array(to, kind::I32, values, |to, value| to.extend(value.to_le_bytes()));
            }
            Said::Bools(values) => array(to, kind::BOOL, values, |to, value| to.push(u8::from(*value))),
        }
    }
}

fn array<T>(to: &mut Vec<u8>, of: u32, values: &[T], each: impl Fn(&mut Vec<u8>, &T)) {
    to.extend(of.to_le_bytes());
    to.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| each(to, value));
}

fn header(entries: &Entries, tensors: &[GgufSpec]) -> Vec<u8> {
    let mut to = b"GGUF".to_vec();
    to.extend(3_u32.to_le_bytes());
    to.extend((tensors.len() as u64).to_le_bytes());
    to.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        text(&mut to, key);
        value.write(&mut to);
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        text(&mut to, &tensor.name);
        to.extend((tensor.dimensions.len() as u32).to_le_bytes());
        tensor.dimensions.iter().for_each(|size| to.extend(size.to_le_bytes()));
        to.extend(tensor.kind.number().to_le_bytes());
        to.extend(offset.to_le_bytes());
        offset = (offset + tensor.size_bytes()).next_multiple_of(ALIGNMENT);
    }
    to
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}
