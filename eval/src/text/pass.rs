//! Of k samples, whether one passes.

use super::TextError;

/// The probability that of k samples of an item at least one passes, estimated without bias from n samples of
/// which c pass: 1 - C(n - c, k) / C(n, k) (Chen et al., "Evaluating Large Language Models Trained on Code",
/// 2021, equation 1), computed as the product of figure 3 there, which does not overflow. The mean over items
/// is pass@k.
///
/// k is 1 to n, c at most n; anything else is an error, since no unbiased estimate exists.
pub fn pass_at_k(samples: u64, passed: u64, k: u64) -> Result<f64, TextError> {
    if k == 0 || k > samples || passed > samples {
        return Err(TextError::Samples { samples, passed, k });
    }
    let failed = samples - passed;
    if failed < k {
        return Ok(1.0);
    }
    // C(n - c, k) / C(n, k), as a product over whichever of c and k is smaller: the two are symmetric in it.
    let (few, many) = (passed.min(k), passed.max(k));
    let all_fail: f64 = (0..few).map(|i| 1.0 - many as f64 / (samples - i) as f64).product();
    Ok(1.0 - all_fail)
}
