//! Cross entropy against its definition in f64, and that definition's central differences.

use compute::ops::cross_entropy;
use compute::{DType, Device, Matrix};

use crate::common::{
    assert_within, column, column_mut, gradient, ids, matrix, normals, on_threads, shapes, small_shapes, wide,
};

/// `log Σ exp(logits) - logits[target]`, row by row
fn definition(logits: &[f64], targets: &[u32]) -> Vec<f64> {
    let width = logits.len() / targets.len();
    let loss = |(row, &target): (&[f64], &u32)| {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() - row[target as usize]
    };
    logits.chunks(width).zip(targets).map(loss).collect()
}

/// `losses` and `dlogits`, having checked that evaluation gives the same losses.
fn run(logits: &Matrix, targets: &[u32], weights: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let results = on_threads(|device| {
        let mut losses = vec![0.0; targets.len()];
        cross_entropy::forward(device, logits.as_ref(), targets.into(), column_mut(&mut losses));
        let (mut dlogits, mut again) = (logits.to_dtype(DType::F32), vec![0.0; targets.len()]);
        cross_entropy::forward_backward(
            device,
            dlogits.as_mut(),
            targets.into(),
            column(weights),
            column_mut(&mut again),
        );
        assert_eq!(losses, again, "evaluation and training see the same losses");
        vec![losses, dlogits.to_vec()]
    });
    let [losses, dlogits] = results.try_into().expect("two results");
    (losses, dlogits)
}

#[test]
fn losses_are_those_of_the_definition() {
    for (rows, cols) in shapes() {
        for spread in [1.0, 20.0] {
            let values: Vec<f32> = normals(rows * cols, 1).into_iter().map(|v| v * spread).collect();
            let (logits, targets) = (Matrix::from_f32(rows, cols, &values), ids(rows, cols, 2));
            let (losses, _) = run(&logits, &targets, &vec![1.0; rows]);
            assert_within(3e-7, &losses, &definition(&wide(&logits), &targets), "losses");
        }
    }
}

#[test]
fn gradients_are_those_of_the_definition() {
    for (rows, cols) in small_shapes() {
        let (logits, targets) = (matrix(rows, cols, DType::F32, 1), ids(rows, cols, 2));
        let weights: Vec<f32> = normals(rows, 3).into_iter().map(|weight| 0.37 * weight).collect();
        let (_, dlogits) = run(&logits, &targets, &weights);
        let weighted = |(loss, weight): (f64, &f32)| f64::from(*weight) * loss;
        let total = |logits: &[f64]| -> f64 {
            definition(logits, &targets).into_iter().zip(&weights).map(weighted).sum()
        };
        assert_within(5e-7, &dlogits, &gradient(&wide(&logits), total), "dlogits");
    }
}

#[test]
fn a_large_vocabulary_costs_no_precision() {
    let (rows, cols) = (3, 128_256);
    let (logits, targets) = (matrix(rows, cols, DType::F32, 1), ids(rows, cols, 2));
    let (losses, dlogits) = run(&logits, &targets, &vec![1.0; rows]);
    let want = definition(&wide(&logits), &targets);
    assert_within(1e-7, &losses, &want, "losses");
    for ((row, logits), (target, loss)) in
        dlogits.chunks(cols).zip(wide(&logits).chunks(cols)).zip(targets.iter().zip(want))
    {
        let normalizer = loss + logits[*target as usize];
        for (v, (d, x)) in row.iter().zip(logits).enumerate() {
            let p = (x - normalizer).exp();
            let error = f64::from(*d) - (p - f64::from(u8::from(v == *target as usize)));
            assert!(error.abs() < 1e-6 * p + 1e-7, "gradient {v}: {d}, off by {error:e}");
        }
    }
}

#[test]
fn extreme_logits_neither_overflow_nor_lose_the_target() {
    let logits = Matrix::from_f32(2, 3, &[1e30, -1e30, 0.0, 1000.0, 999.0, f32::NEG_INFINITY]);
    let (losses, dlogits) = run(&logits, &[0, 1], &[1.0; 2]);
    assert_eq!(losses[0], 0.0);
    assert_within(1e-6, &losses[1..], &[1.313_261_687_518_222_8], "loss");
    assert_within(
        1e-6,
        &dlogits,
        &[0.0, 0.0, 0.0, 0.731_058_578_630_004_9, -0.731_058_578_630_004_9, 0.0],
        "dlogits",
    );
}

#[test]
#[should_panic(expected = "target 1 is 3, but there are 3 logits")]
fn a_target_beyond_the_vocabulary_is_refused() {
    let logits = matrix(2, 3, DType::F32, 1);
    cross_entropy::forward(&Device::cpu(1), logits.as_ref(), (&[0, 3]).into(), column_mut(&mut [0.0; 2]));
}
