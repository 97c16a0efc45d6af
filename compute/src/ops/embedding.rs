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
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// `y[T, C] = table[ids]`. The table may be of another element type than `y`.
///
/// # Panics
/// If the shapes do not agree or an id is not a row of the table.
pub fn forward(device: &Device, y: MatrixMut<'_>, table: MatrixRef<'_>, ids: &[u32]) {
    check(y.rows(), y.cols(), table.rows(), table.cols(), ids);
    let _watch = device.watch("embedding", || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::embedding::forward(cpu, y, table, ids),
    }
}

/// `y[T, C] += table[ids]`: learned positions on top of tokens. As [`forward`] otherwise.
///
/// # Panics
/// As [`forward`].
pub fn add(device: &Device, y: MatrixMut<'_>, table: MatrixRef<'_>, ids: &[u32]) {
    check(y.rows(), y.cols(), table.rows(), table.cols(), ids);
    let _watch = device.watch("embedding", || Work::bytes(3 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::embedding::add(cpu, y, table, ids),
    }
}

/// `dtable[V, C] += dy[T, C]`, row by row; `dtable` is `f32`.
///
/// # Panics
/// If the shapes do not agree or an id is not a row of the table.
pub fn backward(device: &Device, dtable: MatrixMut<'_>, dy: MatrixRef<'_>, ids: &[u32]) {
    check(dy.rows(), dy.cols(), dtable.rows(), dtable.cols(), ids);
    let _watch = device.watch("embedding backward", || Work::bytes(3 * dy.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::embedding::backward(cpu, dtable, dy, ids),
    }
}

fn check(tokens: usize, width: usize, vocabulary: usize, table_width: usize, ids: &[u32]) {
    assert_eq!(tokens, ids.len(), "rows of an embedding and token ids");
    assert_eq!(width, table_width, "width of an embedding and of its table");
    if let Some((t, id)) = ids.iter().enumerate().find(|&(_, &id)| id as usize >= vocabulary) {
        panic!("token {t} has id {id}, but the embedding table has {vocabulary} rows");
    }
}
