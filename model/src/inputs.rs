//! The layers' inputs on their way from the forward to the backward pass, where they are not kept as they
//! are: rounded, or under a budget of memory partly in a file.

use std::path::Path;

use compute::ops::copy;
use compute::{DType, Device, MatrixMut, MatrixRef};

use crate::arena::{self, Arena};
use crate::error::Result;
use crate::memory::{Allocator, Component};

/// What the file of pages is called while it has a name.
const PAGES: &str = ".activations.pages.tmp";

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
    /// Room for inputs of so many elements, which come as `dtype`, kept as [`Keeping`] says; none if they can
    /// as well stay where they are.
    ///
    /// [`Keeping`]: crate::Keeping
    pub(crate) fn new(
        bf16: bool,
        memory: Option<u64>,
        layers: usize,
        elements: usize,
        dtype: DType,
        allocator: &mut Allocator,
    ) -> Option<Self> {
        let kept = if bf16 { DType::Bf16 } else { dtype };
        let size = elements.saturating_mul(kept.size());
        let fits = |memory| size.saturating_mul(layers) as u64 <= memory;
        if kept == dtype && memory.is_none_or(fits) {
            return None;
        }
        let words = size.div_ceil(4);
        let most = arena::page_words(memory).min(words);
        let layer = [(words / most, most), (usize::from(!words.is_multiple_of(most)), words % most)];
        let arena = Arena::new(&layer.repeat(layers), memory, Component::Activations, allocator);
        let (elements, pages) = (4 * most / kept.size(), words.div_ceil(most));
        Some(Inputs { arena, dtype: kept, elements, pages })
    }

    /// Makes the file for what does not fit into memory.
    pub(crate) fn open(&mut self, folder: &Path) -> Result<()> {
        self.arena.open(&folder.join(PAGES))
    }

    /// Keeps the input of a layer.
    pub(crate) fn put(&mut self, device: &Device, layer: usize, x: MatrixRef<'_>) -> Result<()> {
        let n = x.rows() * x.cols();
        for (i, start) in (0..n).step_by(self.elements).enumerate() {
            let from = x.reshape(n, 1).rows_range(start..n.min(start + self.elements));
            let page = self.arena.blank_page(layer * self.pages + i)?;
            copy::copy(device, page.reinterpret(from.rows(), 1, self.dtype), from);
        }
        Ok(())
    }

    /// Gives the input of a layer back.
    pub(crate) fn get(&mut self, device: &Device, layer: usize, x: MatrixMut<'_>) -> Result<()> {
        let n = x.rows() * x.cols();
        let mut x = x.reshape(n, 1);
        for (i, start) in (0..n).step_by(self.elements).enumerate() {
            let to = x.reborrow().rows_range(start..n.min(start + self.elements));
            let page = self.arena.page(layer * self.pages + i)?.reinterpret(to.rows(), 1, self.dtype);
            copy::copy(device, to, page);
        }
        Ok(())
    }
}
