//! Speed of the operations that are bound by memory: bytes read and written per second, `f32` and `bf16`.
//!
//! `cargo bench -p luthier-compute --bench ops`; sizes are those of `llama-3.2-1b` with 512 tokens. The
//! measure to compare with is `residual`, which does nothing but move memory.

use std::hint::black_box;

use compute::ops::adamw_8bit::{Moments8, adamw_8bit};
use compute::ops::gated::Activation;
use compute::ops::optimizer::{self, AdamW, Lion, Sgd};
use compute::ops::rms_norm::Offset;
use compute::ops::rope::{RopeScaling, RopeTable, Rotation};
use compute::ops::{
    bias, cross_entropy, divergence, dropout, embedding, gated, noise, reduce, residual, rms_norm, rope,
};
use compute::quant::{Code, CodebookFormat, Format, Quantized};
use compute::{DType, Device, Matrix, random};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const T: usize = 512;
const C: usize = 2048;
const F: usize = 8192;
const V: usize = 128_256;
const D: usize = 64;

fn matrix(rows: usize, cols: usize, dtype: DType) -> Matrix {
    let values: Vec<f32> = (0..rows * cols).map(|i| random::normal(1, i as u64) as f32).collect();
    Matrix::from_f32(rows, cols, &values).to_dtype(dtype)
}

/// Measures `run`, which reads and writes `bytes`.
fn measure(c: &mut Criterion, group: &str, name: &str, bytes: usize, mut run: impl FnMut()) {
    let mut group = c.benchmark_group(group);
    group.sample_size(20).warm_up_time(std::time::Duration::from_millis(300));
    group.measurement_time(std::time::Duration::from_secs(1));
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(name, |b| b.iter(&mut run));
    group.finish();
}

fn rows(c: &mut Criterion) {
    let device = &Device::cpu(0);
    for dtype in [DType::F32, DType::Bf16] {
        let (group, size) = (&format!("{dtype}"), T * C * dtype.size());
        let (x, dy, mut y) = (matrix(T, C, dtype), matrix(T, C, dtype), matrix(T, C, dtype));
        let (weight, mut dweight) = (matrix(1, C, dtype), Matrix::zeros(1, C, DType::F32));
        let mut rstd = Matrix::zeros(T, 1, DType::F32);
        let positions: Vec<u32> = (0..T as u32).collect();
        let names: Vec<u64> = (0..T as u64).collect();
        let scaling = RopeScaling::None;
        let rotation = Rotation { dims: D, theta: 500_000.0, scaling, interleaved: false };
        let table = RopeTable::new(device, D, &rotation, T);
        measure(c, group, "residual", 3 * size, || residual::add(device, y.as_mut(), x.as_ref()));
        measure(c, group, "bias", 2 * size, || bias::add(device, y.as_mut(), weight.as_ref()));
        measure(c, group, "bias_backward", size, || bias::backward(device, dweight.as_mut(), dy.as_ref()));
        measure(c, group, "rms_norm", 2 * size, || {
            rms_norm::forward(
                device,
                y.as_mut(),
                x.as_ref(),
                weight.as_ref(),
                Offset::None,
                1e-5,
                rstd.as_mut(),
            );
        });
        measure(c, group, "rms_norm_backward", 4 * size, || {
            rms_norm::backward(
                device,
                y.as_mut(),
                true,
                dy.as_ref(),
                x.as_ref(),
                weight.as_ref(),
                Offset::None,
                rstd.as_ref(),
                None,
            );
        });
        measure(c, group, "rms_norm_backward_weight", 6 * size, || {
            let dw = Some(dweight.as_mut());
            let (dy, x, weight) = (dy.as_ref(), x.as_ref(), weight.as_ref());
            rms_norm::backward(device, y.as_mut(), true, dy, x, weight, Offset::None, rstd.as_ref(), dw);
        });
        measure(c, group, "rope", 2 * size, || {
            rope::forward(device, y.as_mut(), &table, (&positions).into())
        });
        measure(c, group, "dropout", 2 * size, || {
            dropout::apply(device, y.as_mut(), x.as_ref(), 0.1, (7, (&names).into()), false)
        });
    }
}

fn activations(c: &mut Criterion) {
    let device = &Device::cpu(0);
    for dtype in [DType::F32, DType::Bf16] {
        let (group, size) = (&format!("{dtype}"), T * F * dtype.size());
        let (gate, up, mut y) = (matrix(T, F, dtype), matrix(T, F, dtype), matrix(T, F, dtype));
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            measure(c, group, &format!("gated {activation:?}"), 3 * size, || {
                gated::forward(device, activation, y.as_mut(), gate.as_ref(), up.as_ref());
            });
        }
        let (mut dgate, mut dup) = (matrix(T, F, dtype), matrix(T, F, dtype));
        measure(c, group, "gated_backward Silu", 5 * size, || {
            gated::backward(device, Activation::Silu, dgate.as_mut(), dup.as_mut(), y.as_ref());
        });
    }
}

fn flat(c: &mut Criterion) {
    let device = &Device::cpu(0);
    let mut table = matrix(V / 8, C, DType::F32);
    let ids: Vec<u32> = (0..T as u64).map(|i| random::below(1, i, (V / 8) as u64) as u32).collect();
    let mut y = Matrix::zeros(T, C, DType::F32);
    let size = T * C * 4;
    measure(c, "f32", "embedding", 2 * size, || {
        embedding::forward(device, y.as_mut(), table.as_ref(), (&ids).into())
    });
    measure(c, "f32", "embedding_backward", 3 * size, || {
        embedding::backward(device, table.as_mut(), y.as_ref(), (&ids).into());
    });

    let (mut logits, mut losses) = (matrix(32, V, DType::F32), matrix(32, 1, DType::F32));
    let (weights, targets) = (matrix(32, 1, DType::F32), &ids[..32]);
    let size = 32 * V * 4;
    measure(c, "f32", "cross_entropy", 2 * size, || {
        cross_entropy::forward_backward(
            device,
            logits.as_mut(),
            targets.into(),
            weights.as_ref(),
            losses.as_mut(),
        );
    });
    measure(c, "f32", "cross_entropy_forward", size, || {
        cross_entropy::forward(device, logits.as_ref(), targets.into(), losses.as_mut());
    });
    let others = matrix(32, V, DType::F32);
    measure(c, "f32", "divergence", 2 * size, || {
        divergence::forward(device, logits.as_ref(), others.as_ref(), losses.as_mut());
    });

    let n = 4 << 20;
    let zeros = |n| Matrix::zeros(1, n, DType::F32);
    let (mut p, g, mut m, mut v) = (zeros(n), zeros(n), zeros(n), zeros(n));
    let settings =
        AdamW { learning_rate: 1e-4, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, step: 1 };
    measure(c, "f32", "adamw", 7 * 4 * n, || {
        optimizer::adamw(device, p.as_mut(), g.as_ref(), m.as_mut(), v.as_mut(), &settings, 1.0);
    });
    let mut state = zeros(Moments8::words(n));
    measure(c, "f32", "adamw_8bit", 4 * 4 * n, || {
        adamw_8bit(device, p.as_mut(), g.as_ref(), state.as_mut(), &settings, 1.0);
    });
    measure(c, "f32", "lion", 5 * 4 * n, || {
        let settings = Lion { learning_rate: 1e-4, beta1: 0.9, beta2: 0.99, weight_decay: 0.0 };
        optimizer::lion(device, p.as_mut(), g.as_ref(), m.as_mut(), &settings, 1.0);
    });
    measure(c, "f32", "sgd", 3 * 4 * n, || {
        optimizer::sgd(device, p.as_mut(), g.as_ref(), &Sgd { learning_rate: 1e-4, weight_decay: 0.0 }, 1.0);
    });
    measure(c, "f32", "sum_of_squares", 4 * n, || {
        black_box(reduce::sum_of_squares(device, g.as_ref()));
    });
}

/// Weights on their way into four bits and back, and random ones.
fn weights(c: &mut Criterion) {
    let device = &Device::cpu(0);
    let mut w = matrix(F, C, DType::Bf16);
    for (name, double_quant) in [("nf4", false), ("nf4 double", true)] {
        let format = Format::Codebook(CodebookFormat { code: Code::Nf4, block_size: 64, double_quant });
        let bytes = w.size_bytes() + format.size_bytes(F * C);
        measure(c, "bf16", &format!("quantize {name}"), bytes, || {
            black_box(Quantized::quantize(device, w.as_ref(), format));
        });
        let quantized = Quantized::quantize(device, w.as_ref(), format);
        measure(c, "bf16", &format!("dequantize {name}"), bytes, || {
            quantized.dequantize_rows(device, 0..F, w.as_mut());
        });
    }
    let bytes = w.size_bytes();
    measure(c, "bf16", "nearly_normal", bytes, || noise::nearly_normal(device, w.as_mut(), 0.02, 7));
}

criterion_group!(benches, rows, activations, flat, weights);
criterion_main!(benches);
