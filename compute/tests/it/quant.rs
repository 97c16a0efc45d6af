//! Weights in four bits: every element goes to the nearest of the sixteen values, and a product with such a
//! weight is that with its values, to the byte.

use compute::ops::matmul::{Factor, matmul};
use compute::quant::{BLOCK_SIZES, Code, Codebook, CodebookFormat, Format, Quantized, Scales};
use compute::{Cpu, DType, Device, Matrix, MatrixRef, Precision};

use serde_json::Value;

use super::common::{cpus, matrix, on_threads};

fn format(code: Code, block_size: usize, double_quant: bool) -> Format {
    Format::Codebook(CodebookFormat { code, block_size, double_quant })
}

fn codebook(q: &Quantized) -> &Codebook {
    q.codebook().expect("a codebook")
}

#[test]
fn every_element_goes_to_the_nearest_of_the_sixteen_values() {
    let device = Device::cpu(2);
    for code in Code::ALL {
        for (rows, cols) in [(1, 1), (1, 64), (3, 21), (5, 77), (64, 96), (40, 4096)] {
            for block_size in BLOCK_SIZES {
                let x = matrix(rows, cols, DType::F32, 7);
                let q = Quantized::quantize(&device, x.as_ref(), format(code, block_size, false));
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

/// What lies close to a midpoint of two values shows which way an element was scaled: bitsandbytes multiplies
/// by the inverse of the largest magnitude, but divides by it in a last block that is short.
#[test]
fn a_short_block_divides_where_a_whole_one_multiplies() {
    let device = Device::cpu(1);
    let table = Code::Nf4.table();
    let midpoints: Vec<f32> = table.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    let rank = |x: f32| midpoints.iter().filter(|&&midpoint| x > midpoint).count() as u8;
    let mut differ = 0;
    for largest in matrix(1, 50, DType::F32, 3).to_vec().into_iter().map(f32::abs) {
        let near = |m: f32| (-2..3).map(move |ulps: i32| f32::from_bits((m.to_bits() as i32 + ulps) as u32));
        let mut x = vec![largest];
        x.extend(midpoints.iter().flat_map(|m| near(m * largest)));
        assert!(x.len() < 128);
        let inverse = 1.0 / largest;
        let (divided, multiplied) =
            (x.iter().map(|x| rank(x / largest)), x.iter().map(|x| rank(x * inverse)));
        let (divided, multiplied): (Vec<u8>, Vec<u8>) = (divided.collect(), multiplied.collect());
        differ += divided.iter().zip(&multiplied).filter(|(a, b)| a != b).count();
        let codes_of = |x: &[f32]| {
            let x = Matrix::from_f32(1, x.len(), x);
            let q = Quantized::quantize(&device, x.as_ref(), format(Code::Nf4, 128, false));
            codebook(&q).codes().iter().flat_map(|&c| [c >> 4, c & 15]).collect::<Vec<u8>>()
        };
        assert_eq!(codes_of(&x)[..x.len()], divided);
        let count = x.len();
        x.resize(128, 0.0);
        assert_eq!(codes_of(&x)[..count], multiplied);
    }
    assert!(differ > 0, "the two ways must differ somewhere for this to show anything");
}

#[test]
fn zeros_stay_zeros_and_the_largest_of_a_block_stays_itself() {
    let device = Device::cpu(1);
    let mut x = matrix(4, 64, DType::F32, 3);
    x.as_mut().rows_range(1..2).f32().fill(0.0);
    for double_quant in [false, true] {
        let q = Quantized::quantize(&device, x.as_ref(), format(Code::Nf4, 64, double_quant));
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
    let q = Quantized::quantize(&Device::cpu(1), matrix(33, 77, DType::F32, 1).as_ref(), Format::QLORA);
    assert_eq!(q.size_bytes(), Format::QLORA.size_bytes(33 * 77));
}

#[test]
fn normalfloat_loses_less_than_the_others_and_as_much_as_is_known() {
    let device = Device::cpu(2);
    let x = matrix(512, 1024, DType::F32, 5);
    let error = |format: Format| {
        let q = Quantized::quantize(&device, x.as_ref(), format);
        let (x, got) = (x.to_vec(), q.dequantize(&device, DType::F32).to_vec());
        let sum: f64 = x.iter().zip(&got).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        (sum / x.len() as f64).sqrt()
    };
    let [nf4, fp4] = Code::ALL.map(|code| error(format(code, 64, false)));
    assert!((nf4 - 0.0916).abs() < 0.002, "{nf4}");
    assert!(nf4 < 0.95 * fp4, "nf4 {nf4}, fp4 {fp4}");

    assert!((error(Format::QLORA) - nf4).abs() < 0.001);
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let x = matrix(150, 1031, DType::F32, 9);
    on_threads(|device| {
        let q = Quantized::quantize(device, x.as_ref(), Format::QLORA);
        vec![
            codebook(&q).codes().iter().map(|&c| f32::from(c)).collect(),
            q.dequantize(device, DType::F32).to_vec(),
        ]
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
    let shapes = [(7, 33), (64, 128), (96, 300), (130, 640), (33, 1024), (40, 1088)];
    let formats = [format(Code::Nf4, 64, true), format(Code::Fp4, 32, false)];
    for cpu in cpus(2) {
        for ((out, inner), format) in shapes.into_iter().flat_map(|s| formats.map(|f| (s, f))) {
            let w = matrix(out, inner, DType::F32, 4);
            let q = Quantized::quantize(&Device::Cpu(cpu.clone()), w.as_ref(), format);
            for precision in [Precision::F32, Precision::Bf16] {
                for (rows, transposed) in [1, 3, 17, 80].into_iter().flat_map(|r| [(r, true), (r, false)]) {
                    let k = if transposed { inner } else { out };
                    let x = matrix(rows, k, precision.dtype(), 6);
                    let [got, want] = products(&cpu, precision, x.as_ref(), &q, transposed);
                    // Few rows are multiplied in parts, and with AVX-512 by values that are not rounded to
                    // bf16.
                    let many = rows > 4 || !transposed;
                    let tolerance = match precision {
                        _ if many => 0.0,
                        Precision::F32 => 2e-5,
                        // Roundings of 2^-9 to either side, of which the square root adds up, and that of the
                        // result.
                        Precision::Bf16 => 1.0 / 128.0,
                    };
                    for (got, want) in got.iter().zip(&want) {
                        let near = (got - want).abs() <= tolerance * (0.5 * (k as f32).sqrt() + want.abs());
                        let isa = cpu.isa();
                        let by = if transposed { "its transpose" } else { "it" };
                        assert!(
                            near,
                            "{isa}, {precision:?}, {rows} rows by {by}, {out} x {inner}: {got}, not {want}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn few_rows_by_four_bits_are_their_definition_whatever_the_blocks_and_threads() {
    let shapes = [(1, 128), (5, 192), (19, 1088), (37, 4096), (18, 8192 + 32)];
    let formats = BLOCK_SIZES.into_iter().flat_map(|size| [true, false].map(|d| format(Code::Nf4, size, d)));
    let formats: Vec<_> = formats.collect();
    for ((out, inner), &format) in shapes.into_iter().flat_map(|s| formats.iter().map(move |f| (s, f))) {
        let w = matrix(out, inner, DType::F32, 4);
        let q = Quantized::quantize(&Device::Cpu(Cpu::new(1)), w.as_ref(), format);
        let values = q.dequantize(&Device::Cpu(Cpu::new(1)), DType::F32);
        let values = values.as_ref().f32();
        for (precision, rows) in
            [Precision::F32, Precision::Bf16].into_iter().flat_map(|p| [1, 2, 3, 4].map(|r| (p, r)))
        {
            let x = matrix(rows, inner, precision.dtype(), 6);
            let from = x.to_dtype(DType::F32);
            // Products and sums in f32, or a value rounded to bf16 on its way, by 2^-9 of itself at most.
            let relative = if precision == Precision::F32 { 1e-6 } else { 1.0 / 512.0 + 1e-6 };
            for (one, several) in cpus(1).into_iter().zip(cpus(3)) {
                let [got, again] = [&one, &several].map(|cpu| {
                    let mut y = Matrix::zeros(rows, out, DType::F32);
                    let (x, w) = (Factor::Plain(x.as_ref()), Factor::QuantizedTransposed(&q));
                    matmul(&Device::Cpu(cpu.clone()), precision, 1.0, x, w, false, y.as_mut());
                    y.to_vec()
                });
                let what = format!("{}, {precision:?}, {rows} rows, {out} x {inner}, {format:?}", one.isa());
                assert_eq!(bits(&got), bits(&again), "{what}: other threads");
                for (at, got) in got.into_iter().enumerate() {
                    let (i, j) = (at / out, at % out);
                    let terms =
                        from.as_ref().f32()[i * inner..][..inner].iter().zip(&values[j * inner..][..inner]);
                    let terms = terms.map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                    let near = (f64::from(got) - sum).abs() <= relative * size;
                    assert!(near, "{what}, ({i}, {j}): {got}, not {sum} of terms of {size}");
                }
            }
        }
    }
}

/// The bytes of each tensor of the fixture.
struct Fixture {
    header: Value,
    data: Vec<u8>,
}

impl Fixture {
    fn open() -> (Value, Self) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
        let cases = std::fs::read(format!("{folder}/quant.json")).unwrap();
        let bytes = std::fs::read(format!("{folder}/quant.safetensors")).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..start]).unwrap();
        (serde_json::from_slice(&cases).unwrap(), Fixture { header, data: bytes[start..].to_vec() })
    }

    fn bytes(&self, name: &str) -> &[u8] {
        let offsets = &self.header[name]["data_offsets"];
        let at = |i: usize| offsets[i].as_u64().unwrap_or_else(|| panic!("no tensor {name}")) as usize;
        &self.data[at(0)..at(1)]
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn codes_scales_and_values_are_those_of_bitsandbytes_to_the_byte() {
    let (description, fixture) = Fixture::open();
    let device = Device::cpu(2);
    let cases = description["cases"].as_array().unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let input = case["input"].as_str().unwrap();
        let of_input = &description["inputs"][input];
        let size = |i: usize| of_input["shape"][i].as_u64().unwrap() as usize;
        let (rows, cols, nested) = (size(0), size(1), case["nested"].as_bool().unwrap());
        let x = Matrix::from_f32(rows, cols, &fixture.floats(&format!("input.{input}")));
        let x = if of_input["dtype"] == "bfloat16" { x.to_dtype(DType::Bf16) } else { x };
        let code = case["quant_type"].as_str().unwrap().parse().unwrap();
        let block_size = case["block_size"].as_u64().unwrap() as usize;
        let q = Quantized::quantize(&device, x.as_ref(), format(code, block_size, nested));
        assert_eq!(
            bits(codebook(&q).table()),
            bits(&fixture.floats(&format!("quant_map.{code}"))),
            "{name}: the table"
        );
        assert_eq!(codebook(&q).codes(), fixture.bytes(&format!("{name}.packed")), "{name}: the codes");
        match codebook(&q).scales() {
            Scales::Plain(scales) => {
                assert_eq!(
                    bits(scales),
                    bits(&fixture.floats(&format!("{name}.absmax"))),
                    "{name}: the scales"
                );
            }
            Scales::Double { codes, map, absmax, offset, .. } => {
                let expected = |what: &str| bits(&fixture.floats(&format!("{name}.{what}")));
                assert_eq!(bits(&[*offset]), expected("offset"), "{name}: the mean of the scales");
                assert_eq!(bits(absmax), expected("nested_absmax"), "{name}: the scales of the scales");
                assert_eq!(
                    &**codes,
                    fixture.bytes(&format!("{name}.absmax")),
                    "{name}: the codes of the scales"
                );
                assert_eq!(bits(&map[..]), bits(&fixture.floats("nested_quant_map")), "{name}: their map");
            }
        }
        for dtype in case["dequantized"].as_array().unwrap() {
            if dtype == "f32" {
                let got = q.dequantize(&device, DType::F32).to_vec();
                assert_eq!(
                    bits(&got),
                    bits(&fixture.floats(&format!("{name}.dequantized"))),
                    "{name}: the values"
                );
            } else {
                let got = q.dequantize(&device, DType::Bf16);
                let expected = fixture.bytes(&format!("{name}.dequantized_bf16"));
                let got: Vec<u8> = got.as_ref().bf16().iter().flat_map(|v| v.to_le_bytes()).collect();
                // Values below the smallest normal number become zeros there.
                assert!(input == "tiny" || got == expected, "{name}: the values in bf16");
            }
        }
    }
}
