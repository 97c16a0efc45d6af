//! What the layers below everything that is trained give for an example: a function of its tokens alone, so
//! that it is kept where the example comes again, in the next epoch or the next evaluation, and these layers
//! are not run again.
//!
//! An example's rows do not depend on what else is in the batch, to the byte, as long as the batch is not
//! tiny (a device sums products of a few rows in another order). So tiny batches take no part, and whoever
//! makes a batch need not care which of its examples were together before. Of a layer with experts this does
//! not hold: how many rows an expert gets depends on the whole batch, and few they often are. So nothing is
//! kept behind such a layer.

use std::ops::Range;
use std::path::Path;

use compute::ops::copy;
use compute::ops::matmul::FEW_ROWS;
use compute::{DType, Device, MatrixMut, MatrixRef, Precision};

use crate::adapter::parameters::Layout;
use crate::arena::{self, Arena};
use crate::batch::Batch;
use crate::config::{Config, Mlp};
use crate::error::Result;
use crate::memory::{Allocator, Component};

/// What the file of pages is called while it has a name.
const PAGES: &str = ".frozen.pages.tmp";
/// The largest page, in words: examples share pages and come in any order, so that more would be read than is
/// asked for.
const LARGEST_PAGE: usize = 1 << 14;

/// How much is to be kept of the examples of a run.
#[derive(Clone, Copy, Debug)]
pub struct FrozenExtent<'a> {
    /// The tokens of each example, 0 for one that is not kept. A batch names its examples by their places
    /// here.
    pub lengths: &'a [usize],
    /// Bytes that may be in memory, [`arena::SMALLEST`] at least; the rest lies in a file.
    pub memory: u64,
}

/// The residual stream `[tokens, C]` behind the frozen layers, of every example that is to be kept.
#[derive(Debug)]
pub struct FrozenActivations {
    arena: Arena,
    dtype: DType,
    width: usize,
    /// Elements of a page.
    elements: usize,
    /// Layers below the lowest that is trained.
    layers: usize,
    /// The first row of each example, and behind the last one the number of rows.
    starts: Vec<usize>,
    /// Which examples are there.
    filled: Vec<bool>,
}

impl FrozenActivations {
    /// Room for what the layers below an adapter of this layout give for these examples; none if there is no
    /// such layer ([`FrozenActivations::layers_of`]) or no such example.
    pub fn new(
        config: &Config,
        layout: &Layout,
        precision: Precision,
        extent: FrozenExtent<'_>,
        allocator: &mut Allocator,
    ) -> Option<Self> {
        let FrozenExtent { lengths, memory } = extent;
        let (layers, width, dtype) =
            (FrozenActivations::layers_of(config, layout), config.hidden_size, precision.dtype());
        let (mut starts, mut rows) = (vec![0], 0usize);
        for &length in lengths {
            rows = rows.saturating_add(length);
            starts.push(rows);
        }
        if layers == 0 || rows == 0 {
            return None;
        }
        // Examples lie end to end, so that only the sum of their lengths counts.
        let words = rows.saturating_mul(width).saturating_mul(dtype.size()).div_ceil(4);
        let most = arena::page_words(Some(memory)).min(LARGEST_PAGE).min(words);
        let runs = [(words / most, most), (usize::from(!words.is_multiple_of(most)), words % most)];
        let arena = Arena::new(&runs, Some(memory), Component::FrozenActivations, allocator);
        let (elements, filled) = (4 * most / dtype.size(), vec![false; lengths.len()]);
        Some(FrozenActivations { arena, dtype, width, elements, layers, starts, filled })
    }

    /// Number of layers below an adapter of this layout whose result may be kept.
    pub fn layers_of(config: &Config, layout: &Layout) -> usize {
        let layers = layout.frozen_layers(config.layers);
        let depends_on_batch = config.blocks[..layers].iter().any(|block| block.mlp == Mlp::Experts);
        if depends_on_batch { 0 } else { layers }
    }

    /// Makes the file for what does not fit into memory.
    pub(crate) fn open(&mut self, folder: &Path) -> Result<()> {
        self.arena.open(&folder.join(PAGES))
    }

    /// Number of layers whose result is kept.
    pub(crate) fn layers(&self) -> usize {
        self.layers
    }

    /// Gives the rows of a batch back in `x [T, C]`, if all of them are there.
    pub(crate) fn get(&mut self, device: &Device, batch: &Batch, mut x: MatrixMut<'_>) -> Result<bool> {
        if !takes_part(batch) || !batch.examples.iter().all(|&example| self.filled[example]) {
            return Ok(false);
        }
        for (segment, &example) in batch.segments.iter().zip(&batch.examples) {
            let n = self.elements_of(example, segment.queries.len());
            let mut rows = x.reborrow().rows_range(segment.queries.clone()).reshape(n, 1);
            for (page, there, here) in self.parts(example) {
                let page = self.arena.page(page)?.reinterpret(there.end, 1, self.dtype);
                copy::copy(device, rows.reborrow().rows_range(here), page.rows_range(there));
            }
        }
        Ok(true)
    }

    /// Keeps those rows `x [T, C]` of a batch that are not there yet and for which there is room.
    pub(crate) fn put(&mut self, device: &Device, batch: &Batch, x: MatrixRef<'_>) -> Result<()> {
        if !takes_part(batch) {
            return Ok(());
        }
        for (segment, &example) in batch.segments.iter().zip(&batch.examples) {
            if self.filled[example] || self.starts[example] == self.starts[example + 1] {
                continue;
            }
            let n = self.elements_of(example, segment.queries.len());
            let rows = x.rows_range(segment.queries.clone()).reshape(n, 1);
            for (page, there, here) in self.parts(example) {
                let page = self.arena.page_mut(page)?.reinterpret(there.end, 1, self.dtype);
                copy::copy(device, page.rows_range(there), rows.rows_range(here));
            }
            self.filled[example] = true;
        }
        Ok(())
    }

    /// The elements of an example, which a batch has in so many rows.
    fn elements_of(&self, example: usize, rows: usize) -> usize {
        assert_eq!(rows, self.starts[example + 1] - self.starts[example], "tokens of example {example}");
        rows * self.width
    }

    /// The pages that an example lies in: the number of each, and which elements of the page are which of the
    /// example.
    fn parts(&self, example: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> + use<> {
        let [start, end] = [example, example + 1].map(|i| self.starts[i] * self.width);
        let size = self.elements;
        (start / size..end.div_ceil(size)).map(move |page| {
            let (first, last) = (start.max(page * size), end.min((page + 1) * size));
            (page, first - page * size..last - page * size, first - start..last - start)
        })
    }
}

fn takes_part(batch: &Batch) -> bool {
    batch.tokens() > FEW_ROWS && !batch.examples.is_empty()
}
