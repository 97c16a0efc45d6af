//! Whole numbers in some device's memory: token ids, rows, names of rows.

use std::fmt;
use std::ops::Range;

use bytemuck::Pod;

use crate::memory::Buffer;
use crate::{Device, Home};

/// An owned vector of fixed length, zero when made.
pub struct Vector<T> {
    len: usize,
    storage: Storage<T>,
}

enum Storage<T> {
    Host(Buffer<T>),
    Null,
}

impl<T: Pod> Vector<T> {
    /// Zeros in the memory of a device.
    pub fn zeros(device: &Device, len: usize) -> Self {
        let storage = match device.home() {
            Home::Host => Storage::Host(Buffer::zeros(len)),
            Home::Null => Storage::Null,
        };
        Vector { len, storage }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Brings values of the host's to the front, and lends them.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn upload(&mut self, values: &[T]) -> VectorRef<'_, T> {
        assert!(values.len() <= self.len, "{} values in a vector of {}", values.len(), self.len);
        if let Storage::Host(buffer) = &mut self.storage {
            buffer[..values.len()].copy_from_slice(values);
        }
        self.top(values.len())
    }

    /// The first `n` elements, borrowed.
    pub fn top(&self, n: usize) -> VectorRef<'_, T> {
        assert!(n <= self.len, "{n} elements of {}", self.len);
        let data = match &self.storage {
            Storage::Host(buffer) => Some(&buffer[..n]),
            Storage::Null => None,
        };
        VectorRef { len: n, data }
    }
}

impl<T> fmt::Debug for Vector<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vector[{}]", self.len)
    }
}

/// A borrowed vector.
#[derive(Clone, Copy, Debug)]
pub struct VectorRef<'a, T> {
    len: usize,
    /// None of [`Home::Null`].
    data: Option<&'a [T]>,
}

impl<'a, T> VectorRef<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whose memory it lies in.
    pub fn home(&self) -> Home {
        if self.data.is_some() { Home::Host } else { Home::Null }
    }

    /// These elements.
    pub fn range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "elements {range:?} of {}", self.len);
        VectorRef { len: range.len(), data: self.data.map(|data| &data[range]) }
    }

    /// The elements, which must be in the host's memory.
    pub(crate) fn host(self) -> &'a [T] {
        self.data.expect("a vector that the host can read")
    }
}

impl<'a> VectorRef<'a, u32> {
    /// The elements, which must be in the host's memory and below `bound`; `wrong` says what is wrong with
    /// one, by its place and itself.
    pub(crate) fn below(self, bound: usize, wrong: impl FnOnce(usize, u32) -> String) -> &'a [u32] {
        let numbers = self.host();
        if let Some((place, &number)) = numbers.iter().enumerate().find(|&(_, &n)| n as usize >= bound) {
            panic!("{}", wrong(place, number));
        }
        numbers
    }
}

impl<'a, T> From<&'a [T]> for VectorRef<'a, T> {
    /// Elements in the host's memory.
    fn from(values: &'a [T]) -> Self {
        VectorRef { len: values.len(), data: Some(values) }
    }
}

impl<'a, T> From<&'a Vec<T>> for VectorRef<'a, T> {
    /// Elements in the host's memory.
    fn from(values: &'a Vec<T>) -> Self {
        values.as_slice().into()
    }
}

impl<'a, T, const N: usize> From<&'a [T; N]> for VectorRef<'a, T> {
    /// Elements in the host's memory.
    fn from(values: &'a [T; N]) -> Self {
        values.as_slice().into()
    }
}
