//! Activations without a gate: those of the gated ones, whose functions are held against their definitions
//! there.

use compute::ops::activation;
use compute::ops::gated::{self, Activation};
use compute::{Device, Matrix};

use crate::common::{DTYPES, assert_close, dot, gradient, matrix, on_threads, shapes, small_shapes, wide};

const ALL: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

/// `act(x)`, by the formulas of the gated operation's page; the error function by its series and its tail's
/// continued fraction.
fn definition(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x * 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
    }
}

fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    if x.abs() > 4.0 { x.signum() } else { 2.0 / std::f64::consts::PI.sqrt() * sum }
}

#[test]
fn the_result_is_that_of_the_definition() {
    for (rows, cols) in shapes() {
        for (dtype, act) in DTYPES.into_iter().flat_map(|d| ALL.map(|a| (d, a))) {
            let x = matrix(rows, cols, dtype, 1);
            let got = on_threads(|device| {
                let mut y = Matrix::zeros(rows, cols, dtype);
                activation::forward(device, act, y.as_mut(), x.as_ref());
                vec![y.to_vec()]
            });
            let want: Vec<f64> = wide(&x).into_iter().map(|x| definition(act, x)).collect();
            assert_close(dtype, &got[0], &want, &format!("{act:?}"));
        }
    }
}

#[test]
fn the_gradient_is_that_of_the_definition() {
    for (rows, cols) in small_shapes() {
        for (dtype, act) in DTYPES.into_iter().flat_map(|d| ALL.map(|a| (d, a))) {
            let (x, dy) = (matrix(rows, cols, dtype, 1), matrix(rows, cols, dtype, 2));
            let got = on_threads(|device| {
                let mut dx = matrix(rows, cols, dtype, 1);
                activation::backward(device, act, dx.as_mut(), dy.as_ref());
                vec![dx.to_vec()]
            });
            let value = |x: &[f64]| x.iter().map(|&x| definition(act, x)).collect::<Vec<_>>();
            let want = gradient(&wide(&x), |x| dot(&value(x), &wide(&dy)));
            assert_close(dtype, &got[0], &want, &format!("{act:?}"));
        }
    }
}

#[test]
fn it_is_the_gated_activation_of_a_gate_of_one() {
    let device = Device::cpu(1);
    for act in ALL {
        let (x, mut ones) = (matrix(9, 77, DTYPES[0], 1), Matrix::zeros(9, 77, DTYPES[0]));
        ones.as_mut().f32().fill(1.0);
        let [mut plain, mut with_gate] = [(); 2].map(|()| Matrix::zeros(9, 77, DTYPES[0]));
        activation::forward(&device, act, plain.as_mut(), x.as_ref());
        gated::forward(&device, act, with_gate.as_mut(), x.as_ref(), ones.as_ref());
        assert_eq!(plain.to_vec(), with_gate.to_vec(), "{act:?}");
    }
}
