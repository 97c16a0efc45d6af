//! Bias against its definition.

use compute::DType;
use compute::ops::bias;

use crate::common::{DTYPES, assert_close, assert_within, dot, gradient, matrix, on_threads, shapes, wide};

/// `y[t, n] + bias[n]`
fn definition(y: &[f64], bias: &[f64]) -> Vec<f64> {
    y.chunks(bias.len())
        .flat_map(|row| row.iter().zip(bias).map(|(y, b)| y + b).collect::<Vec<_>>())
        .collect()
}

#[test]
fn the_bias_is_added_to_every_row() {
    for (rows, cols) in shapes() {
        for (dtype, bias_dtype) in DTYPES.into_iter().flat_map(|a| DTYPES.map(|b| (a, b))) {
            let bias = matrix(1, cols, bias_dtype, 2);
            let got = on_threads(|device| {
                let mut y = matrix(rows, cols, dtype, 1);
                bias::add(device, y.as_mut(), bias.as_ref());
                vec![y.to_vec()]
            });
            let want = definition(&wide(&matrix(rows, cols, dtype, 1)), &wide(&bias));
            assert_close(dtype, &got[0], &want, "y");
        }
    }
}

#[test]
fn the_gradient_is_the_sum_down_the_columns() {
    for (rows, cols) in shapes() {
        for dtype in DTYPES {
            let dy = matrix(rows, cols, dtype, 1);
            let got = on_threads(|device| {
                let mut dbias = matrix(1, cols, DType::F32, 2);
                bias::backward(device, dbias.as_mut(), dy.as_ref());
                vec![dbias.to_vec()]
            });
            let held = wide(&matrix(1, cols, DType::F32, 2));
            let dy = wide(&dy);
            let sums: Vec<f64> = if rows * cols <= 600 {
                gradient(&vec![0.0; cols], |bias| dot(&definition(&vec![0.0; rows * cols], bias), &dy))
            } else {
                (0..cols).map(|c| dy.iter().skip(c).step_by(cols).sum()).collect()
            };
            let want: Vec<f64> = held.iter().zip(sums).map(|(held, sum)| held + sum).collect();
            assert_within(1e-6, &got[0], &want, "dbias");
        }
    }
}
