//! Columns of a matrix as a matrix of their own, and back: the parts of what a fused projection gives.
//!
//! ```text
//! take:  y[r, c] = x[r, start + c]                put:  y[r, start + c] = x[r, c]                    c < the
//! narrower one's columns
//! ```
//!
//! Each is the other's backward.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `y [R, n]` from the columns `start..start + n` of `x [R, N]`, of one element type.
///
/// # Panics
/// If the rows or the element types do not agree, or `x` has fewer columns.
pub fn take(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, start: usize) {
    check(y.as_ref(), x, start);
    let _watch = device.watch("columns", || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::columns::take(cpu, y, x, start),
    }
}

/// The columns `start..start + n` of `y [R, N]` from `x [R, n]`, of one element type; others stay as they
/// are.
///
/// # Panics
/// If the rows or the element types do not agree, or `y` has fewer columns.
pub fn put(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, start: usize) {
    check(x, y.as_ref(), start);
    let _watch = device.watch("columns", || Work::bytes(2 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::columns::put(cpu, y, x, start),
    }
}

fn check(narrow: MatrixRef<'_>, wide: MatrixRef<'_>, start: usize) {
    assert_eq!(narrow.rows(), wide.rows(), "rows of a matrix and of its columns");
    assert_eq!(narrow.dtype(), wide.dtype(), "element types of a matrix and of its columns");
    let end = start + narrow.cols();
    assert!(end <= wide.cols(), "columns {start}..{end} of {}", wide.cols());
}
