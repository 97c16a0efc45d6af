//! Dropout: the mask is the documented function of key and place, and the operation is its own transpose.

use compute::ops::dropout;
use compute::{DType, Matrix, random};

use crate::common::{DTYPES, dot, matrix, on_threads, shapes, stored, wide};

/// Names of rows, which need not be their numbers.
fn names(rows: usize) -> Vec<u64> {
    (0..rows as u64).map(|row| random::bits(99, row)).collect()
}

fn apply(x: &Matrix, p: f32, key: u64) -> Vec<f32> {
    let results = on_threads(|device| {
        let mut y = matrix(x.rows(), x.cols(), x.dtype(), 77);
        dropout::apply(device, y.as_mut(), x.as_ref(), p, (key, (&names(x.rows())).into()), false);
        vec![y.to_vec()]
    });
    results.into_iter().next().expect("one result")
}

#[test]
fn an_element_is_kept_if_its_random_bits_say_so() {
    for (rows, cols) in shapes() {
        for (dtype, p) in [(DType::F32, 0.1_f32), (DType::Bf16, 0.1), (DType::F32, 0.75)] {
            let x = matrix(rows, cols, dtype, 1);
            let threshold = f64::from(p) * 4_294_967_296.0;
            let scale = (1.0 / (1.0 - f64::from(p))) as f32;
            let names = names(rows);
            let bits = |i: usize| random::bits(random::key(5, names[i / cols]), (i % cols) as u64);
            let kept = |i: usize| (bits(i) >> 32) as f64 >= threshold;
            let want =
                (0..).zip(x.to_vec()).map(|(i, x)| if kept(i) { stored(x * scale, dtype) } else { 0.0 });
            assert_eq!(apply(&x, p, 5), want.collect::<Vec<_>>());
        }
    }
}

#[test]
fn with_probability_zero_the_input_is_copied() {
    for dtype in DTYPES {
        let x = matrix(13, 77, dtype, 1);
        assert_eq!(apply(&x, 0.0, 5), x.to_vec());
    }
}

#[test]
fn the_share_that_is_dropped_is_p_and_other_keys_drop_others() {
    let x = Matrix::from_f32(400, 500, &vec![1.0; 200_000]);
    let (a, b) = (apply(&x, 0.3, 1), apply(&x, 0.3, 2));
    let share =
        |zero: &dyn Fn(usize) -> bool| (0..a.len()).filter(|&i| zero(i)).count() as f64 / a.len() as f64;
    assert!((share(&|i| a[i] == 0.0) - 0.3).abs() < 0.005);
    assert!(
        (share(&|i| a[i] == 0.0 && b[i] == 0.0) - 0.09).abs() < 0.005,
        "masks of two keys are independent"
    );
}

#[test]
fn the_same_call_is_its_backward() {
    let (x, dy) = (matrix(9, 41, DType::F32, 1), matrix(9, 41, DType::F32, 2));
    let widen = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<_>>();
    let (y, dx) = (widen(apply(&x, 0.4, 3)), widen(apply(&dy, 0.4, 3)));
    assert!((dot(&y, &wide(&dy)) - dot(&wide(&x), &dx)).abs() < 1e-5);
}

#[test]
fn accumulating_adds_to_what_was_there() {
    for dtype in DTYPES {
        let (x, held) = (matrix(9, 41, dtype, 1), matrix(9, 41, dtype, 2));
        let got = on_threads(|device| {
            let mut y = matrix(9, 41, dtype, 2);
            dropout::apply(device, y.as_mut(), x.as_ref(), 0.5, (3, (&names(x.rows())).into()), true);
            vec![y.to_vec()]
        });
        let masked = apply(&x, 0.5, 3); // doubled or dropped: exact in either type
        let sums = held.to_vec().into_iter().zip(masked).map(|(a, b)| stored(a + b, dtype));
        assert_eq!(got[0], sums.collect::<Vec<_>>());
    }
}
