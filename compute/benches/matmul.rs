//! Matrix products of the shapes that fine-tuning has, against the processor's own peak.
//!
//! `cargo bench -p luthier-compute --bench matmul [-- FILTER]`. Each group prints the peak that its
//! throughput (elements = floating-point operations) is to be compared with. Weights are taken in turn from a
//! set larger than the caches, as in a model; each product is checked against `f64` at some elements before
//! it is timed.

use std::cell::Cell;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use compute::ops::low_rank;
use compute::ops::matmul::{Factor, Product, matmul, multiply};
use compute::quant::{Codebook, Format, Quantized};
use compute::{Cpu, DType, Device, Matrix, Precision};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Tokens of a step.
const T: usize = 512;
/// Bytes of different weights to go round in.
const WEIGHT_BYTES: usize = 128 << 20;

/// What is multiplied: `c[m, n] = op(a)[m, k] * op(b)[k, n]`.
#[derive(Clone, Copy)]
struct Shape {
    size: (usize, usize, usize),
    transposed: (bool, bool),
    accumulate: bool,
    dtypes: (DType, DType, DType),
}

fn random(rows: usize, cols: usize, dtype: DType) -> Matrix {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut m = Matrix::zeros(rows, cols, DType::F32);
    for value in m.as_mut().f32() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *value = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
    }
    m.to_dtype(dtype)
}

fn factor(m: &Matrix, transposed: bool) -> Factor<'_> {
    if transposed { Factor::Transposed(m.as_ref()) } else { Factor::Plain(m.as_ref()) }
}

fn matrix(rows: usize, cols: usize, transposed: bool, dtype: DType) -> Matrix {
    if transposed { random(cols, rows, dtype) } else { random(rows, cols, dtype) }
}

/// A fast wrong product is worth nothing: compares some elements with their sums in `f64`.
fn check(device: &Device, precision: Precision, shape: Shape, a: &Matrix, b: &Matrix) {
    let (m, n, k) = shape.size;
    let (ta, tb) = shape.transposed;
    let mut c = Matrix::zeros(m, n, shape.dtypes.2);
    matmul(device, precision, 1.0, factor(a, ta), factor(b, tb), false, c.as_mut());
    let (a, b, c) = (a.as_ref(), b.as_ref(), c.to_vec());
    let at = |m: compute::MatrixRef<'_>, i: usize, j: usize| match m.dtype() {
        DType::F32 => m.f32()[i * m.cols() + j] as f64,
        DType::Bf16 => m.bf16()[i * m.cols() + j].to_f64(),
    };
    for (i, j) in (0..64).map(|s| (s * 7919 % m, s * 104_729 % n)) {
        let (mut sum, mut size) = (0.0, 0.0);
        for t in 0..k {
            let x = if ta { at(a, t, i) } else { at(a, i, t) };
            let y = if tb { at(b, j, t) } else { at(b, t, j) };
            (sum, size) = (sum + x * y, size + (x * y).abs());
        }
        let got = c[i * n + j] as f64;
        assert!((got - sum).abs() <= 1e-2 * size + sum.abs() / 128.0, "({i}, {j}): {got} for {sum}");
    }
}

fn group(c: &mut Criterion, name: &str, precision: Precision, shapes: &[(&str, Shape)]) {
    let cpu = Cpu::new(0);
    let peak = cpu.peak_flops(precision);
    println!("{name}: peak {:.0} Gflop/s, {} threads, {}", peak / 1e9, cpu.threads(), cpu.isa());
    let device = Device::Cpu(cpu);
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for &(what, shape) in shapes {
        let (m, n, k) = shape.size;
        let a = matrix(m, k, shape.transposed.0, shape.dtypes.0);
        let b = matrix(k, n, shape.transposed.1, shape.dtypes.1);
        check(&device, precision, shape, &a, &b);
        let copies = (WEIGHT_BYTES / b.size_bytes()).clamp(1, 32);
        let weights: Vec<Matrix> = (0..copies).map(|_| b.to_dtype(b.dtype())).collect();
        let (mut out, turn) = (Matrix::zeros(m, n, shape.dtypes.2), Cell::new(0));
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        group.bench_function(BenchmarkId::new(what, format!("{m}x{n}x{k}")), |bencher| {
            bencher.iter(|| {
                let b = &weights[turn.replace((turn.get() + 1) % copies)];
                let (a, b) = (factor(&a, shape.transposed.0), factor(b, shape.transposed.1));
                matmul(&device, precision, 1.0, a, b, shape.accumulate, out.as_mut());
            });
        });
    }
    group.finish();
}

/// `y = x Wᵀ` and `dx = dy W` of a weight `[out, in]`.
fn linear(rows: usize, out: usize, inner: usize, dtype: DType) -> [(&'static str, Shape); 2] {
    let dtypes = (dtype, dtype, dtype);
    let forward = Shape { size: (rows, out, inner), transposed: (false, true), accumulate: false, dtypes };
    let backward = Shape { size: (rows, inner, out), transposed: (false, false), accumulate: false, dtypes };
    [("forward", forward), ("input gradient", backward)]
}

/// The products of an adapter of rank 16 beside a weight `[out, in]`.
fn adapter(out: usize, inner: usize) -> [(&'static str, Shape); 4] {
    let (f, h, r) = (DType::F32, DType::Bf16, 16);
    let shape = |size, transposed, accumulate, dtypes| Shape { size, transposed, accumulate, dtypes };
    [
        ("s = x A^T", shape((T, r, inner), (false, true), false, (h, f, f))),
        ("y += s B^T", shape((T, out, r), (false, true), true, (f, f, h))),
        ("dA += ds^T x", shape((r, inner, T), (true, false), true, (f, h, f))),
        ("dB += dy^T s", shape((out, r, T), (true, false), true, (h, f, f))),
    ]
}

fn products(c: &mut Criterion) {
    let weights =
        [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192), (896, 896), (4864, 896), (768, 768)];
    let of =
        |dtype| weights.iter().flat_map(|&(out, inner)| linear(T, out, inner, dtype)).collect::<Vec<_>>();
    group(c, "bf16", Precision::Bf16, &of(DType::Bf16));
    group(c, "f32", Precision::F32, &of(DType::F32)[..4]);
    group(c, "head", Precision::Bf16, &linear(T, 128_256, 2048, DType::Bf16));
    let rows: Vec<_> =
        [64, 128, 256, 1024].iter().flat_map(|&m| linear(m, 2048, 2048, DType::Bf16)).collect();
    group(c, "rows", Precision::Bf16, &rows);
    let adapters: Vec<_> = [(2048, 2048), (4864, 896)].iter().flat_map(|&(o, i)| adapter(o, i)).collect();
    group(c, "adapter", Precision::Bf16, &adapters);
    let few: Vec<_> = [1, 2, 4, 8].iter().map(|&m| linear(m, 8192, 2048, DType::Bf16)[0]).collect();
    group(c, "few rows", Precision::Bf16, &few);
}

/// A linear layer with an adapter of rank 16, as training has it: both passes, over either kind of weight.
/// Throughput is in operations of the frozen weight's and the adapter's products.
fn low_rank(c: &mut Criterion) {
    let (precision, rank) = (Precision::Bf16, 16);
    let cpu = Cpu::new(0);
    println!("low rank: peak {:.0} Gflop/s, {} threads", cpu.peak_flops(precision) / 1e9, cpu.threads());
    let device = Device::Cpu(cpu);
    let mut group = c.benchmark_group("low rank");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (out, inner) in [(768, 768), (2048, 2048), (8192, 2048)] {
        let (x, dy) = (random(T, inner, DType::Bf16), random(T, out, DType::Bf16));
        let (a, b) = (random(rank, inner, DType::F32), random(out, rank, DType::F32));
        let (mut y, mut dx) = (Matrix::zeros(T, out, DType::Bf16), Matrix::zeros(T, inner, DType::Bf16));
        let [mut s, mut ds] = [(); 2].map(|()| Matrix::zeros(T, rank, DType::F32));
        let (mut da, mut db) = (Matrix::zeros(rank, inner, DType::F32), Matrix::zeros(out, rank, DType::F32));
        let dense = random(out, inner, DType::Bf16);
        let four_bit = Quantized::quantize(&device, dense.as_ref(), Format::QLORA);
        let frozen = 2 * (T * out * inner) as u64;
        let adapter = 2 * (T * rank * (out + inner)) as u64;
        for (what, w) in [("bf16", Weight::Dense(dense)), ("nf4", Weight::FourBit(four_bit))] {
            let size = format!("{T}x{out}x{inner}");
            group.throughput(Throughput::Elements(frozen + adapter));
            group.bench_function(BenchmarkId::new(format!("{what} forward"), &size), |bencher| {
                bencher.iter(|| {
                    let (x, factors) =
                        ((Factor::Plain(x.as_ref()), w.transposed()), (a.as_ref(), b.as_ref()));
                    let update = Some(low_rank::forward(factors, 2.0, s.as_mut(), false));
                    let product = Product { update, ..Product::new(x, false, y.as_mut()) };
                    multiply(&device, precision, vec![product]);
                });
            });
            group.throughput(Throughput::Elements(frozen + 3 * adapter));
            group.bench_function(BenchmarkId::new(format!("{what} backward"), &size), |bencher| {
                bencher.iter(|| {
                    let (a, b) = (a.as_ref(), b.as_ref());
                    let factors = (Factor::Plain(dy.as_ref()), w.plain());
                    let update = Some(low_rank::input_gradient((a, b), 2.0, ds.as_mut()));
                    let product = Product { update, ..Product::new(factors, false, dx.as_mut()) };
                    multiply(&device, precision, vec![product]);
                    let (dy, x) = ((dy.as_ref(), ds.as_ref()), (x.as_ref(), a));
                    let (da, db) = (da.as_mut(), db.as_mut());
                    low_rank::backward(&device, precision, da, db, dy, x, 2.0, s.as_mut());
                });
            });
        }
    }
    group.finish();
}

/// The rows of 64 experts by a weight each, computed together: `[2048, 768]` and back, as Qwen3-30B-A3B's are, lying
/// along the depth as in the forward pass (`along`) and across it as in the backward pass.
fn experts(c: &mut Criterion) {
    const EXPERTS: usize = 64;
    let precision = Precision::Bf16;
    let cpu = Cpu::new(0);
    println!("experts: peak {:.0} Gflop/s, {} threads", cpu.peak_flops(precision) / 1e9, cpu.threads());
    let device = Device::Cpu(cpu);
    let mut group = c.benchmark_group("experts");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (k, n) in [(2048, 768), (768, 2048)] {
        for (along, kind) in [(true, "along"), (false, "across")] {
            let weights: Vec<_> = (0..EXPERTS).map(|_| matrix(k, n, along, DType::Bf16)).collect();
            for rows in [8, 32, 64, 128, 512] {
                let x = random(EXPERTS * rows, k, DType::Bf16);
                let mut y = Matrix::zeros(EXPERTS * rows, n, DType::Bf16);
                group.throughput(Throughput::Elements(2 * (EXPERTS * rows * k * n) as u64));
                group.bench_function(BenchmarkId::new(kind, format!("{rows}x{n}x{k}")), |bencher| {
                    bencher.iter(|| {
                        let mut rest = y.as_mut();
                        let products = weights.iter().enumerate().map(|(e, w)| {
                            let x = x.as_ref().rows_range(e * rows..(e + 1) * rows);
                            let factors = (Factor::Plain(x), factor(w, along));
                            Product::new(factors, false, rest.split_off_rows(rows))
                        });
                        multiply(&device, precision, products.collect());
                    });
                });
            }
        }
    }
    group.finish();
}

/// Bytes of weights that generation goes round in: none of them is in a cache when its turn comes.
const COLD_BYTES: usize = 256 << 20;
/// Weights `[out, in]` of a 1B model: keys, queries, up, down.
const GENERATION: [(usize, usize); 4] = [(512, 2048), (2048, 2048), (8192, 2048), (2048, 8192)];

/// The sum of all words on all threads: as fast as memory is read.
fn read(words: &[u64], threads: usize) {
    thread::scope(|scope| {
        for part in words.chunks(words.len().div_ceil(threads)) {
            scope.spawn(move || black_box(part.iter().fold(0_u64, |sum, &word| sum.wrapping_add(word))));
        }
    });
}

/// A weight as a model has it.
enum Weight {
    Dense(Matrix),
    FourBit(Quantized),
}

impl Weight {
    /// As many of them as are [`COLD_BYTES`], and the bytes of one.
    fn many(one: impl Fn() -> Weight) -> (Vec<Weight>, usize) {
        let bytes = match one() {
            Weight::Dense(w) => w.size_bytes(),
            Weight::FourBit(w) => w.size_bytes(),
        };
        ((0..COLD_BYTES / bytes).map(|_| one()).collect(), bytes)
    }

    fn plain(&self) -> Factor<'_> {
        match self {
            Weight::Dense(w) => Factor::Plain(w.as_ref()),
            Weight::FourBit(w) => Factor::Quantized(w),
        }
    }

    fn transposed(&self) -> Factor<'_> {
        match self {
            Weight::Dense(w) => Factor::Transposed(w.as_ref()),
            Weight::FourBit(w) => Factor::QuantizedTransposed(w),
        }
    }
}

fn same(w: &Quantized) -> Quantized {
    let from = w.codebook().expect("NF4");
    let mut copy = Codebook::new(from.elements(), from.block_size(), *from.table(), from.scales().clone());
    copy.codes_mut().copy_from_slice(from.codes());
    Quantized::of_codebook(w.rows(), w.cols(), copy)
}

/// Products of one row and of four by weights that come from memory, between passes that only read: prints
/// the best of each, so that what else the machine does counts little.
fn generation(c: &mut Criterion) {
    let cpu = Cpu::new(0);
    let threads = cpu.threads();
    println!("generation: {threads} threads, {}", cpu.isa());
    let device = Device::Cpu(cpu);
    let words = vec![1_u64; COLD_BYTES / 8];
    let speed = |bytes: usize, time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    let mut group = c.benchmark_group("generation");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(2));
    for (out, inner) in GENERATION {
        let dense = random(out, inner, DType::Bf16);
        let four_bit = Quantized::quantize(&device, dense.as_ref(), Format::QLORA);
        let dense = Weight::many(|| Weight::Dense(dense.to_dtype(DType::Bf16)));
        let four_bit = Weight::many(|| Weight::FourBit(same(&four_bit)));
        let kinds = [
            ("bf16", Precision::Bf16, &dense),
            ("nf4", Precision::Bf16, &four_bit),
            ("nf4 in f32", Precision::F32, &four_bit),
        ];
        for (rows, (what, precision, (weights, bytes))) in
            [1, 4].into_iter().flat_map(|rows| kinds.map(|kind| (rows, kind)))
        {
            let x = random(rows, inner, precision.dtype());
            let mut y = Matrix::zeros(rows, out, precision.dtype());
            let bytes = weights.len() * bytes;
            let (mut best, mut reading) = (Duration::MAX, Duration::MAX);
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new(what, format!("{rows}x{out}x{inner}")), |bencher| {
                bencher.iter_custom(|rounds| {
                    let round = |_| {
                        let begun = Instant::now();
                        read(&words, threads);
                        reading = reading.min(begun.elapsed());
                        let begun = Instant::now();
                        for w in weights {
                            let x = Factor::Plain(x.as_ref());
                            matmul(&device, precision, 1.0, x, w.transposed(), false, y.as_mut());
                        }
                        let time = begun.elapsed();
                        best = best.min(time);
                        time
                    };
                    (0..rounds).map(round).sum()
                });
            });
            if best == Duration::MAX {
                continue; // filtered out
            }
            let (got, most) = (speed(bytes, best), speed(COLD_BYTES, reading));
            println!("best: {got:.1} GB/s of weights, {:.2} of the {most:.1} GB/s of reading", got / most);
        }
    }
    group.finish();
}

criterion_group!(benches, generation, products, low_rank, experts);
criterion_main!(benches);
