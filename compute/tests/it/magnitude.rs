//! Magnitudes and norms of rows against their definitions in f64, made with the weight that the operation
//! never makes.

use compute::ops::magnitude::{self, Weight};
use compute::ops::matmul::{Factor, matmul};
use compute::quant::{Format, Quantized};
use compute::{DType, Device, Matrix, Precision};

use crate::common::{
    DTYPES, assert_close, assert_within, dot, gradient, matrix, on_threads, shapes, small_shapes, wide,
};

/// Rows, columns, rank.
const WEIGHTS: [(usize, usize, usize); 6] =
    [(1, 1, 1), (5, 33, 2), (130, 64, 8), (31, 1500, 16), (64, 11_008, 3), (96, 200, 150)];

#[test]
fn norms_are_those_of_the_adapted_weight() {
    for (out, inner, rank) in WEIGHTS {
        for dtype in DTYPES {
            let (w, a, b) = (
                matrix(out, inner, dtype, 1),
                matrix(rank, inner, DType::F32, 2),
                matrix(out, rank, DType::F32, 3),
            );
            let got = on_threads(|device| vec![norms_of(device, Weight::Dense(w.as_ref()), &a, &b)]);
            assert_within(2e-6, &got[0], &definition(&wide(&w), &a, &b), "norms");
        }
        let w =
            Quantized::quantize(&Device::cpu(1), matrix(out, inner, DType::F32, 1).as_ref(), Format::QLORA);
        let (a, b) = (matrix(rank, inner, DType::F32, 2), matrix(out, rank, DType::F32, 3));
        let got = on_threads(|device| vec![norms_of(device, Weight::Quantized(&w), &a, &b)]);
        let dense = w.dequantize(&Device::cpu(1), DType::F32);
        assert_within(2e-6, &got[0], &definition(&wide(&dense), &a, &b), "norms in four bits");
    }
}

const SCALE: f32 = 0.5;

fn norms_of(device: &Device, w: Weight<'_>, a: &Matrix, b: &Matrix) -> Vec<f32> {
    let (out, rank) = (b.rows(), b.cols());
    let (mut squares, mut norms) = (Matrix::zeros(1, out, DType::F32), Matrix::zeros(1, out, DType::F32));
    magnitude::row_squares(device, squares.as_mut(), w);
    let (mut u, mut gram) = (Matrix::zeros(rank, out, DType::F32), Matrix::zeros(rank, rank, DType::F32));
    let mut v = Matrix::zeros(out, rank, DType::F32);
    let right = match w {
        Weight::Dense(w) => Factor::Transposed(w),
        Weight::Quantized(w) => Factor::QuantizedTransposed(w),
    };
    let (left, precision) = (Factor::Plain(a.as_ref()), Precision::F32);
    matmul(device, precision, 1.0, left, right, false, u.as_mut());
    matmul(device, precision, 1.0, left, Factor::Transposed(a.as_ref()), false, gram.as_mut());
    let (b_left, gram) = (Factor::Plain(b.as_ref()), Factor::Plain(gram.as_ref()));
    matmul(device, precision, 1.0, b_left, gram, false, v.as_mut());
    let products = (u.as_ref(), v.as_ref());
    magnitude::norms(device, norms.as_mut(), squares.as_ref(), products, b.as_ref(), SCALE);
    norms.to_vec()
}

fn definition(w: &[f64], a: &Matrix, b: &Matrix) -> Vec<f64> {
    let (inner, rank) = (a.cols(), a.rows());
    let (a, b) = (wide(a), wide(b));
    let rows = w.chunks(inner).zip(b.chunks(rank));
    let square = |(w, b): (&[f64], &[f64])| {
        let adapted = w.iter().enumerate().map(|(i, w)| {
            w + f64::from(SCALE) * b.iter().enumerate().map(|(r, b)| b * a[r * inner + i]).sum::<f64>()
        });
        adapted.map(|w| w * w).sum::<f64>()
    };
    rows.map(|row| square(row).sqrt()).collect()
}

/// `m[o] / n[o] * z[t, o]`
fn scaled(z: &[f64], m: &[f64], n: &[f64]) -> Vec<f64> {
    z.chunks(m.len())
        .flat_map(|row| row.iter().zip(m).zip(n).map(|((z, m), n)| m / n * z).collect::<Vec<_>>())
        .collect()
}

fn positive(cols: usize, key: u64) -> Matrix {
    let values: Vec<f32> = matrix(1, cols, DType::F32, key).to_vec().iter().map(|v| v.abs() + 0.5).collect();
    Matrix::from_f32(1, cols, &values)
}

#[test]
fn rows_get_the_norms_that_they_are_told_and_zeros_stay_zeros() {
    for (rows, cols) in shapes() {
        let (mut w, m) = (matrix(rows, cols, DType::F32, 1), positive(rows, 2));
        w.as_mut().rows_range(0..1).f32().fill(0.0);
        let got = on_threads(|device| {
            let (mut scaled, mut norms) = (w.to_dtype(DType::F32), Matrix::zeros(1, rows, DType::F32));
            magnitude::set_row_norms(device, scaled.as_mut(), m.as_ref());
            magnitude::row_norms(device, norms.as_mut(), Weight::Dense(scaled.as_ref()));
            vec![scaled.to_vec(), norms.to_vec()]
        });
        assert!(got[0][..cols].iter().all(|v| *v == 0.0) && got[1][0] == 0.0);
        assert_within(1e-6, &got[1][1..], &wide(&m)[1..], "norms");
    }
}

#[test]
fn a_row_without_a_norm_gives_zeros_and_gets_no_gradient() {
    let (z, m, n) = (Matrix::zeros(3, 1, DType::F32), positive(1, 1), Matrix::zeros(1, 1, DType::F32));
    let (mut y, mut dm) = (matrix(3, 1, DType::F32, 2), Matrix::zeros(1, 1, DType::F32));
    let (device, of_columns) = (&Device::cpu(1), (m.as_ref(), n.as_ref()));
    magnitude::forward(device, y.as_mut(), false, z.as_ref(), of_columns);
    assert_eq!(y.to_vec(), [0.0; 3]);
    let dy = matrix(3, 1, DType::F32, 3);
    magnitude::backward(device, y.as_mut(), dm.as_mut(), dy.as_ref(), z.as_ref(), of_columns);
    assert_eq!((y.to_vec(), dm.to_vec()), (vec![0.0; 3], vec![0.0]));
}

#[test]
fn columns_are_scaled_by_magnitude_over_norm() {
    for (rows, cols) in shapes() {
        for (dtype, accumulate) in DTYPES.into_iter().flat_map(|d| [false, true].map(|a| (d, a))) {
            let (z, m, n) = (matrix(rows, cols, dtype, 1), matrix(1, cols, DType::F32, 2), positive(cols, 3));
            let got = on_threads(|device| {
                let mut y = matrix(rows, cols, dtype, 4);
                magnitude::forward(device, y.as_mut(), accumulate, z.as_ref(), (m.as_ref(), n.as_ref()));
                vec![y.to_vec()]
            });
            let mut want = scaled(&wide(&z), &wide(&m), &wide(&n));
            if accumulate {
                want.iter_mut().zip(wide(&matrix(rows, cols, dtype, 4))).for_each(|(w, held)| *w += held);
            }
            assert_close(dtype, &got[0], &want, "y");
        }
    }
}

#[test]
fn the_gradients_are_those_of_the_definition() {
    for (rows, cols) in small_shapes() {
        for dtype in DTYPES {
            let (z, dy) = (matrix(rows, cols, dtype, 1), matrix(rows, cols, dtype, 2));
            let (m, n) = (matrix(1, cols, DType::F32, 3), positive(cols, 4));
            let got = on_threads(|device| {
                let (mut dz, mut dm) = (Matrix::zeros(rows, cols, dtype), matrix(1, cols, DType::F32, 5));
                let (dy, z, of_columns) = (dy.as_ref(), z.as_ref(), (m.as_ref(), n.as_ref()));
                magnitude::backward(device, dz.as_mut(), dm.as_mut(), dy, z, of_columns);
                vec![dz.to_vec(), dm.to_vec()]
            });
            let (z, dy, m, n) = (wide(&z), wide(&dy), wide(&m), wide(&n));
            assert_close(dtype, &got[0], &gradient(&z, |z| dot(&scaled(z, &m, &n), &dy)), "dz");
            let mut dm = gradient(&m, |m| dot(&scaled(&z, m, &n), &dy));
            dm.iter_mut().zip(wide(&matrix(1, cols, DType::F32, 5))).for_each(|(d, held)| *d += held);
            assert_within(5e-6, &got[1], &dm, "dm");
        }
    }
}
