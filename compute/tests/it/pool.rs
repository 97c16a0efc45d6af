//! Sums of neighbouring columns, against the definition in `f64` and central differences of it.

use compute::ops::pool;
use compute::{DType, Matrix};

use crate::common::{DTYPES, assert_close, assert_within, dot, gradient, matrix, on_threads, wide};

const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (3, 32, 32), (5, 96, 32), (2, 60, 12), (17, 128, 64), (33, 1024, 32), (150, 11008, 32)];

fn pooled(x: &[f64], group: usize) -> Vec<f64> {
    x.chunks(group).map(|x| x.iter().sum()).collect()
}

#[test]
fn forward_is_the_sum_of_each_group() {
    for dtype in DTYPES {
        for (rows, cols, group) in SHAPES {
            let x = matrix(rows, cols, dtype, 1);
            let got = on_threads(|device| {
                let mut p = Matrix::zeros(rows, cols / group, DType::F32);
                pool::forward(device, p.as_mut(), x.as_ref(), group);
                vec![p.to_vec()]
            });
            assert_within(1e-5, &got[0], &pooled(&wide(&x), group), &format!("{rows} x {cols} by {group}"));
        }
    }
}

#[test]
fn backward_gives_each_column_its_groups_gradient() {
    for (rows, cols, group) in SHAPES.into_iter().filter(|(rows, cols, _)| rows * cols < 1000) {
        let (x, dp) = (matrix(rows, cols, DType::F32, 1), matrix(rows, cols / group, DType::F32, 2));
        let want = gradient(&wide(&x), |x| dot(&pooled(x, group), &wide(&dp)));
        for dtype in DTYPES {
            for accumulate in [false, true] {
                let before = matrix(rows, cols, dtype, 3);
                let got = on_threads(|device| {
                    let mut dx = before.to_dtype(dtype);
                    pool::backward(device, dx.as_mut(), dp.as_ref(), group, accumulate);
                    vec![dx.to_vec()]
                });
                let old = wide(&before).into_iter().map(|old| if accumulate { old } else { 0.0 });
                let want: Vec<f64> = want.iter().zip(old).map(|(want, old)| want + old).collect();
                assert_close(dtype, &got[0], &want, &format!("{rows} x {cols} by {group}, {accumulate}"));
            }
        }
    }
}
