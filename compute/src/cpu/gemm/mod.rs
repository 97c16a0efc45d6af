//! Matrix products: packed panels, register-tiled kernels chosen at run time.
//!
//! `c` is cut into blocks ([`layout`]), one task each ([`block`]); a block's sums run over blocks of `K` in
//! one fixed order, so that neither the number of threads nor the cutting changes a byte. Factors stay in
//! memory as they are, row-major or transposed, and are copied block by block into the form that the kernels
//! read ([`pack`], [`pack512`]): `a` as short rows along `k`, `b` as panels of columns. Kernels ([`avx512`],
//! [`avx2`], [`portable`]) multiply full tiles only; ragged edges are zeros in packing and are cut off when a
//! tile is written out. Products of few rows read the weights where they lie ([`few_rows`]). Small products
//! inside a task have their factors packed by whoever owns them ([`packed`]). Codes become values a
//! panel at a time, in the first-level cache ([`coded`]), and go the same ways from there; for
//! few rows, vector kernels multiply their codes and scales as they are.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
#[cfg(target_arch = "x86_64")]
mod blocks2;
#[cfg(target_arch = "x86_64")]
mod blocks512;
mod coded;
mod few_rows;
#[cfg(target_arch = "x86_64")]
mod four_bit2;
#[cfg(target_arch = "x86_64")]
mod four_bit512;
mod isa;
mod kernel;
mod layout;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack512;
mod packed;
mod portable;
mod prefetch;
mod product;
#[cfg(target_arch = "x86_64")]
mod scales;
mod scratch;
mod team;

pub(crate) use coded::Coded;
pub(crate) use few_rows::ROWS as FEW_ROWS;
pub(crate) use isa::Isa;
pub(crate) use kernel::peak_flops;
#[cfg(target_arch = "x86_64")]
pub(crate) use pack512::join;
pub(crate) use packed::{LeftLayout, PackedLeft, PackedRight, Packing, RightLayout};
pub(crate) use scratch::{SHARED_MEMORY, THREAD_MEMORY};

use std::ops::Range;

use super::Cpu;
use crate::Precision;
use crate::matrix::{Slice, SliceMut};
use kernel::Kernel;
use product::Product;
use team::Team;

/// A factor of a product: logically `[rows, cols]`, element `(i, j)` at `data[i * row_stride + j *
/// col_stride]`, one of the strides 1.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) data: Slice<'a>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

/// The right factor of a product: values as they lie, or codes.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    Dense(Operand<'a>),
    Coded(Coded<'a>),
}

impl<'a> From<Operand<'a>> for Right<'a> {
    fn from(operand: Operand<'a>) -> Self {
        Right::Dense(operand)
    }
}

/// The result of a product: element `(i, j)` at `data[i * row_stride + j]`.
pub(crate) struct OperandMut<'a> {
    pub(crate) data: SliceMut<'a>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
}

/// A low-rank update of a product by `a`: `s = scale * a * first`, unless `s` is given, and then `s *
/// second`.
pub(crate) struct Update<'a> {
    pub(crate) first: Option<Right<'a>>,
    pub(crate) scale: f32,
    pub(crate) s: OperandMut<'a>,
    pub(crate) second: Right<'a>,
}

/// What becomes of the columns of a result before it is rounded and written: factors, then what is added.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    pub(crate) scale: Option<&'a [f32]>,
    pub(crate) bias: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    fn is_none(&self) -> bool {
        self.scale.is_none() && self.bias.is_none()
    }

    /// Applies it to the sums of these columns, `sums[rows, width]`.
    ///
    /// # Safety
    /// There are so many rows of `cols.len()` sums, `width` apart, which nobody else touches now.
    unsafe fn apply(&self, sums: *mut f32, width: usize, rows: usize, cols: Range<usize>) {
        for row in 0..rows {
            // SAFETY: as the caller promises.
            let sums = unsafe { std::slice::from_raw_parts_mut(sums.add(row * width), cols.len()) };
            if let Some(scale) = self.scale {
                sums.iter_mut().zip(&scale[cols.clone()]).for_each(|(sum, factor)| *sum *= factor);
            }
            if let Some(bias) = self.bias {
                sums.iter_mut().zip(&bias[cols.clone()]).for_each(|(sum, bias)| *sum += bias);
            }
        }
    }
}

/// A product: `c = alpha * a * b` or, accumulating, `c += alpha * a * b`; with an update, `alpha * (a * b + s
/// * second)`, of which the parts are not rounded. With an epilogue, of columns of what is written or added,
/// `alpha` is 1.
pub(crate) struct Call<'a> {
    pub(crate) alpha: f32,
    pub(crate) a: Operand<'a>,
    pub(crate) b: Right<'a>,
    /// What the sums begin with, `f32`.
    pub(crate) sums: Option<Operand<'a>>,
    pub(crate) update: Option<Update<'a>>,
    pub(crate) epilogue: Epilogue<'a>,
    pub(crate) accumulate: bool,
    /// Few rows go the way of many.
    pub(crate) by_tiles: bool,
    pub(crate) c: OperandMut<'a>,
}

/// Computes products on all threads, together. Each is the same to the byte as alone.
///
/// # Panics
/// If shapes do not agree, or data is shorter than its shape and strides say.
pub(crate) fn gemm<'a>(cpu: &Cpu, precision: Precision, calls: impl Iterator<Item = Call<'a>>) {
    let kernel = Kernel::of(cpu.isa, precision);
    let products: Vec<_> = calls.filter_map(|call| Product::new(kernel, call)).collect();
    block::run(&products, &Team::Pool(&cpu.pool));
}
