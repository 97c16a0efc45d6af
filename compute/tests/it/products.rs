//! Products that are computed together come to the bytes that each comes to alone, whatever they share: a
//! right factor, as rows with an adapter each do, or none, as experts do.

use std::ops::Range;

use compute::ops::matmul::{Epilogue, Factor, Product, Update, multiply};
use compute::quant::{BlockType, Format, Quantized};
use compute::{DType, Device, Matrix, MatrixRef, Precision};

use crate::common::{cpus, matrix};

/// Of one of the products: its rows, the rank of its update (0: none), which right factor it has, and whether
/// its columns have an epilogue.
#[derive(Clone, Copy, Debug)]
struct Part {
    rows: usize,
    rank: usize,
    weight: usize,
    has_epilogue: bool,
}

fn part(rows: usize, rank: usize, weight: usize) -> Part {
    Part { rows, rank, weight, has_epilogue: false }
}

/// How weights stand, and are read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weights {
    Plain(DType),
    Transposed(DType),
    Codes(Format),
    CodesTransposed(Format),
}

/// Everything that a list of products reads and writes.
struct Case {
    inputs: Vec<Matrix>,
    dense: Vec<Matrix>,
    coded: Vec<Quantized>,
    /// A and B of each update.
    updates: Vec<[Matrix; 2]>,
    columns: [Matrix; 2],
    weights: Weights,
    parts: Vec<Part>,
    size: [usize; 2],
    dtype: DType,
}

impl Case {
    fn new(device: &Device, [k, n]: [usize; 2], parts: &[Part], weights: Weights, dtype: DType) -> Self {
        let count = 1 + parts.iter().map(|part| part.weight).max().unwrap();
        let (rows, cols, of_weight) = match weights {
            Weights::Plain(dtype) => (k, n, dtype),
            Weights::Codes(_) => (k, n, DType::F32),
            Weights::Transposed(dtype) => (n, k, dtype),
            Weights::CodesTransposed(_) => (n, k, DType::F32),
        };
        let dense: Vec<_> = (0..count).map(|w| matrix(rows, cols, of_weight, 10 + w as u64)).collect();
        let coded = match weights {
            Weights::Codes(format) | Weights::CodesTransposed(format) => {
                dense.iter().map(|m| Quantized::quantize(device, m.as_ref(), format)).collect()
            }
            _ => Vec::new(),
        };
        let each = |f: &dyn Fn(&Part, u64) -> Matrix| -> Vec<Matrix> {
            parts.iter().zip(100..).map(|(part, seed)| f(part, seed)).collect()
        };
        let inputs = each(&|part, seed| matrix(part.rows, k, dtype, seed));
        let a = each(&|part, seed| matrix(part.rank, k, DType::F32, seed + 100));
        let b = each(&|part, seed| matrix(n, part.rank, DType::F32, seed + 200));
        let updates = a.into_iter().zip(b).map(|(a, b)| [a, b]).collect();
        let columns = [1, 2].map(|seed| matrix(1, n, DType::F32, seed));
        Case { inputs, dense, coded, updates, columns, weights, parts: parts.to_vec(), size: [k, n], dtype }
    }

    /// What these of the products come to, computed together: their results, and the `s` of their updates.
    fn run(&self, device: &Device, precision: Precision, accumulate: bool, which: &[usize]) -> Vec<Vec<f32>> {
        let [_, n] = self.size;
        let old = |i: usize| matrix(self.parts[i].rows, n, self.dtype, 300 + i as u64);
        let mut results: Vec<_> = which.iter().map(|&i| old(i)).collect();
        let s = |&i: &usize| Matrix::zeros(self.parts[i].rows, self.parts[i].rank, DType::F32);
        let mut of_updates: Vec<_> = which.iter().map(s).collect();
        let lists = which.iter().zip(&mut results).zip(&mut of_updates);
        let products = lists.map(|((&i, c), s)| {
            let Part { rank, weight, has_epilogue, .. } = self.parts[i];
            let b = match self.weights {
                Weights::Plain(_) => Factor::Plain(self.dense[weight].as_ref()),
                Weights::Transposed(_) => Factor::Transposed(self.dense[weight].as_ref()),
                Weights::Codes(_) => Factor::Quantized(&self.coded[weight]),
                Weights::CodesTransposed(_) => Factor::QuantizedTransposed(&self.coded[weight]),
            };
            let [first, second] = &self.updates[i];
            let update = (rank > 0).then(|| Update {
                first: Some(Factor::Transposed(first.as_ref())),
                scale: 0.5,
                s: s.as_mut(),
                second: Factor::Transposed(second.as_ref()),
            });
            let [scale, bias] = &self.columns;
            let epilogue = Epilogue { scale: Some(scale.as_ref()), bias: Some(bias.as_ref()) };
            let epilogue = if has_epilogue { epilogue } else { Epilogue::default() };
            let factors = (Factor::Plain(self.inputs[i].as_ref()), b);
            Product { update, epilogue, ..Product::new(factors, accumulate, c.as_mut()) }
        });
        multiply(device, precision, products.collect());
        results.iter().zip(&of_updates).map(|(c, s)| [c.to_vec(), s.to_vec()].concat()).collect()
    }

    fn check(&self, device: &Device, precision: Precision, what: &str) {
        for accumulate in [false, true] {
            let all: Vec<_> = (0..self.parts.len()).collect();
            let together = self.run(device, precision, accumulate, &all);
            for (i, together) in together.iter().enumerate() {
                let alone = &self.run(device, precision, accumulate, &[i])[0];
                let at = together.iter().zip(alone).position(|(x, y)| x.to_bits() != y.to_bits());
                assert!(
                    at.is_none(),
                    "{what}, {:?} of {:?}, {:?}, {precision:?}, {}: element {at:?}",
                    self.parts[i],
                    self.size,
                    self.weights,
                    self.dtype
                );
            }
        }
    }
}

/// The ways in which weights are kept, with what multiplies them.
fn ways() -> [(Weights, DType, Precision); 6] {
    [
        (Weights::Transposed(DType::F32), DType::F32, Precision::F32),
        (Weights::Plain(DType::F32), DType::F32, Precision::F32),
        (Weights::Transposed(DType::Bf16), DType::Bf16, Precision::Bf16),
        (Weights::Plain(DType::Bf16), DType::Bf16, Precision::Bf16),
        (Weights::CodesTransposed(Format::QLORA), DType::Bf16, Precision::Bf16),
        (Weights::Codes(Format::QLORA), DType::F32, Precision::F32),
    ]
}

fn check(sizes: &[[usize; 2]], parts: &[Part], threads: usize) {
    for cpu in cpus(threads) {
        let what = format!("{}, {threads} threads", cpu.isa());
        let device = Device::Cpu(cpu);
        for &size in sizes {
            for (weights, dtype, precision) in ways() {
                Case::new(&device, size, parts, weights, dtype).check(&device, precision, &what);
            }
        }
    }
}

/// Rows of several adapters, whole tiles and ragged, few and many, with updates of several ranks and without,
/// by one weight.
#[test]
fn rows_with_an_adapter_each_by_one_weight() {
    let mut parts =
        vec![part(9, 4, 0), part(1, 4, 0), part(17, 0, 0), part(3, 0, 0), part(64, 16, 0), part(5, 33, 0)];
    parts[2].has_epilogue = true;
    parts[3].has_epilogue = true;
    for threads in [1, 2, 3] {
        check(&[[64, 130], [192, 17], [320, 300]], &parts, threads);
    }
}

/// Rows of one request each, which by codes of one weight are multiplied together, some with an adapter: of
/// every type of codes, and as many as one kernel takes, fewer and more.
#[test]
fn few_rows_each_by_codes_of_every_type() {
    let mut parts: Vec<Part> = [1, 1, 1, 1, 2, 1, 3, 1, 4, 1, 2]
        .iter()
        .zip(0..)
        .map(|(&rows, i)| part(rows, 3 * (i % 2), 0))
        .collect();
    parts.push(part(1, 0, 1));
    parts.push(part(1, 0, 1));
    parts[1].has_epilogue = true;
    let blocks = BlockType::ALL.iter().map(|&kind| Format::Blocks(kind));
    for cpu in cpus(2) {
        let what = cpu.isa().to_string();
        let device = Device::Cpu(cpu);
        for format in blocks.clone().chain([Format::QLORA]) {
            for (dtype, precision) in [(DType::F32, Precision::F32), (DType::Bf16, Precision::Bf16)] {
                for size in [[256, 130], [768, 17]] {
                    let case = Case::new(&device, size, &parts, Weights::CodesTransposed(format), dtype);
                    case.check(&device, precision, &what);
                }
            }
        }
    }
}

/// As many experts as there are, of which each has other rows.
#[test]
fn rows_of_each_expert_by_its_own_weight() {
    let rows = [32, 1, 0, 7, 40, 4, 2, 33, 8, 129];
    let parts: Vec<_> = rows.iter().enumerate().map(|(e, &rows)| part(rows, 3 * (e % 2), e)).collect();
    for threads in [1, 2, 3] {
        check(&[[64, 192], [320, 130]], &parts, threads);
    }
}

/// More rows than are packed at once, deeper than is packed at once, and neighbours with and without
/// something in common.
#[test]
fn more_than_is_packed_at_once() {
    let parts =
        [part(500, 8, 0), part(40, 0, 0), part(530, 0, 0), part(20, 4, 1), part(21, 4, 1), part(22, 2, 0)];
    check(&[[2112, 136]], &parts, 2);
    let parts = [part(30, 16, 0), part(100, 0, 0), part(70, 4, 1), part(2, 4, 1)];
    check(&[[11_008, 136]], &parts, 2);
}

/// Some rows by one weight, with an update of this rank.
fn rows_by(
    device: &Device,
    precision: Precision,
    x: MatrixRef<'_>,
    weight: Factor<'_>,
    [first, second]: &[Matrix; 2],
    by_tiles: bool,
) -> Vec<f32> {
    let mut s = Matrix::zeros(x.rows(), first.rows(), DType::F32);
    let mut c = Matrix::zeros(x.rows(), second.rows(), x.dtype());
    let update = (first.rows() > 0).then(|| Update {
        first: Some(Factor::Transposed(first.as_ref())),
        scale: 0.5,
        s: s.as_mut(),
        second: Factor::Transposed(second.as_ref()),
    });
    let product = Product::new((Factor::Plain(x), weight), false, c.as_mut());
    multiply(device, precision, vec![Product { update, by_tiles, ..product }]);
    c.to_vec()
}

/// By tiles a row comes to the same bytes however many pass with it.
#[test]
fn how_many_rows_there_are_changes_no_byte() {
    let formats =
        [BlockType::Int4, BlockType::Int2, BlockType::Q4_0, BlockType::Q8_0, BlockType::Q4K, BlockType::Q6K];
    let formats: Vec<_> = [Format::QLORA].into_iter().chain(formats.map(Format::Blocks)).collect();
    for device in cpus(2).into_iter().map(Device::Cpu) {
        for (precision, [n, k], rank) in [
            (Precision::Bf16, [130, 512], 16),
            (Precision::F32, [130, 512], 16),
            (Precision::Bf16, [48, 11_008], 5),
            (Precision::F32, [16, 2304], 0),
        ] {
            let dtype = precision.dtype();
            let dense = matrix(n, k, dtype, 1);
            let quantized: Vec<_> =
                formats.iter().map(|&format| Quantized::quantize(&device, dense.as_ref(), format)).collect();
            let updates = [matrix(rank, k, DType::F32, 2), matrix(n, rank, DType::F32, 3)];
            let many = matrix(300, k, dtype, 4);
            let of_quantized = quantized.iter().map(Factor::QuantizedTransposed);
            for (i, weight) in
                [Factor::Transposed(dense.as_ref())].into_iter().chain(of_quantized).enumerate()
            {
                let rows = |range: Range<usize>, by_tiles| {
                    let x = many.as_ref().rows_range(range);
                    rows_by(&device, precision, x, weight, &updates, by_tiles)
                };
                let what = || format!("{device:?}, {precision:?}, {n} x {k}, weight {i}");
                let whole = rows(0..300, false);
                for range in [0..1, 1..3, 7..11, 40..47, 100..164, 3..300] {
                    let expected = &whole[range.start * n..range.end * n];
                    assert!(rows(range.clone(), true) == expected, "{range:?} by tiles: {}", what());
                }
            }
        }
    }
}

/// A base's product of all rows, whose sums go on with the update of each group's rows, comes to the products with
/// an update that each group is alone.
#[test]
fn sums_that_go_on_are_those_of_one_product() {
    for device in cpus(2).into_iter().map(Device::Cpu) {
        for (precision, [n, k]) in [
            (Precision::Bf16, [130, 512]),
            (Precision::F32, [130, 512]),
            (Precision::Bf16, [272, 2304]),
            (Precision::F32, [17, 2304]),
        ] {
            let dtype = precision.dtype();
            let (x, dense) = (matrix(13, k, dtype, 4), matrix(n, k, dtype, 1));
            let quantized = Quantized::quantize(&device, dense.as_ref(), Format::QLORA);
            let groups = [(0..1, 16), (1..2, 0), (2..7, 5), (7..8, 300), (8..13, 0)];
            for weight in [Factor::Transposed(dense.as_ref()), Factor::QuantizedTransposed(&quantized)] {
                let mut sums = Matrix::zeros(13, n, DType::F32);
                let base = Product::new((Factor::Plain(x.as_ref()), weight), false, sums.as_mut());
                multiply(&device, precision, vec![Product { by_tiles: true, ..base }]);
                for (rows, rank) in &groups {
                    let updates = [matrix(*rank, k, DType::F32, 2), matrix(n, *rank, DType::F32, 3)];
                    let own = x.as_ref().rows_range(rows.clone());
                    let expected = rows_by(&device, precision, own, weight, &updates, true);
                    let mut s = Matrix::zeros(rows.len(), *rank, DType::F32);
                    let first = Factor::Transposed(updates[0].as_ref());
                    let of_s = Product::new((Factor::Plain(own), first), false, s.as_mut());
                    multiply(&device, precision, vec![Product { alpha: 0.5, by_tiles: true, ..of_s }]);
                    let mut c = Matrix::zeros(rows.len(), n, dtype);
                    let factors = (Factor::Plain(s.as_ref()), Factor::Transposed(updates[1].as_ref()));
                    let goes_on = Product {
                        by_tiles: true,
                        sums: Some(sums.as_ref().rows_range(rows.clone())),
                        ..Product::new(factors, false, c.as_mut())
                    };
                    multiply(&device, precision, vec![goes_on]);
                    assert!(c.to_vec() == expected, "{device:?}, {precision:?}, {n} x {k}, {rows:?}, {rank}");
                }
            }
        }
    }
}
