//! Layer norm against its definition in f64, and that definition's central differences.

use compute::ops::layer_norm;
use compute::{DType, Matrix};

use crate::common::{
    DTYPES, assert_close, assert_within, column, column_mut, dot, gradient, matrix, on_threads, shapes,
    small_shapes, wide,
};

const EPS: f32 = 1e-5;

fn mean(row: &[f64]) -> f64 {
    row.iter().sum::<f64>() / row.len() as f64
}

/// `1 / sqrt(variance + eps)`
fn rstd(row: &[f64]) -> f64 {
    let m = mean(row);
    1.0 / (row.iter().map(|x| (x - m) * (x - m)).sum::<f64>() / row.len() as f64 + f64::from(EPS)).sqrt()
}

/// `y[t] = weight * (x[t] - mean) * rstd + bias`
fn definition(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let of_row = |row: &[f64]| {
        let (m, r) = (mean(row), rstd(row));
        let affine = weight.iter().zip(bias);
        row.iter().zip(affine).map(|(x, (w, b))| w * ((x - m) * r) + b).collect::<Vec<_>>()
    };
    x.chunks(weight.len()).flat_map(of_row).collect()
}

#[test]
fn the_result_is_that_of_the_definition() {
    for (rows, cols) in shapes() {
        for (dtype, has_bias) in DTYPES.into_iter().flat_map(|d| [false, true].map(|b| (d, b))) {
            let (x, weight) = (matrix(rows, cols, dtype, 1), matrix(1, cols, DType::F32, 2));
            let bias = matrix(1, cols, DType::F32, 3);
            let got = on_threads(|device| {
                let mut y = Matrix::zeros(rows, cols, dtype);
                let (mut means, mut deviations) = (vec![0.0; rows], vec![0.0; rows]);
                let bias = has_bias.then(|| bias.as_ref());
                let (y_to, x, weight) = (y.as_mut(), x.as_ref(), weight.as_ref());
                layer_norm::forward(
                    device,
                    y_to,
                    x,
                    weight,
                    bias,
                    EPS,
                    column_mut(&mut means),
                    column_mut(&mut deviations),
                );
                vec![y.to_vec(), means, deviations]
            });
            let (x, bias) = (wide(&x), if has_bias { wide(&bias) } else { vec![0.0; cols] });
            // A row of one column is all mean: what rounding leaves of it would be scaled up.
            if cols > 1 {
                assert_close(dtype, &got[0], &definition(&x, &wide(&weight), &bias), "y");
                let want: Vec<f64> = x.chunks(cols).map(rstd).collect();
                assert_within(1e-5, &got[2], &want, "rstd");
            }
            assert_within(1e-6, &got[1], &x.chunks(cols).map(mean).collect::<Vec<_>>(), "mean");
        }
    }
}

#[test]
fn the_gradients_are_those_of_the_definition() {
    for (rows, cols) in small_shapes().into_iter().filter(|(_, cols)| *cols > 1) {
        for (dtype, accumulate) in DTYPES.into_iter().flat_map(|d| [false, true].map(|a| (d, a))) {
            let (x, weight) = (matrix(rows, cols, dtype, 1), matrix(1, cols, DType::F32, 2));
            let (bias, dy) = (matrix(1, cols, DType::F32, 3), matrix(rows, cols, dtype, 4));
            let of_rows = |of: fn(&[f64]) -> f64| -> Vec<f32> {
                wide(&x).chunks(cols).map(|row| of(row) as f32).collect()
            };
            let (means, deviations) = (of_rows(mean), of_rows(rstd));
            let held = |rows, cols, dtype, key| matrix(rows, cols, dtype, key);
            let got = on_threads(|device| {
                let (mut dx, mut dweight) = (held(rows, cols, dtype, 5), held(1, cols, DType::F32, 6));
                let mut dbias = held(1, cols, DType::F32, 7);
                let (dw, db) = (Some(dweight.as_mut()), Some(dbias.as_mut()));
                let (dy, x, weight) = (dy.as_ref(), x.as_ref(), weight.as_ref());
                let (means, deviations) = (column(&means), column(&deviations));
                layer_norm::backward(
                    device,
                    dx.as_mut(),
                    accumulate,
                    dy,
                    x,
                    weight,
                    means,
                    deviations,
                    dw,
                    db,
                );
                vec![dx.to_vec(), dweight.to_vec(), dbias.to_vec()]
            });
            let (x, weight, bias, dy) = (wide(&x), wide(&weight), wide(&bias), wide(&dy));
            let add = |mut gradient: Vec<f64>, held: Matrix| {
                gradient.iter_mut().zip(wide(&held)).for_each(|(g, held)| *g += held);
                gradient
            };
            let mut dx = gradient(&x, |x| dot(&definition(x, &weight, &bias), &dy));
            if accumulate {
                dx = add(dx, held(rows, cols, dtype, 5));
            }
            // Narrow rows have deviations far from one, which multiply every rounding.
            let largest = deviations.iter().fold(1.0, |a: f32, b| a.max(*b));
            let tolerance = if dtype == DType::F32 { 4e-6 } else { 1.0 / 200.0 };
            assert_within(tolerance * f64::from(largest), &got[0], &dx, "dx");
            let dweight = gradient(&weight, |weight| dot(&definition(&x, weight, &bias), &dy));
            assert_within(5e-6, &got[1], &add(dweight, held(1, cols, DType::F32, 6)), "dweight");
            let dbias = gradient(&bias, |bias| dot(&definition(&x, &weight, bias), &dy));
            assert_within(3e-6, &got[2], &add(dbias, held(1, cols, DType::F32, 7)), "dbias");
        }
    }
}
