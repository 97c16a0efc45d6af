//! GGUF files, as llama.cpp has them: what they say of a model, and where its tensors lie
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! A file is a header (counts, pairs of keys and values, a description of each tensor) and the tensors'
//! bytes, aligned. Nothing of the header is believed before it has been checked against the file: no count
//! makes room for more than the bytes that are left could hold.

pub mod adapter;
mod config;
pub mod export;
mod metadata;
pub mod names;
mod reader;
mod types;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{ModelError, Result, shown};
pub use names::{GgufPlace, ROPE_FACTORS, RowOrder};
use reader::Reader;
pub use types::TensorType;
pub use writer::{Entries, GgufSpec, GgufWriter, Said};

/// Bytes to whose multiples tensors are aligned where a file does not say.
const ALIGNMENT: u64 = 32;
/// The key that says otherwise.
const ALIGNMENT_KEY: &str = "general.alignment";
/// The most dimensions that a tensor has in ggml.
const MAX_DIMENSIONS: u32 = 4;

/// A value of a file's metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// A whole number of any width.
    Integer(i128),
    /// A number of 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// Whole numbers.
    Integers(Vec<i64>),
    /// Numbers.
    Floats(Vec<f64>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<String>),
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its sizes, the fastest one first: a matrix of `out` rows of `in` values has `[in, out]`.
    pub dimensions: Vec<u64>,
    /// How its values are stored.
    pub kind: TensorType,
    /// Where its bytes begin in the file.
    pub start: u64,
    /// How many there are.
    pub size_bytes: u64,
}

impl GgufTensor {
    /// Values in all.
    pub fn elements(&self) -> u64 {
        self.dimensions.iter().product()
    }
}

/// A file whose header has been read and checked.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    metadata: BTreeMap<String, GgufValue>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl Gguf {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// If it cannot be read, is not a GGUF file of version 2 or 3, or contradicts itself or the file's
    /// length: a key or name given twice, an unknown type, a tensor that is cut off, misaligned or lies over
    /// another.
    pub fn open(path: &Path) -> Result<Gguf> {
        // Opening a pipe would wait for whoever writes to it.
        let metadata = std::fs::metadata(path).map_err(|e| ModelError::read(path, e))?;
        if !metadata.is_file() {
            return Err(ModelError::file(path, "is no file that could hold a model"));
        }
        let file = File::open(path).map_err(|e| ModelError::read(path, e))?;
        let length = file.metadata().map_err(|e| ModelError::read(path, e))?.len();
        let mut reader = Reader::new(BufReader::new(file), length, path);
        let counts = read_counts(&mut reader)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..counts.pairs {
            let key = reader.text("a key")?;
            let value = read_value(&mut reader, &key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(reader.field(&key, "stands twice"));
            }
        }
        let mut described = Vec::new();
        for _ in 0..counts.tensors {
            described.push(read_tensor(&mut reader)?);
        }
        let alignment = alignment(&metadata, &reader)?;
        let data = reader.position().next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for Described { name, dimensions, kind, offset } in described {
            let tensor = place(&reader, &name, (dimensions, kind), offset, (data, alignment))?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(reader.tensor(&name, "stands twice"));
            }
        }
        check_overlaps(&tensors, &reader)?;
        Ok(Gguf { path: path.to_owned(), metadata, tensors })
    }

    /// Whether a file says that it is a GGUF file, by its ending or its first bytes.
    pub fn is_named_so(path: &Path) -> bool {
        let by_ending = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        let mut mark = [0; 4];
        let mut by_mark = || File::open(path)?.read_exact(&mut mark).map(|()| mark == *b"GGUF");
        (by_ending && !path.is_dir()) || (path.is_file() && by_mark().unwrap_or(false))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of the model, by key.
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.metadata
    }

    /// The tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// The bits of a tensor's values, which are `f32`.
    pub(crate) fn read_f32(&self, name: &str) -> Result<Vec<u32>> {
        let tensor = &self.tensors[name];
        assert_eq!(tensor.kind, TensorType::F32, "the type of {name}");
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(tensor.start))?;
            let mut bytes = vec![0; tensor.size_bytes as usize];
            file.read_exact(&mut bytes)?;
            Ok(bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
        };
        read().map_err(|e| ModelError::read(&self.path, e))
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            GgufValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number of the metadata.
    pub fn integer(&self, key: &str) -> Option<i128> {
        match self.metadata.get(key)? {
            GgufValue::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// A number of the metadata, whole or not.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            GgufValue::Float(number) => Some(*number),
            GgufValue::Integer(number) => Some(*number as f64),
            _ => None,
        }
    }
}

/// How many pairs and tensors follow.
struct Counts {
    pairs: u64,
    tensors: u64,
}

fn read_counts(reader: &mut Reader<'_>) -> Result<Counts> {
    if &reader.array::<4>("the mark `GGUF`")? != b"GGUF" {
        return Err(reader.file("is not a GGUF file: it does not begin with `GGUF`"));
    }
    match reader.u32("the version")? {
        2 | 3 => {}
        1 => {
            return Err(
                reader.file("is a GGUF file of version 1; convert it with a llama.cpp of 2024 or later")
            );
        }
        version if version != 0 && version.swap_bytes() < 0x100 => {
            return Err(reader.file("is a big-endian GGUF file; convert it on a little-endian machine"));
        }
        version => {
            return Err(reader.file(&format!("is a GGUF file of version {version}; 2 and 3 are known")));
        }
    }
    let tensors = reader.u64("the number of tensors")?;
    let pairs = reader.u64("the number of keys")?;
    // A key has a length and a type, a tensor a length, a number of dimensions, a type and an offset.
    reader.check_room(pairs, 12, "keys")?;
    reader.check_room(tensors, 24, "tensors")?;
    Ok(Counts { pairs, tensors })
}

/// The types of values, by their numbers in files.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

fn read_value(reader: &mut Reader<'_>, key: &str) -> Result<GgufValue> {
    let what = format!("the value of `{}`", shown(key));
    let of = reader.u32(&what)?;
    Ok(match of {
        kind::F32 | kind::F64 => GgufValue::Float(read_float(reader, of, &what)?),
        kind::BOOL => GgufValue::Bool(read_bool(reader, key, &what)?),
        kind::TEXT => GgufValue::Text(reader.text(&what)?),
        kind::ARRAY => return read_array(reader, key, &what),
        _ => match read_integer(reader, of, &what)? {
            Some(number) => GgufValue::Integer(number),
            None => return Err(reader.field(key, &format!("has a value of the unknown type {of}"))),
        },
    })
}

fn read_array(reader: &mut Reader<'_>, key: &str, what: &str) -> Result<GgufValue> {
    let (of, count) = (reader.u32(what)?, reader.u64(what)?);
    let least = match of {
        kind::U8 | kind::I8 | kind::BOOL => 1,
        kind::U16 | kind::I16 => 2,
        kind::U32 | kind::I32 | kind::F32 => 4,
        kind::U64 | kind::I64 | kind::F64 | kind::TEXT => 8,
        kind::ARRAY => return Err(reader.field(key, "is an array of arrays, which is not supported")),
        _ => return Err(reader.field(key, &format!("is an array of the unknown type {of}"))),
    };
    reader.check_room(count, least, &format!("elements in {what}"))?;
    let each = 0..count;
    Ok(match of {
        kind::F32 | kind::F64 => {
            GgufValue::Floats(each.map(|_| read_float(reader, of, what)).collect::<Result<_>>()?)
        }
        kind::BOOL => GgufValue::Bools(each.map(|_| read_bool(reader, key, what)).collect::<Result<_>>()?),
        kind::TEXT => GgufValue::Texts(each.map(|_| reader.text(what)).collect::<Result<_>>()?),
        _ => {
            let mut number = |_| {
                let number = read_integer(reader, of, what)?.expect("the type is known");
                i64::try_from(number)
                    .map_err(|_| reader.field(key, &format!("has {number}, more than 63 bits hold")))
            };
            GgufValue::Integers(each.map(&mut number).collect::<Result<_>>()?)
        }
    })
}

fn read_integer(reader: &mut Reader<'_>, of: u32, what: &str) -> Result<Option<i128>> {
    Ok(Some(match of {
        kind::U8 => reader.array::<1>(what)?[0].into(),
        kind::I8 => i8::from_le_bytes(reader.array(what)?).into(),
        kind::U16 => u16::from_le_bytes(reader.array(what)?).into(),
        kind::I16 => i16::from_le_bytes(reader.array(what)?).into(),
        kind::U32 => reader.u32(what)?.into(),
        kind::I32 => i32::from_le_bytes(reader.array(what)?).into(),
        kind::U64 => reader.u64(what)?.into(),
        kind::I64 => i64::from_le_bytes(reader.array(what)?).into(),
        _ => return Ok(None),
    }))
}

fn read_float(reader: &mut Reader<'_>, of: u32, what: &str) -> Result<f64> {
    Ok(match of {
        kind::F32 => f32::from_le_bytes(reader.array(what)?).into(),
        _ => f64::from_le_bytes(reader.array(what)?),
    })
}

fn read_bool(reader: &mut Reader<'_>, key: &str, what: &str) -> Result<bool> {
    match reader.array::<1>(what)?[0] {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(reader.field(key, &format!("is {other} where true is 1 and false 0"))),
    }
}

/// A tensor as the header has it.
struct Described {
    name: String,
    dimensions: Vec<u64>,
    kind: TensorType,
    /// From where the tensors' bytes begin.
    offset: u64,
}

fn read_tensor(reader: &mut Reader<'_>) -> Result<Described> {
    let name = reader.text("the name of a tensor")?;
    let what = format!("the description of tensor `{}`", shown(&name));
    let count = reader.u32(&what)?;
    if count > MAX_DIMENSIONS {
        return Err(
            reader.tensor(&name, &format!("has {count} dimensions; ggml has {MAX_DIMENSIONS} at most"))
        );
    }
    let dimensions = (0..count).map(|_| reader.u64(&what)).collect::<Result<Vec<u64>>>()?;
    let number = reader.u32(&what)?;
    let Some(kind) = TensorType::of(number) else {
        let problem = format!("is of type {number}, which is none of ggml's that are known here");
        return Err(reader.tensor(&name, &problem));
    };
    Ok(Described { name, dimensions, kind, offset: reader.u64(&what)? })
}

fn alignment(metadata: &BTreeMap<String, GgufValue>, reader: &Reader<'_>) -> Result<u64> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => return Ok(ALIGNMENT),
        Some(GgufValue::Integer(number)) => u64::try_from(*number).ok(),
        Some(_) => None,
    };
    let is_usable = |number: &u64| number.is_power_of_two() && *number <= 1 << 20;
    alignment
        .filter(is_usable)
        .ok_or_else(|| reader.field(ALIGNMENT_KEY, "is not a power of two up to 1048576"))
}

/// Where a tensor lies in the file, checked against the file's length.
fn place(
    reader: &Reader<'_>,
    name: &str,
    (dimensions, kind): (Vec<u64>, TensorType),
    offset: u64,
    (data, alignment): (u64, u64),
) -> Result<GgufTensor> {
    let wrong = |problem: String| reader.tensor(name, &problem);
    let elements = dimensions.iter().try_fold(1_u64, |all, &size| all.checked_mul(size));
    let row = dimensions.first().copied().unwrap_or(1);
    let block = kind.block_elements();
    if !row.is_multiple_of(block) {
        let problem = format!("has rows of {row} values, and {kind} stores {block} of them together");
        return Err(wrong(problem));
    }
    let size =
        elements.map(|elements| elements / block).and_then(|blocks| blocks.checked_mul(kind.block_bytes()));
    let Some(size_bytes) = size else { return Err(wrong(format!("has the sizes {dimensions:?}, too many"))) };
    if !offset.is_multiple_of(alignment) {
        return Err(wrong(format!("begins at byte {offset}, no multiple of the alignment {alignment}")));
    }
    let start = data.checked_add(offset);
    let end = start.and_then(|start| start.checked_add(size_bytes));
    match (start, end) {
        (Some(start), Some(end)) if end <= reader.length() => {
            Ok(GgufTensor { dimensions, kind, start, size_bytes })
        }
        _ => {
            let length = reader.length();
            let problem = format!(
                "claims {size_bytes} bytes from {offset} on, behind the header of {data}, and the file has {length}; \
                 was the download broken off?"
            );
            Err(wrong(problem))
        }
    }
}

fn check_overlaps(tensors: &BTreeMap<String, GgufTensor>, reader: &Reader<'_>) -> Result<()> {
    let mut by_place: Vec<_> = tensors.iter().filter(|(_, tensor)| tensor.size_bytes > 0).collect();
    by_place.sort_by_key(|(_, tensor)| tensor.start);
    for pair in by_place.windows(2) {
        let [(first, a), (second, b)] = pair else { continue };
        if a.start + a.size_bytes > b.start {
            return Err(reader.tensor(second, &format!("lies over `{}`", shown(first))));
        }
    }
    Ok(())
}
