//! A linear layer with a low-rank update against its definition in f64, and that definition's central
//! differences.

use compute::ops::low_rank;
use compute::ops::matmul::{Factor, Product, multiply};
use compute::{DType, Matrix, MatrixRef, Precision};

use crate::common::{assert_within, dot, gradient, matrix, on_threads, wide};

/// One problem's sizes.
#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    input: usize,
    output: usize,
    rank: usize,
}

const SMALL: [Shape; 4] = [
    Shape { tokens: 1, input: 1, output: 1, rank: 1 },
    Shape { tokens: 5, input: 17, output: 9, rank: 2 },
    Shape { tokens: 8, input: 31, output: 33, rank: 16 },
    Shape { tokens: 3, input: 40, output: 21, rank: 5 },
];

/// Several blocks of both depths, and more columns than one task has; a rank with which `s` is made on its
/// own, and one with which it is made of the packed rows.
const LARGE: [Shape; 2] = [
    Shape { tokens: 70, input: 280, output: 300, rank: 300 },
    Shape { tokens: 150, input: 600, output: 140, rank: 20 },
];

const SCALE: f32 = 1.5;

/// `product[M, N] = a[M, K] b[N, K]ᵀ`
fn product(a: &[f64], b: &[f64], depth: usize) -> Vec<f64> {
    a.chunks(depth).flat_map(|a| b.chunks(depth).map(|b| dot(a, b)).collect::<Vec<_>>()).collect()
}

/// `x wᵀ + scale * (x aᵀ) bᵀ`
fn definition(x: &[f64], w: &[f64], a: &[f64], b: &[f64], shape: Shape) -> Vec<f64> {
    let s = product(x, a, shape.input);
    let update = product(&s, b, shape.rank);
    product(x, w, shape.input).into_iter().zip(update).map(|(y, u)| y + f64::from(SCALE) * u).collect()
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
    w: Matrix,
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
            w: scaled(output, input, 8).to_dtype(precision.dtype()),
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
fn the_result_is_that_of_the_definition_alone_or_added_to_what_is_there() {
    for (shape, precision) in
        SMALL.into_iter().chain(LARGE).flat_map(|s| [Precision::F32, Precision::Bf16].map(|p| (s, p)))
    {
        let Problem { x, w, a, b, .. } = Problem::new(shape, precision);
        let held = || matrix(shape.tokens, shape.output, precision.dtype(), 5);
        for accumulate in [false, true] {
            let got = on_threads(|device| {
                let (mut y, mut s) = (held(), Matrix::zeros(shape.tokens, shape.rank, DType::F32));
                let (x, w) = (x.as_ref(), Factor::Transposed(w.as_ref()));
                let (factors, s_out) = ((a.as_ref(), b.as_ref()), s.as_mut());
                let y_out = y.as_mut();
                let update = Some(low_rank::forward(factors, SCALE, s_out, false));
                let product = Product { update, ..Product::new((Factor::Plain(x), w), accumulate, y_out) };
                multiply(device, precision, vec![product]);
                vec![y.to_vec(), s.to_vec()]
            });
            let (x, w, a, b) = (wide(&x), wide(&w), wide(&a), wide(&b));
            let y = definition(&x, &w, &a, &b, shape);
            let y = if accumulate { sum(&held(), y) } else { y };
            assert_within(tolerance(precision), &got[0], &y, "y");
            let s: Vec<f64> = product(&x, &a, shape.input).iter().map(|s| f64::from(SCALE) * s).collect();
            assert_within(tolerance(precision), &got[1], &s, "s");
        }
    }
}

#[test]
fn the_gradients_are_those_of_the_definition() {
    for (shape, precision) in
        SMALL.into_iter().flat_map(|s| [Precision::F32, Precision::Bf16].map(|p| (s, p)))
    {
        let Shape { tokens, input, output, rank } = shape;
        let Problem { x, w, a, b, dy } = Problem::new(shape, precision);
        let held_x = || matrix(tokens, input, precision.dtype(), 5);
        let (held_a, held_b) =
            (|| matrix(rank, input, DType::F32, 6), || matrix(output, rank, DType::F32, 7));
        let got = on_threads(|device| {
            let (mut dx, mut da, mut db) = (held_x(), held_a(), held_b());
            let (mut s, mut ds) =
                (Matrix::zeros(tokens, rank, DType::F32), Matrix::zeros(tokens, rank, DType::F32));
            let (dy, x, a, b) = (dy.as_ref(), x.as_ref(), a.as_ref(), b.as_ref());
            let (to, w) = (dx.as_mut(), Factor::Plain(w.as_ref()));
            let update = Some(low_rank::input_gradient((a, b), SCALE, ds.as_mut()));
            let product = Product { update, ..Product::new((Factor::Plain(dy), w), true, to) };
            multiply(device, precision, vec![product]);
            let (dy, to) = ((dy, ds.as_ref()), (da.as_mut(), db.as_mut()));
            low_rank::backward(device, precision, to.0, to.1, dy, (x, a), SCALE, s.as_mut());
            vec![dx.to_vec(), da.to_vec(), db.to_vec()]
        });
        let (x, w, a, b, dy) = (wide(&x), wide(&w), wide(&a), wide(&b), wide(&dy));
        let dx = gradient(&x, |x| dot(&definition(x, &w, &a, &b, shape), &dy));
        let da = gradient(&a, |a| dot(&definition(&x, &w, a, &b, shape), &dy));
        let db = gradient(&b, |b| dot(&definition(&x, &w, &a, b, shape), &dy));
        assert_within(tolerance(precision), &got[0], &sum(&held_x(), dx), "dx");
        assert_within(tolerance(precision), &got[1], &sum(&held_a(), da), "da");
        assert_within(tolerance(precision), &got[2], &sum(&held_b(), db), "db");
    }
}

/// Rows that are packed in parts, and a depth that is.
#[test]
fn the_sum_that_comes_first_is_the_same_to_the_byte_made_with_the_product_or_before_it() {
    for (tokens, input, output, rank) in
        [(150, 600, 140, 20), (2500, 2304, 136, 16), (520, 20_000, 136, 8), (3, 40, 21, 5)]
    {
        let [x, w] = [(tokens, 1), (output, 2)].map(|(rows, key)| matrix(rows, input, DType::Bf16, key));
        let (a, b) = (matrix(rank, input, DType::F32, 3), matrix(output, rank, DType::F32, 4));
        let made = |dropped: Option<MatrixRef<'_>>| {
            on_threads(|device| {
                let mut y = Matrix::zeros(tokens, output, DType::Bf16);
                let mut s = Matrix::zeros(tokens, rank, DType::F32);
                let (y_out, mut s_out) = (y.as_mut(), s.as_mut());
                let (x, factors) = ((x.as_ref(), Factor::Transposed(w.as_ref())), (a.as_ref(), b.as_ref()));
                if let Some(input) = dropped {
                    low_rank::prepared(
                        device,
                        Precision::Bf16,
                        input,
                        factors.0,
                        SCALE,
                        s_out.reborrow(),
                        false,
                    );
                }
                let update = Some(low_rank::forward(factors, SCALE, s_out, dropped.is_some()));
                let product = Product { update, ..Product::new((Factor::Plain(x.0), x.1), false, y_out) };
                multiply(device, Precision::Bf16, vec![product]);
                vec![y.to_vec(), s.to_vec()]
            })
        };
        assert!(made(None) == made(Some(x.as_ref())), "{tokens} x {input} x {output}, rank {rank}");
    }
}
