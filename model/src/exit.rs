//! How what a half of a block computes, its branch, joins the residual stream: as it is, scaled, or behind a
//! norm.

use compute::ops::{copy, residual, scale};
use compute::{Matrix, Precision};

use crate::adapter::parameters::Parameters;
use crate::block::Pass;
use crate::config::Config;
use crate::memory::{Allocator, Component};
use crate::names::ModuleId;
use crate::norm::{self, Norm};

/// What the backward pass needs of the forward pass, where a norm stands behind the branch.
#[derive(Debug)]
pub(crate) struct Saved {
    norm: norm::Saved,
    branch: Matrix,
}

/// Buffers that every half uses in turn, where it does not join directly.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// The branch `[T, C]`, where it need not be saved.
    branch: Matrix,
    /// Its norm `[T, C]`.
    normed: Matrix,
    /// Its gradient `[T, C]`.
    dbranch: Matrix,
}

/// Whether the last layer of a half adds its product onto the residual stream by itself.
pub(crate) fn is_direct(config: &Config) -> bool {
    !config.norms.behind && config.residual_scale == 1.0
}

impl Saved {
    pub(crate) fn new(
        config: &Config,
        tokens: usize,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        let rows = if config.norms.behind { tokens } else { 0 };
        let (component, width) = (Component::Activations, config.hidden_size);
        let branch = allocator.matrix(component, rows, width, precision.dtype());
        Saved { norm: norm::Saved::new(config, rows, component, allocator), branch }
    }

    /// Where the branch goes.
    pub(crate) fn branch<'a>(&'a mut self, config: &Config, scratch: &'a mut Scratch) -> &'a mut Matrix {
        if config.norms.behind { &mut self.branch } else { &mut scratch.branch }
    }
}

impl Scratch {
    pub(crate) fn new(
        config: &Config,
        tokens: usize,
        training: bool,
        precision: Precision,
        allocator: &mut Allocator,
    ) -> Self {
        // Experts are summed before they join, whatever stands behind them.
        let apart = !is_direct(config) || config.experts.is_some();
        let mut buffer = |needed: bool| {
            let rows = if needed { tokens } else { 0 };
            allocator.matrix(Component::Workspace, rows, config.hidden_size, precision.dtype())
        };
        Scratch {
            branch: buffer(apart && !config.norms.behind),
            normed: buffer(config.norms.behind),
            dbranch: buffer(training && !is_direct(config)),
        }
    }
}

/// `y [T, C] = residual + scale * norm(branch)`, without the norm where there is none, of what
/// [`Saved::branch`] holds.
pub(crate) fn forward(
    pass: Pass<'_>,
    norm: Option<&Norm>,
    id: ModuleId,
    y: &mut Matrix,
    residual: &Matrix,
    saved: &mut Saved,
    scratch: &mut Scratch,
) {
    let Pass { run, config, batch, .. } = pass;
    let t = batch.tokens();
    let joining = match norm {
        None => scratch.branch.top(t),
        Some(norm) => {
            normalize(pass, norm, id, saved, scratch);
            scratch.normed.top(t)
        }
    };
    copy::copy(run.device, y.top_mut(t), residual.top(t));
    residual::add_scaled(run.device, y.top_mut(t), joining, config.residual_scale);
}

/// The norm of a branch, and what its backward pass needs.
pub(crate) fn normalize(pass: Pass<'_>, norm: &Norm, id: ModuleId, saved: &mut Saved, scratch: &mut Scratch) {
    let (t, Saved { norm: kept, branch }) = (pass.batch.tokens(), saved);
    norm.forward(pass.groups, pass.config, id, scratch.normed.top_mut(t), branch.top(t), kept);
}

/// The gradient of the branch `[T, C]` from that of the residual stream, `dx`, which stays as it is.
pub(crate) fn backward<'a>(
    pass: Pass<'_>,
    norm: Option<&Norm>,
    id: ModuleId,
    dx: &'a Matrix,
    saved: &Saved,
    scratch: &'a mut Scratch,
    gradients: &mut [Parameters],
) -> &'a Matrix {
    let Pass { run, groups, config, batch, .. } = pass;
    let t = batch.tokens();
    if is_direct(config) {
        return dx;
    }
    let dbranch = scratch.dbranch.top_mut(t);
    match norm {
        None => scale::apply(run.device, dbranch, dx.top(t), config.residual_scale),
        Some(norm) => {
            // No family has both a norm behind and a factor.
            let (x, kept) = (saved.branch.top(t), &saved.norm);
            norm.backward(groups, config, id, dbranch, false, dx.top(t), x, kept, gradients);
        }
    }
    &scratch.dbranch
}
