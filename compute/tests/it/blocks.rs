//! Weights in blocks: values and bytes are those of the package gguf, and a product with such a weight is that
//! with its values.

use compute::ops::matmul::{Factor, matmul};
use compute::quant::{BlockType, Blocks, Format, Quantized};
use compute::{DType, Device, Matrix, Precision};
use serde_json::Value;

use crate::common::{assert_within, cpus, matrix, on_threads};

/// The tensors of `blocks.safetensors`.
struct Fixture {
    header: Value,
    data: Vec<u8>,
}

impl Fixture {
    fn open() -> Self {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/blocks.safetensors");
        let bytes = std::fs::read(file).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..start]).unwrap();
        Fixture { header, data: bytes[start..].to_vec() }
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let offsets = &self.header.get(name)?["data_offsets"];
        let at = |i: usize| offsets[i].as_u64().unwrap() as usize;
        Some(&self.data[at(0)..at(1)])
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name).unwrap_or_else(|| panic!("no tensor {name}"));
        bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }
}

/// What ggml calls a type, if it has it.
fn ggml_name(kind: BlockType) -> Option<&'static str> {
    Some(match kind {
        BlockType::F16 => "F16",
        BlockType::Q8_0 => "Q8_0",
        BlockType::Q4_0 => "Q4_0",
        BlockType::Int4 => "Q4_1",
        BlockType::Q5_0 => "Q5_0",
        BlockType::Q5_1 => "Q5_1",
        BlockType::Q4K => "Q4_K",
        BlockType::Q5K => "Q5_K",
        BlockType::Q6K => "Q6_K",
        BlockType::Int3 | BlockType::Int2 => return None,
    })
}

fn of_bytes(kind: BlockType, cols: usize, bytes: &[u8]) -> Quantized {
    let elements = bytes.len() / kind.bytes() * kind.elements();
    let mut blocks = Blocks::zeros(kind, elements);
    blocks.bytes_mut().copy_from_slice(bytes);
    Quantized::of_blocks(elements / cols, cols, blocks)
}

/// As integers are: zeros of either sign are one value.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| (v + 0.0).to_bits()).collect()
}

#[test]
fn blocks_stand_for_the_values_that_gguf_says() {
    let fixture = Fixture::open();
    for kind in BlockType::ALL {
        let Some(name) = ggml_name(kind) else { continue };
        let want = fixture.floats(&format!("{name}.values"));
        let weight = of_bytes(kind, kind.elements(), fixture.bytes(&format!("{name}.bytes")).unwrap());
        for cpu in cpus(2) {
            let got = weight.dequantize(&Device::Cpu(cpu.clone()), DType::F32).to_vec();
            assert_eq!(bits(&got), bits(&want), "{kind} on {}", cpu.isa());
            // By way of a product with the identity, whose kernels decode for themselves.
            let n = weight.rows();
            let identity: Vec<f32> = (0..n * n).map(|i| f32::from(i % (n + 1) == 0)).collect();
            let identity = Matrix::from_f32(n, n, &identity);
            let mut y = Matrix::zeros(n, weight.cols(), DType::F32);
            let factors = (Factor::Plain(identity.as_ref()), Factor::Quantized(&weight));
            let device = Device::Cpu(cpu.clone());
            matmul(&device, Precision::F32, 1.0, factors.0, factors.1, false, y.as_mut());
            assert_eq!(bits(&y.to_vec()), bits(&want), "{kind} in a product on {}", cpu.isa());
        }
    }
}

#[test]
fn values_are_quantized_to_the_bytes_of_gguf() {
    let fixture = Fixture::open();
    let x = Matrix::from_f32(16, 512, &fixture.floats("input"));
    let mut compared = 0;
    for kind in BlockType::ALL {
        let name = ggml_name(kind).map(|name| format!("{name}.quantized"));
        let Some(want) = name.and_then(|name| fixture.bytes(&name)) else { continue };
        let got = Quantized::quantize(&Device::cpu(2), x.as_ref(), Format::Blocks(kind));
        let got = got.blocks().unwrap().bytes();
        let differs = got.chunks(kind.bytes()).zip(want.chunks(kind.bytes())).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the first block of {kind} that differs");
        compared += 1;
    }
    assert_eq!(compared, 6);
}

fn relative_error(x: &Matrix, kind: BlockType) -> f64 {
    let device = Device::cpu(2);
    let got = Quantized::quantize(&device, x.as_ref(), Format::Blocks(kind)).dequantize(&device, DType::F32);
    let pairs = x.to_vec().into_iter().zip(got.to_vec());
    let (error, size) = pairs.fold((0.0, 0.0), |(error, size), (x, y)| {
        (error + f64::from(x - y).powi(2), size + f64::from(x).powi(2))
    });
    (error / size).sqrt()
}

/// Of normal weights: half a step of 2^bits steps over some six deviations, about.
#[test]
fn more_bits_lose_less() {
    let x = matrix(64, 1024, DType::F32, 5);
    use BlockType::{F16, Int2, Int3, Int4, Q4_0, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let expected = [
        (F16, 0.00025),
        (Q8_0, 0.006),
        (Q6K, 0.020),
        (Q5K, 0.040),
        (Q5_1, 0.044),
        (Q5_0, 0.048),
        (Q4K, 0.074),
        (Int4, 0.083),
        (Q4_0, 0.092),
        (Int3, 0.18),
        (Int2, 0.42),
    ];
    let mut before = 0.0;
    for (kind, want) in expected {
        let error = relative_error(&x, kind);
        assert!(error > before && error < want && error > 0.75 * want, "{kind}: {error}, of about {want}");
        before = error;
    }
}

#[test]
fn zeros_and_constants_survive_every_type() {
    for kind in BlockType::ALL {
        for value in [0.0, 0.5, -0.5] {
            let x = Matrix::from_f32(2, 512, &[value; 1024]);
            let device = Device::cpu(1);
            let q = Quantized::quantize(&device, x.as_ref(), Format::Blocks(kind));
            let largest = q
                .dequantize(&device, DType::F32)
                .to_vec()
                .into_iter()
                .fold(0.0, |largest: f32, v| largest.max((v - value).abs()));
            assert!(largest <= 0.005 * value.abs(), "{kind}: {value} became off by {largest}");
            assert_eq!(q.blocks().unwrap().not_finite(), None);
        }
    }
}

#[test]
fn fewer_bits_are_a_part_of_more() {
    let x = matrix(5, 256, DType::F32, 8);
    let device = Device::cpu(1);
    for (from, to) in [
        (BlockType::Int2, BlockType::Int4),
        (BlockType::Int3, BlockType::Int4),
        (BlockType::Int4, BlockType::Q5_1),
    ] {
        let narrow = Quantized::quantize(&device, x.as_ref(), Format::Blocks(from));
        let wide = Quantized::of_blocks(5, 256, narrow.blocks().unwrap().widened(to));
        let [narrow, wide] = [narrow, wide].map(|q| bits(&q.dequantize(&device, DType::F32).to_vec()));
        assert_eq!(narrow, wide, "{from} in {to}");
    }
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let x = matrix(37, 768, DType::F32, 9);
    for kind in BlockType::ALL {
        on_threads(|device| {
            let q = Quantized::quantize(device, x.as_ref(), Format::Blocks(kind));
            let bytes = q.blocks().unwrap().bytes().iter().map(|&b| f32::from(b)).collect();
            vec![bytes, q.dequantize(device, DType::F32).to_vec()]
        });
    }
}

#[test]
fn few_rows_are_their_definition() {
    for kind in BlockType::ALL {
        for (rows, out, inner) in [(1, 5, 256), (2, 67, 1280), (3, 64, 4096), (4, 9, 11008)] {
            let w = matrix(out, inner, DType::F32, 4);
            let q = Quantized::quantize(&Device::cpu(1), w.as_ref(), Format::Blocks(kind));
            let values = q.dequantize(&Device::cpu(1), DType::F32).to_vec();
            for precision in [Precision::F32, Precision::Bf16] {
                let x = matrix(rows, inner, precision.dtype(), 6);
                let from = x.to_vec();
                let row = |m: &[f32], i: usize| {
                    m[i * inner..][..inner].iter().map(|&v| f64::from(v)).collect::<Vec<_>>()
                };
                let dot = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>();
                let want: Vec<f64> =
                    (0..rows * out).map(|at| dot(row(&from, at / out), row(&values, at % out))).collect();
                for cpu in cpus(2) {
                    let mut y = Matrix::zeros(rows, out, DType::F32);
                    let factors = (Factor::Plain(x.as_ref()), Factor::QuantizedTransposed(&q));
                    let device = Device::Cpu(cpu.clone());
                    matmul(&device, precision, 1.0, factors.0, factors.1, false, y.as_mut());
                    let tolerance = if precision == Precision::F32 { 2e-5 } else { 0.02 };
                    let what = format!("{kind}, {rows} x {inner} by {out}, {precision:?}, {}", cpu.isa());
                    assert_within(tolerance * (inner as f64).sqrt() / 16.0, &y.to_vec(), &want, &what);
                }
            }
        }
    }
}

#[test]
fn a_scale_that_is_no_number_is_found() {
    for kind in BlockType::ALL {
        let x = matrix(3, 512, DType::F32, 1);
        let mut q = Quantized::quantize(&Device::cpu(1), x.as_ref(), Format::Blocks(kind));
        let blocks = q.blocks_mut().unwrap();
        let (count, bytes) = (blocks.bytes().len() / kind.bytes(), kind.bytes());
        let at = if kind == BlockType::Q6K { 208 } else { 0 };
        let last = (count - 1) * bytes + at;
        blocks.bytes_mut()[last..last + 2].copy_from_slice(&0x7c00_u16.to_le_bytes());
        assert_eq!(blocks.not_finite(), Some(count - 1), "{kind}");
    }
}
