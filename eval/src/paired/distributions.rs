//! The distributions that intervals and tests ask for.

use std::f64::consts::PI;

/// Beyond this the normal distribution has no mass that a `f64` could tell from none.
const FAR: f64 = 8.0;

/// The density of the standard normal distribution.
fn normal_density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// The probability that a standard normal number is below `x`, to about 1e-15: the series of Marsaglia,
/// "Evaluating the Normal Distribution", Journal of Statistical Software 11 (2004).
pub(super) fn normal_below(x: f64) -> f64 {
    if x.abs() > FAR || x.is_nan() {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut sum, mut term, mut k) = (x, x, 1.0);
    loop {
        k += 2.0;
        term *= x * x / k;
        let next = sum + term;
        if next == sum {
            return 0.5 + sum * normal_density(x);
        }
        sum = next;
    }
}

/// The standard normal number that so much of the distribution lies below; `probability` from 0 to 1.
pub(super) fn normal_quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (-FAR, FAR);
    bisect(&mut low, &mut high, |x| normal_below(x) < probability);
    high
}

/// From so many degrees of freedom on, an approximation's error is less than 1e-4.
const MANY: usize = 200;

/// The standard normal number whose rank is that of `t` in Student's distribution with so many degrees of
/// freedom: what a deviation in units of an estimated error is worth.
pub(super) fn normal_of_student(t: f64, freedom: usize) -> f64 {
    if freedom > MANY {
        let nu = freedom as f64;
        // Abramowitz and Stegun, 26.7.8.
        return t * (1.0 - 0.25 / nu) / (1.0 + t * t / (2.0 * nu)).sqrt();
    }
    // Through the tail, which is small, and whose share of 1 a difference from 1 would lose.
    let tail = (1.0 - student_within(t.abs(), freedom)) / 2.0;
    if tail <= 0.0 { t.signum() * FAR } else { -t.signum() * normal_quantile(tail) }
}

/// The inverse of [`normal_of_student`].
pub(super) fn student_of_normal(z: f64, freedom: usize) -> f64 {
    let within = 1.0 - 2.0 * normal_below(-z.abs());
    let nearer = |t: f64| match freedom > MANY {
        true => normal_of_student(t, freedom) < z.abs(),
        false => student_within(t, freedom) < within,
    };
    let (mut low, mut high) = (0.0, 1.0);
    while nearer(high) && high < 1e12 {
        high *= 2.0;
    }
    bisect(&mut low, &mut high, nearer);
    z.signum() * high
}

/// The probability that a number of Student's distribution is within `t` of 0, for whole degrees of freedom
/// (Abramowitz and Stegun, 26.7.3 and 26.7.4).
fn student_within(t: f64, freedom: usize) -> f64 {
    let nu = freedom as f64;
    let theta = (t / nu.sqrt()).atan();
    let (sin, cos) = theta.sin_cos();
    let odd = freedom % 2 == 1;
    let mut term = if odd { cos } else { 1.0 };
    let mut sum = if freedom == 1 { 0.0 } else { term };
    let mut k = if odd { 3 } else { 2 };
    while k < freedom {
        term *= cos * cos * (k - 1) as f64 / k as f64;
        sum += term;
        k += 2;
    }
    if odd { (theta + sin * sum) * 2.0 / PI } else { sin * sum }
}

/// The probabilities of a fair coin's tails of `n` throws: of `k` or fewer heads, and of exactly `k`.
pub(super) fn fair_coin(k: u64, n: u64) -> (f64, f64) {
    // Weights relative to the middle, which are rational numbers of moderate size, and their sum; far from
    // the middle they become 0, as the probabilities do.
    let middle = n / 2;
    let (mut weight, mut up_to, mut at, mut total) = (1.0_f64, 0.0, 0.0, 0.0);
    for i in (0..=middle).rev() {
        total += weight * if n - i == i { 1.0 } else { 2.0 };
        if i == k {
            at = weight;
        }
        if i <= k {
            up_to += weight;
        }
        weight *= i as f64 / (n - i + 1) as f64;
        if weight == 0.0 {
            break;
        }
    }
    (up_to / total, at / total)
}

/// Narrows a range until its ends are neighbours, or as good as that, around where `below` ends to hold.
pub(super) fn bisect(low: &mut f64, high: &mut f64, below: impl Fn(f64) -> bool) {
    for _ in 0..200 {
        let middle = 0.5 * (*low + *high);
        if middle <= *low || middle >= *high {
            return;
        }
        if below(middle) {
            *low = middle;
        } else {
            *high = middle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_printed_tables() {
        for (probability, z) in [(0.975, 1.959963984540054), (0.5, 0.0), (1e-6, -4.753424308822899)] {
            assert!((normal_quantile(probability) - z).abs() < 1e-9, "{probability}");
            assert!((normal_below(z) - probability).abs() < 1e-15, "{z}");
        }
        let z = 1.959963984540054;
        for (freedom, t) in [
            (1, 12.706204736432095),
            (2, 4.302652729911275),
            (5, 2.570581835636314),
            (29, 2.045229642132703),
            (200, 1.971896224246478),
            (201, 1.971836528),
            (2000, 1.961151377407164),
        ] {
            assert!((student_of_normal(z, freedom) - t).abs() < 1e-4, "{freedom}");
            assert!((student_of_normal(-z, freedom) + t).abs() < 1e-4, "{freedom}");
            assert!((normal_of_student(t, freedom) - z).abs() < 1e-4, "{freedom}");
        }
        assert!(normal_of_student(1e300, 29) >= 5.0);
    }

    #[test]
    fn a_fair_coin_is_fair_for_few_throws_and_for_many() {
        assert_eq!(fair_coin(0, 0), (1.0, 1.0));
        assert_eq!(fair_coin(0, 3), (0.125, 0.125));
        assert_eq!(fair_coin(1, 3), (0.5, 0.375));
        assert_eq!(fair_coin(2, 4), (0.6875, 0.375));
        let (up_to, at) = fair_coin(5_000_000, 10_000_000);
        assert!((up_to - 0.5 - at / 2.0).abs() < 1e-12 && (at - 2.523_132_4e-4).abs() < 1e-9, "{up_to} {at}");
        assert_eq!(fair_coin(0, 10_000_000), (0.0, 0.0));
    }
}
