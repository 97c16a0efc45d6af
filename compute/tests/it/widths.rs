//! The element-wise operations give the same bytes on every instruction set.

use std::process::Command;

use compute::ops::gated::Activation;
use compute::ops::optimizer::AdamW;
use compute::ops::rms_norm::Offset;
use compute::ops::rope::{RopeScaling, Rotation};
use compute::ops::{
    bias, cross_entropy, divergence, dropout, embedding, gated, optimizer, reduce, residual, rms_norm, rope,
};
use compute::{Cpu, DType, Device, Matrix};

use crate::common::{DTYPES, column, column_mut, ids, matrix, normals, row, row_mut};

const ROWS: usize = 5;
const COLS: usize = 206;

/// One run of every operation on ragged rows.
fn results(device: &Device, dtype: DType) -> Vec<Vec<f32>> {
    let input = |key| matrix(ROWS, COLS, dtype, key);
    let (x, dy, tokens) = (input(1), input(2), ids(ROWS, 9, 3));
    let (weight, table) = (matrix(1, COLS, DType::F32, 4), matrix(9, COLS, DType::F32, 5));
    let (mut y, mut up, mut rstd) = (input(6), input(7), vec![0.0; ROWS]);
    let mut kept = Vec::new();

    embedding::forward(device, y.as_mut(), table.as_ref(), (&tokens).into());
    bias::add(device, y.as_mut(), weight.as_ref());
    residual::add(device, y.as_mut(), x.as_ref());
    dropout::apply(device, y.as_mut(), x.as_ref(), 0.2, (8, (&[3, 1, 4, 15, 9]).into()), true);
    kept.push(y.to_vec());

    rms_norm::forward(
        device,
        y.as_mut(),
        x.as_ref(),
        weight.as_ref(),
        Offset::None,
        1e-6,
        column_mut(&mut rstd),
    );
    kept.push(y.to_vec());
    let mut dweight = Matrix::zeros(1, COLS, DType::F32);
    let (dx, dw) = (y.as_mut(), Some(dweight.as_mut()));
    rms_norm::backward(
        device,
        dx,
        true,
        dy.as_ref(),
        x.as_ref(),
        weight.as_ref(),
        Offset::None,
        column(&rstd),
        dw,
    );
    bias::backward(device, dweight.as_mut(), dy.as_ref());
    kept.extend([y.to_vec(), dweight.to_vec()]);

    let scaling = RopeScaling::None;
    let rotation = Rotation { dims: COLS, theta: 10_000.0, scaling, interleaved: false };
    let table = rope::RopeTable::new(device, COLS, &rotation, 9);
    rope::forward(device, y.as_mut(), &table, (&tokens).into());
    kept.push(y.to_vec());

    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        gated::backward(device, activation, y.as_mut(), up.as_mut(), dy.as_ref());
        kept.extend([y.to_vec(), up.to_vec()]);
    }
    kept
}

/// A digest (FNV-1a) of everything that the operations computed.
fn digest() -> u64 {
    let device = &Device::cpu(1);
    let mut kept: Vec<Vec<f32>> = DTYPES.into_iter().flat_map(|dtype| results(device, dtype)).collect();

    let (mut logits, mut losses) = (matrix(ROWS, COLS, DType::F32, 1), vec![0.0; ROWS]);
    cross_entropy::forward_backward(
        device,
        logits.as_mut(),
        (&ids(ROWS, COLS, 2)).into(),
        column(&[0.3; ROWS]),
        column_mut(&mut losses),
    );
    let (others, mut divergences) = (matrix(ROWS, COLS, DType::F32, 6), vec![0.0; ROWS]);
    divergence::forward(device, logits.as_ref(), others.as_ref(), column_mut(&mut divergences));
    let settings =
        AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 1 };
    let (mut params, mut m, mut v) = (normals(COLS, 3), normals(COLS, 4), vec![1.0; COLS]);
    optimizer::adamw(
        device,
        row_mut(&mut params),
        row(&normals(COLS, 5)),
        row_mut(&mut m),
        row_mut(&mut v),
        &settings,
        0.7,
    );
    kept.extend([
        logits.to_vec(),
        losses,
        divergences,
        vec![reduce::sum_of_squares(device, row(&params)) as f32],
        params,
        m,
        v,
    ]);

    let bytes = kept.iter().flatten().flat_map(|v| v.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The digest of this very test run in a process of its own under an instruction set.
fn digest_under(isa: &str) -> String {
    let program = std::env::current_exe().expect("the test's own path");
    let output = Command::new(program)
        .args(["--exact", "widths::every_instruction_set_gives_the_same_bytes", "--nocapture"])
        .envs([("LUTHIER_ISA", isa), ("LUTHIER_TEST_DIGEST", "1")])
        .output()
        .expect("the test starts itself");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .find_map(|l| l.split_once("digest "))
        .map(|(_, d)| d.to_owned())
        .unwrap_or_else(|| panic!("no digest in {output:?}"))
}

#[test]
fn every_instruction_set_gives_the_same_bytes() {
    if std::env::var_os("LUTHIER_TEST_DIGEST").is_some() {
        println!("digest {:016x}", digest());
        return;
    }
    let portable = digest_under("portable");
    for isa in ["avx2", "avx512"].into_iter().filter(|isa| Cpu::with_isa(1, isa).is_ok()) {
        assert_eq!(digest_under(isa), portable, "{isa} gives other bytes than portable");
    }
}
