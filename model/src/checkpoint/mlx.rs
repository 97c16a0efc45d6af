//! Weights as MLX quantizes them (`mlx.core.quantize`, mode `affine`): three tensors, read and written as
//! blocks.
//!
//! For `X.weight [out, in]` of `b` bits, of which `g` weights of a row share a scale,
//!
//! ```text
//! X.weight  U32 [out, in b / 32]    the codes of a row, b bits each, the lowest bits of a word first
//! X.scales      [out, in / g]       half precision
//! X.biases      [out, in / g]       w = scale * code + bias
//! ```
//!
//! So the biases are the minima of `compute::quant::blocks`, where 32 weights share a scale.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use compute::quant::blocks::GROUP;
use compute::quant::{AffineBlock, BlockType, Blocks};
use half::{bf16, f16};

use super::{Checkpoint, CheckpointWriter, StoredDType, TensorInfo, TensorSpec, read_exact_at};
use crate::config::Config;
use crate::config::quantization::{INTEGERS, MLX_GROUPS, bits};
use crate::error::{ModelError, Result};
use crate::names::Parameter;

const WEIGHT: &str = ".weight";
const SCALES: &str = ".scales";
const MINIMA: &str = ".biases";
/// Blocks that are put together at a time.
const PIECE: usize = 4096;

/// Where the parts of a weight's blocks lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Apart {
    kind: BlockType,
    codes: Place,
    scales: Place,
    minima: Place,
    /// How scales and minima are stored.
    dtype: StoredDType,
    /// Blocks that share a scale.
    blocks: usize,
}

/// A file of the checkpoint, and the first byte there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    file: usize,
    start: u64,
}

impl From<&TensorInfo> for Place {
    fn from(info: &TensorInfo) -> Self {
        Place { file: info.file, start: info.start }
    }
}

/// The name of a tensor that belongs to a weight.
fn beside(weight: &str, suffix: &str) -> String {
    weight.strip_suffix(WEIGHT).unwrap_or(weight).to_owned() + suffix
}

/// The bytes of a block's codes in MLX's order.
fn code_bytes(kind: BlockType) -> usize {
    GROUP * bits(kind) / 8
}

fn pack(codes: [u8; GROUP], bits: usize, to: &mut [u8]) {
    to.fill(0);
    for (i, code) in codes.into_iter().enumerate() {
        let (byte, shift) = (i * bits / 8, i * bits % 8);
        let both = u16::from(code) << shift;
        to[byte] |= both as u8;
        if shift + bits > 8 {
            to[byte + 1] |= (both >> 8) as u8;
        }
    }
}

fn unpack(from: &[u8], bits: usize) -> [u8; GROUP] {
    std::array::from_fn(|i| {
        let (byte, shift) = (i * bits / 8, i * bits % 8);
        let next = from.get(byte + 1).copied().unwrap_or(0);
        (u16::from_le_bytes([from[byte], next]) >> shift) as u8 & ((1 << bits) - 1)
    })
}

impl Apart {
    /// Reads blocks from this one on: as many as there are bytes for.
    pub(super) fn read(&self, files: &[(PathBuf, File)], first: usize, to: &mut [u8]) -> io::Result<()> {
        let (bytes, code_bytes) = (self.kind.bytes(), code_bytes(self.kind));
        for (piece, to) in to.chunks_mut(PIECE * bytes).enumerate() {
            let first = first + piece * PIECE;
            let count = to.len() / bytes;
            let read = |place: Place, start: usize, to: &mut [u8]| {
                read_exact_at(&files[place.file].1, to, place.start + start as u64)
            };
            let mut codes = vec![0; count * code_bytes];
            read(self.codes, first * code_bytes, &mut codes)?;
            let groups = first / self.blocks..(first + count).div_ceil(self.blocks);
            let mut halves = [vec![0; 2 * groups.len()], vec![0; 2 * groups.len()]];
            for (place, to) in [self.scales, self.minima].into_iter().zip(&mut halves) {
                read(place, 2 * groups.start, to)?;
            }
            for (i, block) in to.chunks_exact_mut(bytes).enumerate() {
                let group = 2 * ((first + i) / self.blocks - groups.start);
                let half = |of: &[u8]| self.half([of[group], of[group + 1]]);
                let codes = unpack(&codes[i * code_bytes..][..code_bytes], bits(self.kind));
                let (scale, minimum) = (half(&halves[0]), half(&halves[1]));
                self.kind.put_affine(AffineBlock { scale, minimum, codes }, block);
            }
        }
        Ok(())
    }

    /// A scale or a minimum in half precision. bfloat16 of a magnitude from 2^-17 to 65504 is exact
    /// there, less than 2^-25 is 0: weights that are as good as none.
    fn half(&self, bytes: [u8; 2]) -> f16 {
        match self.dtype {
            StoredDType::Bf16 => f16::from_f32(bf16::from_le_bytes(bytes).to_f32()),
            _ => f16::from_le_bytes(bytes),
        }
    }
}

impl Checkpoint {
    /// Reads weights that stand as MLX quantizes them as blocks, each of the bits and the group that its
    /// tensors' sizes come to, as mlx-lm takes them (`utils.infer_quant_config`).
    ///
    /// # Errors
    /// If one of a weight's three tensors is missing or of a type or size that it cannot have, or the weight
    /// is of bits or a group that are not supported.
    pub(crate) fn take_from_mlx(&mut self, config: &Config) -> Result<()> {
        for parameter in config.parameters().iter().filter(|parameter| !parameter.is_vector()) {
            let Some(name) = self.name_of(parameter) else { continue };
            let Some(apart) = self.apart(&name, parameter)? else { continue };
            let info = self.tensors.get_mut(&name).expect("it has this name");
            (info.dtype, info.shape) =
                (StoredDType::Blocks(apart.kind), vec![parameter.rows, parameter.cols]);
            // From here on a position is one among the blocks.
            (info.start, info.apart) = (0, Some(Box::new(apart)));
            for suffix in [SCALES, MINIMA] {
                self.tensors.remove(&beside(&name, suffix));
            }
        }
        Ok(())
    }

    /// Where the parts of a weight lie, if it is quantized.
    fn apart(&self, name: &str, parameter: &Parameter) -> Result<Option<Apart>> {
        let names = [SCALES, MINIMA].map(|suffix| beside(name, suffix));
        if names.iter().all(|name| !self.tensors.contains_key(name)) {
            return Ok(None);
        }
        let tensor = |name: &str| self.tensors.get(name).ok_or_else(|| self.missing(name));
        let (codes, scales, minima) = (tensor(name)?, tensor(&names[0])?, tensor(&names[1])?);
        let wrong = |name: &str, info: &TensorInfo, problem: String| {
            Err(ModelError::tensor(&self.files[info.file].0, name, problem))
        };
        let (rows, cols) = (parameter.rows, parameter.cols);
        let words = match codes.shape[..] {
            [of, words] if codes.dtype == StoredDType::U32 && of == rows && words > 0 => words,
            _ => {
                let problem = format!(
                    "has {:?} of {}, where {rows} rows of words (U32) are needed, since scales stand beside it",
                    codes.shape,
                    codes.dtype.name()
                );
                return wrong(name, codes, problem);
            }
        };
        let kind = INTEGERS.into_iter().find(|&kind| words.checked_mul(32) == cols.checked_mul(bits(kind)));
        let Some(kind) = kind else {
            let problem = format!(
                "has {words} words for {cols} weights of a row; supported are weights of 2, 3 and 4 bits, so use a \
                 model of those, or one of 16 bits"
            );
            return wrong(name, codes, problem);
        };
        let group = MLX_GROUPS
            .into_iter()
            .find(|group| cols.is_multiple_of(*group) && scales.shape == [rows, cols / group]);
        let Some(group) = group else {
            let problem = format!(
                "has shape {:?} for {rows} rows of {cols} weights; supported are scales of {MLX_GROUPS:?} weights",
                scales.shape
            );
            return wrong(&names[0], scales, problem);
        };
        if !matches!(scales.dtype, StoredDType::F16 | StoredDType::Bf16) {
            let problem = format!("is stored as {}; supported are F16 and BF16", scales.dtype.name());
            return wrong(&names[0], scales, problem);
        }
        if (minima.dtype, &minima.shape) != (scales.dtype, &scales.shape) {
            let problem = format!(
                "has {:?} of {}, where {:?} of {} are needed, as of the scales",
                minima.shape,
                minima.dtype.name(),
                scales.shape,
                scales.dtype.name()
            );
            return wrong(&names[1], minima, problem);
        }
        let [codes, scales, minima] = [codes, scales, minima].map(Place::from);
        Ok(Some(Apart {
            kind,
            codes,
            scales,
            minima,
            dtype: self.tensors[&names[0]].dtype,
            blocks: group / GROUP,
        }))
    }
}

/// The tensors that [`write()`] will write for the weight of this name.
pub(crate) fn specs(name: &str, parameter: &Parameter, kind: BlockType) -> Vec<TensorSpec> {
    let spec = |suffix, cols, dtype| TensorSpec {
        name: beside(name, suffix),
        shape: vec![parameter.rows, cols],
        dtype,
    };
    let groups = parameter.cols / GROUP;
    vec![
        spec(WEIGHT, groups * bits(kind), StoredDType::U32),
        spec(SCALES, groups, StoredDType::F16),
        spec(MINIMA, groups, StoredDType::F16),
    ]
}

/// Writes a weight's tensors.
pub(crate) fn write(to: &mut CheckpointWriter, name: &str, blocks: &Blocks) -> Result<()> {
    let kind = blocks.kind();
    for (piece, bytes) in blocks.bytes().chunks(PIECE * kind.bytes()).enumerate() {
        let count = bytes.len() / kind.bytes();
        let mut codes = vec![0; count * code_bytes(kind)];
        let (mut scales, mut minima) = (Vec::with_capacity(2 * count), Vec::with_capacity(2 * count));
        for (block, codes) in bytes.chunks_exact(kind.bytes()).zip(codes.chunks_exact_mut(code_bytes(kind))) {
            let block = kind.affine_of(block);
            pack(block.codes, bits(kind), codes);
            scales.extend(block.scale.to_le_bytes());
            minima.extend(block.minimum.to_le_bytes());
        }
        let first = piece * PIECE;
        // A word has 32 bits, as many as a bit of each weight of a block.
        to.write_bytes(&beside(name, WEIGHT), first * bits(kind), &codes)?;
        to.write_bytes(&beside(name, SCALES), first, &scales)?;
        to.write_bytes(&beside(name, MINIMA), first, &minima)?;
    }
    Ok(())
}
