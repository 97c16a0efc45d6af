//! Packing into `f32`, in plain Rust: for any processor, and for AVX2, where the compiler vectorizes it well
//! enough.

use super::Operand;
use crate::bf16;
use crate::matrix::Slice;

/// An element that packing reads.
pub(super) trait Source: Copy {
    /// Its value as `f32`, exactly.
    fn widen(self) -> f32;
}

impl Source for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Source for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
}

/// Floats of a chunk.
const CHUNK: usize = super::kernel::CHUNK / 4;

/// [`super::kernel::PackA`] into `f32`, in tiles of `ROWS`.
///
/// # Safety
/// `to` has room for the tiles and is aligned for `f32`; the operand's data covers its shape.
#[inline(always)]
pub(super) unsafe fn a<const ROWS: usize>(a: Operand<'_>, rows: usize, tile_bytes: usize, to: *mut u8) {
    // SAFETY: as the caller promises; whoever owns scratch owns all of `to`.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<f32>(), rows / ROWS * (tile_bytes / 4)) };
    for (t, tile) in to.chunks_exact_mut(tile_bytes / 4).enumerate() {
        let rows = (t * ROWS).min(a.rows)..((t + 1) * ROWS).min(a.rows);
        let a = a.view(rows, 0..a.cols);
        match a.data {
            Slice::F32(s) => tile_of::<_, ROWS>(a, s, tile),
            Slice::Bf16(s) => tile_of::<_, ROWS>(a, s, tile),
        }
    }
}

#[inline(always)]
fn tile_of<S: Source, const ROWS: usize>(a: Operand<'_>, s: &[S], to: &mut [f32]) {
    if a.rows < ROWS {
        to.fill(0.0);
    }
    for (k, to) in (0..a.cols).step_by(CHUNK).zip(to.chunks_exact_mut(ROWS * CHUNK)) {
        for (i, to) in to.chunks_exact_mut(CHUNK).take(a.rows).enumerate() {
            let (from, len) = (&s[i * a.row_stride + k * a.col_stride..], CHUNK.min(a.cols - k));
            if a.col_stride == 1 {
                to.iter_mut().zip(&from[..len]).for_each(|(t, f)| *t = f.widen());
            } else {
                to.iter_mut()
                    .zip(from.iter().step_by(a.col_stride).take(len))
                    .for_each(|(t, f)| *t = f.widen());
            }
            to[len..].fill(0.0);
        }
    }
}

/// [`super::kernel::PackB`] into `f32`.
///
/// # Safety
/// `to` has room for `b.rows * width` floats and is aligned for them; the operand's data covers its shape.
#[inline(always)]
pub(super) unsafe fn b(b: Operand<'_>, width: usize, to: *mut u8) {
    // SAFETY: as the caller promises; whoever owns scratch owns all of `to`.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<f32>(), b.rows * width) };
    match b.data {
        Slice::F32(s) => panel_of(b, s, width, to),
        Slice::Bf16(s) => panel_of(b, s, width, to),
    }
}

#[inline(always)]
fn panel_of<S: Source>(b: Operand<'_>, s: &[S], width: usize, to: &mut [f32]) {
    if b.rows == 0 {
        return;
    }
    if b.cols < width {
        to.fill(0.0);
    }
    if b.col_stride == 1 {
        for (k, to) in to.chunks_exact_mut(width).enumerate() {
            let from = &s[k * b.row_stride..][..b.cols];
            to.iter_mut().zip(from).for_each(|(t, f)| *t = f.widen());
        }
    } else {
        for j in 0..b.cols {
            let from = &s[j * b.col_stride..][..b.rows];
            to[j..].iter_mut().step_by(width).zip(from).for_each(|(t, f)| *t = f.widen());
        }
    }
}
