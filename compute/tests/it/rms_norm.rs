//! RMS norm against its definition in f64, and that definition's central differences.

use compute::ops::rms_norm::{self, Offset};
use compute::{DType, Matrix};

use crate::common::{
    DTYPES, assert_close, assert_within, column, column_mut, dot, gradient, matrix, on_threads, shapes,
    small_shapes, wide,
};

const EPS: f32 = 1e-5;

/// Types of input and weight, and what is added to the weight.
fn kinds() -> impl Iterator<Item = (DType, DType, Offset)> {
    let types = DTYPES.into_iter().flat_map(|a| DTYPES.map(|b| (a, b)));
    types.flat_map(|(a, b)| [Offset::None, Offset::One].map(|offset| (a, b, offset)))
}

/// `y[t] = w * x[t] / sqrt(mean(x[t]²) + eps)`, `w` the weight or one more
fn definition(x: &[f64], weight: &[f64], offset: Offset) -> Vec<f64> {
    let added = if offset == Offset::One { 1.0 } else { 0.0 };
    x.chunks(weight.len())
        .flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            let rstd = 1.0 / (mean + f64::from(EPS)).sqrt();
            row.iter().zip(weight).map(move |(x, w)| (w + added) * (x * rstd)).collect::<Vec<_>>()
        })
        .collect()
}

/// The deviations of the forward pass, by the definition.
fn deviations(x: &Matrix) -> Vec<f32> {
    let squares = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    wide(x).chunks(x.cols()).map(|row| (1.0 / (squares(row) + f64::from(EPS)).sqrt()) as f32).collect()
}

#[test]
fn the_result_is_that_of_the_definition() {
    for (rows, cols) in shapes() {
        for (dtype, weight_dtype, offset) in kinds() {
            let (x, weight) = (matrix(rows, cols, dtype, 1), matrix(1, cols, weight_dtype, 2));
            let got = on_threads(|device| {
                let (mut y, mut rstd) = (Matrix::zeros(rows, cols, dtype), vec![0.0; rows]);
                rms_norm::forward(
                    device,
                    y.as_mut(),
                    x.as_ref(),
                    weight.as_ref(),
                    offset,
                    EPS,
                    column_mut(&mut rstd),
                );
                vec![y.to_vec(), rstd]
            });
            assert_close(dtype, &got[0], &definition(&wide(&x), &wide(&weight), offset), "y");
            let want: Vec<f64> = deviations(&x).into_iter().map(f64::from).collect();
            assert_close(DType::F32, &got[1], &want, "rstd");
        }
    }
}

#[test]
fn the_gradients_are_those_of_the_definition() {
    for (rows, cols) in small_shapes() {
        for (dtype, weight_dtype, offset) in kinds() {
            for accumulate in [false, true] {
                let (x, weight) = (matrix(rows, cols, dtype, 1), matrix(1, cols, weight_dtype, 2));
                let (dy, held) = (matrix(rows, cols, dtype, 3), matrix(rows, cols, dtype, 4));
                let rstd = deviations(&x);
                let got = on_threads(|device| {
                    let (mut dx, mut dweight) =
                        (matrix(rows, cols, dtype, 4), matrix(1, cols, DType::F32, 5));
                    let (dy, x, weight) = (dy.as_ref(), x.as_ref(), weight.as_ref());
                    let dw = Some(dweight.as_mut());
                    rms_norm::backward(
                        device,
                        dx.as_mut(),
                        accumulate,
                        dy,
                        x,
                        weight,
                        offset,
                        column(&rstd),
                        dw,
                    );
                    vec![dx.to_vec(), dweight.to_vec()]
                });
                let (x, weight, dy) = (wide(&x), wide(&weight), wide(&dy));
                let mut dx = gradient(&x, |x| dot(&definition(x, &weight, offset), &dy));
                if accumulate {
                    dx.iter_mut().zip(wide(&held)).for_each(|(dx, held)| *dx += held);
                }
                assert_close(dtype, &got[0], &dx, "dx");
                let mut dweight = gradient(&weight, |weight| dot(&definition(&x, weight, offset), &dy));
                dweight
                    .iter_mut()
                    .zip(wide(&matrix(1, cols, DType::F32, 5)))
                    .for_each(|(dw, held)| *dw += held);
                assert_within(3e-6, &got[1], &dweight, "dweight");
            }
        }
    }
}

#[test]
fn large_gradients_have_the_same_bytes_on_any_number_of_threads() {
    for dtype in DTYPES {
        let (rows, cols) = (130, 517);
        let (x, dy) = (matrix(rows, cols, dtype, 1), matrix(rows, cols, dtype, 2));
        let (weight, rstd) = (matrix(1, cols, DType::F32, 3), deviations(&x));
        on_threads(|device| {
            let (mut dx, mut dw) = (Matrix::zeros(rows, cols, dtype), Matrix::zeros(1, cols, DType::F32));
            let (dy, x, weight) = (dy.as_ref(), x.as_ref(), weight.as_ref());
            rms_norm::backward(
                device,
                dx.as_mut(),
                false,
                dy,
                x,
                weight,
                Offset::None,
                column(&rstd),
                Some(dw.as_mut()),
            );
            vec![dx.to_vec(), dw.to_vec()]
        });
    }
}
