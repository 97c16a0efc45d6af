//! The header of a safetensors file: eight bytes of length, then JSON that places every tensor. Nothing of it
//! is believed before it has been checked against the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{StoredDType, TensorInfo, read_exact_at};
use crate::config::short;
use crate::error::{ModelError, Result};

/// Longest header read, in bytes; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// What a file's header says, checked.
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// An entry of the header as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Reads and checks a file's header; `file_index` goes into the tensors' infos.
pub(super) fn read_header(file: &File, path: &Path, file_index: usize) -> Result<Header> {
    let wrong = |problem: String| ModelError::file(path, problem);
    let file_length = file.metadata().map_err(|e| ModelError::read(path, e))?.len();
    if file_length < 8 {
        return Err(wrong(format!(
            "is not a safetensors file: it has {file_length} bytes, a header begins with 8"
        )));
    }
    let mut length = [0; 8];
    read_exact_at(file, &mut length, 0).map_err(|e| ModelError::read(path, e))?;
    let length = u64::from_le_bytes(length);
    if length > file_length - 8 {
        let problem = format!(
            "is not a whole safetensors file: its header claims {length} bytes, the file has {file_length}; was the \
             download broken off?"
        );
        return Err(wrong(problem));
    }
    if length > MAX_HEADER {
        return Err(wrong(format!(
            "has a header of {length} bytes, more than the format's limit {MAX_HEADER}"
        )));
    }
    let mut text = vec![0; length as usize];
    read_exact_at(file, &mut text, 8).map_err(|e| ModelError::read(path, e))?;
    let entries = parse_header(&text, path)?;
    check_header(entries, path, file_index, 8 + length, file_length)
}

/// The header's entries in the file's order; a name given twice is an error.
fn parse_header(text: &[u8], path: &Path) -> Result<Vec<(String, Value)>> {
    struct Pairs(Vec<(String, Value)>);
    impl<'de> Deserialize<'de> for Pairs {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Pairs;
                fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                    f.write_str("an object of tensors")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                    let mut pairs = Vec::new();
                    while let Some(pair) = map.next_entry()? {
                        pairs.push(pair);
                    }
                    Ok(Pairs(pairs))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }
    let pairs: Pairs = serde_json::from_slice(text).map_err(|e| {
        ModelError::file(path, format!("is not a safetensors file: its header is not valid ({e})"))
    })?;
    Ok(pairs.0)
}

/// Checks every entry against the file: types, sizes, and that the tensors cover the data without gap or
/// overlap.
fn check_header(
    entries: Vec<(String, Value)>,
    path: &Path,
    file: usize,
    data_start: u64,
    file_length: u64,
) -> Result<Header> {
    let data_length = file_length - data_start;
    let mut header = Header { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
    let mut ranges = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        if name == "__metadata__" {
            header.metadata = serde_json::from_value(value).map_err(|e| {
                ModelError::file(path, format!("has a header whose __metadata__ is not text pairs ({e})"))
            })?;
            continue;
        }
        let wrong = |problem| ModelError::tensor(path, name.as_str(), problem);
        let (dtype, shape, [start, end]) = check_entry(&value, data_length).map_err(wrong)?;
        ranges.push((start, end, name.clone()));
        let info = TensorInfo { dtype, shape, file, start: data_start + start, placed: None, apart: None };
        if header.tensors.insert(name.clone(), info).is_some() {
            return Err(ModelError::tensor(path, name, "stands twice in the header"));
        }
    }
    check_coverage(ranges, path, data_length)?;
    Ok(header)
}

/// A tensor's type, shape and byte range, or what is wrong with them.
fn check_entry(value: &Value, data_length: u64) -> Result<(StoredDType, Vec<usize>, [u64; 2]), String> {
    let Entry { dtype, shape, data_offsets: [start, end] } = Entry::deserialize(value)
        .map_err(|e| format!("has the header entry {}, which is not valid: {e}", short(value)))?;
    let stored = StoredDType::parse(&dtype)
        .ok_or_else(|| format!("is stored as {dtype:?}; weights are stored as F32, BF16 or F16"))?;
    if start > end || end > data_length {
        return Err(format!(
            "claims the bytes {start} to {end} of {data_length}; the file is broken off or its header is wrong"
        ));
    }
    let size = shape.iter().try_fold(stored.bytes(1) as u64, |size, &n| size.checked_mul(n));
    if size != Some(end - start) {
        let bytes = end - start;
        return Err(format!(
            "has shape {shape:?} of {dtype} but {bytes} bytes; the header contradicts itself"
        ));
    }
    let shape =
        shape.into_iter().map(|n| usize::try_from(n).map_err(|e| e.to_string())).collect::<Result<_, _>>()?;
    Ok((stored, shape, [start, end]))
}

/// The tensors' byte ranges follow each other from the first byte to the last.
fn check_coverage(mut ranges: Vec<(u64, u64, String)>, path: &Path, data_length: u64) -> Result<()> {
    ranges.sort();
    let mut position = 0;
    let mut previous: Option<&str> = None;
    for (start, end, name) in &ranges {
        if *start < position {
            let problem = format!("overlaps with `{}` in the file", previous.unwrap_or_default());
            return Err(ModelError::tensor(path, name, problem));
        }
        if *start > position {
            let problem =
                format!("begins at byte {start} of the data; the bytes from {position} belong to no tensor");
            return Err(ModelError::tensor(path, name, problem));
        }
        position = *end;
        previous = Some(name);
    }
    if position != data_length {
        let problem =
            format!("has {} bytes after its last tensor that belong to none", data_length - position);
        return Err(ModelError::file(path, problem));
    }
    Ok(())
}
