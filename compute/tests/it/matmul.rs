//! The matrix product against its definition in `f64`: every instruction set of this machine, element type,
//! transposition and ragged size.

use compute::ops::copy::copy;
use compute::ops::matmul::{Epilogue, Factor, Product, Update, matmul, multiply};
use compute::quant::{Format, Quantized};
use compute::{Cpu, DType, Device, Matrix, MatrixRef, Precision, bf16};
use proptest::prelude::*;

use crate::common::{cpus, matrix};

/// A product to be computed: everything but the device.
#[derive(Clone, Debug)]
struct Case {
    /// Rows, columns and depth.
    shape: (usize, usize, usize),
    transposed: (bool, bool),
    dtypes: (DType, DType, DType),
    precision: Precision,
    alpha: f32,
    accumulate: bool,
    seed: u64,
}

/// Values in (-1, 1), the same for the same seed.
fn random(rows: usize, cols: usize, dtype: DType, seed: u64) -> Matrix {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..rows * cols)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Matrix::from_f32(rows, cols, &values).to_dtype(dtype)
}

impl Case {
    fn factor(&self, rows: usize, cols: usize, transposed: bool, dtype: DType, seed: u64) -> Matrix {
        let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
        random(rows, cols, dtype, self.seed + seed)
    }

    fn inputs(&self) -> (Matrix, Matrix, Matrix) {
        let (m, n, k) = self.shape;
        let a = self.factor(m, k, self.transposed.0, self.dtypes.0, 1);
        let b = self.factor(k, n, self.transposed.1, self.dtypes.1, 2);
        (a, b, random(m, n, self.dtypes.2, self.seed + 3))
    }

    fn run(&self, cpu: &Cpu) -> Vec<f32> {
        let (a, b, mut c) = self.inputs();
        let factor = |m, transposed| if transposed { Factor::Transposed(m) } else { Factor::Plain(m) };
        let (a, b) = (factor(a.as_ref(), self.transposed.0), factor(b.as_ref(), self.transposed.1));
        matmul(&Device::Cpu(cpu.clone()), self.precision, self.alpha, a, b, self.accumulate, c.as_mut());
        c.to_vec()
    }

    /// Checks every element against the definition.
    fn check(&self, cpu: &Cpu) {
        let (m, n, k) = self.shape;
        let narrows = self.precision == Precision::Bf16 && cpu.isa() == "avx512bf16";
        let values = |m: &Matrix| -> Vec<f64> {
            m.to_vec().iter().map(|&v| if narrows { bf16::from_f32(v).to_f64() } else { v as f64 }).collect()
        };
        let (a, b, c) = self.inputs();
        let (a, b, old, new) = (values(&a), values(&b), c.to_vec(), self.run(cpu));
        let stored = if self.dtypes.2 == DType::Bf16 { 1.0 / 256.0 } else { 1e-6 };
        for i in 0..m {
            for j in 0..n {
                let (mut sum, mut size) = (0.0, 0.0);
                for t in 0..k {
                    let x = a[if self.transposed.0 { t * m + i } else { i * k + t }];
                    let y = b[if self.transposed.1 { j * k + t } else { t * n + j }];
                    sum += x * y;
                    size += (x * y).abs();
                }
                let old = if self.accumulate { old[i * n + j] as f64 } else { 0.0 };
                let expected = self.alpha as f64 * sum + old;
                // Sums of f32 err by some units in the last place of the largest partial sum.
                let bound = 1e-6 * size * self.alpha.abs() as f64 + stored * expected.abs() + 1e-30;
                let got = new[i * n + j] as f64;
                assert!(
                    (got - expected).abs() <= bound,
                    "{} ({i}, {j}): {got} for {expected}, {self:?}",
                    cpu.isa()
                );
            }
        }
    }
}

fn dtype() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::Bf16)]
}

fn precision() -> impl Strategy<Value = Precision> {
    prop_oneof![Just(Precision::F32), Just(Precision::Bf16)]
}

/// Small and ragged sizes, those around the edges of tiles, and some that take several blocks of `K`.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0usize..40, 2 => 60usize..70, 1 => 100usize..140]
}

fn depth() -> impl Strategy<Value = usize> {
    prop_oneof![4 => size(), 1 => 250usize..300, 1 => 500usize..550]
}

fn case() -> impl Strategy<Value = Case> {
    let alpha = prop_oneof![Just(1.0f32), Just(0.0), Just(-0.37)];
    let shape = (size(), size(), depth());
    let dtypes = (dtype(), dtype(), dtype());
    (shape, any::<(bool, bool)>(), dtypes, precision(), alpha, any::<bool>(), 0u64..1000).prop_map(
        |(shape, transposed, dtypes, precision, alpha, accumulate, seed)| Case {
            shape,
            transposed,
            dtypes,
            precision,
            alpha,
            accumulate,
            seed,
        },
    )
}

fn simple(
    shape: (usize, usize, usize),
    transposed: (bool, bool),
    dtype: DType,
    precision: Precision,
) -> Case {
    let dtypes = (dtype, dtype, dtype);
    Case { shape, transposed, dtypes, precision, alpha: 0.5, accumulate: true, seed: 7 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_product_agrees_with_its_definition(case in case()) {
        for cpu in cpus(2) {
            case.check(&cpu);
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_byte(case in case()) {
        let one = cpus(1);
        for threads in [2, 3] {
            for (one, many) in one.iter().zip(cpus(threads)) {
                let bits = |values: Vec<f32>| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(case.run(one)), bits(case.run(&many)), "{} threads, {}", threads, many.isa());
            }
        }
    }
}

#[test]
fn products_of_every_dtype_transposition_and_precision_agree_with_their_definition() {
    for cpu in cpus(2) {
        for bits in 0..64 {
            let flag = |i: usize| bits >> i & 1 == 1;
            let dtype = |i| if flag(i) { DType::Bf16 } else { DType::F32 };
            let case = Case {
                shape: (21, 37, 45),
                transposed: (flag(0), flag(1)),
                dtypes: (dtype(2), dtype(3), dtype(4)),
                precision: if flag(5) { Precision::Bf16 } else { Precision::F32 },
                alpha: -1.5,
                accumulate: bits % 3 == 0,
                seed: bits as u64,
            };
            case.check(&cpu);
        }
    }
}

#[test]
fn large_products_of_several_blocks_agree_with_their_definition() {
    for cpu in cpus(2) {
        for transposed in [(false, false), (false, true), (true, false), (true, true)] {
            simple((530, 290, 1100), transposed, DType::Bf16, Precision::Bf16).check(&cpu);
            simple((70, 600, 530), transposed, DType::F32, Precision::F32).check(&cpu);
        }
    }
}

/// Such as the gradient of a head's input, whose depth is the vocabulary: packed a part of the depth at a
/// time, where a product of fewer columns is not.
#[test]
fn a_column_of_a_very_deep_product_is_the_same_whatever_stands_beside_it() {
    for (dtype, precision, depth) in
        [(DType::Bf16, Precision::Bf16, 61_003), (DType::F32, Precision::F32, 30_005)]
    {
        // Whole panels: a narrower last one sums in another order.
        let (rows, cols, few) = (77, 288, 96);
        let a = random(rows, depth, dtype, 1);
        let b = random(cols, depth, dtype, 2);
        let old = random(rows, cols, dtype, 3);
        for cpu in cpus(2).into_iter().filter(|cpu| cpu.isa() != "portable") {
            let isa = cpu.isa();
            let device = Device::Cpu(cpu);
            let mut whole = old.to_dtype(dtype);
            let (x, y) = (Factor::Plain(a.as_ref()), Factor::Transposed(b.as_ref()));
            matmul(&device, precision, 0.5, x, y, true, whole.as_mut());
            let whole = whole.to_vec();
            for first in (0..cols).step_by(few) {
                let y = Factor::Transposed(b.as_ref().rows_range(first..first + few));
                let mut part = Matrix::zeros(rows, few, DType::F32);
                for (to, from) in part.as_mut().f32().chunks_mut(few).zip(old.to_vec().chunks(cols)) {
                    to.copy_from_slice(&from[first..first + few]);
                }
                let mut part = part.to_dtype(dtype);
                matmul(&device, precision, 0.5, x, y, true, part.as_mut());
                for (i, (part, whole)) in part.to_vec().chunks(few).zip(whole.chunks(cols)).enumerate() {
                    assert_eq!(part, &whole[first..first + few], "row {i}, columns from {first}, {isa}");
                }
            }
        }
    }
}

#[test]
fn products_of_few_rows_agree_with_their_definition() {
    for cpu in cpus(3) {
        for rows in 1..=9 {
            for (dtype, precision) in [(DType::F32, Precision::F32), (DType::Bf16, Precision::Bf16)] {
                simple((rows, 131, 333), (false, true), dtype, precision).check(&cpu);
                simple((rows, 131, 333), (false, false), dtype, precision).check(&cpu);
            }
        }
    }
}

#[test]
fn a_product_over_nothing_is_zero() {
    for cpu in cpus(1) {
        let case = simple((3, 5, 0), (false, true), DType::F32, Precision::F32);
        assert_eq!(Case { accumulate: false, ..case.clone() }.run(&cpu), vec![0.0; 15]);
        let (_, _, old) = case.inputs();
        assert_eq!(case.run(&cpu), old.to_vec());
    }
}

#[test]
fn what_cannot_be_multiplied_spreads_only_where_it_stands() {
    for cpu in cpus(2) {
        let mut a = random(20, 64, DType::F32, 1);
        a.as_mut().f32()[3 * 64 + 5] = f32::NAN;
        let b = random(33, 64, DType::F32, 2);
        for dtype in [DType::F32, DType::Bf16] {
            let mut c = Matrix::zeros(20, 33, dtype);
            let factors = (Factor::Plain(a.as_ref()), Factor::Transposed(b.as_ref()));
            let device = Device::Cpu(cpu.clone());
            matmul(&device, Precision::Bf16, 1.0, factors.0, factors.1, false, c.as_mut());
            for (i, row) in c.to_vec().chunks(33).enumerate() {
                assert!(row.iter().all(|v| v.is_nan() == (i == 3)), "row {i}, {}", cpu.isa());
            }
        }
    }
}

#[test]
fn an_unknown_instruction_set_is_an_error_that_names_the_known_ones() {
    let message = Cpu::with_isa(1, "sse9").unwrap_err();
    assert!(message.contains("sse9") && message.contains("avx512bf16, avx512, avx2, portable"), "{message}");
}

/// Factors and results whose rows stand apart, as parts of the columns of wider matrices do.
#[test]
fn parts_of_the_columns_give_the_bytes_of_matrices_of_their_own() {
    let apart = |m: MatrixRef<'_>| {
        let mut own = Matrix::zeros(m.rows(), m.cols(), m.dtype());
        copy(&Device::cpu(1), own.as_mut(), m);
        own
    };
    for cpu in cpus(2) {
        let device = &Device::Cpu(cpu);
        for (m, n, k) in [(1, 5, 9), (3, 64, 33), (4, 17, 130), (7, 19, 64), (70, 100, 300), (130, 33, 17)] {
            for (dtype, precision) in
                [(DType::F32, Precision::F32), (DType::Bf16, Precision::Bf16), (DType::Bf16, Precision::F32)]
            {
                let (a, b, bt) =
                    (matrix(m, k + 5, dtype, 1), matrix(k, n + 2, dtype, 2), matrix(n, k + 9, dtype, 3));
                let (a, b) = (a.as_ref().cols_range(3..k + 3), b.as_ref().cols_range(1..n + 1));
                let bt = bt.as_ref().cols_range(9..k + 9);
                for accumulate in [false, true] {
                    for (b, own, is_transposed) in [(b, apart(b), false), (bt, apart(bt), true)] {
                        let factor = |m| if is_transposed { Factor::Transposed(m) } else { Factor::Plain(m) };
                        let mut got = matrix(m, n + 7, dtype, 4);
                        let part = got.as_mut().cols_range(2..n + 2);
                        matmul(device, precision, 0.5, Factor::Plain(a), factor(b), accumulate, part);
                        let held = matrix(m, n + 7, dtype, 4);
                        let mut want = apart(held.as_ref().cols_range(2..n + 2));
                        let own_a = apart(a);
                        let (own_a, own_b) = (Factor::Plain(own_a.as_ref()), factor(own.as_ref()));
                        matmul(device, precision, 0.5, own_a, own_b, accumulate, want.as_mut());
                        let mut whole = held;
                        copy(device, whole.as_mut().cols_range(2..n + 2), want.as_ref());
                        assert_eq!(got.to_vec(), whole.to_vec(), "{m} x {n} x {k}, {dtype}, {precision:?}");
                    }
                }
            }
        }
    }
}

/// `c[m, n] (+)= scale[n] * (a b + s second)[m, n] + bias[n]` by the definition in `f64`, of products of few
/// rows and of many, whole and in parts of their depth, with an update and without, over four bits too.
#[test]
fn an_epilogue_scales_columns_and_adds_to_them_before_what_is_written_is_rounded() {
    let wide = |m: &Matrix| m.to_vec().into_iter().map(f64::from).collect::<Vec<_>>();
    for cpu in cpus(2) {
        let device = &Device::Cpu(cpu);
        for (m, n, k) in
            [(1, 70, 64), (3, 33, 4097), (5, 3, 64), (37, 130, 192), (70, 17, 11_008), (300, 64, 100)]
        {
            for (dtype, is_four_bit) in [(DType::F32, false), (DType::Bf16, false), (DType::F32, true)] {
                let (a, dense, r) = (matrix(m, k, DType::F32, 1), matrix(n, k, DType::F32, 2), 5);
                let four_bit = Quantized::quantize(device, dense.as_ref(), Format::QLORA);
                let b = if is_four_bit { four_bit.dequantize(device, DType::F32) } else { dense };
                let (s, second) = (matrix(m, r, DType::F32, 3), matrix(n, r, DType::F32, 4));
                let (scale, bias) = (matrix(1, n, DType::F32, 5), matrix(1, n, DType::F32, 6));
                let w = match is_four_bit {
                    true => Factor::QuantizedTransposed(&four_bit),
                    false => Factor::Transposed(b.as_ref()),
                };
                for case in 0..16 {
                    let [accumulate, has_update, has_scale, has_bias] =
                        [1, 2, 4, 8].map(|bit| case & bit != 0);
                    let (mut c, mut held_s) = (matrix(m, n, dtype, 7), s.to_dtype(DType::F32));
                    let update = has_update.then(|| Update {
                        first: None,
                        scale: 1.0,
                        s: held_s.as_mut(),
                        second: Factor::Transposed(second.as_ref()),
                    });
                    let epilogue = Epilogue {
                        scale: has_scale.then(|| scale.as_ref()),
                        bias: has_bias.then(|| bias.as_ref()),
                    };
                    let factors = (Factor::Plain(a.as_ref()), w);
                    let product =
                        Product { update, epilogue, ..Product::new(factors, accumulate, c.as_mut()) };
                    multiply(device, Precision::F32, vec![product]);
                    let (a, b, s, second) = (wide(&a), wide(&b), wide(&s), wide(&second));
                    let (scale, bias, held) = (wide(&scale), wide(&bias), wide(&matrix(m, n, dtype, 7)));
                    for (at, got) in c.to_vec().into_iter().enumerate() {
                        let (i, j) = (at / n, at % n);
                        let dot = |x: &[f64], y: &[f64], depth: usize| -> f64 {
                            (0..depth).map(|d| x[i * depth + d] * y[j * depth + d]).sum()
                        };
                        let mut want = dot(&a, &b, k);
                        want += if has_update { dot(&s, &second, r) } else { 0.0 };
                        want *= if has_scale { scale[j] } else { 1.0 };
                        want += if has_bias { bias[j] } else { 0.0 };
                        want += if accumulate { held[at] } else { 0.0 };
                        // What the sum may lose is scaled, too.
                        let factor = if has_scale { scale[j].abs().max(1.0) } else { 1.0 };
                        let near = 2e-5 * (k as f64).sqrt() * factor;
                        let tolerance = if dtype == DType::F32 { near } else { near + want.abs() / 200.0 };
                        let error = (f64::from(got) - want).abs();
                        assert!(
                            error <= tolerance,
                            "{m} x {n} x {k}, {dtype}, case {case}: {got}, not {want}"
                        );
                    }
                }
            }
        }
    }
}
