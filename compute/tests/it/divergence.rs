//! The divergence of logits against its definition in f64.

use compute::Matrix;
use compute::ops::divergence;

use crate::common::{assert_within, column_mut, normals, on_threads, shapes, wide};

/// `Σ p (log p - log q)`, row by row
fn definition(of: &[f64], from: &[f64], width: usize) -> Vec<f64> {
    let log_softmax = |row: &[f64]| -> Vec<f64> {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log = largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
        row.iter().map(|x| x - log).collect()
    };
    let divergence = |(of, from): (&[f64], &[f64])| {
        let terms = log_softmax(of).into_iter().zip(log_softmax(from));
        terms.map(|(p, q)| if p.exp() == 0.0 { 0.0 } else { p.exp() * (p - q) }).sum()
    };
    of.chunks(width).zip(from.chunks(width)).map(divergence).collect()
}

fn run(of: &Matrix, from: &Matrix) -> Vec<f32> {
    let results = on_threads(|device| {
        let mut divergences = vec![f32::NAN; of.rows()];
        divergence::forward(device, of.as_ref(), from.as_ref(), column_mut(&mut divergences));
        vec![divergences]
    });
    results.into_iter().next().expect("one result")
}

/// Logits, and others that differ from them by so much.
fn pair(rows: usize, cols: usize, spread: f32, apart: f32) -> (Matrix, Matrix) {
    let of: Vec<f32> = normals(rows * cols, 1).into_iter().map(|v| v * spread).collect();
    let from: Vec<f32> = of.iter().zip(normals(rows * cols, 2)).map(|(a, b)| a + apart * b).collect();
    (Matrix::from_f32(rows, cols, &of), Matrix::from_f32(rows, cols, &from))
}

#[test]
fn divergences_are_those_of_the_definition() {
    for (rows, cols) in shapes() {
        for spread in [1.0, 20.0] {
            for apart in [0.0, 1e-2, 0.3, 1.0, 20.0] {
                let (of, from) = pair(rows, cols, spread, apart);
                let want = definition(&wide(&of), &wide(&from), cols);
                let what = format!("{rows} x {cols}, {spread}, {apart}");
                assert_within(2e-6, &run(&of, &from), &want, &what);
            }
        }
    }
}

#[test]
fn what_is_close_is_told_apart_over_a_large_vocabulary() {
    for apart in [1e-3, 1e-2] {
        let (of, from) = pair(3, 128_256, 3.0, apart);
        let want = definition(&wide(&of), &wide(&from), of.cols());
        for (got, want) in run(&of, &from).into_iter().zip(want) {
            // Of the order of the square of what logits differ by, which a sum that cancels would lose.
            assert!((f64::from(got) / want - 1.0).abs() < 1e-3, "{got:e}, not {want:e}");
        }
    }
}

#[test]
fn what_is_the_same_does_not_diverge_and_what_is_impossible_does_without_end() {
    let same = Matrix::from_f32(1, 4, &[1e30, -1e30, 3.0, f32::NEG_INFINITY]);
    assert_eq!(run(&same, &same), [0.0]);
    let (sure, never) = ([0.0, f32::NEG_INFINITY], [f32::NEG_INFINITY, 0.0]);
    let row = |values: &[f32]| Matrix::from_f32(1, values.len(), values);
    assert_eq!(run(&row(&sure), &row(&[0.0, 0.0])), [std::f32::consts::LN_2]);
    assert_eq!(run(&row(&sure), &row(&never)), [f32::INFINITY]);
    assert!(run(&row(&[0.0, f32::NAN]), &row(&[0.0, 0.0]))[0].is_nan(), "damaged logits are not hidden");
    assert!(run(&row(&[0.0, 0.0]), &row(&[f32::NAN, 0.0]))[0].is_nan());
}
