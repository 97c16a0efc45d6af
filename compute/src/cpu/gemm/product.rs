//! A product whose shapes, strides and lengths are checked, and the parts of its factors.

use std::ops::Range;

use super::kernel::{Kernel, Target, TargetStart};
use super::layout::Layout;
use super::scratch::{self, Room};
use super::{Call, Epilogue, Operand, OperandMut, Right};
use crate::matrix::{Slice, SliceMut};

/// A product whose shapes are checked.
pub(super) struct Product<'a> {
    pub(super) kernel: &'static Kernel,
    pub(super) alpha: f32,
    pub(super) a: Operand<'a>,
    pub(super) b: Right<'a>,
    /// What the sums begin with, row-major.
    sums: Option<Operand<'a>>,
    /// What goes into the same sums.
    pub(super) update: Option<Update<'a>>,
    pub(super) epilogue: Epilogue<'a>,
    pub(super) accumulate: bool,
    /// Whether few rows go the way of many.
    pub(super) by_tiles: bool,
    pub(super) c: Target,
}

// SAFETY: the operands are shared slices. `c` and an update's `s` come from exclusive borrows that live as
// long as the product, so that products computed together write to different places. Tasks write different
// blocks of them (`Grid::block`, strips of rows), and `s` is read only where it was written.
unsafe impl Sync for Product<'_> {}

/// A low-rank update: `s second` is added to the product, where `s = scale * a first`.
#[derive(Clone, Copy)]
pub(super) struct Update<'a> {
    /// What makes `s`; nothing if it is there.
    first: Option<Right<'a>>,
    scale: f32,
    s: Target,
    /// Columns of `s`.
    pub(super) rank: usize,
    pub(super) second: Right<'a>,
}

impl<'a> Update<'a> {
    /// Some rows of `s`.
    ///
    /// # Safety
    /// There is one at least, and they are written and not written any more.
    pub(super) unsafe fn s(&self, rows: Range<usize>) -> Operand<'a> {
        let Target { row_stride, .. } = self.s;
        let len = (rows.len() - 1) * row_stride + self.rank;
        // SAFETY: as the caller promises; `Product::new` checked the shape.
        let data = unsafe {
            match self.s.at(rows.start, 0).start {
                TargetStart::F32(p) => Slice::F32(std::slice::from_raw_parts(p, len)),
                TargetStart::Bf16(p) => Slice::Bf16(std::slice::from_raw_parts(p, len)),
            }
        };
        Operand { data, rows: rows.len(), cols: self.rank, row_stride, col_stride: 1 }
    }
}

impl<'a> Product<'a> {
    /// Checks shapes, strides and lengths; `None` if `c` is empty.
    pub(super) fn new(kernel: &'static Kernel, call: Call<'a>) -> Option<Self> {
        let Call { alpha, a, b, sums, update, epilogue, accumulate, by_tiles, c } = call;
        assert!(epilogue.is_none() || alpha == 1.0, "an epilogue of a product with a factor of {alpha}");
        for of_columns in [epilogue.scale, epilogue.bias].into_iter().flatten() {
            assert_eq!(of_columns.len(), c.cols, "an epilogue's values and columns");
        }
        let check = |a: (usize, usize), b: &Right<'_>, c: (usize, usize)| {
            assert_eq!((a.0, b.cols(), a.1), (c.0, c.1, b.rows()), "shapes of a product");
            if let Right::Dense(b) = b {
                b.check("b");
            }
        };
        check((a.rows, a.cols), &b, (c.rows, c.cols));
        a.check("a");
        if let Some(sums) = &sums {
            assert_eq!((sums.rows, sums.cols, sums.col_stride), (c.rows, c.cols, 1), "shape of sums");
            assert!(matches!(sums.data, Slice::F32(_)) && by_tiles, "sums of `f32`, by tiles");
            sums.check("sums");
        }
        let update = update.map(|super::Update { first, scale, s, second }| {
            check((s.rows, s.cols), &second, (c.rows, c.cols));
            if let Some(first) = &first {
                check((a.rows, a.cols), first, (s.rows, s.cols));
            }
            Update { first, scale, rank: s.cols, s: s.target("s"), second }
        });
        if c.rows == 0 || c.cols == 0 {
            return None;
        }
        // An update of rank 0 adds nothing.
        let update = update.filter(|update| update.rank > 0);
        let (cols, c) = (c.cols, c.target("c"));
        let product = Product { kernel, alpha, a, b, sums, update, epilogue, accumulate, by_tiles, c };
        match b {
            // Packed rows of `a` would have to be turned, for one narrow panel: the other way round they are
            // the panels.
            Right::Dense(b)
                if cols <= kernel.lanes
                    && a.col_stride != 1
                    && update.is_none()
                    && epilogue.is_none()
                    && sums.is_none() =>
            {
                let c = Target { row_stride: c.col_stride, col_stride: c.row_stride, ..c };
                Some(Product { a: b.transposed(), b: a.transposed().into(), c, ..product })
            }
            _ => Some(product),
        }
    }

    /// Its sizes.
    pub(super) fn layout(&self) -> Layout {
        let rank = self.update.map_or(0, |update| update.rank);
        Layout::new(self.kernel, (self.a.rows, self.b.cols()), self.a.cols, rank)
    }

    /// The product that makes an update's `s`, if it is to be made.
    pub(super) fn product_of_s(&self) -> Option<Product<'a>> {
        let Update { first, scale, s, .. } = self.update?;
        let epilogue = Epilogue::default();
        let (sums, update) = (None, None);
        Some(Product { alpha: scale, b: first?, sums, update, epilogue, accumulate: false, c: s, ..*self })
    }

    /// Whether `s` can be made from the rows of `a` as they are packed for the product itself: in rows as
    /// long, by blocks whose sums have room.
    pub(super) fn packed_serves_s(&self) -> bool {
        self.product_of_s().is_some_and(|product| {
            let (whole, of_s) = (self.layout(), product.layout());
            of_s.row_bytes() == whole.row_bytes()
                && of_s.sums(whole.strip_rows(), product.b.cols()) <= scratch::SUMS
        })
    }

    /// Whether sums begin with what another product has come to.
    pub(super) fn goes_on(&self) -> bool {
        self.sums.is_some()
    }

    /// Brings what the sums of these elements begin with into a tile, whose rows are `width` apart.
    ///
    /// # Safety
    /// There are so many rows of `cols.len()` sums, which nobody else touches now.
    pub(super) unsafe fn begin(&self, rows: Range<usize>, cols: Range<usize>, sums: *mut f32, width: usize) {
        let Some(Operand { data: Slice::F32(from), row_stride, .. }) = self.sums else { return };
        for (i, row) in rows.enumerate() {
            let from = &from[row * row_stride..][cols.clone()];
            // SAFETY: as the caller promises.
            unsafe { std::slice::from_raw_parts_mut(sums.add(i * width), cols.len()) }.copy_from_slice(from);
        }
    }

    /// Packs some rows of the left factor over a block of `K`.
    ///
    /// # Safety
    /// Nobody else touches `to` meanwhile; if it is a block of an update, these rows of `s` are written and
    /// not written any more.
    pub(super) unsafe fn pack_a(&self, layout: &Layout, k_block: usize, rows: Range<usize>, to: Room) {
        let padded = layout.whole_tiles(rows.len());
        let to = to.part(0, layout.packed_bytes(rows.len())).start();
        // SAFETY: as the caller promises; there is room for whole tiles.
        unsafe { (self.kernel.pack_a)(self.left(layout, k_block, rows), padded, layout.tile_bytes(), to) }
    }

    /// Some rows of the left factor over a block of `K`.
    ///
    /// # Safety
    /// If it is a block of an update, these rows of `s` are written and not written any more.
    unsafe fn left(&self, layout: &Layout, k_block: usize, rows: Range<usize>) -> Operand<'a> {
        let (is_update, ks) = layout.place(k_block);
        match self.update.filter(|_| is_update) {
            // SAFETY: as the caller promises.
            Some(update) => unsafe { update.s(rows.clone()) }.view(0..rows.len(), ks),
            None => self.a.view(rows, ks),
        }
    }

    /// Some columns of the right factor over a block of `K`.
    pub(super) fn right(&self, layout: &Layout, k_block: usize, cols: Range<usize>) -> Right<'a> {
        let (is_update, ks) = layout.place(k_block);
        self.update.filter(|_| is_update).map_or(self.b, |update| update.second).view(ks, cols)
    }
}

/// One past the last element's index.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    let last = (rows - 1).checked_mul(row_stride).zip((cols - 1).checked_mul(col_stride));
    last.and_then(|(i, j)| i.checked_add(j)?.checked_add(1)).expect("size of a factor overflows")
}

impl Operand<'_> {
    pub(super) fn check(&self, name: &str) {
        assert!(self.row_stride == 1 || self.col_stride == 1, "one stride of {name} is 1");
        let end = extent(self.rows, self.cols, self.row_stride, self.col_stride);
        assert!(end <= self.len(), "{name} ends at element {end} of {}", self.len());
    }

    fn len(&self) -> usize {
        match self.data {
            Slice::F32(s) => s.len(),
            Slice::Bf16(s) => s.len(),
        }
    }

    pub(crate) fn transposed(self) -> Self {
        let Operand { data, rows, cols, row_stride, col_stride } = self;
        Operand { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// A part of it.
    pub(super) fn view(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let offset = rows.start * self.row_stride + cols.start * self.col_stride;
        let empty = rows.is_empty() || cols.is_empty();
        let data = match self.data {
            Slice::F32(s) => Slice::F32(if empty { &[] } else { &s[offset..] }),
            Slice::Bf16(s) => Slice::Bf16(if empty { &[] } else { &s[offset..] }),
        };
        Operand { data, rows: rows.len(), cols: cols.len(), ..self }
    }
}

impl Right<'_> {
    pub(super) fn rows(&self) -> usize {
        match self {
            Right::Dense(b) => b.rows,
            Right::Coded(b) => b.rows,
        }
    }

    pub(super) fn cols(&self) -> usize {
        match self {
            Right::Dense(b) => b.cols,
            Right::Coded(b) => b.cols,
        }
    }

    /// A part of it.
    pub(super) fn view(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        match self {
            Right::Dense(b) => Right::Dense(b.view(rows, cols)),
            Right::Coded(b) => Right::Coded(b.view(rows, cols)),
        }
    }

    /// Bytes of a column, about.
    pub(super) fn column_bytes(&self) -> usize {
        match self {
            Right::Dense(b) => b.rows * b.data.element_bytes(),
            Right::Coded(b) => b.column_bytes(),
        }
    }

    /// Whether it is the same memory, read the same way.
    pub(super) fn is_same(&self, other: &Right<'_>) -> bool {
        match (self, other) {
            (Right::Dense(x), Right::Dense(y)) => {
                let shape = |m: &Operand<'_>| (m.rows, m.cols, m.row_stride, m.col_stride);
                x.data.is_same(&y.data) && shape(x) == shape(y)
            }
            (Right::Coded(x), Right::Coded(y)) => x.is_same(y),
            _ => false,
        }
    }
}

impl OperandMut<'_> {
    /// Where it is, checked.
    fn target(self, name: &str) -> Target {
        let OperandMut { data, rows, cols, row_stride } = self;
        let (start, len) = match data {
            SliceMut::F32(s) => (TargetStart::F32(s.as_mut_ptr()), s.len()),
            SliceMut::Bf16(s) => (TargetStart::Bf16(s.as_mut_ptr()), s.len()),
        };
        let end = extent(rows, cols, row_stride, 1);
        assert!(end <= len, "{name} ends at element {end} of {len}");
        assert!(rows <= 1 || row_stride >= cols, "rows of {name} overlap: {row_stride} < {cols}");
        Target { start, row_stride, col_stride: 1 }
    }
}
