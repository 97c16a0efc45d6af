//! Packing into `f32`, in plain Rust: for any processor, and for AVX2, where the compiler vectorizes it well enough.

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

/// [`super::kernel::PackA`] into `f32`.
///
/// # Safety
/// `to` has room for `rows` times `stride` bytes and is aligned for `f32`; the operand's data covers its shape.
#[inline(always)]
pub(super) unsafe fn a(a: Operand<'_>, rows: usize, stride: usize, to: *mut u8) {
    // SAFETY: as the caller promises; whoever owns scratch owns all of `to`.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<f32>(), rows * (stride / 4)) };
    match a.data {
        Slice::F32(s) => rows_of(a, s, rows, stride / 4, to),
        Slice::Bf16(s) => rows_of(a, s, rows, stride / 4, to),
    }
}

#[inline(always)]
fn rows_of<S: Source>(a: Operand<'_>, s: &[S], rows: usize, stride: usize, to: &mut [f32]) {
    if a.cols == 0 {
        return;
    }
    if a.col_stride == 1 {
        for (i, to) in to.chunks_exact_mut(stride).take(a.rows).enumerate() {
            let from = &s[i * a.row_stride..][..a.cols];
            to.iter_mut().zip(from).for_each(|(t, f)| *t = f.widen());
        }
    } else {
        for k in 0..a.cols {
            let from = &s[k * a.col_stride..][..a.rows];
            from.iter().enumerate().for_each(|(i, f)| to[i * stride + k] = f.widen());
        }
    }
    to[a.rows * stride..rows * stride].fill(0.0);
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
