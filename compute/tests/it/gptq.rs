//! GPTQ against its definition in `f64`, and against rounding: a layer's outputs lose less.

use compute::ops::gptq;
use compute::quant::{BlockType, Format, Quantized};
use compute::{DType, Device, Matrix};

use crate::common::{matrix, on_threads, wide};

const KINDS: [BlockType; 3] = [BlockType::Int4, BlockType::Int3, BlockType::Int2];

/// The upper factor of the inverse of `h [n, n]`: `H⁻¹ = uᵀ u`, by Gauss and Cholesky.
fn factor(h: &[f64], n: usize) -> Vec<f64> {
    let mut a: Vec<f64> = h.to_vec();
    let mut inverse: Vec<f64> = (0..n * n).map(|i| f64::from(i % (n + 1) == 0)).collect();
    for p in 0..n {
        let pivot = a[p * n + p];
        for j in 0..n {
            a[p * n + j] /= pivot;
            inverse[p * n + j] /= pivot;
        }
        for i in (0..n).filter(|&i| i != p) {
            let factor = a[i * n + p];
            for j in 0..n {
                a[i * n + j] -= factor * a[p * n + j];
                inverse[i * n + j] -= factor * inverse[p * n + j];
            }
        }
    }
    let mut u = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            let sum: f64 = (0..i).map(|k| u[k * n + i] * u[k * n + j]).sum();
            let rest = inverse[i * n + j] - sum;
            u[i * n + j] = if i == j { rest.sqrt() } else { rest / u[i * n + i] };
        }
    }
    u
}

/// Inputs whose columns have much in common, as those of layers do.
fn inputs(rows: usize, cols: usize) -> Vec<f64> {
    let (x, common) = (wide(&matrix(rows, cols, DType::F32, 3)), wide(&matrix(rows, 1, DType::F32, 4)));
    x.iter().enumerate().map(|(i, x)| 0.4 * x + common[i / cols] * (1.0 + (i % cols % 7) as f64)).collect()
}

fn hessian(x: &[f64], cols: usize) -> Vec<f64> {
    let mut h = vec![0.0; cols * cols];
    for x in x.chunks(cols) {
        (0..cols * cols).for_each(|i| h[i] += x[i / cols] * x[i % cols]);
    }
    let mean = (0..cols).map(|i| h[i * cols + i]).sum::<f64>() / cols as f64;
    (0..cols).for_each(|i| h[i * cols + i] += 0.01 * mean);
    h
}

/// The squared error of the layer's outputs.
fn error(x: &[f64], w: &[f64], got: &[f32], cols: usize) -> f64 {
    let difference: Vec<f64> = w.iter().zip(got).map(|(w, got)| w - f64::from(*got)).collect();
    let outputs = |x: &[f64]| -> f64 {
        difference.chunks(cols).map(|d| d.iter().zip(x).map(|(d, x)| d * x).sum::<f64>().powi(2)).sum()
    };
    x.chunks(cols).map(outputs).sum()
}

fn quantized(device: &Device, w: &Matrix, u: &[f64], kind: BlockType) -> Vec<f32> {
    let inner = w.cols();
    let u: Vec<f32> = u.iter().map(|&u| u as f32).collect();
    let (mut w, u) = (w.to_dtype(DType::F32), Matrix::from_f32(inner, inner, &u));
    gptq::quantize(device, w.as_mut(), u.as_ref(), kind).dequantize(device, DType::F32).to_vec()
}

#[test]
fn outputs_lose_less_than_by_rounding_on_any_number_of_threads() {
    let (out, inner) = (70, 128);
    let w = matrix(out, inner, DType::F32, 5);
    let x = inputs(300, inner);
    let u = factor(&hessian(&x, inner), inner);
    for kind in KINDS {
        let got = on_threads(|device| vec![quantized(device, &w, &u, kind)]);
        let rounded = Quantized::quantize(&Device::cpu(1), w.as_ref(), Format::Blocks(kind));
        let rounded = rounded.dequantize(&Device::cpu(1), DType::F32).to_vec();
        let [gptq, nearest] = [&got[0], &rounded].map(|got| error(&x, &wide(&w), got, inner));
        assert!(gptq < 0.5 * nearest, "{kind}: {gptq} is not much less than {nearest}");
    }
}

/// With inputs that have nothing in common there is nothing to make up for.
#[test]
fn of_unrelated_inputs_it_is_rounding() {
    let (out, inner) = (9, 96);
    let w = matrix(out, inner, DType::F32, 6);
    let identity: Vec<f64> = (0..inner * inner).map(|i| f64::from(i % (inner + 1) == 0)).collect();
    for kind in KINDS {
        let got = quantized(&Device::cpu(2), &w, &identity, kind);
        let rounded = Quantized::quantize(&Device::cpu(1), w.as_ref(), Format::Blocks(kind));
        let rounded = rounded.dequantize(&Device::cpu(1), DType::F32).to_vec();
        // The codes may differ where the scale's own rounding counts; the values, by no more than a step.
        let far = got.iter().zip(&rounded).filter(|(a, b)| (*a - *b).abs() > 1e-6).count();
        assert!(far * 20 < got.len(), "{kind}: {far} of {}", got.len());
    }
}

/// Column by column, as the paper has it.
#[test]
fn it_is_the_definition() {
    let (out, inner) = (5, 96);
    let w = matrix(out, inner, DType::F32, 7);
    let u = factor(&hessian(&inputs(200, inner), inner), inner);
    for kind in KINDS {
        let got = quantized(&Device::cpu(1), &w, &u, kind);
        let codes = f64::from(kind.affine_codes().unwrap());
        let half = |value: f64| f64::from(half_of(value as f32));
        for (row, got) in wide(&w).chunks(inner).zip(got.chunks(inner)) {
            let (mut row, mut scale) = (row.to_vec(), (0.0, 0.0));
            for i in 0..inner {
                if i % 32 == 0 {
                    let group = &row[i..i + 32];
                    let (least, most) =
                        group.iter().fold((f64::MAX, f64::MIN), |(a, b), &x| (a.min(x), b.max(x)));
                    scale = (half((most - least) / codes), half(least));
                }
                let (d, m) = scale;
                let value = d * ((row[i] - m) / d).round().clamp(0.0, codes) + m;
                // Where two codes are as near, rounding decides: the definition goes on from what was taken.
                let taken = f64::from(got[i]);
                assert!(
                    (value - taken).abs()
                        < 1e-4 + 1.001 * d * f64::from((row[i] - (value + taken) / 2.0).abs() < 1e-3),
                    "{kind}, column {i}: {taken}, not {value}"
                );
                let error = (row[i] - taken) / u[i * inner + i];
                (i + 1..inner).for_each(|j| row[j] -= error * u[i * inner + j]);
            }
        }
    }
}

/// The nearest number in half precision.
fn half_of(value: f32) -> f32 {
    let q = Quantized::quantize(
        &Device::cpu(1),
        Matrix::from_f32(1, 32, &[value; 32]).as_ref(),
        Format::Blocks(BlockType::F16),
    );
    q.dequantize(&Device::cpu(1), DType::F32).to_vec()[0]
}
