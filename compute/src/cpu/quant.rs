//! Quantizing by a codebook on the host, and codes of either kind back into values.

use super::Cpu;
use super::blocks;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype, multiversion};
use crate::quant::{Code, Codebook, Quantized, Stored};
use crate::{MatrixMut, MatrixRef};

/// What an element costs in units of an addition: fifteen comparisons, or a table.
const COST: usize = 8;
/// bitsandbytes' smallest divisor: a block of zeros has no largest magnitude.
const SMALLEST: f32 = 1e-38;

/// Finds the scale of each block and the nearest of the sixteen values for each element: as many of the
/// midpoints between them are below it (`backends/default/ops.py`, `quantize_4bit`).
pub(crate) fn quantize(
    cpu: &Cpu,
    values: MatrixRef<'_>,
    block_size: usize,
    code: Code,
    codes: &mut [u8],
    scales: &mut [f32],
) {
    let ranks = Ranks::new(code);
    let (whole, bytes) = (codes.len() / (block_size / 2), block_size / 2);
    let (full_codes, last_codes) = codes.split_at_mut(whole * bytes);
    let (full_scales, last_scales) = scales.split_at_mut(whole);
    by_dtype!(values.dtype(), X => {
        let values = X::of(values);
        let out = (RowsMut::new(full_codes, whole), RowsMut::new(full_scales, whole));
        cpu.for_rows(COST * block_size, out, |range, (codes, scales)| {
            for (i, block) in range.enumerate() {
                let x = &values[block * block_size..values.len().min((block + 1) * block_size)];
                quantize_block(x, x.len() < block_size, &ranks, &mut codes[i * bytes..][..bytes], &mut scales[i]);
            }
        });
        if let Some(scale) = last_scales.first_mut() {
            quantize_block(&values[whole * block_size..], true, &ranks, last_codes, scale);
        }
    });
}

/// The midpoints between the values in ascending order, and the code of each value in that order.
struct Ranks {
    midpoints: [f32; 15],
    codes: [u8; 16],
}

impl Ranks {
    fn new(code: Code) -> Self {
        let table = code.table();
        let mut order: Vec<u8> = (0..16).collect();
        // Stable: of the two zeros of FP4 the positive one comes first.
        order.sort_by(|&a, &b| table[usize::from(a)].partial_cmp(&table[usize::from(b)]).expect("numbers"));
        let value = |rank: usize| table[usize::from(order[rank])];
        Ranks {
            midpoints: std::array::from_fn(|rank| (value(rank) + value(rank + 1)) / 2.0),
            codes: std::array::from_fn(|rank| order[rank]),
        }
    }
}

multiversion! {
    fn quantize_block<X: Element>(x: &[X], ragged: bool, ranks: &Ranks, codes: &mut [u8], scale: &mut f32) {
        let mut largest = 0.0_f32;
        for x in x {
            let magnitude = x.load().abs();
            largest = if magnitude > largest { magnitude } else { largest };
        }
        let divisor = if largest > SMALLEST { largest } else { SMALLEST };
        *scale = if ragged { divisor } else { largest };
        let inverse = 1.0 / divisor;
        for (x, codes) in x.chunks(64).zip(codes.chunks_mut(32)) {
            let mut rank = [0_u8; 64];
            // What stands beyond the last element is rounded as a zero.
            let mut scaled = [0.0_f32; 64];
            for (scaled, x) in scaled.iter_mut().zip(x) {
                *scaled = if ragged { x.load() / divisor } else { x.load() * inverse };
            }
            for midpoint in ranks.midpoints {
                for (rank, scaled) in rank.iter_mut().zip(scaled) {
                    *rank += u8::from(scaled > midpoint);
                }
            }
            for (i, codes) in codes.iter_mut().enumerate() {
                *codes = ranks.codes[usize::from(rank[2 * i])] << 4 | ranks.codes[usize::from(rank[2 * i + 1])];
            }
        }
    }
}

/// The values from element `first` on.
pub(crate) fn dequantize(cpu: &Cpu, from: &Quantized, first: usize, to: MatrixMut<'_>) {
    by_dtype!(to.dtype(), X => {
        let to = X::of_mut(to);
        let len = to.len();
        cpu.for_rows(COST, RowsMut::new(to, len), |range, to| run(from, first + range.start, to));
    });
}

/// The values that follow each other from element `first` on.
#[inline(always)]
pub(crate) fn run<X: Element>(from: &Quantized, first: usize, to: &mut [X]) {
    match from.stored() {
        Stored::Codebook(codebook) => run_of_codebook(codebook, first, to),
        Stored::Blocks(all) => blocks::run(all, first, to),
        Stored::Nothing => panic!("{from:?} has no values"),
    }
}

/// [`run`] of codes of sixteen values.
#[inline(always)]
pub(crate) fn run_of_codebook<X: Element>(from: &Codebook, first: usize, to: &mut [X]) {
    let mut done = 0;
    while done < to.len() {
        let element = first + done;
        let block = element / from.block_size();
        let len = (to.len() - done).min((block + 1) * from.block_size() - element);
        let values = from.values(block);
        for (i, to) in to[done..done + len].iter_mut().enumerate() {
            *to = X::store(values[usize::from(from.code(element + i))]);
        }
        done += len;
    }
}
