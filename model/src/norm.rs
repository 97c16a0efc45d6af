//! A norm, of whichever kind the family has: of the residual stream, of what joins it, or of queries and
//! keys.

use compute::ops::layer_norm;
use compute::ops::rms_norm::{self, Offset};
use compute::{DType, Matrix, MatrixMut, MatrixRef};

use crate::adapter::parameters::Parameters;
use crate::config::{Config, NormKind};
use crate::memory::{Allocator, Component};
use crate::names::ModuleId;
use crate::run::{Run, gradients_of};

/// Frozen weights.
#[derive(Debug)]
pub(crate) struct Norm {
    /// `[1, width]`
    pub(crate) weight: Matrix,
    /// `[1, width]`, of a layer norm.
    pub(crate) bias: Option<Matrix>,
}

/// What the backward pass needs of the forward pass, a number for each row.
#[derive(Debug)]
pub(crate) struct Saved {
    rstd: Matrix,
    /// Of a layer norm.
    mean: Matrix,
}

impl Saved {
    pub(crate) fn new(config: &Config, rows: usize, component: Component, allocator: &mut Allocator) -> Self {
        let means = if config.norm == NormKind::Layer { rows } else { 0 };
        let mut of_rows = |rows| allocator.matrix(component, rows, 1, DType::F32);
        Saved { rstd: of_rows(rows), mean: of_rows(means) }
    }
}

impl Norm {
    /// `y [T, width] = norm(x)`.
    pub(crate) fn forward(
        &self,
        run: &Run<'_>,
        config: &Config,
        id: ModuleId,
        y: MatrixMut<'_>,
        x: MatrixRef<'_>,
        saved: &mut Saved,
    ) {
        let (device, eps, rows) = (run.device, config.norm_eps, x.rows());
        let (weight, bias) = self.parameters(run, id);
        let rstd = saved.rstd.top_mut(rows);
        match offset(config.norm) {
            Some(offset) => rms_norm::forward(device, y, x, weight, offset, eps, rstd),
            None => layer_norm::forward(device, y, x, weight, bias, eps, saved.mean.top_mut(rows), rstd),
        }
    }

    /// `dx [T, width]`, or what is added to it, from `dy` and the input of [`Norm::forward`]; and the
    /// gradients of what is trained.
    pub(crate) fn backward(
        &self,
        run: &Run<'_>,
        config: &Config,
        id: ModuleId,
        dx: MatrixMut<'_>,
        accumulate: bool,
        dy: MatrixRef<'_>,
        x: MatrixRef<'_>,
        saved: &Saved,
        gradients: &mut Parameters,
    ) {
        let (device, rows) = (run.device, x.rows());
        let (weight, _) = self.parameters(run, id);
        let (dweight, dbias) = gradients_of(run, id, gradients);
        let rstd = saved.rstd.top(rows);
        match offset(config.norm) {
            Some(offset) => rms_norm::backward(device, dx, accumulate, dy, x, weight, offset, rstd, dweight),
            None => {
                let mean = saved.mean.top(rows);
                layer_norm::backward(device, dx, accumulate, dy, x, weight, mean, rstd, dweight, dbias);
            }
        }
    }

    fn parameters<'a>(&'a self, run: &Run<'a>, id: ModuleId) -> (MatrixRef<'a>, Option<MatrixRef<'a>>) {
        (run.weight(id, &self.weight), run.bias(id, self.bias.as_ref()))
    }
}

/// What an RMS norm adds to its weight; none: a layer norm.
fn offset(kind: NormKind) -> Option<Offset> {
    match kind {
        NormKind::Rms => Some(Offset::None),
        NormKind::RmsPlusOne => Some(Offset::One),
        NormKind::Layer => None,
    }
}
