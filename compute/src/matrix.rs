//! The one tensor type: a row-major matrix of `f32` or `bf16` in some device's memory, owned, borrowed or
//! borrowed mutably.
//!
//! Elements are read and written by operations, and by two transfers: [`MatrixRef::download`] and
//! [`MatrixMut::upload`]. What lies in the host's memory may be read and written directly too
//! ([`MatrixRef::f32`]), which nobody can rely on who takes matrices of any device.
//!
//! A borrowed matrix may be a part of a larger one: some rows, or some columns, whose rows are then a stride
//! apart.

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

/// Whose memory something lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// The host's.
    Host,
    /// That of [`Device::Null`](crate::Device::Null), which has shapes and no elements.
    Null,
}

enum Storage {
    Host(Bytes),
    Null,
}

/// An owned row-major matrix `[rows, cols]`.
pub struct Matrix {
    rows: usize,
    cols: usize,
    dtype: DType,
    storage: Storage,
}

impl Matrix {
    /// A matrix of zeros in the host's memory; [`Device::zeros`](crate::Device::zeros) makes one in a
    /// device's. Large ones take their memory page by page as it is first written.
    ///
    /// # Panics
    /// If the system refuses the address space; callers plan memory before they allocate.
    pub fn zeros(rows: usize, cols: usize, dtype: DType) -> Self {
        Matrix { rows, cols, dtype, storage: Storage::Host(Bytes::zeroed(size_bytes(rows, cols, dtype))) }
    }

    /// A matrix in the host's memory whose elements are written before they are read. They are zero too, but
    /// where `LUTHIER_GUARD` asks to find who reads them earlier: NaN there.
    ///
    /// # Panics
    /// As [`Matrix::zeros`].
    pub fn unset(rows: usize, cols: usize, dtype: DType) -> Self {
        Matrix { rows, cols, dtype, storage: Storage::Host(Bytes::unset(size_bytes(rows, cols, dtype))) }
    }

    /// A matrix of [`Home::Null`].
    pub(crate) fn null(rows: usize, cols: usize, dtype: DType) -> Self {
        size_bytes(rows, cols, dtype);
        Matrix { rows, cols, dtype, storage: Storage::Null }
    }

    /// A matrix `[rows, cols]` of `f32` with these values, in the host's memory.
    pub fn from_f32(rows: usize, cols: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "values for a {rows} x {cols} matrix");
        let mut m = Matrix::unset(rows, cols, DType::F32);
        m.as_mut().f32().copy_from_slice(values);
        m
    }

    /// A copy in the host's memory with another element type; `bf16` rounds to nearest even.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        let mut m = Matrix::unset(self.rows, self.cols, dtype);
        match (m.as_mut().slice(), self.as_ref().slice()) {
            (SliceMut::F32(to), Slice::F32(from)) => to.copy_from_slice(from),
            (SliceMut::Bf16(to), Slice::Bf16(from)) => to.copy_from_slice(from),
            (SliceMut::F32(to), Slice::Bf16(from)) => {
                to.iter_mut().zip(from).for_each(|(t, f)| *t = f.to_f32())
            }
            (SliceMut::Bf16(to), Slice::F32(from)) => {
                to.iter_mut().zip(from).for_each(|(t, f)| *t = bf16::from_f32(*f))
            }
        }
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

    /// Whose memory it lies in.
    pub fn home(&self) -> Home {
        match self.storage {
            Storage::Host(_) => Home::Host,
            Storage::Null => Home::Null,
        }
    }

    /// The whole matrix, borrowed.
    #[allow(clippy::should_implement_trait)]
    pub fn as_ref(&self) -> MatrixRef<'_> {
        let Matrix { rows, cols, dtype, ref storage } = *self;
        let data = match storage {
            Storage::Host(bytes) => Data::Host(match dtype {
                DType::F32 => Slice::F32(bytemuck::cast_slice(bytes.as_slice())),
                DType::Bf16 => Slice::Bf16(bytemuck::cast_slice(bytes.as_slice())),
            }),
            Storage::Null => Data::Null(dtype),
        };
        MatrixRef { rows, cols, stride: cols, data }
    }

    /// The whole matrix, borrowed mutably.
    #[allow(clippy::should_implement_trait)]
    pub fn as_mut(&mut self) -> MatrixMut<'_> {
        let Matrix { rows, cols, dtype, ref mut storage } = *self;
        let data = match storage {
            Storage::Host(bytes) => DataMut::Host(match dtype {
                DType::F32 => SliceMut::F32(bytemuck::cast_slice_mut(bytes.as_mut_slice())),
                DType::Bf16 => SliceMut::Bf16(bytemuck::cast_slice_mut(bytes.as_mut_slice())),
            }),
            Storage::Null => DataMut::Null(dtype),
        };
        MatrixMut { rows, cols, stride: cols, data }
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
    ///
    /// # Panics
    /// If it is not in the host's memory.
    pub fn to_vec(&self) -> Vec<f32> {
        self.as_ref().to_vec()
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix[{} x {}, {}]", self.rows, self.cols, self.dtype)
    }
}

/// Elements of a borrowed matrix in the host's memory.
#[derive(Clone, Copy)]
pub(crate) enum Slice<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl Slice<'_> {
    /// Bytes of an element.
    pub(crate) fn element_bytes(&self) -> usize {
        match self {
            Slice::F32(_) => size_of::<f32>(),
            Slice::Bf16(_) => size_of::<bf16>(),
        }
    }

    /// Whether both are the same memory.
    pub(crate) fn is_same(&self, other: &Slice<'_>) -> bool {
        match (self, other) {
            (Slice::F32(x), Slice::F32(y)) => std::ptr::eq(*x, *y),
            (Slice::Bf16(x), Slice::Bf16(y)) => std::ptr::eq(*x, *y),
            _ => false,
        }
    }
}

/// Elements of a mutably borrowed matrix in the host's memory.
pub(crate) enum SliceMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

#[derive(Clone, Copy)]
enum Data<'a> {
    Host(Slice<'a>),
    Null(DType),
}

enum DataMut<'a> {
    Host(SliceMut<'a>),
    Null(DType),
}

impl<'a> Data<'a> {
    fn range(self, span: Range<usize>) -> Self {
        match self {
            Data::Host(Slice::F32(s)) => Data::Host(Slice::F32(&s[span])),
            Data::Host(Slice::Bf16(s)) => Data::Host(Slice::Bf16(&s[span])),
            null @ Data::Null(_) => null,
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Data::Host(Slice::F32(_)) => DType::F32,
            Data::Host(Slice::Bf16(_)) => DType::Bf16,
            Data::Null(dtype) => *dtype,
        }
    }
}

impl<'a> DataMut<'a> {
    fn range(self, span: Range<usize>) -> Self {
        match self {
            DataMut::Host(SliceMut::F32(s)) => DataMut::Host(SliceMut::F32(&mut s[span])),
            DataMut::Host(SliceMut::Bf16(s)) => DataMut::Host(SliceMut::Bf16(&mut s[span])),
            null @ DataMut::Null(_) => null,
        }
    }

    fn reborrow(&mut self) -> DataMut<'_> {
        match self {
            DataMut::Host(SliceMut::F32(s)) => DataMut::Host(SliceMut::F32(s)),
            DataMut::Host(SliceMut::Bf16(s)) => DataMut::Host(SliceMut::Bf16(s)),
            DataMut::Null(dtype) => DataMut::Null(*dtype),
        }
    }

    fn shared(&self) -> Data<'_> {
        match self {
            DataMut::Host(SliceMut::F32(s)) => Data::Host(Slice::F32(s)),
            DataMut::Host(SliceMut::Bf16(s)) => Data::Host(Slice::Bf16(s)),
            DataMut::Null(dtype) => Data::Null(*dtype),
        }
    }
}

/// Where the elements of some rows and columns lie in a matrix, from the first one to the last.
fn span(rows: &Range<usize>, cols: &Range<usize>, stride: usize) -> Range<usize> {
    if rows.is_empty() || cols.is_empty() {
        return 0..0;
    }
    rows.start * stride + cols.start..(rows.end - 1) * stride + cols.end
}

fn check_range(what: &str, range: &Range<usize>, len: usize) {
    assert!(range.start <= range.end && range.end <= len, "{what} {range:?} of {len}");
}

/// A borrowed row-major matrix `[rows, cols]`, whose rows are contiguous in themselves.
#[derive(Clone, Copy)]
pub struct MatrixRef<'a> {
    rows: usize,
    cols: usize,
    stride: usize,
    data: Data<'a>,
}

impl<'a> MatrixRef<'a> {
    /// `f32` values in the host's memory seen as a matrix `[rows, cols]`.
    pub fn from_f32(rows: usize, cols: usize, values: &'a [f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "values for a {rows} x {cols} matrix");
        MatrixRef { rows, cols, stride: cols, data: Data::Host(Slice::F32(values)) }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from the begin of a row to that of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// Whose memory it lies in.
    pub fn home(&self) -> Home {
        match self.data {
            Data::Host(_) => Home::Host,
            Data::Null(_) => Home::Null,
        }
    }

    /// Bytes of the elements.
    pub fn size_bytes(&self) -> usize {
        self.rows * self.cols * self.dtype().size()
    }

    /// Whether the rows follow each other without a gap.
    pub fn is_contiguous(&self) -> bool {
        self.stride == self.cols || self.rows <= 1
    }

    /// The same elements under another shape of the same size, such as `[T, H * D]` as `[T * H, D]`.
    ///
    /// # Panics
    /// If the sizes differ or there are gaps between the rows.
    pub fn reshape(self, rows: usize, cols: usize) -> MatrixRef<'a> {
        assert_eq!(rows * cols, self.rows * self.cols, "reshape keeps the number of elements");
        assert!(self.is_contiguous(), "rows of {} columns, {} apart", self.cols, self.stride);
        MatrixRef { rows, cols, stride: cols, data: self.data }
    }

    /// The first `rows * cols` elements as a matrix: a buffer planned for the largest use, used for a smaller
    /// one.
    ///
    /// # Panics
    /// If there are not so many, or gaps between the rows.
    pub fn prefix(self, rows: usize, cols: usize) -> MatrixRef<'a> {
        let all = self.reshape(1, self.rows * self.cols);
        all.cols_range(0..rows * cols).reshape(rows, cols)
    }

    /// 32-bit words seen as a matrix `[rows, cols]` of this element type, which may end before they do.
    ///
    /// # Panics
    /// If they are not `f32`, too few, or there are gaps between the rows.
    pub fn reinterpret(self, rows: usize, cols: usize, dtype: DType) -> MatrixRef<'a> {
        assert_eq!(self.dtype(), DType::F32, "words of 32 bits");
        let words = (rows * cols * dtype.size()).div_ceil(4);
        let all = self.prefix(1, words);
        let data = match (all.data, dtype) {
            (Data::Host(Slice::F32(s)), DType::Bf16) => {
                Data::Host(Slice::Bf16(&bytemuck::cast_slice(s)[..rows * cols]))
            }
            (Data::Null(_), dtype) => Data::Null(dtype),
            (data, _) => data,
        };
        MatrixRef { rows, cols, stride: cols, data }
    }

    /// These rows.
    pub fn rows_range(self, range: Range<usize>) -> MatrixRef<'a> {
        check_range("rows", &range, self.rows);
        let data = self.data.range(span(&range, &(0..self.cols), self.stride));
        MatrixRef { rows: range.len(), data, ..self }
    }

    /// These columns.
    pub fn cols_range(self, range: Range<usize>) -> MatrixRef<'a> {
        check_range("columns", &range, self.cols);
        let data = self.data.range(span(&(0..self.rows), &range, self.stride));
        MatrixRef { cols: range.len(), data, ..self }
    }

    /// The elements, which must be `f32` in the host's memory, without gaps.
    pub fn f32(&self) -> &'a [f32] {
        match self.slice() {
            Slice::F32(s) => s,
            Slice::Bf16(_) => panic!("expected an f32 matrix, got bf16"),
        }
    }

    /// The elements, which must be `bf16` in the host's memory, without gaps.
    pub fn bf16(&self) -> &'a [bf16] {
        match self.slice() {
            Slice::Bf16(s) => s,
            Slice::F32(_) => panic!("expected a bf16 matrix, got f32"),
        }
    }

    /// The elements, which must be in the host's memory, without gaps.
    pub(crate) fn slice(&self) -> Slice<'a> {
        assert!(self.is_contiguous(), "rows of {} columns, {} apart", self.cols, self.stride);
        self.strided()
    }

    /// What lies from the first element to the last, which must be in the host's memory.
    pub(crate) fn strided(&self) -> Slice<'a> {
        match self.data {
            Data::Host(slice) => slice,
            Data::Null(_) => panic!("{self:?} has no elements that the host could read"),
        }
    }

    /// The matrix in the host's memory: itself if it is there, else a copy.
    pub fn download(self) -> Download<'a> {
        match self.data {
            Data::Host(_) => Download::There(self),
            // What is nowhere is zero when somebody looks.
            Data::Null(dtype) => Download::Copied(Matrix::zeros(self.rows, self.cols, dtype)),
        }
    }

    /// All values as `f32`, row by row.
    ///
    /// # Panics
    /// If they are not in the host's memory, or there are gaps between the rows.
    pub fn to_vec(&self) -> Vec<f32> {
        match self.slice() {
            Slice::F32(s) => s.to_vec(),
            Slice::Bf16(s) => s.iter().map(|v| v.to_f32()).collect(),
        }
    }
}

/// What [`MatrixRef::download`] gives.
#[derive(Debug)]
pub enum Download<'a> {
    /// The matrix was in the host's memory.
    There(MatrixRef<'a>),
    /// A copy.
    Copied(Matrix),
}

impl Download<'_> {
    /// The matrix in the host's memory.
    #[allow(clippy::should_implement_trait)]
    pub fn as_ref(&self) -> MatrixRef<'_> {
        match self {
            Download::There(matrix) => *matrix,
            Download::Copied(matrix) => matrix.as_ref(),
        }
    }

    /// Its elements, which must be `f32`.
    pub fn f32(&self) -> &[f32] {
        self.as_ref().f32()
    }
}

impl fmt::Debug for MatrixRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MatrixRef[{} x {}, {}]", self.rows, self.cols, self.dtype())
    }
}

/// A mutably borrowed row-major matrix `[rows, cols]`, whose rows are contiguous in themselves.
pub struct MatrixMut<'a> {
    rows: usize,
    cols: usize,
    stride: usize,
    data: DataMut<'a>,
}

impl<'a> MatrixMut<'a> {
    /// Mutable `f32` values in the host's memory seen as a matrix `[rows, cols]`.
    pub fn from_f32(rows: usize, cols: usize, values: &'a mut [f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "values for a {rows} x {cols} matrix");
        MatrixMut { rows, cols, stride: cols, data: DataMut::Host(SliceMut::F32(values)) }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from the begin of a row to that of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.as_ref().dtype()
    }

    /// Whose memory it lies in.
    pub fn home(&self) -> Home {
        self.as_ref().home()
    }

    /// Bytes of the elements.
    pub fn size_bytes(&self) -> usize {
        self.as_ref().size_bytes()
    }

    /// A shorter borrow of the same matrix.
    pub fn reborrow(&mut self) -> MatrixMut<'_> {
        MatrixMut { rows: self.rows, cols: self.cols, stride: self.stride, data: self.data.reborrow() }
    }

    /// The same matrix, read only.
    #[allow(clippy::should_implement_trait)]
    pub fn as_ref(&self) -> MatrixRef<'_> {
        MatrixRef { rows: self.rows, cols: self.cols, stride: self.stride, data: self.data.shared() }
    }

    /// The same elements under another shape of the same size.
    ///
    /// # Panics
    /// As [`MatrixRef::reshape`].
    pub fn reshape(self, rows: usize, cols: usize) -> MatrixMut<'a> {
        self.as_ref().reshape(rows, cols);
        MatrixMut { rows, cols, stride: cols, data: self.data }
    }

    /// The first `rows * cols` elements as a matrix.
    ///
    /// # Panics
    /// As [`MatrixRef::prefix`].
    pub fn prefix(self, rows: usize, cols: usize) -> MatrixMut<'a> {
        let elements = self.rows * self.cols;
        self.reshape(1, elements).cols_range(0..rows * cols).reshape(rows, cols)
    }

    /// 32-bit words seen as a matrix `[rows, cols]` of this element type, which may end before they do.
    ///
    /// # Panics
    /// As [`MatrixRef::reinterpret`].
    pub fn reinterpret(self, rows: usize, cols: usize, dtype: DType) -> MatrixMut<'a> {
        assert_eq!(self.dtype(), DType::F32, "words of 32 bits");
        let words = (rows * cols * dtype.size()).div_ceil(4);
        let data = match (self.prefix(1, words).data, dtype) {
            (DataMut::Host(SliceMut::F32(s)), DType::Bf16) => {
                DataMut::Host(SliceMut::Bf16(&mut bytemuck::cast_slice_mut(s)[..rows * cols]))
            }
            (DataMut::Null(_), dtype) => DataMut::Null(dtype),
            (data, _) => data,
        };
        MatrixMut { rows, cols, stride: cols, data }
    }

    /// These rows.
    pub fn rows_range(self, range: Range<usize>) -> MatrixMut<'a> {
        check_range("rows", &range, self.rows);
        let data = self.data.range(span(&range, &(0..self.cols), self.stride));
        MatrixMut { rows: range.len(), data, ..self }
    }

    /// These columns.
    pub fn cols_range(self, range: Range<usize>) -> MatrixMut<'a> {
        check_range("columns", &range, self.cols);
        let data = self.data.range(span(&(0..self.rows), &range, self.stride));
        MatrixMut { cols: range.len(), data, ..self }
    }

    /// The first elements of a single row, and the others.
    ///
    /// # Panics
    /// If there is another number of rows, or fewer elements.
    pub fn split_at(self, at: usize) -> (MatrixMut<'a>, MatrixMut<'a>) {
        assert_eq!(self.rows, 1, "what is split is one row");
        check_range("columns", &(0..at), self.cols);
        let (first, second) = match self.data {
            DataMut::Host(SliceMut::F32(s)) => {
                let (a, b) = s.split_at_mut(at);
                (DataMut::Host(SliceMut::F32(a)), DataMut::Host(SliceMut::F32(b)))
            }
            DataMut::Host(SliceMut::Bf16(s)) => {
                let (a, b) = s.split_at_mut(at);
                (DataMut::Host(SliceMut::Bf16(a)), DataMut::Host(SliceMut::Bf16(b)))
            }
            DataMut::Null(dtype) => (DataMut::Null(dtype), DataMut::Null(dtype)),
        };
        let part = |cols, data| MatrixMut { rows: 1, cols, stride: cols, data };
        (part(at, first), part(self.cols - at, second))
    }

    /// Takes the first rows off, and leaves the others.
    ///
    /// # Panics
    /// If there are fewer, or gaps between the rows.
    pub fn split_off_rows(&mut self, count: usize) -> MatrixMut<'a> {
        let nothing = MatrixMut { rows: 0, cols: 0, stride: 0, data: DataMut::Null(self.dtype()) };
        let all = std::mem::replace(self, nothing);
        let (rows, cols) = (all.rows, all.cols);
        check_range("rows", &(0..count), rows);
        let (first, others) = all.reshape(1, rows * cols).split_at(count * cols);
        *self = others.reshape(rows - count, cols);
        first.reshape(count, cols)
    }

    /// The elements, which must be `f32` in the host's memory, without gaps.
    pub fn f32(self) -> &'a mut [f32] {
        match self.slice() {
            SliceMut::F32(s) => s,
            SliceMut::Bf16(_) => panic!("expected an f32 matrix, got bf16"),
        }
    }

    /// The elements, which must be `bf16` in the host's memory, without gaps.
    pub fn bf16(self) -> &'a mut [bf16] {
        match self.slice() {
            SliceMut::Bf16(s) => s,
            SliceMut::F32(_) => panic!("expected a bf16 matrix, got f32"),
        }
    }

    /// The elements, which must be in the host's memory, without gaps.
    pub(crate) fn slice(self) -> SliceMut<'a> {
        self.as_ref().slice();
        self.strided()
    }

    /// What lies from the first element to the last, which must be in the host's memory.
    pub(crate) fn strided(self) -> SliceMut<'a> {
        match self.data {
            DataMut::Host(slice) => slice,
            DataMut::Null(_) => panic!("{self:?} has no elements that the host could write"),
        }
    }

    /// Lets `fill` write all elements in the host's memory, and brings them to where the matrix lies.
    pub fn upload<R>(self, fill: impl FnOnce(MatrixMut<'_>) -> R) -> R {
        match self.data {
            DataMut::Host(_) => fill(self),
            DataMut::Null(dtype) => fill(Matrix::unset(self.rows, self.cols, dtype).as_mut()),
        }
    }
}

impl fmt::Debug for MatrixMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MatrixMut[{} x {}, {}]", self.rows, self.cols, self.dtype())
    }
}
