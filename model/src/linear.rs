//! A linear layer `y = x Wᵀ + b`: the one place where how a weight is stored meets what is trained on it.

use std::ops::Range;

use compute::ops::matmul::{Epilogue, Factor, Product, Update, multiply};
use compute::ops::{bias, copy, magnitude};
use compute::quant::Quantized;
use compute::{Device, Matrix, MatrixMut, MatrixRef};

use crate::adapter::method::dora::{self, Place};
use crate::adapter::method::quantization_aware::Effective;
use crate::adapter::method::{full, lora};
use crate::adapter::parameters::{Dora, Lora, Parameters, Trained};
use crate::names::ModuleId;
use crate::run::{Group, Run};

/// How a frozen weight is stored.
#[derive(Debug)]
pub(crate) enum Weight {
    /// `f32` or `bf16`.
    Dense(Matrix),
    /// Codes.
    Quantized(Quantized),
}

impl Weight {
    pub(crate) fn as_ref(&self) -> BaseWeight<'_> {
        match self {
            Weight::Dense(weight) => BaseWeight::Dense(weight.as_ref()),
            Weight::Quantized(weight) => BaseWeight::Quantized(weight),
        }
    }
}

/// A frozen weight as the base has it.
#[derive(Clone, Copy, Debug)]
pub enum BaseWeight<'a> {
    /// `f32` or `bf16`.
    Dense(MatrixRef<'a>),
    /// Codes.
    Quantized(&'a Quantized),
}

impl<'a> BaseWeight<'a> {
    /// Rows and columns.
    pub(crate) fn size(self) -> (usize, usize) {
        match self {
            BaseWeight::Dense(weight) => (weight.rows(), weight.cols()),
            BaseWeight::Quantized(weight) => (weight.rows(), weight.cols()),
        }
    }

    /// Bytes in memory.
    pub fn size_bytes(self) -> usize {
        match self {
            BaseWeight::Dense(weight) => weight.rows() * weight.cols() * weight.dtype().size(),
            BaseWeight::Quantized(weight) => weight.size_bytes(),
        }
    }

    /// The weight of a part that is never quantized: norms, learned positions.
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
    pub(crate) effective: Effective,
    /// Of a frozen weight's product of the rows of several groups, before their updates; `f32`.
    pub(crate) sums: Matrix,
}

/// The most rows that groups go through a frozen weight with together, before each gets its update: of more the
/// tiles of each group are full enough.
pub(crate) const JOINT_ROWS: usize = 64;

/// Some rows of a batch on their way through a layer.
#[derive(Clone, Debug)]
pub(crate) struct Rows<'a> {
    /// Which rows; those behind them in a list begin where they end.
    pub(crate) range: Range<usize>,
    /// Through which layer they go ...
    pub(crate) linear: &'a Linear,
    /// ... what it is called ...
    pub(crate) module: ModuleId,
    /// ... with which adapter ...
    pub(crate) run: &'a Run<'a>,
    /// ... and of which group they are, whose gradients are added to.
    pub(crate) group: usize,
}

impl<'a> Rows<'a> {
    /// # Panics
    /// If a list is not of so many rows, one after the other.
    fn check(all: &[Rows<'_>], count: usize) {
        let end = all.iter().fold(0, |end, rows| {
            assert_eq!(rows.range.start, end, "rows of a list follow each other");
            rows.range.end
        });
        assert_eq!(end, count, "rows of a list and of its matrices");
    }

    /// The input of these rows and the layer's weight.
    fn forward_factors<'x>(&self, x: MatrixRef<'x>) -> (Factor<'x>, Factor<'x>)
    where
        'a: 'x,
    {
        (Factor::Plain(x.rows_range(self.range.clone())), self.weight().transposed())
    }

    fn trained(&self) -> Option<Trained> {
        self.run.adapter.and_then(|adapter| adapter.layout.get(self.module))
    }

    /// Whether they pass the base's own weight alone, by tiles.
    pub(crate) fn is_by_tiles_alone(&self) -> bool {
        self.run.by_tiles && self.trained().is_none()
    }

    /// The low-rank update of the layer, alone or in DoRA.
    pub(crate) fn lora(&self) -> Option<Lora> {
        self.trained().and_then(Trained::lora)
    }

    /// The key of the mask that drops inputs of the update, if there is one and this pass drops any.
    pub(crate) fn mask_key(&self) -> Option<u64> {
        self.lora().and_then(|_| self.run.mask_key(self.module))
    }

    pub(crate) fn dora(&self) -> Option<Dora> {
        match self.trained() {
            Some(Trained::Dora(dora)) => Some(dora),
            _ => None,
        }
    }

    /// The weight as the base has it, or as it is trained whole.
    pub(crate) fn weight(&self) -> BaseWeight<'a> {
        match self.trained() {
            Some(Trained::Full(full)) => BaseWeight::Dense(self.run.adapter().tensor(full.weight)),
            _ => self.linear.weight.as_ref(),
        }
    }

    fn bias(&self) -> Option<MatrixRef<'a>> {
        match self.trained() {
            Some(Trained::Full(full)) => full.bias.map(|index| self.run.adapter().tensor(index)),
            _ => self.linear.bias.as_ref().map(Matrix::as_ref),
        }
    }
}

impl Linear {
    /// [`forward`] of the rows of several groups through this layer.
    pub(crate) fn forward(
        &self,
        groups: &[Group<'_>],
        module: ModuleId,
        y: MatrixMut<'_>,
        accumulate: bool,
        x: MatrixRef<'_>,
        scratch: &mut Scratch,
    ) {
        forward(&self.rows_of(groups, module), y, accumulate, x, scratch);
    }

    /// [`backward`] of the rows of several groups through this layer.
    pub(crate) fn backward(
        &self,
        groups: &[Group<'_>],
        module: ModuleId,
        dx: Option<MatrixMut<'_>>,
        accumulate: bool,
        dy: MatrixRef<'_>,
        x: MatrixRef<'_>,
        gradients: &mut [Parameters],
        scratch: &mut Scratch,
    ) {
        backward(&self.rows_of(groups, module), dx, accumulate, dy, x, gradients, scratch);
    }

    fn rows_of<'a>(&'a self, groups: &'a [Group<'a>], module: ModuleId) -> Vec<Rows<'a>> {
        let rows = |(group, Group { rows, run }): (usize, &'a Group<'a>)| {
            let range = rows.clone();
            Rows { range, linear: self, module, run, group }
        };
        groups.iter().enumerate().map(rows).collect()
    }
}

/// `y [S, out] = x [S, in] Wᵀ + b`, or `y += ...` to add onto the residual stream: all rows together, each
/// through its layer and with what its adapter trains there.
pub(crate) fn forward(
    all: &[Rows<'_>],
    mut y: MatrixMut<'_>,
    accumulate: bool,
    x: MatrixRef<'_>,
    Scratch { lora, dora, effective, sums }: &mut Scratch,
) {
    Rows::check(all, x.rows());
    let Some(Rows { run, .. }) = all.first() else { return };
    if let Some(observed) = run.observed {
        observed.add(all, x);
    }
    let effective = effective.of(all);
    if effective.is_none() {
        lora.prepare(all, x);
    }
    let (mut rest, mut s, mut places) = (y.reborrow(), lora.s.as_mut(), dora.places(all, x.rows()));
    let products = all.iter().map(|rows| {
        let count = rows.range.len();
        let (to, s, place) = (rest.split_off_rows(count), s.split_off_rows(count), places.next(rows));
        let update = rows.lora().filter(|_| effective.is_none());
        let update = update.map(|trained| lora::update(rows, trained, x, &lora.prepared, s));
        let (x, w) = rows.forward_factors(x);
        let w = effective.map_or(w, Factor::QuantizedTransposed);
        let by_tiles = rows.run.by_tiles;
        let product = Product { update, by_tiles, ..Product::new((x, w), accumulate, to) };
        match place {
            None => product,
            Some(Place::Scaled(scale)) => {
                Product { epilogue: Epilogue { scale: Some(scale), bias: None }, ..product }
            }
            Some(Place::Apart(z)) => Product { accumulate: false, c: z, ..product },
        }
    });
    let products = products.collect();
    match effective.is_none() && goes_jointly(all, (x.rows(), sums.rows())) {
        false => multiply(run.device, run.precision, products),
        true => multiply_jointly(run, x, products, sums),
    }
    for rows in all {
        let mut y = y.reborrow().rows_range(rows.range.clone());
        if let Some(trained) = rows.dora() {
            dora.finish(rows, trained, y.reborrow(), accumulate);
        }
        if let Some(b) = rows.bias() {
            bias::add(run.device, y, b);
        }
    }
}

/// Whether rows of several groups are so few that their tiles would be nearly empty, and pass one frozen weight by
/// tiles: then they may pass it together.
fn goes_jointly(all: &[Rows<'_>], (rows, room): (usize, usize)) -> bool {
    let same = |of: &Rows<'_>| {
        let is_whole = matches!(of.trained(), Some(Trained::Full(_)));
        of.run.by_tiles && std::ptr::eq(of.linear, all[0].linear) && !is_whole
    };
    all.len() > 1 && rows <= room && all.iter().all(same)
}

/// The products of rows that all pass one frozen weight: that of all rows first, whose sums then go on in each
/// group's own product with its update. Each comes to the bytes that it comes to as one product.
fn multiply_jointly(run: &Run<'_>, x: MatrixRef<'_>, products: Vec<Product<'_>>, sums: &mut Matrix) {
    let Some(Product { b, c, .. }) = products.first() else { return };
    let (device, precision, by_tiles) = (run.device, run.precision, true);
    let mut sums = sums.as_mut().prefix(x.rows(), c.cols());
    let base = Product::new((Factor::Plain(x), *b), false, sums.reborrow());
    multiply(device, precision, vec![Product { by_tiles, ..base }]);
    let mut products = products;
    multiply(device, precision, products.iter_mut().filter_map(product_of_s).collect());
    let (sums, mut first) = (sums.as_ref(), 0);
    let go_on = products.iter_mut().map(|product| {
        let range = first..first + product.c.rows();
        first = range.end;
        let sums = sums.rows_range(range);
        let factors = match &product.update {
            Some(Update { s, second, .. }) => (Factor::Plain(s.as_ref()), *second),
            // Nothing goes on.
            None => (Factor::Plain(sums.cols_range(0..0)), Factor::Plain(sums.rows_range(0..0))),
        };
        let (accumulate, epilogue) = (product.accumulate, product.epilogue);
        let product = Product::new(factors, accumulate, product.c.reborrow());
        Product { sums: Some(sums), epilogue, by_tiles, ..product }
    });
    multiply(device, precision, go_on.collect());
}

/// What makes an update's `s`, if it is not there.
fn product_of_s<'p>(product: &'p mut Product<'_>) -> Option<Product<'p>> {
    let Update { first, scale, s, .. } = product.update.as_mut()?;
    let of_s = Product::new((product.a, first.take()?), false, s.reborrow());
    Some(Product { alpha: *scale, by_tiles: true, ..of_s })
}

/// Adds the gradients of what is trained on the layers of all rows and, if wanted, sets (or adds to)
/// `dx [S, in]`.
pub(crate) fn backward(
    all: &[Rows<'_>],
    mut dx: Option<MatrixMut<'_>>,
    accumulate: bool,
    dy: MatrixRef<'_>,
    x: MatrixRef<'_>,
    gradients: &mut [Parameters],
    Scratch { lora, dora, effective, .. }: &mut Scratch,
) {
    Rows::check(all, x.rows());
    let Some(Rows { run, module, .. }) = all.first() else { return };
    let (device, precision) = (run.device, run.precision);
    let effective = dx.as_ref().and_then(|_| effective.of(all));
    lora.prepare(all, x);
    if all.iter().any(|rows| rows.dora().is_some()) {
        if !dora.has_products(*module) {
            // Another layer has used their place since: they are made again.
            let (mut s, mut places) = (lora.s.as_mut(), dora.places(all, x.rows()));
            let again = all.iter().filter_map(|rows| {
                let (s, place) = (s.split_off_rows(rows.range.len()), places.next(rows));
                let (Some(trained), Some(Place::Apart(z))) = (rows.lora(), place) else { return None };
                let update = Some(lora::update(rows, trained, x, &lora.prepared, s));
                Some(Product { update, ..Product::new(rows.forward_factors(x), false, z) })
            });
            multiply(device, precision, again.collect());
        }
        for rows in all {
            if let Some(trained) = rows.dora() {
                dora.backward(rows, trained, dy.rows_range(rows.range.clone()), &mut gradients[rows.group]);
            }
        }
        dora.forget_products(*module);
    }
    // The gradients of the products: of what DoRA scales they are its own.
    let of_product = |rows: &Rows<'_>| match rows.dora() {
        Some(trained) => dora.product_gradient(rows, trained),
        None => dy.rows_range(rows.range.clone()),
    };
    if let Some(dx) = &mut dx {
        let (mut rest, mut ds) = (dx.reborrow(), lora.ds.as_mut());
        let products = all.iter().map(|rows| {
            let (to, ds) = (rest.split_off_rows(rows.range.len()), ds.split_off_rows(rows.range.len()));
            let update = rows.lora().filter(|_| effective.is_none());
            let update = update.and_then(|trained| lora::input_gradient(rows, trained, ds));
            let weight = effective.map_or_else(|| rows.weight().plain(), Factor::Quantized);
            let factors = (Factor::Plain(of_product(rows)), weight);
            Product { update, ..Product::new(factors, accumulate, to) }
        });
        multiply(device, precision, products.collect());
    }
    for rows in all {
        let (dy, gradients) = (of_product(rows), &mut gradients[rows.group]);
        // Through a weight that holds the update all of its gradient has gone.
        let dx = dx.as_mut().filter(|_| effective.is_none());
        let dx = dx.map(|dx| dx.reborrow().rows_range(rows.range.clone()));
        if let Some(trained) = rows.lora() {
            lora::backward(rows, trained, dx, dy, x, gradients, lora);
        } else if let Some(Trained::Full(copy)) = rows.trained() {
            full::backward(rows.run, copy, dy, x.rows_range(rows.range.clone()), gradients);
        }
    }
}
