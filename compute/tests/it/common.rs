//! What the tests of operations share: random inputs, derivatives by differences, comparison, and threads.

use compute::{Cpu, DType, Device, Matrix, MatrixMut, MatrixRef, bf16, random};

/// The instruction sets that this machine has, the plainest first.
pub(crate) fn cpus(threads: usize) -> Vec<Cpu> {
    let names = ["portable", "avx2", "avx512", "avx512bf16"];
    names.into_iter().filter_map(|name| Cpu::with_isa(threads, name).ok()).collect()
}

/// Both element types.
pub(crate) const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Shapes `[rows, cols]` on either side of a vector's width and of a cache line, one large enough for several
/// threads, and a few drawn at random.
pub(crate) fn shapes() -> Vec<(usize, usize)> {
    let mut shapes = vec![(1, 1), (1, 64), (3, 5), (2, 31), (4, 33), (7, 129), (150, 1031)];
    let draw = |i, bound| 1 + random::below(SHAPES, i, bound) as usize;
    shapes.extend((0..8).map(|i| (draw(2 * i, 20), draw(2 * i + 1, 300))));
    shapes
}

/// Small shapes, for derivatives by differences.
pub(crate) fn small_shapes() -> Vec<(usize, usize)> {
    shapes().into_iter().filter(|(rows, cols)| rows * cols <= 600).collect()
}

const SHAPES: u64 = 11;

/// Normal values, the same for the same key.
pub(crate) fn normals(n: usize, key: u64) -> Vec<f32> {
    (0..n as u64).map(|i| random::normal(key, i) as f32).collect()
}

/// A matrix of normal values.
pub(crate) fn matrix(rows: usize, cols: usize, dtype: DType, key: u64) -> Matrix {
    Matrix::from_f32(rows, cols, &normals(rows * cols, key)).to_dtype(dtype)
}

/// Values as a matrix `[n, 1]`.
pub(crate) fn column(values: &[f32]) -> MatrixRef<'_> {
    MatrixRef::from_f32(values.len(), 1, values)
}

/// Values as a matrix `[n, 1]`, to change.
pub(crate) fn column_mut(values: &mut [f32]) -> MatrixMut<'_> {
    MatrixMut::from_f32(values.len(), 1, values)
}

/// Values as a matrix `[1, n]`.
pub(crate) fn row(values: &[f32]) -> MatrixRef<'_> {
    MatrixRef::from_f32(1, values.len(), values)
}

/// Values as a matrix `[1, n]`, to change.
pub(crate) fn row_mut(values: &mut [f32]) -> MatrixMut<'_> {
    MatrixMut::from_f32(1, values.len(), values)
}

/// Ids below `bound`.
pub(crate) fn ids(n: usize, bound: usize, key: u64) -> Vec<u32> {
    (0..n as u64).map(|i| random::below(key, i, bound as u64) as u32).collect()
}

/// The values, for arithmetic in `f64`.
pub(crate) fn wide(m: &Matrix) -> Vec<f64> {
    m.to_vec().into_iter().map(f64::from).collect()
}

/// `Σ a[i] b[i]`
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The gradient of `loss` at `x` by central differences, good to about 1e-9 for losses of order one.
pub(crate) fn gradient(x: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + STEP;
            let above = loss(&x);
            x[i] = at - STEP;
            let below = loss(&x);
            x[i] = at;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// Fails unless every value is within `tolerance * (1 + |want|)` of what is wanted.
pub(crate) fn assert_within(tolerance: f64, got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(
            error <= tolerance * (1.0 + want.abs()),
            "{what}: value {i} is {got}, not {want} (off by {error:e})"
        );
    }
}

/// [`assert_within`] what one rounding to the element type and a short `f32` computation may lose.
pub(crate) fn assert_close(dtype: DType, got: &[f32], want: &[f64], what: &str) {
    let tolerance = match dtype {
        DType::F32 => 3e-6,
        DType::Bf16 => 1.0 / 256.0, // half a unit in the last place, and a little
    };
    assert_within(tolerance, got, want, &format!("{what}, {dtype}"));
}

/// What `run` gives on one thread, having checked that two and three threads give the same bytes.
pub(crate) fn on_threads(run: impl Fn(&Device) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let alone = run(&Device::cpu(1));
    for threads in [2, 3] {
        let together = run(&Device::cpu(threads));
        let bits = |r: &[Vec<f32>]| r.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&alone) == bits(&together), "{threads} threads give other bytes than one");
    }
    alone
}

/// A value as the element type stores it.
pub(crate) fn stored(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => value,
        DType::Bf16 => bf16::from_f32(value).to_f32(),
    }
}
