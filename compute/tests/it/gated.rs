//! Gated activations against their definitions in f64, central differences of these, and PyTorch's values.

use compute::ops::gated::{self, Activation};
use compute::{DType, Device, Matrix};

use crate::common::{
    DTYPES, assert_close, assert_within, dot, gradient, matrix, on_threads, shapes, small_shapes, wide,
};

const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

/// `act(x)`
fn act(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * normal_distribution(x),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
    }
}

/// `Φ(x)`: its integral's series about 0, which converges everywhere; beyond 8.5 it is 0 or 1 to `f64`'s
/// precision.
fn normal_distribution(x: f64) -> f64 {
    if x.abs() > 8.5 {
        return if x < 0.0 { 0.0 } else { 1.0 };
    }
    let (mut term, mut sum) = (x, x);
    for k in 1..200 {
        term *= x * x / f64::from(2 * k + 1);
        sum += term;
    }
    0.5 + (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

fn definition(activation: Activation, gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(&g, u)| act(activation, g) * u).collect()
}

#[test]
fn the_result_is_that_of_the_definition() {
    for (rows, cols) in shapes() {
        for (dtype, activation) in DTYPES.into_iter().flat_map(|d| ACTIVATIONS.map(|a| (d, a))) {
            let (gate, up) = (matrix(rows, cols, dtype, 1), matrix(rows, cols, dtype, 2));
            let got = on_threads(|device| {
                let mut y = Matrix::zeros(rows, cols, dtype);
                gated::forward(device, activation, y.as_mut(), gate.as_ref(), up.as_ref());
                vec![y.to_vec()]
            });
            assert_close(dtype, &got[0], &definition(activation, &wide(&gate), &wide(&up)), "y");
        }
    }
}

#[test]
fn the_gradients_are_those_of_the_definition() {
    for (rows, cols) in small_shapes() {
        for (dtype, activation) in DTYPES.into_iter().flat_map(|d| ACTIVATIONS.map(|a| (d, a))) {
            let (gate, up) = (matrix(rows, cols, dtype, 1), matrix(rows, cols, dtype, 2));
            let dy = matrix(rows, cols, dtype, 3);
            let got = on_threads(|device| {
                let (mut gate, mut up) = (matrix(rows, cols, dtype, 1), matrix(rows, cols, dtype, 2));
                gated::backward(device, activation, gate.as_mut(), up.as_mut(), dy.as_ref());
                vec![gate.to_vec(), up.to_vec()]
            });
            let (gate, up, dy) = (wide(&gate), wide(&up), wide(&dy));
            let dgate = gradient(&gate, |gate| dot(&definition(activation, gate, &up), &dy));
            let dup = gradient(&up, |up| dot(&definition(activation, &gate, up), &dy));
            assert_close(dtype, &got[0], &dgate, "dgate");
            assert_close(dtype, &got[1], &dup, "dup");
        }
    }
}

/// `act(gate)` and `act'(gate)` for a row of gates.
fn row(activation: Activation, gate: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (device, n) = (Device::cpu(1), gate.len());
    let one = || Matrix::from_f32(1, n, &vec![1.0; n]);
    let mut y = Matrix::zeros(1, n, DType::F32);
    let mut gate = Matrix::from_f32(1, n, gate);
    gated::forward(&device, activation, y.as_mut(), gate.as_ref(), one().as_ref());
    gated::backward(&device, activation, gate.as_mut(), one().as_mut(), one().as_ref());
    (y.to_vec(), gate.to_vec())
}

#[test]
fn values_far_from_zero_are_right_too() {
    let gates: Vec<f32> = (-1200..=1200).map(|i| i as f32 / 100.0).collect();
    for activation in ACTIVATIONS {
        let (value, slope) = row(activation, &gates);
        let wide: Vec<f64> = gates.iter().copied().map(f64::from).collect();
        let want: Vec<f64> = wide.iter().map(|&x| act(activation, x)).collect();
        assert_within(1e-6, &value, &want, "act");
        let slopes: Vec<f64> =
            wide.iter().map(|&x| (act(activation, x + 1e-5) - act(activation, x - 1e-5)) / 2e-5).collect();
        assert_within(1e-6, &slope, &slopes, "act'");
    }
}

#[test]
fn infinite_gates_are_not_turned_into_nan() {
    for activation in ACTIVATIONS {
        let (value, slope) = row(activation, &[-1e30, -100.0, 100.0, 1e30]);
        assert_eq!(value[2..], [100.0, 1e30]);
        assert!(value[..2].iter().all(|v| v.abs() < 1e-6), "{activation:?} of far below 0: {value:?}");
        let want = [0.0, 0.0, 1.0, 1.0];
        assert!(
            slope.iter().zip(want).all(|(s, w)| (s - w).abs() < 1e-6),
            "{activation:?}'s slopes: {slope:?}"
        );
    }
}

/// torch.nn.functional.silu, gelu and gelu(approximate="tanh"), and their gradients, torch 2.15.
#[test]
fn values_and_slopes_are_pytorch_s() {
    let gates = [-2.5, -1.0, -0.1, 0.0, 0.3, 1.7, 8.0];
    let silu = [-0.189645454, -0.268941432, -0.0475020818, 0.0, 0.172332764, 1.43740916, 7.99731731];
    let dsilu = [-0.0994011089, 0.0723294839, 0.450083196, 0.5, 0.647780061, 1.06756449, 1.0023464];
    let gelu = [-0.0155241787, -0.158655256, -0.0460172184, 0.0, 0.18537344, 1.62423873, 8.0];
    let dgelu = [-0.0376110673, -0.0833154321, 0.420476824, 0.5, 0.732327759, 1.11531794, 1.0];
    let tanh = [-0.0150842965, -0.158807993, -0.0460172482, 0.0, 0.185370937, 1.62410593, 8.0];
    let dtanh = [-0.037951652, -0.0829640925, 0.420478195, 0.5, 0.732295513, 1.11591458, 1.0];
    for (activation, value, slope) in [
        (Activation::Silu, silu, dsilu),
        (Activation::Gelu, gelu, dgelu),
        (Activation::GeluTanh, tanh, dtanh),
    ] {
        let got = row(activation, &gates);
        assert_within(3e-7, &got.0, &value, "act");
        assert_within(3e-7, &got.1, &slope, "act'");
    }
}
