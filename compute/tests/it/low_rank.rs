//! The low-rank product against its definition in f64, and that definition's central differences.

use compute::ops::low_rank;
use compute::{DType, Matrix, Precision};

use crate::common::{assert_within, dot, gradient, matrix, on_threads, wide};

/// One problem's sizes.
#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    input: usize,
    output: usize,
    rank: usize,
}

const SHAPES: [Shape; 4] = [
    Shape { tokens: 1, input: 1, output: 1, rank: 1 },
    Shape { tokens: 5, input: 17, output: 9, rank: 2 },
    Shape { tokens: 8, input: 31, output: 33, rank: 16 },
    Shape { tokens: 3, input: 40, output: 21, rank: 5 },
];

const SCALE: f32 = 1.5;

/// `product[M, N] = a[M, K] b[N, K]ᵀ`
fn product(a: &[f64], b: &[f64], depth: usize) -> Vec<f64> {
    a.chunks(depth).flat_map(|a| b.chunks(depth).map(|b| dot(a, b)).collect::<Vec<_>>()).collect()
}

/// `scale * (x aᵀ) bᵀ`
fn definition(x: &[f64], a: &[f64], b: &[f64], shape: Shape) -> Vec<f64> {
    let s = product(x, a, shape.input);
    product(&s, b, shape.rank).into_iter().map(|y| f64::from(SCALE) * y).collect()
}

/// What sums of this length lose: little in `f32`; in `bf16` the intermediate product is rounded as well.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-5,
        Precision::Bf16 => 0.03,
    }
}

struct Problem {
    x: Matrix,
    a: Matrix,
    b: Matrix,
    dy: Matrix,
}

impl Problem {
    /// Factors small enough for results of order one.
    fn new(shape: Shape, precision: Precision) -> Self {
        let Shape { tokens, input, output, rank } = shape;
        let scaled = |rows, cols, key| {
            let values: Vec<f32> = matrix(rows, cols, DType::F32, key)
                .to_vec()
                .into_iter()
                .map(|v| v / (cols as f32).sqrt())
                .collect();
            Matrix::from_f32(rows, cols, &values)
        };
        Problem {
            x: matrix(tokens, input, precision.dtype(), 1),
            a: scaled(rank, input, 2),
            b: scaled(output, rank, 3),
            dy: matrix(tokens, output, precision.dtype(), 4),
        }
    }
}

/// `held + more`
fn sum(held: &Matrix, more: Vec<f64>) -> Vec<f64> {
    wide(held).into_iter().zip(more).map(|(a, b)| a + b).collect()
}

#[test]
fn the_product_is_added_to_the_result() {
    for (shape, precision) in
        SHAPES.into_iter().flat_map(|s| [Precision::F32, Precision::Bf16].map(|p| (s, p)))
    {
        let Problem { x, a, b, .. } = Problem::new(shape, precision);
        let held = || matrix(shape.tokens, shape.output, precision.dtype(), 5);
        let got = on_threads(|device| {
            let (mut y, mut s) = (held(), Matrix::zeros(shape.tokens, shape.rank, DType::F32));
            let (x, a, b) = (x.as_ref(), a.as_ref(), b.as_ref());
            low_rank::forward(device, precision, y.as_mut(), x, a, b, SCALE, s.as_mut());
            vec![y.to_vec(), s.to_vec()]
        });
        let (x, a, b) = (wide(&x), wide(&a), wide(&b));
        assert_within(tolerance(precision), &got[0], &sum(&held(), definition(&x, &a, &b, shape)), "y");
        assert_within(tolerance(precision), &got[1], &product(&x, &a, shape.input), "s");
    }
}

#[test]
fn the_gradients_are_those_of_the_definition() {
    for (shape, precision) in
        SHAPES.into_iter().flat_map(|s| [Precision::F32, Precision::Bf16].map(|p| (s, p)))
    {
        let Shape { tokens, input, output, rank } = shape;
        let Problem { x, a, b, dy } = Problem::new(shape, precision);
        let s: Vec<f32> = product(&wide(&x), &wide(&a), input).into_iter().map(|v| v as f32).collect();
        let s = Matrix::from_f32(tokens, rank, &s);
        let held_x = || matrix(tokens, input, precision.dtype(), 5);
        let (held_a, held_b) =
            (|| matrix(rank, input, DType::F32, 6), || matrix(output, rank, DType::F32, 7));
        let got = on_threads(|device| {
            let (mut dx, mut da, mut db) = (held_x(), held_a(), held_b());
            let mut ds = Matrix::zeros(tokens, rank, DType::F32);
            let (dy, x, a, b) = (dy.as_ref(), x.as_ref(), a.as_ref(), b.as_ref());
            let (dx_out, ds_out) = (Some(dx.as_mut()), ds.as_mut());
            let (da_out, db_out) = (da.as_mut(), db.as_mut());
            low_rank::backward(
                device,
                precision,
                dx_out,
                da_out,
                db_out,
                dy,
                x,
                a,
                b,
                SCALE,
                s.as_ref(),
                ds_out,
            );
            vec![dx.to_vec(), da.to_vec(), db.to_vec()]
        });
        let (x, a, b, dy) = (wide(&x), wide(&a), wide(&b), wide(&dy));
        let dx = gradient(&x, |x| dot(&definition(x, &a, &b, shape), &dy));
        let da = gradient(&a, |a| dot(&definition(&x, a, &b, shape), &dy));
        let db = gradient(&b, |b| dot(&definition(&x, &a, b, shape), &dy));
        assert_within(tolerance(precision), &got[0], &sum(&held_x(), dx), "dx");
        assert_within(tolerance(precision), &got[1], &sum(&held_a(), da), "da");
        assert_within(tolerance(precision), &got[2], &sum(&held_b(), db), "db");
    }
}
