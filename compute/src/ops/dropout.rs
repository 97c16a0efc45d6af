//! Dropout with a mask that is a function of a key, the name of the row and the column, so that it need not
//! be kept, and does not depend on what else is in the batch.
//!
//! ```text
//! y[t, c] (+)= keep(key, rows[t], c) ? x[t, c] / (1 - p) : 0
//! ```
//!
//! `keep` is true with probability `1 - p`: the upper 32 bits of
//! [`bits`](crate::random::bits)`(`[`key`](crate::random::key)`(key, rows[t]), c)` are compared with `p *
//! 2³²`. The map is linear with a diagonal matrix, so it is its own backward: the same call with the same key
//! turns `dy` into `dx`.

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, VectorRef, cpu};

/// `y[T, C] = mask * x[T, C] / (1 - p)`, or `y += ...` if `accumulate`; with `p = 0` nothing is dropped.
/// `rows[T]` are the rows' names.
///
/// # Panics
/// If the shapes or the element types do not agree, or `p` is not in `0..1`.
pub fn apply(
    device: &Device,
    y: MatrixMut<'_>,
    x: MatrixRef<'_>,
    p: f32,
    (key, rows): (u64, VectorRef<'_, u64>),
    accumulate: bool,
) {
    assert_eq!(x.rows(), rows.len(), "rows of a dropout and their names");
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of a dropout's result and input");
    assert!((0.0..1.0).contains(&p), "a dropout probability of {p} is not in 0..1");
    let _watch = device.watch("dropout", [y.home(), x.home(), rows.home()], || {
        Work::bytes(x.size_bytes() * if accumulate { 3 } else { 2 })
    });
    match device {
        Device::Cpu(cpu) => cpu::dropout::apply(cpu, y, x, p, (key, rows.host()), accumulate),
        Device::Null(_) => {}
    }
}
