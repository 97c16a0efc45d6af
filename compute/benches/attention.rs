//! Attention's speed beside the matrix product's: `cargo bench -p luthier-compute --bench attention`.
//!
//! Throughput is in floating-point operations as the formulas need them: two products forward, five backward,
//! `2 D` operations for each pair of a query head and a key it sees. What tiles compute beyond that counts as
//! time only. Everything runs on one thread, and time is what the processor spent on it: numbers from a busy
//! machine stay good.

use std::hint::black_box;
use std::time::Duration;

use compute::ops::attention::{Attention, Segment, backward, forward};
use compute::ops::matmul::{Factor, matmul};
use compute::{DType, Device, Matrix, Precision};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A name, query heads, key heads, head size, and `(queries, keys)` of each sequence.
type Shape<'a> = (&'a str, usize, usize, usize, &'a [(usize, usize)]);

/// Processor time of this process.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid place for the answer, and every Linux and macOS has this clock.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
        assert_eq!(failed, 0, "the process has a clock");
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// Matrices of one problem.
struct Problem {
    attention: Attention,
    segments: Vec<Segment>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    out: Matrix,
    lse: Matrix,
    dout: Matrix,
    dq: Matrix,
    dk: Matrix,
    dv: Matrix,
}

impl Problem {
    /// Sequences packed end to end, `(queries, keys)` each.
    fn new(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        lengths: &[(usize, usize)],
        precision: Precision,
    ) -> Self {
        let attention = Attention {
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
            cap: None,
        };
        let (mut t, mut s) = (0, 0);
        let segments = lengths.iter().map(|&(queries, keys)| {
            (t, s) = (t + queries, s + keys);
            Segment { queries: t - queries..t, keys: (s - keys..s).into() }
        });
        let segments = segments.collect();
        let (wide, narrow, dtype) = (heads * head_dim, kv_heads * head_dim, precision.dtype());
        let zeros = |rows, cols| Matrix::zeros(rows, cols, dtype);
        Problem {
            attention,
            segments,
            q: random(t, wide, dtype),
            k: random(s, narrow, dtype),
            v: random(s, narrow, dtype),
            out: zeros(t, wide),
            lse: Matrix::zeros(t, heads, DType::F32),
            dout: random(t, wide, dtype),
            dq: zeros(t, wide),
            dk: zeros(s, narrow),
            dv: zeros(s, narrow),
        }
    }

    /// Operations of one product over all visible pairs.
    fn product_flops(&self) -> u64 {
        let pairs = |s: &Segment| (s.keys.len() - s.queries.len() + 1..=s.keys.len()).sum::<usize>();
        let pairs: usize = self.segments.iter().map(pairs).sum();
        (2 * pairs * self.attention.heads * self.attention.head_dim) as u64
    }

    fn forward(&mut self, device: &Device, precision: Precision) {
        let (a, s) = (&self.attention, &self.segments[..]);
        let (q, k, v) = (self.q.as_ref(), self.k.as_ref(), self.v.as_ref());
        forward(device, precision, a, s, q, k, v, self.out.as_mut(), self.lse.as_mut());
    }

    fn backward(&mut self, device: &Device, precision: Precision) {
        let (a, s) = (&self.attention, &self.segments[..]);
        let (q, k, v) = (self.q.as_ref(), self.k.as_ref(), self.v.as_ref());
        let (out, lse, dout) = (self.out.as_ref(), self.lse.as_ref(), self.dout.as_ref());
        let (dq, dk, dv) = (self.dq.as_mut(), self.dk.as_mut(), self.dv.as_mut());
        backward(device, precision, a, s, q, k, v, out, lse, dout, dq, dk, dv);
    }
}

fn random(rows: usize, cols: usize, dtype: DType) -> Matrix {
    let mut state = (rows * cols) as u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..rows * cols).map(|_| next()).collect();
    Matrix::from_f32(rows, cols, &values).to_dtype(dtype)
}

fn training(c: &mut Criterion<CpuTime>) {
    let device = Device::cpu(1);
    let chats: Vec<_> = (0..12).map(|i| 20 + (i * 97) % 280).map(|n| (n, n)).collect();
    let shapes: [Shape<'_>; 5] = [
        ("llama-3.2-1b, 512", 32, 8, 64, &[(512, 512)]),
        ("llama-3.2-1b, 12 chats", 32, 8, 64, &chats),
        ("llama-3.2-1b, 4096", 32, 8, 64, &[(4096, 4096)]),
        ("qwen2.5-0.5b, 512", 14, 2, 64, &[(512, 512)]),
        ("llama-3.1-8b, 1024", 32, 8, 128, &[(1024, 1024)]),
    ];
    for precision in [Precision::Bf16, Precision::F32] {
        let mut group = c.benchmark_group(format!("attention {precision:?}"));
        group.sample_size(10);
        product(&mut group, &device, precision);
        for (name, heads, kv_heads, head_dim, lengths) in shapes {
            let mut p = Problem::new(heads, kv_heads, head_dim, lengths, precision);
            group.throughput(Throughput::Elements(2 * p.product_flops()));
            group.bench_function(BenchmarkId::new("forward", name), |b| {
                b.iter(|| p.forward(&device, precision))
            });
            group.throughput(Throughput::Elements(5 * p.product_flops()));
            group.bench_function(BenchmarkId::new("backward", name), |b| {
                b.iter(|| p.backward(&device, precision))
            });
        }
        group.finish();
    }
}

/// The measure: a product as large as a layer's.
fn product(group: &mut BenchmarkGroup<'_, CpuTime>, device: &Device, precision: Precision) {
    let (a, b) = (random(512, 2048, precision.dtype()), random(2048, 2048, precision.dtype()));
    let mut c = Matrix::zeros(512, 2048, precision.dtype());
    group.throughput(Throughput::Elements(2 * 512 * 2048 * 2048));
    group.bench_function("matrix product", |bench| {
        bench.iter(|| {
            let (a, b) = (Factor::Plain(a.as_ref()), Factor::Transposed(b.as_ref()));
            matmul(device, precision, 1.0, a, b, false, c.as_mut());
        })
    });
    black_box(&c);
}

/// One query for each of several sequences against its cache: the time is that of reading keys and values, so
/// throughput is in bytes of these.
fn generation(c: &mut Criterion<CpuTime>) {
    let device = Device::cpu(1);
    let mut group = c.benchmark_group("attention, generation");
    group.sample_size(20);
    for (sequences, keys) in [(1, 256), (1, 4096), (16, 1024)] {
        let mut p = Problem::new(32, 8, 64, &vec![(1, keys); sequences], Precision::Bf16);
        group.throughput(Throughput::Bytes((p.k.size_bytes() + p.v.size_bytes()) as u64));
        let name = format!("{sequences} x {keys} keys");
        group.bench_function(name, |b| b.iter(|| p.forward(&device, Precision::Bf16)));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = training, generation
}
criterion_main!(benches);
