//! Optimizers: three steps, each with its own rate and half the gradient, are those of PyTorch.
//!
//! The literals were made with torch 2.15 on the CPU: `torch.optim.AdamW(lr=2e-2 / n, betas=(0.9, 0.99),
//! eps=1e-8, weight_decay=0.1)`; Lion and SGD by the same tensor operations as their formulas.

use compute::Device;
use compute::ops::optimizer::{AdamW, Lion, Sgd, adamw, lion, sgd};

use crate::common::{normals, on_threads, row, row_mut};

const PARAMS: [f32; 8] = [0.5, -1.25, 3.0, 0.001, -0.75, 2.5e-3, 1.0, -4.0];

const GRADS: [[f32; 8]; 3] = [
    [0.1, -0.2, 0.3, 0.0, 1e-4, -5.0, 0.02, 1.5],
    [-0.3, 0.25, 0.1, 1e-3, 2e-4, 4.0, -0.02, 0.5],
    [0.05, 0.6, -0.7, -2e-3, 0.0, 0.3, 0.9, -2.5],
];

/// Units in the last place that a value may be off.
const UNITS: i64 = 16;

/// Fails unless the values are these bits, give or take what fused multiplications in PyTorch's kernels may
/// change.
fn assert_bits(got: &[f32], want: [u32; 8], what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let distance = (i64::from(got.to_bits()) - i64::from(want)).abs();
        assert!(
            distance <= UNITS,
            "{what}, value {i}: {got} is {distance} units off {}",
            f32::from_bits(want)
        );
    }
}

fn adamw_settings(n: u32) -> AdamW {
    let learning_rate = 2e-2 / f64::from(n);
    AdamW { learning_rate, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: u64::from(n) }
}

#[test]
fn adamw_steps_are_pytorch_s() {
    let want = [
        [0x3ef53f7d, 0xbf9d1eb9, 0x403e5604, 0x3a82cf53, 0xbf44bc27, 0x3cb8476f, 0x3f7a5e36, 0xc080624e],
        [0x3ef78748, 0xbf9d2bcc, 0x403d9651, 0xbbd29cd2, 0xbf470165, 0x3cbcdbd6, 0x3f7a409c, 0xc08088ed],
        [0x3ef84f9a, 0xbf9d989e, 0x403d9734, 0xbb8e1046, 0xbf4825a6, 0x3cbd8d57, 0x3f7900be, 0xc0806928],
    ];
    let (mut p, mut m, mut v) = (PARAMS, [0.0; 8], [0.0; 8]);
    for (n, (grads, want)) in (1..).zip(GRADS.iter().zip(want)) {
        adamw(
            &Device::cpu(1),
            row_mut(&mut p),
            row(grads),
            row_mut(&mut m),
            row_mut(&mut v),
            &adamw_settings(n),
            0.5,
        );
        assert_bits(&p, want, &format!("parameters after step {n}"));
    }
    let first =
        [0xbbe3bcd3, 0x3d07c84b, 0xbc9652bd, 0xb866afcf, 0x375af152, 0xbbf5c288, 0x3d37f38c, 0xbd2b020c];
    let second =
        [0x3984e888, 0x3a97161d, 0x3ac0b628, 0x325651a3, 0x2f07cadd, 0x3dcf03af, 0x3b04d6ea, 0x3cb23b57];
    assert_bits(&m, first, "first moments");
    assert_bits(&v, second, "second moments");
}

#[test]
fn sgd_steps_are_pytorch_s() {
    let mut p = PARAMS;
    for grads in &GRADS {
        sgd(
            &Device::cpu(1),
            row_mut(&mut p),
            row(grads),
            &Sgd { learning_rate: 1e-2, weight_decay: 0.1 },
            0.5,
        );
    }
    let want =
        [0x3eff9dd4, 0xbf9fefc3, 0x403f8554, 0x3a8355cf, 0xbf3f6cca, 0x3bc3615c, 0x3f7e14b0, 0xc07f1258];
    assert_bits(&p, want, "parameters");
}

#[test]
fn lion_steps_are_those_of_the_paper_in_pytorch() {
    let (mut p, mut m) = (PARAMS, [0.0; 8]);
    let settings = Lion { learning_rate: 1e-2, beta1: 0.9, beta2: 0.99, weight_decay: 0.1 };
    for grads in &GRADS {
        lion(&Device::cpu(1), row_mut(&mut p), row(grads), row_mut(&mut m), &settings, 0.5);
    }
    let want =
        [0x3efa1e2e, 0xbfa0cd40, 0x403ec958, 0x3a83fd70, 0xbf4718ce, 0xbbf65536, 0x3f7cace3, 0xc07fdef1];
    assert_bits(&p, want, "parameters");
    let moments =
        [0xba4348bf, 0x3b557a1a, 0xbac92d04, 0xb6a9732b, 0x35c6a622, 0xbb51e103, 0x3b936c6e, 0xbb2f4276];
    assert_bits(&m, moments, "moments");
}

#[test]
fn steps_have_the_same_bytes_on_any_number_of_threads() {
    let (n, grads) = (50_001, normals(50_001, 1));
    on_threads(|device| {
        let (mut p, mut m, mut v) = (normals(n, 2), vec![0.0; n], vec![0.0; n]);
        for n in 1..3 {
            let moments = (row_mut(&mut m), row_mut(&mut v));
            adamw(device, row_mut(&mut p), row(&grads), moments.0, moments.1, &adamw_settings(n), 1.0);
        }
        vec![p, m, v]
    });
}
