//! Multiplication by a number, by position, sums with a factor, and caps: each against its definition.

use compute::ops::position_scale::{self, PositionScale};
use compute::ops::{residual, scale, soft_cap};
use compute::{DType, Device, Matrix};

use crate::common::{
    DTYPES, assert_close, assert_within, dot, gradient, ids, matrix, on_threads, shapes, small_shapes, wide,
};

#[test]
fn matrices_are_multiplied_and_added_with_their_factor() {
    for (rows, cols) in shapes() {
        for dtype in DTYPES {
            let x = matrix(rows, cols, dtype, 1);
            let got = on_threads(|device| {
                let mut y = Matrix::zeros(rows, cols, dtype);
                scale::apply(device, y.as_mut(), x.as_ref(), -1.75);
                let mut same = matrix(rows, cols, dtype, 1);
                scale::in_place(device, same.as_mut(), -1.75);
                assert_eq!(same.to_vec(), y.to_vec());
                let mut sum = matrix(rows, cols, dtype, 2);
                residual::add_scaled(device, sum.as_mut(), x.as_ref(), 0.22);
                vec![y.to_vec(), sum.to_vec()]
            });
            let (x, held) = (wide(&x), wide(&matrix(rows, cols, dtype, 2)));
            assert_close(dtype, &got[0], &x.iter().map(|x| -1.75 * x).collect::<Vec<_>>(), "scaled");
            let sum: Vec<f64> = x.iter().zip(held).map(|(x, y)| y + f64::from(0.22_f32) * x).collect();
            assert_close(dtype, &got[1], &sum, "sum");
        }
    }
}

#[test]
fn a_factor_of_one_adds_as_without() {
    for dtype in DTYPES {
        let x = matrix(7, 129, dtype, 1);
        on_threads(|device| {
            let [mut plain, mut scaled] = [(); 2].map(|()| matrix(7, 129, dtype, 2));
            residual::add(device, plain.as_mut(), x.as_ref());
            residual::add_scaled(device, scaled.as_mut(), x.as_ref(), 1.0);
            assert_eq!(plain.to_vec(), scaled.to_vec());
            vec![plain.to_vec()]
        });
    }
}

/// `1 + beta ln(1 + floor(p / original))`, as `get_llama_4_attn_scale` of transformers.
#[test]
fn rows_grow_with_their_position() {
    let table = PositionScale::new(&Device::cpu(1), 0.1, 16, 100);
    for (rows, cols) in shapes() {
        for dtype in DTYPES {
            let (x, positions) = (matrix(rows, cols, dtype, 1), ids(rows, 100, 2));
            let got = on_threads(|device| {
                let mut y = matrix(rows, cols, dtype, 1);
                position_scale::apply(device, y.as_mut(), &table, (&positions).into());
                vec![y.to_vec()]
            });
            let factor = |p: u32| 1.0 + 0.1 * (1.0 + (f64::from(p) / 16.0).floor()).ln();
            let x = wide(&x);
            let rows = x.chunks(cols).zip(&positions);
            let want: Vec<f64> = rows.flat_map(|(row, &p)| row.iter().map(move |x| factor(p) * x)).collect();
            assert_close(dtype, &got[0], &want, "scaled by position");
        }
    }
}

/// `cap tanh(factor x / cap)`
fn capped(x: &[f64], factor: f64, cap: f64) -> Vec<f64> {
    x.iter().map(|x| cap * (factor * x / cap).tanh()).collect()
}

#[test]
fn caps_bend_as_the_definition_says() {
    for (factor, cap) in [(1.0, 2.0), (0.25, 30.0), (40.0, 3.0)] {
        for (rows, cols) in shapes() {
            let x = matrix(rows, cols, DType::F32, 1);
            let got = on_threads(|device| {
                let mut y = matrix(rows, cols, DType::F32, 1);
                soft_cap::forward(device, y.as_mut(), factor, cap);
                vec![y.to_vec()]
            });
            let want = capped(&wide(&x), f64::from(factor), f64::from(cap));
            assert_within(3e-6, &got[0], &want, "capped");
        }
    }
}

#[test]
fn the_gradient_of_a_cap_is_that_of_the_definition() {
    for (factor, cap) in [(1.0, 2.0), (0.25, 30.0)] {
        for (rows, cols) in small_shapes() {
            let (x, dy) = (matrix(rows, cols, DType::F32, 1), matrix(rows, cols, DType::F32, 2));
            let got = on_threads(|device| {
                let (mut y, mut dx) = (matrix(rows, cols, DType::F32, 1), matrix(rows, cols, DType::F32, 2));
                soft_cap::forward(device, y.as_mut(), factor, cap);
                soft_cap::backward(device, dx.as_mut(), y.as_ref(), factor, cap);
                vec![dx.to_vec()]
            });
            let (factor, cap) = (f64::from(factor), f64::from(cap));
            let want = gradient(&wide(&x), |x| dot(&capped(x, factor, cap), &wide(&dy)));
            assert_within(3e-6, &got[0], &want, "dx");
        }
    }
}
