use infer::{Sampler, Sampling};

const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, -1.0];

fn counts(sampling: Sampling, draws: usize) -> [usize; 5] {
    let mut sampler = Sampler::new(sampling, &[]);
    let mut counts = [0; 5];
    (0..draws).for_each(|_| counts[sampler.sample(&LOGITS) as usize] += 1);
    counts
}

#[test]
fn temperature_zero_takes_the_likeliest_and_of_equals_the_first() {
    assert_eq!(counts(Sampling::default(), 3), [0, 3, 0, 0, 0]);
}

#[test]
fn draws_follow_the_softmax() {
    let n = 40_000;
    let counts = counts(Sampling { temperature: 0.7, ..Sampling::default() }, n);
    let weights = LOGITS.map(|l| f64::from(l / 0.7).exp());
    let total: f64 = weights.iter().sum();
    for (count, weight) in counts.into_iter().zip(weights) {
        let p = weight / total;
        let deviation = (p * (1.0 - p) * n as f64).sqrt();
        assert!((count as f64 - p * n as f64).abs() < 5.0 * deviation, "{count} of {n} for probability {p}");
    }
}

#[test]
fn top_k_and_top_p_leave_the_tail_out() {
    let all = Sampling { temperature: 1.0, ..Sampling::default() };
    let k = counts(Sampling { top_k: 3, ..all }, 2_000);
    assert!(k[0] == 0 && k[4] == 0 && k[1] > 0 && k[2] > 0 && k[3] > 0, "{k:?}");
    // The two likeliest have 0.39 each: 0.5 needs both, 0.3 only the first.
    let p = counts(Sampling { top_p: 0.5, ..all }, 2_000);
    assert!(p[1] > 0 && p[3] > 0 && p[0] + p[2] + p[4] == 0, "{p:?}");
    assert_eq!(counts(Sampling { top_p: 0.3, ..all }, 100), [0, 100, 0, 0, 0]);
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let draw = |seed| {
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() }, &[]);
        (0..32).map(|_| sampler.sample(&LOGITS)).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn only_the_shortest_prefix_that_reaches_top_p_is_drawn_from() {
    let logits: Vec<f32> =
        (0..1000).map(|i| 6.0 * compute::random::uniform(3, i) as f32 - ((i % 7) as f32)).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let weights: Vec<f64> = order.iter().map(|&i| f64::from(logits[i] / 0.8).exp()).collect();
    let total: f64 = weights.iter().sum();
    for top_p in [0.05_f32, 0.5, 0.9, 0.999] {
        let mut sum = 0.0;
        let nucleus = weights.iter().take_while(|&w| {
            let before = sum;
            sum += w;
            before < f64::from(top_p) * total
        });
        let nucleus = nucleus.count();
        let mut sampler = Sampler::new(Sampling { temperature: 0.8, top_p, ..Sampling::default() }, &[]);
        let mut drawn = vec![0_usize; logits.len()];
        (0..20_000).for_each(|_| drawn[sampler.sample(&logits) as usize] += 1);
        assert!(order[nucleus..].iter().all(|&i| drawn[i] == 0), "top_p {top_p}: outside {nucleus} tokens");
        let likely = weights[0] / weights[..nucleus].iter().sum::<f64>();
        let deviation = (likely * (1.0 - likely) * 20_000.0).sqrt();
        let off = (drawn[order[0]] as f64 - likely * 20_000.0).abs();
        assert!(off <= 5.0 * deviation, "top_p {top_p}: the likeliest {} times, p {likely}", drawn[order[0]]);
    }
}

/// Penalties that no number holds leave a token to be drawn.
#[test]
fn whatever_the_penalties_something_is_drawn() {
    let logits = [3.0, -2.0, 1e30, 0.0];
    for repetition_penalty in [1e-39, 1e-3, 1e30, f32::MAX] {
        for temperature in [0.0, 1e-40, 1.0, f32::MAX] {
            for (frequency_penalty, min_p) in [(0.0, 0.0), (f32::MAX, 1.0), (-f32::MAX, 0.5)] {
                let sampling = Sampling {
                    temperature,
                    repetition_penalty,
                    frequency_penalty,
                    min_p,
                    top_p: 1e-40,
                    ..Sampling::default()
                };
                let mut sampler = Sampler::new(sampling, &[0, 1, 2]);
                (0..4).for_each(|_| assert!(sampler.sample(&logits) < 4));
            }
        }
    }
}

/// As a constraint leaves logits, under all that sampling does to them.
#[test]
fn what_is_minus_infinity_never_comes() {
    let logits = [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY, -80.0, 5.0, f32::NEG_INFINITY];
    for temperature in [0.0, 1e-3, 1.0, 50.0] {
        for (top_p, top_k, min_p) in
            [(1.0, 0, 0.0), (0.0, 0, 0.0), (0.9, 5, 0.0), (1.0, 0, 0.5), (1.0, 6, 0.0)]
        {
            for (repetition_penalty, frequency_penalty) in [(1.0, 0.0), (1.5, 0.5), (0.5, -2.0)] {
                let sampling = Sampling {
                    temperature,
                    top_p,
                    top_k,
                    min_p,
                    repetition_penalty,
                    frequency_penalty,
                    ..Sampling::default()
                };
                let mut sampler = Sampler::new(sampling, &[0, 1, 2, 3]);
                let drawn: Vec<u32> = (0..200).map(|_| sampler.sample(&logits)).collect();
                assert!(drawn.iter().all(|token| [1, 3, 4].contains(token)), "{sampling:?}: {drawn:?}");
            }
        }
    }
}

#[test]
fn top_p_of_nothing_leaves_the_likeliest() {
    let sampling = Sampling { temperature: 1.0, top_p: 0.0, ..Sampling::default() };
    assert_eq!(counts(sampling, 100), [0, 100, 0, 0, 0]);
}
