//! Reductions.

use compute::ops::reduce;

use crate::common::{normals, on_threads, row};

#[test]
fn the_sum_of_squares_is_that_of_the_definition() {
    for n in [0, 1, 31, 32, 33, 8191, 8192, 8193, 300_007] {
        let x = normals(n, 1);
        let want: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let mut got = f64::NAN;
        let halves = on_threads(|device| {
            let sum = reduce::sum_of_squares(device, row(&x));
            let bits = sum.to_bits();
            vec![vec![f32::from_bits((bits >> 32) as u32), f32::from_bits(bits as u32)]]
        });
        if let [high, low] = halves[0][..] {
            got = f64::from_bits(u64::from(high.to_bits()) << 32 | u64::from(low.to_bits()));
        }
        assert!((got - want).abs() <= 1e-12 * want, "{n} values: {got}, not {want}");
    }
}
