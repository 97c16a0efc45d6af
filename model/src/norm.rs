//! A norm, of whichever kind the family has: of the residual stream, of what joins it, or of queries and
//! keys.

use std::ops::Range;

use compute::ops::layer_norm;
use compute::ops::rms_norm::{self, Offset};
use compute::{DType, Matrix, MatrixMut, MatrixRef};

use crate::adapter::parameters::Parameters;
use crate::config::{Config, NormKind};
use crate::memory::{Allocator, Component};
use crate::names::ModuleId;
use crate::run::{Group, Run, gradients_of};

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
    /// `y [N, width] = norm(x)`, `N` a multiple of the rows that groups have together, with what each of them
    /// trains on `id`.
    pub(crate) fn forward(
        &self,
        groups: &[Group<'_>],
        config: &Config,
        id: ModuleId,
        mut y: MatrixMut<'_>,
        x: MatrixRef<'_>,
        saved: &mut Saved,
    ) {
        for (rows, group) in parts(groups, id, x.rows()) {
            let (y, x) = (y.reborrow().rows_range(rows.clone()), x.rows_range(rows.clone()));
            self.forward_rows(&groups[group].run, config, id, y, x, saved, rows.start);
        }
    }

    /// [`Norm::forward`] of rows of one group, of which `first` is the first one that something is saved of.
    pub(crate) fn forward_rows(
        &self,
        run: &Run<'_>,
        config: &Config,
        id: ModuleId,
        y: MatrixMut<'_>,
        x: MatrixRef<'_>,
        saved: &mut Saved,
        first: usize,
    ) {
        let (device, eps, rows) = (run.device, config.norm_eps, first..first + x.rows());
        let (weight, bias) = self.parameters(run, id);
        let rstd = saved.rstd.as_mut().rows_range(rows.clone());
        match offset(config.norm) {
            Some(offset) => rms_norm::forward(device, y, x, weight, offset, eps, rstd),
            None => {
                let mean = saved.mean.as_mut().rows_range(rows);
                layer_norm::forward(device, y, x, weight, bias, eps, mean, rstd);
            }
        }
    }

    /// `dx [T, width]`, or what is added to it, from `dy` and the input of [`Norm::forward`]; and the
    /// gradients of what is trained.
    pub(crate) fn backward(
        &self,
        groups: &[Group<'_>],
        config: &Config,
        id: ModuleId,
        mut dx: MatrixMut<'_>,
        accumulate: bool,
        dy: MatrixRef<'_>,
        x: MatrixRef<'_>,
        saved: &Saved,
        gradients: &mut [Parameters],
    ) {
        for (rows, group) in parts(groups, id, x.rows()) {
            let dx = dx.reborrow().rows_range(rows.clone());
            let (dy, x) = (dy.rows_range(rows.clone()), x.rows_range(rows.clone()));
            let (run, gradients) = (&groups[group].run, &mut gradients[group]);
            self.backward_rows(run, config, id, dx, accumulate, dy, x, saved, rows.start, gradients);
        }
    }

    /// [`Norm::backward`] of rows of one group, of which `first` is the first one that something was saved
    /// of.
    pub(crate) fn backward_rows(
        &self,
        run: &Run<'_>,
        config: &Config,
        id: ModuleId,
        dx: MatrixMut<'_>,
        accumulate: bool,
        dy: MatrixRef<'_>,
        x: MatrixRef<'_>,
        saved: &Saved,
        first: usize,
        gradients: &mut Parameters,
    ) {
        let (device, rows) = (run.device, first..first + x.rows());
        let (weight, _) = self.parameters(run, id);
        let (dweight, dbias) = gradients_of(run, id, gradients);
        let rstd = saved.rstd.as_ref().rows_range(rows.clone());
        match offset(config.norm) {
            Some(offset) => rms_norm::backward(device, dx, accumulate, dy, x, weight, offset, rstd, dweight),
            None => {
                let mean = saved.mean.as_ref().rows_range(rows);
                layer_norm::backward(device, dx, accumulate, dy, x, weight, mean, rstd, dweight, dbias);
            }
        }
    }

    fn parameters<'a>(&'a self, run: &Run<'a>, id: ModuleId) -> (MatrixRef<'a>, Option<MatrixRef<'a>>) {
        (run.weight(id, &self.weight), run.bias(id, self.bias.as_ref()))
    }
}

/// The rows that share a norm's weight, each with a group whose it is: all of them where no group trains it.
fn parts(groups: &[Group<'_>], id: ModuleId, rows: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
    let all = groups.last().map_or(0, |group| group.rows.end);
    let is_trained = |group: &Group<'_>| group.run.adapter.is_some_and(|a| a.full(id).is_some());
    let apart = groups.len() > 1 && groups.iter().any(is_trained);
    let times = rows.checked_div(all).unwrap_or(0);
    let one = (!apart).then_some((0..rows, 0));
    let each = groups.iter().map(move |Group { rows, .. }| rows.start * times..rows.end * times).zip(0..);
    one.into_iter().chain(each.filter(move |_| apart))
}

/// What an RMS norm adds to its weight; none: a layer norm.
fn offset(kind: NormKind) -> Option<Offset> {
    match kind {
        NormKind::Rms => Some(Offset::None),
        NormKind::RmsPlusOne => Some(Offset::One),
        NormKind::Layer => None,
    }
}
