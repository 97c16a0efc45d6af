//! The layers' inputs on their way from the forward to the backward pass, where they are not kept as they are: rounded, or
//! under a budget of memory partly in a file.

use std::path::Path;

use compute::{DType, MatrixMut, MatrixRef};

use crate::arena::{self, Arena};
use crate::error::Result;
use crate::memory::{Allocator, Component};

/// What the file of pages is called while it has a name.
const PAGES: &str = ".activations.pages.tmp";

/// What is kept of layers that are computed again, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    /// Beside the inputs, what the attention halves need: a few widths of the model for each layer, which spares a quarter
    /// of what is computed again in the usual shapes. It changes no result.
    pub attention: bool,
    /// Inputs are rounded to `bf16` whatever the precision, so that the backward pass sees the rounded ones.
    pub bf16: bool,
    /// Bytes of the inputs that may be in memory, [`arena::SMALLEST`] at least; the others lie in a file. `None`: all are in
    /// memory. It changes no result.
    pub memory: Option<u64>,
}

/// Copies of the layers' inputs, each in pages of its own.
#[derive(Debug)]
pub(crate) struct Inputs {
    arena: Arena,
    dtype: DType,
    /// Elements of a page, and pages of a layer.
    elements: usize,
    pages: usize,
}

impl Inputs {
    /// Room for inputs of so many elements, which come as `dtype`; none if they can as well stay where they are.
    pub(crate) fn new(
        keeping: Keeping,
        layers: usize,
        elements: usize,
        dtype: DType,
        allocator: &mut Allocator,
    ) -> Option<Self> {
        let kept = if keeping.bf16 { DType::Bf16 } else { dtype };
        let size = elements.saturating_mul(kept.size());
        let fits = |memory| size.saturating_mul(layers) as u64 <= memory;
        if kept == dtype && keeping.memory.is_none_or(fits) {
            return None;
        }
        let words = size.div_ceil(4);
        let most = arena::page_words(keeping.memory).min(words);
        let layer = [(words / most, most), (usize::from(!words.is_multiple_of(most)), words % most)];
        let arena = Arena::new(&layer.repeat(layers), keeping.memory, Component::Activations, allocator);
        let (elements, pages) = (4 * most / kept.size(), words.div_ceil(most));
        Some(Inputs { arena, dtype: kept, elements, pages })
    }

    /// Makes the file for what does not fit into memory.
    pub(crate) fn open(&mut self, folder: &Path) -> Result<()> {
        self.arena.open(&folder.join(PAGES))
    }

    /// Keeps the input of a layer.
    pub(crate) fn put(&mut self, layer: usize, x: MatrixRef<'_>) -> Result<()> {
        let n = x.rows() * x.cols();
        for (i, start) in (0..n).step_by(self.elements).enumerate() {
            let from = x.reshape(n, 1).rows_range(start..n.min(start + self.elements));
            let page = self.arena.blank_page(layer * self.pages + i)?;
            MatrixMut::from_words(from.rows(), 1, self.dtype, page).copy_from(from);
        }
        Ok(())
    }

    /// Gives the input of a layer back.
    pub(crate) fn get(&mut self, layer: usize, x: MatrixMut<'_>) -> Result<()> {
        let n = x.rows() * x.cols();
        let mut x = x.reshape(n, 1);
        for (i, start) in (0..n).step_by(self.elements).enumerate() {
            let mut to = x.reborrow().rows_range(start..n.min(start + self.elements));
            let page = self.arena.page(layer * self.pages + i)?;
            to.copy_from(MatrixRef::from_words(to.rows(), 1, self.dtype, page));
        }
        Ok(())
    }
}
