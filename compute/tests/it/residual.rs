//! The residual addition: exact but for the last rounding.

use compute::ops::residual;

use crate::common::{DTYPES, matrix, on_threads, shapes, stored};

#[test]
fn the_sum_is_the_rounded_sum_of_the_elements() {
    for (rows, cols) in shapes() {
        for dtype in DTYPES {
            let (held, x) = (matrix(rows, cols, dtype, 1), matrix(rows, cols, dtype, 2));
            let got = on_threads(|device| {
                let mut y = matrix(rows, cols, dtype, 1);
                residual::add(device, y.as_mut(), x.as_ref());
                vec![y.to_vec()]
            });
            let sums = held.to_vec().into_iter().zip(x.to_vec()).map(|(a, b)| stored(a + b, dtype));
            assert_eq!(got[0], sums.collect::<Vec<_>>());
        }
    }
}
