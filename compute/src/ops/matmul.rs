//! The general matrix product, of which linear layers, low-rank products and weight gradients are made.
//!
//! `c[M, N] = alpha * op(a)[M, K] * op(b)[K, N] (+ c)`, sums in `f32`, factors rounded to `bf16` first where the
//! precision is `bf16` and the processor multiplies them.

use crate::cpu::gemm::{self, FourBit, Operand, OperandMut, Right};
use crate::profile::{Key, Work};
use crate::quant::Quantized;
use crate::{Device, MatrixMut, MatrixRef, Precision};

/// A factor as it stands, or transposed.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// `op(m) = m`
    Plain(MatrixRef<'a>),
    /// `op(m) = mᵀ`
    Transposed(MatrixRef<'a>),
    /// `op(m) = m` of a weight in four bits; on the right only.
    Quantized(&'a Quantized),
    /// `op(m) = mᵀ` of a weight in four bits; on the right only.
    QuantizedTransposed(&'a Quantized),
}

impl<'a> Factor<'a> {
    fn right(self) -> Right<'a> {
        match self {
            Factor::Plain(m) => Right::Dense(Operand {
                data: m.data,
                rows: m.rows(),
                cols: m.cols(),
                row_stride: m.cols(),
                col_stride: 1,
            }),
            Factor::Transposed(m) => Right::Dense(Operand {
                data: m.data,
                rows: m.cols(),
                cols: m.rows(),
                row_stride: 1,
                col_stride: m.cols(),
            }),
            Factor::Quantized(m) => Right::FourBit(FourBit::plain(m)),
            Factor::QuantizedTransposed(m) => Right::FourBit(FourBit::transposed(m)),
        }
    }

    fn size_bytes(self) -> usize {
        match self {
            Factor::Plain(m) | Factor::Transposed(m) => m.size_bytes(),
            Factor::Quantized(m) | Factor::QuantizedTransposed(m) => m.size_bytes(),
        }
    }

    /// What a product by this factor is called in a profile.
    fn product_name(self, has_update: bool) -> &'static str {
        let dense = matches!(self, Factor::Plain(_) | Factor::Transposed(_));
        match (dense, has_update) {
            (true, false) => "product",
            (true, true) => "product and update",
            (false, false) => "product in four bits",
            (false, true) => "product in four bits and update",
        }
    }

    fn left(self) -> Operand<'a> {
        match self.right() {
            Right::Dense(operand) => operand,
            Right::FourBit(_) => panic!("a weight in four bits stands on the right of a product"),
        }
    }
}

/// `c = alpha * op(a) * op(b)`, or `c += ...` if `accumulate`. Any mix of element types; the order of summation does
/// not depend on the number of threads.
///
/// # Panics
/// If the shapes do not agree, or the left factor stands in four bits.
pub fn matmul(
    device: &Device,
    precision: Precision,
    alpha: f32,
    a: Factor<'_>,
    b: Factor<'_>,
    accumulate: bool,
    c: MatrixMut<'_>,
) {
    run(device, precision, alpha, (a, b), None, accumulate, c);
}

/// `c = a * b + d * e`, or `c += ...`: the product of a frozen weight and that of its low-rank update in one pass over `c`,
/// rounded once. As [`matmul`] otherwise.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_sum(
    device: &Device,
    precision: Precision,
    (a, b): (Factor<'_>, Factor<'_>),
    (d, e): (Factor<'_>, Factor<'_>),
    accumulate: bool,
    c: MatrixMut<'_>,
) {
    run(device, precision, 1.0, (a, b), Some((d, e)), accumulate, c);
}

fn run(
    device: &Device,
    precision: Precision,
    alpha: f32,
    (a, b): (Factor<'_>, Factor<'_>),
    more: Option<(Factor<'_>, Factor<'_>)>,
    accumulate: bool,
    c: MatrixMut<'_>,
) {
    let (rows, cols, written) = (c.rows(), c.cols(), c.size_bytes() * if accumulate { 2 } else { 1 });
    let (factors, others) = ((a.left(), b.right()), more.map(|(d, e)| (d.left(), e.right())));
    let operation = b.product_name(more.is_some());
    let _watch = device.watch(Key { operation, size: Some([rows, cols, factors.0.cols]) }, || {
        let depth = factors.0.cols + others.map_or(0, |(d, _)| d.cols);
        let bytes = |(a, b): (Factor<'_>, Factor<'_>)| a.size_bytes() + b.size_bytes();
        Work {
            flops: 2 * (rows * cols * depth) as u64,
            bytes: (bytes((a, b)) + more.map_or(0, bytes) + written) as u64,
        }
    });
    let c = OperandMut { data: c.data, rows, cols, row_stride: cols };
    match device {
        Device::Cpu(cpu) => gemm::gemm(cpu, precision, alpha, factors, others, accumulate, c),
    }
}
