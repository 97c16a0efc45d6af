//! Random numbers that are a function of a key and a counter: no state, so the same numbers come whatever the
//! order, the number of threads, or the point at which a run was resumed.
//!
//! The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA
//! 2014) entered at any point of its sequence; the key, mixed itself, says where a stream begins.

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A key for one purpose (`stream`) out of a seed or of another key; chain it for several indices.
///
/// ```
/// use compute::random::key;
/// let (seed, step, layer) = (42, 7, 3);
/// let dropout = key(key(seed, step), layer);
/// assert_ne!(dropout, key(key(seed, layer), step));
/// ```
#[inline]
pub fn key(seed: u64, stream: u64) -> u64 {
    bits(seed, stream)
}

/// 64 random bits.
#[inline(always)]
pub fn bits(key: u64, counter: u64) -> u64 {
    mix(mix(key.wrapping_add(GAMMA)).wrapping_add(counter.wrapping_mul(GAMMA)))
}

/// Uniform in `[0, 1)`, a multiple of 2⁻⁵³.
#[inline]
pub fn uniform(key: u64, counter: u64) -> f64 {
    (bits(key, counter) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Normal with mean 0 and deviation 1, by Box and Muller's method from 32 bits each for radius and angle (so
/// at most 6.7 deviations from the mean).
#[inline]
pub fn normal(key: u64, counter: u64) -> f64 {
    const SCALE: f64 = 1.0 / (1_u64 << 32) as f64;
    let b = bits(key, counter);
    let radius = (-2.0 * (((b >> 32) as f64 + 1.0) * SCALE).ln()).sqrt();
    radius * (std::f64::consts::TAU * (b & 0xffff_ffff) as f64 * SCALE).cos()
}

/// Uniform in `0..bound` (which must not be 0), with a bias below `bound / 2⁶⁴`.
#[inline]
pub fn below(key: u64, counter: u64, bound: u64) -> u64 {
    assert_ne!(bound, 0, "a random number below 0");
    ((u128::from(bits(key, counter)) * u128::from(bound)) >> 64) as u64
}

/// Puts the items in a random order (Fisher and Yates' method).
pub fn shuffle<T>(key: u64, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(key, i as u64, i as u64 + 1) as usize);
    }
}
