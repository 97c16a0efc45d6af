//! Rows that grow with their token's position: the queries of Ministral 3, as of Llama 4, beyond the context
//! of the first training.
//!
//! ```text
//! x[t, c] *= 1 + beta * ln(1 + floor(p_t / original))
//! ```
//!
//! The map is linear with a diagonal matrix, so it is its own backward.

use crate::profile::Work;
use crate::{DType, Device, Matrix, MatrixMut, VectorRef, cpu};

/// The factor of every position.
#[derive(Debug)]
pub struct PositionScale {
    /// `[1, positions]`
    pub(crate) factors: Matrix,
}

impl PositionScale {
    /// The factors of positions `0..positions`, in the memory of a device.
    ///
    /// # Panics
    /// If `original` is 0.
    pub fn new(device: &Device, beta: f64, original: usize, positions: usize) -> Self {
        let factor = |p: usize| 1.0 + beta as f32 * (1.0 + (p / original) as f32).ln();
        let mut factors = Matrix::unset(1, positions, DType::F32);
        factors.as_mut().f32().iter_mut().enumerate().for_each(|(p, value)| *value = factor(p));
        PositionScale { factors: device.take(factors) }
    }

    /// Bytes that the factors of so many positions take.
    pub fn size_bytes(positions: usize) -> usize {
        positions * size_of::<f32>()
    }
}

/// Scales every row of `x[T, C]` in place by the factor of its token's position.
///
/// # Panics
/// If there is not one position for each row, or one is beyond the table.
pub fn apply(device: &Device, x: MatrixMut<'_>, scale: &PositionScale, positions: VectorRef<'_, u32>) {
    assert_eq!(x.rows(), positions.len(), "rows and positions");
    let _watch =
        device.watch("scale by position", [x.home(), scale.factors.home(), positions.home()], || {
            Work::bytes(2 * x.size_bytes())
        });
    match device {
        Device::Cpu(cpu) => {
            let factors = scale.factors.as_ref().f32();
            let most = factors.len();
            let positions =
                positions.below(most, |_, p| format!("position {p} beyond the {most} of the table"));
            cpu::position_scale::apply(cpu, x, factors, positions);
        }
        Device::Null(_) => {}
    }
}
