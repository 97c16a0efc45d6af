//! The one tensor type: a row-major matrix of `f32` or `bf16`, owned, borrowed or borrowed mutably.

use std::fmt;
use std::ops::Range;

use half::bf16;

use crate::memory::Bytes;

/// How an element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision, 4 bytes.
    F32,
    /// bfloat16, 2 bytes.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
        })
    }
}

/// The precision of a run: how activations are stored and how products multiply. Sums, softmax, loss,
/// adapters, their gradients and the optimizer are `f32` in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// `f32` activations, `f32` products.
    F32,
    /// `bf16` activations, products of `bf16` factors summed in `f32`.
    Bf16,
}

impl Precision {
    /// How this precision stores activations.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}

fn size_bytes(rows: usize, cols: usize, dtype: DType) -> usize {
    rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size())).expect("matrix size overflows")
}

/// An owned row-major matrix `[rows, cols]`, zero when made.
pub struct Matrix {
    rows: usize,
    cols: usize,
    dtype: DType,
    bytes: Bytes,
}

impl Matrix {
    /// A matrix of zeros. Large ones take their memory page by page as it is first written.
    ///
    /// # Panics
    /// If the system refuses the address space; callers plan memory before they allocate.
    pub fn zeros(rows: usize, cols: usize, dtype: DType) -> Self {
        Matrix { rows, cols, dtype, bytes: Bytes::zeroed(size_bytes(rows, cols, dtype)) }
    }

    /// A matrix whose elements are written before they are read. They are zero too, but where `LUTHIER_GUARD`
    /// asks to find who reads them earlier: NaN there.
    ///
    /// # Panics
    /// As [`Matrix::zeros`].
    pub fn unset(rows: usize, cols: usize, dtype: DType) -> Self {
        Matrix { rows, cols, dtype, bytes: Bytes::unset(size_bytes(rows, cols, dtype)) }
    }

    /// A matrix `[rows, cols]` of `f32` with these values.
    pub fn from_f32(rows: usize, cols: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "values for a {rows} x {cols} matrix");
        let mut m = Matrix::unset(rows, cols, DType::F32);
        m.as_mut().f32().copy_from_slice(values);
        m
    }

    /// A copy with another element type; `bf16` rounds to nearest even.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        let mut m = Matrix::unset(self.rows, self.cols, dtype);
        m.as_mut().copy_from(self.as_ref());
        m
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the elements.
    pub fn size_bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size()
    }

    /// The whole matrix, borrowed.
    #[allow(clippy::should_implement_trait)]
    pub fn as_ref(&self) -> MatrixRef<'_> {
        let bytes = self.bytes.as_slice();
        let data = match self.dtype {
            DType::F32 => Slice::F32(bytemuck::cast_slice(bytes)),
            DType::Bf16 => Slice::Bf16(bytemuck::cast_slice(bytes)),
        };
        MatrixRef { rows: self.rows, cols: self.cols, data }
    }

    /// The whole matrix, borrowed mutably.
    #[allow(clippy::should_implement_trait)]
    pub fn as_mut(&mut self) -> MatrixMut<'_> {
        let bytes = self.bytes.as_mut_slice();
        let data = match self.dtype {
            DType::F32 => SliceMut::F32(bytemuck::cast_slice_mut(bytes)),
            DType::Bf16 => SliceMut::Bf16(bytemuck::cast_slice_mut(bytes)),
        };
        MatrixMut { rows: self.rows, cols: self.cols, data }
    }

    /// The first `n` rows, borrowed: a buffer planned for many tokens, used for fewer.
    pub fn top(&self, n: usize) -> MatrixRef<'_> {
        self.as_ref().rows_range(0..n)
    }

    /// The first `n` rows, borrowed mutably.
    pub fn top_mut(&mut self, n: usize) -> MatrixMut<'_> {
        self.as_mut().rows_range(0..n)
    }

    /// All values as `f32`, row by row.
    pub fn to_vec(&self) -> Vec<f32> {
        self.as_ref().to_vec()
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix[{} x {}, {}]", self.rows, self.cols, self.dtype)
    }
}

/// Elements of a borrowed matrix.
#[derive(Clone, Copy)]
pub(crate) enum Slice<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// Elements of a mutably borrowed matrix.
pub(crate) enum SliceMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

/// A borrowed row-major matrix `[rows, cols]`, rows contiguous.
#[derive(Clone, Copy)]
pub struct MatrixRef<'a> {
    rows: usize,
    cols: usize,
    pub(crate) data: Slice<'a>,
}

impl<'a> MatrixRef<'a> {
    /// `f32` values seen as a matrix `[rows, cols]`, such as one tensor of a flat parameter buffer.
    pub fn from_f32(rows: usize, cols: usize, values: &'a [f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "values for a {rows} x {cols} matrix");
        MatrixRef { rows, cols, data: Slice::F32(values) }
    }

    /// 32-bit words seen as a matrix `[rows, cols]` of this element type, which may end before they do.
    pub fn from_words(rows: usize, cols: usize, dtype: DType, words: &'a [f32]) -> Self {
        let data = match dtype {
            DType::F32 => Slice::F32(&words[..rows * cols]),
            DType::Bf16 => Slice::Bf16(&bytemuck::cast_slice(words)[..rows * cols]),
        };
        MatrixRef { rows, cols, data }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            Slice::F32(_) => DType::F32,
            Slice::Bf16(_) => DType::Bf16,
        }
    }

    /// Bytes of the elements.
    pub fn size_bytes(&self) -> usize {
        self.rows * self.cols * self.dtype().size()
    }

    /// The same elements under another shape of the same size, such as `[T, H * D]` as `[T * H, D]`.
    pub fn reshape(self, rows: usize, cols: usize) -> MatrixRef<'a> {
        assert_eq!(rows * cols, self.rows * self.cols, "reshape keeps the number of elements");
        MatrixRef { rows, cols, data: self.data }
    }

    /// The first `rows * cols` elements as a matrix: a buffer planned for the largest use, used for a smaller
    /// one.
    pub fn prefix(self, rows: usize, cols: usize) -> MatrixRef<'a> {
        let data = match self.data {
            Slice::F32(s) => Slice::F32(&s[..rows * cols]),
            Slice::Bf16(s) => Slice::Bf16(&s[..rows * cols]),
        };
        MatrixRef { rows, cols, data }
    }

    /// These rows.
    pub fn rows_range(self, range: Range<usize>) -> MatrixRef<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let span = range.start * self.cols..range.end * self.cols;
        let data = match self.data {
            Slice::F32(s) => Slice::F32(&s[span]),
            Slice::Bf16(s) => Slice::Bf16(&s[span]),
        };
        MatrixRef { rows: range.len(), cols: self.cols, data }
    }

    /// The elements, which must be `f32`.
    pub fn f32(&self) -> &'a [f32] {
        match self.data {
            Slice::F32(s) => s,
            Slice::Bf16(_) => panic!("expected an f32 matrix, got bf16"),
        }
    }

    /// The elements, which must be `bf16`.
    pub fn bf16(&self) -> &'a [bf16] {
        match self.data {
            Slice::Bf16(s) => s,
            Slice::F32(_) => panic!("expected a bf16 matrix, got f32"),
        }
    }

    /// All values as `f32`, row by row.
    pub fn to_vec(&self) -> Vec<f32> {
        match self.data {
            Slice::F32(s) => s.to_vec(),
            Slice::Bf16(s) => s.iter().map(|v| v.to_f32()).collect(),
        }
    }
}

impl fmt::Debug for MatrixRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MatrixRef[{} x {}, {}]", self.rows, self.cols, self.dtype())
    }
}

/// A mutably borrowed row-major matrix `[rows, cols]`, rows contiguous.
pub struct MatrixMut<'a> {
    rows: usize,
    cols: usize,
    pub(crate) data: SliceMut<'a>,
}

impl<'a> MatrixMut<'a> {
    /// Mutable `f32` values seen as a matrix `[rows, cols]`.
    pub fn from_f32(rows: usize, cols: usize, values: &'a mut [f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "values for a {rows} x {cols} matrix");
        MatrixMut { rows, cols, data: SliceMut::F32(values) }
    }

    /// Mutable 32-bit words seen as a matrix `[rows, cols]` of this element type, which may end before they
    /// do.
    pub fn from_words(rows: usize, cols: usize, dtype: DType, words: &'a mut [f32]) -> Self {
        let data = match dtype {
            DType::F32 => SliceMut::F32(&mut words[..rows * cols]),
            DType::Bf16 => SliceMut::Bf16(&mut bytemuck::cast_slice_mut(words)[..rows * cols]),
        };
        MatrixMut { rows, cols, data }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            SliceMut::F32(_) => DType::F32,
            SliceMut::Bf16(_) => DType::Bf16,
        }
    }

    /// Bytes of the elements.
    pub fn size_bytes(&self) -> usize {
        self.rows * self.cols * self.dtype().size()
    }

    /// A shorter borrow of the same matrix.
    pub fn reborrow(&mut self) -> MatrixMut<'_> {
        let data = match &mut self.data {
            SliceMut::F32(s) => SliceMut::F32(s),
            SliceMut::Bf16(s) => SliceMut::Bf16(s),
        };
        MatrixMut { rows: self.rows, cols: self.cols, data }
    }

    /// The same matrix, read only.
    #[allow(clippy::should_implement_trait)]
    pub fn as_ref(&self) -> MatrixRef<'_> {
        let data = match &self.data {
            SliceMut::F32(s) => Slice::F32(s),
            SliceMut::Bf16(s) => Slice::Bf16(s),
        };
        MatrixRef { rows: self.rows, cols: self.cols, data }
    }

    /// The same elements under another shape of the same size.
    pub fn reshape(self, rows: usize, cols: usize) -> MatrixMut<'a> {
        assert_eq!(rows * cols, self.rows * self.cols, "reshape keeps the number of elements");
        MatrixMut { rows, cols, data: self.data }
    }

    /// The first `rows * cols` elements as a matrix.
    pub fn prefix(self, rows: usize, cols: usize) -> MatrixMut<'a> {
        let data = match self.data {
            SliceMut::F32(s) => SliceMut::F32(&mut s[..rows * cols]),
            SliceMut::Bf16(s) => SliceMut::Bf16(&mut s[..rows * cols]),
        };
        MatrixMut { rows, cols, data }
    }

    /// These rows.
    pub fn rows_range(self, range: Range<usize>) -> MatrixMut<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let span = range.start * self.cols..range.end * self.cols;
        let data = match self.data {
            SliceMut::F32(s) => SliceMut::F32(&mut s[span]),
            SliceMut::Bf16(s) => SliceMut::Bf16(&mut s[span]),
        };
        MatrixMut { rows: range.len(), cols: self.cols, data }
    }

    /// The elements, which must be `f32`.
    pub fn f32(self) -> &'a mut [f32] {
        match self.data {
            SliceMut::F32(s) => s,
            SliceMut::Bf16(_) => panic!("expected an f32 matrix, got bf16"),
        }
    }

    /// The elements, which must be `bf16`.
    pub fn bf16(self) -> &'a mut [bf16] {
        match self.data {
            SliceMut::Bf16(s) => s,
            SliceMut::F32(_) => panic!("expected a bf16 matrix, got f32"),
        }
    }

    /// Sets every element to zero.
    pub fn clear(&mut self) {
        match &mut self.data {
            SliceMut::F32(s) => s.fill(0.0),
            SliceMut::Bf16(s) => s.fill(bf16::ZERO),
        }
    }

    /// Copies a matrix of the same shape, converting the element type (`bf16` rounds to nearest even).
    pub fn copy_from(&mut self, from: MatrixRef<'_>) {
        assert_eq!((self.rows, self.cols), (from.rows, from.cols), "copy between matrices of one shape");
        match (&mut self.data, from.data) {
            (SliceMut::F32(to), Slice::F32(from)) => to.copy_from_slice(from),
            (SliceMut::Bf16(to), Slice::Bf16(from)) => to.copy_from_slice(from),
            (SliceMut::F32(to), Slice::Bf16(from)) => {
                to.iter_mut().zip(from).for_each(|(t, f)| *t = f.to_f32())
            }
            (SliceMut::Bf16(to), Slice::F32(from)) => {
                to.iter_mut().zip(from).for_each(|(t, f)| *t = bf16::from_f32(*f))
            }
        }
    }
}

impl fmt::Debug for MatrixMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MatrixMut[{} x {}, {}]", self.rows, self.cols, self.dtype())
    }
}
