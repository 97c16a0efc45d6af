//! Whether intervals hold what they should as often as they should: experiments whose truth is known, and
//! other programs' numbers.

use eval::paired::{Bootstrap, Comparison, Groups, McNemar, Method, PairedError, Part};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::Value;

/// How many experiments a share is taken of.
const EXPERIMENTS: u64 = 1000;
/// Two-sided, so that a comparison with what was rounded differently is none of an end with itself.
const ROUNDING: f64 = 1e-9;

/// A standard normal number (Box and Muller).
fn normal(random: &mut Pcg64) -> f64 {
    let (u, v): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

/// Answers of two systems that are right with given probabilities; half of the items are equally hard for
/// both.
fn answers(random: &mut Pcg64, p: f64, q: f64) -> (f64, f64) {
    let hard: f64 = random.random();
    let own = if random.random::<bool>() { hard } else { random.random() };
    (f64::from(u8::from(hard < p)), f64::from(u8::from(own < q)))
}

/// Of all experiments, in percent: how many intervals held the truth, and how many p-values were below 0.05.
fn rates(
    experiments: u64,
    seed: u64,
    truth: f64,
    mut experiment: impl FnMut(&mut Pcg64, u64) -> Comparison,
) -> (f64, f64) {
    let mut random = Pcg64::seed_from_u64(seed);
    let (mut held, mut significant) = (0, 0);
    for number in 0..experiments {
        let comparison = experiment(&mut random, number);
        let difference = comparison.difference;
        held += u32::from(difference.low - ROUNDING <= truth && truth <= difference.high + ROUNDING);
        significant += u32::from(comparison.p_value < 0.05);
        let left_out = difference.low > ROUNDING || difference.high < -ROUNDING;
        // But for the last rank, between two of which the interval is interpolated.
        assert!(
            left_out == (comparison.p_value < 0.05) || (comparison.p_value - 0.05).abs() < 0.006,
            "{comparison:?}"
        );
    }
    let percent = |count: u32| f64::from(count) * 100.0 / experiments as f64;
    (percent(held), percent(significant))
}

#[track_caller]
fn assert_coverage(what: &str, (held, significant): (f64, f64), null: bool) {
    println!("{what}: {held:.1} % held the truth, {significant:.1} % significant");
    assert!((93.0..=97.0).contains(&held), "{what}: {held} % held the truth");
    assert!(!null || (4.0..=6.0).contains(&significant), "{what}: {significant} % significant");
}

fn bootstrap(resamples: usize, seed: u64) -> Bootstrap {
    Bootstrap { resamples, seed, ..Bootstrap::default() }
}

#[test]
fn continuous_scores_difference_is_held_and_a_true_null_is_significant_in_five_percent() {
    for (items, resamples) in [(30, 1000), (100, 1000), (400, 1000), (2000, 400)] {
        for shift in [0.0, 0.2] {
            let result = rates(EXPERIMENTS, items as u64, shift, |random, seed| {
                let pair = |_| {
                    let common = normal(random);
                    (common + normal(random) + shift, common + normal(random))
                };
                let (a, b): (Vec<f64>, Vec<f64>) = (0..items).map(pair).unzip();
                bootstrap(resamples, seed).difference(&a, &b, None).unwrap()
            });
            assert_coverage(&format!("{items} items, shift {shift}"), result, shift == 0.0);
        }
    }
}

#[test]
fn skewed_differences_are_held() {
    for items in [50, 200] {
        let truth = 0.2 * 0.5_f64.exp();
        let result = rates(EXPERIMENTS, items as u64, truth, |random, seed| {
            let pair = |_| {
                let loss = normal(random).exp();
                (1.2 * loss + 0.5 * normal(random), loss + 0.5 * normal(random))
            };
            let (a, b): (Vec<f64>, Vec<f64>) = (0..items).map(pair).unzip();
            bootstrap(1000, seed).difference(&a, &b, None).unwrap()
        });
        assert_coverage(&format!("{items} skewed items"), result, false);
    }
}

#[test]
fn right_and_wrong_answers_difference_is_held_and_a_true_null_is_significant_in_five_percent() {
    for items in [30, 50, 100, 400, 2000] {
        for (p, q) in [(0.5, 0.5), (0.7, 0.7), (0.7, 0.6), (0.9, 0.8)] {
            let result = rates(EXPERIMENTS, 1000 + items, p - q, |random, seed| {
                let (a, b): (Vec<f64>, Vec<f64>) = (0..items).map(|_| answers(random, p, q)).unzip();
                let comparison = bootstrap(100, seed).difference(&a, &b, None).unwrap();
                assert_eq!(comparison.method, Method::Score);
                comparison
            });
            assert_coverage(&format!("{items} answers, {p} and {q} right"), result, p == q);
        }
    }
}

#[test]
fn of_mcnemars_tests_the_exact_one_is_conservative_and_the_default_is_not() {
    for (items, p, exact_at_most, mid_from) in
        [(50, 0.5, 3.5, 2.5), (100, 0.7, 4.0, 3.0), (1000, 0.7, 5.5, 4.0)]
    {
        let mut random = Pcg64::seed_from_u64(items);
        let mut below = [0.0; 3];
        for _ in 0..4 * EXPERIMENTS {
            let pairs: Vec<(f64, f64)> = (0..items).map(|_| answers(&mut random, p, p)).collect();
            let (a, b): (Vec<bool>, Vec<bool>) = pairs.iter().map(|&(a, b)| (a == 1.0, b == 1.0)).unzip();
            let test = McNemar::of(&a, &b, 0.95).unwrap();
            assert!(test.exact_p_value >= test.mid_p_value);
            for (count, p_value) in below.iter_mut().zip([test.p_value, test.mid_p_value, test.exact_p_value])
            {
                *count += f64::from(u8::from(p_value < 0.05)) * 100.0 / (4 * EXPERIMENTS) as f64;
            }
        }
        let [default, mid, exact] = below;
        println!("{items} answers, {p} right: score {default:.2} %, mid-p {mid:.2} %, exact {exact:.2} %");
        assert!((4.0..=6.0).contains(&default), "{default} %");
        assert!(
            (mid_from..=6.0).contains(&mid) && exact < mid && exact <= exact_at_most,
            "{mid} % {exact} %"
        );
    }
}

#[test]
fn loss_per_token_of_texts_of_different_length_is_held() {
    for (texts, spread, truth) in [(100, 0.5, 0.05), (400, 0.8, 0.05), (200, 0.5, 0.0)] {
        let result = rates(3 * EXPERIMENTS, texts, truth, |random, seed| {
            let text = |_| {
                let tokens = (50.0 * (spread * normal(random)).exp()).ceil();
                let loss = 2.0 + 0.5 * normal(random);
                let other = loss - truth + 0.1 * normal(random);
                (Part { sum: loss * tokens, count: tokens }, Part { sum: other * tokens, count: tokens })
            };
            let (a, b): (Vec<Part>, Vec<Part>) = (0..texts).map(text).unzip();
            bootstrap(1000, seed).ratio_difference(&a, &b, None).unwrap()
        });
        assert_coverage(&format!("{texts} texts, loss per token"), result, truth == 0.0);
    }
}

#[test]
fn items_of_a_group_are_drawn_together() {
    // Forty documents with ten passages each, on which the systems differ by document.
    let labels: Vec<String> = (0..400).map(|item| format!("document {}", item / 10)).collect();
    let groups = Groups::by(&labels);
    assert_eq!(groups.count(), 40);
    let scores = |random: &mut Pcg64| -> (Vec<f64>, Vec<f64>) {
        let mut of_document = 0.0;
        (0..400)
            .map(|item| {
                if item % 10 == 0 {
                    of_document = normal(random);
                }
                (of_document + normal(random), 0.0)
            })
            .unzip()
    };
    let grouped = rates(EXPERIMENTS, 8, 0.0, |random, seed| {
        let (a, b) = scores(random);
        bootstrap(1000, seed).difference(&a, &b, Some(&groups)).unwrap()
    });
    assert_coverage("40 groups of 10", grouped, true);
    let one_by_one = rates(EXPERIMENTS, 8, 0.0, |random, seed| {
        let (a, b) = scores(random);
        bootstrap(400, seed).difference(&a, &b, None).unwrap()
    });
    assert!(one_by_one.0 < 75.0, "{} % held the truth", one_by_one.0);
}

#[test]
fn a_systems_own_mean_is_held() {
    let mut random = Pcg64::seed_from_u64(77);
    let labels: Vec<usize> = (0..200).map(|item| item / 5).collect();
    let groups = Groups::by(&labels);
    let mut held = [0.0; 3];
    for seed in 0..EXPERIMENTS {
        let skewed: Vec<f64> = (0..60).map(|_| normal(&mut random).abs()).collect();
        let right: Vec<f64> = (0..30).map(|_| answers(&mut random, 0.85, 0.5).0).collect();
        // Subjects differ in how hard they are: half of them 0.9, half of them 0.5.
        let chances: Vec<f64> = (0..40).map(|_| if random.random() { 0.9 } else { 0.5 }).collect();
        let grouped: Vec<f64> =
            (0..200).map(|item| f64::from(u8::from(random.random::<f64>() < chances[item / 5]))).collect();
        let settings = bootstrap(1000, seed);
        let estimates = [
            (settings.mean(&skewed, None), (2.0 / std::f64::consts::PI).sqrt()),
            (settings.mean(&right, None), 0.85),
            (settings.mean(&grouped, Some(&groups)), 0.7),
        ];
        for (held, (estimate, truth)) in held.iter_mut().zip(estimates) {
            *held += f64::from(u8::from(estimate.unwrap().holds(truth))) * 100.0 / EXPERIMENTS as f64;
        }
    }
    println!("skewed mean, share of right answers, share by group: {held:.1?} % held the truth");
    assert!(held.iter().all(|held| (93.0..=97.0).contains(held)), "{held:?}");
}

#[test]
fn tests_and_intervals_of_counts_are_those_of_scipy() {
    let fixture: Value = serde_json::from_str(include_str!("../fixtures/statistics.json")).unwrap();
    let near = |ours: f64, theirs: &Value, tolerance: f64| {
        let theirs = theirs.as_f64().unwrap();
        assert!((ours - theirs).abs() <= tolerance, "{ours} instead of {theirs}");
    };
    for case in fixture["mcnemar"].as_array().unwrap() {
        let counts = [0, 1, 2, 3].map(|k| case["counts"][k].as_u64().unwrap());
        let ours = McNemar::of_counts(counts, 0.95).unwrap();
        near(ours.exact_p_value, &case["exact"], 1e-12);
        near(ours.mid_p_value, &case["mid"], 1e-12);
        near(ours.p_value, &case["score"], 1e-12);
        near(ours.difference.low, &case["interval"][0], 1e-6);
        near(ours.difference.high, &case["interval"][1], 1e-6);
    }
    for case in fixture["wilson"].as_array().unwrap() {
        let (right, items) = (case["right"].as_u64().unwrap(), case["items"].as_u64().unwrap());
        let scores: Vec<f64> = (0..items).map(|item| if item < right { 1.0 } else { 0.0 }).collect();
        let ours = Bootstrap::default().mean(&scores, None).unwrap();
        near(ours.low, &case["interval"][0], 1e-9);
        near(ours.high, &case["interval"][1], 1e-9);
    }
}

#[test]
fn what_is_the_same_has_no_difference_and_what_always_differs_is_told() {
    let settings = bootstrap(1000, 3);
    let scores: Vec<f64> = (0..40).map(|item| f64::from(item) * 0.37).collect();
    let same = settings.difference(&scores, &scores, None).unwrap();
    assert_eq!((same.difference.low, same.difference.value, same.difference.high), (0.0, 0.0, 0.0));
    assert_eq!(same.p_value, 1.0);
    let better: Vec<f64> = scores.iter().map(|score| score + 1.0).collect();
    let always = settings.difference(&better, &scores, None).unwrap();
    assert!((always.difference.low - 1.0).abs() < ROUNDING && always.p_value < 0.005, "{always:?}");
    // No flip at all is no proof that there never are any.
    let right = vec![1.0; 40];
    let none = settings.difference(&right, &right, None).unwrap();
    assert!(none.difference.low < -0.05 && none.difference.high > 0.05 && none.p_value == 1.0, "{none:?}");
    let groups = Groups::by(&(0..40).map(|item| item / 4).collect::<Vec<_>>());
    let all = settings.mean(&right, Some(&groups)).unwrap();
    assert!((all.low - 0.025_f64.powf(0.1)).abs() < ROUNDING && all.high == 1.0, "{all:?}");
}

#[test]
fn a_seed_gives_the_same_bytes_and_exp_of_a_loss_has_the_ends_of_the_loss() {
    let items: Vec<Part> = (0..50)
        .map(|item| Part { sum: f64::from(item % 7) + 1.0, count: f64::from(item % 5) + 1.0 })
        .collect();
    let loss = bootstrap(2000, 9).ratio(&items, None).unwrap();
    assert_eq!(loss, bootstrap(2000, 9).ratio(&items, None).unwrap());
    assert_ne!(loss, bootstrap(2000, 10).ratio(&items, None).unwrap());
    let perplexity = loss.map(f64::exp);
    assert_eq!((perplexity.low, perplexity.high), (loss.low.exp(), loss.high.exp()));
    let json = serde_json::to_value(loss).unwrap();
    assert_eq!(json["value"], loss.value);
}

#[test]
fn what_cannot_be_computed_is_an_error_that_says_why() {
    let settings = bootstrap(100, 0);
    let message = |result: Result<Comparison, PairedError>| result.unwrap_err().to_string();
    assert_eq!(
        message(settings.difference(&[1.5, 2.5], &[1.5], None)),
        "the second system's scores are 1, but there are 2 items; give one for each item, in the same order"
    );
    assert_eq!(
        message(settings.difference(&[1.5], &[2.5], None)),
        "an interval needs at least two items, and there are 1"
    );
    assert_eq!(
        message(settings.difference(&[1.5, f64::NAN], &[1.5, 1.0], None)),
        "the first system's score of item 1 (counted from 0) is NaN; every score must be a finite number"
    );
    let one = Groups::by(&["law", "law"]);
    assert_eq!(
        message(settings.difference(&[1.0, 2.0], &[1.0, 2.0], Some(&one))),
        "an interval needs at least two groups of items, and there are 1"
    );
    assert_eq!(
        message(settings.difference(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], Some(&one))),
        "labels of groups are 2, but there are 3 items; give one for each item, in the same order"
    );
    let nothing = [Part { sum: 1.0, count: 0.0 }; 3];
    assert_eq!(
        settings.ratio(&nothing, None).unwrap_err().to_string(),
        "the ratio is not defined for these items"
    );
    for (settings, field) in [
        (Bootstrap { resamples: 3, ..settings }, "`resamples` is 3; it may be 100 to 1000000"),
        (Bootstrap { level: 95.0, ..settings }, "`level` is 95; it must be between 0 and 1, such as 0.95"),
    ] {
        assert_eq!(message(settings.difference(&[1.5, 2.0], &[1.0, 2.0], None)), field);
    }
    assert!(settings.mean(&[], None).is_err());
    assert!(McNemar::of(&[], &[], 0.95).is_err() && McNemar::of(&[true], &[true], 1.0).is_err());
    assert!(McNemar::of(&[true, false], &[true], 0.95).is_err());
}
