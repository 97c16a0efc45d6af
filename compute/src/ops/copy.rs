//! Moving elements without changing them, but for their type.
//!
//! ```text
//! copy:    y[r, c] = x[r, c]                fill:     y[r, c] = value
//! gather:  y[r, c] = x[rows[r], c]          scatter:  y[rows[r], c] = x[r, c]
//! ```
//!
//! `x` and `y` may be parts of wider matrices, such as the columns of queries in what a fused projection
//! gives; of two element types, `bf16` rounds to nearest even. Of a copy to such a part the copy from it is
//! the backward, and of gathering rows it is scattering the gradients of rows that are taken once at most.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, VectorRef, cpu};

/// `y[R, N] = x[R, N]`.
///
/// # Panics
/// If the shapes do not agree.
pub fn copy(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>) {
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of a copy and its source");
    let _watch = device.watch("copy", [y.home(), x.home()], || Work::bytes(y.size_bytes() + x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::copy::copy(cpu, y, x),
        Device::Null(_) => {}
    }
}

/// `y[R, N] = value`.
pub fn fill(device: &Device, y: MatrixMut<'_>, value: f32) {
    let _watch = device.watch("fill", [y.home()], || Work::bytes(y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::copy::fill(cpu, y, value),
        Device::Null(_) => {}
    }
}

/// `y[R, N]`: these rows of `x[T, N]`.
///
/// # Panics
/// If the shapes do not agree or there is no such row.
pub fn gather(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, rows: VectorRef<'_, u32>) {
    check(y.as_ref(), x, rows);
    let homes = [y.home(), x.home(), rows.home()];
    let _watch = device.watch("gather rows", homes, || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::copy::gather(cpu, y, x, places(rows, x.rows())),
        Device::Null(_) => {}
    }
}

/// These rows of `y[T, N]` become those of `x[R, N]`; others stay as they are. The last one counts where a
/// row is named twice.
///
/// # Panics
/// If the shapes do not agree or there is no such row.
pub fn scatter(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, rows: VectorRef<'_, u32>) {
    check(x, y.as_ref(), rows);
    let homes = [y.home(), x.home(), rows.home()];
    let _watch = device.watch("scatter rows", homes, || Work::bytes(2 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => {
            let rows = places(rows, y.rows());
            cpu::copy::scatter(cpu, y, x, rows);
        }
        Device::Null(_) => {}
    }
}

fn check(some: MatrixRef<'_>, all: MatrixRef<'_>, rows: VectorRef<'_, u32>) {
    assert_eq!(some.rows(), rows.len(), "rows and their numbers");
    assert_eq!(some.cols(), all.cols(), "widths of rows and of the matrix that they are of");
}

/// Numbers that the host can read, all below `rows`.
fn places(numbers: VectorRef<'_, u32>, rows: usize) -> &[u32] {
    numbers.below(rows, |_, row| format!("row {row} of {rows}"))
}
