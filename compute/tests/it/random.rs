//! Random numbers: those of SplitMix64, with the distributions they claim.

use compute::random::{below, bits, key, normal, shuffle, uniform};

/// SplitMix64 as published, with its state.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn bits_are_splitmix64_s_from_a_state_that_the_key_gives() {
    let mut state = 1_234_567;
    let first: Vec<u64> = (0..3).map(|_| splitmix64(&mut state)).collect();
    assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    let mut stream = first[0];
    for counter in 1..100 {
        assert_eq!(bits(1_234_567, counter), splitmix64(&mut stream));
    }
}

#[test]
fn uniform_numbers_fill_the_unit_interval_evenly() {
    let mut counts = [0; 20];
    for i in 0..200_000 {
        let u = uniform(7, i);
        assert!((0.0..1.0).contains(&u), "{u}");
        counts[(u * 20.0) as usize] += 1;
    }
    assert!(counts.iter().all(|n| (9_600..10_400).contains(n)), "{counts:?}");
}

#[test]
fn normal_numbers_have_the_moments_of_the_distribution() {
    let n = 200_000;
    let moment = |k| (0..n).map(|i| normal(7, i).powi(k)).sum::<f64>() / n as f64;
    for (k, want, tolerance) in [(1, 0.0, 0.01), (2, 1.0, 0.015), (3, 0.0, 0.04), (4, 3.0, 0.1)] {
        assert!((moment(k) - want).abs() < tolerance, "moment {k}: {}", moment(k));
    }
}

#[test]
fn numbers_below_a_bound_take_every_value() {
    let mut counts = [0; 7];
    (0..70_000).for_each(|i| counts[below(3, i, 7) as usize] += 1);
    assert!(counts.iter().all(|n| (9_600..10_400).contains(n)), "{counts:?}");
}

#[test]
fn every_order_of_three_items_is_as_likely() {
    let mut counts = std::collections::BTreeMap::new();
    for seed in 0..60_000 {
        let mut items = [0, 1, 2];
        shuffle(key(seed, 1), &mut items);
        *counts.entry(items).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 6);
    assert!(counts.values().all(|n| (9_600..10_400).contains(n)), "{counts:?}");
}

#[test]
fn shuffling_keeps_the_items_and_depends_on_the_key() {
    let shuffled = |k| {
        let mut items: Vec<u32> = (0..1000).collect();
        shuffle(k, &mut items);
        items
    };
    let (a, b) = (shuffled(1), shuffled(2));
    assert_eq!(a, shuffled(1));
    assert_ne!(a, b);
    let mut sorted = a;
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
}
