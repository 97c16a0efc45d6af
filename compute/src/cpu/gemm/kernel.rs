//! What a kernel is: the table that block products work from, one for each instruction set and packed
//! element.

use std::time::Instant;

use super::{Isa, Operand, coded, few_rows, pack, portable, scratch};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, blocks2, blocks512, four_bit2, four_bit512, pack512};
use crate::cpu::Cpu;
use crate::{DType, Precision, bf16};

/// Bytes of a chunk: what packed `a` holds of one row before it goes on to the next row of the tile.
pub(super) const CHUNK: usize = 64;

/// Multiplies a tile: `sums[rows, width] = a * b`, or `+=` if `add`, over `groups` packed groups of `k`. `a`
/// is a packed tile: chunk after chunk along `k`, in each one chunk of every row. `b` holds for each group
/// `width` columns; rows of `sums` are `stride` apart.
pub(super) type Tile =
    unsafe fn(groups: usize, a: *const u8, b: *const u8, sums: *mut f32, stride: usize, add: bool);

/// Packs `a[m, k]` as `rows` / [`Kernel::rows`] tiles, `tile_bytes` apart, with zeros beyond `m` and in the
/// last chunk beyond `k`.
pub(super) type PackA = unsafe fn(a: Operand<'_>, rows: usize, tile_bytes: usize, to: *mut u8);

/// Packs `b[k, n]` as a panel: for each group of `k` (zeros from `k` on) `width` columns (zeros from `n` on).
pub(super) type PackB = unsafe fn(b: Operand<'_>, width: usize, to: *mut u8);

/// Writes `rows` x `cols` of a tile of `width` columns to `c`, whose columns are side by side: `alpha *
/// sums`, or `c + alpha * sums` if `accumulate`.
pub(super) type Store = unsafe fn(
    sums: *const f32,
    width: usize,
    rows: usize,
    cols: usize,
    alpha: f32,
    accumulate: bool,
    c: Target,
);

/// Where a tile goes: its first element, and the elements between rows and between columns, one of which is
/// 1.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) start: TargetStart,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// The first element of a target, of either type.
#[derive(Clone, Copy)]
pub(super) enum TargetStart {
    F32(*mut f32),
    Bf16(*mut bf16),
}

impl Target {
    /// The target at element `(i, j)` of this one.
    ///
    /// # Safety
    /// The element lies inside the same allocation.
    pub(super) unsafe fn at(self, i: usize, j: usize) -> Target {
        let offset = i * self.row_stride + j * self.col_stride;
        // SAFETY: as the caller promises.
        let start = unsafe {
            match self.start {
                TargetStart::F32(p) => TargetStart::F32(p.add(offset)),
                TargetStart::Bf16(p) => TargetStart::Bf16(p.add(offset)),
            }
        };
        Target { start, ..self }
    }
}

/// A register-tiled kernel with its packing.
pub(super) struct Kernel {
    /// The element that packing makes and that instructions multiply.
    pub(super) packed: DType,
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Columns of the narrowest tile.
    pub(super) lanes: usize,
    /// At most this many `k` in a block, a multiple of [`Kernel::DEPTH_STEP`].
    pub(super) depth: usize,
    /// Tiles of one, two ... times as many columns.
    pub(super) tiles: &'static [Tile],
    /// The same, of which each sums an element in the same order: how many columns there are is then no matter.
    pub(super) even_tiles: &'static [Tile],
    pub(super) pack_a: PackA,
    pub(super) pack_b: PackB,
    pub(super) store: Store,
    pub(super) dots: few_rows::Dots,
    pub(super) dequantize: coded::Dequantize,
    /// Faster ways for few rows and weights of codes, where there are any; the first that applies is taken.
    pub(super) coded_rows: &'static [coded::FewRows],
}

impl Kernel {
    /// Blocks of `K` are multiples of this: whole chunks of either element.
    pub(super) const DEPTH_STEP: usize = 32;

    /// The kernel for products of this precision.
    pub(super) fn of(isa: Isa, precision: Precision) -> &'static Kernel {
        #[cfg(not(target_arch = "x86_64"))]
        return {
            let _ = (isa, precision);
            &PORTABLE
        };
        #[cfg(target_arch = "x86_64")]
        match (isa, precision) {
            (Isa::Avx512Bf16, Precision::Bf16) => &AVX512_BF16,
            (Isa::Avx512Bf16 | Isa::Avx512, _) => &AVX512,
            (Isa::Avx2, _) => &AVX2,
            (Isa::Portable, _) => &PORTABLE,
        }
    }

    /// Elements along `k` that stand together in packed form.
    pub(super) fn group(&self) -> usize {
        4 / self.packed.size()
    }

    /// Columns of the widest tile, and of a panel.
    pub(super) fn width(&self) -> usize {
        self.tiles.len() * self.lanes
    }
}

/// Few rows of either type are multiplied in `f32`.
#[cfg(target_arch = "x86_64")]
const NIBBLE_ROWS_512: coded::FewRows = coded::FewRows {
    applies: blocks512::has_nibble_dots,
    pack: blocks512::pack_nibbles,
    row_bytes: coded::steps_of::<4>,
    dots: blocks512::nibble_dots,
};
#[cfg(target_arch = "x86_64")]
const Q4_K_ROWS_512: coded::FewRows = coded::FewRows {
    applies: blocks512::has_q4_k_dots,
    pack: blocks512::pack_q4_k,
    row_bytes: coded::steps_of::<4>,
    dots: blocks512::q4_k_dots,
};
#[cfg(target_arch = "x86_64")]
const BLOCK_ROWS_512: coded::FewRows = coded::FewRows {
    applies: blocks512::has_dots,
    pack: blocks512::pack,
    row_bytes: coded::floats_of,
    dots: blocks512::dots,
};

#[cfg(target_arch = "x86_64")]
static AVX512_BF16: Kernel = Kernel {
    packed: DType::Bf16,
    rows: avx512::ROWS,
    lanes: 16,
    depth: 256,
    tiles: &[avx512::tile_bf16::<1, 2>, avx512::tile_bf16::<2, 1>],
    even_tiles: &[avx512::tile_bf16::<1, 1>, avx512::tile_bf16::<2, 1>],
    pack_a: pack512::a_bf16,
    pack_b: pack512::b_bf16,
    store: avx512::store,
    dots: avx512::dots_bf16,
    dequantize: coded::Dequantize { codebook: four_bit512::to_bf16, blocks: blocks512::to_bf16 },
    coded_rows: &[
        coded::FewRows {
            applies: four_bit512::has_dots,
            pack: four_bit512::pack_bf16,
            row_bytes: coded::steps_of::<2>,
            dots: four_bit512::dots_bf16,
        },
        NIBBLE_ROWS_512,
        Q4_K_ROWS_512,
        BLOCK_ROWS_512,
    ],
};

#[cfg(target_arch = "x86_64")]
static AVX512: Kernel = Kernel {
    packed: DType::F32,
    rows: avx512::ROWS,
    lanes: 16,
    depth: 256,
    tiles: &[avx512::tile_f32::<1, 2>, avx512::tile_f32::<2, 1>],
    even_tiles: &[avx512::tile_f32::<1, 1>, avx512::tile_f32::<2, 1>],
    pack_a: pack512::a_f32,
    pack_b: pack512::b_f32,
    store: avx512::store,
    dots: avx512::dots_f32,
    dequantize: coded::Dequantize { codebook: four_bit512::to_f32, blocks: blocks512::to_f32 },
    coded_rows: &[
        coded::FewRows {
            applies: four_bit512::has_dots,
            pack: four_bit512::pack_f32,
            row_bytes: coded::steps_of::<4>,
            dots: four_bit512::dots_f32,
        },
        NIBBLE_ROWS_512,
        Q4_K_ROWS_512,
        BLOCK_ROWS_512,
    ],
};

#[cfg(target_arch = "x86_64")]
static AVX2: Kernel = Kernel {
    packed: DType::F32,
    rows: avx2::ROWS,
    lanes: 8,
    depth: 256,
    tiles: &[avx2::tile::<1>, avx2::tile::<2>],
    even_tiles: &[avx2::tile::<1>, avx2::tile::<2>],
    pack_a: avx2::pack_a,
    pack_b: avx2::pack_b,
    store: avx2::store,
    dots: avx2::dots,
    dequantize: coded::Dequantize { codebook: avx2::dequantize, blocks: blocks2::to_f32 },
    coded_rows: &[
        coded::FewRows {
            applies: four_bit2::has_dots,
            pack: four_bit2::pack,
            row_bytes: coded::floats_of,
            dots: four_bit2::dots,
        },
        coded::FewRows {
            applies: blocks2::has_dots,
            pack: blocks2::pack,
            row_bytes: coded::floats_of,
            dots: blocks2::dots,
        },
    ],
};

static PORTABLE: Kernel = Kernel {
    packed: DType::F32,
    rows: portable::ROWS,
    lanes: portable::LANES,
    depth: 256,
    tiles: &[portable::tile::<1>, portable::tile::<2>],
    even_tiles: &[portable::tile::<1>, portable::tile::<2>],
    pack_a: pack::a::<{ portable::ROWS }>,
    pack_b: pack::b,
    store: portable::store,
    dots: portable::dots::<{ portable::ROWS }>,
    dequantize: coded::Dequantize {
        codebook: portable::dequantize_codebook,
        blocks: portable::dequantize_blocks,
    },
    coded_rows: &[],
};

/// All kernels, of other processors too.
#[cfg(test)]
pub(super) fn all() -> Vec<&'static Kernel> {
    #[cfg(target_arch = "x86_64")]
    return vec![&PORTABLE, &AVX2, &AVX512, &AVX512_BF16];
    #[cfg(not(target_arch = "x86_64"))]
    vec![&PORTABLE]
}

/// Multiplications and additions a second that the kernel reaches on all threads over data in the first-level
/// cache: what products are measured against. Takes some 50 ms.
pub(crate) fn peak_flops(cpu: &Cpu, precision: Precision) -> f64 {
    let kernel = Kernel::of(cpu.isa, precision);
    let widest = kernel.tiles[kernel.tiles.len() - 1];
    let groups = kernel.depth / kernel.group();
    let tiles = 2000;
    let flops = 2 * kernel.rows * kernel.width() * kernel.depth * tiles * cpu.threads();
    let round = || {
        let start = Instant::now();
        cpu.pool.run(cpu.threads(), |_, _| {
            scratch::with(|scratch| {
                let [a, b] = [(scratch.a, kernel.rows), (scratch.b, kernel.width())]
                    .map(|(room, count)| room.part(0, count * kernel.depth * kernel.packed.size()).start());
                let sums = scratch.sums.sums(0, kernel.rows * kernel.width());
                for _ in 0..tiles {
                    // SAFETY: a tile of `a`, a panel of `b` and a tile of sums have room.
                    unsafe { widest(groups, a, b, sums, kernel.width(), false) };
                }
            });
        });
        flops as f64 / start.elapsed().as_secs_f64()
    };
    (0..20).map(|_| round()).fold(0.0, f64::max)
}
