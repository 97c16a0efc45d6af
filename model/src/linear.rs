//! A linear layer `y = x Wᵀ + b`: the one place where how a weight is stored meets what is trained on it.

use compute::ops::matmul::{Epilogue, Factor, matmul};
use compute::ops::{bias, copy, magnitude};
use compute::quant::Quantized;
use compute::{Device, Matrix, MatrixMut, MatrixRef};

use crate::adapter::method::{dora, full, lora};
use crate::adapter::parameters::{Parameters, Trained};
use crate::names::ModuleId;
use crate::run::{Group, Run};

/// How a frozen weight is stored.
#[derive(Debug)]
pub(crate) enum Weight {
    /// `f32` or `bf16`.
    Dense(Matrix),
    /// Four bits an element.
    Quantized(Quantized),
}

impl Weight {
    pub(crate) fn as_ref(&self) -> BaseWeight<'_> {
        match self {
            Weight::Dense(weight) => BaseWeight::Dense(weight.as_ref()),
            Weight::Quantized(weight) => BaseWeight::Quantized(weight),
        }
    }

    /// A weight that is never quantized.
    pub(crate) fn dense(&self) -> &Matrix {
        match self {
            Weight::Dense(weight) => weight,
            Weight::Quantized(weight) => panic!("{weight:?} where a dense weight is needed"),
        }
    }
}

/// A frozen weight as the base has it.
#[derive(Clone, Copy, Debug)]
pub enum BaseWeight<'a> {
    /// `f32` or `bf16`.
    Dense(MatrixRef<'a>),
    /// Four bits an element.
    Quantized(&'a Quantized),
}

impl<'a> BaseWeight<'a> {
    /// Bytes in memory.
    pub fn size_bytes(self) -> usize {
        match self {
            BaseWeight::Dense(weight) => weight.rows() * weight.cols() * weight.dtype().size(),
            BaseWeight::Quantized(weight) => weight.size_bytes(),
        }
    }

    /// The weight of a part that is never quantized: embeddings, norms, the head.
    ///
    /// # Panics
    /// If it is.
    pub fn dense(self) -> MatrixRef<'a> {
        match self {
            BaseWeight::Dense(weight) => weight,
            BaseWeight::Quantized(weight) => panic!("{weight:?} where a dense weight is needed"),
        }
    }

    /// Its values.
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub fn copy_to(self, device: &Device, to: MatrixMut<'_>) {
        match self {
            BaseWeight::Dense(weight) => copy::copy(device, to, weight),
            BaseWeight::Quantized(weight) => weight.dequantize_rows(device, 0..weight.rows(), to),
        }
    }

    /// `W`, to measure its rows.
    pub(crate) fn rows(self) -> magnitude::Weight<'a> {
        match self {
            BaseWeight::Dense(weight) => magnitude::Weight::Dense(weight),
            BaseWeight::Quantized(weight) => magnitude::Weight::Quantized(weight),
        }
    }

    /// `W`, as the right factor of a product.
    pub(crate) fn plain(self) -> Factor<'a> {
        match self {
            BaseWeight::Dense(weight) => Factor::Plain(weight),
            BaseWeight::Quantized(weight) => Factor::Quantized(weight),
        }
    }

    /// `Wᵀ`, as the right factor of a product.
    pub(crate) fn transposed(self) -> Factor<'a> {
        match self {
            BaseWeight::Dense(weight) => Factor::Transposed(weight),
            BaseWeight::Quantized(weight) => Factor::QuantizedTransposed(weight),
        }
    }
}

/// A frozen linear layer.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`, as in the checkpoint.
    pub(crate) weight: Weight,
    /// `[1, out]`, for the families that have one.
    pub(crate) bias: Option<Matrix>,
}

/// Buffers that every linear layer uses in turn, for the methods that a layout has.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) lora: lora::Buffers,
    pub(crate) dora: dora::Memory,
}

impl Linear {
    /// `y [T, out] = x [T, in] Wᵀ + b`, or `y += ...` to add onto the residual stream, with what each group
    /// of rows trains on `module`.
    pub(crate) fn forward(
        &self,
        groups: &[Group<'_>],
        module: ModuleId,
        mut y: MatrixMut<'_>,
        accumulate: bool,
        x: MatrixRef<'_>,
        scratch: &mut Scratch,
    ) {
        for Group { rows, run } in groups {
            let (y, x) = (y.reborrow().rows_range(rows.clone()), x.rows_range(rows.clone()));
            scratch.lora.first_row = rows.start;
            self.forward_rows(run, module, y, accumulate, x, scratch);
        }
        if groups.len() > 1 {
            // The groups of rows have used one place for their products.
            scratch.dora.forget(module);
        }
    }

    /// [`Linear::forward`] of rows of one group.
    pub(crate) fn forward_rows(
        &self,
        run: &Run<'_>,
        module: ModuleId,
        mut y: MatrixMut<'_>,
        accumulate: bool,
        x: MatrixRef<'_>,
        scratch: &mut Scratch,
    ) {
        let trained = run.adapter.and_then(|a| a.layout.get(module));
        let weight = self.weight(run, trained);
        let w = weight.transposed();
        match trained {
            Some(Trained::Lora(update)) => {
                lora::forward(
                    run,
                    update,
                    run.mask_key(module),
                    y.reborrow(),
                    accumulate,
                    (x, w),
                    Epilogue::default(),
                    &mut scratch.lora,
                );
            }
            Some(Trained::Dora(update)) => {
                dora::forward(run, update, module, y.reborrow(), accumulate, (x, weight), scratch);
            }
            Some(Trained::Full(_)) | None => {
                matmul(run.device, run.precision, 1.0, Factor::Plain(x), w, accumulate, y.reborrow());
            }
        }
        if let Some(b) = self.bias(run, trained) {
            bias::add(run.device, y, b);
        }
    }

    /// Adds the gradients of what each group trains on `module` and, if wanted, sets (or adds to)
    /// `dx [T, in]`.
    pub(crate) fn backward(
        &self,
        groups: &[Group<'_>],
        module: ModuleId,
        mut dx: Option<MatrixMut<'_>>,
        accumulate: bool,
        dy: MatrixRef<'_>,
        x: MatrixRef<'_>,
        gradients: &mut [Parameters],
        scratch: &mut Scratch,
    ) {
        for (Group { rows, run }, gradients) in groups.iter().zip(gradients) {
            let dx = dx.as_mut().map(|dx| dx.reborrow().rows_range(rows.clone()));
            let (dy, x) = (dy.rows_range(rows.clone()), x.rows_range(rows.clone()));
            scratch.lora.first_row = rows.start;
            self.backward_rows(run, module, dx, accumulate, dy, x, gradients, scratch);
        }
    }

    /// [`Linear::backward`] of rows of one group.
    pub(crate) fn backward_rows(
        &self,
        run: &Run<'_>,
        module: ModuleId,
        dx: Option<MatrixMut<'_>>,
        accumulate: bool,
        dy: MatrixRef<'_>,
        x: MatrixRef<'_>,
        gradients: &mut Parameters,
        scratch: &mut Scratch,
    ) {
        let trained = run.adapter.and_then(|a| a.layout.get(module));
        let weight = self.weight(run, trained);
        let (w, dx) = (weight.plain(), dx.map(|dx| (dx, accumulate)));
        match trained {
            Some(Trained::Lora(update)) => {
                let key = run.mask_key(module);
                lora::backward(run, update, key, dx, (dy, w), x, gradients, &mut scratch.lora);
            }
            Some(Trained::Dora(update)) => {
                dora::backward(run, update, module, dx, (dy, weight), x, gradients, scratch);
            }
            Some(Trained::Full(_)) | None => {
                if let Some((dx, accumulate)) = dx {
                    matmul(run.device, run.precision, 1.0, Factor::Plain(dy), w, accumulate, dx);
                }
                if let Some(Trained::Full(copy)) = trained {
                    full::backward(run, copy, dy, x, gradients);
                }
            }
        }
    }

    fn weight<'a>(&'a self, run: &Run<'a>, trained: Option<Trained>) -> BaseWeight<'a> {
        match trained {
            Some(Trained::Full(full)) => BaseWeight::Dense(run.adapter().tensor(full.weight)),
            _ => self.weight.as_ref(),
        }
    }

    fn bias<'a>(&'a self, run: &Run<'a>, trained: Option<Trained>) -> Option<MatrixRef<'a>> {
        match trained {
            Some(Trained::Full(full)) => full.bias.map(|index| run.adapter().tensor(index)),
            _ => self.bias.as_ref().map(Matrix::as_ref),
        }
    }
}
