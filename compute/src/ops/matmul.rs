//! The general matrix product, of which linear layers, low-rank products and weight gradients are made.
//!
//! `c[M, N] = alpha * op(a)[M, K] * op(b)[K, N] (+ c)`, sums in `f32`, factors rounded to `bf16` first where
//! the precision is `bf16` and the processor multiplies them.

use crate::cpu::gemm::{self, Coded, Operand, OperandMut, Right};
use crate::profile::{Key, Work};
use crate::quant::Quantized;
use crate::{Device, Home, MatrixMut, MatrixRef, Precision};

/// Products of at most so many rows may sum in another order than those of more, unless they are asked not to
/// ([`Product::by_tiles`]). Of those each row is the same to the byte whatever stands beside it.
pub const FEW_ROWS: usize = gemm::FEW_ROWS;

/// Bytes of working memory that all products share, whose threads are one pool's.
pub const SHARED_MEMORY: u64 = gemm::SHARED_MEMORY;

/// Bytes of working memory that each thread has beside that, about.
pub const THREAD_MEMORY: u64 = gemm::THREAD_MEMORY;

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
    /// As the host's kernels take it.
    fn right(self) -> Right<'a> {
        match self {
            Factor::Plain(m) => Right::Dense(Operand {
                data: m.strided(),
                rows: m.rows(),
                cols: m.cols(),
                row_stride: m.stride(),
                col_stride: 1,
            }),
            Factor::Transposed(m) => Right::Dense(Operand {
                data: m.strided(),
                rows: m.cols(),
                cols: m.rows(),
                row_stride: 1,
                col_stride: m.stride(),
            }),
            Factor::Quantized(m) => Right::Coded(Coded::plain(m)),
            Factor::QuantizedTransposed(m) => Right::Coded(Coded::transposed(m)),
        }
    }

    fn left(self) -> Operand<'a> {
        match self.right() {
            Right::Dense(operand) => operand,
            Right::Coded(_) => panic!("a weight in four bits stands on the right of a product"),
        }
    }

    /// Rows and columns of `op(m)`.
    fn size(self) -> (usize, usize) {
        match self {
            Factor::Plain(m) => (m.rows(), m.cols()),
            Factor::Transposed(m) => (m.cols(), m.rows()),
            Factor::Quantized(m) => (m.rows(), m.cols()),
            Factor::QuantizedTransposed(m) => (m.cols(), m.rows()),
        }
    }

    fn home(self) -> Home {
        match self {
            Factor::Plain(m) | Factor::Transposed(m) => m.home(),
            Factor::Quantized(m) | Factor::QuantizedTransposed(m) => m.home(),
        }
    }

    fn size_bytes(self) -> usize {
        match self {
            Factor::Plain(m) | Factor::Transposed(m) => m.size_bytes(),
            Factor::Quantized(m) | Factor::QuantizedTransposed(m) => m.size_bytes(),
        }
    }

    /// What a product by this factor is called in a profile.
    fn product_name(self, has_update: bool, is_single: bool) -> &'static str {
        let dense = matches!(self, Factor::Plain(_) | Factor::Transposed(_));
        match (dense, has_update, is_single) {
            (true, false, true) => "product",
            (true, true, true) => "product and update",
            (false, false, true) => "product in four bits",
            (false, true, true) => "product in four bits and update",
            (true, false, false) => "products",
            (true, true, false) => "products and updates",
            (false, false, false) => "products in four bits",
            (false, true, false) => "products in four bits and updates",
        }
    }
}

/// `c = alpha * op(a) * op(b)`, or `c += ...` if `accumulate`. Any mix of element types; the order of
/// summation does not depend on the number of threads.
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
    multiply(device, precision, vec![Product { alpha, ..Product::new((a, b), accumulate, c) }]);
}

/// A low-rank update of a product by `a [M, K]`: it adds `s * second`, with `s [M, R] = scale * a * first`,
/// which is made, or without `first` with `s` as it is.
#[derive(Debug)]
pub struct Update<'a> {
    /// `[K, R]`
    pub first: Option<Factor<'a>>,
    /// Factor on `s`.
    pub scale: f32,
    /// `[M, R]`
    pub s: MatrixMut<'a>,
    /// `[R, N]`
    pub second: Factor<'a>,
}

/// What becomes of a product's columns while they are in registers: `c[m, n] = scale[n] * p[m, n] + bias[n]`,
/// or `c += ...`, of a product `p` that is not rounded before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[1, N]`, `f32`; none: 1.
    pub scale: Option<MatrixRef<'a>>,
    /// `[1, N]`, `f32`; none: 0.
    pub bias: Option<MatrixRef<'a>>,
}

impl<'a> Epilogue<'a> {
    fn of_columns(&self) -> impl Iterator<Item = MatrixRef<'a>> + use<'a> {
        [self.scale, self.bias].into_iter().flatten()
    }
}

/// A product, one of those that [`multiply`] computes together:
///
/// ```text
/// c[M, N] = alpha * (sums[M, N] + a[M, K] b[K, N] + s[M, R] second[R, N])        (+ c)
/// ```
///
/// with an epilogue, rounded once. With an update it is the product of a frozen weight and its low-rank
/// update, in one pass over `a` and one over `c`.
#[derive(Debug)]
pub struct Product<'a> {
    /// Factor on the sums; 1 where there is an epilogue.
    pub alpha: f32,
    /// `[M, K]`
    pub a: Factor<'a>,
    /// `[K, N]`
    pub b: Factor<'a>,
    /// `[M, N]`, `f32`: what another product has come to, by tiles, whose sums go on here as if both were one;
    /// none: 0. Only by tiles.
    pub sums: Option<MatrixRef<'a>>,
    /// What goes into the same sums.
    pub update: Option<Update<'a>>,
    /// What becomes of the sums' columns.
    pub epilogue: Epilogue<'a>,
    /// Whether they are added to `c`.
    pub accumulate: bool,
    /// Whether few rows are summed as many are: each is then the same to the byte however many there are.
    pub by_tiles: bool,
    /// `[M, N]`
    pub c: MatrixMut<'a>,
}

impl<'a> Product<'a> {
    /// `c = a * b`, or `c += a * b`.
    pub fn new((a, b): (Factor<'a>, Factor<'a>), accumulate: bool, c: MatrixMut<'a>) -> Self {
        let (update, epilogue) = (None, Epilogue::default());
        Product { alpha: 1.0, a, b, sums: None, update, epilogue, accumulate, by_tiles: false, c }
    }

    /// By what calls are added up: its name and its size. Of several, these rows.
    fn key(&self, rows: usize, is_single: bool) -> Key {
        let operation = self.b.product_name(self.update.is_some(), is_single);
        Key { operation, size: Some([rows, self.c.cols(), self.a.size().1]) }
    }

    /// # Panics
    /// If the shapes do not agree.
    fn check(&self) {
        let (rows, cols, depth) = (self.c.rows(), self.c.cols(), self.a.size().1);
        assert_eq!((rows, depth), self.a.size(), "rows of a product, and of its left factor");
        assert_eq!((depth, cols), self.b.size(), "the inner size of a product, and its columns");
        if let Some(Update { first, s, second, .. }) = &self.update {
            assert_eq!((rows, cols), (s.rows(), second.size().1), "rows and columns of an update");
            assert_eq!(s.cols(), second.size().0, "the rank of an update");
            let made = first.is_none_or(|first| first.size() == (depth, s.cols()));
            assert!(made, "an update's first factor, of a product {depth} deep");
        }
        if let Some(sums) = self.sums {
            assert_eq!((rows, cols), (sums.rows(), sums.cols()), "rows and columns of sums that go on");
            assert!(self.by_tiles, "sums go on by tiles");
        }
        for m in self.epilogue.of_columns() {
            assert_eq!((1, cols), (m.rows(), m.cols()), "an epilogue's values and columns");
        }
    }

    fn homes(&self) -> impl Iterator<Item = Home> {
        let factors = [self.a.home(), self.b.home(), self.c.home()];
        let of_update = self.update.iter().flat_map(Update::homes);
        let of_sums = self.sums.iter().map(|sums| sums.home());
        factors
            .into_iter()
            .chain(of_sums)
            .chain(of_update)
            .chain(self.epilogue.of_columns().map(|m| m.home()))
    }

    fn work(&self) -> Work {
        let (rows, cols, depth) = (self.c.rows(), self.c.cols(), self.a.size().1);
        let written = self.c.size_bytes() * if self.accumulate { 2 } else { 1 };
        let product = Work {
            flops: 2 * (rows * cols * depth) as u64,
            bytes: (self.a.size_bytes() + self.b.size_bytes() + written) as u64,
        };
        product + self.update.as_ref().map_or(Work::default(), |update| update.work(rows, cols, depth))
    }

    /// As the host's kernels take it.
    fn call(self) -> gemm::Call<'a> {
        let update = self.update.map(|Update { first, scale, s, second }| {
            let (first, second) = (first.map(Factor::right), second.right());
            gemm::Update { first, scale, s: operand_mut(s), second }
        });
        let [scale, bias] = [self.epilogue.scale, self.epilogue.bias].map(|m| m.map(|m| m.f32()));
        let (a, b, c) = (self.a.left(), self.b.right(), operand_mut(self.c));
        let epilogue = gemm::Epilogue { scale, bias };
        let (alpha, accumulate, by_tiles) = (self.alpha, self.accumulate, self.by_tiles);
        let sums = self.sums.map(|sums| Factor::Plain(sums).left());
        gemm::Call { alpha, a, b, sums, update, epilogue, accumulate, by_tiles, c }
    }
}

/// Computes products together: rows with an adapter each by one frozen weight, which is then read once, or
/// the rows of each expert by its own weight. Each product comes to what it comes to alone, to the byte.
///
/// # Panics
/// As [`matmul`].
pub fn multiply(device: &Device, precision: Precision, products: Vec<Product<'_>>) {
    products.iter().for_each(Product::check);
    let Some(first) = products.first() else { return };
    let rows = products.iter().map(|product| product.c.rows()).sum();
    let key = first.key(rows, products.len() == 1);
    let homes = products.iter().flat_map(Product::homes);
    let _watch = device.watch(key, homes, || products.iter().map(Product::work).sum());
    match device {
        Device::Cpu(cpu) => gemm::gemm(cpu, precision, products.into_iter().map(Product::call)),
        Device::Null(_) => {}
    }
}

/// A result as the host's kernels take it.
fn operand_mut(c: MatrixMut<'_>) -> OperandMut<'_> {
    let (rows, cols, row_stride) = (c.rows(), c.cols(), c.stride());
    OperandMut { data: c.strided(), rows, cols, row_stride }
}

impl Update<'_> {
    fn homes(&self) -> impl Iterator<Item = Home> + use<> {
        [Some(self.s.home()), Some(self.second.home()), self.first.map(Factor::home)].into_iter().flatten()
    }

    /// What it adds to a product's work.
    fn work(&self, rows: usize, cols: usize, depth: usize) -> Work {
        let rank = self.s.cols();
        let added = Work {
            flops: 2 * (rows * cols * rank) as u64,
            bytes: (self.s.size_bytes() + self.second.size_bytes()) as u64,
        };
        let made = self.first.map_or(Work::default(), |first| Work {
            flops: 2 * (rows * rank * depth) as u64,
            bytes: (first.size_bytes() + self.s.size_bytes()) as u64,
        });
        added + made
    }
}
