//! Rows that grow with their token's position: the queries of Ministral 3, as of Llama 4, beyond the context
//! of the first training.
//!
//! ```text
//! x[t, c] *= 1 + beta * ln(1 + floor(p_t / original))
//! ```
//!
//! The map is linear with a diagonal matrix, so it is its own backward.

use crate::profile::Work;
use crate::{Device, MatrixMut, cpu};

/// The factor of every position.
#[derive(Clone, Debug)]
pub struct PositionScale {
    pub(crate) factors: Vec<f32>,
}

impl PositionScale {
    /// The factors of positions `0..positions`.
    ///
    /// # Panics
    /// If `original` is 0.
    pub fn new(beta: f64, original: usize, positions: usize) -> Self {
        let factor = |p: usize| 1.0 + beta as f32 * (1.0 + (p / original) as f32).ln();
        PositionScale { factors: (0..positions).map(factor).collect() }
    }
}

/// Scales every row of `x[T, C]` in place by the factor of its token's position.
///
/// # Panics
/// If there is not one position for each row, or one is beyond the table.
pub fn apply(device: &Device, x: MatrixMut<'_>, scale: &PositionScale, positions: &[u32]) {
    assert_eq!(x.rows(), positions.len(), "rows and positions");
    let most = scale.factors.len();
    assert!(positions.iter().all(|&p| (p as usize) < most), "a position beyond the {most} of the table");
    let _watch = device.watch("scale by position", || Work::bytes(2 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::position_scale::apply(cpu, x, scale, positions),
    }
}
