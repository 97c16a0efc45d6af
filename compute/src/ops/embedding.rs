//! The table that turns token ids into rows.
//!
//! Forward, `y[T, C]`, `table[V, C]`, `ids[T]`:
//!
//! ```text
//! y[t] = table[ids[t]]                y[t] += table[ids[t]]
//! ```
//!
//! Backward: a row of the table collects the gradients of the tokens that used it, in the order of the
//! tokens.
//!
//! ```text
//! dtable[v] += Σ_{t: ids[t] = v} dy[t]
//! ```

use crate::profile::Work;
use crate::quant::Quantized;
use crate::{Device, MatrixMut, MatrixRef, VectorRef, cpu};

/// `y[T, C] = table[ids]`. The table may be of another element type than `y`.
///
/// # Panics
/// If the shapes do not agree or an id is not a row of the table.
pub fn forward(device: &Device, y: MatrixMut<'_>, table: MatrixRef<'_>, ids: VectorRef<'_, u32>) {
    check(y.as_ref(), table, ids);
    let _watch =
        device.watch("embedding", [y.home(), table.home(), ids.home()], || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::embedding::forward(cpu, y, table, places(ids, table.rows())),
        Device::Null(_) => {}
    }
}

/// [`forward`] of a table of codes.
///
/// # Panics
/// As [`forward`].
pub fn forward_quantized(device: &Device, y: MatrixMut<'_>, table: &Quantized, ids: VectorRef<'_, u32>) {
    assert_eq!((y.rows(), y.cols()), (ids.len(), table.cols()), "rows and columns of an embedding");
    let homes = [y.home(), table.home(), ids.home()];
    let _watch = device.watch("embedding", homes, || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::embedding::forward_quantized(cpu, y, table, places(ids, table.rows())),
        Device::Null(_) => {}
    }
}

/// `y[T, C] += table[ids]`: learned positions on top of tokens. As [`forward`] otherwise.
///
/// # Panics
/// As [`forward`].
pub fn add(device: &Device, y: MatrixMut<'_>, table: MatrixRef<'_>, ids: VectorRef<'_, u32>) {
    check(y.as_ref(), table, ids);
    let _watch =
        device.watch("embedding", [y.home(), table.home(), ids.home()], || Work::bytes(3 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::embedding::add(cpu, y, table, places(ids, table.rows())),
        Device::Null(_) => {}
    }
}

/// `dtable[V, C] += dy[T, C]`, row by row; `dtable` is `f32`.
///
/// # Panics
/// If the shapes do not agree or an id is not a row of the table.
pub fn backward(device: &Device, dtable: MatrixMut<'_>, dy: MatrixRef<'_>, ids: VectorRef<'_, u32>) {
    check(dy, dtable.as_ref(), ids);
    let _watch = device.watch("embedding backward", [dtable.home(), dy.home(), ids.home()], || {
        Work::bytes(3 * dy.size_bytes())
    });
    match device {
        Device::Cpu(cpu) => {
            let ids = places(ids, dtable.rows());
            cpu::embedding::backward(cpu, dtable, dy, ids);
        }
        Device::Null(_) => {}
    }
}

fn check(tokens: MatrixRef<'_>, table: MatrixRef<'_>, ids: VectorRef<'_, u32>) {
    assert_eq!(tokens.rows(), ids.len(), "rows of an embedding and token ids");
    assert_eq!(tokens.cols(), table.cols(), "width of an embedding and of its table");
}

/// Ids that the host can read, all of them rows of the table.
fn places(ids: VectorRef<'_, u32>, vocabulary: usize) -> &[u32] {
    let wrong = |t, id| format!("token {t} has id {id}, but the embedding table has {vocabulary} rows");
    ids.below(vocabulary, wrong)
}
