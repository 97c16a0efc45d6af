//! Every kernel against every other one and the definition, at the widths of real models.
//!
//! Factors are small whole numbers, so that every sum is exact in `f32` and every factor in `bf16`: whatever
//! the order of summation, results have to be the same to the bit, and what a kernel reads or writes in the
//! wrong place shows.
//!
//! Random products run for some seconds; `LUTHIER_COMPARE_SECONDS` says for how many.

use std::time::{Duration, Instant};

use compute::ops::matmul::{Factor, Product, Update, matmul, multiply};
use compute::quant::{BLOCK_SIZES, BlockType, Blocks, Codebook, Quantized, Scales};
use compute::{Cpu, DType, Device, Matrix, Precision, bf16, random};

use crate::common::cpus;

/// Draws numbers, the same ones for the same case.
struct Draw {
    case: u64,
    count: u64,
}

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.count += 1;
        random::below(self.case, self.count, bound as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

/// How the right factor is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Storage {
    Values(DType),
    /// In four bits, of which the scales are rounded too.
    FourBit {
        block_size: usize,
        double: bool,
    },
    /// In blocks of codes, scales and minima.
    Blocks(BlockType),
}

/// A product, but for who computes it.
#[derive(Clone, Debug)]
struct Case {
    rows: usize,
    cols: usize,
    depth: usize,
    /// Of the update, if there is one, and whether its first factor is made in the same call.
    rank: Option<(usize, bool)>,
    left: (DType, bool),
    right: (Storage, bool),
    result: DType,
    precision: Precision,
    accumulate: bool,
    threads: usize,
    seed: u64,
}

/// `[rows, cols]`, or its transpose, of whole numbers of at most `largest`, one in `every` not zero.
fn whole_numbers(
    (rows, cols): (usize, usize),
    transposed: bool,
    dtype: DType,
    (largest, every): (i32, u64),
    key: u64,
) -> Matrix {
    let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
    let mut state = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let number = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let is_there = every == 1 || (state >> 8).is_multiple_of(every);
        if is_there { ((state >> 33) % (2 * largest as u64 + 1)) as f32 - largest as f32 } else { 0.0 }
    };
    let values: Vec<f32> = (0..rows * cols).map(number).collect();
    Matrix::from_f32(rows, cols, &values).to_dtype(dtype)
}

/// The right factor as it is stored, and its values.
enum Stored {
    Values(Matrix),
    Coded(Quantized),
}

impl Stored {
    fn factor(&self, transposed: bool) -> Factor<'_> {
        match (self, transposed) {
            (Stored::Values(m), false) => Factor::Plain(m.as_ref()),
            (Stored::Values(m), true) => Factor::Transposed(m.as_ref()),
            (Stored::Coded(m), false) => Factor::Quantized(m),
            (Stored::Coded(m), true) => Factor::QuantizedTransposed(m),
        }
    }

    fn values(&self) -> Vec<f32> {
        match self {
            Stored::Values(m) => m.to_vec(),
            Stored::Coded(m) => m.dequantize(&Device::cpu(1), DType::F32).to_vec(),
        }
    }
}

/// A weight of whole numbers in four bits: its sixteen values and its scales are such.
fn four_bit(rows: usize, cols: usize, block_size: usize, double: bool, key: u64) -> Quantized {
    let table = std::array::from_fn(|i| (i % 7) as f32 - 3.0);
    let blocks = (rows * cols).div_ceil(block_size);
    let scale = |block: usize| random::below(key, block as u64, 2) as u8;
    let scales = if double {
        let codes: Vec<u8> = (0..blocks).map(scale).collect();
        let absmax = vec![1.0; blocks.div_ceil(256)];
        let map = Box::new(std::array::from_fn(|i| i as f32));
        Scales::Double { codes: codes.into(), map, absmax: absmax.into(), block_size: 256, offset: 1.0 }
    } else {
        let scales: Vec<f32> = (0..blocks).map(|block| f32::from(scale(block)) + 1.0).collect();
        Scales::Plain(scales.into())
    };
    let mut codebook = Codebook::new(rows * cols, block_size, table, scales);
    for (i, byte) in codebook.codes_mut().iter_mut().enumerate() {
        *byte = random::below(key + 1, i as u64, 256) as u8;
    }
    Quantized::of_codebook(rows, cols, codebook)
}

/// A weight of whole numbers in blocks, rows of which are whole: codes are any, scales and minima small whole
/// numbers, and as many blocks are zero as keeps sums exact.
fn blocks(rows: usize, cols: usize, kind: BlockType, key: u64) -> Quantized {
    let mut all = Blocks::zeros(kind, rows * cols);
    let [one, minus_one] = [0x3c00_u16, 0xbc00].map(u16::to_le_bytes);
    let per_row = cols / kind.elements();
    for (i, block) in all.bytes_mut().chunks_exact_mut(kind.bytes()).enumerate() {
        let draw = |at: usize, bound: u64| random::below(key + 7, (i * 256 + at) as u64, bound) as u8;
        let count = per_row * kind.elements() / 32;
        if draw(255, count.div_ceil(8) as u64) > 0 {
            continue;
        }
        for (at, byte) in block.iter_mut().enumerate() {
            *byte = draw(at, 256);
        }
        let mut half = |at: usize, value: [u8; 2]| block[at..at + 2].copy_from_slice(&value);
        let sign = if draw(254, 2) == 0 { one } else { minus_one };
        match kind {
            BlockType::F16 => {
                (0..32).for_each(|at| half(2 * at, if draw(at, 2) == 0 { one } else { minus_one }))
            }
            BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q5_0 => half(0, sign),
            BlockType::Int4 | BlockType::Q5_1 | BlockType::Int3 | BlockType::Int2 => {
                half(0, sign);
                half(2, one);
            }
            BlockType::Q4K | BlockType::Q5K => {
                half(0, one);
                half(2, one);
                // Scales and minima of the later groups have their high bits in those of the earlier ones.
                block[4..12].iter_mut().for_each(|packed| *packed &= 1);
                block[12..16].iter_mut().for_each(|packed| *packed &= 0x11);
            }
            BlockType::Q6K => {
                half(208, one);
                block[192..208].iter_mut().for_each(|scale| *scale = if *scale & 1 == 0 { 1 } else { 255 });
            }
        }
    }
    Quantized::of_blocks(rows, cols, all)
}

struct Inputs {
    a: Matrix,
    b: Stored,
    first: Matrix,
    second: Matrix,
    c: Matrix,
}

impl Case {
    /// A product as real models have them, or near the borders that kernels know of.
    fn draw(seed: u64) -> Self {
        let mut draw = Draw { case: seed, count: 0 };
        let widths = [64, 576, 896, 1024, 2048, 2304, 4096, 4864, 5632, 8192, 11008];
        let depth = match draw.below(4) {
            0 => 1 + draw.below(600),
            1 => (draw.one_of(&widths) + draw.below(5)).saturating_sub(2),
            _ => draw.one_of(&widths),
        };
        // Bytes of a row in `f32` and in `bf16`, and how many of them fill what is packed at once.
        let full = (9 << 20) / (depth * draw.one_of(&[2, 4]));
        let rows = match draw.below(6) {
            0 => 1 + draw.below(5),
            1 => 1 + draw.below(130),
            2 => (draw.one_of(&[256, 510, 512, 1024, 2048]) + draw.below(9)).saturating_sub(4),
            3 | 4 => (full + draw.below(17)).saturating_sub(8).clamp(1, 2100),
            _ => 1 + draw.below(2100),
        };
        let cols = match draw.below(4) {
            0 => 1 + draw.below(128),
            1 => 129 + draw.below(200),
            _ => 120 + draw.below(24),
        };
        let kind = draw.one_of(&BlockType::ALL);
        let storage = match draw.below(4) {
            0 => Storage::Blocks(kind),
            1 => Storage::FourBit { block_size: draw.one_of(&BLOCK_SIZES), double: draw.below(2) == 1 },
            _ => Storage::Values(draw.one_of(&[DType::F32, DType::Bf16])),
        };
        let is_transposed = draw.below(2) == 0;
        let step = if let Storage::Blocks(kind) = storage { kind.elements() } else { 1 };
        let (depth, cols) = match is_transposed {
            true => (depth.next_multiple_of(step), cols),
            false => (depth, cols.next_multiple_of(step)),
        };
        let rank = match draw.below(3) {
            0 => None,
            _ => Some((draw.one_of(&[0, 1, 4, 8, 16, 33, 64, 300]), draw.below(3) > 0)),
        };
        let left = (draw.one_of(&[DType::F32, DType::Bf16]), draw.below(4) == 0);
        Case {
            rows,
            cols,
            depth,
            rank,
            left,
            right: (storage, is_transposed),
            result: draw.one_of(&[DType::F32, DType::Bf16]),
            precision: draw.one_of(&[Precision::F32, Precision::Bf16]),
            accumulate: draw.below(3) == 0,
            threads: 1 + draw.below(3),
            seed,
        }
    }

    fn inputs(&self) -> Inputs {
        let Case { rows, cols, depth, seed, .. } = *self;
        let (rank, _) = self.rank.unwrap_or((0, false));
        let b = match self.right {
            (Storage::Values(dtype), transposed) => {
                Stored::Values(whole_numbers((depth, cols), transposed, dtype, (2, 1), seed + 2))
            }
            (Storage::Blocks(kind), transposed) => {
                let (rows, cols) = if transposed { (cols, depth) } else { (depth, cols) };
                Stored::Coded(blocks(rows, cols, kind, seed + 2))
            }
            (Storage::FourBit { block_size, double }, transposed) => {
                let (rows, cols) = if transposed { (cols, depth) } else { (depth, cols) };
                Stored::Coded(four_bit(rows, cols, block_size, double, seed + 2))
            }
        };
        Inputs {
            a: whole_numbers((rows, depth), self.left.1, self.left.0, (2, 1), seed + 1),
            b,
            // So few that `s` is exact in `bf16`.
            first: whole_numbers((depth, rank), true, DType::F32, (1, 1 + depth as u64 / 24), seed + 3),
            second: whole_numbers((rank, cols), true, DType::F32, (2, 1), seed + 4),
            c: whole_numbers((rows, cols), false, self.result, (100, 1), seed + 5),
        }
    }

    /// The result, and `s`.
    fn run(&self, cpu: Cpu, inputs: &Inputs) -> (Vec<f32>, Vec<f32>) {
        let device = Device::Cpu(cpu);
        let mut c = inputs.c.to_dtype(self.result);
        let a = match self.left.1 {
            true => Factor::Transposed(inputs.a.as_ref()),
            false => Factor::Plain(inputs.a.as_ref()),
        };
        let b = inputs.b.factor(self.right.1);
        let (precision, accumulate) = (self.precision, self.accumulate);
        let Some((rank, with_first)) = self.rank else {
            matmul(&device, precision, 1.0, a, b, accumulate, c.as_mut());
            return (c.to_vec(), Vec::new());
        };
        let first = Factor::Transposed(inputs.first.as_ref());
        let mut s = Matrix::unset(self.rows, rank, DType::F32);
        if !with_first {
            matmul(&device, precision, 2.0, a, first, false, s.as_mut());
        }
        let update = Update {
            first: with_first.then_some(first),
            scale: 2.0,
            s: s.as_mut(),
            second: Factor::Transposed(inputs.second.as_ref()),
        };
        let product = Product { update: Some(update), ..Product::new((a, b), accumulate, c.as_mut()) };
        multiply(&device, precision, vec![product]);
        (c.to_vec(), s.to_vec())
    }

    /// Some elements of the result by its definition, in `f64`: of rows and columns at the ends, and others.
    fn check_definition(&self, inputs: &Inputs, result: &[f32]) {
        let Case { rows, cols, depth, .. } = *self;
        let (rank, _) = self.rank.unwrap_or((0, false));
        let wide = |m: &Matrix| m.to_vec();
        let (a, b, c) = (wide(&inputs.a), inputs.b.values(), wide(&inputs.c));
        let (first, second) = (wide(&inputs.first), wide(&inputs.second));
        let at = |m: &[f32], transposed: bool, (rows, cols): (usize, usize), i: usize, j: usize| {
            f64::from(if transposed { m[j * rows + i] } else { m[i * cols + j] })
        };
        let mut draw = Draw { case: self.seed + 6, count: 0 };
        for place in 0..24 {
            let i = if place % 3 == 0 { rows - 1 - draw.below(rows.min(9)) } else { draw.below(rows) };
            let j = if place % 2 == 0 { cols - 1 - draw.below(cols.min(9)) } else { draw.below(cols) };
            let a = |k: usize| at(&a, self.left.1, (rows, depth), i, k);
            let own: f64 = (0..depth).map(|k| a(k) * at(&b, self.right.1, (depth, cols), k, j)).sum();
            let s = |r: usize| 2.0 * (0..depth).map(|k| a(k) * f64::from(first[r * depth + k])).sum::<f64>();
            let update: f64 = (0..rank).map(|r| s(r) * f64::from(second[j * rank + r])).sum();
            let old = if self.accumulate { f64::from(c[i * cols + j]) } else { 0.0 };
            let want = (own + update + old) as f32;
            let want = if self.result == DType::Bf16 { bf16::from_f32(want).to_f32() } else { want };
            assert_eq!(result[i * cols + j], want, "({i}, {j}) of {self:?}");
        }
    }

    fn check(&self) {
        let inputs = self.inputs();
        let mut before: Option<(Vec<f32>, Vec<f32>)> = None;
        for cpu in cpus(self.threads) {
            let isa = cpu.isa();
            let result = self.run(cpu, &inputs);
            match &before {
                None => self.check_definition(&inputs, &result.0),
                Some(before) => {
                    let differs = |a: &[f32], b: &[f32]| {
                        a.iter().zip(b).position(|(a, b)| a != b && !(a.is_nan() && b.is_nan()))
                    };
                    let at = differs(&result.0, &before.0).map(|at| (at / self.cols, at % self.cols));
                    assert!(at.is_none(), "{isa} differs at {at:?} of {self:?}");
                    assert_eq!(differs(&result.1, &before.1), None, "s: {isa} of {self:?}");
                }
            }
            before = Some(result);
        }
    }
}

fn dense(rows: usize, depth: usize, rank: Option<usize>, dtype: DType, precision: Precision) -> Case {
    Case {
        rows,
        cols: 136,
        depth,
        rank: rank.map(|rank| (rank, true)),
        left: (dtype, false),
        right: (Storage::Values(dtype), true),
        result: dtype,
        precision,
        accumulate: false,
        threads: 2,
        seed: 1,
    }
}

/// Rows whose whole tiles take up more than there is room for, while they themselves do not.
#[test]
fn rows_that_fill_what_is_packed_at_once_and_end_inside_a_tile_are_right() {
    for (rows, depth, rank) in [
        (509, 4096, None),
        (511, 4096, None),
        (512, 4096, None),
        (513, 4096, None),
        (481, 4096, Some(16)),
        (482, 4096, Some(16)),
        (1817, 2048, Some(16)),
        (1820, 2048, Some(16)),
        (817, 4864, Some(16)),
        (819, 4864, Some(16)),
        (575, 4096, None),
        (577, 4096, None),
        (541, 4096, Some(16)),
        (543, 4096, Some(16)),
        (1823, 2304, Some(16)),
    ] {
        dense(rows, depth, rank, DType::F32, Precision::F32).check();
        dense(rows, depth, rank, DType::Bf16, Precision::Bf16).check();
    }
}

/// Every type of blocks at the widths of models, few rows and many, either way round.
#[test]
fn weights_in_blocks_are_right_at_the_widths_of_models() {
    for kind in BlockType::ALL {
        for (rows, depth, cols) in
            [(1, 11008, 136_usize), (4, 4096, 37), (3, 256, 5), (5, 1024, 256), (70, 768, 512)]
        {
            for transposed in [true, false] {
                let cols = if transposed { cols } else { cols.next_multiple_of(kind.elements()) };
                let depth = if transposed { depth } else { depth - 1 };
                let right = (Storage::Blocks(kind), transposed);
                for (dtype, precision) in [(DType::F32, Precision::F32), (DType::Bf16, Precision::Bf16)] {
                    let rank = Some(16);
                    Case { cols, right, ..dense(rows, depth, rank, dtype, precision) }.check();
                }
            }
        }
    }
}

#[test]
fn an_update_of_rank_0_adds_nothing_to_any_number_of_rows() {
    for rows in [1, 2, 4, 5, 70, 300] {
        for storage in [Storage::Values(DType::F32), Storage::FourBit { block_size: 64, double: true }] {
            let case = dense(rows, 512, Some(0), DType::F32, Precision::F32);
            Case { right: (storage, true), ..case }.check();
        }
    }
}

#[test]
fn random_products_are_the_same_to_the_bit_on_every_instruction_set() {
    let seconds = std::env::var("LUTHIER_COMPARE_SECONDS").ok();
    let seconds = seconds.map_or(20.0, |text| text.parse().expect("LUTHIER_COMPARE_SECONDS is a number"));
    let start = Instant::now();
    let mut count = 0;
    while count < 8 || start.elapsed() < Duration::from_secs_f64(seconds) {
        Case::draw(1000 + count).check();
        count += 1;
    }
    eprintln!("{count} products in {:.0?}", start.elapsed());
}
