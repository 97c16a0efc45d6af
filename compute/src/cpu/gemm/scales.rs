//! The scales of weights in four bits, for the kernels that multiply codes as they are.

use super::coded::Coded;
use super::scratch::B_BYTES;
use crate::cpu::simd;
use crate::quant::{Codebook, Scales};

/// Scales that are read together, some perhaps beyond the last one.
pub(super) const READ: usize = 4;

/// Scales that a column has at most: a panel's memory holds those of two, and what is read behind them.
pub(super) const SCALES: usize = (B_BYTES / 4 - READ) / 2;

/// Elements that are multiplied by one scale at least, if their block is not shorter.
const GRANULE: usize = 64;

/// Elements that scales are made for: blocks, or parts of them.
pub(super) fn granule(w: &Coded<'_>) -> usize {
    w.codebook().block_size().min(GRANULE)
}

/// Whether it is a codebook's, no granule of a row belongs to two blocks, and all of a row have room.
pub(super) fn granules_fit(w: &Coded<'_>) -> bool {
    w.weight.codebook().is_some() && w.rows.is_multiple_of(granule(w)) && w.rows / granule(w) <= SCALES
}

/// What scales are that were rounded themselves, as long as they share an `absmax`: `map[code] * absmax +
/// offset`.
pub(super) struct Rounded<'a> {
    pub(super) map: &'a [f32; 256],
    pub(super) absmax: f32,
    pub(super) offset: f32,
}

impl Rounded<'_> {
    /// The scales of these codes, one after the other.
    #[inline(always)]
    pub(super) fn write(&self, codes: &[u8], to: &mut [f32]) {
        for (to, code) in to.iter_mut().zip(codes) {
            *to = self.map[usize::from(*code)] * self.absmax + self.offset;
        }
    }
}

/// The scales of the granules from element `first` on, rounded ones by `write`.
#[inline(always)]
pub(super) fn write_scales(
    from: &Codebook,
    first: usize,
    granule: usize,
    to: &mut [f32],
    write: impl Fn(&Rounded<'_>, &[u8], &mut [f32]),
) {
    let block = first / granule;
    match from.scales() {
        _ if granule < from.block_size() => {
            let granules = from.block_size() / granule;
            to.iter_mut().enumerate().for_each(|(i, to)| *to = from.scales().of((block + i) / granules));
        }
        Scales::Plain(scales) => to.copy_from_slice(&scales[block..][..to.len()]),
        Scales::Double { codes, map, absmax, block_size, offset } => {
            let mut done = 0;
            while done < to.len() {
                let block = block + done;
                let len = (to.len() - done).min(block_size - block % block_size);
                let rounded = Rounded { map, absmax: absmax[block / block_size], offset: *offset };
                write(&rounded, &codes[block..][..len], &mut to[done..][..len]);
                // As many will be asked for next, in short runs.
                let next = codes.as_ptr().wrapping_add(block + len);
                (0..len).step_by(64).for_each(|i| simd::prefetch(next.wrapping_add(i)));
                done += len;
            }
        }
    }
}
