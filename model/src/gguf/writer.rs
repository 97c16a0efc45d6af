//! A GGUF file of tensors in `f32`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use compute::MatrixRef;

use super::{ALIGNMENT, TensorType};
use crate::error::{ModelError, Result};

/// What a file says of itself.
pub(super) enum Said<'a> {
    Text(&'a str),
    Float(f32),
}

/// A matrix `[rows, cols]` to be written, whose dimensions are `[cols, rows]` there.
pub(super) struct Written<'a> {
    pub(super) name: String,
    pub(super) values: MatrixRef<'a>,
}

/// Writes a file where there is none, and waits for the disk.
pub(super) fn write(path: &Path, said: &[(&str, Said<'_>)], tensors: &[Written<'_>]) -> Result<()> {
    let written = || {
        let file = File::options().write(true).create_new(true).open(path)?;
        let mut to = BufWriter::new(file);
        let header = header(said, tensors);
        to.write_all(&header)?;
        pad(&mut to, header.len() as u64)?;
        for tensor in tensors {
            let values = tensor.values.download();
            let bytes: &[u8] = bytemuck::cast_slice(values.f32());
            to.write_all(bytes)?;
            pad(&mut to, bytes.len() as u64)?;
        }
        to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    written().map_err(|e| ModelError::write(path, e))
}

fn header(said: &[(&str, Said<'_>)], tensors: &[Written<'_>]) -> Vec<u8> {
    let mut to = b"GGUF".to_vec();
    to.extend(3_u32.to_le_bytes());
    to.extend((tensors.len() as u64).to_le_bytes());
    to.extend((said.len() as u64).to_le_bytes());
    for (key, value) in said {
        text(&mut to, key);
        match value {
            Said::Text(value) => {
                to.extend(super::kind::TEXT.to_le_bytes());
                text(&mut to, value);
            }
            Said::Float(value) => {
                to.extend(super::kind::F32.to_le_bytes());
                to.extend(value.to_le_bytes());
            }
        }
    }
    let mut offset = 0_u64;
    for Written { name, values } in tensors {
        text(&mut to, name);
        to.extend(2_u32.to_le_bytes());
        for size in [values.cols(), values.rows()] {
            to.extend((size as u64).to_le_bytes());
        }
        to.extend(TensorType::F32.number().to_le_bytes());
        to.extend(offset.to_le_bytes());
        offset = (offset + values.size_bytes() as u64).next_multiple_of(ALIGNMENT);
    }
    to
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

/// Zeros up to the next place where a tensor may begin.
fn pad(to: &mut impl Write, written: u64) -> io::Result<()> {
    let missing = written.next_multiple_of(ALIGNMENT) - written;
    to.write_all(&[0; ALIGNMENT as usize][..missing as usize])
}
