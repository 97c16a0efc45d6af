//! Weights in four bits: every element goes to the nearest of the sixteen values, and a product with such a weight is
//! that with its values, to the byte.

use compute::ops::matmul::{Factor, matmul};
use compute::quant::{BLOCK_SIZES, Code, Format, Quantized, Rounding, Scales};
use compute::{Cpu, DType, Device, Matrix, MatrixRef, Precision};

use super::common::{matrix, on_threads};

fn format(code: Code, block_size: usize, double_quant: bool) -> Format {
    Format { code, block_size, double_quant }
}

fn cpus(threads: usize) -> Vec<Cpu> {
    let names = ["portable", "avx2", "avx512", "avx512bf16"];
    names.into_iter().filter_map(|name| Cpu::with_isa(threads, name).ok()).collect()
}

#[test]
fn every_element_goes_to_the_nearest_of_the_sixteen_values() {
    let device = Device::cpu(2);
    for code in Code::ALL {
        for (rows, cols) in [(1, 1), (1, 64), (3, 21), (5, 77), (64, 96), (40, 4096)] {
            for block_size in BLOCK_SIZES {
                let x = matrix(rows, cols, DType::F32, 7);
                let q =
                    Quantized::quantize(&device, x.as_ref(), Rounding::F32, format(code, block_size, false));
                let (x, got) = (x.to_vec(), q.dequantize(&device, DType::F32).to_vec());
                for (x, got) in x.chunks(block_size).zip(got.chunks(block_size)) {
                    let largest = x.iter().fold(0.0_f64, |m, x| m.max(f64::from(x.abs())));
                    for (&x, &got) in x.iter().zip(got) {
                        let distance = |v: f64| (f64::from(x) - v).abs();
                        let values = code.table().map(|t| f64::from(t) * largest);
                        let best = values.into_iter().map(distance).fold(f64::INFINITY, f64::min);
                        let off = distance(f64::from(got)) - best;
                        assert!(
                            off <= 1e-6 * largest,
                            "{code}: {x} became {got}, {off:e} off, block {block_size}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn zeros_stay_zeros_and_the_largest_of_a_block_stays_itself() {
    let device = Device::cpu(1);
    let mut x = matrix(4, 64, DType::F32, 3);
    x.as_mut().rows_range(1..2).clear();
    for double_quant in [false, true] {
        let q = Quantized::quantize(&device, x.as_ref(), Rounding::F32, format(Code::Nf4, 64, double_quant));
        let got = q.dequantize(&device, DType::F32).to_vec();
        assert!(got[64..128].iter().all(|&v| v == 0.0));
        let largest = |v: &[f32]| v.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let (want, got) = (largest(&x.to_vec()[..64]), largest(&got[..64]));
        let tolerance = if double_quant { 0.05 } else { 1e-6 };
        assert!((want - got).abs() <= tolerance * want, "{want} became {got}");
    }
}

#[test]
fn sizes_are_those_of_the_paper() {
    let bits = |format: Format| format.size_bytes(1 << 24) as f64 * 8.0 / f64::from(1 << 24);
    assert_eq!(bits(format(Code::Nf4, 64, false)), 4.5);
    assert!((bits(Format::QLORA) - 4.127).abs() < 5e-4, "{}", bits(Format::QLORA));
    let q = Quantized::quantize(
        &Device::cpu(1),
        matrix(33, 77, DType::F32, 1).as_ref(),
        Rounding::F32,
        Format::QLORA,
    );
    assert_eq!(q.size_bytes(), Format::QLORA.size_bytes(33 * 77));
}

#[test]
fn normalfloat_loses_less_than_the_others_and_as_much_as_is_known() {
    let device = Device::cpu(2);
    let x = matrix(512, 1024, DType::F32, 5);
    let error = |format: Format| {
        let q = Quantized::quantize(&device, x.as_ref(), Rounding::F32, format);
        let (x, got) = (x.to_vec(), q.dequantize(&device, DType::F32).to_vec());
        let sum: f64 = x.iter().zip(&got).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        (sum / x.len() as f64).sqrt()
    };
    let [nf4, fp4, int4] = Code::ALL.map(|code| error(format(code, 64, false)));
    assert!((nf4 - 0.0916).abs() < 0.002, "{nf4}");
    assert!(nf4 < 0.95 * int4 && nf4 < 0.95 * fp4, "nf4 {nf4}, int4 {int4}, fp4 {fp4}");
    assert!((error(Format::QLORA) - nf4).abs() < 0.001);
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let x = matrix(150, 1031, DType::F32, 9);
    on_threads(|device| {
        let q = Quantized::quantize(device, x.as_ref(), Rounding::Bf16, Format::QLORA);
        vec![q.codes().iter().map(|&c| f32::from(c)).collect(), q.dequantize(device, DType::F32).to_vec()]
    });
}

#[test]
fn double_quantization_takes_the_mean_off_and_rounds_the_rest() {
    let scales: Vec<f32> =
        matrix(1, 700, DType::F32, 2).to_vec().into_iter().map(|v| 1.0 + 0.1 * v).collect();
    let rounded = Scales::double(&scales);
    assert_eq!(rounded.blocks(), 700);
    for (block, scale) in scales.iter().enumerate() {
        assert!((rounded.of(block) - scale).abs() < 0.01 * scale, "{scale} became {}", rounded.of(block));
    }
}

/// `x W` or `x Wᵀ` by way of four bits, and with the same values as a dense matrix.
fn products(
    cpu: &Cpu,
    precision: Precision,
    x: MatrixRef<'_>,
    q: &Quantized,
    transposed: bool,
) -> [Vec<f32>; 2] {
    let device = Device::Cpu(cpu.clone());
    let dense = q.dequantize(&device, DType::F32);
    let (four_bit, dense) = match transposed {
        true => (Factor::QuantizedTransposed(q), Factor::Transposed(dense.as_ref())),
        false => (Factor::Quantized(q), Factor::Plain(dense.as_ref())),
    };
    let n = if transposed { q.rows() } else { q.cols() };
    [four_bit, dense].map(|b| {
        let mut y = matrix(x.rows(), n, precision.dtype(), 8);
        matmul(&device, precision, 0.5, Factor::Plain(x), b, true, y.as_mut());
        y.to_vec()
    })
}

#[test]
fn a_product_is_that_with_the_values_on_every_instruction_set() {
    for cpu in cpus(2) {
        for precision in [Precision::F32, Precision::Bf16] {
            for rounding in [Rounding::F32, Rounding::Bf16, Rounding::F16] {
                for (out, inner) in [(7, 33), (64, 128), (96, 300), (130, 640), (33, 1024), (40, 1030)] {
                    for (code, block_size, double) in [(Code::Nf4, 64, true), (Code::Fp4, 32, false)] {
                        let w = matrix(out, inner, DType::F32, 4);
                        let format = format(code, block_size, double);
                        let q = Quantized::quantize(&Device::Cpu(cpu.clone()), w.as_ref(), rounding, format);
                        for rows in [1, 3, 17, 80] {
                            for transposed in [true, false] {
                                let k = if transposed { inner } else { out };
                                let x = matrix(rows, k, precision.dtype(), 6);
                                let [got, want] = products(&cpu, precision, x.as_ref(), &q, transposed);
                                let what = format!(
                                    "{}, {precision:?}, {rounding:?}, {rows} rows by {out} x {inner}, {transposed}",
                                    cpu.isa()
                                );
                                // Few rows sum a deep product in parts.
                                let exact = rows > 4 || k <= 1024 || !transposed;
                                for (got, want) in got.iter().zip(&want) {
                                    let same = got == want
                                        || !exact && (got - want).abs() < 0.02 * (1.0 + want.abs());
                                    assert!(same, "{what}: {got}, not {want}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn quantized_weights_as_random_numbers_make_them_lose_nothing_more_in_bf16() {
    let device = Device::cpu(2);
    let x = matrix(64, 256, DType::Bf16, 4);
    let q = Quantized::quantize(&device, x.as_ref(), Rounding::Bf16, Format::QLORA);
    let (wide, narrow) = (q.dequantize(&device, DType::F32), q.dequantize(&device, DType::Bf16));
    assert_eq!(wide.to_vec(), narrow.to_vec());
    assert_eq!(Matrix::to_dtype(&wide, DType::Bf16).to_vec(), narrow.to_vec());
}
