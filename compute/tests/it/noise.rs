//! Random weights: their distribution, and the same bytes whoever makes them.

use compute::ops::noise::nearly_normal;
use compute::{DType, Device, Matrix, bf16, random};

fn filled(device: &Device, rows: usize, cols: usize, dtype: DType, deviation: f32, key: u64) -> Matrix {
    let mut y = Matrix::zeros(rows, cols, dtype);
    nearly_normal(device, y.as_mut(), deviation, key);
    y
}

#[test]
fn random_weights_have_the_mean_and_the_deviation_they_should() {
    let n = 1 << 20;
    let y = filled(&Device::cpu(2), 1, n, DType::F32, 0.02, 7).to_vec();
    let mean = y.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
    let variance = y.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
    assert!(mean.abs() < 1e-4, "{mean}");
    assert!((variance.sqrt() / 0.02 - 1.0).abs() < 0.005, "{}", variance.sqrt());
    assert!(y.iter().all(|v| v.abs() < 0.02 * 3.47));
}

#[test]
fn random_weights_follow_their_definition_on_any_number_of_threads_in_either_type() {
    let (rows, cols, deviation, key) = (37, 1001, 0.5, 11);
    let definition = |i: usize| {
        let bits = random::bits(key, i as u64);
        let sum: u64 = (0..4).map(|k| bits >> (16 * k) & 0xffff).sum();
        deviation * ((sum as f32 - 131_070.0) * (3.0_f32.sqrt() / 65_536.0))
    };
    let expected: Vec<f32> = (0..rows * cols).map(definition).collect();
    let rounded: Vec<f32> = expected.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    for threads in [1, 2, 5] {
        let device = Device::cpu(threads);
        assert_eq!(filled(&device, rows, cols, DType::F32, deviation, key).to_vec(), expected);
        assert_eq!(filled(&device, rows, cols, DType::Bf16, deviation, key).to_vec(), rounded);
    }
}
