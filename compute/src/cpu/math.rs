//! Elementary functions without branches, so that loops over them become vector code.
//!
//! They are `#[inline(always)]`: a loop inside a `#[target_feature]` function gets them in its instruction set. They use
//! no fused multiply-add, so that every instruction set gives the same bytes.

/// `e^x` with a relative error below 2^-23. Below -87.3 it is 0 (no subnormal results), above 88.0 infinite; NaN stays.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by its degree-6 minimax polynomial (Cephes, `expf`), `2^n` by its bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; n times the first is exact for |n| < 2^8.
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_65;
    let p = p * r + 0.5;
    let e = p * (r * r) + r + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    let y = e * scale;
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.0 { f32::INFINITY } else { y }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_has_a_relative_error_below_two_to_the_minus_23() {
        for i in -87_299..88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < f64::from(f32::EPSILON), "exp({x}) = {}, {want} expected", exp(x));
        }
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(1e30), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
