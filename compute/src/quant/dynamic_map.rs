//! The 256 values of bitsandbytes' dynamic 8-bit data type, on which scales and optimizer states are rounded: for each
//! power of ten from 1e-6 to 1 twice as many equal steps as for the one before it
//! (Dettmers et al. 2022, arXiv:2110.02861, section 2; `functional.create_dynamic_map`).

use std::sync::LazyLock;

/// Both signs: scales of scales, first moments. Sorted, from -0.993 to 1, zero at index 127.
pub fn signed() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| map(true));
    &MAP
}

/// Positive values only: second moments. Sorted, from 0 to 1.
pub fn unsigned() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| map(false));
    &MAP
}

fn map(signed: bool) -> [f32; 256] {
    const POWERS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut values = vec![0.0, 1.0];
    for (i, power) in POWERS.into_iter().enumerate() {
        let intervals = if signed { 1 << i } else { 2 << i };
        let bounds: Vec<f32> = (0..=intervals).map(|k| bound(k, intervals)).collect();
        for pair in bounds.windows(2) {
            let value = power * ((pair[0] + pair[1]) / 2.0);
            values.push(value);
            values.extend(signed.then_some(-value));
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("the intervals add up to 254")
}

/// `torch.linspace(0.1, 1, intervals + 1)[k]`, to the bit: counted from the nearer end, with one rounding.
fn bound(k: usize, intervals: usize) -> f32 {
    let step = (1.0 - 0.1_f32) / intervals as f32;
    if k < intervals.div_ceil(2) {
        step.mul_add(k as f32, 0.1)
    } else {
        (-step).mul_add((intervals - k) as f32, 1.0)
    }
}

/// The index of the value nearest to `x`, the lower one where two are as near.
pub(crate) fn nearest(map: &[f32; 256], x: f32) -> u8 {
    let (mut low, mut high) = (0, 255);
    while low < high {
        let middle = (low + high) / 2;
        if x > (map[middle] + map[middle + 1]) / 2.0 { low = middle + 1 } else { high = middle }
    }
    low as u8
}
