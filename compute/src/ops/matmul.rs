//! The general matrix product, of which linear layers, low-rank products and weight gradients are made.
//!
//! `c[M, N] = alpha * op(a)[M, K] * op(b)[K, N] (+ c)`, sums in `f32`, factors rounded to `bf16` first where the
//! precision is `bf16` and the processor multiplies them.

use crate::cpu::gemm::{self, Operand, OperandMut};
use crate::{Device, MatrixMut, MatrixRef, Precision};

/// A factor as it stands, or transposed.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// `op(m) = m`
    Plain(MatrixRef<'a>),
    /// `op(m) = mᵀ`
    Transposed(MatrixRef<'a>),
}

impl<'a> Factor<'a> {
    fn operand(self) -> Operand<'a> {
        match self {
            Factor::Plain(m) => {
                Operand { data: m.data, rows: m.rows(), cols: m.cols(), row_stride: m.cols(), col_stride: 1 }
            }
            Factor::Transposed(m) => {
                Operand { data: m.data, rows: m.cols(), cols: m.rows(), row_stride: 1, col_stride: m.cols() }
            }
        }
    }
}

/// `c = alpha * op(a) * op(b)`, or `c += ...` if `accumulate`. Any mix of element types; the order of summation does
/// not depend on the number of threads.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul(
    device: &Device,
    precision: Precision,
    alpha: f32,
    a: Factor<'_>,
    b: Factor<'_>,
    accumulate: bool,
    c: MatrixMut<'_>,
) {
    let (rows, cols) = (c.rows(), c.cols());
    let c = OperandMut { data: c.data, rows, cols, row_stride: cols };
    match device {
        Device::Cpu(cpu) => gemm::gemm(cpu, precision, alpha, a.operand(), b.operand(), accumulate, c),
    }
}
