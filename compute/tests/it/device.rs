//! Whose memory is whose.

use compute::ops::matmul::{Factor, matmul};
use compute::ops::{bias, copy, residual};
use compute::quant::{Format, Quantized};
use compute::{DType, Device, Home, Matrix, Precision, Vector};

use crate::common::matrix;

#[test]
fn nothing_is_computed_where_there_are_no_elements() {
    let device = &Device::null();
    // A matrix that no machine could hold.
    let mut x = device.zeros(1 << 30, 1 << 30, DType::F32);
    assert_eq!((x.home(), x.size_bytes()), (Home::Null, 1 << 62));
    let y = device.take(Matrix::zeros(1 << 10, 1 << 10, DType::F32));
    let part = x.as_mut().rows_range(5..5 + (1 << 10)).cols_range(7..7 + (1 << 10));
    device.profile().start();
    residual::add(device, part, y.as_ref());
    assert_eq!(device.profile().stop().len(), 1, "operations are in the profile");
    let ids = Vector::<u32>::zeros(device, 9);
    let mut rows = device.unset(4, 1 << 30, DType::F32);
    copy::gather(device, rows.as_mut(), x.as_ref(), ids.top(4));
    let weight = Quantized::quantize(device, y.as_ref(), Format::QLORA);
    let host =
        Quantized::quantize(&Device::cpu(1), matrix(1 << 10, 1 << 10, DType::F32, 1).as_ref(), Format::QLORA);
    assert_eq!(weight.size_bytes(), host.size_bytes());
    let factors = (Factor::Plain(y.as_ref()), Factor::QuantizedTransposed(&weight));
    let mut product = device.unset(1 << 10, 1 << 10, DType::F32);
    matmul(device, Precision::F32, 1.0, factors.0, factors.1, false, product.as_mut());
    assert_eq!(host.to_device(device).home(), Home::Null);
}

#[test]
fn transfers_read_zeros_from_nowhere_and_write_there() {
    let device = &Device::null();
    let mut x = device.zeros(3, 5, DType::Bf16);
    assert_eq!(x.as_ref().download().as_ref().to_vec(), [0.0; 15]);
    assert_eq!(x.as_mut().upload(|host| (host.rows(), host.cols(), host.dtype())), (3, 5, DType::Bf16));
    let mut y = Matrix::zeros(2, 2, DType::F32);
    y.as_mut().upload(|host| host.f32().copy_from_slice(&[1.0, 2.0, 3.0, 4.0]));
    assert_eq!(y.as_ref().download().f32(), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
#[should_panic(expected = "has no elements that the host could read")]
fn elements_of_another_memory_are_not_read() {
    Device::null().zeros(1, 1, DType::F32).to_vec();
}

#[test]
#[should_panic(expected = "memory that the operation `bias` works on")]
fn an_operation_takes_memory_of_its_device_alone() {
    let device = &Device::null();
    let (mut y, b) = (device.zeros(2, 3, DType::F32), Matrix::zeros(1, 3, DType::F32));
    bias::add(device, y.as_mut(), b.as_ref());
}

#[test]
#[should_panic(expected = "memory that the operation `bias` works on")]
fn the_host_computes_in_its_own_memory_alone() {
    let mut y = Device::null().zeros(2, 3, DType::F32);
    bias::add(&Device::cpu(1), y.as_mut(), Matrix::zeros(1, 3, DType::F32).as_ref());
}
